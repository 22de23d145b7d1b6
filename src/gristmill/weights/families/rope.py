"""Rotary positions in `config.json`, in the form of transformers 4 (`rope_theta`, `rope_scaling`) and of 5
(`rope_parameters`). Both are read, and both are written."""

from __future__ import annotations

from typing import Any

from ...model.config import ModelShape, RopeScaling
from .settings import MOST, Settings

_KINDS = ("default", "linear", "dynamic", "yarn", "llama3")
# What stands beside `rope_type` and the factor; our fields have the same names.
_MORE = {
    "yarn": ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate"),
    "llama3": ("low_freq_factor", "high_freq_factor"),
}


def read_rope(settings: Settings, theta: float = 10_000.0, fraction: float | None = None) -> dict[str, Any]:
    """The fields `rope_theta`, `rope_scaling`, `rope_fraction` and, where positions reach further than
    `max_position_embeddings` says, `max_seq_len`.

    `theta` is the family's default base. `fraction` is its default share of a head that rotates; None if it knows no
    partial rotation.
    """
    rope = settings.nested("rope_scaling") or settings.nested("rope_parameters")
    settings.seen |= {"rope_scaling", "rope_parameters", "partial_rotary_factor"}
    fields: dict[str, Any] = {
        "rope_theta": rope.number("rope_theta", settings.number("rope_theta", theta))
        if rope
        else settings.number("rope_theta", theta)
    }
    holder = rope if rope is not None and rope.has("partial_rotary_factor") else settings
    if fraction is None:
        holder.only("partial_rotary_factor", 1.0)
    else:
        fields["rope_fraction"] = holder.number("partial_rotary_factor", fraction)
    return fields if rope is None else fields | read_scaling(settings, rope)


def read_scaling(settings: Settings, rope: Settings) -> dict[str, Any]:
    """`rope_scaling`, and `max_seq_len` where it follows from it, out of one object of rotary parameters."""
    key = "rope_type" if rope.has("rope_type") else "type"
    kind = rope.choice(key, {kind: kind for kind in _KINDS}, "default")
    if kind == "default":
        return {}
    trained = settings.integer("max_position_embeddings", 2048)
    if kind in ("yarn", "llama3"):
        holder = settings if settings.has("original_max_position_embeddings") else rope
        original = holder.integer("original_max_position_embeddings", trained)
        factor = rope.number("factor", trained / original if kind == "yarn" else None)
        scaling = {name: rope.get(name) for name in _MORE[kind] if rope.has(name)}
        fields: dict[str, Any] = {
            "rope_scaling": {"kind": kind, "factor": factor, "original_max_seq_len": original, **scaling}
        }
        # Some publish the trained length (Qwen), some the length that the factor makes of it (DeepSeek).
        longest = _stretched(rope, original, factor) if kind == "yarn" else trained
        if not holder.has("original_max_position_embeddings"):
            longest = trained
        return fields | ({"max_seq_len": longest} if longest > trained else {})
    factor = rope.number("factor")
    if factor < 1:
        rope.refuse("factor", "1 or more")
    if kind == "dynamic":  # the frequencies change from here on, so this is the length it was trained with
        scaling = {"kind": kind, "factor": factor, "original_max_seq_len": trained}
        return {"rope_scaling": scaling, "max_seq_len": _stretched(rope, trained, factor)}
    scaling = {"kind": kind, "factor": factor, "original_max_seq_len": max(1, int(trained / factor))}
    return {"rope_scaling": scaling}


def _stretched(rope: Settings, trained: int, factor: float) -> int:
    if trained * factor > MOST:
        rope.refuse("factor", f"so small that {trained} times it is at most {MOST}")
    return int(trained * factor)


def write_rope(config: ModelShape, partial: bool = False) -> dict[str, Any]:
    """The keys of both forms; `partial` for families that know partial rotation. With dynamic scaling they hold
    `max_position_embeddings` too, whose meaning it changes."""
    rope = {"rope_theta": config.rope_theta, **scaling_keys(config.rope_scaling)}
    if partial:
        rope["partial_rotary_factor"] = config.rope_fraction
    keys: dict[str, Any] = {"rope_theta": config.rope_theta, "rope_parameters": rope}
    if partial:
        keys["partial_rotary_factor"] = config.rope_fraction
    if config.rope_scaling is not None:
        keys["rope_scaling"] = scaling_keys(config.rope_scaling)
        if config.rope_scaling.kind == "dynamic":
            keys["max_position_embeddings"] = config.rope_scaling.original_max_seq_len
    return keys


def scaling_keys(scaling: RopeScaling | None) -> dict[str, Any]:
    """`rope_type` and what belongs to it."""
    if scaling is None:
        return {"rope_type": "default"}
    keys: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind in ("linear", "dynamic"):
        return keys
    keys["original_max_position_embeddings"] = scaling.original_max_seq_len
    keys |= {name: getattr(scaling, name) for name in _MORE[scaling.kind]}
    return {key: value for key, value in keys.items() if value is not None}
