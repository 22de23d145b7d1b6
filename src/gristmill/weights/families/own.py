"""The format of models that no family of transformers can hold: our own fields and our own names of tensors."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...model.config import ModelConfig
from ...model.decoder import Decoder
from ...model.undrawn import undrawn
from .family import Family, Layout, Part
from .settings import MOST, Settings

MODEL_TYPE = "gristmill"
_FIELDS = tuple(ModelConfig.model_fields)


def _read(settings: Settings) -> dict[str, Any]:
    settings.layers("num_layers")
    for key in _FIELDS:
        value = settings.values.get(key)
        inside = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
        if any(isinstance(number, int) and abs(number) > MOST for number in (value, *inside)):
            settings.refuse(key, f"numbers of at most {MOST}")
    return {field: settings.get(field) for field in _FIELDS if field in settings.values}


def _write(config: ModelConfig) -> dict[str, Any]:
    return config.model_dump(mode="json")


def _layout(config: ModelConfig) -> Layout:
    with undrawn():
        model = Decoder(config)
    return {
        name: (Part(name, tuple(tensor.shape), linear=_is_linear(name, tensor)),)
        for name, tensor in model.state_dict().items()
    }


def _is_linear(name: str, tensor: Tensor) -> bool:
    return tensor.dim() == 2 and name.startswith("blocks.") and not name.endswith(".router.weight")


OWN = Family(
    model_type=MODEL_TYPE,
    architecture="GristmillDecoder",
    keys={},
    read=_read,
    write=_write,
    layout=_layout,
    prefix="",
)
