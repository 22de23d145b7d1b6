"""Reading a GGUF file: as a `Decoder`, or as a whole model directory with its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..errors import GristmillError
from ..model.config import ModelConfig
from ..model.decoder import Decoder
from ..tokenizer.formats.gguf import write_tokenizer
from .gguf_config import ARCHITECTURES, Keys, read_config
from .gguf_file import GGUFFile
from .gguf_layout import ROPE_FACTORS, Stacks, assemble, stacks
from .hf import save_model

NOT_STATED = "not stated"  # in place of the licence


def load_gguf(file: Path | str, dtype: torch.dtype = torch.float32) -> Decoder:
    """The model in a GGUF file, its tensors multiplied out to `dtype`.

    Every tensor must be there, with its shape, and no other; GristmillError names the first that is not so, or the
    metadata key that this decoder does not compute. Needs the `gguf` package.
    """
    return _decoder(GGUFFile(Path(file)), dtype)


def import_gguf(file: Path, out_dir: Path, dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    """Write the model in a GGUF file as a Hugging Face directory with weights of `dtype`; return what the file says
    of itself (name, license, parameters, quantization). Needs the `gguf` package."""
    source = GGUFFile(Path(file))
    model = _decoder(source, dtype)
    out_dir.mkdir(parents=True, exist_ok=True)
    write_tokenizer(source.get, source.path, model.config.vocab_size, out_dir)
    save_model(model, out_dir, out_dir, dtype)
    return {
        "model": source.get("general.name", source.path.name),
        "license": source.get("general.license", NOT_STATED),
        "parameters": model.config.num_parameters,
        "stored_as": ", ".join(sorted({tensor.kind.name for tensor in source.tensors.values()})),
    }


def gguf_config(source: GGUFFile) -> tuple[str, ModelConfig]:
    """The architecture that the file names, and the configuration its metadata describes."""
    architecture = source.require("general.architecture")
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise GristmillError(f"{source.path}: architecture {architecture!r} is not supported, only {known}")
    if source.get("split.count", 1) not in (0, 1):
        raise GristmillError(f"{source.path}: split.count: the model is split into several files; merge them first")
    factors = None
    if architecture == "llama" and ROPE_FACTORS in source.tensors:
        factors = source.read(ROPE_FACTORS).flatten()
    keys = Keys(source.get, source.fields, architecture, str(source.path))
    return architecture, read_config(keys, architecture, source.tensors, source.shape("token_embd.weight")[0], factors)


def _decoder(source: GGUFFile, dtype: torch.dtype) -> Decoder:
    architecture, config = gguf_config(source)
    table = stacks(architecture, config)
    _check_tensors(source, architecture, table)
    return assemble(config, table, source.read, dtype)


def _check_tensors(source: GGUFFile, architecture: str, table: Stacks) -> None:
    expected = {part.name: part.shape for stack in table.values() for part in stack.parts}
    for name, shape in expected.items():
        if source.shape(name) != shape:
            raise GristmillError(
                f"{source.path}: tensor {name} has shape {list(source.shape(name))}, "
                f"the metadata asks for {list(shape)}"
            )
    extra = set(source.tensors) - set(expected)
    if architecture == "llama":
        extra.discard(ROPE_FACTORS)
    for name in sorted(extra):
        raise GristmillError(f"{source.path}: tensor {name} has no place in the {architecture} that the metadata says")
