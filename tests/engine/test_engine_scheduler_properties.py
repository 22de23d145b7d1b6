"""The scheduler and the block pool under random arrivals, priorities, aborts, ends, preemptions, forks, drafts and
failed steps, on a machine that executes steps symbolically (scheduler_machine.py says what is checked)."""

from __future__ import annotations

import multiprocessing
from collections import Counter

import pytest
from scheduler_machine import World

from gristmill.engine import blocks as blocks_module
from gristmill.engine.blocks import BlockPool
from gristmill.engine.scheduler import Scheduler

WHAT_MUST_OCCUR = (
    "length", "stop", "abort", "error", "preemptions", "hits", "hits after preemption", "aborts in flight", "forks",
    "beams", "copies", "drafts", "accepted", "failed steps",
)  # fmt: skip
RUNS_TO_FIND_A_BUG = 150


def figures_of(seeds, turns=50):
    figures = Counter()
    for seed in seeds:
        figures.update(World(seed).run(turns))
    return figures


def test_any_run_keeps_the_rules():
    figures = figures_of(range(400))
    assert figures["idle"] == 400
    for event in WHAT_MUST_OCCUR:
        assert figures[event] >= 20, f"these runs say nothing about {event}: {dict(figures)}"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_million_steps_keep_the_rules():
    figures, seed = Counter(), 1_000_000
    with multiprocessing.get_context("spawn").Pool(2) as processes:
        while figures["steps"] < 1_000_000:
            for found in processes.imap_unordered(lived, range(seed, seed + 400), chunksize=20):
                figures.update(found)
            seed += 400


def lived(seed: int) -> Counter:
    return World(seed, pressure=0.2 + seed % 5 / 10).run(150)


# Bugs, each planted into the real code. What stands behind `original_` is the right form.

original_reuse, original_computed = BlockPool.reuse, BlockPool.computed
original_took, original_give_up = Scheduler.took, Scheduler._give_up_blocks
original_drop, original_register = BlockPool.drop, BlockPool._register


def reuse_covers_the_whole_prompt(self, request):
    request.output_ids.append(0)  # as if there were a token behind it
    covered = original_reuse(self, request)
    request.output_ids.pop()
    return covered


def release_forgets_a_reference(self, blocks):
    original_drop(self, blocks[1:] if len(blocks) > 3 else blocks)


def writable_is_skipped(self, request):
    return None


def a_preempted_request_keeps_its_place(self, request):
    computed = request.num_computed
    original_give_up(self, request)
    request.num_computed = computed if request.finish_reason is None else 0


def admission_keeps_what_preemption_left(self, request):
    kept = request.num_computed
    return max(original_reuse(self, request), min(kept, request.num_tokens - 1))


def blocks_are_freed_at_once(self, request):
    self.pool.release(request)
    request.num_computed = 0


def wrong_drafts_stay_computed(self, request, token_ids):
    computed = request.num_computed
    original_took(self, request, token_ids)
    request.num_computed = computed


def a_block_is_registered_before_it_is_full(self, request):
    computed = request.num_computed
    request.num_computed = min(-(-computed // self.block_size), len(request.blocks)) * self.block_size
    original_computed(self, request)
    request.num_computed = computed


def a_block_is_known_by_its_own_tokens_alone(self, block, key):
    return original_register(self, block, (blocks_module.ROOT, key[1]))


def the_first_is_preempted(*values, **key):
    return min(*values, **key) if key else max(*values)


def limits_ignore_what_is_in_flight(self, request, spare):
    return tuple(request.drafts)


BUGS = {  # where it is planted, and how the machine notices it
    "reuse covers the whole prompt": (BlockPool, "reuse", reuse_covers_the_whole_prompt, "computes nothing|the budget"),
    "release forgets a reference": (BlockPool, "drop", release_forgets_a_reference, "leaked"),
    "writable is skipped": (BlockPool, "writable", writable_is_skipped, "finds|for two requests in one step"),
    "a preempted request keeps num_computed": (BlockPool, "reuse", admission_keeps_what_preemption_left, "finds"),
    "blocks are freed in flight": (Scheduler, "_give_up_blocks", blocks_are_freed_at_once, "while a step writes it"),
    "wrong drafts stay computed": (Scheduler, "took", wrong_drafts_stay_computed, "does not go on|never end"),
    "registered before it is full": (BlockPool, "computed", a_block_is_registered_before_it_is_full, "finds"),
    "known by its own tokens alone": (BlockPool, "_register", a_block_is_known_by_its_own_tokens_alone, "finds"),
    "drafts go past the limits": (Scheduler, "_drafts", limits_ignore_what_is_in_flight, "past|the budget|says"),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug, monkeypatch):
    where, name, wrong, noticed = BUGS[bug]
    monkeypatch.setattr(where, name, wrong)
    if wrong is admission_keeps_what_preemption_left:
        monkeypatch.setattr(Scheduler, "_give_up_blocks", a_preempted_request_keeps_its_place)
    with pytest.raises(AssertionError, match=rf"seed \d+: .*({noticed})"):
        figures_of(range(RUNS_TO_FIND_A_BUG))


def test_preempting_the_first_is_found(monkeypatch):
    monkeypatch.setattr("gristmill.engine.scheduler.max", the_first_is_preempted, raising=False)
    with pytest.raises(AssertionError, match=r"seed \d+: .*has to give up"):
        figures_of(range(RUNS_TO_FIND_A_BUG))
