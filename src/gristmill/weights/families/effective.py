"""Which fields of a configuration have a say in what a trained model computes."""

from __future__ import annotations

import math
from typing import Any

from ...model.config import Experts, LayerKind, ModelConfig, RopeScaling

_OF_YARN = ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate")
_OF_LLAMA3 = ("low_freq_factor", "high_freq_factor")
_WITHOUT_EFFECT = {
    "linear": ("original_max_seq_len", *_OF_YARN, *_OF_LLAMA3),
    "dynamic": (*_OF_YARN, *_OF_LLAMA3),
    "yarn": _OF_LLAMA3,
    "llama3": _OF_YARN,
}


NO_EFFECT = "(no effect)"


def effective(config: ModelConfig) -> dict[str, Any]:
    """The fields of `config`, with one common value in those that change nothing.

    Two configurations with the same effective fields have the same parameters and give the same logits.
    """
    fields = config.model_dump()
    fields["attention_pattern"] = shortest_pattern(config.layer_kinds)
    fields["attention_scale"] = config.attention_scale or config.head_dim**-0.5
    if config.positions != "rope":
        fields |= dict.fromkeys(("rope_theta", "rope_fraction", "sliding_rope_theta"), NO_EFFECT)
    elif config.sliding_window is not None:
        fields["sliding_rope_theta"] = config.sliding_rope_theta or config.rope_theta
    if config.positions != "learned":
        fields["max_seq_len"] = NO_EFFECT
    if not any(not config.has_experts(layer) for layer in range(config.num_layers)):
        fields["intermediate_size"] = NO_EFFECT
    if config.rope_scaling is not None:
        fields["rope_scaling"] = _scaling(config.rope_scaling)
    if config.experts is not None:
        fields["experts"] = _experts(config.experts)
    return fields


def differences(ours: dict[str, Any], theirs: dict[str, Any], inside: str = "") -> list[str]:
    """`field = value` of `ours` for every field in which two sets of effective fields differ."""
    found: list[str] = []
    for field, value in ours.items():
        other = theirs[field]
        if NO_EFFECT in (value, other):  # the field that takes the effect away differs too
            continue
        if isinstance(value, dict) and isinstance(other, dict) and set(value) == set(other):
            found += differences(value, other, f"{inside}{field}.")
        elif isinstance(value, dict):
            found.append(inside + field)
        elif not _same(value, other):
            found.append(f"{inside}{field} = {value!r}")
    return found


def _same(value: Any, other: Any) -> bool:
    if isinstance(value, float) and isinstance(other, float):  # a square root may come back rounded
        return math.isclose(value, other, rel_tol=1e-12)
    return bool(value == other)


def shortest_pattern(kinds: tuple[LayerKind, ...]) -> tuple[LayerKind, ...]:
    """The shortest start of `kinds` whose repetition gives all of them."""
    for length in range(1, len(kinds)):
        if all(kind == kinds[at % length] for at, kind in enumerate(kinds)):
            return kinds[:length]
    return kinds


def _scaling(scaling: RopeScaling) -> dict[str, Any]:
    return {field: value for field, value in scaling.model_dump().items() if field not in _WITHOUT_EFFECT[scaling.kind]}


def _experts(experts: Experts) -> dict[str, Any]:
    fields = experts.model_dump(exclude={"aux_loss_weight", "z_loss_weight", "bias_rate", "capacity_factor"})
    fields["dense_layers"] = tuple(sorted(set(experts.dense_layers)))
    if experts.balance != "bias":
        fields["balance"] = "aux_loss"
    if experts.top_groups == experts.num_groups:
        fields |= {"num_groups": 1, "top_groups": 1, "group_score": NO_EFFECT}
    return fields
