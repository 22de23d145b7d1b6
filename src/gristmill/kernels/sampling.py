"""The next token of each row of logits: the likeliest, or one drawn from what temperature and cuts leave.

What a row does depends on its own logits, its slot's parameters and its position alone: the random number of a draw is
the Philox generator's (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", Philox 4x32-10) for the seed
and the position, so a seed gives the same tokens in any batch and after any interruption.

A cut keeps all tokens at least as likely as the last one kept, as transformers' `top_k` does: equal ones stay together,
here for `top_p` and `min_p` too. A draw turns its number into a token by the inverse of the cumulative distribution in
the vocabulary's order. `draw` computes it with the kernel of sampling_triton.py on a GPU and in plain torch elsewhere.

Shape suffixes: B rows, S slots, V vocabulary, C candidates.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .available import has_triton

CANDIDATES = 256  # likeliest tokens that most cuts stay within; sorting and summing the vocabulary takes longer
MIN_TEMPERATURE = 1e-6  # below it logits overflow; at it the distribution is one token already
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)  # of Philox 4x32
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
LOW = 0xFFFFFFFF
FEW_ROWS = 12  # up to so many random numbers Python makes faster than eighty small tensor operations


class DrawTable(NamedTuple):
    """Parameters by slot."""

    temperature_S: Tensor  # float32; 0 is greedy
    top_k_S: Tensor  # int32; 0 keeps all
    top_p_S: Tensor  # float32
    min_p_S: Tensor  # float32
    seed_S: Tensor  # int64


class Need(NamedTuple):
    """What the rows of a batch ask for, known on the host. A graph captured for one need serves every batch of it."""

    draws: bool = True  # any row is not greedy
    cuts: bool = True  # any row has top_k, top_p or min_p


def draw(
    logits_BV: Tensor, table: DrawTable, slots_B: Tensor, positions_B: Tensor, need: Need = Need()
) -> tuple[Tensor, Tensor]:
    """A token of each row (int64 `[B]`), and whether its logits are usable (bool `[B]`): none is NaN or inf and some
    token is possible; the token means nothing otherwise. `logits_BV` is float32; on a GPU nothing waits for the device.
    """
    if logits_BV.is_cuda and has_triton():
        from .sampling_triton import draw_kernel

        return draw_kernel(logits_BV, table, slots_B, positions_B, need)
    return draw_reference(logits_BV, table, slots_B, positions_B, need)


def draw_reference(
    logits_BV: Tensor, table: DrawTable, slots_B: Tensor, positions_B: Tensor, need: Need = Need()
) -> tuple[Tensor, Tensor]:
    """`draw` in plain torch."""
    best_B, tokens_B = logits_BV.max(dim=-1)
    finite_B = best_B.isfinite()
    if not need.draws:
        return tokens_B, finite_B
    heat_B = table.temperature_S[slots_B]
    drawn_B = (heat_B > 0).nonzero()[:, 0]
    if len(drawn_B) < len(heat_B):
        logits_BV, best_B, heat_B = logits_BV[drawn_B], best_B[drawn_B], heat_B[drawn_B]
        slots_B, positions_B = slots_B[drawn_B], positions_B[drawn_B]
    weights_BV = weights(logits_BV, best_B, heat_B, table, slots_B, need)
    uniforms_B = uniforms(table.seed_S[slots_B], positions_B)
    tokens_B[drawn_B] = inverse_cdf(weights_BV, uniforms_B)
    return tokens_B, finite_B


def weights(logits_BV: Tensor, best_B: Tensor, heat_B: Tensor, table: DrawTable, slots_B: Tensor, need: Need) -> Tensor:
    """What tokens are drawn by, the likeliest one's weight 1: exp of the logits over the temperature, and 0 outside the
    cuts. The best logit is moved to 0 first, so that no temperature overflows."""
    scaled_BV = (logits_BV - best_B[:, None]).div_(heat_B.clamp_min(MIN_TEMPERATURE)[:, None])
    if not need.cuts:
        return scaled_BV.exp_()
    top_k_B, top_p_B, min_p_B = table.top_k_S[slots_B], table.top_p_S[slots_B], table.min_p_S[slots_B]
    lowest_B = min_p_B.log()  # of a tie with the best, 0; of no min_p, -inf
    weights_BV = scaled_BV.exp()
    if scaled_BV.is_cuda:  # to look which rows ask would be to wait for the device
        sorted_BV = scaled_BV.sort(dim=-1, descending=True).values
        top_k_B = torch.where(top_k_B > 0, top_k_B, scaled_BV.shape[1]).long()
        found_B, _ = _lowest_of_first(sorted_BV, weights_BV, scaled_BV, top_k_B, top_p_B)
        lowest_B = torch.maximum(lowest_B, found_B)
    elif len(cut_B := ((top_k_B > 0) | (top_p_B < 1)).nonzero()[:, 0]):
        found_B = _lowest(scaled_BV[cut_B], weights_BV[cut_B], top_k_B[cut_B], top_p_B[cut_B])
        lowest_B[cut_B] = torch.maximum(lowest_B[cut_B], found_B)
    return weights_BV.masked_fill_(scaled_BV < lowest_B[:, None], 0)


def _lowest(scaled_BV: Tensor, weights_BV: Tensor, top_k_B: Tensor, top_p_B: Tensor) -> Tensor:
    """The smallest value that `top_k`, then `top_p` of what that leaves, keep in each row."""
    vocab = scaled_BV.shape[1]
    top_k_B = torch.where(top_k_B > 0, top_k_B.clamp_max(vocab), vocab).long()
    count = min(CANDIDATES, vocab)
    values_BC = scaled_BV.topk(count, dim=-1).values
    lowest_B, reached_B = _lowest_of_first(values_BC, weights_BV, scaled_BV, top_k_B, top_p_B)
    rest_B = (~reached_B).nonzero()[:, 0]
    if len(rest_B):
        found_B, _ = _lowest_of_first(
            _descending(scaled_BV[rest_B]), weights_BV[rest_B], scaled_BV[rest_B], top_k_B[rest_B], top_p_B[rest_B]
        )
        lowest_B[rest_B] = found_B
    return lowest_B


def _descending(x_BV: Tensor) -> Tensor:
    """Each row's values, the highest first. numpy sorts numbers in vectors, 30 times as fast as torch."""
    return torch.from_numpy(np.sort(x_BV.numpy(), axis=-1)).flip(-1)


def _lowest_of_first(
    values_BC: Tensor, weights_BV: Tensor, scaled_BV: Tensor, top_k_B: Tensor, top_p_B: Tensor
) -> tuple[Tensor, Tensor]:
    """`_lowest`, where the descending `values_BC` reach so far, and whether they do."""
    vocab, count = scaled_BV.shape[1], values_BC.shape[1]
    last_B = (top_k_B - 1).clamp_max(count - 1)
    kth_B = values_BC.gather(1, last_B[:, None])[:, 0]
    kth_B = torch.where(top_k_B < vocab, kth_B, -torch.inf)
    kept_BV = weights_BV.masked_fill(scaled_BV < kth_B[:, None], 0)
    # A running sum goes in one order, whatever the number of rows and threads.
    share_B = top_p_B.double() * kept_BV.cumsum(dim=-1, dtype=torch.float64)[:, -1]
    sums_BC = values_BC.double().exp().cumsum(dim=-1)
    place_B = (sums_BC < share_B[:, None]).sum(dim=-1)
    nucleus_B = values_BC.gather(1, place_B.clamp_max(count - 1)[:, None])[:, 0]
    nucleus_B = torch.where(top_p_B < 1, nucleus_B, -torch.inf)
    reached_B = (place_B < count) | (top_p_B >= 1)
    reached_B &= (top_k_B <= count) | (top_k_B >= vocab)
    return torch.maximum(kth_B, nucleus_B), reached_B


def inverse_cdf(weights_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """The index at which the running sum of each row passes its number (float64, in [0, 1)) of the whole; an index of
    weight 0 is never taken."""
    cdf_BV = weights_BV.cumsum(dim=-1, dtype=torch.float64)
    total_B = cdf_BV[:, -1]
    target_B = torch.minimum(uniforms_B * total_B, total_B.nextafter(torch.zeros_like(total_B)))
    return torch.searchsorted(cdf_BV, target_B[:, None], right=True)[:, 0].clamp_max(weights_BV.shape[1] - 1)


def uniform(seed: int, position: int, stream: int = 0) -> float:
    """The number in [0, 1), of 53 random bits, that belongs to a seed (64 bits), a position and a stream."""
    words = [position & LOW, position >> 32 & LOW, stream, 0]
    keys = [seed & LOW, seed >> 32 & LOW]
    for _ in range(ROUNDS):
        first, second = MULTIPLIERS[0] * words[0], MULTIPLIERS[1] * words[2]
        words = [second >> 32 ^ words[1] ^ keys[0], second & LOW, first >> 32 ^ words[3] ^ keys[1], first & LOW]
        keys = [keys[0] + WEYL[0] & LOW, keys[1] + WEYL[1] & LOW]
    return (words[0] * 2**21 + (words[1] >> 11)) * 2.0**-53


def uniforms(seeds_B: Tensor, positions_B: Tensor, stream: int = 0) -> Tensor:
    """`uniform` of each row, float64 `[B]`, from int64 seeds and positions."""
    if len(seeds_B) <= FEW_ROWS and not seeds_B.is_cuda:
        pairs = zip(seeds_B.tolist(), positions_B.tolist(), strict=True)
        return torch.tensor([uniform(seed, position, stream) for seed, position in pairs], dtype=torch.float64)
    words = [positions_B & LOW, positions_B >> 32 & LOW, torch.full_like(seeds_B, stream), torch.zeros_like(seeds_B)]
    keys = [seeds_B & LOW, seeds_B >> 32 & LOW]
    for _ in range(ROUNDS):
        # Products of 32 bits wrap around in 64 signed ones; a shift and a mask find the upper half all the same.
        first, second = words[0] * MULTIPLIERS[0], words[2] * MULTIPLIERS[1]
        words = [
            (second >> 32 & LOW) ^ words[1] ^ keys[0],
            second & LOW,
            (first >> 32 & LOW) ^ words[3] ^ keys[1],
            first & LOW,
        ]
        keys = [keys[0] + WEYL[0] & LOW, keys[1] + WEYL[1] & LOW]
    return (words[0] * 2**21 + (words[1] >> 11)).double() * 2.0**-53


class Verified(NamedTuple):
    """What a draft's check gives: the first `accepted_B` tokens of the draft stay and `next_B` follows them."""

    accepted_B: Tensor
    next_B: Tensor


def verify_drawn(drawn_BJ: Tensor, drafts_BK: Tensor, counts_B: Tensor) -> Verified:
    """Drafts of probability 1 beside the model's own draws, of which there is one more: a draft's token stays while it
    is the one that was drawn. Lossless, since the output is the draws; and a token stays as often as rejection sampling
    would let it. `counts_B`: tokens of each draft, the rest of its row is filling."""
    places_K = torch.arange(drafts_BK.shape[1], device=drafts_BK.device)
    right_BK = (drafts_BK == drawn_BJ[:, :-1]) & (places_K < counts_B[:, None])
    accepted_B = right_BK.long().cumprod(dim=-1).sum(dim=-1)
    return Verified(accepted_B, drawn_BJ.gather(1, accepted_B[:, None])[:, 0])


def verify(
    probs_BJV: Tensor, drafts_BK: Tensor, counts_B: Tensor, draft_probs_BKV: Tensor, uniforms_2BJ: Tensor
) -> Verified:
    """Rejection sampling of drafts that were drawn from `draft_probs_BKV` (Leviathan et al. 2023, "Fast inference from
    transformers via speculative decoding", algorithm 1): the output has the distribution of `probs_BJV`, J = K + 1.

    `uniforms_2BJ`, float64: numbers that decide on each token of the draft, and numbers that draw the next token.
    """
    guesses = drafts_BK[:, :, None]
    p_BK, q_BK = probs_BJV[:, :-1].gather(2, guesses)[:, :, 0], draft_probs_BKV.gather(2, guesses)[:, :, 0]
    places_K = torch.arange(drafts_BK.shape[1], device=drafts_BK.device)
    kept_BK = (uniforms_2BJ[0, :, :-1] * q_BK.double() < p_BK.double()) & (places_K < counts_B[:, None])
    accepted_B = kept_BK.long().cumprod(dim=-1).sum(dim=-1)
    rows_B = torch.arange(len(accepted_B), device=accepted_B.device)
    target_BV = probs_BJV[rows_B, accepted_B]
    refused_BV = draft_probs_BKV[rows_B, accepted_B.clamp_max(drafts_BK.shape[1] - 1)]
    left_BV = (target_BV - refused_BV).clamp_min(0)
    # Behind a draft that stays to its end nothing was refused; nor, but for rounding, where the two are the same.
    whole_B = (accepted_B == counts_B) | (left_BV.sum(dim=-1) == 0)
    left_BV = torch.where(whole_B[:, None], target_BV, left_BV)
    return Verified(accepted_B, inverse_cdf(left_BV, uniforms_2BJ[1, rows_B, accepted_B]))
