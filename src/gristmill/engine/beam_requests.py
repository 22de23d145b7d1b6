"""The beams of one search as requests of the scheduler, side by side with all others.

A beam that has been told its likeliest next tokens waits, with its token still in flight, until all of its search have;
then the search says which go on, fork and end. A fork shares its parent's blocks, and the last of them is copied when
one of the two writes into it. Where blocks or slots do not suffice for all beams at once, those that wait give theirs
up (`park`) to the ones that have yet to be computed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from .beam import BeamSearch, Hypothesis
from .blocks import BlockPool
from .request import FinishReason, Request, TokenLogprob
from .scheduler import Scheduler
from .text import TextStream


class BeamRequests:
    """The search that `root` asks for; `root` itself is never scheduled. `free` is told each slot whose request's
    tokens are others than those that were drawn; `ids` gives the numbers of beams."""

    def __init__(
        self,
        root: Request,
        search: BeamSearch,
        scheduler: Scheduler,
        pool: BlockPool,
        free: Callable[[int], None],
        ids: Iterator[int],
    ):
        self.root, self.search = root, search
        self._scheduler, self._pool, self._free, self._ids = scheduler, pool, free, ids
        self._tops: dict[int, Sequence[TokenLogprob]] = {}  # what beams were told since the last turn
        self._parked: set[int] = set()
        first = Request(next(ids), root.prompt_ids, root.params, root.continues, priority=root.priority, search=self)
        first.matcher, first.arrived = root.matcher, root.arrived
        first.prompt_logprobs, first.prompt_top_logprobs = root.prompt_logprobs, root.prompt_top_logprobs
        self._beams = {0: first}  # by the search's numbers
        self._numbers = {first.id: 0}
        scheduler.add(first)

    @property
    def complete(self) -> bool:
        """Whether all beams have been told, so that it is time for a turn."""
        return len(self._tops) == len(self._beams)

    def told(self, beam: Request, top: Sequence[TokenLogprob]) -> None:
        """The likeliest next tokens of a beam, best first; none where it cannot go on."""
        if self.root.scheduled is None:
            self.root.scheduled = beam.scheduled
        self._tops[self._numbers[beam.id]] = top

    def turn(self) -> list[Hypothesis]:
        """Lengthen, fork and end beams, all of which have been told; the best sequences once the search is over."""
        turn = self.search.advance(self._tops)
        self._tops = {}
        for number in turn.ended:
            beam = self._beams.pop(number)
            del self._numbers[beam.id]
            self._let_go(number, beam)
        children = {child: self._child(self._beams[parent], turn.tokens[child]) for parent, child in turn.forks}
        for number, beam in self._beams.items():
            self._go_on(number, beam, turn.tokens[number])
        for parent, child in turn.forks:
            self._pool.fork(self._beams[parent], children[child])
        for number, beam in children.items():
            self._beams[number], self._numbers[beam.id] = beam, number
            self._scheduler.add(beam)
        return self.search.best(self.root.params.n) if self.search.done else []

    def give(self, found: Sequence[Hypothesis], stream: Callable[[Request], TextStream]) -> FinishReason:
        """The end of the search: `root` gets the best sequence, its `others` the rest; why the best one ended. `stream`
        makes texts of tokens."""
        root = self.root
        root.others = [
            Request(next(self._ids), root.prompt_ids, root.params, root.continues, root.shown) for _ in found[1:]
        ]
        for other in root.others:
            other.prompt_logprobs, other.prompt_top_logprobs = root.prompt_logprobs, root.prompt_top_logprobs
        for request, sequence in zip([root, *root.others], found, strict=True):
            _write(request, sequence, stream(request))
        root.token_times = time.monotonic(), root.arrived
        assert root.finish_reason is not None
        return root.finish_reason

    def park(self) -> None:
        """Beams that have been told, and hold slots and blocks until the others are, give them up."""
        for number in self._tops:
            if number not in self._parked:
                self._let_go(number, self._beams[number])
                self._parked.add(number)

    def end(self) -> None:
        """Take all beams out."""
        for beam in self._beams.values():
            beam.finish_reason = "abort"  # what is in flight for it is for nobody
            self._scheduler.remove(beam)

    def _child(self, parent: Request, token: int) -> Request:
        child = Request(
            next(self._ids), parent.prompt_ids, parent.params, parent.continues, output_ids=[*parent.output_ids, token]
        )
        child.search, child.priority, child.arrival, child.arrived = (
            self,
            parent.priority,
            parent.arrival,
            parent.arrived,
        )
        if parent.matcher is not None:
            child.matcher = parent.matcher.fork()
            self._accept(child, token)
        return child

    def _go_on(self, number: int, beam: Request, token: int) -> None:
        if beam.matcher is not None:
            self._accept(beam, token)
        if number in self._parked:
            self._parked.discard(number)
            beam.output_ids.append(token)
            self._scheduler.add(beam)
            return
        self._scheduler.took(beam, [token])
        if beam.slot is not None:
            self._free(beam.slot)

    def _let_go(self, number: int, beam: Request) -> None:
        """Take a beam that has been told out of the scheduler."""
        if number in self._parked:
            self._parked.discard(number)
            return
        self._scheduler.took(beam, ())
        self._scheduler.remove(beam)

    @staticmethod
    def _accept(beam: Request, token: int) -> None:
        if beam.matcher is not None and not beam.matcher.accept(token):
            raise AssertionError(f"token {token} was ranked against the request's mask: a defect in gristmill")


def _write(request: Request, sequence: Hypothesis, stream: TextStream) -> None:
    """Tokens and text of a found sequence into its request, as far as a stop string."""
    request.closed = sequence.finish_reason == "stop"
    request.finish_reason = sequence.finish_reason
    for token, logprob in zip(sequence.tokens, sequence.logprobs, strict=True):
        request.output_ids.append(token)
        request.logprobs.append(logprob)
        last = len(request.output_ids) == len(sequence.tokens)
        text = "" if last and request.closed else stream.push(token)
        request.text.append(text + stream.finish() if last else text)
        if stream.stopped:
            request.finish_reason, request.closed = "stop", False
            return
