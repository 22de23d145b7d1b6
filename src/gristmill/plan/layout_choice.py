"""`gristmill plan layout`: how training is best spread over devices, why, and which rules exclude the rest."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import GristmillError
from ..model.config import ModelConfig
from .activations import Arithmetic
from .communication import Links
from .device import device
from .layout_search import Choice, Cluster, Excluded, Search
from .layouts import Layout
from .plot import Curve, Plot
from .quantity import Quantity, in_bytes
from .training_step import Work, check_batch
from .utilization import measured_share, peak_of

SHOWN = 8
MOST_DEVICES = 2**17


@dataclass(frozen=True)
class LayoutAnswer:
    """`choices` from the quickest on, the best schedule of each TP x PP x DP x EP; `reasons` are sentences for people;
    of `looked_at` schedules the times were reckoned."""

    choices: tuple[Choice, ...]
    reasons: tuple[str, ...]
    excluded: tuple[Excluded, ...]
    looked_at: int
    batch_tokens: int

    def as_json(self) -> dict[str, Any]:
        """`quantities` of every choice, and the choices' settings, sentences and rules."""
        return {
            "quantities": [quantity.as_json() for quantity in self.quantities()],
            "layouts": [choice.as_json() for choice in self.choices],
            "sentences": list(self.reasons),
            "excluded": [asdict(rule) for rule in self.excluded],
            "plots": [self.plot().as_json()],
        }

    def quantities(self) -> list[Quantity]:
        """Figures of each choice; ids begin with `layout_1` for the quickest."""
        rows = []
        for number, choice in enumerate(self.choices, 1):
            step, name = choice.step, f"layout_{number}"
            rows += [
                Quantity(f"{name}.step", step.seconds, "s", f"{choice.name()}: compute + bubble + exposed traffic"),
                Quantity(f"{name}.tokens_per_second", self.batch_tokens / step.seconds, "token/s", "batch / step"),
                Quantity(f"{name}.utilization", step.utilization, "1", "FLOPs of the model / (devices * peak * step)"),
                Quantity(f"{name}.compute", step.compute_seconds, "s", choice.settings()),
                Quantity(f"{name}.bubble", step.bubble_seconds, "s", "(p - 1)/v * time of a micro-batch"),
                Quantity(f"{name}.exposed", step.exposed_seconds, "s", "traffic that no compute can hide"),
                Quantity(f"{name}.memory", choice.memory_bytes, "byte", "the fullest device: states and activations"),
            ]
        return rows

    def plot(self) -> Plot:
        """Parts of each choice's step."""
        ranks = tuple(float(number) for number in range(1, len(self.choices) + 1))
        steps = [choice.step for choice in self.choices]
        parts = {
            "compute": [step.compute_seconds for step in steps],
            "bubble": [step.bubble_seconds for step in steps],
            "exposed traffic": [step.exposed_seconds for step in steps],
        }
        curves = tuple(Curve(name, ranks, tuple(seconds), "bars") for name, seconds in parts.items())
        return Plot("layouts", "A step of each layout, by parts", "layout", "1", "time", "s", curves)


def choose_layout(
    config: ModelConfig,
    device_id: str = "h100-sxm",
    devices: int = 8,
    *,
    sequence_length: int | None = None,
    batch_tokens: int | None = None,
    arithmetic: Arithmetic | None = None,
    optimizer: str = "adamw",
    utilization: float | None = None,
    devices_per_node: int | None = None,
    fixed: dict[str, int] | None = None,
) -> LayoutAnswer:
    """The layouts of `devices` devices by estimated time of a step of `batch_tokens` tokens; `fixed` are sizes that are
    given (`tensor`, `pipeline`, `data`, `expert`, `zero`). GristmillError where nothing is left, with the rule."""
    arithmetic = arithmetic or Arithmetic()
    length = config.max_seq_len if sequence_length is None else sequence_length
    _check(config, devices, length, utilization)
    card = device(device_id)
    links = Links.of(card, devices_per_node)
    share = utilization or measured_share(config, arithmetic.precision).share
    cluster = Cluster(card, devices, links, peak_of(card, arithmetic.precision), share)
    tokens = default_batch_tokens(length) if batch_tokens is None else batch_tokens
    check_batch(tokens, length, 1)
    _check_fixed(config, devices, fixed or {})
    search = Search(Work(config, arithmetic, length), cluster, optimizer, tokens)
    choices = search.run(fixed or {}, SHOWN)
    if not choices:
        raise GristmillError(_nothing(search, fixed or {}))
    reasons = [*_reasons(search, choices), _own_trainer(search, choices[0])]
    return LayoutAnswer(choices, tuple(reasons), tuple(search.why_not()), search.looked_at, tokens)


def default_batch_tokens(sequence_length: int) -> int:
    """4 Mi tokens, as Llama 3 begins with (Grattafiori et al. 2024, section 3.4.1), in whole sequences."""
    return max(2**22 // sequence_length, 1) * sequence_length


def _reasons(search: Search, choices: tuple[Choice, ...]) -> Iterator[str]:
    """The decision: whether it fits one device or one node, what the quickest layout is, why it beats the next."""
    work, cluster = search.work, search.cluster
    config, node, n = work.config, cluster.links.devices_per_node, cluster.devices
    one = search.memory.states(Layout())
    room = f"the {in_bytes(cluster.usable_bytes)} that one {cluster.device.id} can use"
    if one <= cluster.usable_bytes:
        yield (
            f"It fits on one device: weights, gradients and optimizer take {in_bytes(one)} of {room}, so that devices "
            "need to share nothing but the batch."
        )
    elif one <= min(node, n) * cluster.usable_bytes:
        yield (
            f"It does not fit on one device, but on one node: weights, gradients and optimizer take {in_bytes(one)}, "
            f"more than {room}, less than {min(node, n)} of them can. So sharing can stay on a node's links."
        )
    else:
        nodes = math.ceil(one / (node * cluster.usable_bytes))
        yield (
            f"It needs more than a node: weights, gradients and optimizer take {in_bytes(one)}, more than {node} times "
            f"{room}, and at least {nodes} nodes. What talks most (tensor) stays inside a node; what talks least "
            "(pipeline, data) goes between nodes."
        )
    if config.experts is not None:
        share = work.expert_params / (work.dense_params + work.expert_params)
        told = f"Experts hold {share:.0%} of the parameters outside of embedding and head. In the quickest layout "
        if choices[0].layout.expert > 1:
            yield (
                told + f"they are shared out over {choices[0].layout.expert} devices: tokens travel to their experts, "
                "instead of the experts' weights and gradients to every device."
            )
        else:
            yield (
                told + "no device is given experts of its own: there is room, and tokens that travel to other devices' "
                "experts, in forward and backward, would cost more."
            )
    first = choices[0]
    yield (
        f"Quickest: {first.name()} ({first.settings()}): {first.step.seconds:.4g} s a step at "
        f"{first.step.utilization:.1%} MFU, {in_bytes(first.memory_bytes)} a device. {_parts(first)}"
    )
    if len(choices) > 1:
        yield _against(first, choices[1])


def _own_trainer(search: Search, first: Choice) -> str:
    """What `gristmill pretrain` can do of it: data parallelism with ZeRO."""
    layout = first.layout
    told = "gristmill's own training shares the batch and the states (parallel.data), nothing else"
    if layout.tensor == layout.pipeline == layout.expert == 1:
        return f"{told}: it runs the quickest."
    alone = Search(search.work, search.cluster, search.optimizer, search.batch_tokens)
    best = alone.run({"tensor": 1, "pipeline": 1, "expert": 1}, 1)
    if not best:
        return f"{told}: it runs none of these, and without them the model does not fit, or the batch does not divide."
    longer = best[0].step.seconds / first.step.seconds
    return (
        f"{told}: there {best[0].name()} is quickest, {best[0].step.seconds:.4g} s a step, {longer:.3g} times as long."
    )


def _parts(choice: Choice) -> str:
    step = choice.step
    parts = [("arithmetic", step.compute_seconds), ("the pipeline's bubble", step.bubble_seconds)]
    parts += [(f"{part.kind} traffic that nothing hides", part.exposed_seconds) for part in step.traffic]
    told = [f"{what} {seconds / step.seconds:.0%}" for what, seconds in parts if seconds > 0.005 * step.seconds]
    return f"Of a step {', '.join(told)}."


def _against(first: Choice, second: Choice) -> str:
    """In which parts the winner saves time, and where it spends more."""

    def times(choice: Choice) -> dict[str, float]:
        found = {"arithmetic": choice.step.compute_seconds, "bubble": choice.step.bubble_seconds}
        return found | {f"{part.kind} traffic": part.exposed_seconds for part in choice.step.traffic}

    ours, theirs = times(first), times(second)
    gain = second.step.seconds - first.step.seconds
    saved = {what: theirs[what] - seconds for what, seconds in ours.items()}
    small = 0.002 * first.step.seconds
    less = [
        f"{saved[what]:.3g} s less {what}" for what in sorted(saved, key=lambda k: -saved[k]) if saved[what] > small
    ]
    more = [
        f"{-saved[what]:.3g} s more {what}" for what in sorted(saved, key=lambda k: saved[k]) if saved[what] < -small
    ]
    text = f"It beats {second.name()} by {gain:.3g} s a step ({gain / first.step.seconds:.1%})"
    if not less:
        return text + ": they are as good as equal."
    return text + f": {', '.join(less)}" + (f", against {', '.join(more)}" if more else "") + "."


def _nothing(search: Search, fixed: dict[str, int]) -> str:
    """The rule to blame, and what would help."""
    least, name = search.least_memory
    asked = ", ".join(f"{name} {size}" for name, size in fixed.items())
    head = f"no layout of {search.cluster.devices} x {search.cluster.device.id}" + (f" with {asked}" if asked else "")
    if name:
        return (
            f"{head} fits: the smallest, {name}, takes {in_bytes(least)} a device, more than the "
            f"{in_bytes(search.cluster.usable_bytes)} that can be used; take more devices, shorter sequences, or an "
            "optimizer with less state"
        )
    rules = "; ".join(f"{rule} ({example})" for rule, (_, example) in search.excluded.items())
    return f"{head} is possible: {rules or 'the sizes do not multiply to the number of devices'}"


def _check(config: ModelConfig, devices: int, length: int, utilization: float | None) -> None:
    if not 1 <= devices <= MOST_DEVICES:
        raise GristmillError(f"devices must be between 1 and {MOST_DEVICES:,}, not {devices}")
    if length < 1:
        raise GristmillError(f"seq_len must be at least 1, not {length}")
    if length > config.max_seq_len:
        raise GristmillError(
            f"seq_len ({length}) is more than the model's max_seq_len ({config.max_seq_len}): give fewer tokens, or a "
            f"model that is made for them (--set max_seq_len={length})"
        )
    if utilization is not None and not 0 < utilization <= 1:
        raise GristmillError(f"mfu must be above 0 and at most 1, not {utilization:g}")


def _check_fixed(config: ModelConfig, devices: int, fixed: dict[str, int]) -> None:
    """What was asked for breaks no rule by itself."""
    Layout(**fixed | {"data": fixed.get("data", max(fixed.get("expert", 1), 1))}).check(config)
    for name in ("tensor", "pipeline", "data", "expert"):
        if devices % fixed.get(name, 1):
            raise GristmillError(f"{name} parallelism {fixed[name]} does not divide {devices} devices")
    product = math.prod(fixed.get(name, 1) for name in ("tensor", "pipeline", "data"))
    if devices % product:
        raise GristmillError(f"tensor x pipeline x data = {product} does not divide {devices} devices")
