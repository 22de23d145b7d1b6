"""Traffic: when requests come, and how long they are. Drawn from distributions, or read from a file.

Times are seconds from the beginning; lengths are tokens.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from ..errors import GristmillError

Process = Literal["poisson", "constant", "bursts", "diurnal"]
COLUMNS = ("arrival_seconds", "prompt_tokens", "output_tokens")
DAY = 86_400.0
NIGHT_SHARE = 0.2  # of the day's highest rate, at the quietest hour of "diurnal"
BURST_SHAPE = 0.25  # of the gamma distribution between arrivals of "bursts": gaps vary twice as much as Poisson's


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request: when it comes and how long prompt and reply are. Prompts of one `prefix_group` begin with the same
    `prefix_tokens` tokens."""

    seconds: float
    prompt_tokens: int
    output_tokens: int
    prefix_group: int | None = None
    prefix_tokens: int = 0


@dataclass(frozen=True)
class Lengths:
    """A log-normal distribution of lengths by its mean and its coefficient of variation (standard deviation over mean;
    0: always the mean), cut off at `most`. Cutting lowers the mean."""

    mean: float
    variation: float = 0.0
    most: int | None = None

    def check(self, name: str) -> None:
        if not (1 <= self.mean < math.inf):
            raise GristmillError(f"{name} must be a mean length of at least 1 token, not {self.mean:g}")
        if not (0 <= self.variation < math.inf):
            raise GristmillError(f"the variation of {name} must be 0 or more, not {self.variation:g}")
        if self.most is not None and self.most < 1:
            raise GristmillError(f"the most of {name} must be at least 1 token, not {self.most}")

    def draw(self, count: int, random: np.random.Generator) -> np.ndarray:
        """`count` lengths, int64 `[count]`."""
        if self.variation == 0:
            drawn = np.full(count, self.mean)
        else:
            square = math.log1p(self.variation**2)
            drawn = random.lognormal(math.log(self.mean) - square / 2, math.sqrt(square), count)
        return np.clip(np.rint(drawn), 1, self.most).astype(np.int64)


@dataclass(frozen=True)
class Traffic:
    """`requests` requests at a mean of `rate` a second. "bursts" have gamma-distributed gaps, twice as uneven as
    Poisson's; "diurnal" follows a cosine over a day of `day_seconds`, its quietest hour at a fifth of its busiest.

    A share `prefix_share` of the requests begins with one of `prefix_groups` common prompts of `prefix_tokens`.
    """

    rate: float
    requests: int
    prompt: Lengths
    output: Lengths
    process: Process = "poisson"
    day_seconds: float = DAY
    prefix_share: float = 0.0
    prefix_tokens: int = 0
    prefix_groups: int = 1

    def check(self) -> None:
        """GristmillError for what cannot be."""
        if not (0 < self.rate < math.inf):
            raise GristmillError(f"rate must be a number of requests a second above 0, not {self.rate:g}")
        if self.requests < 1:
            raise GristmillError(f"requests must be at least 1, not {self.requests}")
        if self.process not in get_args(Process):
            raise GristmillError(f"process {self.process!r} is not known; known are {', '.join(get_args(Process))}")
        if not 0 < self.day_seconds < math.inf:
            raise GristmillError(f"day_seconds must be above 0, not {self.day_seconds:g}")
        if not 0 <= self.prefix_share <= 1:
            raise GristmillError(f"prefix_share must be from 0 to 1, not {self.prefix_share:g}")
        if self.prefix_tokens < 0 or self.prefix_groups < 1:
            raise GristmillError("prefix_tokens must be 0 or more, prefix_groups 1 or more")
        self.prompt.check("prompt")
        self.output.check("output")


def drawn(traffic: Traffic, seed: int = 0) -> list[Arrival]:
    """The same arrivals for the same seed, in the order of time."""
    traffic.check()
    random = np.random.default_rng(seed)
    count = traffic.requests
    times = _times(traffic, random)
    prompts = traffic.prompt.draw(count, random)
    outputs = traffic.output.draw(count, random)
    shares = random.random(count) < traffic.prefix_share
    groups = random.integers(0, traffic.prefix_groups, count)
    arrivals = []
    for when, prompt, output, common, group in zip(times, prompts, outputs, shares, groups, strict=True):
        if common and traffic.prefix_tokens:
            arrivals.append(
                Arrival(
                    float(when), traffic.prefix_tokens + int(prompt), int(output), int(group), traffic.prefix_tokens
                )
            )
        else:
            arrivals.append(Arrival(float(when), int(prompt), int(output)))
    return arrivals


def _times(traffic: Traffic, random: np.random.Generator) -> np.ndarray:
    count, gap = traffic.requests, 1 / traffic.rate
    if traffic.process == "constant":
        return np.arange(count) * gap
    if traffic.process == "bursts":
        return np.cumsum(random.gamma(BURST_SHAPE, gap / BURST_SHAPE, count))
    times = np.cumsum(random.exponential(gap, count))
    return _by_daytime(times, traffic.day_seconds) if traffic.process == "diurnal" else times


def _by_daytime(times: np.ndarray, day: float) -> np.ndarray:
    """Even times bent so that the rate at t is 1 + a sin(2 pi (t/day - 1/4)), a day beginning at its quietest: the
    integral of the rate at the new time is the old time."""
    swing = (1 - NIGHT_SHARE) / (1 + NIGHT_SHARE)
    grid = np.linspace(0, math.ceil(times[-1] / day + 1) * day, 1 + 512 * math.ceil(times[-1] / day + 1))
    angle = 2 * np.pi * grid / day
    return np.interp(times, grid - swing * day / (2 * np.pi) * np.sin(angle), grid)


def read_trace(path: Path) -> list[Arrival]:
    """Requests from a `.csv` or `.jsonl` file with the columns arrival_seconds, prompt_tokens, output_tokens and, if
    wanted, prefix_group (a number) and prefix_tokens; sorted by time, which begins at the first.

    GristmillError names the file and the line that cannot be used.
    """
    try:
        rows = list(_csv_rows(path) if path.suffix == ".csv" else _json_rows(path))
    except OSError as error:
        raise GristmillError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise GristmillError(f"{path} is no text in UTF-8") from None
    if not rows:
        raise GristmillError(f"{path} holds no request")
    arrivals = sorted((_arrival(path, line, row) for line, row in rows), key=lambda arrival: arrival.seconds)
    first = arrivals[0].seconds
    return [
        Arrival(a.seconds - first, a.prompt_tokens, a.output_tokens, a.prefix_group, a.prefix_tokens) for a in arrivals
    ]


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
        if missing:
            raise GristmillError(f"{path} has no column {', '.join(missing)}; it needs {', '.join(COLUMNS)}")
        for row in reader:
            yield reader.line_num, {key: value for key, value in row.items() if value not in (None, "")}


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                raise GristmillError(f"{path}, line {number}: no JSON") from None
            if not isinstance(row, dict):
                raise GristmillError(f"{path}, line {number}: no JSON object")
            yield number, row


def _arrival(path: Path, line: int, row: dict[str, Any]) -> Arrival:
    def number(name: str, least: float, whole: bool = True) -> float:
        try:
            value = float(row[name])
        except KeyError:
            raise GristmillError(f"{path}, line {line}: {name} is missing") from None
        except (TypeError, ValueError):
            raise GristmillError(f"{path}, line {line}: {name} is {row[name]!r}, no number") from None
        if not (least <= value < math.inf) or (whole and value != int(value)):
            kind = "a whole number" if whole else "a number"
            raise GristmillError(
                f"{path}, line {line}: {name} is {row[name]!r}; it must be {kind} of {least:g} or more"
            )
        return value

    group = int(number("prefix_group", 0)) if "prefix_group" in row else None
    prefix = int(number("prefix_tokens", 0)) if "prefix_tokens" in row else 0
    prompt = int(number("prompt_tokens", 1))
    if prefix > prompt:
        raise GristmillError(f"{path}, line {line}: prefix_tokens ({prefix}) is more than prompt_tokens ({prompt})")
    if prefix and group is None:
        raise GristmillError(f"{path}, line {line}: prefix_tokens without prefix_group")
    return Arrival(number("arrival_seconds", 0, whole=False), prompt, int(number("output_tokens", 1)), group, prefix)


def mean_rate(arrivals: Sequence[Arrival]) -> float:
    """Requests a second between the first and the last arrival; infinite where all come at once, or one alone."""
    span = arrivals[-1].seconds - arrivals[0].seconds
    return (len(arrivals) - 1) / span if span > 0 else math.inf
