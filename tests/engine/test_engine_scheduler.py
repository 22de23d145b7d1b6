"""What the scheduler puts into a step, case by case; the rules under random events are in the properties tests."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gristmill.engine.blocks import BlockPool
from gristmill.engine.config import EngineConfig
from gristmill.engine.request import Request
from gristmill.engine.sampling import SamplingParams
from gristmill.engine.scheduler import Scheduler


def scheduler_of(**settings):
    tiny = {"max_num_seqs": 4, "max_num_batched_tokens": 64, "max_model_len": 64, "block_size": 4, "num_blocks": 100}
    config = EngineConfig(**(tiny | settings))
    return Scheduler(config, BlockPool(config.num_blocks, config.block_size, config.prefix_caching))


def request_of(number, prompt, reply=20, priority=0):
    """A prompt of so many tokens that no other begins with, or of these."""
    ids = [1000 + number] * prompt if isinstance(prompt, int) else list(prompt)
    return Request(number, ids, SamplingParams(max_tokens=reply), priority=priority)


def read(scheduler, step, token=7):
    scheduler.done(step)
    for chunk in step.chunks:
        if chunk.samples:
            scheduler.took(chunk.request, [token] if chunk.request.finish_reason is None else ())
    scheduler.check()


def run_step(scheduler):
    step = scheduler.schedule()
    read(scheduler, step)
    return {chunk.request.id: chunk.num_tokens for chunk in step.chunks}


def end(scheduler, request, reason="abort"):
    request.finish_reason = reason
    scheduler.remove(request)
    scheduler.check()


def test_a_long_prompt_does_not_hold_up_replies():
    scheduler = scheduler_of(max_num_batched_tokens=8)
    scheduler.add(request_of(0, 2))
    run_step(scheduler)
    scheduler.add(request_of(1, 30))
    steps = [run_step(scheduler) for _ in range(5)]
    assert steps == [{0: 1, 1: 7}, {0: 1, 1: 7}, {0: 1, 1: 7}, {0: 1, 1: 7}, {0: 1, 1: 2}]


def test_without_chunks_a_prompt_waits_for_a_step_that_holds_it():
    scheduler = scheduler_of(max_num_batched_tokens=64, chunked_prefill=False)
    scheduler.add(request_of(0, 40))
    scheduler.add(request_of(1, 40))
    scheduler.add(request_of(2, 4))
    assert [run_step(scheduler) for _ in range(2)] == [{0: 40}, {0: 1, 1: 40, 2: 4}]


def test_single_tokens_stand_first_in_the_order_of_slots():
    scheduler = scheduler_of()
    for number in range(3):
        scheduler.add(request_of(number, 3))
    assert not scheduler.schedule().decode_only
    scheduler = scheduler_of()
    requests = [request_of(number, length) for number, length in enumerate([9, 1, 5, 1])]
    for request in requests:
        scheduler.add(request)
    step = scheduler.schedule()
    assert [(chunk.request.slot, chunk.num_tokens) for chunk in step.chunks] == [(1, 1), (3, 1), (2, 5), (0, 9)]
    read(scheduler, step)
    step = scheduler.schedule()
    assert [chunk.request.slot for chunk in step.chunks] == [0, 1, 2, 3]
    assert step.decode_only


def test_low_slots_are_taken_first():
    scheduler = scheduler_of()
    requests = [request_of(i, 3) for i in range(4)]
    for request in requests:
        scheduler.add(request)
    run_step(scheduler)
    end(scheduler, requests[2])
    end(scheduler, requests[1])
    scheduler.add(late := request_of(9, 3))
    run_step(scheduler)
    assert late.slot == 1


def test_lower_priority_numbers_go_first_then_who_came_first():
    scheduler = scheduler_of(max_num_seqs=2)
    for number, priority in enumerate([1, 0, 0, -1]):
        scheduler.add(request_of(number, 3, priority=priority))
    run_step(scheduler)
    assert list(scheduler.running) == [3, 1]


def test_a_fully_cached_prompt_computes_its_last_block_again():
    scheduler = scheduler_of()
    scheduler.add(first := request_of(0, range(16)))
    run_step(scheduler)
    end(scheduler, first)
    scheduler.add(second := request_of(1, range(16)))
    (chunk,) = scheduler.schedule().chunks
    assert (chunk.start, chunk.num_tokens, chunk.samples) == (12, 4, True)
    assert second.num_cached == 12
    assert (scheduler.pool.hit_tokens, scheduler.pool.query_tokens) == (12, 32)


def test_of_two_equal_prompts_in_one_step_the_second_reads_what_the_first_writes():
    scheduler = scheduler_of()
    scheduler.add(first := request_of(0, range(18)))
    scheduler.add(second := request_of(1, range(18)))
    step = scheduler.schedule()
    assert {chunk.request.id: chunk.num_tokens for chunk in step.chunks} == {0: 18, 1: 2}
    assert second.blocks[:4] == first.blocks[:4]
    assert second.blocks[4] != first.blocks[4]
    read(scheduler, step)


def test_log_probabilities_of_the_prompt_are_computed_not_reused():
    scheduler = scheduler_of()
    scheduler.add(request_of(0, range(18)))
    run_step(scheduler)
    asks = Request(1, list(range(18)), SamplingParams(logprobs=True, prompt_logprobs=0))
    scheduler.add(asks)
    assert run_step(scheduler) == {0: 1, 1: 18}


def test_the_last_to_come_gives_up_its_blocks_and_finds_them_again():
    scheduler = scheduler_of(num_blocks=16, max_num_batched_tokens=40)  # 64 tokens
    first, second = request_of(0, 28), request_of(1, 28)
    scheduler.add(first)
    scheduler.add(second)
    run_step(scheduler)
    run_step(scheduler)
    while not second.num_preemptions:
        run_step(scheduler)
    assert first.slot is not None
    assert (second.slot, second.blocks, second.num_computed) == (None, [], 0)
    outputs = len(second.output_ids)
    assert outputs > 0
    end(scheduler, first)
    step = scheduler.schedule()
    (chunk,) = step.chunks
    assert second.num_cached > 0
    assert chunk.start == second.num_cached
    assert chunk.start + chunk.num_tokens == 28 + outputs
    read(scheduler, step)
    assert len(second.output_ids) == outputs + 1


def test_the_oldest_of_the_lowest_priority_is_not_spared():
    scheduler = scheduler_of(num_blocks=16)
    scheduler.add(low := request_of(0, 28, priority=1))
    scheduler.add(high := request_of(1, 28))
    while not low.num_preemptions + high.num_preemptions:
        run_step(scheduler)
    assert (low.num_preemptions, high.num_preemptions) == (1, 0)


def test_a_preempted_request_waits_for_its_token_in_flight():
    scheduler = scheduler_of(num_blocks=16, run_ahead=1, prefix_caching=False)
    first, second = request_of(0, 28), request_of(1, 28)
    scheduler.add(first)
    scheduler.add(second)
    under_way = [scheduler.schedule()]
    while True:
        step = scheduler.schedule()
        if second.num_preemptions:
            break
        under_way.append(step)
        read(scheduler, under_way.pop(0))
    assert (second.in_flight, second.num_computed) == (1, 0)
    assert step is None, "the first waits for the second's blocks, which the step under way writes"
    before = len(second.output_ids)
    end(scheduler, first)
    assert scheduler.schedule() is None
    read(scheduler, *under_way)
    assert len(second.output_ids) == before + 1
    (chunk,) = scheduler.schedule().chunks
    assert (chunk.request, chunk.start, chunk.num_tokens) == (second, 0, 28 + before + 1)


def test_a_step_ahead_goes_on_with_tokens_nobody_knows_yet():
    scheduler = scheduler_of(run_ahead=1)
    scheduler.add(request := request_of(0, 6, reply=3))
    one, two, three = (scheduler.schedule() for _ in range(3))
    assert [(c.start, c.num_tokens) for s in (one, two, three) for c in s.chunks] == [(0, 6), (6, 1), (7, 1)]
    assert request.in_flight == 3
    assert scheduler.schedule() is None, "max_tokens is reached by what is in flight"
    for step in (one, two, three):
        read(scheduler, step)
    assert len(request.output_ids) == 3


def test_a_full_context_is_not_overrun_by_steps_ahead():
    scheduler = scheduler_of(run_ahead=1, max_model_len=8)
    scheduler.add(request_of(0, 6, reply=50))
    steps = [scheduler.schedule() for _ in range(3)]
    assert [step and step.chunks[0].start for step in steps] == [0, 6, None]


def test_what_needs_the_host_waits_for_it():
    scheduler = scheduler_of(run_ahead=1)
    scheduler.add(request := request_of(0, 6))
    request.matcher = object()
    step = scheduler.schedule()
    assert scheduler.schedule() is None
    read(scheduler, step)
    assert scheduler.schedule() is not None


def test_drafts_are_checked_and_the_wrong_ones_are_forgotten():
    scheduler = scheduler_of()
    scheduler.add(request := request_of(0, 6))
    run_step(scheduler)
    request.drafts = [11, 12, 13]
    step = scheduler.schedule()
    (chunk,) = step.chunks
    assert (chunk.start, chunk.num_tokens, chunk.drafts) == (6, 4, (11, 12, 13))
    assert not step.decode_only
    assert request.drafts == []
    assert scheduler.schedule() is None
    scheduler.done(step)
    scheduler.took(request, [11, 99])
    assert (request.num_computed, request.output_ids) == (8, [7, 11, 99])
    assert run_step(scheduler) == {0: 1}


@pytest.mark.parametrize(("limits", "reply", "drafts"), [({}, 4, 2), ({"max_model_len": 9}, 50, 1)])
def test_drafts_are_cut_at_the_end(limits, reply, drafts):
    scheduler = scheduler_of(**limits)
    scheduler.add(request := request_of(0, 6, reply))
    run_step(scheduler)
    request.drafts = [1, 2, 3, 4, 5]
    assert len(scheduler.schedule().chunks[0].drafts) == drafts


def test_drafts_leave_a_token_for_everyone():
    scheduler = scheduler_of(max_num_batched_tokens=5)
    requests = [request_of(number, 1) for number in range(3)]
    for request in requests:
        scheduler.add(request)
    run_step(scheduler)
    requests[0].drafts = [1, 2, 3, 4]
    assert run_step(scheduler) == {0: 3, 1: 1, 2: 1}


@pytest.mark.parametrize("run_ahead", [0, 1])
def test_blocks_of_an_abort_between_launch_and_results_are_held_back(run_ahead):
    scheduler = scheduler_of(num_blocks=16, run_ahead=run_ahead, prefix_caching=False)
    scheduler.add(request := request_of(0, 40))
    steps = [scheduler.schedule() for _ in range(1 + run_ahead)]
    end(scheduler, request)
    assert scheduler.num_unfinished == 0
    assert scheduler.pool.num_free < 16, "a launched step may still write them"
    scheduler.add(other := request_of(1, 40))
    assert scheduler.schedule() is None
    for step in steps:
        assert other.slot is None
        read(scheduler, step)
    assert scheduler.pool.num_free == 16
    assert run_step(scheduler) == {1: 40}


def test_an_abort_in_the_middle_of_a_prompt_leaks_nothing():
    scheduler = scheduler_of(max_num_batched_tokens=8)
    scheduler.add(request := request_of(0, 40))
    step = scheduler.schedule()
    assert not step.chunks[0].samples
    end(scheduler, request)
    read(scheduler, step)
    assert scheduler.pool.num_free == 100


def test_removing_twice_or_what_was_never_there_is_harmless():
    scheduler = scheduler_of()
    scheduler.add(request := request_of(0, 5))
    end(scheduler, request)
    end(scheduler, request)
    end(scheduler, request_of(1, 5))
    assert scheduler.schedule() is None


def test_forks_share_blocks_until_they_write():
    scheduler = scheduler_of()
    scheduler.add(parent := request_of(0, 6))
    run_step(scheduler)
    child = Request(1, parent.prompt_ids, parent.params, output_ids=[8])
    scheduler.pool.fork(parent, child)
    scheduler.add(child)
    step = scheduler.schedule()
    assert [(chunk.start, chunk.num_tokens) for chunk in step.chunks] == [(6, 1), (6, 1)]
    assert len(step.copies) == 1
    assert child.blocks[0] == parent.blocks[0]
    assert child.blocks[1] != parent.blocks[1]
    read(scheduler, step)


def test_waiting_forks_give_up_their_blocks_before_anyone_is_stopped():
    scheduler = scheduler_of(max_num_seqs=1, num_blocks=16)
    scheduler.add(parent := request_of(0, 20, reply=60))
    run_step(scheduler)
    child = Request(1, parent.prompt_ids, parent.params, output_ids=[8])
    scheduler.pool.fork(parent, child)
    scheduler.add(child)
    end(scheduler, parent)
    scheduler.add(other := request_of(2, 60, priority=-1))
    assert run_step(scheduler) == {2: 60}
    assert (child.blocks, child.num_computed) == ([], 0)
    end(scheduler, other)
    assert list(run_step(scheduler)) == [1]


def test_some_blocks_are_kept_for_growth():
    scheduler = scheduler_of(num_blocks=200, block_size=1, max_model_len=199, max_num_batched_tokens=400)
    scheduler.add(request_of(0, 100))
    scheduler.add(request_of(1, 99))
    assert run_step(scheduler) == {0: 100}


def test_static_batches_are_filled_once():
    scheduler = scheduler_of(max_num_seqs=3, max_num_batched_tokens=8, batching="static")
    requests = [request_of(number, 6, reply=50) for number in range(5)]
    for request in requests:
        scheduler.add(request)
    for _ in range(6):
        run_step(scheduler)
    assert sorted(scheduler.running) == [0, 1, 2]
    end(scheduler, requests[0])
    run_step(scheduler)
    assert sorted(scheduler.running) == [1, 2]
    end(scheduler, requests[1])
    end(scheduler, requests[2])
    run_step(scheduler)
    assert 3 in scheduler.running


def test_naive_is_one_at_a_time():
    scheduler = scheduler_of(batching="naive")
    requests = [request_of(number, 6) for number in range(3)]
    for request in requests:
        scheduler.add(request)
    for request in requests:
        for _ in range(3):
            run_step(scheduler)
            assert list(scheduler.running) == [request.id]
        end(scheduler, request)


def test_the_scheduler_needs_no_torch():
    code = "import sys, gristmill.engine.scheduler; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
