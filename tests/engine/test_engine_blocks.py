"""The block pool: what is shared, what is kept, what is given back, and in which order room is made."""

from __future__ import annotations

import pytest

from gristmill.engine.blocks import BlockPool
from gristmill.engine.request import Request
from gristmill.engine.sampling import SamplingParams

SIZE = 4


def request_of(number, ids, output=()):
    return Request(number, list(ids), SamplingParams(), output_ids=list(output))


def compute(pool, request, num_tokens=None):
    """Admit a request and compute its tokens; those found in the pool."""
    covered = pool.reuse(request)
    num_tokens = request.num_tokens if num_tokens is None else num_tokens
    assert pool.grow(request, num_tokens)
    request.num_computed = num_tokens
    pool.computed(request)
    return covered


def test_a_beginning_is_shared_in_whole_blocks():
    pool = BlockPool(20, SIZE)
    first, second = request_of(0, range(10)), request_of(1, [*range(9), 77, 78])
    assert compute(pool, first) == 0
    assert compute(pool, second) == 8
    assert second.blocks[:2] == first.blocks[:2]
    assert second.blocks[2] != first.blocks[2]
    assert pool.num_free == 20 - 4
    assert pool.usage == pytest.approx(4 / 20)
    pool.check([first, second])


def test_output_is_reused_too():
    pool = BlockPool(20, SIZE)
    first = request_of(0, range(6), output=[50, 51, 52])
    compute(pool, first)
    pool.release(first)
    assert compute(pool, request_of(1, [*range(6), 50, 51, 9])) == 8


@pytest.mark.parametrize(("length", "covered"), [(1, 0), (4, 0), (5, 4), (8, 4), (9, 8), (12, 8)])
def test_a_fully_cached_prompt_leaves_a_token_to_compute(length, covered):
    pool = BlockPool(20, SIZE)
    compute(pool, first := request_of(0, range(12)))
    again = request_of(1, range(length))
    assert compute(pool, again) == covered
    pool.check([first, again])


def test_equal_blocks_behind_different_ones_are_not_taken_for_each_other():
    pool = BlockPool(20, SIZE)
    compute(pool, request_of(0, [1] * 4 + [2] * 4 + [9]))
    assert compute(pool, request_of(1, [3] * 4 + [2] * 4 + [9])) == 0
    assert compute(pool, request_of(2, [2] * 4 + [9])) == 0


def test_two_that_compute_one_prompt_at_once_keep_their_own_blocks():
    pool = BlockPool(20, SIZE)
    first, second = request_of(0, range(9)), request_of(1, range(9))
    for request in (first, second):
        assert pool.reuse(request) == 0
        assert pool.grow(request, 9)
    for done in (4, 9):  # in step with each other
        for request in (first, second):
            request.num_computed = done
            pool.computed(request)
            pool.check([first, second])
    assert not set(first.blocks) & set(second.blocks)
    third = request_of(2, range(9))
    assert compute(pool, third) == 8
    assert third.blocks[:2] == first.blocks[:2]
    pool.release(second)
    pool.check([first, third])
    assert pool.num_free == 20 - 4


def test_what_the_host_does_not_know_is_not_registered():
    pool = BlockPool(20, SIZE)
    first = request_of(0, range(7))
    pool.grow(first, 8)
    first.num_computed = 8  # one token beyond those known is in flight
    pool.computed(first)
    assert compute(pool, request_of(1, range(9))) == 4


def test_ends_of_chains_go_before_their_beginnings_and_old_before_new():
    pool = BlockPool(6, SIZE)
    old, new = request_of(0, range(12)), request_of(1, range(50, 62))
    compute(pool, old)
    compute(pool, new)
    old_blocks, new_blocks = list(old.blocks), list(new.blocks)
    pool.release(old)
    pool.release(new)
    assert pool.num_free == 6
    taker = request_of(2, range(90, 110))
    assert pool.grow(taker, 4 * SIZE)
    assert set(taker.blocks) == {*old_blocks, new_blocks[2]}
    assert pool.reuse(request_of(3, range(50, 60))) == 8


def test_using_a_block_again_makes_it_young():
    pool = BlockPool(4, SIZE)
    for number, start in enumerate((0, 50)):
        compute(pool, request := request_of(number, range(start, start + 8)))
        pool.release(request)
    compute(pool, again := request_of(2, range(5)), 4)
    pool.release(again)
    pool.grow(request_of(3, [1]), 3 * SIZE)
    assert pool.reuse(request_of(4, range(5))) == 4


def test_growing_is_all_or_nothing():
    pool = BlockPool(4, SIZE)
    request = request_of(0, range(30))
    assert pool.grow(request, 5)
    held = list(request.blocks)
    assert not pool.grow(request, 17)
    assert not pool.grow(request, 16, keep=1)
    assert request.blocks == held
    assert pool.grow(request, 8, keep=2)
    assert pool.grow(request, 16)
    assert pool.num_free == 0
    assert pool.grow(request, 3)


def test_neighbours_in_a_sequence_are_neighbours_in_the_cache():
    pool = BlockPool(256, SIZE)
    requests = [request_of(number, [number] * 5) for number in range(8)]
    for length in range(5, 60):
        for request in requests:
            assert pool.grow(request, length)
    for request in requests:
        assert request.blocks == list(range(request.blocks[0], request.blocks[0] + len(request.blocks)))
    pool.check(requests)


def test_a_fork_copies_its_last_block_before_it_writes():
    pool = BlockPool(20, SIZE)
    parent = request_of(0, range(5), output=[50, 51])
    compute(pool, parent, 6)
    child = request_of(1, range(5), output=[50, 60])
    pool.fork(parent, child)
    assert child.blocks == parent.blocks
    assert child.num_computed == 6
    pool.check([parent, child])
    shared = parent.blocks[1]
    source, copy = pool.writable(parent)
    assert (source, copy) == (shared, parent.blocks[1])
    assert copy != shared
    assert child.blocks[1] == shared
    assert pool.writable(child) is None, "the last one may write in place"
    assert pool.writable(parent) is None
    pool.check([parent, child])
    pool.release(parent)
    pool.release(child)
    pool.check([])
    assert pool.num_free == 20


def test_a_fork_at_the_end_of_a_block_copies_nothing():
    pool = BlockPool(20, SIZE)
    parent = request_of(0, range(8), output=[50])
    compute(pool, parent, 8)
    child = request_of(1, range(8), output=[51])
    pool.fork(parent, child)
    assert pool.writable(parent) is None
    assert pool.writable(child) is None
    assert pool.grow(parent, 9)
    assert pool.grow(child, 9)
    assert parent.blocks[2] != child.blocks[2]


def test_what_the_last_holder_overwrites_is_not_found_again():
    pool = BlockPool(20, SIZE)
    parent = request_of(0, range(5), output=[50, 51, 52, 53])
    compute(pool, parent, 8)
    child = request_of(1, range(5), output=[50, 60])
    pool.fork(parent, child)  # shares a block that is full for the parent, and registered
    pool.release(parent)
    assert pool.writable(child) is None
    assert pool.reuse(request_of(2, [*range(5), 50, 51, 52, 53])) == 4
    assert pool.num_free == 20 - 2


def test_growing_leaves_room_for_the_copy():
    pool = BlockPool(2, SIZE)
    parent = request_of(0, range(5), output=[50])
    compute(pool, parent, 5)
    pool.fork(parent, child := request_of(1, range(5), output=[51]))
    assert not pool.grow(child, 6)
    pool.release(parent)
    assert pool.grow(child, 6)
    assert pool.writable(child) is None


def test_forgotten_contents_are_never_found_again():
    pool = BlockPool(20, SIZE)
    idle, running = request_of(0, range(9)), request_of(1, range(50, 60))
    compute(pool, idle)
    pool.release(idle)
    compute(pool, running, 6)
    pool.forget()
    pool.check([running])
    pool.grow(running, 10)
    running.num_computed = 10  # the second block was begun with the old weights, and all later ones look at it
    pool.computed(running)
    running.output_ids += range(8)
    pool.grow(running, 18)
    running.num_computed = 17
    pool.computed(running)
    assert pool.reuse(request_of(2, range(9))) == 0
    assert pool.reuse(request_of(3, range(50, 60))) == 0
    pool.release(running)
    pool.check([])
    compute(pool, request_of(4, range(50, 60)))
    assert pool.reuse(request_of(5, range(50, 60))) == 8, "computed anew, it is shared again"


def test_without_caching_nothing_is_kept():
    pool = BlockPool(4, SIZE, caching=False)
    compute(pool, first := request_of(0, range(9)))
    pool.release(first)
    assert compute(pool, request_of(1, range(9))) == 0


def test_the_check_names_what_leaked():
    pool = BlockPool(4, SIZE)
    compute(pool, first := request_of(0, range(5)))
    with pytest.raises(AssertionError, match=f"block {first.blocks[0]} leaked"):
        pool.check([])
