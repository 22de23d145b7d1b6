"""A run directory as one dictionary: the eight stages of the rail, their states, progress and headline figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .files import Run, as_dict, as_number, total
from .health import checks, verdict
from .panel_training import metric_rows
from .state import RunState, StageState


@dataclass(frozen=True)
class Headline:
    """A figure of the rail: from `stage`'s manifest, the first of `keys` that is there."""

    stage: str
    keys: tuple[str, ...]
    label: str
    unit: str


@dataclass(frozen=True)
class Block:
    """One stage of the rail and the artifacts that belong to it."""

    key: str
    title: str
    about: str
    stages: tuple[str, ...]
    headlines: tuple[Headline, ...]


RAIL = (
    Block(
        "data",
        "Data",
        "text collected from its sources",
        ("collected",),
        (
            Headline("collected", ("documents",), "documents", "count"),
            Headline("collected", ("bytes",), "of text", "bytes"),
        ),
    ),
    Block(
        "processing",
        "Processing",
        "duplicates, noise and private data taken out, domains weighed",
        ("corpus",),
        (
            Headline("corpus", ("documents",), "kept", "count"),
            Headline("corpus", ("removed",), "removed", "count"),
            Headline("corpus", ("bytes",), "of text", "bytes"),
        ),
    ),
    Block(
        "tokenization",
        "Tokenization",
        "a vocabulary learned from the corpus, and the corpus in its terms",
        ("tokenizer", "tokens"),
        (
            Headline("tokenizer", ("vocab_size",), "entries", "count"),
            Headline("tokens", ("train_tokens",), "training tokens", "short"),
            Headline("tokens", ("bytes_per_token",), "bytes per token", "number"),
        ),
    ),
    Block("architecture", "Architecture", "the shape of the model", (), ()),
    Block(
        "pretraining",
        "Pre-training",
        "the model learns to predict the next token",
        ("base",),
        (
            Headline("base", ("validation_bits_per_byte",), "bits per byte", "number"),
            Headline("base", ("tokens",), "tokens seen", "short"),
            Headline("base", ("tokens_per_second",), "tokens/s", "count"),
        ),
    ),
    Block(
        "alignment",
        "Alignment",
        "fine-tuned on conversations, then on preferences",
        ("sft", "dpo"),
        (
            Headline("sft", ("accuracy_before",), "right before", "percent"),
            Headline("sft", ("accuracy_after",), "after SFT", "percent"),
            Headline("dpo", ("accuracy_after",), "after DPO", "percent"),
        ),
    ),
    Block(
        "artifacts",
        "Artifacts",
        "what the trained model holds, and where every file came from",
        ("inspect",),
        (Headline("inspect", ("strongest_induction_head",), "strongest induction head", "number"),),
    ),
    Block(
        "deployment",
        "Deployment",
        "quantized, measured and served",
        ("int8", "evaluation"),
        (
            Headline("int8", ("bytes_after",), "in INT8", "bytes"),
            Headline("int8", ("compression",), "times smaller", "number"),
            Headline("evaluation", ("accuracy_int8", "accuracy_dpo"), "of tasks right", "percent"),
        ),
    ),
)
STAGES = tuple(stage for block in RAIL for stage in block.stages)


def snapshot(run: Run | Path) -> dict[str, Any]:
    """The whole rail of a run, JSON-ready. Everything a run may lack is None or empty here, never an error."""
    run = run if isinstance(run, Run) else Run(run)
    state = run.state()
    if state.state == "running" and run.abandoned():
        state.state = "stopped"
    parts = {stage: _part(run, state.stage(stage), stage, state.state == "stopped") for stage in STAGES}
    return {
        "run": {
            "name": run.directory.resolve().name,
            "recipe": state.recipe,
            "state": _run_state(state, parts),
            "started": state.started,
            "seconds": state.seconds,
            "last_event": state.last_event,
            "error": state.error,
        },
        "seq": state.seq,
        "blocks": [_block(run, block, parts, state) for block in RAIL],
    }


def empty_snapshot() -> dict[str, Any]:
    """The rail where there is no run, only a server to talk to."""
    blocks = [_block_dict(block, "waiting", [], []) for block in RAIL]
    return {"run": None, "seq": 0, "blocks": blocks}


def _run_state(state: RunState, parts: dict[str, dict[str, Any]]) -> str:
    """The run's state; a run without a log whose artifacts are there (built verb by verb) counts as finished."""
    if state.state == "empty" and any(part["hash"] for part in parts.values()):
        return "finished"
    return state.state


def _part(run: Run, stage: StageState, name: str, stopped: bool) -> dict[str, Any]:
    """One artifact's state. The log says whether it is being made, the disk whether it is there."""
    manifest = run.manifest(name)
    state = "stopped" if stage.state == "running" and stopped else stage.state
    if state in ("done", "fresh") and manifest is None:
        state = "waiting"  # it was removed since
    elif state == "waiting" and manifest is not None:
        state = "done"
    seconds = stage.seconds if stage.seconds is not None else (manifest.seconds if manifest else None)
    return {
        "name": name,
        "state": state,
        "hash": manifest.hash if manifest else None,
        "seconds": seconds if state in ("done", "fresh") else None,
        "started": stage.started if state == "running" else None,
        "error": stage.error if state == "failed" else None,
        "progress": _progress(stage) if state == "running" else None,
    }


def _progress(stage: StageState) -> dict[str, Any] | None:
    if not stage.progress or not stage.total:
        return None
    done, rate = stage.progress[-1][1], stage.rate()
    known = not stage.open_ended
    return {
        "done": done,
        "total": stage.total if known else None,
        "unit": stage.unit,
        "fraction": min(1.0, max(0.0, done / stage.total)) if known else None,
        "rate": rate,
        "seconds_left": max(0.0, stage.total - done) / rate if rate and known else None,
    }


def _block(run: Run, block: Block, parts: dict[str, dict[str, Any]], state: RunState) -> dict[str, Any]:
    own = [parts[stage] for stage in block.stages]
    if block.key == "architecture":  # the shape is settled when the first model is begun
        block_state = "waiting" if parts["base"]["state"] == "waiting" else "done"
        figures = _shape_figures(run)
    else:
        block_state = combined_state([part["state"] for part in own])
        figures = _live_figures(block, state, block_state) or _headlines(run, block, own)
    return _block_dict(block, block_state, own, figures, _warning(block, state, block_state))


def _block_dict(
    block: Block,
    state: str,
    parts: list[dict[str, Any]],
    figures: list[dict[str, Any]],
    warning: str | None = None,
) -> dict[str, Any]:
    return {
        "key": block.key,
        "title": block.title,
        "about": block.about,
        "state": state,
        "parts": parts,
        "figures": figures,
        "warning": warning,
    }


def combined_state(states: list[str]) -> str:
    """The state of several artifacts together: what runs or failed shows first; some but not all done, or one cut off
    halfway, is partial."""
    for loud in ("running", "failed"):
        if loud in states:
            return loud
    if "stopped" in states:
        return "partial"
    ready = [state for state in states if state in ("done", "fresh")]
    if not ready:
        return "waiting"
    if len(ready) < len(states):
        return "partial"
    return "fresh" if all(state == "fresh" for state in states) else "done"


def _headlines(run: Run, block: Block, parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    figures = {part["name"]: run.figures(part["name"]) for part in parts}
    found = []
    for headline in block.headlines:
        value = _first(figures[headline.stage], headline.keys)
        if value is not None:
            found.append({"label": headline.label, "value": value, "unit": headline.unit})
    return found


def _live_figures(block: Block, state: RunState, block_state: str) -> list[dict[str, Any]]:
    """The last figures of a stage that is training right now."""
    if block_state != "running":
        return []
    latest: dict[str, float] = {}
    for name in block.stages:
        stage = state.stage(name)
        if stage.state == "running":
            for step in sorted(stage.metrics):
                latest |= stage.metrics[step]
    wanted = (
        ("loss", "loss", "number"),
        ("validation_bits_per_byte", "bits per byte", "number"),
        ("margin_accuracy", "margin accuracy", "number"),
        ("tokens_per_second", "tokens/s", "count"),
    )
    return [{"label": label, "value": latest[key], "unit": unit} for key, label, unit in wanted if key in latest]


def _warning(block: Block, state: RunState, block_state: str) -> str | None:
    """What is wrong with a stage that is training right now; None while nothing is."""
    if block_state != "running":
        return None
    for name in block.stages:
        if state.stage(name).state == "running":
            worst, sentence = verdict(checks(metric_rows(state.stage(name), None)))
            return sentence if worst == "bad" else None
    return None


def _shape_figures(run: Run) -> list[dict[str, Any]]:
    shape = as_dict(run.stage_config("base").get("model"))
    wanted = (("num_layers", "layers"), ("hidden_size", "wide"), ("num_heads", "heads"))
    found = [
        {"label": label, "value": shape[key], "unit": "count"} for key, label in wanted if as_number(shape.get(key))
    ]
    parameters = as_number(run.figures("base").get("parameters"))
    if parameters:
        found.insert(0, {"label": "parameters", "value": parameters, "unit": "short"})
    return found


def _first(figures: dict[str, Any], keys: tuple[str, ...]) -> float | int | None:
    """The first figure that is there; of one given by reason or domain, the sum."""
    for key in keys:
        value = total(figures.get(key))
        if value is not None:
            return value
    return None
