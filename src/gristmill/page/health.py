"""Is a training run well? Pure judgements of its log, each a check of the page with a state, a value and its reason.

States: good; watch, where a look at the curve is due; bad, where the run does not do what it is for. Limits are rules
of thumb, named below; none of them stops anything.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from statistics import fmean, median
from typing import Any

Row = dict[str, Any]
Check = dict[str, Any]

RECENT = 0.1  # of the entries are what a run does "now"
FEW = 5  # entries at least make a stretch
RISE = 0.05  # loss above its lowest stretch by this share: it rises
VALIDATION_RISE = 0.01  # validation above its best by this share
STEEP = 5.0  # gradient norm over its own median
SPIKE_SIGMAS, SPIKE_WINDOW = 6.0, 128  # the loop's own rule, over what is logged
SOME_SKIPPED, MANY_SKIPPED = 0.01, 0.05  # share of the recent steps; a small run that is well skips one in hundreds
SLOW = 0.8  # of the run's median speed
STALL, LONG_STALL = 0.01, 0.1  # share of the time that batches are waited for
UNEVEN = 3.0  # load of the busiest expert over the mean
RANK = {"good": 0, "watch": 1, "bad": 2}


def checks(rows: Sequence[Row]) -> list[Check]:
    """What the log of one stage says of its health: `label`, `state`, `value`, `unit`, `words`. Checks whose quantities
    the log does not hold are left out."""
    judges: tuple[Callable[[Sequence[Row]], Check | None], ...] = (
        loss, validation, gradient_norm, skipped_steps, speed, waiting, experts,
    )  # fmt: skip
    return [check for check in (judge(rows) for judge in judges) if check is not None]


def verdict(found: Sequence[Check]) -> tuple[str, str]:
    """The worst state, and a sentence that says what to look at."""
    worst = max((check["state"] for check in found), key=RANK.__getitem__, default="good")
    if worst == "good":
        return worst, "Well: nothing stands out."
    names = ", ".join(check["label"].lower() for check in found if check["state"] == worst)
    return worst, f"In trouble: {names}." if worst == "bad" else f"Worth a look: {names}."


def loss(rows: Sequence[Row]) -> Check | None:
    values = [value for _, value in _series(rows, "loss")]
    if not values:
        return None
    recent = rows[-max(1, round(RECENT * len(rows))) :]
    broken = [row["step"] for row in recent if "grad_norm" in row and row.get("loss") is None]
    if broken:
        return _check("Loss", "bad", values[-1], "number", f"was not a number at step {broken[-1]:,}")
    stretch = max(round(RECENT * len(values)), FEW)
    if len(values) < 2 * stretch:
        return _check("Loss", "good", values[-1], "number", "too early to tell")
    stretches = [median(values[end - stretch : end]) for end in range(len(values), stretch - 1, -stretch)]
    now, before, lowest = stretches[0], stretches[1], min(stretches)
    if now > lowest + RISE * abs(lowest):
        return _check("Loss", "bad", now, "number", f"rises: it was {lowest:.3f} at its lowest")
    way = "falls" if now < before else "level"
    return _check("Loss", "good", now, "number", f"{way}: {before:.3f} a little earlier")


def validation(rows: Sequence[Row]) -> Check | None:
    values, unit = _series(rows, "validation_bits_per_byte"), "bits per byte"
    if not values:  # masked models
        values, unit = _series(rows, "validation_loss"), "nats"
    if not values:
        return None
    step, last = values[-1]
    best_step, best = min(values, key=lambda pair: pair[1])
    if best_step == step:
        words = f"{unit}, the best so far" if len(values) > 1 else f"{unit}, the first"
        return _check("Validation", "good", last, "number", words)
    state = "watch" if last > best * (1 + VALIDATION_RISE) else "good"
    return _check("Validation", state, last, "number", f"{unit}; {best:.3f} at step {best_step:,}")


def gradient_norm(rows: Sequence[Row]) -> Check | None:
    values = [value for _, value in _series(rows, "grad_norm")]
    if not values:
        return None
    usual, now = median(values), median(values[-3:])
    steep = now > STEEP * usual
    words = f"{now / usual:.1f} times what is usual" if steep else f"usual: {usual:.3g}"
    return _check("Gradient norm", "watch" if steep else "good", now, "number", words)


def skipped_steps(rows: Sequence[Row]) -> Check | None:
    values = _series(rows, "skipped")
    if not values:
        return None
    total = sum(value for _, value in values)
    if not total:
        return _check("Skipped steps", "good", 0, "count", "no spike, all numbers finite")
    recent = _recent(values)
    first = values[-len(recent) - 1][0] if len(values) > len(recent) else 0
    share = sum(recent) / max(values[-1][0] - first, 1)
    last = max(step for step, value in values if value)
    state = "bad" if share > MANY_SKIPPED else "watch" if share > SOME_SKIPPED else "good"
    return _check("Skipped steps", state, total, "count", f"of {values[-1][0]:,}, the last by step {last:,}")


def speed(rows: Sequence[Row]) -> Check | None:
    values = [value for _, value in _series(rows, "tokens_per_second")]
    if not values:
        return None
    usual, now = median(values), median(values[-3:])
    slow = now < SLOW * usual
    utilization = _series(rows, "mfu")
    words = f"tokens/s, {100 * utilization[-1][1]:.1f} % MFU" if utilization else "tokens/s"
    words += f"; usual: {usual:,.0f}" if slow else ""
    memory = _series(rows, "memory_bytes")
    words += f"; {memory[-1][1] / 1e9:.1f} GB" if memory else ""
    return _check("Speed", "watch" if slow else "good", now, "count", words)


def waiting(rows: Sequence[Row]) -> Check | None:
    values = _series(rows, "stall")
    if not values:
        return None
    share = fmean(_recent(values))
    state = "good" if share < STALL else "watch" if share < LONG_STALL else "bad"
    return _check("Waiting for data", state, share, "percent", "of the time, lately")


def experts(rows: Sequence[Row]) -> Check | None:
    values = _series(rows, "expert_load_max_over_mean")
    if not values:
        return None
    load = fmean(_recent(values))
    collapsed = _series(rows, "collapsed_experts")
    unused = collapsed[-1][1] if collapsed else 0
    words = f"{unused:.0f} hardly used" if unused else "the busiest over the mean"
    return _check("Expert load", "watch" if unused or load > UNEVEN else "good", load, "number", words)


def spikes(rows: Sequence[Row]) -> set[int]:
    """Steps of the log that stand out: steps were skipped there, or loss or gradient norm lie beyond mean + 6 standard
    deviations of the (up to 128) calm entries before."""
    found = {row["step"] for row in rows if row.get("skipped")}
    for key in ("loss", "grad_norm"):
        window: deque[float] = deque()
        total = squares = 0.0
        for step, value in _series(rows, key):
            number = len(window)
            if number >= SPIKE_WINDOW // 4:
                mean = total / number
                deviation = math.sqrt(max(squares / number - mean * mean, 0.0))
                if value > mean + SPIKE_SIGMAS * deviation and not math.isclose(value, mean, rel_tol=1e-6):
                    found.add(step)
                    continue
            window.append(value)
            total, squares = total + value, squares + value * value
            if number == SPIKE_WINDOW:
                old = window.popleft()
                total, squares = total - old, squares - old * old
    return found


def _series(rows: Sequence[Row], key: str) -> list[tuple[int, float]]:
    return [(row["step"], row[key]) for row in rows if isinstance(row.get(key), (int, float))]


def _recent(values: Sequence[tuple[int, float]]) -> list[float]:
    """The last tenth of the values, at least one."""
    return [value for _, value in values[-max(1, round(RECENT * len(values))) :]]


def _check(label: str, state: str, value: float, unit: str, words: str) -> Check:
    return {"label": label, "state": state, "value": value, "unit": unit, "words": words}
