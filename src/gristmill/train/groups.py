"""Which parameters are decayed, how fast each learns, and which are matrices that Muon updates."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..model.encoder_decoder import CrossAttention
from ..model.experts import MixtureOfExperts
from ..model.feed_forward import FeedForward
from ..model.init import learning_rate_scales
from ..model.relative import RelativeBias
from ..model.self_attention import SelfAttention
from .config import MuonConfig


def parameter_groups(model: nn.Module, weight_decay: float, mup_base_width: int | None = None) -> list[dict[str, Any]]:
    """Groups for AdamW. `lr_scale` in each is the factor of the schedule's learning rate: 1 everywhere, or muP's where
    `mup_base_width` is given (model/init.py). Frozen parameters are left out.

    Vectors (norms, biases, sinks) are not decayed. AdamW shrinks weights by learning rate times decay a step; the decay
    of a slower group is raised so that this product is the same at every width, as it must be for muP's transfer of
    learning rates (Wang & Aitchison 2024, "How to set AdamW's weight decay as you scale model and dataset size").
    """
    scales = learning_rate_scales(model, mup_base_width) if mup_base_width is not None else {}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = scales.get(name, 1.0)
            decay = weight_decay / scale if parameter.dim() >= 2 else 0.0
            groups.setdefault((scale, decay), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "lr_scale": scale}
        for (scale, decay), parameters in groups.items()
    ]


def muon_groups(
    model: nn.Module, muon: MuonConfig, learning_rate: float, weight_decay: float, mup_base_width: int | None = None
) -> list[dict[str, Any]]:
    """The groups of `parameter_groups` without the blocks' matrices, and behind them groups of those, marked by
    `matrix_rows`: the rows of the matrices that each parameter is made of (`matrix_rows`).

    The matrices' `lr_scale` is the ratio of Muon's rate to `learning_rate`, with or without muP: an update of fixed
    spectral norm is what muP's factor is there to reach with Adam (Yang, Simon & Bernstein 2023, "A Spectral Condition
    for Feature Learning", condition 1).
    """
    rows = matrix_rows(model)
    others = parameter_groups(model, weight_decay, mup_base_width)
    matrices: dict[tuple[int, ...], list[nn.Parameter]] = {}
    for group in others:
        for parameter in group["params"]:
            if id(parameter) in rows:
                matrices.setdefault(rows[id(parameter)], []).append(parameter)
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in rows]
    return [group for group in others if group["params"]] + [
        {
            "params": parameters,
            "weight_decay": muon.weight_decay,
            "lr_scale": muon.learning_rate / learning_rate,
            "matrix_rows": parts,
        }
        for parts, parameters in matrices.items()
    ]


def matrix_rows(model: nn.Module) -> dict[int, tuple[int, ...]]:
    """`id` of every matrix inside a block to the rows of the matrices it is made of: queries, keys and values of `qkv`,
    gate and up of `gate_up`, otherwise all of its rows.

    Tables of biases by distance are no matrices that anything is multiplied by, and a router's rows are read one by one
    as the head's are: neither is among them.
    """
    tables = {id(parameter) for module in model.modules() for parameter in _not_orthogonalized(module)}
    fused = {id(parameter): rows for module in model.modules() for parameter, rows in _fused(module)}
    return {
        id(parameter): fused.get(id(parameter), (parameter.shape[-2],))
        for name, parameter in model.named_parameters()
        if "blocks" in name.split(".") and parameter.dim() >= 2 and id(parameter) not in tables
    }


def _not_orthogonalized(module: nn.Module) -> list[nn.Parameter]:
    if isinstance(module, MixtureOfExperts):
        return list(module.router.parameters())
    return list(module.parameters(recurse=False)) if isinstance(module, RelativeBias | nn.Embedding) else []


def _fused(module: nn.Module) -> list[tuple[Tensor, tuple[int, ...]]]:
    """Parameters of a module that hold several matrices one below the other, and the rows of each."""
    if isinstance(module, SelfAttention):
        return [(module.qkv.weight, tuple(heads * module.spec.head_dim for heads in module.heads))]
    if isinstance(module, CrossAttention):
        return [(module.kv.weight, (module.kv.weight.shape[0] // 2,) * 2)]
    if isinstance(module, FeedForward) and module.gated:
        return [(module.gate_up.weight, (module.gate_up.weight.shape[0] // 2,) * 2)]
    if isinstance(module, MixtureOfExperts) and module.gated:
        return [(module.gate_up, (module.gate_up.shape[-2] // 2,) * 2)]
    return []
