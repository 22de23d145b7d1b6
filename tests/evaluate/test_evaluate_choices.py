"""Multiple choice: what is encoded, how likely it is, which choice counts as taken."""

from __future__ import annotations

import math
import random
from itertools import chain
from pathlib import Path

import pytest
import torch
from benchmark_models import VARIANTS, long_way, random_decoder

from gristmill.errors import GristmillError
from gristmill.evaluate.benchmarks.config import MultipleChoice
from gristmill.evaluate.benchmarks.items import Item
from gristmill.evaluate.benchmarks.judging import judge_choices
from gristmill.evaluate.benchmarks.likelihood import Likelihood, log_likelihoods
from gristmill.evaluate.benchmarks.rows import make_batches, make_rows
from gristmill.evaluate.benchmarks.sequences import Pair, Scored, encode_pairs
from gristmill.evaluate.intervals import wilson
from gristmill.evaluate.tasks import WORDS
from gristmill.tokenizer.config import TokenizerConfig
from gristmill.tokenizer.tokenizer import Tokenizer
from gristmill.tokenizer.train import train_on_texts


@pytest.fixture(scope="module")
def tokenizer(small_run: dict[str, Path]) -> Tokenizer:
    return Tokenizer.load(small_run["base"])


def question(trunk: int, lengths: list[int], seed: int = 0) -> list[Scored]:
    """Sequences with `trunk` ids in common and continuations of these lengths that differ in their first id."""
    rng = random.Random(seed)
    common = [rng.randrange(320) for _ in range(trunk)]
    tails = [
        [10 * place + rng.randrange(10), *(rng.randrange(320) for _ in range(n - 1))] for place, n in enumerate(lengths)
    ]
    return [Scored((*common, *tail), trunk) for tail in tails]


QUESTIONS = [question(9, [1, 4, 2], 1), question(14, [3, 3], 2), question(3, [5], 3), question(9, [2, 2, 2, 6], 4)]


def test_the_ids_are_those_of_the_whole_text(tokenizer: Tokenizer) -> None:
    (scored,) = encode_pairs(tokenizer, [Pair("The wheel turned", " again and again.")], 64)
    assert scored.ids[0] == tokenizer.bos_id
    assert list(scored.ids[1:]) == tokenizer.encode("The wheel turned again and again.")
    assert tokenizer.decode(scored.ids[scored.start :], continues=True) == " again and again."


def test_spaces_at_the_end_of_a_context_belong_to_the_continuation(tokenizer: Tokenizer) -> None:
    moved, plain = encode_pairs(tokenizer, [Pair("The wheel  ", "turned"), Pair("The wheel", "  turned")], 64)
    assert moved == plain


def test_a_token_over_the_border_is_the_continuations(tokenizer: Tokenizer) -> None:
    """ "again" is one token: cut inside it, the context keeps what stays a token of the whole text."""
    (scored,) = encode_pairs(tokenizer, [Pair("The wheel turned aga", "in.")], 64)
    assert list(scored.ids[1:]) == tokenizer.encode("The wheel turned again.")
    assert tokenizer.decode(scored.ids[scored.start :], continues=True).strip() == "again."


def test_an_empty_context_is_bos(tokenizer: Tokenizer) -> None:
    (scored,) = encode_pairs(tokenizer, [Pair("", "again")], 64)
    assert scored.ids == (tokenizer.bos_id, *tokenizer.encode("again"))
    assert scored.start == 1


def test_long_contexts_are_cut_on_the_left(tokenizer: Tokenizer) -> None:
    text = "The miller ground the corn. " * 9
    (whole,) = encode_pairs(tokenizer, [Pair(text, "again")], 10_000)
    (cut,) = encode_pairs(tokenizer, [Pair(text, "again")], 20)
    assert cut.ids == whole.ids[-21:]
    assert cut.continuation == whole.continuation
    assert cut.cut == len(whole.ids) - 21


@pytest.mark.parametrize(("answer", "length", "said"), [("again " * 30, 8, "longer than the 8"), ("", 64, "is empty")])
def test_answers_that_cannot_be_scored_are_refused(tokenizer: Tokenizer, answer: str, length: int, said: str) -> None:
    with pytest.raises(GristmillError, match=said):
        encode_pairs(tokenizer, [Pair("The wheel turned", answer)], length)


def test_chats_are_scored_as_replies(tokenizer: Tokenizer) -> None:
    (scored,) = encode_pairs(tokenizer, [Pair("The wheel", " turned", chat=True)], 64)
    head = tokenizer.chat_ids([{"role": "user", "content": "The wheel"}], add_generation_prompt=True)
    assert list(scored.ids) == head + tokenizer.encode("turned")
    assert scored.start == len(head)


@pytest.mark.parametrize("kind", ["bpe", "sentencepiece", "unigram", "wordpiece"])
def test_every_kind_of_tokenizer_keeps_the_text(kind: str, tmp_path: Path) -> None:
    texts = [f"Question: what turned? Answer: the wheel. {word} and {word}" for word in WORDS] * 3
    train_on_texts(TokenizerConfig.model_validate({"kind": kind, "vocab_size": 400}), texts, tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    (scored,) = encode_pairs(tokenizer, [Pair("Question: what turned? Answer: ", "the wheel")], 64)
    assert scored.ids[0] == tokenizer.bos_id
    assert list(scored.ids[1:]) == tokenizer.encode("Question: what turned? Answer: the wheel")
    assert tokenizer.decode(scored.ids[scored.start :], continues=True) == " the wheel"


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_likelihoods_are_those_of_each_sequence_alone(variant: str, share: bool) -> None:
    model = random_decoder(variant)
    found = log_likelihoods(model, QUESTIONS, batch_tokens=40, share=share)
    for group, likelihoods in zip(QUESTIONS, found, strict=True):
        for scored, likelihood in zip(group, likelihoods, strict=True):
            value, greedy = long_way(model, scored.ids, scored.start)
            assert likelihood.log_likelihood == pytest.approx(value, abs=2e-4)
            assert (likelihood.greedy, likelihood.tokens) == (greedy, scored.continuation)


@pytest.mark.parametrize("share", [True, False])
def test_equal_choices_are_equally_likely_to_the_last_bit(share: bool) -> None:
    """Else rounding, which differs by the place in a row, would decide which of them is taken."""
    model = random_decoder()
    for seed in range(8):
        first, second, *_ = question(12, [5, 4, 3], seed)
        (found,) = log_likelihoods(model, [[first, second, second, first, second]], share=share)
        assert found == [found[0], found[1], found[1], found[0], found[1]]


def test_the_common_beginning_is_read_once() -> None:
    (row,) = make_rows([question(9, [1, 4, 2])], share=True)
    assert (row.shared, row.length) == (9, 9 + 0 + 3 + 1)
    ids, positions, segments = row.inputs()
    assert positions == [*range(9), 9, 10, 11, 9]
    assert segments == [0] * 9 + [2, 2, 2, 3]
    assert ids == [*row.sequences[0].ids[:9], *row.sequences[1].ids[9:12], row.sequences[2].ids[9]]


def test_sequences_that_are_the_same_or_begin_with_one_another() -> None:
    """The trunk then holds all that the shortest reads, and reaches into what is scored."""
    model = random_decoder()
    one = question(6, [5])[0]
    group = [one, one, Scored(one.ids[:-2], one.start)]
    (found,) = log_likelihoods(model, [group])
    for scored, likelihood in zip(group, found, strict=True):
        assert likelihood.log_likelihood == pytest.approx(long_way(model, scored.ids, scored.start)[0], abs=1e-4)


def test_batches_hold_rows_of_like_length_within_the_limit() -> None:
    rows = make_rows([question(5 + seed % 17, [1 + seed % 4] * (1 + seed % 3), seed) for seed in range(60)], share=True)
    batches = make_batches(rows, 100)
    assert sorted(row.keys for batch in batches for row in batch) == sorted(row.keys for row in rows)
    for batch in batches:
        assert len(batch) * max(row.length for row in batch) <= 100
        assert len({row.branches for row in batch}) == 1
        assert [row.length for row in batch] == sorted((row.length for row in batch), reverse=True)
    assert all(len(batch) == 1 for batch in make_batches(rows, 1))


def test_the_size_of_batches_changes_nothing() -> None:
    model, seen = random_decoder(), []
    one = log_likelihoods(model, QUESTIONS, batch_tokens=1)
    all_at_once = log_likelihoods(model, QUESTIONS, batch_tokens=10_000, on_progress=lambda *at: seen.append(at))
    for a, b in zip(chain(*one), chain(*all_at_once), strict=True):
        assert a.log_likelihood == pytest.approx(b.log_likelihood, abs=1e-4)
    assert seen[-1] == (10, 10)
    assert log_likelihoods(model, QUESTIONS) == log_likelihoods(model, QUESTIONS)


def test_many_predictions_go_through_the_head_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_decoder()
    whole = log_likelihoods(model, QUESTIONS)
    monkeypatch.setattr("gristmill.evaluate.benchmarks.likelihood.LOGITS_BYTES", 3 * 4 * 320)
    for a, b in zip(chain(*whole), chain(*log_likelihoods(model, QUESTIONS)), strict=True):
        assert a.log_likelihood == pytest.approx(b.log_likelihood, abs=1e-5)


ANSWERS = ("aaaaaaaa", "éé", "bbbbb", "c")
VALUES = (-8.0, -3.5, -4.0, -2.0)  # raw: the fourth; per byte: 1, .875, .8, 2; per character: 1, 1.75, .8, 2
TOKENS = (16, 4, 2, 1)  # per token: .5, .875, 2, 2


def test_each_length_takes_another_choice() -> None:
    benchmark = MultipleChoice(name="x", file="x")
    likelihoods = [[Likelihood(v, False, t) for v, t in zip(VALUES, TOKENS, strict=True)]] * 4
    items = [Item(("?",), ANSWERS, gold, "") for gold in (3, 2, 2, 0)]
    judged = judge_choices(benchmark, items, likelihoods, 0.95)
    assert judged.records[0]["taken"] == {"raw": 3, "bytes": 2, "characters": 2, "tokens": 0}
    assert {name: figure.value for name, figure in judged.figures.items()} == {
        "accuracy_raw": 0.25, "accuracy_bytes": 0.5, "accuracy_characters": 0.5, "accuracy_tokens": 0.25,
    }  # fmt: skip
    assert judged.chance == 0.25
    assert judged.quoted == "accuracy_bytes"
    longer = [[Likelihood(v, False, 1) for v in (-8.0, -3.0, -4.0, -2.0)]] * 4  # per byte .75, per character 1.5
    assert judge_choices(benchmark, items, longer, 0.95).records[0]["taken"] == {
        "raw": 3, "bytes": 1, "characters": 2, "tokens": 3,
    }  # fmt: skip


def test_errors_and_intervals_of_an_accuracy() -> None:
    likelihoods = [[Likelihood(-1.0, False, 1), Likelihood(-1.0, False, 1)]] * 8  # equals: the first is taken
    items = [Item(("?",), ("a", "b"), gold, "") for gold in (0, 0, 0, 0, 0, 0, 1, 1)]
    figure = judge_choices(MultipleChoice(name="x", file="x"), items, likelihoods, 0.9).figures["accuracy_raw"]
    assert figure.value == 0.75
    assert figure.stderr == pytest.approx(torch.tensor([1.0] * 6 + [0.0] * 2).std().item() / math.sqrt(8))
    assert (figure.low, figure.high) == wilson(6, 8, 0.9)


def test_a_model_that_gives_no_numbers_is_named() -> None:
    items = [Item(("?",), ("a", "b"), 0, "")] * 2
    with pytest.raises(GristmillError, match="x: the model gives item 0"):
        judge_choices(MultipleChoice(name="x", file="x"), items, [[Likelihood(math.nan, False, 1)] * 2] * 2, 0.95)
