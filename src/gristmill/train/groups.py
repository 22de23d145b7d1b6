"""Which parameters are decayed, and how fast each learns."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..model.init import learning_rate_scales


def parameter_groups(model: nn.Module, weight_decay: float, mup_base_width: int | None = None) -> list[dict[str, Any]]:
    """Groups for AdamW. `lr_scale` in each is the factor of the schedule's learning rate: 1 everywhere, or muP's where
    `mup_base_width` is given (model/init.py).

    Vectors (norms, biases, sinks) are not decayed. AdamW shrinks weights by learning rate times decay a step; the decay
    of a slower group is raised so that this product is the same at every width, as it must be for muP's transfer of
    learning rates (Wang & Aitchison 2024, "How to set AdamW's weight decay as you scale model and dataset size").
    """
    scales = learning_rate_scales(model, mup_base_width) if mup_base_width is not None else {}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        scale = scales.get(name, 1.0)
        decay = weight_decay / scale if parameter.dim() >= 2 else 0.0
        groups.setdefault((scale, decay), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "lr_scale": scale}
        for (scale, decay), parameters in groups.items()
    ]
