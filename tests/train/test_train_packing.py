"""Rows of pre-training: the stream's in their published order, best fit's in closed form and by the loss they give."""

from __future__ import annotations

import mmap
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from document_tables import write_corpus
from gristmill.artifact import StageRun, write_json
from gristmill.errors import GristmillError
from gristmill.events import StageLog
from gristmill.model.config import ModelConfig, ModelShape
from gristmill.model.decoder import Decoder
from gristmill.tokenizer.config import TokenizerConfig, TokensConfig
from gristmill.tokenizer.pack import pack
from gristmill.tokenizer.store import TokenStore, bin_path
from gristmill.tokenizer.train import train_tokenizer
from gristmill.train.config import PretrainConfig
from gristmill.train.data import PretrainBatches, TokenBatch
from gristmill.train.objectives import next_token_loss
from gristmill.train.pretrain import pretrain
from gristmill.train.rows import BestFitRows, PlainText, Row
from token_stores import BOS, make_store

SHAPE = ModelConfig(
    vocab_size=300,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=48,
    max_seq_len=64,
)


def batches(store: TokenStore, batch_size: int = 2, length: int = 8, packing: str = "best_fit") -> PretrainBatches:
    return PretrainBatches(store, batch_size, length, 5, document_mask=False, bos_id=BOS, packing=packing)


def test_rows_in_closed_form(tmp_path: Path) -> None:
    """Documents of 9, 3, 4 and 2 tokens in rows of 4: two full pieces, whose last target is the piece behind; a full
    document; 3 + 1, the 1 being the long document's end; 2 and padding."""
    rows = BestFitRows(PlainText(make_store(tmp_path, {"a": [9, 3, 4, 2]}), "a"), "a", 4, BOS)
    found = []
    for number in range(len(rows)):
        row = Row(*np.full((2, 4), -7), np.full(4, np.nan, np.float32), np.full(4, -7))
        found.append((rows.fill(number, 0, row), [column.tolist() for column in row]))
    assert [filled for filled, _ in found] == [4, 4, 4, 4, 2]
    assert [columns for _, columns in found] == [
        [[0, 2, 3, 4], [2, 3, 4, 5], [1, 1, 1, 1], [1, 1, 1, 1]],
        [[5, 6, 7, 8], [6, 7, 8, 1], [1, 1, 1, 1], [1, 1, 1, 1]],
        [[0, 10, 11, 1], [10, 11, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]],
        [[0, 9, 1, 1], [9, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 2]],
        [[0, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0]],
    ]
    assert rows.tokens(np.array([3, 4])) == 6


def test_an_epoch_reads_every_token_once(tmp_path: Path) -> None:
    lengths = np.random.default_rng(0).integers(2, 40, 60).tolist()
    store = make_store(tmp_path, {"a": lengths})
    made = batches(store, batch_size=1)
    inputs, targets = Counter[int](), Counter[int]()
    count = len(made.rows["a"])
    for step in range(count):
        batch = made(step)
        inputs.update(batch.inputs_BT[batch.segments_BT > 0].tolist())
        targets.update(batch.targets_BT[batch.weights_BT > 0].tolist())
    stored = Counter(store.tokens("train", "a").tolist())
    assert inputs == stored
    del stored[BOS]
    assert targets == stored
    assert made.epochs(count) == {"a": 1.0}
    assert made.tokens(count) == sum(lengths)
    assert made.tokens(2 * count + 3) - 2 * sum(lengths) == sum(
        int((made(2 * count + step).segments_BT > 0).sum()) for step in range(3)
    )
    assert [made(0).inputs_BT.tolist(), made(1).inputs_BT.tolist()] != [
        made(count).inputs_BT.tolist(),
        made(count + 1).inputs_BT.tolist(),
    ]


@pytest.mark.parametrize("positions", ["rope", "alibi", "learned", "sinusoidal"])
def test_the_loss_is_that_of_documents_run_alone(positions: str, tmp_path: Path) -> None:
    lengths = [5, 2, 9, 16, 23, 3, 40, 7, 7, 2]
    store = make_store(tmp_path, {"a": lengths})
    shape = SHAPE.model_copy(update={"vocab_size": store.vocab_size, "positions": positions})
    model = Decoder(shape).init_weights(3).requires_grad_(False)
    made = batches(store, batch_size=1, length=16)
    packed = [made(step) for step in range(len(made.rows["a"]))]
    total, weight = 0.0, 0.0
    tokens, offsets = torch.from_numpy(store.tokens("train", "a").astype(np.int64)), store.offsets("train", "a")
    for first, end in pairwise(offsets.tolist()):
        for start in range(first, end - 1, 16):  # a document alone, cut every 16 tokens where it is longer
            piece = tokens[start : min(start + 17, end)][None]
            alone = TokenBatch(piece[:, :-1], piece[:, 1:], torch.ones_like(piece[:, 1:], dtype=torch.float32))
            total, weight = total + float(next_token_loss(model, alone)[0]), weight + alone.weight
    assert sum(batch.weight for batch in packed) == weight == sum(lengths) - len(lengths)
    assert sum(float(next_token_loss(model, batch)[0]) for batch in packed) == pytest.approx(total, rel=1e-6)


def test_batches_depend_on_the_step_alone(tmp_path: Path) -> None:
    lengths = np.random.default_rng(1).integers(2, 30, 80).tolist()
    store = make_store(tmp_path, {"a": lengths, "b": lengths[:9], "unused": [2]}, {"a": 0.7, "b": 0.3, "unused": 0.0})
    one, other = batches(store), batches(store)
    for step in (700, 2, 0, 41):
        for name in ("inputs_BT", "targets_BT", "weights_BT", "segments_BT"):
            assert torch.equal(getattr(one(step), name), getattr(other(step), name))
    epochs = one.epochs(500)
    assert sum(epochs[name] * len(one.rows[name]) for name in ("a", "b")) == pytest.approx(1000)


def test_stream_rows_come_in_the_order_they_always_came(tmp_path: Path) -> None:
    store = make_store(tmp_path, {"a": [50, 41], "b": [9, 30]}, {"a": 0.75, "b": 0.25})
    made = batches(store, batch_size=3, packing="stream")
    domains = np.where(np.random.default_rng([5, 0]).random(4096)[:60] < 0.75, "a", "b")
    ranks = {"a": 0, "b": 0}
    expected = []
    for domain in domains:
        tokens = store.tokens("train", domain)
        count = (len(tokens) - 1) // 8
        epoch, place = divmod(ranks[domain], count)
        start = 8 * np.random.default_rng([5, 1, "ab".index(domain), epoch]).permutation(count)[place]
        expected.append(tokens[start : start + 9].tolist())
        ranks[domain] += 1
    found = torch.cat([torch.cat([made(s).inputs_BT, made(s).targets_BT[:, -1:]], dim=1) for s in range(20)])
    assert found.tolist() == expected
    assert (made(0).segments_BT, made.tokens(20)) == (None, 480)
    assert torch.equal(made(0).weights_BT, torch.ones(3, 8))


@pytest.mark.parametrize("packing", ["stream", "best_fit"])
def test_rows_are_read_without_what_lies_behind_them(
    packing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []

    class Map(mmap.mmap):
        def madvise(self, option: int, *rest: int) -> None:
            told.append(option)
            super().madvise(option, *rest)

    monkeypatch.setattr("mmap.mmap", Map)
    made = batches(make_store(tmp_path, {"a": [20, 30]}), packing=packing)
    assert made(0).inputs_BT.shape == (2, 8)
    assert told == [mmap.MADV_RANDOM]


def test_cut_documents_of_both_packings(tmp_path: Path) -> None:
    store = make_store(tmp_path, {"a": [6, 6, 20, 4]})
    assert batches(store).cut_documents() == {"cut_documents": 0.25, "cut_documents_stream": 0.5}
    assert batches(store, packing="stream").cut_documents() == {"cut_documents": 0.5, "cut_documents_stream": 0.5}


def test_a_domain_without_tokens_is_named(tmp_path: Path) -> None:
    with pytest.raises(GristmillError, match="domain 'a' has no training tokens"):
        batches(make_store(tmp_path, {"a": []}))


def test_an_unknown_packing_is_named() -> None:
    with pytest.raises(ValidationError, match=r"packing\n.*'stream' or 'best_fit'"):
        PretrainConfig(model={}, training={"steps": 1, "batch_size": 1, "learning_rate": 1}, packing="first_fit")


def test_pretraining_packs_and_says_what_it_cost(tmp_path: Path) -> None:
    def run(name: str, *parents: str) -> StageRun:
        (tmp_path / name / "_scratch").mkdir(parents=True)
        inputs = {parent: tmp_path / parent for parent in parents}
        return StageRun(tmp_path / name, tmp_path / name / "_scratch", inputs, 1, StageLog.silent())

    write_corpus(tmp_path / "corpus", {"mill": ["The mill turns the stone. " * (n % 5 + 1) for n in range(40)]})
    write_json(tmp_path / "corpus" / "report.json", {"weights": {"mill": 1.0}})
    train_tokenizer(TokenizerConfig(vocab_size=270), run("tokenizer", "corpus"))
    pack(TokensConfig(), run("tokens", "corpus", "tokenizer"))
    shape = {name: getattr(SHAPE, name) for name in ModelShape.model_fields}
    training = {"steps": 2, "batch_size": 4, "learning_rate": 0.01, "precision": "fp32", "device": "cpu"}
    config = PretrainConfig(model=shape, sequence_length=64, packing="best_fit", training=training)
    figures = pretrain(config, run("base", "tokenizer", "tokens"))
    assert figures["tokens"] == round((1 - figures["padding"]) * 2 * 4 * 64)
    assert 0 <= figures["padding"] < 0.2
    assert figures["cut_documents"] < figures["cut_documents_stream"]


def test_ids_beyond_the_vocabulary_are_named(tmp_path: Path) -> None:
    store = make_store(tmp_path, {"a": [40, 40]})
    path = bin_path(tmp_path, "train", "a")
    ids = np.fromfile(path, np.uint16)
    ids[5] = 9999
    ids.tofile(path)
    with pytest.raises(GristmillError, match=r"holds the token id 9999, .*run stage tokens again"):
        PretrainBatches(store, 2, 16, 0, False, BOS)(0)
