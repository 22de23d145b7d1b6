"""Guesses from a second, smaller model with a cache of its own.

It reads what the sequence gained since it was last asked, then draws one token after the other. A sampled request's
tokens are drawn from the small model's distribution under the request's own temperature and cuts, which goes along for
the check. Two kinds of request get its likeliest tokens instead, as if they had probability 1: greedy ones, and those
with a seed, whose output must not depend on how many tokens were guessed when.

Shape suffixes: B sequences, K tokens of a draft, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..request import Request
from ..sampling import SamplingParams
from ..sending import on_its_way
from .proposal import Draft

CATCH_UP = 2048  # most tokens the small model reads before one step of the large one


class Piece(NamedTuple):
    """Tokens of a request to be read, the first at position `start`."""

    request: Request
    start: int
    tokens: Sequence[int]


class DraftRunner(Protocol):
    """The small model and its cache, which has room for `max_len` tokens of each running request.

    What is read at a position takes the place of what was there, and all behind it counts as gone.
    """

    max_len: int

    def begin(self, request: Request) -> int:
        """Take a request in; how many of its tokens need not be read, and at least one of them does."""

    def read(self, pieces: Sequence[Piece]) -> Tensor:
        """Logits `[B, V]` in float32 after each piece's last token, V that of the large model."""

    def follow(self, requests: Sequence[Request], positions: Sequence[int], tokens_B: Tensor) -> Tensor:
        """The same after one token each, which lies on the device."""

    def forget(self, request: Request) -> None:
        """Give back what is held for a request; one that nothing is held for is left alone."""


@dataclass(slots=True)
class _Read:
    """What the small model's cache holds of a request: its first `length` tokens, then guesses."""

    preemptions: int
    length: int = 0
    guesses: list[int] = field(default_factory=list)


class DraftProposer:
    """Drafts of all requests together, so that each of their tokens is one small step."""

    def __init__(self, runner: DraftRunner, seed: int | None = None):
        """`seed` makes the draws of requests that are sampled without a seed the same again; for tests."""
        self.runner = runner
        self._seen: dict[int, _Read] = {}
        self._seed = seed
        self._generator: torch.Generator | None = None

    def __len__(self) -> int:
        """Requests of which something is kept."""
        return len(self._seen)

    def ready(self, request: Request) -> bool:
        return request.num_tokens < self.runner.max_len

    @torch.inference_mode()
    def draft(self, requests: Sequence[Request], most: Sequence[int]) -> list[Draft]:
        """A draft of just so many tokens each; empty while a long prompt is still being read."""
        drafts = [Draft()] * len(requests)
        logits_BV, rows = self._catch_up(requests, most)
        if logits_BV is None:
            return drafts
        chosen = [requests[row] for row in rows]
        counts = [min(most[row], self.runner.max_len - requests[row].num_tokens) for row in rows]
        tokens_BK, probs = self._draw_on(chosen, logits_BV, max(counts))
        for place, (row, count) in enumerate(zip(rows, counts, strict=True)):
            tokens = tokens_BK[place]
            seen = self._seen[chosen[place].id]
            seen.guesses = tokens[:-1]  # the last one was not read
            own = None if probs is None or not _drawn(chosen[place].params) else probs[:count, place]
            drafts[row] = Draft(tokens[:count], own)
        return drafts

    def verified(self, request: Request, drafted: int, accepted: int) -> None:
        """Nothing to learn: the next draft begins by comparing its guesses with what the request has become."""

    def forget(self, request: Request) -> None:
        if self._seen.pop(request.id, None) is not None:
            self.runner.forget(request)

    def _catch_up(self, requests: Sequence[Request], most: Sequence[int]) -> tuple[Tensor | None, list[int]]:
        """Read what the cache lacks. Logits of those that are now read to the end, and which they are."""
        pieces, rows = [], []
        budget = CATCH_UP
        for row, request in enumerate(requests):
            if most[row] == 0:
                continue
            seen = self._valid(request)
            tokens = request.ids(seen.length, min(request.num_tokens, seen.length + budget))
            if not tokens:
                break
            pieces.append(Piece(request, seen.length, tokens))
            rows.append(row)
            budget -= len(tokens)
            seen.length += len(tokens)
        if not pieces:
            return None, []
        logits_BV = self.runner.read(pieces)
        whole = [i for i, piece in enumerate(pieces) if piece.start + len(piece.tokens) == piece.request.num_tokens]
        if not whole:
            return None, []
        if len(whole) < len(pieces):
            logits_BV = logits_BV[on_its_way(whole, torch.int64, logits_BV.device)]
        return logits_BV, [rows[i] for i in whole]

    def _valid(self, request: Request) -> _Read:
        """What the cache holds of the request, guesses that came true included, but for its last token: the logits
        behind that one have to be computed again."""
        seen = self._seen.get(request.id)
        if seen is None or seen.preemptions != request.num_preemptions:
            if seen is not None:
                self.runner.forget(request)
            seen = self._seen[request.id] = _Read(request.num_preemptions, self.runner.begin(request))
        for token in request.ids(seen.length, min(seen.length + len(seen.guesses), request.num_tokens)):
            if token != seen.guesses[0]:
                break
            seen.guesses.pop(0)
            seen.length += 1
        seen.guesses = []
        seen.length = min(seen.length, request.num_tokens - 1)
        return seen

    def _draw_on(
        self, requests: Sequence[Request], logits_BV: Tensor, count: int
    ) -> tuple[list[list[int]], Tensor | None]:
        """`count` tokens for each request, and the distributions `[K, B, V]` where any were drawn at random."""
        own = [row for row, request in enumerate(requests) if _drawn(request.params)]
        drawn = on_its_way(own, torch.int64, logits_BV.device)
        params = [requests[row].params for row in own]
        limit = self.runner.max_len - 1
        tokens: list[Tensor] = []
        probs: list[Tensor] = []
        for step in range(count):
            if step:
                positions = [min(request.num_tokens + step - 1, limit) for request in requests]
                logits_BV = self.runner.follow(requests, positions, tokens[-1])
            tokens_B = logits_BV.argmax(dim=-1)
            if own:
                probs_BV = torch.zeros_like(logits_BV)
                probs_BV[drawn] = distribution(logits_BV[drawn], params)
                tokens_B[drawn] = self._draw(probs_BV[drawn])
                probs.append(probs_BV)
            tokens.append(tokens_B)
        return torch.stack(tokens, dim=1).tolist(), torch.stack(probs) if probs else None

    def _draw(self, probs_BV: Tensor) -> Tensor:
        """A token of each row; the race of exponential clocks needs no sum and no word from the device."""
        if self._generator is None:
            self._generator = torch.Generator(probs_BV.device)
            if self._seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(self._seed)
        return (probs_BV / torch.empty_like(probs_BV).exponential_(generator=self._generator)).argmax(dim=-1)


def _drawn(params: SamplingParams) -> bool:
    return not params.greedy and params.seed is None


def distribution(logits_BV: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Probabilities after temperature, `top_k`, `top_p` and `min_p`, in this order; rows sum to 1.

    A draft may come from any distribution; the nearer it is to what the model is sampled from, the more is accepted.
    """
    device, vocab = logits_BV.device, logits_BV.shape[1]
    heat_B = on_its_way([[max(p.temperature, 1e-6)] for p in params], torch.float32, device)
    probs_BV = ((logits_BV - logits_BV.amax(dim=-1, keepdim=True)) / heat_B).softmax(dim=-1)
    if all(p.top_k == 0 and p.top_p == 1 and p.min_p == 0 for p in params):
        return probs_BV
    values_BV, ids_BV = probs_BV.sort(dim=-1, descending=True, stable=True)
    top_k_B = on_its_way([[min(p.top_k or vocab, vocab)] for p in params], torch.int64, device)
    values_BV = values_BV * (torch.arange(vocab, device=device) < top_k_B)
    values_BV = values_BV / values_BV.sum(dim=-1, keepdim=True)
    top_p_B = on_its_way([[p.top_p] for p in params], torch.float32, device)
    min_p_B = on_its_way([[p.min_p] for p in params], torch.float32, device)
    kept_BV = (values_BV.cumsum(dim=-1) - values_BV < top_p_B) & (values_BV >= min_p_B * values_BV[:, :1])
    values_BV = values_BV * kept_BV
    return torch.zeros_like(probs_BV).scatter(1, ids_BV, values_BV / values_BV.sum(dim=-1, keepdim=True))
