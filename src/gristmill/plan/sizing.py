"""Which size of model, and how many tokens, a budget or a lifetime of requests calls for.

Laws of the form of plan/scaling.py, L(N, D) = E + A / N^alpha + B / D^beta, with published constants. They hold for
their authors' text and tokenizer: take the ratios, not the losses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import GristmillError
from .scaling import Law

# Approach 3 of Hoffmann et al. 2022 with the third digits of its exponents, as Sardana et al. 2024 use it (rounded to
# 0.34 and 0.28, as the paper prints them, sizes come out by a half too large); and the same models fitted anew by
# Besiroglu et al. 2024, whose law agrees with about 20 tokens per parameter.
HOFFMANN = Law(1.69, 406.4, 0.336, 410.7, 0.283)
BESIROGLU = Law(1.8172, 482.01, 0.3478, 2085.43, 0.3658)

REPEATS_WORTH = 15.39  # R*_D of Muennighoff et al. 2023, section 5


@dataclass(frozen=True)
class Size:
    """A model and its training; `inference_tokens` are those of its whole life, prompts and answers."""

    params: float
    tokens: float
    inference_tokens: float = 0.0

    @property
    def train_flops(self) -> float:
        return 6 * self.params * self.tokens

    @property
    def flops(self) -> float:
        """6 N D + 2 N D_inference."""
        return self.train_flops + 2 * self.params * self.inference_tokens


def rule_of_thumb(flops: float, tokens_per_param: float = 20) -> Size:
    """N = sqrt(C / (6 r)), D = r N: what C FLOPs are best spent on at r tokens per parameter (Hoffmann et al. 2022,
    approaches 1 and 2)."""
    _positive(flops, "the budget of FLOPs")
    params = math.sqrt(flops / (6 * tokens_per_param))
    return Size(params, tokens_per_param * params)


def compute_optimal(flops: float, law: Law = BESIROGLU) -> Size:
    """The size of lowest loss for 6 N D = `flops` (Hoffmann et al. 2022, equation 4)."""
    _positive(flops, "the budget of FLOPs")
    return Size(*law.optimal(flops))


def inference_aware(loss: float, inference_tokens: float, law: Law = HOFFMANN) -> Size:
    """argmin 6 N D + 2 N D_inference subject to L(N, D) = `loss` (Sardana et al. 2024, equation 3)."""
    if not 0 <= inference_tokens < math.inf:
        raise GristmillError(f"tokens of inference must be 0 or more and finite, not {inference_tokens:g}")
    params, tokens = law.cheapest(loss, inference_tokens)
    return Size(params, tokens, inference_tokens)


def epochs(tokens: float, corpus_tokens: float) -> float:
    """tokens / tokens of the corpus."""
    _positive(corpus_tokens, "the corpus's number of tokens")
    return tokens / corpus_tokens


def worth_of_repeats(tokens: float, corpus_tokens: float) -> float:
    """Tokens of fresh text that are worth as much: U + U R* (1 - exp(-R / R*)) with U tokens, R repeats and R* = 15.39
    (Muennighoff et al. 2023, equation 5): four epochs lose little, forty gain nothing more."""
    seen = epochs(tokens, corpus_tokens)
    if seen <= 1:
        return tokens
    return corpus_tokens * (1 + REPEATS_WORTH * (1 - math.exp(-(seen - 1) / REPEATS_WORTH)))


def _positive(value: float, what: str) -> None:
    if not 0 < value < math.inf:
        raise GristmillError(f"{what} must be above 0 and finite, not {value:g}")
