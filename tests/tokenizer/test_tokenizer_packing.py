"""Best-fit packing against a search over all sequences, and what it must never lose."""

from __future__ import annotations

import ast
import inspect

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gristmill.tokenizer import packing
from gristmill.tokenizer.packing import Piece, best_fit, cut_by_stream

LENGTHS = st.lists(st.one_of(st.integers(0, 12), st.integers(0, 200)), max_size=60)


def reference(lengths: list[int], capacity: int) -> list[list[Piece]]:
    """The same packing by looking at every sequence for every document."""
    sequences = [
        [Piece(document, start, start + capacity)]
        for document, length in enumerate(lengths)
        for start in range(0, length - capacity + 1, capacity)
    ]
    rests = [(length % capacity, document) for document, length in enumerate(lengths) if length % capacity]
    packed: list[list[Piece]] = []
    room: list[tuple[int, int]] = []  # of each packed sequence: what is free, and minus when it came to that
    for time, (rest, document) in enumerate(sorted(rests, key=lambda pair: -pair[0])):
        fitting = [(*free, sequence) for sequence, free in enumerate(room) if free[0] >= rest]
        if fitting:
            free, _, sequence = min(fitting)
        else:
            free, sequence = capacity, len(packed)
            packed.append([])
            room.append((capacity, 0))
        packed[sequence].append(Piece(document, lengths[document] - rest, lengths[document]))
        room[sequence] = (free - rest, -time)
    return sequences + packed


@settings(max_examples=300, deadline=None)
@given(lengths=LENGTHS, capacity=st.integers(1, 70))
@example(lengths=[], capacity=4)
@example(lengths=[0, 0], capacity=4)
@example(lengths=[8, 4, 4], capacity=4)
@example(lengths=[3, 5, 2, 7, 2, 3], capacity=8)
def test_best_fit_is_what_a_full_search_finds(lengths: list[int], capacity: int) -> None:
    packed = best_fit(np.array(lengths, np.int64), capacity)
    expected = reference(lengths, capacity)
    assert [packed.pieces(sequence) for sequence in range(len(packed))] == expected
    assert packed.sequence_tokens().tolist() == [sum(p.end - p.start for p in pieces) for pieces in expected]
    assert packed.tokens == sum(lengths)
    assert packed.cut_documents == sum(length > capacity for length in lengths)
    if lengths and sum(lengths):
        assert packed.padding == pytest.approx(1 - sum(lengths) / (len(expected) * capacity))


def test_a_small_packing() -> None:
    """10 is cut into 4, 4 and a rest of 2; 3 + 1 fill a sequence, so do 2 + 2; what is left pads one."""
    packed = best_fit(np.array([10, 3, 1, 2, 3]), 4)
    assert [packed.pieces(sequence) for sequence in range(len(packed))] == [
        [(0, 0, 4)],
        [(0, 4, 8)],
        [(1, 0, 3)],
        [(4, 0, 3), (2, 0, 1)],
        [(0, 8, 10), (3, 0, 2)],
    ]
    assert (packed.tokens, packed.padding, packed.cut_documents) == (19, pytest.approx(1 / 20), 1)


def test_every_token_stands_in_one_place_of_many_sequences() -> None:
    lengths = np.exp(np.random.default_rng(3).normal(4.5, 1.3, 20_000)).astype(np.int64) + 2
    packed = best_fit(lengths, 512)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    used = np.zeros(starts[-1], np.int8)
    for sequence in range(len(packed)):
        pieces = packed.pieces(sequence)
        assert 0 < sum(piece.end - piece.start for piece in pieces) <= 512
        for document, start, end in pieces:
            used[starts[document] + start : starts[document] + end] += 1
    assert used.min() == used.max() == 1
    assert packed.padding < 0.001


def test_documents_cut_by_a_stream() -> None:
    assert cut_by_stream(np.array([0, 4, 7, 9, 9, 12]), 4) == 1  # 7 to 8 lies across the border at 8
    assert cut_by_stream(np.array([0, 9]), 4) == 1
    assert cut_by_stream(np.array([0]), 4) == 0


@pytest.mark.parametrize(("lengths", "capacity"), [([3], 0), ([3, -1], 4)])
def test_what_cannot_be_packed(lengths: list[int], capacity: int) -> None:
    with pytest.raises(ValueError, match="capacity must be at least 1, and no length below 0"):
        best_fit(np.array(lengths), capacity)


def test_compiled_functions_call_none_of_another_file() -> None:
    """Numba keeps machine code until the file of the function changes, and looks at no other file."""
    tree = ast.parse(inspect.getsource(packing))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.decorator_list]
    compiled = [node for node in functions if any(getattr(d, "id", "") == "compiled" for d in node.decorator_list)]
    assert len(compiled) == 3
    for function in compiled:
        called = {
            node.func.id for node in ast.walk(function) if isinstance(node, ast.Call) and hasattr(node.func, "id")
        }
        assert called <= {"range", "len", "max"}
