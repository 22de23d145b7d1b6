"""The panels of the model: architecture, pre-training, alignment."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

from ..plan.model import plan_model, whole_shape
from ..plan.quantity import Quantity
from .files import Run, as_dict, as_list, as_number, read_json, tensor_shapes
from .sections import Section, charts, figures, intervals, lines, missing, pairs, table
from .state import StageState

MAX_POINTS = 1500
SHOWN_SAMPLES = 12
ALIGNED = ("base", "sft", "dpo")

# Known quantities of the training log: the chart they share, its unit, and what the line is called.
CHARTS: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...] = (
    ("Loss", "", (("loss", "train"), ("validation_loss", "validation"))),
    ("Validation", "bits per byte", (("validation_bits_per_byte", "validation"),)),
    ("Learning rate", "", (("learning_rate", "learning rate"),)),
    ("Speed", "tokens per second", (("tokens_per_second", "tokens/s"),)),
    ("Gradient norm", "before clipping", (("grad_norm", "norm"),)),
)
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


# ---- pre-training and alignment: curves


def curves(run: Run, stage: str, title: str) -> Section:
    """The training log as charts: from the events, else from the artifact's training.json."""
    state = run.stage(stage)
    rows = metric_rows(state, tokens_per_step(run, stage))
    if not rows:
        rows = [row for row in as_list(run.json(stage, "training.json")) if isinstance(as_dict(row).get("step"), int)]
    if not rows:
        return missing(run, stage, title)
    keys = {key for row in rows for key in row} - {"step"}
    specs = chart_specs(keys, loss_unit="−log σ(margin)" if stage == "dpo" else "nats per token")
    return charts(f"curves-{stage}", title, stage, specs, thinned(rows))


def metric_rows(state: StageState, tokens: int | None) -> list[dict[str, Any]]:
    """The metrics by step; with `tokens` per step also the speed between one metric and the next."""
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


def chart_specs(keys: set[str], loss_unit: str) -> list[dict[str, Any]]:
    """Which charts the quantities make: the known ones together, every other in a chart of its own."""
    specs = []
    for title, unit, wanted in CHARTS:
        series = [{"key": key, "label": label} for key, label in wanted if key in keys]
        if series:
            specs.append({"title": title, "unit": loss_unit if title == "Loss" else unit, "series": series})
        keys = keys - {key for key, _ in wanted}
    for key in sorted(keys):
        label = key.replace("_", " ")
        specs.append({"title": label.capitalize(), "unit": "", "series": [{"key": key, "label": label}]})
    return specs


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


def pretraining_curves(run: Run) -> Section:
    return curves(run, "base", "Curves")


def pretraining_figures(run: Run) -> Section | None:
    found = run.figures("base")
    if not found:
        return None
    return figures("base-figures", "Outcome", plain_figures(found))


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


def notes(run: Run) -> Section | None:
    found = list(run.stage("base").notes)
    return lines("notes-base", "Notes of the run", found) if found else None


# ---- alignment


def sft_curves(run: Run) -> Section:
    return curves(run, "sft", "Supervised fine-tuning")


def dpo_curves(run: Run) -> Section:
    return curves(run, "dpo", "Direct preference optimization")


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
    if key.startswith("accuracy") or key.endswith(("accuracy", "fraction", "share")):
        return "percent"
    return "count" if isinstance(value, int) else "number"


ARCHITECTURE = (shape, parameter_split, memory_per_token)
PRETRAINING = (pretraining_curves, pretraining_figures, against_gzip, continuations, notes)
ALIGNMENT = (accuracy, differences, families, sft_curves, dpo_curves, replies, preference_pairs, conversations)
