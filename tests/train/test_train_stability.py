"""The guard against spikes: what it sees, what it must not mind, what it remembers; and the naming of what is not
finite."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gristmill.train.config import StabilityConfig
from gristmill.train.parallel.processes import alone
from gristmill.train.stability import LONGEST_OVERFLOW, Guard, name_not_finite

CPU = torch.device("cpu")
NAN, INF = math.nan, math.inf


def guard(scaled: bool = False, **changes: object) -> Guard:
    return Guard(StabilityConfig.model_validate({"window": 16, **changes}), CPU, scaled)


def feed(watch: Guard, losses: Iterable[float], norms: Iterable[float]) -> list[int]:
    return [int(watch.judge(torch.tensor(a), torch.tensor(b))) for a, b in zip(losses, norms, strict=True)]


def noise(count: int, mean: float, deviation: float, seed: int = 0) -> list[float]:
    return (mean + deviation * np.random.default_rng(seed).standard_normal(count)).tolist()


def fed(count: int = 16, **changes: object) -> Guard:
    watch = guard(**changes)
    assert not any(feed(watch, noise(count, 3, 0.1), noise(count, 1, 0.1, seed=1)))
    return watch


@pytest.mark.parametrize("steps", [8, 16, 45])
@pytest.mark.parametrize(("column", "other"), [(0, 1.0), (1, 3.0)])
def test_a_spike_is_what_lies_six_deviations_above_the_last_steps(steps: int, column: int, other: float) -> None:
    """The bound against numpy's over the last `window` values, just below and just above it, in loss and in norm."""
    history = [noise(steps, 3, 0.1), noise(steps, 1, 0.1, seed=1)]
    last = np.array(history[column][-16:])
    bound = last.mean() + 6 * last.std()
    for value, verdict in ((bound - 1e-4, 0), (bound + 1e-4, 1), (-bound, 0)):
        watch = guard()
        feed(watch, *history)
        step = ([value], [other]) if column == 0 else ([other], [value])
        assert feed(watch, *step) == [verdict]


def by_the_rule(losses: list[float], norms: list[float], window: int, sigmas: float) -> list[int]:
    """The module's rule, a step at a time and in plain Python."""
    last: deque[tuple[float, float] | None] = deque(maxlen=window)
    verdicts = []
    for step in zip(losses, norms, strict=True):
        told = np.array([values for values in last if values is not None])
        bounds = [INF, INF]
        if len(told) >= window // 2:
            mean = told.mean(axis=0)
            bounds = (mean + sigmas * np.maximum(told.std(axis=0), 0.01 * np.abs(mean))).tolist()
        good = math.isfinite(step[0]) and math.isfinite(step[1])
        above = any(value > bound for value, bound in zip(step, bounds, strict=True))
        verdicts.append(int(not good or above))
        last.append((min(step[0], bounds[0]), min(step[1], bounds[1])) if good and step[1] > 0 else None)
    return verdicts


@pytest.mark.parametrize("seed", range(4))
def test_verdicts_are_those_of_the_rule_in_plain_python(seed: int) -> None:
    rng = np.random.default_rng(seed)
    losses, norms = rng.normal(3, 0.2, 150), np.exp(rng.normal(0, 0.5, 150))
    losses += np.where(rng.random(150) < 0.08, rng.exponential(4, 150), 0)
    norms *= rng.choice([1, 0, 9, 90], 150, p=[0.84, 0.04, 0.06, 0.06])
    losses[rng.random(150) < 0.05], norms[rng.random(150) < 0.05] = NAN, INF
    given = losses.astype(np.float32).tolist(), norms.astype(np.float32).tolist()
    expected = by_the_rule(*given, window=13, sigmas=4)
    assert feed(guard(window=13, sigmas=4), *given) == expected
    assert 10 < sum(expected) < 60


def test_too_few_steps_give_no_verdict() -> None:
    watch = guard()
    assert feed(watch, [3, 9, 1, 50, 2, 2, 2, 2], [1, 7, 1, 90, 1, 1, 1, 1]) == [0] * 8
    assert not guard().calm()
    assert not feed(guard(), [3.0] * 7 + [1e9], [1.0] * 8)[-1]
    assert feed(guard(), [3.0] * 8 + [1e9], [1.0] * 9)[-1]


@pytest.mark.parametrize(("loss", "norm"), [(NAN, 1), (3, NAN), (INF, 1), (3, INF), (-INF, 1)])
def test_what_is_not_finite_is_skipped_from_the_first_step_and_soon_forgotten(loss: float, norm: float) -> None:
    for skip_spikes in (True, False):
        watch = guard(skip_spikes=skip_spikes)
        assert feed(watch, [loss, 3.0], [norm, 1.0]) == [1, 0]
        assert feed(watch, noise(16, 3, 0.1), noise(16, 1, 0.1)) == [0] * 16
        assert watch.counts().not_finite == 1
        assert feed(watch, [30.0], [1.0]) == [int(skip_spikes)]


def test_spikes_are_watched_where_they_are_not_skipped() -> None:
    watch = fed(skip_spikes=False)
    assert feed(watch, [30.0], [1.0]) == [0]
    assert watch.counts().spikes == 1


@pytest.mark.parametrize(
    ("losses", "norms"),
    [
        (np.full(200, 2.0), np.full(200, 1.0)),
        (2 + 1e-6 * (np.arange(200) % 40 == 39), 1 + 1e-6 * (np.arange(200) % 50 == 49)),
        (np.zeros(200), np.zeros(200)),
        # no reward differs for long, then some do
        (np.r_[np.zeros(90), noise(90, 0, 0.1)], np.r_[np.zeros(90), noise(90, 0.5, 0.1)]),
        # the first steps: the loss falls, the norm rises and falls with the warm-up
        (3 + 7 * np.exp(-np.arange(200) / 30), 1 + 3 * np.exp(-(((np.arange(200) - 40) / 20) ** 2))),
        # norms that often lie far above their mean
        (noise(200, 3, 0.05), np.exp(noise(200, 0, 0.4))),
    ],
    ids=["constant", "constant but for rounding", "zero", "zero, then not", "warm-up", "lognormal norms"],
)
def test_no_false_alarms(losses: np.ndarray, norms: np.ndarray) -> None:
    watch = guard(window=64)
    assert sum(feed(watch, losses, norms)) == 0
    assert watch.calm() == bool(np.count_nonzero(norms) >= 32)


def test_bad_steps_in_a_row_are_all_seen() -> None:
    watch = fed(64, window=64)
    assert feed(watch, noise(12, 10, 0.1), noise(12, 8, 0.1)) == [1] * 12
    assert feed(watch, noise(12, 3, 0.1), noise(12, 1, 0.1)) == [0] * 12


def test_a_level_that_stays_is_accepted_in_time() -> None:
    watch = fed(64, window=64)
    verdicts = feed(watch, noise(60, 4.5, 0.1), noise(60, 1, 0.1))
    assert verdicts[0] == 1
    assert sum(verdicts) < 16
    assert not any(verdicts[20:])


def test_overflows_of_scaled_gradients_are_no_trouble_unless_they_last() -> None:
    watch = guard(scaled=True)
    assert feed(watch, [3.0] * 5, [INF] * 5) == [1] * 5
    counts = watch.counts()
    assert (counts.not_finite, counts.overflows, counts.in_window) == (0, 5, 0)
    feed(watch, noise(16, 3, 0.1), noise(16, 1, 0.1))
    assert watch.calm()
    assert feed(watch, [3.0] * (LONGEST_OVERFLOW + 3), [NAN] * (LONGEST_OVERFLOW + 3)) == [1] * (LONGEST_OVERFLOW + 3)
    counts = watch.counts()
    assert (counts.overflows, counts.not_finite, counts.in_window) == (LONGEST_OVERFLOW, 3, 3)
    assert feed(watch, [NAN], [NAN]) == [1]  # a loss is not scaled yet when it is made
    assert watch.counts().not_finite == 1


def test_counts_calm_and_rollback() -> None:
    watch = fed(rollback_after=3)
    assert watch.calm()
    feed(watch, [3.0, 40.0, NAN, 3.0], [1.0, 1.0, 1.0, 1.0])
    counts = watch.counts()
    assert (counts.spikes, counts.not_finite, counts.in_window) == (1, 1, 2)
    assert (watch.counts().spikes, watch.counts().in_window) == (0, 2)
    assert (watch.calm(), watch.wants_rollback()) == (False, False)
    feed(watch, [3.0, INF], [1.0, 1.0])
    assert watch.wants_rollback()
    feed(watch, noise(16, 3, 0.1), noise(16, 1, 0.1))  # long ago now
    assert (watch.calm(), watch.wants_rollback()) == (True, False)
    never = fed(rollback_after=None)
    feed(never, [NAN] * 16, [NAN] * 16)
    assert not never.wants_rollback()
    small = guard(window=8, rollback_after=16)  # more than the window holds
    feed(small, [NAN] * 8, [NAN] * 8)
    assert small.wants_rollback()


@pytest.mark.parametrize("cut", [0, 5, 20, 37])
def test_a_guard_goes_on_from_its_state_as_if_not_cut(cut: int) -> None:
    losses, norms = noise(60, 3, 0.1), np.exp(noise(60, 0, 0.5))
    losses[30], norms[33], losses[40] = 9.0, NAN, 8.0
    whole = guard()
    expected = feed(whole, losses, norms)
    first, second = guard(), guard()
    found = feed(first, losses[:cut], norms[:cut])
    saved = {name: tensor.clone() for name, tensor in first.state().items()}
    feed(first, losses[cut:], norms[cut:])  # what is saved is a copy, what goes on does not change it
    second.load(saved)
    assert found + feed(second, losses[cut:], norms[cut:]) == expected
    assert second.counts() == whole.counts()
    for name, tensor in second.state().items():
        torch.testing.assert_close(tensor, whole.state()[name], rtol=0, atol=0, equal_nan=True)


class NoReading(TorchDispatchMode):
    """Nothing may read a number off the device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        assert "_local_scalar_dense" not in str(function), "the host waits for the device"
        assert "nonzero" not in str(function), "the host waits for the device"
        return function(*args, **(kwargs or {}))


def test_a_verdict_does_not_wait_for_the_device() -> None:
    watch = fed()
    loss, norm = torch.tensor(3.0), torch.tensor(1.0)
    with NoReading():
        watch.judge(loss, norm)
    with pytest.raises(AssertionError, match="waits"), NoReading():
        watch.calm()


def test_a_verdict_is_made_where_the_tensors_are() -> None:
    watch = Guard(StabilityConfig(), torch.device("meta"))  # no number can be read there at all
    verdict = watch.judge(torch.zeros((), device="meta"), torch.zeros((), device="meta"))
    assert (verdict.device.type, verdict.dtype, verdict.shape) == ("meta", torch.float32, ())


class Net(nn.Module):
    """Two layers and a root, whose slope at 0 is infinite."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.root = nn.Linear(3, 3), nn.Linear(3, 1), Root()
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.root(self.second(self.first(x)))


class Root(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sqrt()


def test_what_is_not_finite_is_named() -> None:
    net = Net()
    x = torch.ones(2, 3)
    assert name_not_finite(lambda: net(x).sum(), net, alone()) is None
    assert name_not_finite(lambda: net(x).sum().log() * INF * 0, net, alone()).startswith("the loss")
    assert name_not_finite(lambda: net(x * 2e38).sum(), net, alone()) == "the output of first"
    assert name_not_finite(lambda: net(-x).sum(), net, alone()) == "the output of root"
    with torch.no_grad():
        net.second.bias.fill_(-12.0)  # 3 * 4 - 12: the root of 0 is finite, its slope is not
    assert name_not_finite(lambda: net(x).sum(), net, alone()) == "the gradient of the output of second"
    with torch.no_grad():
        net.second.weight[0, 1] = NAN
    assert name_not_finite(lambda: net(x).sum(), net, alone()) == "weight second.weight"
    assert all(parameter.grad is None for parameter in net.parameters())


def test_naming_leaves_no_hooks_behind() -> None:
    net = Net()
    for x in (torch.ones(2, 3), torch.full((2, 3), NAN)):
        name_not_finite(lambda x=x: net(x).sum(), net, alone())  # type: ignore[misc]
    assert not any(module._forward_hooks for module in net.modules())
