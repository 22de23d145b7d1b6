"""Fill-in-the-middle: documents turned so that their middle comes last."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gristmill.errors import GristmillError
from gristmill.train.fill_in_middle import GOLDEN, FillInMiddle, GapTokens, _mixed

PREFIX, MIDDLE, SUFFIX, BOS, EOS = 90, 91, 92, 0, 1
MARKS = GapTokens(PREFIX, MIDDLE, SUFFIX, BOS, EOS)


def turned(tokens, number=0, epoch=0, seed=1):
    return FillInMiddle(MARKS, 0.5, seed)(np.array(tokens), number, epoch).tolist()


def read_back(tokens):
    """The order and the document that a turned one tells of."""
    order = "SPM" if tokens[tokens.index(PREFIX) + 1] == SUFFIX else "PSM"
    first, left = tokens[: tokens.index(PREFIX)], tokens[tokens.index(PREFIX) + 1 :]
    last = left[-1:] if left[-1] == EOS else []
    left = left[: len(left) - len(last)]
    if order == "PSM":
        before, rest = left[: left.index(SUFFIX)], left[left.index(SUFFIX) + 1 :]
        after, middle = rest[: rest.index(MIDDLE)], rest[rest.index(MIDDLE) + 1 :]
        return order, first + before + middle + after + last
    after, rest = left[1 : left.index(MIDDLE)], left[left.index(MIDDLE) + 1 :]
    return order, (first, rest, after, last)


@given(
    st.lists(st.integers(2, 89), min_size=1, max_size=12),
    st.booleans(),
    st.booleans(),
    st.integers(0, 10**6),
    st.integers(0, 3),
)
def test_a_turned_document_tells_the_whole_document(text, begun, ended, number, epoch):
    document = [BOS] * begun + text + [EOS] * ended
    tokens = turned(document, number, epoch)
    assert len(tokens) == len(document) + 3
    assert tokens == turned(document, number, epoch)
    assert sorted(tokens) == sorted([*document, PREFIX, MIDDLE, SUFFIX])
    order, told = read_back(tokens)
    if order == "PSM":
        assert told == document
    else:  # where prefix ends and middle begins is not marked: they follow each other
        first, together, after, last = told
        assert first + together + after + last == document


def test_both_orders_come_up_evenly():
    counts = Counter(read_back(turned(range(2, 90), number))[0] for number in range(1000))
    assert 430 < counts["PSM"] < 570


def test_all_cuts_come_up_evenly():
    cuts = Counter(
        (tokens.index(SUFFIX) - tokens.index(PREFIX) - 1, tokens.index(EOS) - tokens.index(MIDDLE) - 1)
        for tokens in (turned([BOS, 5, 6, EOS], number) for number in range(4000))
        if read_back(tokens)[0] == "PSM"
    )
    # Both cuts fall on one of 3 places; with an empty prefix the orders look alike, so both fell behind the 5 or the 6.
    assert set(cuts) == {(1, 0), (1, 1), (2, 0)}
    for (_, middle), count in cuts.items():
        assert abs(count / cuts.total() - (0.5 if middle else 0.25)) < 0.05


def test_cuts_are_drawn_anew_for_each_document_epoch_and_seed():
    text = list(range(2, 80))
    for change in range(3):
        others = [turned(text, *(step if place == change else 1 for place in range(3))) for step in range(10)]
        assert len(set(map(tuple, others))) > 7


def test_the_generator_is_splitmix64():
    """The numbers that the reference implementation gives from the seed 1234567."""
    numbers = [_mixed(1234567 + place * GOLDEN) for place in range(1, 4)]
    assert numbers == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_coins_fall_by_the_rate_and_do_not_depend_on_how_many_are_asked_for():
    turn = FillInMiddle(MARKS, 0.3, 7)
    assert abs(turn.coins(10_000).mean() - 0.3) < 0.02
    assert (turn.coins(10_000)[:50] == turn.coins(50)).all()
    assert not FillInMiddle(MARKS, 0.0, 7).coins(100).any()
    assert FillInMiddle(MARKS, 1.0, 7).coins(100).all()


def test_an_empty_document_is_refused():
    with pytest.raises(GristmillError, match="document 3 has no tokens"):
        turned([], 3)


def test_a_tokenizer_without_the_marks_is_refused_with_what_to_set():
    ids = {"<|fim_prefix|>": 90, "<|fim_middle|>": 91, "<|fim_suffix|>": 92}

    def tokenizer(known, special):
        backend = SimpleNamespace(token_to_id=known.get)
        return SimpleNamespace(backend=backend, special_ids=special, bos_id=BOS, eos_id=EOS)

    assert GapTokens.of(tokenizer(ids, {90, 91, 92})) == MARKS
    for known, special in (({}, set()), (ids, {90, 91})):
        with pytest.raises(GristmillError, match=r"set tokenizer\.fill_in_the_middle: true"):
            GapTokens.of(tokenizer(known, special))
