"""A machine that executes the scheduler's steps on symbols, and a driver that plays engine and users against it.

Every place of every block holds the number of the prefix whose last token was computed there: keys and values depend on
all tokens before, so two prefixes have one number only if they are the same. A chunk must find, through its block
table, exactly the numbers of its own tokens. What is drawn is a function of the prefix alone, so that every output can
be compared with the sequence on its own. All randomness comes from one seed.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from dataclasses import dataclass, field

from gristmill.engine.blocks import BlockPool
from gristmill.engine.config import EngineConfig
from gristmill.engine.request import Request
from gristmill.engine.sampling import SamplingParams
from gristmill.engine.scheduler import Scheduler

EOS, VOCAB = 0, 4
NOTHING = -1
Owner = tuple[int, int]  # a request, and which time it runs


class Language:
    """Which token follows which prefix."""

    def __init__(self):
        self.numbers: dict[tuple[int, int], int] = {}

    def number(self, parent: int, token: int) -> int:
        return self.numbers.setdefault((parent, token), len(self.numbers) + 1)

    def next(self, number: int) -> int:
        mixed = number * 2654435761 & 0xFFFFFFFF
        return EOS if mixed >> 28 == 0 else 1 + (mixed >> 16) % (VOCAB - 1)

    def continuation(self, ids: list[int], count: int) -> list[int]:
        number = 0
        for token in ids:
            number = self.number(number, token)
        new: list[int] = []
        while len(new) < count and (not new or new[-1] != EOS):
            new.append(self.next(number))
            number = self.number(number, new[-1])
        return new


@dataclass
class Launched:
    step: object
    results: list[tuple[Request, list[int]]]  # of the chunks that draw
    writes: dict[int, Owner]


class Machine:
    """The device: blocks, and a row of tokens (and of their prefixes' numbers) for each slot."""

    def __init__(self, config: EngineConfig, language: Language):
        self.size = config.block_size
        self.language = language
        self.blocks = [[NOTHING] * self.size for _ in range(config.num_blocks)]
        self.placed: list[Owner | None] = [None] * config.max_num_seqs
        self.tokens: list[list[int]] = [[] for _ in range(config.max_num_seqs)]
        self.numbers: list[list[int]] = [[] for _ in range(config.max_num_seqs)]

    def launch(self, step, broken: bool = False) -> Launched:
        """Copies, then all writes, then all reads, as every layer of a model does. A broken step leaves garbage."""
        sources = [list(self.blocks[source]) for source, _ in step.copies]
        for source, (_, destination) in zip(sources, step.copies, strict=True):
            self.blocks[destination] = source
        writes: dict[int, Owner] = {}
        for chunk in step.chunks:
            self._place(chunk.request)
            self._write(chunk, writes, broken)
        assert {destination for _, destination in step.copies} <= set(writes), "a copy for nothing"
        results = []
        if not broken:
            for chunk in step.chunks:
                self._read(chunk)
            results = [(chunk.request, self._draw(chunk)) for chunk in step.chunks if chunk.samples]
        return Launched(step, results, writes)

    def _place(self, request: Request) -> None:
        slot, owner = request.slot, (request.id, request.num_preemptions)
        if self.placed[slot] != owner:
            self.placed[slot], self.tokens[slot], self.numbers[slot] = owner, [], []
            self._extend(slot, request.prompt_ids + request.output_ids)

    def _extend(self, slot: int, ids: list[int]) -> None:
        numbers = self.numbers[slot]
        for token in ids:
            numbers.append(self.language.number(numbers[-1] if numbers else 0, token))
        self.tokens[slot] += ids

    def _write(self, chunk, writes: dict[int, Owner], broken: bool) -> None:
        request, slot = chunk.request, chunk.request.slot
        known = chunk.start + chunk.num_tokens - len(chunk.drafts)
        assert known <= len(self.tokens[slot]), "a token is computed before it is drawn"
        assert chunk.samples == (known == len(self.tokens[slot])), "a token is drawn in the middle, or not at the end"
        numbers = self.numbers[slot][chunk.start : known]
        for token in chunk.drafts:
            numbers.append(self.language.number(numbers[-1], token))
        owner = (request.id, request.num_preemptions)
        for position, number in enumerate(numbers, chunk.start):
            block = request.blocks[position // self.size]
            assert writes.setdefault(block, owner) == owner, f"block {block} is written for two requests in one step"
            self.blocks[block][position % self.size] = NOTHING if broken else number

    def _read(self, chunk) -> None:
        size, expected = self.size, self.numbers[chunk.request.slot]
        end = chunk.start + chunk.num_tokens - len(chunk.drafts)
        for index, start in enumerate(range(0, end, size)):
            count = min(size, end - start)
            found = self.blocks[chunk.request.blocks[index]][:count]
            wanted = expected[start : start + count]
            assert found == wanted, f"request {chunk.request.id} finds {found} at {start}, not {wanted}"

    def _draw(self, chunk) -> list[int]:
        slot = chunk.request.slot
        drawn = []
        for draft in (*chunk.drafts, None):
            token = self.language.next(self.numbers[slot][-1])
            drawn.append(token)
            self._extend(slot, [token])
            if token != draft:
                break
        return drawn


@dataclass
class World:
    """One random run."""

    seed: int
    config: EngineConfig | None = None
    pressure: float = 0.5  # arrivals a turn
    figures: Counter = field(default_factory=Counter)

    def __post_init__(self):
        self.random = random.Random(self.seed)
        self.config = self.config or random_config(self.random)
        self.pool = BlockPool(self.config.num_blocks, self.config.block_size, self.config.prefix_caching)
        self.scheduler = Scheduler(self.config, self.pool)
        self.language = Language()
        self.machine = Machine(self.config, self.language)
        self.under_way: deque[Launched] = deque()
        self.stem = [self.random.randrange(1, VOCAB) for _ in range(self.config.max_model_len)]
        self.requests = 0
        self.arrivals: dict[int, tuple[int, int, int]] = {}
        self.given: dict[int, list[int]] = {}  # output that a forked request began with
        self.held_up: Counter = Counter()

    # What users do.

    def arrive(self) -> None:
        draw, longest = self.random, self.config.max_model_len
        length = draw.randint(1, longest - 1)
        shared = draw.randint(0, length) if draw.random() < 0.7 else 0
        ids = self.stem[:shared] + [draw.randrange(1, VOCAB) for _ in range(length - shared)]
        params = SamplingParams(max_tokens=draw.randint(1, longest))
        priority = draw.choice([0, 0, 0, -1, 1])
        request = Request(self.requests, ids, params, priority=priority)
        if draw.random() < 0.15:
            request.matcher = object()
        self._add(request)
        if draw.random() < 0.15:  # the same prompt again, at once
            self._add(Request(self.requests, list(ids), params, priority=priority))

    def fork(self) -> None:
        # Nothing under way may write what is shared: after a preemption a step can compute tokens and draw none.
        written = {chunk.request.id for launched in self.under_way for chunk in launched.step.chunks}
        running = [r for r in self.scheduler.running.values() if r.id not in written]
        parents = [r for r in running if r.blocks and r.output_ids and not r.in_flight]
        if not parents:
            return
        parent = self.random.choice(parents)
        output = parent.output_ids[: self.random.randint(1, len(parent.output_ids))]
        output[-1] = self.random.randrange(1, VOCAB)
        child = Request(self.requests, parent.prompt_ids, parent.params, output_ids=output)
        child.priority = parent.priority
        if child.num_tokens >= self.config.max_model_len or len(output) >= parent.params.max_tokens:
            return
        self.given[child.id] = list(output)
        self.pool.fork(parent, child)
        if self.random.random() < 0.5:  # as a beam: it stands where its parent does
            child.arrival = parent.arrival
            self.figures["beams"] += 1
        self._add(child)
        self.figures["forks"] += 1

    def _add(self, request: Request) -> None:
        self.requests += 1
        self.scheduler.add(request)
        self.arrivals[request.id] = (request.priority, request.arrival, request.id)

    def abort(self) -> None:
        alive = [*self.scheduler.running.values(), *self.scheduler.waiting.values()]
        if alive:
            request = self.random.choice(alive)
            self.figures["aborts in flight"] += any(
                chunk.request is request for launched in self.under_way for chunk in launched.step.chunks
            )
            self._end(request, "abort")

    # What the engine does.

    def turn(self) -> bool:
        """Launch and read as the engine does; whether anything was done."""
        progress = False
        while len(self.under_way) <= self.config.run_ahead:
            step = self.schedule()
            if step is None:
                break
            progress = True
            self.launch(step)
            if self.random.random() < 0.05:
                self.abort()
        if self.under_way:
            progress = True
            self.read(self.under_way.popleft())
        return progress

    def schedule(self):
        scheduler, config = self.scheduler, self.config
        running = dict(scheduler.running)
        queue = sorted(scheduler.waiting.values(), key=lambda request: self.arrivals[request.id])
        due = [r for r in running.values() if self._is_due(r)] if self.pool.num_free >= 8 * len(running) else []
        preemptions = sum(r.num_preemptions for r in running.values())
        step = scheduler.schedule()
        scheduler.check()
        self.figures["preemptions"] += sum(r.num_preemptions for r in running.values()) - preemptions
        admitted = [r for r in queue if r.id in scheduler.running]
        assert admitted == queue[: len(admitted)], "admission is not by priority and arrival"
        if config.batching == "naive":
            assert len(scheduler.running) <= 1
        scheduled = {chunk.request.id for chunk in step.chunks} if step else set()
        self._nobody_is_held_up(running, scheduled)
        if step is None:
            return None
        assert all(r.id in scheduled for r in due), "a running reply was held up"
        for request in admitted:
            self.figures["hits"] += request.num_cached > 0
            self.figures["hits after preemption"] += request.num_cached > 0 and request.num_preemptions > 0
        self._check(step)
        return step

    def _is_due(self, request: Request) -> bool:
        waits = request.in_flight and request.needs_host
        full = len(request.output_ids) + request.in_flight >= request.params.max_tokens
        return request.num_pending == 1 and not waits and not full and request.length < self.config.max_model_len

    def _nobody_is_held_up(self, running: dict[int, Request], scheduled: set[int]) -> None:
        """The best of what runs waits for nothing but its own tokens and, once, for blocks of a step under way."""
        best = min(running, key=lambda number: self.arrivals[number], default=None)
        assert best is None or best in self.scheduler.running, f"the first request, {best}, has to give up its blocks"
        if best is None or best in scheduled or running[best].in_flight:
            self.held_up.clear()
            return
        self.held_up[best] += 1
        assert self.held_up[best] <= 2 + self.config.run_ahead, f"the first request, {best}, does not go on"

    def _check(self, step) -> None:
        chunks, config = step.chunks, self.config
        assert sum(chunk.num_tokens for chunk in chunks) <= config.max_num_batched_tokens, "over the budget"
        assert len({chunk.request.id for chunk in chunks}) == len(chunks), "a request is in a step twice"
        order = [(chunk.num_tokens, chunk.request.slot) for chunk in chunks]
        assert order == sorted(order), "chunks are out of order"
        assert step.decode_only == all(chunk.num_tokens == 1 and chunk.samples for chunk in chunks)
        for chunk in chunks:
            request, end = chunk.request, chunk.start + chunk.num_tokens
            assert chunk.num_tokens > len(chunk.drafts), "a chunk computes nothing"
            assert self.scheduler.running.get(request.id) is request
            assert end <= config.max_model_len, "past the context"
            assert end == request.num_computed
            most = len(request.output_ids) + request.in_flight + len(chunk.drafts)
            assert most <= request.params.max_tokens, "past max_tokens"
            if chunk.samples and (request.needs_host or chunk.drafts):
                assert request.in_flight == 1, "what needs the host is launched before the host knows"
            if not config.chunked_prefill and request.num_tokens <= config.max_num_batched_tokens and not chunk.drafts:
                assert chunk.samples, "a prompt is cut"
        self.figures["drafts"] += sum(len(chunk.drafts) for chunk in chunks)

    def launch(self, step) -> None:
        broken = self.random.random() < 0.003
        launched = self.machine.launch(step, broken)
        self.figures["steps"] += 1
        self.figures["copies"] += len(step.copies)
        for other in self.under_way:
            for block, owner in launched.writes.items():
                before = other.writes.get(block, owner)
                assert before == owner, f"block {block} is given to {owner} while a step writes it for {before}"
        if not broken:
            self.under_way.append(launched)
            return
        self.scheduler.done(step)
        self.pool.forget()
        for chunk in step.chunks:
            if chunk.samples:
                self.scheduler.took(chunk.request, ())
            self._end(chunk.request, "error")
        self.figures["failed steps"] += 1

    def read(self, launched: Launched) -> None:
        self.scheduler.done(launched.step)
        for request, drawn in launched.results:
            if request.finish_reason is not None:
                self.scheduler.took(request, ())
                continue
            if EOS in drawn:
                drawn = drawn[: drawn.index(EOS) + 1]
            self.figures["accepted"] += len(drawn) - 1
            self.scheduler.took(request, drawn)
            if drawn[-1] == EOS:
                self._end(request, "stop")
            elif (
                len(request.output_ids) >= request.params.max_tokens or request.num_tokens >= self.config.max_model_len
            ):
                self._end(request, "length")
            elif not request.in_flight and self.random.random() < 0.3:
                self._guess(request)
        self.scheduler.check()

    def _guess(self, request: Request) -> None:
        guess = self.language.continuation(request.prompt_ids + request.output_ids, self.random.randint(1, 4))
        request.drafts = [t if self.random.random() < 0.8 else self.random.randrange(VOCAB) for t in guess]

    def _end(self, request: Request, reason) -> None:
        request.finish_reason = reason
        self.scheduler.remove(request)
        self.scheduler.check()
        given = self.given.get(request.id, [])
        room = min(request.params.max_tokens, self.config.max_model_len - len(request.prompt_ids)) - len(given)
        alone = given + self.language.continuation(request.prompt_ids + given, room)
        if reason in ("stop", "length"):
            assert request.output_ids == alone, f"request {request.id} says something else than alone"
        else:
            assert request.output_ids == alone[: len(request.output_ids)]
        self.figures[reason] += 1

    # A whole run.

    def run(self, turns: int) -> Counter:
        """So many turns with events, then until all is done; AssertionError with the seed where a rule is broken."""
        try:
            for _ in range(turns):
                self._events()
                self.turn()
            self._drain()
        except AssertionError as error:
            raise AssertionError(f"seed {self.seed}: {error}") from error
        return self.figures

    def _events(self) -> None:
        draw = self.random.random
        if self.scheduler.num_unfinished < 4 * self.config.max_num_seqs:
            while draw() < self.pressure:
                self.arrive()
        if draw() < 0.05:
            self.fork()
        if draw() < 0.04:
            self.abort()

    def _drain(self) -> None:
        left = sum(
            2 * request.num_tokens + 2 * self.config.max_model_len
            for request in [*self.scheduler.waiting.values(), *self.scheduler.running.values()]
        )
        for _ in range(left * 3 + 10):
            if not self.turn():
                break
        assert self.scheduler.num_unfinished == 0, f"{self.scheduler.num_unfinished} requests never end"
        assert not self.under_way
        self.scheduler.check()
        assert self.pool.num_free == self.config.num_blocks, "blocks leaked"
        self.figures["idle"] += 1


def random_config(draw: random.Random) -> EngineConfig:
    """Tiny ones, most of them short of blocks."""
    size, longest, seqs = draw.randint(1, 4), draw.randint(4, 28), draw.randint(1, 6)
    budget = seqs + draw.choice([0, 3, 10, 30])
    return EngineConfig(
        max_num_seqs=seqs,
        max_model_len=longest,
        max_num_batched_tokens=budget,
        block_size=size,
        num_blocks=-(-longest // size) + draw.choice([0, 1, 5, 20, 60]),
        prefix_caching=draw.random() < 0.85,
        chunked_prefill=draw.random() < 0.8,
        batching=draw.choice(["continuous"] * 6 + ["static", "naive"]),
        run_ahead=draw.randint(0, 1),
    )
