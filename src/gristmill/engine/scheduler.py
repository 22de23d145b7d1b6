"""Which sequences the model sees in the next step, and how many tokens of each. Pure Python: no torch.

There is no prefill phase and no decode phase. A request has tokens that the model has yet to see: the whole prompt at
first, one token after each sampling. A step hands out a token budget, first to the sequences that are one token behind,
so that a long prompt never holds up running replies; then to prompts that are half way through; then to waiting
requests by priority and arrival, while a slot and blocks of the cache are free. A prompt that the budget cuts goes on
next step.

What is scheduled is booked at once, as if it were done, so that the next step can be scheduled and launched before the
tokens of this one are known. Blocks that are given up meanwhile are held back until no launched step writes them.

Where a running sequence finds no block to grow into, the one of lowest priority, latest arrived, gives up its own and
waits in its old place in the queue; it computes its tokens again, as far as the cache has forgotten them. The first in
that order is never the one that gives up, so it always goes on, and every request comes to its end.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .blocks import BlockPool
from .config import EngineConfig
from .request import Request

GROWTH_SHARE = 100  # one block in so many is kept free for running sequences when another one is admitted


class Chunk(NamedTuple):
    """`num_tokens` tokens of a request, from `start`; `samples` when a token is to be drawn after them.

    The last `len(drafts)` tokens are guesses that stand in no request yet: 1 to 1 + len(drafts) tokens come of it.
    """

    request: Request
    start: int
    num_tokens: int
    samples: bool
    drafts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """What the model does at once. Chunks of one token stand first, in the order of slots; then shorter before longer.

    `copies` are pairs of blocks, (source, destination): all sources are read, then all destinations are written, before
    the step writes anything. `decode_only`: every chunk is one token, and draws one.
    """

    number: int
    chunks: list[Chunk]
    copies: list[tuple[int, int]]
    decode_only: bool


class Scheduler:
    """Waiting and running requests and what they hold. A request is in exactly one of waiting, running, gone."""

    def __init__(self, config: EngineConfig, pool: BlockPool, on_leave: Callable[[int], None] = lambda slot: None):
        """`on_leave` is told each slot whose request leaves it."""
        self._on_leave = on_leave
        self.config = config
        self.pool = pool
        self.waiting: dict[int, Request] = {}
        self.running: dict[int, Request] = {}
        # Priority and arrival of each, and its id, as beams of one search arrive together; the smallest goes first.
        self._order: dict[int, tuple[int, int, int]] = {}
        self._arrivals = 0
        self._queue: list[tuple[int, int, int, Request]] = []  # the waiting, the first at the end (so: negated order)
        self._slots: list[Request | None] = [None] * config.max_num_seqs
        self._free_slots = list(range(config.max_num_seqs))  # a heap: low slots first keeps the live rows together
        self._steps = 0
        self._under_way: set[int] = set()  # numbers of the steps that are launched and not done
        self._held_back: deque[tuple[int, list[int]]] = deque()  # blocks given up while such a step was the last
        self._too_few = -1, 0  # a waiting request, and the number of free blocks that were too few for it
        self._batch_is_open = False  # batching "static": whether more may join what runs

    def add(self, request: Request) -> None:
        """Queue a request. It may hold blocks already, as `BlockPool.fork` gives them."""
        assert request.id not in self._order
        if request.arrival is None:
            self._arrivals += 1
            request.arrival = self._arrivals
        self._order[request.id] = request.priority, request.arrival, request.id
        self._enqueue(request)

    def remove(self, request: Request) -> None:
        """Take a request out, wherever it is; one that is gone already is left alone."""
        if self._order.get(request.id) is None:
            return
        if self.running.pop(request.id, None) is not None:
            self._free_slot(request)
        else:
            self._dequeue(request)
        self._give_up_blocks(request)
        del self._order[request.id]

    def took(self, request: Request, token_ids: Sequence[int]) -> None:
        """What a sampling chunk gave: the drafts that were right and the token drawn behind them, or nothing (the step
        failed, or the request has ended). Called once for each such chunk, in the order of the steps."""
        request.in_flight -= 1
        if token_ids:
            request.output_ids += token_ids
            request.drafts = []  # what there was stood behind another token
        if not request.in_flight:  # wrong drafts were not computed after all; the token drawn last is yet to be
            request.num_computed = min(request.num_computed, request.num_tokens - 1)

    def done(self, step: Step) -> None:
        """The device is done with a step, well or not: what it wrote is written."""
        self._under_way.discard(step.number)
        first = min(self._under_way, default=self._steps + 1)
        while self._held_back and self._held_back[0][0] < first:
            self.pool.drop(self._held_back.popleft()[1])

    @property
    def num_unfinished(self) -> int:
        return len(self._order)

    def schedule(self) -> Step | None:
        """The next step, which the caller launches; None where nothing can be done before more is known."""
        planned = _Planned(self.config.max_num_batched_tokens)
        prompts = self._plan_decoding(planned)
        if prompts:
            prompts.sort(key=lambda request: self._order[request.id])
            for request in prompts:
                self._plan_prompt(planned, request)
        if planned.preempted:
            planned.drop_preempted()
        for request in planned.full:
            self.pool.computed(request)
        if self._queue and self._free_slots and not planned.short and self._may_admit():
            self._admit(planned)
        if not planned.chunks:
            return None
        if planned.mixed:
            planned.chunks.sort(key=_tokens_and_slot)
        self._steps += 1
        self._under_way.add(self._steps)
        copies = [(source, copy) for _, source, copy in planned.copies]
        decode_only = not planned.mixed or all(c.num_tokens == 1 and c.samples for c in planned.chunks)
        return Step(self._steps, planned.chunks, copies, decode_only)

    def check(self) -> None:
        """AssertionError where a slot or a block is held by none or by too many, or a request is in two places."""
        slots = {slot: request for slot, request in enumerate(self._slots) if request is not None}
        assert all(self.running.get(request.id) is request for request in slots.values()), "a slot of one not running"
        assert all(slots.get(r.slot) is r for r in self.running.values() if r.slot is not None), "a slot taken twice"
        assert len(slots) == len(self.running), f"{len(self.running)} run in {len(slots)} slots"
        assert sorted([*self._free_slots, *slots]) == list(range(len(self._slots))), "slots leaked or shared"
        assert all(request.slot is None for request in self.waiting.values())
        assert {*self.waiting, *self.running} == set(self._order), "neither waiting nor running, and not gone"
        assert len(self.waiting) + len(self.running) == len(self._order), "both waiting and running"
        assert self._queue == sorted(self._queue, key=lambda entry: entry[:3])
        assert {entry[3].id for entry in self._queue} == set(self.waiting), "the queue is not what waits"
        assert self._under_way or not self._held_back, "blocks are held back for no step"
        held_back = [blocks for _, blocks in self._held_back]
        self.pool.check([*self.waiting.values(), *self.running.values()], held_back)

    # What runs.

    def _plan_decoding(self, planned: _Planned) -> list[Request]:
        """Plan one token, and drafts, of every running request that is one token behind; returns those further behind.

        This loop is what a step costs the host: it calls nothing where a sequence stays inside its block.
        """
        size, longest = self.pool.block_size, self.config.max_model_len
        chunks, forked = planned.chunks, self.pool.forked
        spare = planned.budget - len(self.running)  # for drafts: everyone gets a token first
        prompts: list[Request] = []
        for request in self._slots:
            if request is None:
                continue
            start = request.num_computed
            known = len(request.prompt_ids) + len(request.output_ids)
            behind = known + request.in_flight - start
            if behind != 1:
                if behind > 1:
                    prompts.append(request)
                continue
            drafts: tuple[int, ...] = ()
            if request.in_flight:
                output = known + request.in_flight - len(request.prompt_ids)
                if request.needs_host or output >= request.params.max_tokens or start + 1 >= longest:
                    continue
            elif request.drafts:
                drafts = self._drafts(request, spare)
                spare -= len(drafts)
            end = start + 1 + len(drafts)
            if (end > len(request.blocks) * size or forked) and not self._has_room(planned, request, end):
                continue
            request.num_computed = end
            request.in_flight += 1
            chunks.append(Chunk(request, start, end - start, True, drafts))
            if drafts:
                request.drafts = []
                planned.mixed = True
                planned.full.append(request)
            elif min(end, known) % size == 0:  # a block is full, and all its tokens are known
                planned.full.append(request)
        planned.budget -= sum([chunk.num_tokens for chunk in chunks]) if planned.mixed else len(chunks)
        return prompts

    def _drafts(self, request: Request, spare: int) -> tuple[int, ...]:
        """As many drafts as the budget, `max_tokens` and the context have room for, a token being drawn behind them."""
        tokens = request.params.max_tokens - len(request.output_ids)
        room = min(tokens, self.config.max_model_len - request.num_tokens) - 1
        return tuple(request.drafts[: max(0, min(room, spare))])

    def _plan_prompt(self, planned: _Planned, request: Request) -> None:
        """Plan the next tokens of a running request that is several tokens behind."""
        if request.slot is None:  # preempted by one before it
            return
        count = min(request.num_pending, planned.budget)
        if count and self._has_room(planned, request, request.num_computed + count):
            self._plan(planned, request, count)
            planned.full.append(request)

    @staticmethod
    def _plan(planned: _Planned, request: Request, count: int) -> None:
        samples = count == request.num_pending
        planned.chunks.append(Chunk(request, request.num_computed, count, samples))
        planned.budget -= count
        planned.mixed = True
        request.num_computed += count
        request.in_flight += samples

    def _has_room(self, planned: _Planned, request: Request, num_tokens: int) -> bool:
        """Blocks for `num_tokens` tokens of a running request, taken from others if need be. False where it must wait,
        for a step under way to be done with the blocks, or because it was itself the one to give up its own."""
        while not self.pool.grow(request, num_tokens):
            planned.short = True
            if self._held_back:
                return False
            if self._take_from_waiting():
                continue
            victim = max(self.running.values(), key=lambda running: self._order[running.id])
            self._preempt(victim)
            planned.preempted = True
            if victim is request:
                return False
        if self.pool.forked:
            self._make_writable(planned, request)
        return True

    def _make_writable(self, planned: _Planned, request: Request) -> None:
        pair = self.pool.writable(request)
        if pair is not None:
            planned.copies.append((request, *pair))

    def _take_from_waiting(self) -> bool:
        """Let the last waiting request that holds blocks (forked ones do) give them up; whether there was one."""
        for *_, request in self._queue:
            if request.blocks:
                self._give_up_blocks(request)
                return True
        return False

    def _preempt(self, request: Request) -> None:
        """Back to the queue, in the old place. What is in flight for it is awaited there."""
        del self.running[request.id]
        self._free_slot(request)
        self._give_up_blocks(request)
        request.num_preemptions += 1
        self._enqueue(request)

    def _give_up_blocks(self, request: Request) -> None:
        blocks, request.blocks = request.blocks, []
        request.num_computed = 0
        request.drafts = []
        if not blocks:
            return
        if self._under_way:
            self._held_back.append((self._steps, blocks))
        else:
            self.pool.drop(blocks)

    # What waits.

    def _may_admit(self) -> bool:
        if self.config.batching == "continuous":
            return True
        if not self.running:
            self._batch_is_open = True
        return self._batch_is_open

    def _admit(self, planned: _Planned) -> None:
        """Let waiting requests run, in their order, until a slot, a block or the budget is wanting."""
        naive = self.config.batching == "naive"
        while planned.budget and self._queue and self._free_slots:
            request = self._queue[-1][3]
            if request.in_flight or not self._take_blocks(request):
                break
            count = min(request.num_pending, planned.budget)
            if count < request.num_pending <= self.config.max_num_batched_tokens and not self.config.chunked_prefill:
                self._undo(request)  # one step can hold it whole, and some later one will
                break
            self._queue.pop()
            del self.waiting[request.id]
            request.slot = heapq.heappop(self._free_slots)
            self._slots[request.slot] = request
            self.running[request.id] = request
            self.pool.query_tokens += request.num_tokens
            self.pool.hit_tokens += request.num_cached
            if self.pool.forked:
                self._make_writable(planned, request)
            self._plan(planned, request, count)
            self.pool.computed(request)  # at once: the next one may begin like this one
            if naive:
                break
        if naive or planned.budget or not (self._queue and self._free_slots):
            self._batch_is_open = False

    def _take_blocks(self, request: Request) -> bool:
        """Blocks for all that a waiting request has yet to compute, in as far as the cache does not hold it already."""
        pool = self.pool
        alone = not self.running and not self._under_way
        if not alone and self._too_few[0] == request.id and pool.num_free <= self._too_few[1]:
            return False
        was_forked = bool(request.blocks)
        # Who asks for the prompt's own log-probabilities needs the model to see all of it.
        seen = request.params.prompt_logprobs is None or bool(request.output_ids)
        if seen and not was_forked:
            request.num_computed = pool.reuse(request)
        request.num_cached = request.num_computed
        while not pool.grow(request, request.num_tokens, keep=0 if alone else pool.num_blocks // GROWTH_SHARE):
            if not alone:
                if not was_forked:
                    self._undo(request)
                self._too_few = request.id, pool.num_free
                return False
            # Nothing runs that would free blocks; those that wait behind this one hold them.
            holder = next(waiting for *_, waiting in self._queue if waiting.blocks and waiting is not request)
            self._give_up_blocks(holder)
        return True

    def _undo(self, request: Request) -> None:
        """A request is not admitted yet: let go of what it took."""
        self.pool.release(request)
        request.num_computed = request.num_cached = 0

    # Where a request is.

    def _enqueue(self, request: Request) -> None:
        self.waiting[request.id] = request
        priority, arrival, number = self._order[request.id]
        insort(self._queue, (-priority, -arrival, -number, request))

    def _dequeue(self, request: Request) -> None:
        del self.waiting[request.id]
        priority, arrival, number = self._order[request.id]
        del self._queue[bisect_left(self._queue, (-priority, -arrival, -number))]

    def _free_slot(self, request: Request) -> None:
        assert request.slot is not None
        self._slots[request.slot] = None
        heapq.heappush(self._free_slots, request.slot)
        self._on_leave(request.slot)
        request.slot = None


class _Planned:
    """A step in the making."""

    def __init__(self, budget: int):
        self.budget = budget  # tokens left
        self.chunks: list[Chunk] = []
        self.copies: list[tuple[Request, int, int]] = []
        self.full: list[Request] = []  # may have filled a block
        self.mixed = False  # whether there is more than single tokens in the order of slots
        self.short = False  # whether blocks were wanting: nobody is admitted then
        self.preempted = False

    def drop_preempted(self) -> None:
        """Requests that were planned and then had to give up their blocks to another are not in this step."""
        for chunk in self.chunks:
            if chunk.request.slot is None:
                chunk.request.in_flight -= chunk.samples
                self.budget += chunk.num_tokens
        self.chunks = [chunk for chunk in self.chunks if chunk.request.slot is not None]
        self.copies = [copy for copy in self.copies if copy[0].slot is not None]
        self.full = [request for request in self.full if request.slot is not None]


def _tokens_and_slot(chunk: Chunk) -> tuple[int, int | None]:
    return chunk.num_tokens, chunk.request.slot
