"""Alignment losses as pure functions of log-probabilities."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def sequence_logprobs(logprobs_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """The log-probability of each row's masked tokens, `[B]`: a sum, as DPO defines it, not a mean."""
    return (logprobs_BT * mask_BT).sum(dim=-1)


def dpo_loss(
    chosen_B: Tensor, rejected_B: Tensor, reference_chosen_B: Tensor, reference_rejected_B: Tensor, beta: float
) -> tuple[Tensor, Tensor]:
    """`(losses [B], margins [B])`: loss = -log sigmoid(margin), where
    margin = beta * ((chosen - reference_chosen) - (rejected - reference_rejected)).

    All arguments are sums of log-probabilities over a reply (Rafailov et al. 2023, equation 7). Where policy and
    reference agree, each loss is ln 2.
    """
    margins = beta * ((chosen_B - reference_chosen_B) - (rejected_B - reference_rejected_B))
    return -F.logsigmoid(margins), margins.detach()
