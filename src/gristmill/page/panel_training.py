"""What a training stage does, live: is it well, its curves, what its model writes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .files import Run, as_dict, as_list, as_number
from .health import checks, spikes, verdict
from .sections import Section, charts, figures, judgement, lines, missing, pairs
from .state import StageState

MAX_POINTS = 1500
MAX_LINES = 6  # of a chart, as many as there are colours
SHOWN_SAMPLES = 3  # of a prompt: the first and the newest


@dataclass(frozen=True)
class Known:
    """A chart of known quantities: the keys of its lines with their labels, or `prefix`, where each key of the log that
    begins so is a line called by the rest. `marked` charts show the steps that stand out."""

    title: str
    unit: str
    series: tuple[tuple[str, str], ...] = ()
    prefix: str | None = None
    log: bool = False
    marked: bool = False
    format: str | None = None


# The large charts tell how the run does, the small ones how it works.
LARGE = (
    Known("Loss", "", (("loss", "train"), ("validation_loss", "validation")), marked=True),
    Known("Validation", "bits per byte", (("validation_bits_per_byte", "all"),), "validation_bits_per_byte/"),
    Known("Validation by domain", "nats per hidden token", prefix="validation_loss/"),
    Known("Benchmarks", "of the answers right", prefix="benchmark/", format="percent"),
    Known("Benchmarks' perplexity", "of a word", prefix="benchmark_perplexity/", log=True),
    Known("Gradient norm", "before clipping", (("grad_norm", "norm"),), log=True, marked=True),
)
SMALL = (
    Known("Learning rate", "", (("learning_rate", "learning rate"),)),
    Known("Speed", "tokens per second", (("tokens_per_second", "tokens/s"),)),
    Known("MFU", "of the device's peak", (("mfu", "MFU"),), format="percent"),
    Known("Waiting for data", "of the time", (("stall", "waiting"),), format="percent"),
    Known("Weights", "norm by part", prefix="weight_norm/", log=True),
    Known("Updates", "norm over the weights', by part", prefix="update_ratio/", log=True),
    Known("Expert load", "busiest over mean", (("expert_load_max_over_mean", "load"),)),
    Known("Dropped assignments", "", (("dropped_assignments", "dropped"),), format="percent"),
    Known("Router loss", "", (("router_loss", "router"),)),
    Known("z-loss", "", (("z_loss", "z-loss"),)),
)
UNDRAWN = ("skipped", "spike", "memory_bytes", "collapsed_experts")  # the checks and marks tell them
UNDRAWN_PREFIXES = ("update_norm/", "benchmark_stderr/")  # the first are drawn as ratios


def pretraining_curves(run: Run) -> Section:
    return curves(run, "base", "Curves")


def sft_curves(run: Run) -> Section:
    return curves(run, "sft", "Supervised fine-tuning")


def dpo_curves(run: Run) -> Section:
    return curves(run, "dpo", "Direct preference optimization")


def health(run: Run) -> Section | None:
    """One look: is pre-training well?"""
    found = checks(logged_rows(run, "base"))
    if not found:
        return None
    state, sentence = verdict(found)
    running = run.stage("base").state == "running"
    return judgement("health-base", "How it goes" if running else "How it went", state, sentence, found)


def curves(run: Run, stage: str, title: str) -> Section:
    """The training log as charts."""
    rows = logged_rows(run, stage)
    if not rows:
        return missing(run, stage, title)
    marked = spikes(rows)
    rows = [with_ratios(row) | ({"spike": 1} if row["step"] in marked else {}) for row in rows]
    keys = {key for row in rows for key in row} - {"step"}
    specs = chart_specs(keys, loss_unit="−log σ(margin)" if stage == "dpo" else "nats per token")
    return charts(f"curves-{stage}", title, stage, specs, thinned(rows))


def logged_rows(run: Run, stage: str) -> list[dict[str, Any]]:
    """The training log, a row a logged step: from the events, else from the artifact's training.json."""
    rows = metric_rows(run.stage(stage), tokens_per_step(run, stage))
    return rows or [
        row for row in as_list(run.json(stage, "training.json")) if isinstance(as_dict(row).get("step"), int)
    ]


def metric_rows(state: StageState, tokens: int | None) -> list[dict[str, Any]]:
    """The metrics by step; with `tokens` per step also the speed between one metric and the next, where the log does
    not say it."""
    rows: list[dict[str, Any]] = []
    before: tuple[int, float] | None = None
    for step in sorted(state.metrics):
        values = state.metrics[step]
        row = {"step": step, **{key: value for key, value in values.items() if key != "time"}}
        if before and tokens and values["time"] > before[1] and "tokens_per_second" not in row:
            row["tokens_per_second"] = round((step - before[0]) * tokens / (values["time"] - before[1]), 1)
        before = (step, values["time"])
        rows.append(row)
    return rows


def tokens_per_step(run: Run, stage: str) -> int | None:
    config = run.stage_config(stage)
    batch = as_number(as_dict(config.get("training")).get("batch_size"))
    length = as_number(config.get("sequence_length"))
    return int(batch * length) if batch and length else None


def with_ratios(row: dict[str, Any]) -> dict[str, Any]:
    """The row with the norms of updates over those of the weights they changed."""
    ratios = {}
    for key, value in row.items():
        part = key.removeprefix("update_norm/")
        weight = as_number(row.get(f"weight_norm/{part}"))
        if part != key and weight and as_number(value) is not None:
            ratios[f"update_ratio/{part}"] = value / weight
    return row | ratios


def chart_specs(keys: set[str], loss_unit: str) -> list[dict[str, Any]]:
    """Which charts the quantities make: the known ones large or small, every other in a large one of its own. Lines for
    which a chart has no colour left go on in another one."""
    left = {key for key in keys if key not in UNDRAWN and not key.startswith(UNDRAWN_PREFIXES)}
    large: list[dict[str, Any]] = []
    small: list[dict[str, Any]] = []
    for known in (*LARGE, *SMALL):
        series = _series(known, left)
        left -= {key for key, _ in series}
        unit = loss_unit if known.title == "Loss" else known.unit
        for first in range(0, len(series), MAX_LINES):
            title = f"{known.title}, {first // MAX_LINES + 1}" if first else known.title
            spec = _spec(title, unit, series[first : first + MAX_LINES], known.log, known.marked, known.format)
            (large if known in LARGE else small).append(spec)
    large += [_spec(_words(key), "", [(key, key.replace("_", " "))]) for key in sorted(left)]
    for number, spec in enumerate(large):
        spec["size"] = "wide" if number == 0 and len(large) % 2 else "half"
    return [*large, *({**spec, "size": "third"} for spec in small)]


def _series(known: Known, keys: set[str]) -> list[tuple[str, str]]:
    found = [(key, label) for key, label in known.series if key in keys]
    if known.prefix is not None:
        found += [(key, key.removeprefix(known.prefix)) for key in sorted(keys) if key.startswith(known.prefix)]
    return [(key, label.replace("_", " ")) for key, label in found]


def _spec(
    title: str,
    unit: str,
    series: Iterable[tuple[str, str]],
    log: bool = False,
    marked: bool = False,
    format: str | None = None,
) -> dict[str, Any]:
    mark = {"key": "spike", "label": "spike or skipped step"} if marked else None
    lines_ = [{"key": key, "label": label} for key, label in series]
    return {"title": title, "unit": unit, "series": lines_, "log": log, "mark": mark, "format": format}


def _words(key: str) -> str:
    return key.replace("_", " ").capitalize()


def thinned(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most about MAX_POINTS rows: every n-th, the last, and those with quantities that few rows have."""
    every = -(-len(rows) // MAX_POINTS)
    if every == 1:
        return rows
    counts: dict[str, int] = {}
    for row in rows:
        for key in row:
            counts[key] = counts.get(key, 0) + 1
    rare = {key for key, count in counts.items() if count * every <= len(rows)}
    return [row for i, row in enumerate(rows) if i % every == 0 or i == len(rows) - 1 or rare & row.keys()]


def samples(run: Run) -> Section | None:
    """How the model in training goes on with the same prompts: at first, and lately."""
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for sample in run.stage("base").samples:
        by_prompt.setdefault(str(sample.get("prompt", "")), []).append(sample)
    items = []
    for prompt, found in by_prompt.items():
        shown = found if len(found) <= SHOWN_SAMPLES else [found[0], *found[1 - SHOWN_SAMPLES :]]
        texts = [{"label": _step_label(sample), "text": str(sample.get("text", ""))} for sample in shown]
        items.append({"prompt": prompt, "texts": texts})
    return pairs("samples-base", "What it writes", items) if items else None


def _step_label(sample: dict[str, Any]) -> str:
    step = as_number(sample.get("step"))
    return "sample" if step is None else f"step {step:,}"


def pretraining_figures(run: Run) -> Section | None:
    found = run.figures("base")
    return figures("base-figures", "Outcome", plain_figures(found)) if found else None


def notes(run: Run) -> Section | None:
    found = list(run.stage("base").notes)
    return lines("notes-base", "Notes of the run", found) if found else None


def plain_figures(found: dict[str, Any]) -> list[tuple[str, Any, str]]:
    """The figures of a manifest with units guessed from their names; nested ones are left out."""
    shown = []
    for key, value in found.items():
        if isinstance(value, (str, int, float)):
            shown.append((key.replace("_", " "), value, _unit(key, value)))
    return shown


def _unit(key: str, value: Any) -> str:
    if isinstance(value, str):
        return "text"
    if key.endswith("seconds") or key.startswith("seconds"):
        return "seconds"
    if "bits_per_byte" in key:
        return "number"
    if key.endswith("bytes") or key.startswith("bytes_"):
        return "bytes"
    shares = ("accuracy", "benchmark/", "cut_documents", "padding")
    if key.startswith(shares) or key.endswith(("accuracy", "fraction", "share")):
        return "percent"
    return "count" if isinstance(value, int) else "number"
