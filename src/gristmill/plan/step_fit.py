"""What share of its ceilings a device reaches in the engine's steps, found from steps that were timed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..errors import GristmillError
from ..model.config import ModelConfig
from .device import Device
from .layouts import Layout
from .step_time import FAR, FEW_ROWS, Efficiency, Load, StepModel, Work, reach, usual_efficiency

if TYPE_CHECKING:
    from numpy.typing import NDArray

# The shares that a fit finds, and the most that each can be: nothing multiplies much faster than the device was seen to
# (by another library, up to twice as fast on a CPU), nor reads weights faster; what is small comes from a cache.
SHARES = {"compute": 2.5, "memory": 1.2, "attention_compute": 2.5, "attention_memory": 10.0, "elements": 100.0}
# And what takes seconds: of a layer by the number of rows, of a sequence, of far keys, of a start, of the host.
SECONDS = (
    "layer_seconds",
    "few_layer_seconds",
    "many_layer_seconds",
    "sequence_seconds",
    "prompt_seconds",
    "reading_seconds",
    "prompt_token_seconds",
    "context_seconds",
    "alone_seconds",
    "eager_layer_seconds",
)
FEWEST_SAMPLES = 12
ODD = 0.1  # relative error from which on, at the least, a step counts less: as of one that another process held up
WORTH = 0.97  # of the errors at most is left by what has to be worth it
UNSEEN = 1e-4  # relative error a sample below which fits are alike
PRIOR = 1e-7  # weight of the figures that a fit starts from, against the samples: they say what those leave open


def fit(
    samples: Sequence[tuple[Load, float]],
    config: ModelConfig,
    device: Device,
    weight_bits: float = 16,
    kv_bits: float = 16,
    precision: str | None = None,
    start: Efficiency | None = None,
    head_bits: float | None = None,
) -> Efficiency:
    """The efficiency with which measured steps, (load, seconds), are met best: least squares of relative errors, no
    seconds negative and no share beyond what SHARES allows, once with arithmetic and memory overlapping, in turns with
    the question which is the longer one in each sample, once with their sum; with waiting for the host, and without.
    Steps that another process held up count little (Huber's weights at 1.5 median errors). What the samples do not show
    stays as in `start`, the device's usual one. GristmillError for fewer than 12 samples, or seconds that are not above
    0."""
    if len(samples) < FEWEST_SAMPLES:
        raise GristmillError(f"{len(samples)} steps are too few to fit a device's efficiency: measure {FEWEST_SAMPLES}")
    if not all(0 < taken < math.inf for _, taken in samples):
        raise GristmillError("seconds of measured steps must be above 0 and finite")

    start = usual_efficiency(device) if start is None else start

    def model(known: Efficiency) -> StepModel:
        return StepModel(config, device, Layout(), weight_bits, kv_bits, known, precision, head_bits)

    peak, bandwidth = device.peak(model(start).precision), device.memory_bandwidth
    works = [model(start).work(load) for load, _ in samples]
    layers, taken = config.num_layers, [seconds for _, seconds in samples]
    eager = [not model(start).replayed(load) for load, _ in samples]
    rows = [model(start).filled_up(load) for load, _ in samples]
    best, least, unseen = replace(start, eager_layer_seconds=0.0), math.inf, UNSEEN * len(samples)
    for starting in dict.fromkeys((0.0, start.eager_layer_seconds)):
        first = known = replace(start, eager_layer_seconds=starting)
        # From the sum to the longer one by steps: which one is longer is known better each time.
        for overlap in (0.0, 0.5, 0.9, 1.0):
            first, known = replace(first, overlap=overlap), replace(known, overlap=overlap)
            seen: set[Efficiency] = set()
            while known not in seen and len(seen) < 15:
                seen.add(known)
                device_only = model(replace(known, eager_layer_seconds=0.0))
                host = known.step_seconds + layers * known.eager_layer_seconds
                columns, hidden = [], []
                for work, filled, by_host, (load, _) in zip(works, rows, eager, samples, strict=True):
                    waits = load.hidden if load.hidden < math.inf else 0.0
                    if by_host and device_only.seconds(load) < host - waits:
                        columns.append([0.0] * (len(SHARES) + len(SECONDS) - 1) + [layers])
                    else:
                        columns.append(_columns(work, filled, load, layers, peak, bandwidth, known))
                        waits = waits if known.host_seconds(load) > load.hidden else 0.0
                    hidden.append(waits)
                known = _solved(columns, taken, hidden, first)
                fitted = model(known)
                errors = sorted(abs(fitted.seconds(load) / seconds - 1) for load, seconds in samples)
                limit = max(3 * errors[len(errors) // 2], ODD)
                loss = sum(min(error, limit) for error in errors)
                # Waiting for the host is an unknown more, and another overlap a turn: each has to be worth it.
                loss = max(loss, unseen) / WORTH ** ((starting > 0) + (overlap != start.overlap))
                if overlap in (0.0, 1.0) and loss < least:
                    best, least = known, loss
    return best


def _columns(
    work: Work, rows: int, load: Load, layers: int, peak: float, bandwidth: float, known: Efficiency
) -> list[float]:
    """What each unknown is multiplied with in this step's seconds. For each of SHARES the seconds that are spent there
    at a share of 1: of products and of attention wholly in the term that is the longest one at the shares known so
    far, and in the other one what does not overlap."""
    compute, memory, rest = 0.0, 0.0, 1 - known.overlap
    for flops, moved in ((work.flops, work.weight_bytes), (work.head_flops, work.head_bytes)):
        longer = flops / peak / known.compute > moved / bandwidth / known.memory
        compute += flops / peak * (1 if longer else rest)
        memory += moved / bandwidth * (rest if longer else 1)
    pairs, keys, far = work.attention_flops / peak, work.kv_bytes / bandwidth, layers * reach(load) / FAR
    of_pairs, of_keys = pairs / known.attention_compute, keys / known.attention_memory
    longer = of_pairs > of_keys
    both = of_pairs + rest * of_keys if longer else of_keys + rest * of_pairs
    pairs, keys = pairs * (1 if longer else rest), keys * (rest if longer else 1)
    if far * known.context_seconds > both:
        pairs = keys = 0.0
    else:
        far = 0.0
    one, few = rows <= 1, 1 < rows <= FEW_ROWS
    waits = known.host_seconds(load) > load.hidden
    return [
        *(compute, memory, pairs, keys, work.element_bytes / bandwidth),
        *(layers * one, layers * few, layers * (not one and not few)),
        *(load.sequences, waits * load.prompts, waits, waits * load.prompt_tokens, far, load.alone, 0.0),
    ]


def _solved(columns: list[list[float]], seconds: list[float], hidden: list[float], start: Efficiency) -> Efficiency:
    """The shares that meet `seconds` best, and those of the host's work that are `hidden`; rows of `columns` are steps,
    columns SHARES and SECONDS."""
    import numpy as np

    from .least_squares import non_negative_least_squares

    taken, at_start = np.array(seconds), _unknowns(start)
    scaled = np.array(columns) * at_start / taken[:, None]  # each unknown as a multiple of its start
    least = np.array([1 / most for most in SHARES.values()] + [0.0] * (len(at_start) - len(SHARES))) / at_start
    target = 1 + (np.array(hidden) - start.step_seconds) / taken - scaled @ least
    prior = math.sqrt(PRIOR * len(seconds))
    weights = np.ones(len(taken))
    for _ in range(8):
        root = np.sqrt(weights)
        above = non_negative_least_squares(
            np.vstack([scaled * root[:, None], np.eye(len(least)) * prior]),
            np.concatenate([target * root, prior * (1 - least)]),
        )
        errors = np.abs(scaled @ above - target)
        weights = np.minimum(1.0, max(1.5 * float(np.median(errors)), ODD / 5) / np.maximum(errors, 1e-12))
    return _efficiency((above + least) * at_start, start)


def _unknowns(efficiency: Efficiency) -> NDArray:
    import numpy as np

    shares = [1 / getattr(efficiency, name) for name in SHARES]
    return np.array([*shares, *(max(getattr(efficiency, name), 1e-9) for name in SECONDS)])


def _efficiency(unknowns: NDArray, start: Efficiency) -> Efficiency:
    shares = {name: 1 / value for name, value in zip(SHARES, unknowns[:5].tolist(), strict=True)}
    seconds = dict(zip(SECONDS, unknowns[5:].tolist(), strict=True))
    if not start.eager_layer_seconds:
        seconds["eager_layer_seconds"] = 0.0
    return replace(start, **shares, **seconds)
