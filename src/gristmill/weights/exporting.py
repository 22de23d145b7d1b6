"""`gristmill export`: a model in the form that other tools read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, get_args

from ..artifact import is_artifact, read_manifest
from ..errors import GristmillError
from ..model.decoder import Decoder
from .families import family_of, read_config
from .gguf import NOT_STATED
from .gguf_export import GGUFDtype, export_gguf
from .hf import save_model
from .hf_config import (
    CONFIG,
    DTYPES,
    GENERATION_CONFIG,
    dtype_name,
    published_token_ids,
    read_settings,
    stored_dtype,
)
from .load import load_model
from .locate import locate_model

FORMATS = ("hf", "gguf")
_SHORT = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}  # GGUF's names; either form takes both
_LONG = {short: long for long, short in _SHORT.items()}


def export_model(model_path: Path | str, out: Path, to: str = "hf", dtype: str | None = None) -> dict[str, Any]:
    """Write the model (a model or a run directory) as a Hugging Face directory or a GGUF file named `out`.

    `dtype` is `float32`, `bfloat16` or `float16` (or `f32`, `bf16`, `f16`) for "hf", by default the type the model is
    stored in; for "gguf" also `q8_0`, and by default `f16`. A GGUF file says the model's name and licence as far as its
    manifest does; without, its name is the directory's. INT8 weights are multiplied out. Returns what was written:
    `format`, `family`, `dtype`, `parameters`, `bytes`.

    GristmillError names the fields of a variant that has no home in the format, or an `out` that is there already.
    """
    directory, out = locate_model(model_path), out.resolve()
    if to not in FORMATS:
        raise GristmillError(f"models are exported to {' or '.join(FORMATS)}, not to {to!r}")
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise GristmillError(f"{out} exists; give a path that does not")
    if to == "hf":
        return _export_hf(directory, out, dtype)
    return _export_gguf(directory, out, dtype, Path(model_path).resolve().name)


def _export_hf(directory: Path, out: Path, dtype: str | None) -> dict[str, Any]:
    settings = read_settings(directory)
    family = family_of(read_config(settings, directory / CONFIG)[1])
    kind = stored_dtype(settings, directory / CONFIG) if dtype is None else DTYPES.get(_LONG.get(dtype, dtype))
    if kind is None:
        raise GristmillError(f"dtype {dtype!r} is not one of a Hugging Face directory: {', '.join(DTYPES)}")
    model = load_model(directory, kind)
    published = published_token_ids(settings, model.config.vocab_size)
    unfinished = out.with_name(f".{out.name}.writing")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        save_model(model, unfinished, directory, kind, published=published)
        if (directory / GENERATION_CONFIG).is_file():  # its publisher knows which tokens end a reply
            shutil.copyfile(directory / GENERATION_CONFIG, unfinished / GENERATION_CONFIG)
        if out.is_dir():  # an empty one, which may be where the user stands: it stays
            for file in sorted(unfinished.iterdir(), key=lambda file: file.name == CONFIG):
                os.replace(file, out / file.name)
        else:
            os.replace(unfinished, out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    written = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    return _figures(model, "hf", family.model_type, dtype_name(kind), written)


def _export_gguf(directory: Path, out: Path, dtype: str | None, name: str) -> dict[str, Any]:
    kinds: dict[str, GGUFDtype] = {kind: kind for kind in get_args(GGUFDtype)}
    kind = kinds.get("f16" if dtype is None else _SHORT.get(dtype, dtype))
    if kind is None:
        raise GristmillError(f"dtype {dtype!r} is not one of a GGUF file: {', '.join(kinds)}")
    if out.is_dir():
        raise GristmillError(f"{out} is a directory; a GGUF model is one file")
    model = load_model(directory, stored_dtype(read_settings(directory), directory / CONFIG))
    figures = read_manifest(directory).figures if is_artifact(directory) else {}
    licence = figures.get("license")
    export_gguf(
        model,
        directory,
        out,
        kind,
        name=str(figures.get("model", name)),
        licence=None if licence in (None, NOT_STATED) else str(licence),
    )
    return _figures(model, "gguf", "gguf", kind, out.stat().st_size)


def _figures(model: Decoder, to: str, family: str, dtype: str, written: int) -> dict[str, Any]:
    return {
        "format": to,
        "family": family,
        "dtype": dtype,
        "parameters": model.config.num_parameters,
        "bytes": written,
    }
