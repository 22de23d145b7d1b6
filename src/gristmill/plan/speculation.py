"""What guessing ahead gains (Leviathan et al. 2023, section 3): K guessed tokens, each accepted with probability a
independently, a guess costing c of a step of the model."""

from __future__ import annotations


def expected_tokens(acceptance: float, draft_tokens: int) -> float:
    """(1 - a^(K+1)) / (1 - a), K + 1 where a is 1: tokens that come of one step of the model, its own among them."""
    if acceptance == 1:
        return draft_tokens + 1.0
    return (1 - acceptance ** (draft_tokens + 1)) / (1 - acceptance)


def speedup(acceptance: float, draft_tokens: int, draft_cost_ratio: float) -> float:
    """E / (1 + K c), where a step over K + 1 tokens takes as long as over one: while memory is the limit."""
    return expected_tokens(acceptance, draft_tokens) / (1 + draft_tokens * draft_cost_ratio)


def slowdown_compute_bound(acceptance: float, draft_tokens: int, draft_cost_ratio: float) -> float:
    """(K + 1 + K c) / E: how much longer a token takes where arithmetic is the limit, so that K + 1 tokens cost as much
    as K + 1 steps."""
    return (draft_tokens + 1 + draft_tokens * draft_cost_ratio) / expected_tokens(acceptance, draft_tokens)
