"""`gristmill export`: a model in the form that other tools read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, get_args

from ..errors import GristmillError
from ..model.decoder import Decoder
from .families import family_of, read_config
from .gguf_export import GGUFDtype, export_gguf
from .hf import save_model
from .hf_config import CONFIG, DTYPES, GENERATION_CONFIG, dtype_name, read_settings, stored_dtype
from .load import load_model
from .locate import locate_model

FORMATS = ("hf", "gguf")


def export_model(model_path: Path | str, out: Path, to: str = "hf", dtype: str | None = None) -> dict[str, Any]:
    """Write the model (a model or a run directory) as a Hugging Face directory or a GGUF file named `out`.

    `dtype` is `float32`, `bfloat16` or `float16` for "hf" (by default the type the model is stored in), and `f32`,
    `f16`, `bf16` or `q8_0` for "gguf" (by default `f16`). INT8 weights are multiplied out. Returns what was written:
    `format`, `family`, `dtype`, `parameters`, `bytes`.

    GristmillError names the fields of a variant that has no home in the format, or an `out` that is there already.
    """
    directory = locate_model(model_path)
    if to not in FORMATS:
        raise GristmillError(f"models are exported to {' or '.join(FORMATS)}, not to {to!r}")
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise GristmillError(f"{out} exists; give a path that does not")
    return _export_hf(directory, out, dtype) if to == "hf" else _export_gguf(directory, out, dtype)


def _export_hf(directory: Path, out: Path, dtype: str | None) -> dict[str, Any]:
    settings = read_settings(directory)
    family = family_of(read_config(settings, directory / CONFIG)[1])
    kind = stored_dtype(settings, directory / CONFIG) if dtype is None else DTYPES.get(dtype)
    if kind is None:
        raise GristmillError(f"dtype {dtype!r} is not one of a Hugging Face directory: {', '.join(DTYPES)}")
    model = load_model(directory, kind)
    unfinished = out.with_name(f".{out.name}.writing")
    shutil.rmtree(unfinished, ignore_errors=True)
    save_model(model, unfinished, directory, kind)
    if (directory / GENERATION_CONFIG).is_file():  # its publisher knows which tokens end a reply
        shutil.copyfile(directory / GENERATION_CONFIG, unfinished / GENERATION_CONFIG)
    if out.is_dir():  # an empty one
        out.rmdir()
    os.replace(unfinished, out)
    written = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    return _figures(model, "hf", family.model_type, dtype_name(kind), written)


def _export_gguf(directory: Path, out: Path, dtype: str | None) -> dict[str, Any]:
    kinds: dict[str, GGUFDtype] = {kind: kind for kind in get_args(GGUFDtype)}
    kind = kinds.get(dtype or "f16")
    if kind is None:
        raise GristmillError(f"dtype {dtype!r} is not one of a GGUF file: {', '.join(kinds)}")
    if out.is_dir():
        raise GristmillError(f"{out} is a directory; a GGUF model is one file")
    model = load_model(directory, stored_dtype(read_settings(directory), directory / CONFIG))
    export_gguf(model, directory, out, kind)
    return _figures(model, "gguf", "gguf", kind, out.stat().st_size)


def _figures(model: Decoder, to: str, family: str, dtype: str, written: int) -> dict[str, Any]:
    return {
        "format": to,
        "family": family,
        "dtype": dtype,
        "parameters": model.config.num_parameters,
        "bytes": written,
    }
