"""The n-gram model: its numbers against KenLM's and against sums that must be 1, its files, its words."""

from __future__ import annotations

import gzip
import itertools
import json
import math
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from gristmill.data.kernel.layout import texts_of
from gristmill.data.ngram import NgramModel, load_model, read_arpa, train_ngram, train_ngram_files, write_arpa
from gristmill.data.ngram.kneser_ney import FALLBACK, discounts
from gristmill.data.ngram.words import Tokenization, sentences, spelling
from gristmill.errors import GristmillError

VECTORS = Path(__file__).parent / "vectors" / "kenlm.json.gz"


@cache
def vectors() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(gzip.decompress(VECTORS.read_bytes()))
    return found


def trained(
    out: Path, order: int, documents: list[str] | None = None, tokenization: Tokenization = "words"
) -> NgramModel:
    train_ngram(vectors()["train"] if documents is None else documents, order, out, tokenization)
    return load_model(out, tokenization)


def lines_of(arpa: str) -> dict[str, tuple[float, float]]:
    """words -> (log10 probability, log10 back-off weight) of an ARPA file."""
    rows = (line.split("\t") for line in arpa.splitlines())
    return {row[1]: (float(row[0]), float(row[2]) if len(row) > 2 else 0.0) for row in rows if len(row) > 1}


def split(text: str, tokenization: Tokenization = "words") -> str:
    texts = texts_of(pa.array([text]))
    found = sentences(texts, tokenization)
    words = (
        "|" if not number else spelling(texts.data[start:end].tobytes(), tokenization).decode()
        for number, start, end in zip(found.hashes, found.starts, found.ends, strict=True)
    )
    return " ".join(words)


def test_every_ngram_is_kenlms(tmp_path: Path) -> None:
    trained(tmp_path / "own.arpa", 3)
    own, kenlm = lines_of((tmp_path / "own.arpa").read_text()), lines_of(vectors()["arpa"]["3"])
    assert len(kenlm) > 10_000
    assert own.keys() == kenlm.keys()
    difference = max(abs(own[words][k] - kenlm[words][k]) for words in kenlm for k in (0, 1))
    assert difference < 2e-6  # lmplz prints 7 or 8 digits of a float


@pytest.mark.parametrize("order", [3, 5])
def test_held_out_text_scores_as_in_kenlm(order: int, tmp_path: Path) -> None:
    model = trained(tmp_path / "own", order)
    logs, tokens, unknown = model.score(texts_of(pa.array(vectors()["held_out"])))
    expected = np.array(vectors()["query"][str(order)])
    np.testing.assert_allclose(logs, expected[:, 0], rtol=1e-5)
    assert tokens.tolist() == expected[:, 1].tolist()
    assert 0 < unknown.sum() < tokens.sum() / 2


def test_kenlms_arpa_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "kenlm.arpa.gz"
    path.write_bytes(gzip.compress(vectors()["arpa"]["3"].encode()))
    model = load_model(path)
    assert model.closed
    logs, _, _ = model.score(texts_of(pa.array(vectors()["held_out"])))
    np.testing.assert_allclose(logs, np.array(vectors()["query"]["3"])[:, 0], rtol=1e-5)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_probabilities_sum_to_one(order: int, tmp_path: Path) -> None:
    """After any context, seen or not, the probabilities of all words, `<unk>` and `</s>` sum to 1."""
    documents = ["a b a c", "b a", "a b c d e a b", "c c a b d", "e"] * 2 + ["a d d b"]
    model = trained(tmp_path / "m", order, documents, "spaces")
    vocabulary = [word.decode() for word in model.words if word not in (b"<unk>", b"<s>", b"</s>")]
    probability = {
        words: 10.0 ** logs[0]
        for words, logs in zip(
            _prefixes(vocabulary, order), zip(*_log_of_prefixes(model, vocabulary, order), strict=True), strict=True
        )
    }
    for context in [(), *itertools.product(vocabulary, repeat=order - 1)]:
        before = probability[context] if context else 1.0
        following = sum(probability[(*context, word)] / before for word in [*vocabulary, "unheard-of"])
        ended = (
            10.0 ** (model.score(texts_of(pa.array([" ".join(context) or " "])))[0][0]) / before if context else None
        )
        if ended is not None:
            assert following + ended == pytest.approx(1, abs=1e-5)


def _prefixes(vocabulary: list[str], order: int) -> list[tuple[str, ...]]:
    words = [*vocabulary, "unheard-of"]
    return [p for n in range(1, order + 1) for p in itertools.product(words, repeat=n)]


def _log_of_prefixes(model: NgramModel, vocabulary: list[str], order: int) -> tuple[list[float]]:
    """log10 of the probability of a sentence's first words, whatever follows: of the sentence less its end."""
    found = []
    for prefix in _prefixes(vocabulary, order):
        ids = np.array([1, *(_id(model, word) for word in prefix)], np.uint32)
        places = np.arange(len(ids), dtype=np.uint32)
        found.append(float(model._word_logs(ids, places)[1:].astype(np.float64).sum()))
    return (found,)


def _id(model: NgramModel, word: str) -> int:
    return model.words.index(word.encode()) if word.encode() in model.words else 0


def test_discounts_are_chen_and_goodmans() -> None:
    counts = np.repeat(np.array([1, 2, 3, 4, 9], np.uint32), [60, 20, 10, 5, 7])
    y = 60 / (60 + 2 * 20)
    assert discounts(counts) == pytest.approx((1 - 2 * y * 20 / 60, 2 - 3 * y * 10 / 20, 3 - 4 * y * 5 / 10))
    assert discounts(np.array([1, 1, 1], np.uint32)) == FALLBACK


def test_adjusted_counts_count_contexts(tmp_path: Path) -> None:
    """A word that follows many others is likelier where it was never seen than one that follows few as often."""
    documents = [f"x{i} common" for i in range(20)] + ["new york"] * 20 + ["z y", "z z", "y y y"]
    model = trained(tmp_path / "m", 2, documents, "spaces")
    assert model.perplexity("y common") < model.perplexity("y york") / 2


def test_same_documents_same_bytes(tmp_path: Path) -> None:
    batches = [pa.record_batch({"text": vectors()["train"][k : k + 3]}) for k in range(0, len(vectors()["train"]), 3)]
    figures = train_ngram(vectors()["train"], 3, tmp_path / "a")
    assert train_ngram(batches, 3, tmp_path / "b") == figures
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert figures["documents"] == len(vectors()["train"])
    assert figures["ngrams"][0] == figures["vocabulary"]


def test_a_model_survives_its_files(tmp_path: Path) -> None:
    model = trained(tmp_path / "m", 3)
    write_arpa(model, tmp_path / "m.arpa.gz")
    texts = texts_of(pa.array(vectors()["held_out"]))
    again = read_arpa(tmp_path / "m.arpa.gz", "words")
    np.testing.assert_allclose(again.score(texts)[0], model.score(texts)[0], rtol=1e-7)
    assert again.counts == model.counts
    write_arpa(again, tmp_path / "again.arpa.gz")
    assert (tmp_path / "again.arpa.gz").read_bytes() == (tmp_path / "m.arpa.gz").read_bytes()


def test_scores_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    model = trained(tmp_path / "m", 4)
    documents = [*vectors()["held_out"], "", "one more"]
    together = model.perplexities(texts_of(pa.array(documents)))
    alone = [model.perplexity(document) for document in documents]
    np.testing.assert_array_equal(together, alone)
    assert math.isnan(alone[-2])


def test_a_pruned_arpa_file_backs_off(tmp_path: Path) -> None:
    """SRILM may leave out `b c` and keep `a b c`; by hand: p(c|a b) is read, p(c|b) is back-off of b times p(c)."""
    path = tmp_path / "pruned.arpa"
    path.write_text(
        "\\data\\\nngram 1=5\nngram 2=2\nngram 3=1\n\n\\1-grams:\n-1\t</s>\n-99\t<s>\t-0.5\n-0.6\ta\t-0.3\n"
        "-0.7\tb\t-0.2\n-0.8\tc\t-0.1\n\n\\2-grams:\n-0.4\ta b\t-0.05\n-0.45\t<s> a\t-0.15\n"
        "\n\\3-grams:\n-0.11\ta b c\n\n\\end\\\n"
    )
    model = read_arpa(path, "spaces")
    assert not model.closed
    logs, tokens, unknown = model.score(texts_of(pa.array(["a b c", "b c", "a d"])))
    assert logs[0] == pytest.approx(-0.45 + (-0.15 - 0.4) - 0.11 + (-0.1 - 1), abs=1e-6)
    assert logs[1] == pytest.approx((-0.5 - 0.7) + (-0.2 - 0.8) + (-0.1 - 1), abs=1e-6)
    assert logs[2] == pytest.approx(-0.45 + (-0.15 - 0.3 - 100) - 1, abs=1e-4)
    assert tokens.tolist() == [4, 3, 3]
    assert unknown.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no arpa\n", "is no ARPA file"),
        (b"mmap lm http://kheafield.com/code format version 5\n\0", "KenLM's binary format"),
        (b"\\data\\\nngram 1=3\n\n\\1-grams:\n-1\ta\n-1\t<s>\n", "line 7: no 1-gram, though 1 more"),
        (b"\\data\\\nngram 1=2\nngram 2=1\n\n\\1-grams:\n-1\t</s>\n-1\t<s>\n", "no section \\\\2-grams:"),
        (b"\\data\\\nngram 1=1\n\n\\1-grams:\n-1\ta\n", "no <s> or </s>"),
        (
            b"\\data\\\nngram 1=2\nngram 2=1\n\n\\1-grams:\n-1\t</s>\n-1\t<s>\n\n\\2-grams:\n-1\t<s> q\n",
            "'<s> q' holds a word",
        ),
        (b"\x1f\x8bno gzip", "cannot be read"),
    ],
)
def test_a_broken_arpa_file_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "broken").write_bytes(content)
    with pytest.raises(GristmillError, match=message):
        load_model(tmp_path / "broken")


def test_a_torn_model_is_named(tmp_path: Path) -> None:
    trained(tmp_path / "m", 2)
    (tmp_path / "m").write_bytes((tmp_path / "m").read_bytes()[:-100])
    with pytest.raises(GristmillError, match="is torn"):
        load_model(tmp_path / "m")


def test_nothing_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(GristmillError, match="no word to train"):
        train_ngram(["", " \n"], 3, tmp_path / "m")
    with pytest.raises(GristmillError, match="keeps for itself"):
        train_ngram(["a <s> b"], 3, tmp_path / "m", "spaces")
    with pytest.raises(GristmillError, match="--order 9"):
        train_ngram_files([tmp_path], 9, tmp_path / "m")


def test_training_from_files(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    for k, document in enumerate(vectors()["train"][:4]):
        (tmp_path / "text" / f"{k}.txt").write_text(document)
    figures = train_ngram_files([tmp_path / "text"], 2, tmp_path / "m")
    assert figures["documents"] == 4
    assert figures["mb_per_cpu_second"] > 0
    own = trained(tmp_path / "n", 2, vectors()["train"][:4])
    assert own.perplexity("Marcellus and Bernardo") == load_model(tmp_path / "m").perplexity("marcellus AND bernardo")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello World!", "hello world ! |"),
        (
            'He said "Stop." (Really.) It cost 3.50 in 2019',
            'he said " stop . " | ( really . ) | it cost 0 . 00 in 0000 |',
        ),
        ("wrapped\nlines are one sentence\n\nnew one", "wrapped lines are one sentence | new one |"),
        ("blank line \n \t\n here", "blank line | here |"),
        ("ÀÉ ΣΑΣ ЖЁ İ", "àé σασ жё İ |"),
        ("川は流れる。「はい。」次！", "川 は 流 れ る 。 | 「 は い 。 」 | 次 ！ |"),
        ("don't a_b x²", "don ' t a_b x² |"),
        ("e\u0301 is one\u00a0word", "e\u0301 is one word |"),
        ("... ", ". . . |"),
        ("", ""),
        (" \n\n ", ""),
    ],
)
def test_words_and_sentences(text: str, expected: str) -> None:
    assert split(text) == expected


def test_text_split_at_blanks() -> None:
    assert split("A b\n\n c.  d \n", "spaces") == "A b | c. d |"


def test_counts_are_plain_counts(tmp_path: Path) -> None:
    from gristmill.data.ngram.counts import NgramCounts

    counts = NgramCounts(2, "spaces")
    documents = ["a b a", "b a b a", "c"]
    counts.add(texts_of(pa.array(documents)))
    expected = Counter(p for d in documents for p in itertools.pairwise(["<s>", *d.split(), "</s>"]))
    names = [word.decode() for word in counts.words]
    found = {
        (names[key >> 32], names[key & 0xFFFFFFFF]): count
        for key, count in zip(counts.keys(2).tolist(), counts.counts(2).tolist(), strict=True)
    }
    assert found == expected
    before = Counter(second for _, second in expected)
    assert {name: count for name, count in zip(names, counts.counts(1).tolist(), strict=True) if count} == before
