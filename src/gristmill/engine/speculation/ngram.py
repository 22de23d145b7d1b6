"""Guesses from the text itself: what followed the same tokens the last time (prompt lookup). Torch-free.

Replies often repeat their prompt or themselves: edited documents, code, quotations, tables. Each request has an index
of its own tokens: for each length n, where each run of n tokens was last followed by another. The tokens behind that
place are the guess. A place that went on to be right is followed further ahead of any look-up: it is the longer match.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..request import Request
from .config import SpeculationConfig
from .proposal import Draft

CATCH_UP = 4096  # most tokens indexed in one call, so that no step waits long for a huge prompt
BULK = 16  # more new tokens than this are indexed together
MAX_PAUSE = 64  # most tokens without a try after misses


class _Index:
    """One request's tokens, and the last place behind each run of them."""

    __slots__ = ("ids", "matched", "misses", "places", "resume", "source")

    def __init__(self, lengths: range):
        self.ids: list[int] = []
        self.places: dict[int, dict[tuple[int, ...], int]] = {n: {} for n in lengths}
        self.source = 0  # the place whose tokens are being repeated: ids[source] is the guess for the next token
        self.matched = 0  # tokens before it that equal the last ones
        self.misses = 0  # drafts in a row without an accepted token
        self.resume = 0  # length of the sequence at which to try again

    def extend(self, tokens: Sequence[int]) -> None:
        # A run is entered once its next token is known, so a look-up of the last tokens never finds themselves.
        if len(tokens) > BULK:
            self._extend_bulk(tokens)
            return
        ids = self.ids
        for token in tokens:
            end = len(ids)
            for n, places in self.places.items():
                if end >= n:
                    places[tuple(ids[end - n :])] = end
            if self.matched:
                if ids[self.source] == token:
                    self.source += 1
                    self.matched += 1
                else:
                    self.matched = 0
            ids.append(token)

    def _extend_bulk(self, tokens: Sequence[int]) -> None:
        ids, before = self.ids, len(self.ids)
        ids += tokens
        self.matched = 0
        for n, places in self.places.items():
            ends = range(max(before, n), len(ids))
            shifted = [ids[ends.start - n + j : ends.stop - n + j] for j in range(n)]
            places.update(zip(zip(*shifted, strict=True), ends, strict=True))

    def find(self, longest: int) -> bool:
        """Whether the last tokens have stood before; `source` is then the place behind."""
        if self.matched < longest:
            ids = self.ids
            for n, places in self.places.items():
                place = places.get(tuple(ids[-n:]))
                if place is None:  # then no longer run is known either
                    break
                if n > self.matched:
                    self.source, self.matched = place, n
        return self.matched > 0

    def guess(self, most: int) -> list[int]:
        """What followed; where that reaches the end of the text, it goes round."""
        piece = self.ids[self.source : self.source + most]
        return piece if len(piece) == most else (piece * (most // len(piece) + 1))[:most]


class NgramProposer:
    """The indices of all requests that drafts were asked for."""

    def __init__(self, config: SpeculationConfig):
        self.config = config
        self._lengths = range(config.min_ngram, config.max_ngram + 1)
        self._indices: dict[int, _Index] = {}

    def __len__(self) -> int:
        """Requests of which something is kept."""
        return len(self._indices)

    def ready(self, request: Request) -> bool:
        return self._found(request) is not None

    def propose(self, request: Request, most: int | None = None) -> list[int]:
        """Up to `most` (`num_tokens`) tokens that followed the request's last ones before; none where they are new.

        The first calls for a long prompt only read it, `CATCH_UP` tokens each.
        """
        index = self._found(request)
        return index.guess(self.config.num_tokens if most is None else most) if index is not None else []

    def draft(self, requests: Sequence[Request], most: Sequence[int]) -> list[Draft]:
        return [Draft(self.propose(request, count)) for request, count in zip(requests, most, strict=True)]

    def verified(self, request: Request, drafted: int, accepted: int) -> None:
        """After misses a request rests for 2, 4, 8 ... tokens."""
        index = self._indices.get(request.id)
        if index is None or drafted == 0:
            return
        index.misses = 0 if accepted else index.misses + 1
        if index.misses:
            index.resume = len(index.ids) + min(2**index.misses, MAX_PAUSE)

    def forget(self, request: Request) -> None:
        self._indices.pop(request.id, None)

    def _found(self, request: Request) -> _Index | None:
        """The request's index, where it has a guess and is not resting. A long match ends a rest: it shows that
        guesses have been right since."""
        index = self._indices.get(request.id)
        if index is None:
            index = self._indices[request.id] = _Index(self._lengths)
        length, known = request.num_tokens, len(index.ids)
        if known < length:
            index.extend(request.ids(known, min(length, known + CATCH_UP)))
            if len(index.ids) < length:
                return None
        longest = self.config.max_ngram
        if not index.find(longest) or (length < index.resume and index.matched < 2 * longest):
            return None
        return index
