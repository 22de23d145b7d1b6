"""Sliding windows in `config.json`: which layers slide, and how far they see."""

from __future__ import annotations

from typing import Any

from ...model.config import LayerKind, ModelConfig
from .effective import shortest_pattern
from .settings import Settings

_TYPES: dict[str, LayerKind] = {"full_attention": "full", "sliding_attention": "sliding"}
_NAMES = {kind: name for name, kind in _TYPES.items()}


def every_layer(settings: Settings, window: int | None) -> dict[str, Any]:
    """The fields of a model all of whose layers slide, or none (Mistral)."""
    if window is None:
        return {}
    refuse_scaling(settings)
    return {"sliding_window": window, "attention_pattern": ("sliding",)}


def by_layer_types(settings: Settings, num_layers: int, window: int | None, default: list[str]) -> dict[str, Any]:
    """The fields that `layer_types` gives, or `default` where it is absent or null."""
    types = settings.filled("layer_types", default)
    if not isinstance(types, list) or len(types) != num_layers or not set(types) <= set(_TYPES):
        settings.refuse("layer_types", f"a list of {num_layers} of {' and '.join(_TYPES)}")
    pattern = shortest_pattern(tuple(_TYPES[kind] for kind in types))
    if "sliding" not in pattern:
        return {}
    if window is None:
        settings.refuse("layer_types", "full_attention throughout where there is no sliding_window")
    return {"sliding_window": window, "attention_pattern": pattern}


def layer_types(config: ModelConfig) -> list[str]:
    """The value of `layer_types`."""
    return [_NAMES[kind] for kind in config.layer_kinds]


def refuse_scaling(settings: Settings) -> None:
    """In transformers the scaling of rotary positions reaches sliding layers too; in this decoder it never does."""
    for key in ("rope_scaling", "rope_parameters"):
        rope = settings.nested(key)
        if rope is not None and rope.filled("rope_type", rope.get("type", "default")) != "default":
            settings.refuse(key, "of rope_type 'default' in a model with sliding layers")
