"""Reading a model directory into a `Decoder`: a Hugging Face Llama, plain or with INT8 weights (compressed.py)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..errors import GristmillError
from ..model.config import ModelConfig
from ..model.decoder import Decoder
from . import compressed
from .hf_config import CONFIG, decoder_config, read_settings
from .layout import build_decoder, stored_shapes
from .locate import locate_model
from .tensor_files import TensorFiles

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def load_model(path: Path | str, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Decoder:
    """The decoder in a model directory (or in a run directory, see `locate_model`), its weights as `dtype`.

    INT8 weights are multiplied out while they are read: the file is small, the model in memory is not.
    Every tensor must be there, with its shape, and no other; GristmillError names the first that is not so.
    """
    directory = locate_model(path)
    settings = read_settings(directory)
    config = decoder_config(settings, directory / CONFIG)
    files = TensorFiles(directory)
    if config.num_layers > len(files.names()):  # before a table of that length is made
        raise GristmillError(
            f"{directory / CONFIG}: num_hidden_layers = {config.num_layers}, but the weights hold "
            f"{len(files.names())} tensors"
        )
    quantization = settings.get("quantization_config")
    if quantization is not None:
        compressed.check_settings(quantization, directory / CONFIG)
        files.check(compressed.packed_shapes(config))
        return build_decoder(config, compressed.Dequantizer(files, config).read, dtype, device)
    files.check(stored_shapes(config) | _harmless(files, config))
    return build_decoder(config, lambda name: _read_float(files, name), dtype, device)


def _harmless(files: TensorFiles, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Tensors that some writers add and that say nothing new: a tied head stored beside its embedding, and the
    rotary frequencies that transformers used to keep as a buffer."""
    extra = {name: files.shape(name) for name in files.names() if name.endswith(".self_attn.rotary_emb.inv_freq")}
    if config.tie_embeddings and HEAD in files.names():
        if not torch.equal(files.read(HEAD), files.read(EMBEDDING)):
            raise GristmillError(f"{files.directory}: {HEAD} differs from {EMBEDDING}, but tie_word_embeddings is true")
        extra[HEAD] = files.shape(HEAD)
    return extra


def _read_float(files: TensorFiles, name: str) -> Tensor:
    tensor = files.read(name)
    if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        raise GristmillError(
            f"{files.directory}: tensor {name} is {tensor.dtype}; only floating-point weights are read"
        )
    return tensor
