"""Attention patterns: recorded through an `Attend` of our own, so that the model itself stays untouched.

Shape suffixes as in model/attention.py: B batch, T time, H query heads, K key/value heads, D head width.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ..model.attention import AttentionSpec, attention_weights, visible
from ..model.decoder import Decoder


class RecordedAttention:
    """Causal attention written out as softmax(scores) v, which keeps each layer's pattern `[B, H, T, T]`."""

    def __init__(self) -> None:
        self.patterns: dict[int, Tensor] = {}

    def __call__(self, spec: AttentionSpec, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKE: Tensor) -> Tensor:
        groups = q_BTHD.shape[2] // k_BTKD.shape[2]
        k_BHTD = k_BTKD.repeat_interleave(groups, dim=2).transpose(1, 2)
        v_BHTD = v_BTKE.repeat_interleave(groups, dim=2).transpose(1, 2)
        at = torch.arange(q_BTHD.shape[1], device=q_BTHD.device)
        pattern_BHTT = attention_weights(spec, q_BTHD.transpose(1, 2), k_BHTD, visible(spec, at, at), at, at)
        self.patterns[spec.layer] = pattern_BHTT
        return (pattern_BHTT.to(v_BHTD.dtype) @ v_BHTD).transpose(1, 2)


@torch.inference_mode()
def attention_patterns(model: Decoder, token_ids: list[int]) -> Tensor:
    """What every token looks at: `[layers, heads, T, T]`, each row a distribution over the tokens up to its own."""
    attend = RecordedAttention()
    model.hidden_states(torch.tensor([token_ids], device=next(model.parameters()).device), attend=attend)
    return torch.stack([attend.patterns[layer][0] for layer in range(model.config.num_layers)]).float().cpu()


@dataclass(frozen=True)
class HeadFacts:
    """Where one head looks, averaged over the positions of a prompt (but its first, which sees only itself)."""

    layer: int
    head: int
    first_token: float  # weight on the first token, where heads park what they do not use
    previous_token: float  # weight on the token just before
    own_token: float
    mean_distance: float  # tokens
    entropy: float  # bits; log2(T) would be a head that looks everywhere alike
    induction: float  # weight on the token that followed the same token last time, on a repeated random sequence


def head_facts(patterns: Tensor, repeated: Tensor, period: int) -> list[HeadFacts]:
    """Facts of all heads: `patterns [L, H, T, T]` of a prompt, `repeated [L, H, S, S]` of a sequence that ends in
    two copies of the same `period` tokens (see `induction`). T must be at least 2."""
    rows = patterns[:, :, 1:].double()
    time = patterns.shape[-1]
    distance = (torch.arange(time)[:, None] - torch.arange(time)[None, :])[1:].clamp(min=0)
    columns = {
        "first_token": rows[..., 0].mean(-1),
        "previous_token": patterns.double().diagonal(-1, -2, -1).mean(-1),
        "own_token": patterns.double().diagonal(0, -2, -1)[..., 1:].mean(-1),
        "mean_distance": (rows * distance).sum(-1).mean(-1),
        "entropy": -torch.special.xlogy(rows, rows).sum(-1).mean(-1)
        / torch.log(torch.tensor(2.0, dtype=torch.float64)),
        "induction": induction(repeated.double(), period),
    }
    layers, heads = patterns.shape[:2]
    return [
        HeadFacts(layer, head, **{name: float(values[layer, head]) for name, values in columns.items()})
        for layer in range(layers)
        for head in range(heads)
    ]


def induction(patterns: Tensor, period: int) -> Tensor:
    """Induction score `[..., H]` (Olsson et al. 2022): over the second copy of a repeated sequence, the weight on
    the token after the first occurrence of the current one, which is what will come next."""
    diagonal = patterns.diagonal(-(period - 1), -2, -1)  # entry i is the weight of query i + period - 1 on key i
    return diagonal[..., -period:].mean(-1)


def strongest(facts: list[HeadFacts], name: str) -> dict[str, float | int]:
    """The head with the highest value of one fact."""
    best = max(facts, key=lambda fact: asdict(fact)[name])
    return {"layer": best.layer, "head": best.head, "value": asdict(best)[name]}
