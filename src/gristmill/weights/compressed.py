"""INT8 weights in the compressed-tensors layout that transformers and vLLM load.

Weight-only INT8 is stored as `pack-quantized` with 8 bits (the library's `int-quantized` is for weights and
activations). For each matrix `[out, in]` of the blocks there are three tensors:

    weight_packed  int32 [out, ceil(in / 4)]   value + 128 as a byte, the first value in the lowest byte, zero-padded
    weight_scale   [out, 1]                    the step of each output row, in the type of the other weights
    weight_shape   int64 [2]                   out, in

Embeddings, norms and the head stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import GristmillError
from ..model.decoder import Decoder
from . import layout
from .families import Family, Layout, Shape, home_of
from .hf import stored_tensors, write_directory
from .json_files import short
from .safetensors_writer import StoredTensor
from .tensor_files import TensorFiles

_WEIGHTS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
_GROUP = {"targets": ["Linear"], "weights": _WEIGHTS, "input_activations": None, "output_activations": None}
SETTINGS: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "quantization_status": "compressed",  # without it transformers leaves the weights random, with a mere warning
    "format": "pack-quantized",
    "ignore": ["lm_head"],
    "config_groups": {"group_0": _GROUP},
}


@dataclass(frozen=True)
class QuantizedRows:
    """A matrix as whole numbers and one step per row: `values` int8 [out, in], `scale` [out, 1]."""

    values: Tensor
    scale: Tensor


def dequantize(quantized: QuantizedRows) -> Tensor:
    """The matrix `[out, in]` in float32: values * scale."""
    return quantized.values.float() * quantized.scale.float()


def pack(values: Tensor) -> Tensor:
    """int8 [out, in] -> int32 [out, ceil(in / 4)], four values a word. Flipping the top bit adds 128."""
    padding = -values.shape[1] % 4
    return F.pad(values.contiguous().view(torch.uint8) ^ 0x80, (0, padding)).view(torch.int32)


def unpack(packed: Tensor, columns: int) -> Tensor:
    """The inverse of `pack`: int8 [out, columns]."""
    return (packed.contiguous().view(torch.uint8) ^ 0x80)[:, :columns].contiguous().view(torch.int8)


def save_int8(
    model: Decoder,
    quantized: Mapping[str, QuantizedRows],
    directory: Path,
    tokenizer_dir: Path,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a model directory with `quantized` in place of the blocks' matrices (`layout.block_matrices` names them);
    everything else of the model is stored as `dtype`, which must be the type of the scales too."""
    matrices = layout.block_matrices(model.config)
    assert set(quantized) == set(matrices)
    family = home_of(model.config)
    tensors: list[StoredTensor] = []
    for tensor in stored_tensors(model, family, dtype):
        module = tensor.name.removesuffix(".weight")
        if module not in quantized:
            tensors.append(tensor)
            continue
        assert quantized[module].values.shape == tensor.shape
        assert quantized[module].scale.dtype == dtype
        tensors += _packed_tensors(module, quantized[module])
    write_directory(
        tensors, model.config, family, directory, tokenizer_dir, dtype, quantization_config=_settings(family)
    )


def _packed_tensors(module: str, rows: QuantizedRows) -> list[StoredTensor]:
    height, width = rows.values.shape
    return [
        StoredTensor(f"{module}.weight_packed", (height, -(-width // 4)), torch.int32, lambda: pack(rows.values.cpu())),
        StoredTensor(f"{module}.weight_scale", (height, 1), rows.scale.dtype, lambda: rows.scale.cpu().contiguous()),
        StoredTensor(f"{module}.weight_shape", (2,), torch.int64, lambda: torch.tensor(rows.values.shape)),
    ]


def _settings(family: Family) -> dict[str, Any]:
    """`SETTINGS`, with the family's own name for the head beside the one that transformers gives it."""
    return SETTINGS | {"ignore": list(dict.fromkeys(("lm_head", family.head.removesuffix(".weight"))))}


def check_settings(settings: Any, family: Family, path: Path) -> None:
    """GristmillError names the first field of `quantization_config` that is not the one layout read here."""
    where = f"{path}: quantization_config"
    settings = _object(settings, where)
    expected = _settings(family)
    if settings.get("quant_method") == "fp8":
        raise GristmillError(
            f"{where}.quant_method: fp8 weights are not read; get the model's bfloat16 checkpoint, or convert it to one"
        )
    for key in ("quant_method", "quantization_status", "format", "ignore"):
        if settings.get(key) != expected[key]:
            raise GristmillError(f"{where}.{key} = {short(settings.get(key))} is not supported, only {expected[key]!r}")
    groups = _object(settings.get("config_groups") or {}, f"{where}.config_groups")
    if len(groups) != 1:
        raise GristmillError(
            f"{where}.config_groups holds {len(groups)} groups; only one, for every Linear, is supported"
        )
    name, group = next(iter(groups.items()))
    group = _object(group, f"{where}.config_groups.{name}")
    for key in ("targets", "input_activations"):
        if group.get(key) != _GROUP[key]:
            raise GristmillError(f"{where}.config_groups.{name}.{key} = {short(group.get(key))} is not supported")
    weights = _object(group.get("weights") or {}, f"{where}.config_groups.{name}.weights")
    for key, value in _WEIGHTS.items():
        if weights.get(key) != value:
            field = f"config_groups.{name}.weights.{key}"
            raise GristmillError(
                f"{where}.{field} = {short(weights.get(key))} is not supported, only {value!r} (INT8 weights)"
            )


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise GristmillError(f"{where} must be an object, not {short(value)}")
    return value


def packed_shapes(table: Layout) -> dict[str, Shape]:
    """Every tensor of an INT8 model file and its shape."""
    matrices = layout.linear_shapes(table)
    shapes = {
        name: shape
        for name, shape in layout.stored_shapes(table).items()
        if name.removesuffix(".weight") not in matrices
    }
    for module, (rows, columns) in matrices.items():
        shapes[f"{module}.weight_packed"] = (rows, -(-columns // 4))
        shapes[f"{module}.weight_scale"] = (rows, 1)
        shapes[f"{module}.weight_shape"] = (2,)
    return shapes


class Dequantizer:
    """Reads the tensors of an INT8 directory under the names they have in an unquantized one."""

    def __init__(self, files: TensorFiles, table: Layout):
        self.files = files
        self.matrices = layout.linear_shapes(table)

    def read(self, name: str) -> Tensor:
        module = name.removesuffix(".weight")
        if module not in self.matrices:
            return self.files.read_float(name)
        shape = self.matrices[module]
        stated = tuple(self.files.read(f"{module}.weight_shape").tolist())
        if stated != shape:
            raise GristmillError(f"{self.files.directory}: {module}.weight_shape says {stated}, config.json {shape}")
        packed = self.files.read(f"{module}.weight_packed")
        if packed.dtype != torch.int32:
            raise GristmillError(f"{self.files.directory}: {module}.weight_packed is {packed.dtype}, not torch.int32")
        scale = self.files.read_float(f"{module}.weight_scale")
        matrix = dequantize(QuantizedRows(unpack(packed, shape[1]), scale))
        if not torch.isfinite(matrix).all():
            raise GristmillError(
                f"{self.files.directory}: tensor {name} holds values that torch.float32 cannot: its weight_scale is "
                "damaged"
            )
        return matrix
