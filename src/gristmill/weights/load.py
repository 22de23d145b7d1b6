"""Reading a model directory into a `Decoder`: any family in `families`, plain or with INT8 weights (compressed.py)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from ..errors import GristmillError
from ..model.config import ModelConfig
from ..model.decoder import Decoder
from . import compressed
from .families import Family, Layout, Shape, read_config
from .hf_config import CONFIG, read_settings
from .layout import build_decoder, stored_shapes
from .locate import locate_model
from .tensor_files import TensorFiles


def load_model(path: Path | str, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Decoder:
    """The decoder in a model directory (or in a run directory, see `locate_model`), its weights as `dtype`.

    INT8 weights are multiplied out while they are read: the file is small, the model in memory is not.
    Every tensor must be there, with its shape and finite values, and no other; GristmillError names the first that is
    not so, or whose values are beyond the range of `dtype`.
    """
    directory = locate_model(path)
    settings = read_settings(directory)
    family, config = read_config(settings, directory / CONFIG)
    files = TensorFiles(directory)
    _check_numbers(family, config, files)
    table = _as_named(family, family.layout(config), files)
    harmless = _harmless(family, config, table, files)
    quantization = settings.get("quantization_config")
    if quantization is not None and quantization != {}:
        compressed.check_settings(quantization, family, directory / CONFIG)
        files.check(compressed.packed_shapes(table) | harmless)
        return build_decoder(config, table, compressed.Dequantizer(files, table).read, dtype, device)
    files.check(stored_shapes(table) | harmless)
    return build_decoder(config, table, files.read_float, dtype, device)


def _check_numbers(family: Family, config: ModelConfig, files: TensorFiles) -> None:
    """Refuse more layers or experts than there are tensors, before a table of that length is made."""
    experts = 0 if config.experts is None else config.experts.num_experts
    for field, number in {"num_layers": config.num_layers, "experts.num_experts": experts}.items():
        if number > len(files.names()):
            raise GristmillError(
                f"{files.directory / CONFIG}: {family.keys.get(field, field)} = {number}, but the weights hold "
                f"{len(files.names())} tensors"
            )


def _as_named(family: Family, table: Layout, files: TensorFiles) -> Layout:
    """The table with the names that the files use: checkpoints of the bare model lack the family's prefix."""
    if not family.prefix or any(name.startswith(family.prefix) for name in files.names()):
        return table
    return {
        ours: tuple(replace(part, name=part.name.removeprefix(family.prefix)) for part in parts)
        for ours, parts in table.items()
    }


def _harmless(family: Family, config: ModelConfig, table: Layout, files: TensorFiles) -> dict[str, Shape]:
    """Tensors that some writers add and that say nothing new: a tied head stored beside its embedding, and what the
    family knows of (rotary frequencies, masks)."""
    extra = {name: files.shape(name) for name in files.names() if family.harmless(name, config)}
    if config.tie_embeddings and family.head in files.names():
        embedding = table["embedding.weight"][0].name
        if embedding in files.names() and not torch.equal(files.read(family.head), files.read(embedding)):
            raise GristmillError(
                f"{files.directory}: {family.head} differs from {embedding}, but tie_word_embeddings is true"
            )
        extra[family.head] = files.shape(family.head)
    return extra
