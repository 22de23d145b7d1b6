"""The scheduler under random arrivals, lengths, ends and aborts."""

from __future__ import annotations

import subprocess
import sys

from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.engine.request import Request
from gristmill.engine.sampling import SamplingParams
from gristmill.engine.scheduler import Scheduler

ARRIVAL = st.tuples(st.integers(1, 40), st.integers(1, 8))  # prompt tokens, reply tokens
EVENT = st.one_of(ARRIVAL, st.tuples(st.just("abort"), st.integers(0, 30)), st.just("step"))


def request_of(number, prompt, reply):
    return Request(number, [1] * prompt, SamplingParams(max_tokens=reply))


def run_step(scheduler):
    """One step with a model that says 7; checks what must hold of any step. Returns the chunks."""
    decoding = {r.id for r in scheduler.running.values() if r.num_pending == 1}
    waiting = list(scheduler.waiting)
    free = scheduler.max_num_seqs - len(scheduler.running)
    chunks = scheduler.schedule()
    tokens = sum(chunk.num_tokens for chunk in chunks)
    assert tokens <= scheduler.max_num_batched_tokens
    assert decoding <= {chunk.request.id for chunk in chunks}, "a running reply was held up"
    assert len({chunk.request.id for chunk in chunks}) == len(chunks)
    assert all(chunk.start == chunk.request.num_computed for chunk in chunks)
    assert all(chunk.request.slot is not None and chunk.num_tokens > 0 for chunk in chunks)
    order = [(chunk.num_tokens, chunk.request.slot) for chunk in chunks]
    assert order == sorted(order), "the cache counts on this order"
    admitted = [number for number in waiting if number in scheduler.running]
    assert admitted == waiting[: len(admitted)], "admission is not in the order of arrival"
    if tokens < scheduler.max_num_batched_tokens:
        assert len(admitted) == min(free, len(waiting)), "room was left while requests waited"
    for chunk in chunks:
        scheduler.computed(chunk)
        if chunk.last:
            assert chunk.request.num_pending == 0
            chunk.request.output_ids.append(7)
            if len(chunk.request.output_ids) == chunk.request.params.max_tokens:
                scheduler.remove(chunk.request)
    scheduler.check()
    return chunks


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 6), st.integers(0, 30), st.lists(EVENT, max_size=60))
def test_every_request_ends_whatever_happens(max_num_seqs, spare, events):
    scheduler = Scheduler(max_num_seqs, max_num_seqs + spare)
    requests, aborted = [], set()
    for event in events:
        if event == "step":
            run_step(scheduler)
        elif event[0] == "abort":
            if requests:
                request = requests[event[1] % len(requests)]
                if request.id in scheduler.waiting or request.id in scheduler.running:
                    aborted.add(request.id)
                scheduler.remove(request)
                scheduler.check()
        else:
            requests.append(request_of(len(requests), *event))
            scheduler.add(requests[-1])
    left = sum(r.num_pending + r.params.max_tokens for r in [*scheduler.waiting.values(), *scheduler.running.values()])
    for _ in range(left):
        if scheduler.num_unfinished:
            assert run_step(scheduler), "work is left and nothing is scheduled"
    assert scheduler.num_unfinished == 0
    for request in requests:
        whole = len(request.output_ids) == request.params.max_tokens
        assert whole != (request.id in aborted)
        if whole:
            assert request.num_computed == len(request.prompt_ids) + request.params.max_tokens - 1
    scheduler.check()


def test_a_long_prompt_does_not_hold_up_replies():
    scheduler = Scheduler(max_num_seqs=4, max_num_batched_tokens=8)
    scheduler.add(request_of(0, 2, 20))
    run_step(scheduler)
    scheduler.add(request_of(1, 30, 2))
    steps = [{c.request.id: c.num_tokens for c in run_step(scheduler)} for _ in range(5)]
    assert steps == [{0: 1, 1: 7}, {0: 1, 1: 7}, {0: 1, 1: 7}, {0: 1, 1: 7}, {0: 1, 1: 2}]


def test_low_slots_are_taken_first():
    scheduler = Scheduler(max_num_seqs=4, max_num_batched_tokens=64)
    requests = [request_of(i, 3, 9) for i in range(4)]
    for request in requests:
        scheduler.add(request)
    run_step(scheduler)
    scheduler.remove(requests[2])
    scheduler.remove(requests[1])
    scheduler.add(late := request_of(9, 3, 9))
    run_step(scheduler)
    assert late.slot == 1


def test_the_scheduler_needs_no_torch():
    code = "import sys, gristmill.engine.scheduler; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
