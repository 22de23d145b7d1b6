"""A draft: guessed tokens behind a sequence's last; who makes them, and what cuts them. Torch-free.

A step computes the last token and the k tokens of a draft together, and its k + 1 rows of logits yield between 1 and
k + 1 tokens. A cut must not depend on the value of a token that was drawn at random, else what is left is no sample of
the drafter's distribution and the output is no longer the model's. So a token that cannot be accepted stays where the
draft brings probabilities (the model refuses it, with the right distribution after it) and goes where it does not.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from ..request import Request

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ..constraints.matcher import Matcher


@dataclass(frozen=True, slots=True)
class Draft:
    """Guessed tokens. `probs` are the distributions that they were drawn from, `[len(tokens), vocabulary]`; None where
    nothing was drawn at random: each token then counts as having had probability 1."""

    tokens: list[int] = field(default_factory=list)
    probs: Tensor | None = None

    def first(self, count: int) -> Draft:
        """Only the first tokens."""
        if count >= len(self.tokens):
            return self
        return Draft(self.tokens[:count], None if self.probs is None else self.probs[:count])


class Proposer(Protocol):
    """Makes drafts. What it keeps of a request goes with `forget`."""

    def ready(self, request: Request) -> bool:
        """Whether it would have a draft for what the host knows of the request."""

    def draft(self, requests: Sequence[Request], most: Sequence[int]) -> list[Draft]:
        """A draft for each request, of at most so many tokens; the host knows all tokens of these requests."""

    def verified(self, request: Request, drafted: int, accepted: int) -> None:
        """So many tokens of the request's last draft were computed, and so many of them accepted."""

    def forget(self, request: Request) -> None:
        """The request has ended."""


def room(request: Request, max_model_len: int) -> int:
    """Most tokens a draft may have: the step yields one more than it accepts, and neither `max_tokens` nor the context
    may be passed."""
    left = min(request.params.max_tokens - len(request.output_ids), max_model_len - request.num_tokens)
    return max(left - 1, 0)


def cut_at_end(request: Request, draft: Draft, end_ids: Collection[int]) -> Draft:
    """The draft without what stands behind a token that ends the sequence. An end that `min_tokens` forbids is left
    out too, where the draft has no probabilities."""
    done = len(request.output_ids)
    for place, token in enumerate(draft.tokens):
        if token in end_ids:
            forbidden = done + place < request.params.min_tokens
            return draft.first(place if forbidden and draft.probs is None else place + 1)
    return draft


def cut_to_grammar(matcher: Matcher, draft: Draft, masks: np.ndarray) -> Draft:
    """The draft up to the first token that the grammar refuses, which stays as the last where there are probabilities.

    `masks`, int32 `[len(tokens) + 1, ceil(vocabulary / 32)]`, receives the mask of each row of logits that the step
    will have: row j is what may stand at the j-th place of the draft. The matcher is left as it was.
    """
    accepted = 0
    try:
        for token in draft.tokens:
            matcher.mask_into(masks[accepted])
            if not matcher.accept(token):
                kept = draft.first(accepted if draft.probs is None else accepted + 1)
                masks[accepted + 1 :] = -1  # behind a refused token: never looked at, but no row without a choice
                return kept
            accepted += 1
        matcher.mask_into(masks[accepted])
    finally:
        if accepted:
            matcher.rollback(accepted)
    return draft
