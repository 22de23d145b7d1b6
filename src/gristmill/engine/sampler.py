"""Drawing the next token of every sequence of a step at once.

Each random row brings one number from its own request's generator, and what a row does depends on that row alone, so a
seed gives the same tokens in any batch. A draw turns the number into a token by the inverse of the cumulative
distribution. `top_k` and `top_p` look at the likeliest `CANDIDATES` tokens first and sort the vocabulary only for a row
that these do not cover: a full sort of a step's logits takes longer than a small model's step.

Shape suffixes: B rows, V vocabulary, C candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .request import TokenLogprob
from .sampling import SamplingParams

CANDIDATES = 256
MIN_TEMPERATURE = 1e-6  # below it logits overflow; at it the distribution is one token already


@dataclass(frozen=True)
class Sampled:
    """One entry per row. `finite` is false where the model gave no usable logits and the token means nothing."""

    token_ids: list[int]
    finite: list[bool]
    logprobs: dict[int, tuple[float, list[TokenLogprob]]]  # by row, of those that asked


@torch.inference_mode()
def sample(logits_BV: Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]) -> Sampled:
    """The next token of each row; `uniforms` are in [0, 1), one a row, and unused by greedy rows.

    `logits_BV` is float32. Log probabilities are of the distribution before temperature, `top_k` and `top_p`.
    """
    best_B, tokens_B = logits_BV.max(dim=-1)
    finite_B = best_B.isfinite()
    whole = [row for row, p in enumerate(params) if not p.greedy and p.top_p == 1 and p.top_k == 0]
    cut = [row for row, p in enumerate(params) if not p.greedy and not (p.top_p == 1 and p.top_k == 0)]
    for rows, draw in ((whole, _draw_from_all), (cut, _draw_from_some)):
        if rows:
            scaled = _scaled(logits_BV, best_B, rows, params)
            numbers = torch.tensor([uniforms[row] for row in rows], dtype=torch.float64, device=logits_BV.device)
            tokens_B[rows] = draw(scaled, numbers, [params[row] for row in rows])
    return Sampled(tokens_B.tolist(), finite_B.tolist(), _logprobs(logits_BV, tokens_B, params))


def _scaled(logits_BV: Tensor, best_B: Tensor, rows: list[int], params: Sequence[SamplingParams]) -> Tensor:
    """Rows divided by their temperatures, the best logit moved to 0 so that no temperature overflows."""
    temperatures = torch.tensor([[max(params[row].temperature, MIN_TEMPERATURE)] for row in rows], device=best_B.device)
    if len(rows) < len(params):
        logits_BV, best_B = logits_BV[rows], best_B[rows]
    return (logits_BV - best_B[:, None]) / temperatures


def _draw_from_all(scaled_BV: Tensor, uniforms_B: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    return _inverse_cdf(scaled_BV.softmax(dim=-1), uniforms_B)


def _draw_from_some(scaled_BV: Tensor, uniforms_B: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    vocab = scaled_BV.shape[1]
    top_k_B = torch.tensor([p.top_k or vocab for p in params], device=scaled_BV.device)
    top_p_B = torch.tensor([p.top_p for p in params], device=scaled_BV.device)
    values_BC, ids_BC = scaled_BV.topk(min(CANDIDATES, vocab), dim=-1)
    probs_BC = values_BC.exp() / scaled_BV.exp().sum(dim=-1, keepdim=True)
    covered_B = (top_k_B <= ids_BC.shape[1]) | ((probs_BC.sum(dim=-1) >= top_p_B) & (top_k_B >= vocab))
    tokens_B = torch.empty_like(top_k_B)
    for chosen_B in (covered_B, ~covered_B):
        if not chosen_B.any():
            continue
        if chosen_B is covered_B:
            values, ids, probs = values_BC[chosen_B], ids_BC[chosen_B], probs_BC[chosen_B]
        else:
            values, ids = torch.sort(scaled_BV[chosen_B], dim=-1, descending=True, stable=True)
            probs = values.softmax(dim=-1)
        kept = _keep(probs, top_k_B[chosen_B], top_p_B[chosen_B])
        position = _inverse_cdf(kept, uniforms_B[chosen_B])
        tokens_B[chosen_B] = ids.gather(1, position[:, None])[:, 0]
    return tokens_B


def _keep(probs_BC: Tensor, top_k_B: Tensor, top_p_B: Tensor) -> Tensor:
    """Descending probabilities with zeros outside the `top_k` likeliest and, of these, outside the smallest set that
    holds `top_p` of their sum. The first always stays."""
    rank_C = torch.arange(probs_BC.shape[1], device=probs_BC.device)
    probs_BC = probs_BC * (rank_C < top_k_B[:, None])
    below_BC = probs_BC.cumsum(dim=-1) - probs_BC
    # A covered row without top_k is normalized over the whole vocabulary, one with top_k over what top_k left.
    total_B = torch.where(top_k_B <= probs_BC.shape[1], probs_BC.sum(dim=-1), torch.ones_like(top_p_B))
    return probs_BC * (below_BC < (top_p_B * total_B)[:, None])


def _inverse_cdf(probs_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """The index at which the running sum of each row passes its number; an index of probability 0 is never taken."""
    cdf_BV = probs_BV.cumsum(dim=-1, dtype=torch.float64)
    total_B = cdf_BV[:, -1]
    target_B = torch.minimum(uniforms_B * total_B, total_B.nextafter(torch.zeros_like(total_B)))
    return torch.searchsorted(cdf_BV, target_B[:, None], right=True)[:, 0].clamp_max(probs_BV.shape[1] - 1)


def _logprobs(
    logits_BV: Tensor, tokens_B: Tensor, params: Sequence[SamplingParams]
) -> dict[int, tuple[float, list[TokenLogprob]]]:
    rows = [row for row, p in enumerate(params) if p.logprobs]
    if not rows:
        return {}
    logprobs_BV = (logits_BV if len(rows) == len(params) else logits_BV[rows]).log_softmax(dim=-1)
    chosen = logprobs_BV.gather(1, tokens_B[rows][:, None])[:, 0].tolist()
    most = min(max(params[row].top_logprobs for row in rows), logits_BV.shape[1])
    top = logprobs_BV.topk(most, dim=-1)
    values, ids = top.values.tolist(), top.indices.tolist()
    result = {}
    for i, row in enumerate(rows):
        count = params[row].top_logprobs
        result[row] = (chosen[i], list(zip(ids[i][:count], values[i][:count], strict=True)))
    return result
