"""Batches of training: shares of processes, mixtures that change, hidden tokens, turned documents,
and what is refused."""

from __future__ import annotations

from collections import Counter
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gristmill.errors import GristmillError
from gristmill.tokenizer.store import TokenStore
from gristmill.train.config import MixturePhase
from gristmill.train.data import (
    ConversationBatches,
    PretrainBatches,
    Shard,
    TokenBatch,
    check_vocabulary,
    epoch_indices,
    pad_examples,
)
from gristmill.train.fill_in_middle import FillInMiddle, GapTokens, mask_tokens
from gristmill.train.mixture import Mixture
from gristmill.train.rows import MARKS, TurnedText, cut_documents
from token_stores import BOS, make_store

I64 = NDArray[np.int64]
COLUMNS = ("inputs_BT", "targets_BT", "weights_BT", "segments_BT")


def batches(store: TokenStore, batch_size: int = 6, length: int = 8, **changes: object) -> PretrainBatches:
    return PretrainBatches(store, batch_size, length, 5, document_mask=True, bos_id=BOS, **changes)  # type: ignore[arg-type]


def same(one: TokenBatch, other: TokenBatch) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in COLUMNS)


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    lengths = np.random.default_rng(3).integers(3, 40, 90).tolist()
    return make_store(tmp_path / "tokens", {"a": lengths[:50], "b": lengths[50:60], "c": lengths[60:]})


@pytest.mark.parametrize("packing", ["stream", "best_fit"])
def test_the_shares_of_all_processes_are_the_batch(store: TokenStore, packing: str) -> None:
    made = batches(store, packing=packing)
    for step in (0, 7, 400):
        whole = made(step)
        for count in (1, 2, 3, 6):
            parts = [made(step, Shard(rank, count)) for rank in range(count)]
            assert all(len(part.inputs_BT) == 6 // count for part in parts)
            columns = [torch.cat([getattr(part, name) for part in parts]) for name in COLUMNS]
            assert same(TokenBatch(*columns), whole)
            assert sum(part.weight for part in parts) == whole.weight == float(whole.weights_BT.sum())
            assert sum(part.tokens for part in parts) == whole.tokens == 48


def test_processes_that_do_not_divide_a_batch_are_refused(store: TokenStore) -> None:
    with pytest.raises(GristmillError, match=r"batch of 6 sequences .* by 4 processes: .* multiple of 4 \(8, say\)"):
        batches(store)(0, Shard(0, 4))
    with pytest.raises(GristmillError, match="batch of 6 sequences"):
        Shard(0, 7).rows(6)


def test_micro_batches_keep_the_weight() -> None:
    batch = pad_examples([([1, 2, 3], [0, 1, 1]), ([4, 5, 6, 7], [0, 0, 0, 1]), ([8, 9], [0, 1])], pad_id=0)
    assert (batch.weight, batch.tokens) == (4, 9)
    assert [(part.weight, part.tokens) for part in batch.split(2)] == [(3, 6), (1, 3)]
    assert batch.split(None) == [batch]
    assert len(batch.split(3)) == 1


def test_conversations_are_shared_too() -> None:
    examples = [([1] * (3 + n), [0, *[1] * (2 + n)]) for n in range(9)]
    made = ConversationBatches(examples, 4, pad_id=0, seed=1)
    for step in range(5):
        parts = [made.indices(step, Shard(rank, 2)) for rank in range(2)]
        assert parts[0] + parts[1] == made.indices(step) == epoch_indices(9, 4, step, 1)
        assert [made(step, Shard(rank, 2)).weight for rank in range(2)] == [sum(2 + n for n in part) for part in parts]
        assert made.weight(step) == made(step).weight
    first_epoch = made.indices(0) + made.indices(1)
    assert len(set(first_epoch)) == 8
    assert first_epoch != made.indices(2) + made.indices(3)


def phases(*pairs: tuple[int, dict[str, float]]) -> tuple[MixturePhase, ...]:
    return tuple(MixturePhase(from_step=step, weights=weights) for step, weights in pairs)


def test_samples_are_drawn_by_the_weights_of_their_step() -> None:
    changes = phases((300, {"c": 2.0, "b": 6.0}), (600, {"a": 1.0}))
    mixture = Mixture({"a": 0.5, "b": 0.5, "c": 0.0, "d": 0.0}, changes, 10, 7, "here")
    assert mixture.drawn_domains == ["a", "b", "c"]
    domains, ranks = mixture.drawn(0, 8000)
    for (start, end), shares in (
        ((0, 3000), (0.5, 0.5, 0)),
        ((3000, 6000), (0, 0.75, 0.25)),
        ((6000, 8000), (1, 0, 0)),
    ):
        found = np.bincount(domains[start:end], minlength=4) / (end - start)
        assert found == pytest.approx([*shares, 0], abs=4 * 0.5 / (end - start) ** 0.5)
        assert all((found[place] == share) for place, share in enumerate(shares) if share in (0, 1))
    seen: Counter[int] = Counter()
    for domain, rank in zip(domains.tolist(), ranks.tolist(), strict=True):
        assert rank == seen[domain]
        seen[domain] += 1
    assert mixture.counts(8000) == {"a": seen[0], "b": seen[1], "c": seen[2]}


def test_samples_do_not_depend_on_how_far_was_asked_before() -> None:
    far, near = (Mixture({"a": 0.3, "b": 0.7}, phases((900, {"a": 1, "b": 1})), 8, 7, "here") for _ in range(2))
    far.drawn(30_000, 30_010)
    for start in (0, 4090, 4096, 9000, 29_000):
        for one, other in zip(far.drawn(start, start + 16), near.drawn(start, start + 16), strict=True):
            assert one.tolist() == other.tolist()


def test_a_phase_changes_nothing_before_it(store: TokenStore) -> None:
    """Not even where it brings in a domain that was not drawn before; and a batch is the weights' of its own step."""
    plain = batches(store, phases=phases((0, {"b": 1.0, "c": 1.0})))
    changed = batches(store, phases=phases((0, {"b": 1.0, "c": 1.0}), (40, {"a": 1.0})))
    assert all(same(plain(step), changed(step)) for step in (39, 0, 12))
    assert not same(plain(40), changed(40))
    assert changed.epochs(60)["a"] * len(changed.rows["a"]) == 20 * 6
    assert set(plain.rows) == {"b", "c"}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"bocks": 1.0}, r"from step 3 names the domain 'bocks', which .*tokens does not hold: did you mean 'books'\?"),
        ({"xyz": 1.0}, "there are books, web"),
        ({"web": -1.0}, "gives domain 'web' the weight -1.0: give a number from 0 up"),
        ({"web": float("nan")}, "the weight nan"),
        ({"web": 0.0}, "gives no domain of .*tokens a weight above 0"),
        ({}, "gives no domain of .*tokens a weight above 0"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused(weights: dict[str, float], message: str) -> None:
    with pytest.raises(GristmillError, match=message):
        Mixture({"books": 0.5, "web": 0.5}, phases((3, weights)), 4, 0, "run/tokens")


def test_the_last_domain_without_weight_is_never_drawn() -> None:
    """Ten shares of a tenth sum to less than 1 in floating point."""
    mixture = Mixture({**{f"{n}": 0.1 for n in range(10)}, "last": 0.0}, (), 1, 0, "here")
    assert [row[-2:].tolist() for row in mixture._cumulative] == [[1.0, 1.0]]


def test_too_little_text_is_named_before_any_batch(tmp_path: Path) -> None:
    short = make_store(tmp_path / "short", {"a": [5, 3]})
    with pytest.raises(GristmillError, match=r"domain 'a' has 8 training tokens, too few for one sequence of 8"):
        batches(short)
    assert batches(short, length=7)(0).inputs_BT.shape == (6, 7)
    for packing in ("stream", "best_fit"):
        with pytest.raises(GristmillError, match=r"domain 'a' has (no|0) training tokens"):
            batches(make_store(tmp_path / packing, {"a": []}), packing=packing)
    with pytest.raises(GristmillError, match="gives no domain of"):
        batches(make_store(tmp_path / "none", {}))
    with pytest.raises(GristmillError, match="3 examples do not fill one training batch of 4"):
        ConversationBatches([([1, 2], [0, 1])] * 3, 4, 0, 0)


def test_tokens_of_another_vocabulary_are_refused(store: TokenStore) -> None:
    check_vocabulary(store.vocab_size, store)
    with pytest.raises(GristmillError, match=rf"a vocabulary of {store.vocab_size}, .* knows 100:"):
        check_vocabulary(100, store)


def hide(row: I64, *, rng: np.random.Generator) -> tuple[I64, NDArray[np.float32]]:
    hidden = rng.random(len(row)) < 0.3
    return np.where(hidden, 2, row), hidden.astype(np.float32)


@pytest.mark.parametrize("packing", ["stream", "best_fit"])
def test_hidden_tokens_are_to_be_predicted_where_they_stand(store: TokenStore, packing: str) -> None:
    plain, made = batches(store, packing=packing), batches(store, packing=packing, hide=hide)
    count = 0
    for step in (0, 3, 90):
        whole, masked = plain(step), made(step)
        assert torch.equal(masked.targets_BT, whole.inputs_BT)
        shown = masked.weights_BT == 0
        assert torch.equal(masked.inputs_BT[shown], whole.inputs_BT[shown])
        assert (masked.inputs_BT[~shown] == 2).all()
        assert (masked.segments_BT[~shown] > 0).all() or packing == "stream"
        assert torch.equal(masked.segments_BT, whole.segments_BT)
        shares = [made(step, Shard(rank, 3)) for rank in range(3)]
        assert same(masked, TokenBatch(*(torch.cat([getattr(share, name) for share in shares]) for name in COLUMNS)))
        count += int((~shown).sum())
    assert 0.2 * 144 < count < 0.4 * 144
    assert not torch.equal(made(0).weights_BT[0], made(0).weights_BT[1])  # each sample's are drawn by themselves


class Turning:
    """The two halves of every second piece swapped, three marks in front; the second one is the epoch's."""

    def coins(self, count: int) -> NDArray[np.bool_]:
        return np.arange(count) % 2 == 1

    def __call__(self, tokens: I64, document_number: int, epoch: int) -> I64:
        half = len(tokens) // 2
        return np.concatenate([[900, 910 + epoch, 902], tokens[half:], tokens[:half]])


def turned_by_hand(store: TokenStore, length: int, epoch: int = 0) -> list[list[int]]:
    tokens, offsets = store.tokens("train", "a").astype(np.int64), store.offsets("train", "a").tolist()
    pieces: list[list[int]] = []
    for start, end in pairwise(offsets):
        document = tokens[start:end].tolist()
        pieces += [document[place : place + length - 3] for place in range(0, len(document), length - 3)]
    turn = Turning()
    return [
        turn(np.array(piece), number, epoch).tolist() if number % 2 and len(piece) >= 8 else piece
        for number, piece in enumerate(pieces)
    ]


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(2, 60), min_size=1, max_size=12), length=st.integers(8, 24))
def test_turned_text_is_that_of_its_rule(
    lengths: list[int], length: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = make_store(tmp_path_factory.mktemp("tokens"), {"a": lengths})
    pieces = turned_by_hand(store, length)
    text = TurnedText(store, "a", length, Turning())
    assert np.diff(text.pieces).tolist() == [len(piece) for piece in pieces]
    assert max(map(len, pieces)) <= length
    flat = [token for piece in pieces for token in piece]
    for start in range(0, len(flat), 5):
        for end in (start + 1, min(start + length, len(flat)), len(flat)):
            assert text.read(start, end, 0).tolist() == flat[start:end]


def test_rows_of_turned_documents_hold_them_whole_once_an_epoch(store: TokenStore) -> None:
    pieces = turned_by_hand(store, 16)
    of_a = {"turn": Turning(), "phases": phases((0, {"a": 1.0}))}
    stream = batches(store, 1, 16, **of_a)
    count = len(stream.rows["a"])
    for epoch in range(2):
        flat = [token for piece in turned_by_hand(store, 16, epoch) for token in piece]
        rows = [stream(step).inputs_BT[0].tolist() for step in range(epoch * count, (epoch + 1) * count)]
        assert sorted(rows) == sorted(flat[start : start + 16] for start in range(0, len(flat) - 16, 16))
    packed = batches(store, 1, 16, packing="best_fit", **of_a)
    found = []
    for step in range(len(packed.rows["a"])):
        batch = packed(step)
        for number in range(1, int(batch.segments_BT.max()) + 1):
            mine = batch.segments_BT == number
            found.append(batch.inputs_BT[mine].tolist())
            assert batch.targets_BT[mine][:-1].tolist() == found[-1][1:]
            assert batch.weights_BT[mine].tolist() == [1] * (len(found[-1]) - 1) + [0]
    assert sorted(found) == sorted(pieces)
    longer = sum(length > 16 - MARKS for length in np.diff(store.offsets("train", "a")))
    assert packed.cut_documents()["cut_documents"] == longer / 50
    assert stream.tokens(3) == 48


def test_the_project_s_own_ways_to_turn_and_hide(store: TokenStore) -> None:
    marks = GapTokens(prefix=900, middle=901, suffix=902, bos=0, eos=1)
    made = batches(store, 1, 24, packing="best_fit", turn=FillInMiddle(marks, rate=0.5, seed=3))
    plain, turned = Counter[int](), Counter[int]()
    for step in range(len(made.rows["a"])):  # an epoch of each domain, more or less
        row, piece = made(step).inputs_BT[0].numpy(), made(step).segments_BT[0].numpy()
        for number in range(1, int(piece.max()) + 1):
            tokens = row[piece == number].tolist()
            found = [tokens.count(mark) for mark in marks[:3]]
            assert found in ([0, 0, 0], [1, 1, 1])
            (turned if any(found) else plain)[len(tokens)] += 1
    assert sum(turned.values()) == pytest.approx(sum(plain.values()), rel=0.6)
    some = partial(mask_tokens, mask_id=2, vocab_size=50, rate=0.3)
    masked = batches(store, 4, 24, hide=some)(3)
    assert 0 < masked.weight < 0.6 * masked.tokens
    assert ((masked.inputs_BT == masked.targets_BT) | (masked.weights_BT == 1)).all()


def test_pieces_of_long_documents() -> None:
    assert cut_documents(np.array([0, 3, 3, 13, 18]), 5).tolist() == [0, 3, 8, 13, 18]
    assert cut_documents(np.array([0]), 5).tolist() == [0]
