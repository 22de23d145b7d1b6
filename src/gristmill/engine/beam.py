"""Beam search: of all sequences that grew from one prompt, the `width` likeliest go on after each token.

This is the bookkeeping alone, in pure Python: it is told the likeliest next tokens of every running beam and answers
which beams fork, go on and end. The engine runs each beam as a request of its own; a fork shares its parent's blocks.

The search is transformers' (its default, `early_stopping=False`): an end token counts where its sequence is among the
`width` best continuations; a finished sequence's score is the sum of its log probabilities / length ** length_penalty,
its end token included; and the search is over once there are `width` finished sequences and the best running one, were
it to end now, would not be better than the worst of them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from .request import TokenLogprob


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A finished sequence. `stop`: its last token is an end token; `length`: there was no room for more."""

    tokens: list[int]
    logprobs: list[float]
    score: float
    finish_reason: Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Beam:
    """A running sequence: what it has generated, and the sum of its log probabilities."""

    id: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    total: float = 0.0


@dataclass(frozen=True, slots=True)
class Turn:
    """What becomes of the beams, to be done in this order: `forks` (parent, new beam) share what the parent has,
    `ended` beams give it back, and each beam of `tokens`, which are then all there are, goes on with its token."""

    forks: list[tuple[int, int]]
    ended: list[int]
    tokens: dict[int, int]


class BeamSearch:
    """The search from one prompt. It begins with one running beam, of id 0, that has generated nothing."""

    def __init__(self, width: int, max_tokens: int, end_ids: Collection[int] = (), length_penalty: float = 1.0):
        """`max_tokens`: most tokens of a sequence, what the context has room for at most."""
        assert width > 0
        assert max_tokens > 0
        self.width = width
        self.max_tokens = max_tokens
        self.end_ids = frozenset(end_ids)
        self.length_penalty = length_penalty
        self.running = [Beam(0)]
        self.finished: list[Hypothesis] = []  # the best `width`, best first
        self._next_id = 1

    @property
    def num_candidates(self) -> int:
        """Likeliest tokens that `advance` wants of each beam: so many that `width` continuations are left where every
        beam's end tokens are among the best."""
        return max(2, 1 + len(self.end_ids)) * self.width

    @property
    def done(self) -> bool:
        return not self.running

    def advance(self, top: Mapping[int, Sequence[TokenLogprob]]) -> Turn:
        """One more token. `top` has the `num_candidates` likeliest tokens of each running beam (all there are, in a
        smaller vocabulary) with their log probabilities, best first."""
        assert not self.done, "the search is over"
        length = len(self.running[0].tokens) + 1
        candidates = [
            (beam.total + logprob, beam, token, logprob)
            for beam in self.running
            for token, logprob in top[beam.id]
            if logprob > -math.inf
        ]
        candidates.sort(key=lambda candidate: -candidate[0])
        going_on = []
        for rank, (total, beam, token, logprob) in enumerate(candidates[: self.num_candidates]):
            if token not in self.end_ids and length < self.max_tokens:
                going_on.append((total, beam, token, logprob))
            elif rank < self.width:
                reason: Literal["stop", "length"] = "stop" if token in self.end_ids else "length"
                score = total / length**self.length_penalty
                self.finished.append(Hypothesis([*beam.tokens, token], [*beam.logprobs, logprob], score, reason))
        self.finished.sort(key=lambda hypothesis: -hypothesis.score)
        del self.finished[self.width :]
        del going_on[self.width :]
        if going_on and not self._may_improve(going_on[0][0], length):
            going_on = []
        return self._turn(going_on)

    def best(self, n: int = 1) -> list[Hypothesis]:
        """The best finished sequences, at most `width`; fewer than n where the vocabulary allowed no more."""
        return self.finished[:n]

    def _may_improve(self, total: float, length: int) -> bool:
        """Whether the best running beam, of this sum of log probabilities, can still win."""
        return len(self.finished) < self.width or total / length**self.length_penalty > self.finished[-1].score

    def _turn(self, going_on: Sequence[tuple[float, Beam, int, float]]) -> Turn:
        """The first continuation of a beam keeps its id, further ones are forks of it."""
        forks, tokens = [], {}
        running = []
        for total, beam, token, logprob in going_on:
            name = beam.id
            if name in tokens:
                name, self._next_id = self._next_id, self._next_id + 1
                forks.append((beam.id, name))
            tokens[name] = token
            running.append(Beam(name, [*beam.tokens, token], [*beam.logprobs, logprob], total))
        ended = [beam.id for beam in self.running if beam.id not in tokens]
        self.running = running
        return Turn(forks, ended, tokens)
