"""Which sequences the model sees in the next step, and how many tokens of each. Pure Python: no torch.

There is no prefill phase and no decode phase. A request has tokens that the model has yet to see: the whole prompt at
first, one token after each sampling. A step hands out a token budget, first to the sequences that are one token behind,
so that a long prompt never holds up running replies; then to a prompt that is half way through; then to waiting
requests in the order of arrival, while a slot of the cache is free. A prompt that the budget cuts goes on next step.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from dataclasses import dataclass

from .request import Request


@dataclass(frozen=True, slots=True)
class Chunk:
    """`num_tokens` tokens of a request, from `start`; `last` when a token is to be sampled after them."""

    request: Request
    start: int
    num_tokens: int
    last: bool


class Scheduler:
    """Waiting and running requests and the slots they hold. A request is in exactly one of waiting, running, gone."""

    def __init__(self, max_num_seqs: int, max_num_batched_tokens: int):
        assert 0 < max_num_seqs <= max_num_batched_tokens
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.waiting: OrderedDict[int, Request] = OrderedDict()
        self.running: dict[int, Request] = {}
        self._free_slots = list(range(max_num_seqs))  # a heap: low slots first keeps the live rows together

    def add(self, request: Request) -> None:
        assert request.id not in self.waiting
        assert request.id not in self.running
        self.waiting[request.id] = request

    def schedule(self) -> list[Chunk]:
        """The next step: at most `max_num_batched_tokens` tokens, at least one of every sequence being decoded.

        Shorter chunks stand first, those of one token in the order of their slots: the cache reads neighbouring slots
        without copying and computes prompts of equal length together.
        """
        budget = self.max_num_batched_tokens
        chunks: list[Chunk] = []
        unfinished_prompts: list[Request] = []
        for request in self.running.values():
            if request.num_pending == 1:
                chunks.append(Chunk(request, request.num_computed, 1, last=True))
            else:
                unfinished_prompts.append(request)
        budget -= len(chunks)
        for request in unfinished_prompts:
            budget -= self._append(chunks, request, budget)
        while self.waiting and self._free_slots and budget > 0:
            _, request = self.waiting.popitem(last=False)
            request.slot = heapq.heappop(self._free_slots)
            self.running[request.id] = request
            budget -= self._append(chunks, request, budget)
        chunks.sort(key=lambda chunk: (chunk.num_tokens, chunk.request.slot))
        return chunks

    @staticmethod
    def _append(chunks: list[Chunk], request: Request, budget: int) -> int:
        count = min(request.num_pending, budget)
        if count:
            chunks.append(Chunk(request, request.num_computed, count, last=count == request.num_pending))
        return count

    def computed(self, chunk: Chunk) -> None:
        """The chunk's keys and values are in the cache."""
        chunk.request.num_computed += chunk.num_tokens

    def remove(self, request: Request) -> None:
        """Take a request out, wherever it is, and free its slot; one that is gone already is left alone."""
        self.waiting.pop(request.id, None)
        if self.running.pop(request.id, None) is not None:
            assert request.slot is not None
            heapq.heappush(self._free_slots, request.slot)
            request.slot = None

    @property
    def num_unfinished(self) -> int:
        return len(self.waiting) + len(self.running)

    def check(self) -> None:
        """Every slot is either free or held by exactly one running request."""
        held = [request.slot for request in self.running.values()]
        slots = sorted([*self._free_slots, *(slot for slot in held if slot is not None)])
        assert slots == list(range(self.max_num_seqs)), f"slots leaked or shared: free {self._free_slots}, held {held}"
        assert all(request.slot is None for request in self.waiting.values())
