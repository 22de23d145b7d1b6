"""The panels of the results: what the model holds (artifacts), and quantizing and serving it (deployment)."""

from __future__ import annotations

from typing import Any

from .files import Run, as_dict, as_list, tensor_shapes
from .sections import Section, empty, figures, missing, table
from .snapshot import STAGES

SHOWN_NEIGHBOURS = 5
SHOWN_WORDS = 40


# ---- artifacts


def attention(run: Run) -> Section | None:
    directory = run.artifact("inspect")
    if directory is None:
        return missing(run, "inspect", "Inside the model")
    if not (directory / "attention.png").is_file():
        return None
    report = as_dict(run.json("inspect", "report.json"))
    return {
        "id": "attention",
        "kind": "image",
        "title": "Attention patterns",
        "src": f"api/figure/inspect/attention.png?{_version(run, 'inspect')}",
        "alt": f"Attention of every head, one square each, over the prompt: {report.get('prompt', '')}",
        "note": _strongest_heads(report),
    }


def _strongest_heads(report: dict[str, Any]) -> str | None:
    names = {"first_token": "to the first token", "previous_token": "to the previous token", "induction": "induction"}
    found = [
        f"{names.get(name, name)}: layer {fact['layer']}, head {fact['head']} ({fact['value']:.2f})"
        for name, fact in as_dict(report.get("strongest_heads")).items()
    ]
    return f"Strongest heads, by mean weight: {'; '.join(found)}." if found else None


def logit_lens(run: Run) -> Section | None:
    """What the model would say if it stopped after each layer, at the last position of the prompt."""
    lens = as_dict(run.json("inspect", "logit_lens.json"))
    rows = []
    for layer in map(as_dict, as_list(lens.get("layers"))):
        last = as_dict(as_list(layer.get("positions"))[-1])
        guesses = ", ".join(
            f"{_visible(guess['token'])} {100 * guess['probability']:.0f} %"
            for guess in as_list(last.get("predictions"))
        )
        rows.append((layer.get("after"), layer.get("bits_per_token"), layer.get("agrees_with_last"), guesses))
    if not rows:
        return None
    columns = [
        ("after", "text"),
        ("bits per token", "number"),
        ("says what the last layer says", "percent"),
        ("next token", "code"),
    ]
    return table("logit-lens", "Logit lens", columns, rows, f"After: {lens.get('prompt', '')}", wide=True)


def neighbours(run: Run) -> Section | None:
    found = as_dict(run.json("inspect", "embedding_neighbours.json"))
    rows = []
    for entry in [*as_list(found.get("words")), *as_list(found.get("frequent"))][:SHOWN_WORDS]:
        near = as_list(as_dict(entry).get("neighbours"))[:SHOWN_NEIGHBOURS]
        rows.append((_visible(entry["token"]), ", ".join(f"{_visible(n['token'])} {n['cosine']:.2f}" for n in near)))
    if not rows:
        return None
    columns = [("token", "code"), ("nearest in the embedding, by cosine", "code")]
    return table("neighbours", "Nearest tokens", columns, rows, wide=True)


def weights(run: Run) -> Section | None:
    """Every tensor with its statistics; without the inspect stage, names and shapes from the weights' headers."""
    columns = [("tensor", "code"), ("shape", "text"), ("type", "text"), ("parameters", "count")]
    tensors = as_list(as_dict(run.json("inspect", "weights.json")).get("tensors"))
    if tensors:
        rows = [
            (t["name"], _shape(t["shape"]), t["dtype"], t["parameters"], t["std"], t["min"], t["max"]) for t in tensors
        ]
        columns += [("std", "number"), ("min", "number"), ("max", "number")]
        return table("weights", "Weights", columns, rows, wide=True)
    for stage in ("dpo", "sft", "base"):
        directory = run.artifact(stage)
        found = tensor_shapes(directory) if directory else {}
        if found:
            listed = [(name, _shape(t["shape"]), t["dtype"], _count(t["shape"])) for name, t in found.items()]
            return table("weights", "Weights", columns, listed, f"Names and shapes in {stage}/model.safetensors.")
    return None


def lineage(run: Run) -> Section | None:
    """Every artifact with its hash and the hashes it was made from, back to the text."""
    rows = []
    for stage in STAGES:
        manifest = run.manifest(stage)
        if manifest:
            parents = ", ".join(f"{name} {digest[:12]}" for name, digest in manifest.parents.items())
            size = sum(as_dict(entry).get("bytes", 0) for entry in manifest.files.values())
            rows.append(
                (stage, manifest.kind, manifest.hash[:12], parents, size, manifest.seconds, manifest.code_version)
            )
    if not rows:
        return empty("lineage", "Lineage", "No artifact yet.")
    columns = [
        ("artifact", "text"),
        ("kind", "text"),
        ("hash", "code"),
        ("made from", "code"),
        ("size", "bytes"),
        ("made in", "seconds"),
        ("by gristmill", "text"),
    ]
    note = f"Hashes are cut to 12 digits. To hash the files again: gristmill verify {run.directory}/artifacts/NAME"
    return table("lineage", "Lineage", columns, rows, note, wide=True)


# ---- deployment


def quantization(run: Run) -> Section | None:
    found = as_dict(run.json("int8", "quantization.json"))
    if not found:
        return missing(run, "int8", "Quantization")
    before, after = found.get("bytes_before"), found.get("bytes_after")
    rows = [
        ("before", before, found.get("bits_per_byte_before"), None),
        ("INT8", after, found.get("bits_per_byte_after"), found.get("compression")),
    ]
    columns = [("model", "text"), ("weights", "bytes+bar"), ("bits per byte", "number"), ("times smaller", "number")]
    return table("quantization", "Quantization", columns, rows, found.get("method"))


def quantized_layers(run: Run) -> Section | None:
    layers = as_list(as_dict(run.json("int8", "quantization.json")).get("layers"))
    if not layers:
        return None
    rows = [(layer["name"], _shape(layer["shape"]), layer["relative_error"]) for layer in layers]
    columns = [("matrix", "code"), ("shape", "text"), ("relative error", "number+bar")]
    return table("quantized-layers", "What each matrix lost", columns, rows, "Norm of the difference over the norm.")


def models(run: Run) -> Section | None:
    """All models of the ladder side by side: size, quality of text, quality of answers."""
    report = as_dict(run.json("evaluation", "report.json"))
    listed = as_dict(report.get("models"))
    if not listed:
        return missing(run, "evaluation", "Evaluation")
    bits = as_dict(as_dict(as_dict(report.get("bits_per_byte")).get("all")).get("models"))
    marks = as_dict(as_dict(report.get("tasks")).get("models"))
    rows = [
        (
            name,
            model.get("parameters"),
            model.get("file_bytes"),
            as_dict(bits.get(name)).get("value"),
            as_dict(marks.get(name)).get("accuracy"),
        )
        for name, model in listed.items()
    ]
    columns = [
        ("model", "text"),
        ("parameters", "count"),
        ("weights", "bytes"),
        ("bits per byte", "number"),
        ("tasks right", "percent"),
    ]
    return table("models", "The models of this run", columns, rows)


def evaluation_speed(run: Run) -> Section | None:
    found = run.figures("evaluation")
    items = [
        (key.removeprefix("seconds_tasks_"), value, "seconds")
        for key, value in found.items()
        if key.startswith("seconds_tasks_")
    ]
    return figures("evaluation-speed", "Time to answer the tasks", items) if items else None


def chat(run: Run | None) -> Section:
    command = f"gristmill serve {run.directory}" if run else "gristmill serve RUN"
    return {"id": "chat", "kind": "chat", "title": "Chat", "command": command}


def _version(run: Run, stage: str) -> str:
    manifest = run.manifest(stage)
    return manifest.hash[:12] if manifest else ""


def _visible(token: str) -> str:
    """A token in a list: spaces at its ends shown."""
    return repr(token)[1:-1].replace(" ", "·") if token.strip() != token or not token else token


def _shape(shape: list[int]) -> str:
    return " × ".join(str(size) for size in shape)


def _count(shape: list[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


ARTIFACTS = (attention, logit_lens, neighbours, weights, lineage)
DEPLOYMENT = (chat, quantization, models, evaluation_speed, quantized_layers)
