"""From hidden states to logits: the output head, its scale and its soft-cap.

Shape suffixes: C hidden_size, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels.cpu_linear import cpu_linear
from .config import ModelConfig


def head_logits(hidden: Tensor, weight_VC: Tensor, bias_V: Tensor | None, config: ModelConfig) -> Tensor:
    """Logits `[..., V]` of hidden states `[..., C]`: scale * (hidden @ weight.T + bias), and cap * tanh(logit / cap) of
    that with a soft-cap (Gemma 2)."""
    logits = cpu_linear(hidden, weight_VC, bias_V)
    if config.logit_scale != 1.0:
        logits = logits * config.logit_scale
    cap = config.logit_softcap
    return logits if cap is None else cap * torch.tanh(logits / cap)
