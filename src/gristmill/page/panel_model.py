"""The panels of the model: architecture, what pre-training and alignment came to (their curves: panel_training.py)."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

from ..plan.model import plan_model, whole_shape
from ..plan.quantity import Quantity
from .files import Run, as_dict, as_list, as_number, read_json, tensor_shapes
from .panel_training import dpo_curves, health, notes, pretraining_curves, pretraining_figures, samples, sft_curves
from .sections import Section, figures, intervals, missing, pairs, table

SHOWN_SAMPLES = 12
ALIGNED = ("base", "sft", "dpo")

PARTS = (
    ("embedding", "Token embedding"),
    ("positions", "Position embedding"),
    ("attention", "Attention"),
    ("feed_forward", "Feed-forward"),
    ("router", "Routers"),
    ("norms", "Norms"),
    ("head", "Output head"),
)


# ---- architecture


def shape(run: Run) -> Section | None:
    config = model_config(run)
    if not config:
        return missing(run, "base", "Shape")
    return table("shape", "Shape", [("setting", "code"), ("value", "number")], _flat(config))


def _flat(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings one by one, those inside others as `experts.top_k`."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, ", ".join(map(str, value)) if isinstance(value, list) else value


def parameter_split(run: Run) -> Section | None:
    """Where the parameters are, from the shape, beside what the weights hold once there are some."""
    plan = _plan(run)
    if not plan:
        return None
    directory = run.artifact("base")
    stored = sum(prod(tensor["shape"]) for tensor in tensor_shapes(directory).values()) if directory else 0
    held = f"base/ holds {stored:,} numbers" if stored else "the weights are not there yet"
    total = plan["parameters.total"].value
    named = [*((f"parameters.{part}", label) for part, label in PARTS), ("parameters.total", "All")]
    named.append(("parameters.active", "Met by one token, of its experts"))
    rows = [(label, plan[id].value, plan[id].value / total) for id, label in named if id in plan]
    columns = [("part", "text"), ("parameters", "count"), ("share", "percent+bar")]
    return table("parameters", "Where the parameters are", columns, rows, f"From the shape; {held}.")


def memory_per_token(run: Run) -> Section | None:
    """What follows from the shape: key/value cache and work per token, as `gristmill plan model` computes them."""
    plan = _plan(run)
    if not plan:
        return None
    length = model_config(run)["max_seq_len"]
    shown = (
        ("kv_cache.per_token", "KV cache per token, 16 bit", "bytes"),
        ("kv_cache.sequence", f"KV cache of {length:,} tokens", "bytes"),
        ("kv_cache.sequence_windowed", "of which queries can still see", "bytes"),
        ("weights.bf16", "weights in 16 bit", "bytes"),
        ("flops.matrices", "FLOP per generated token, short context", "short"),
    )
    return figures(
        "derived",
        "What follows from it",
        [(label, plan[id].value, unit) for id, label, unit in shown if id in plan],
        f"Computed: cache = {plan['kv_cache.per_token'].formula}; work = {plan['flops.matrices'].formula}. "
        "`gristmill plan model` explains the symbols and computes more.",
    )


def _plan(run: Run) -> dict[str, Quantity]:
    """The planner's figures of the shape at its full length, by id; {} where the shape is not whole."""
    config = whole_shape(model_config(run))
    return {} if config is None else {quantity.id: quantity for quantity in plan_model(config, config.max_seq_len)}


def model_config(run: Run) -> dict[str, Any]:
    """The shape with our names, vocabulary included where it is known; from the recipe or the base model's config."""
    config = dict(as_dict(run.stage_config("base").get("model")))
    vocabulary = as_number(run.figures("tokenizer").get("vocab_size"))
    if vocabulary is None:
        directory = run.artifact("base")
        stored = as_dict(read_json(directory / "config.json")) if directory else {}
        vocabulary = as_number(stored.get("vocab_size"))
    return {"vocab_size": vocabulary, **config} if config and vocabulary else config


def against_gzip(run: Run) -> Section | None:
    """Bits per byte by domain beside gzip's, from the evaluation."""
    scores = as_dict(as_dict(run.json("evaluation", "report.json")).get("bits_per_byte"))
    domains = {**as_dict(scores.get("domains")), "all": as_dict(scores.get("all"))}
    models = list(as_dict(domains["all"].get("models")))
    if not models:
        return None
    columns = [("domain", "text"), ("bytes", "bytes"), ("gzip -9", "number"), *((name, "number") for name in models)]
    rows = [
        (
            name,
            part.get("bytes"),
            part.get("gzip"),
            *(as_dict(as_dict(part.get("models")).get(m)).get("value") for m in models),
        )
        for name, part in domains.items()
    ]
    note = "Bits per byte of validation text, lower is better; gzip reads the same bytes."
    return table("bits-per-byte", "Against a general compressor", columns, rows, note)


def continuations(run: Run) -> Section | None:
    samples = as_dict(as_dict(run.json("evaluation", "report.json")).get("samples"))
    items = [
        {"prompt": str(item.get("prompt", "")), "texts": [{"label": "base", "text": str(item.get("text", ""))}]}
        for item in map(as_dict, as_list(samples.get("continuations")))
    ]
    return pairs("continuations", "How the base model goes on", items) if items else None


# ---- alignment


def accuracy(run: Run) -> Section | None:
    """Held-out tasks before and after each step of alignment, with the interval of each proportion."""
    report = as_dict(run.json("evaluation", "report.json"))
    tasks = as_dict(report.get("tasks"))
    models = as_dict(tasks.get("models"))
    rows = [
        {
            "label": name,
            "value": score["accuracy"],
            "low": score.get("low"),
            "high": score.get("high"),
            "n": score["tasks"],
        }
        for name, score in models.items()
    ]
    if not rows:
        return missing(run, "evaluation", "Accuracy before and after")
    return intervals(
        "accuracy",
        "Accuracy before and after",
        "percent",
        ("accuracy", _interval_label(report), "tasks"),
        rows,
        range=[0, 1],
        note="Held-out tasks that no model was trained on, the same for every model.",
    )


def differences(run: Run) -> Section | None:
    report = as_dict(run.json("evaluation", "report.json"))
    tasks = as_dict(report.get("tasks"))
    rows = [
        {"label": name, "value": d["difference"], "low": d.get("low"), "high": d.get("high"), "n": tasks.get("tasks")}
        for name, d in as_dict(tasks.get("differences")).items()
    ]
    if not rows:
        return None
    labels = ("change", _interval_label(report), "tasks")
    note = "Paired: the same tasks before and after. An interval that holds zero tells no change from chance."
    return intervals("differences", "What each step changed", "percent-change", labels, rows, note=note)


def families(run: Run) -> Section | None:
    """Accuracy by kind of task, model by model."""
    models = as_dict(as_dict(as_dict(run.json("evaluation", "report.json")).get("tasks")).get("models"))
    by_model = {name: as_dict(as_dict(score).get("families")) for name, score in models.items()}
    names = dict.fromkeys(family for found in by_model.values() for family in found)
    if not names:
        return None
    rows = [
        (family.replace("_", " "), *(as_dict(found.get(family)).get("accuracy") for found in by_model.values()))
        for family in names
    ]
    columns = [("family", "text"), *((name, "percent") for name in by_model)]
    return table("families", "Accuracy by kind of task", columns, rows)


def _interval_label(report: dict[str, Any]) -> str:
    confidence = as_number(report.get("confidence"))
    return f"{100 * confidence:g} % interval" if confidence else "interval"


def replies(run: Run) -> Section | None:
    """The same held-out tasks answered by every model."""
    samples = as_dict(as_dict(run.json("evaluation", "report.json")).get("samples"))
    items = [
        {
            "prompt": str(item.get("prompt", "")),
            "texts": [
                {"label": "right answer", "text": str(item.get("answer", ""))},
                *({"label": name, "text": str(text)} for name, text in as_dict(item.get("replies")).items()),
            ],
        }
        for item in map(as_dict, as_list(samples.get("tasks")))
    ]
    return pairs("replies", "The same tasks, model by model", items) if items else None


def preference_pairs(run: Run) -> Section | None:
    """Some of what DPO learned from: chosen and rejected replies."""
    items = [
        {
            "prompt": _text(item.get("prompt")),
            "texts": [
                {"label": "chosen", "text": _text(item.get("chosen")), "mark": "chosen"},
                {"label": "rejected", "text": _text(item.get("rejected")), "mark": "rejected"},
            ],
        }
        for item in run.json_lines("dpo", "pairs.jsonl", SHOWN_SAMPLES)
    ]
    return (
        pairs("preference-pairs", "Preference pairs", items, "The first lines of dpo/pairs.jsonl.") if items else None
    )


def conversations(run: Run) -> Section | None:
    """Some of what SFT learned from."""
    items = []
    for item in run.json_lines("sft", "dataset.jsonl", SHOWN_SAMPLES):
        messages = [as_dict(message) for message in as_list(item.get("messages"))]
        texts = [{"label": str(m.get("role", "")), "text": _text(m.get("content"))} for m in messages[1:]]
        items.append({"prompt": _text(item.get("prompt")), "texts": texts})
    return pairs("conversations", "Conversations of the fine-tuning set", items) if items else None


def _text(value: Any) -> str:
    return "" if value is None else str(value)


ARCHITECTURE = (shape, parameter_split, memory_per_token)
PRETRAINING = (
    health,
    pretraining_curves,
    samples,
    pretraining_figures,
    against_gzip,
    continuations,
    notes,
)
ALIGNMENT = (accuracy, differences, families, sft_curves, dpo_curves, replies, preference_pairs, conversations)
