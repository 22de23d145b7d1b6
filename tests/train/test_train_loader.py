"""Batches made ahead: the same ones, whoever makes them and whatever is asked for; errors and ends."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import pytest
import torch

from gristmill.errors import GristmillError
from gristmill.train.data import TokenBatch
from gristmill.train.loader import Ahead, pinned


class Maker:
    """Notes what is made and by whom."""

    def __init__(self):
        self.made: list[int] = []
        self.threads: set[int] = set()

    def __call__(self, number: int) -> str:
        self.threads.add(threading.get_ident())
        self.made.append(number)
        return f"batch {number}"


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_batches_come_as_asked_for(depth: int) -> None:
    maker = Maker()
    with Ahead(maker, 5, 12, depth) as ahead:
        assert [ahead.get(number) for number in range(5, 12)] == [f"batch {number}" for number in range(5, 12)]
    assert maker.made == list(range(5, 12))
    assert (threading.get_ident() in maker.threads) == (depth == 0)


def test_the_thread_stays_depth_batches_ahead_and_makes_none_behind_the_end() -> None:
    asked, made = [-1], []
    enough = threading.Semaphore(0)

    def make(number: int) -> int:
        made.append((number, number - asked[0]))
        enough.release()
        return number

    with Ahead(make, 0, 5, depth=2) as ahead:
        assert enough.acquire(timeout=30)
        assert enough.acquire(timeout=30)  # two are made before any is asked for
        for number in range(5):
            asked[0] = number
            ahead.get(number)
    assert [number for number, _ in made] == [0, 1, 2, 3, 4]
    assert max(ahead_of for _, ahead_of in made) <= 2


def test_other_numbers_than_the_next_may_be_asked_for() -> None:
    with Ahead(lambda number: number, 0, 6, 2) as ahead:
        wanted = [0, 1, 4, 5, 2, 2, 3, 9, 10, 0]
        assert [ahead.get(number) for number in wanted] == wanted


def test_a_batch_asked_for_while_it_is_made_is_not_made_twice() -> None:
    begun, go_on = threading.Semaphore(0), threading.Semaphore(0)
    made = []

    def make(number: int) -> int:
        made.append(number)
        begun.release()
        assert go_on.acquire(timeout=30)
        return number

    with Ahead(make, 0, 3, depth=1) as ahead:
        assert begun.acquire(timeout=30)
        threading.Timer(0.02, go_on.release, [9]).start()
        assert [ahead.get(number) for number in range(3)] == [0, 1, 2]
    assert made == [0, 1, 2]


def test_what_making_a_batch_raises_is_raised_where_it_is_asked_for() -> None:
    def make(number: int) -> int:
        if number == 2:
            raise GristmillError("files are damaged")
        return number

    with Ahead(make, 0, 9, 4) as ahead:
        assert [ahead.get(0), ahead.get(1)] == [0, 1]
        with pytest.raises(GristmillError, match=r"^files are damaged$"):
            ahead.get(2)
        assert ahead.get(3) == 3


@pytest.mark.parametrize("depth", [1, 4])
def test_the_thread_ends_with_the_block_even_in_the_middle(depth: int) -> None:
    before = threading.active_count()
    with pytest.raises(KeyError), Ahead(lambda number: number, 0, 10**9, depth) as ahead:
        ahead.get(0)
        raise KeyError
    assert threading.active_count() == before


def test_waiting_is_counted_and_reading_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("gristmill.train.loader.time.perf_counter", lambda: now[0])

    def slow(number: int) -> int:
        now[0] += number
        return number

    with Ahead(slow, 1, 9, depth=0) as ahead:
        ahead.get(1), ahead.get(2)
        assert ahead.stall_seconds == 3
        assert ahead.stall_seconds == 0
        ahead.get(4)
        assert ahead.stall_seconds == 4


@dataclass(frozen=True)
class Pair:
    tokens: TokenBatch
    reference: torch.Tensor
    name: str


def test_every_tensor_of_a_batch_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + 1)  # where no GPU is, none can be
    one = torch.ones(1, 2)
    batch = TokenBatch(one, one, one)
    found = pinned([Pair(batch, one, "a"), (one, None)])
    assert found[0].tokens.segments_BT is None
    assert found[0].name == "a"
    tensors = [found[0].tokens.inputs_BT, found[0].tokens.weights_BT, found[0].reference, found[1][0]]
    assert all(torch.equal(tensor, one + 1) for tensor in tensors)
    devices = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: devices.append((device, threading.get_ident())))
    with Ahead(lambda number: batch, 0, 2, 1, pin=True) as ahead:
        assert torch.equal(ahead.get(0).targets_BT, one + 1)
    ((device, thread),) = devices
    assert (device, thread != threading.get_ident()) == (3, True)


@pytest.mark.gpu
def test_pinned_batches_are_in_page_locked_memory() -> None:
    one = torch.ones(1, 2)
    with Ahead(lambda number: TokenBatch(one, one, one), 0, 2, 1, pin=True) as ahead:
        assert ahead.get(0).inputs_BT.is_pinned()
