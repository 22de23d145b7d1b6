"""Fertility: counts against Python's own, samples of a corpus, merges against the library's ids, the report."""

from __future__ import annotations

import gettext
import json
import re
import struct
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_rooms import HARD_TEXTS, WEIGHTS, example_shards, write_corpus

from gristmill.errors import GristmillError
from gristmill.tokenizer.explain import LONGEST_WORD, MergeTable, pieces_of
from gristmill.tokenizer.fertility import Fertility, TextSample, corpus_samples, fertility, measure, token_counts
from gristmill.tokenizer.report import build as report_module
from gristmill.tokenizer.report import parallel
from gristmill.tokenizer.report.build import corpus_text, files_text, make_report, own_entry, write_report
from gristmill.tokenizer.report.page import table
from gristmill.tokenizer.report.parallel import installed_text, parallel_text, read_messages
from gristmill.tokenizer.tokenizer import Tokenizer


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=30), max_size=6))
def test_words_are_those_of_str_split(texts):
    texts = [f"written with spaces {text}" for text in texts if not any(ord(c) > 0x0E00 for c in text)]
    assert TextSample.of(texts).words == sum(len(text.split()) for text in texts)


def test_tokens_bytes_and_characters_are_counted(tokenizer):
    found = fertility(tokenizer, HARD_TEXTS)
    assert found.tokens == sum(len(ids) for ids in tokenizer.encode_batch(HARD_TEXTS))
    assert found.bytes == sum(len(text.encode()) for text in HARD_TEXTS)
    assert found.characters == sum(map(len, HARD_TEXTS))
    assert found.documents == len(HARD_TEXTS)
    assert found.bytes_per_token == pytest.approx(found.bytes / found.tokens)
    assert found.tokens_per_character == pytest.approx(found.tokens / found.characters)


def test_counts_add_up_over_parts(tokenizer):
    texts = HARD_TEXTS * 17  # more than one batch
    parts = [fertility(tokenizer, [text]) for text in texts]
    assert sum(parts, Fertility()) == fertility(tokenizer, iter(texts))


@pytest.mark.parametrize(
    ("text", "spaced"),
    [
        ("The miller waits.", True),
        ("物語は水車で始まる。", False),
        ("ภาษาไทยเขียนโดยไม่เว้นวรรค", False),
        ("한국어는 띄어쓰기를 한다", True),
        ("Das Wort 水車 heißt Wassermühle.", True),
        ("東京 2024 (日本語) ok", False),
        ("12345 --- 678", True),
        ("", True),
    ],
)
def test_words_are_counted_only_where_spaces_are_written(tokenizer, text, spaced):
    found = fertility(tokenizer, [text])
    assert found.words == (len(text.split()) if spaced else 0)
    assert found.spaced_tokens == (found.tokens if spaced else 0)
    assert found.tokens == len(tokenizer.encode(text))


def test_whole_words_are_those_of_one_token_behind_a_blank(tokenizer):
    text = "The miller, turns the wheel; and the xylophone! 42 times"
    words = ["The", "miller", "turns", "the", "wheel", "and", "the", "xylophone", "times"]
    whole = sum(len(tokenizer.encode(f" {word}")) == 1 for word in words)
    found = fertility(tokenizer, [text])
    assert (found.letter_words, found.whole_words) == (len(words), whole)
    assert 0 < whole < len(words)
    assert found.whole_word_share == pytest.approx(whole / len(words))


def test_nothing_is_no_word():
    nothing = Fertility()
    assert (nothing.tokens_per_word, nothing.bytes_per_token, nothing.whole_word_share) == (0, 0, 0)


def test_a_corpus_is_sampled_by_domain_and_language(tmp_path, tokenizer):
    rows = [
        {**row, "language": "de" if row["domain"] == "web" else "en"} for shard in example_shards() for row in shard
    ]
    corpus = write_corpus(tmp_path / "corpus", [rows[:300], rows[300:]], WEIGHTS)
    whole = corpus_samples(corpus, "validation")
    assert list(whole) == [("books", "en"), ("code", "en"), ("web", "de")]
    for (domain, _), sample in whole.items():
        expected = [row["text"] for row in rows if row["domain"] == domain and row["split"] == "validation"]
        assert sorted(sample.texts.to_pylist()) == sorted(expected)
    part = corpus_samples(corpus, "validation", budget=2000)
    assert part.keys() == whole.keys()
    for group, sample in part.items():
        texts = sample.texts.to_pylist()
        size = sum(len(text.encode()) for text in texts)
        assert 2000 - 4 < size <= 2000
        assert texts[:-1] == whole[group].texts.to_pylist()[: len(texts) - 1]
        assert whole[group].texts.to_pylist()[len(texts) - 1].startswith(texts[-1])
    few = corpus_samples(corpus, "validation", documents=3)
    assert {len(sample.texts) for sample in few.values()} == {3}


# ---- merges


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=40))
def test_merges_end_in_the_tokens(tokenizer, text):
    merges = MergeTable.of(tokenizer)
    ids = []
    words = merges.words(text)
    for word in words:
        steps = merges.merges(word)
        parts = steps[-1].parts if steps else merges.beginning(word)
        assert merges.word(word.text).symbols == word.symbols
        assert len(parts) == len(word.symbols) - len(steps)
        ranks = [step.rank for step in steps]
        assert all(rank >= 0 for rank in ranks)
        ids += tokenizer.encode(word.text)
        assert len(parts) == len(tokenizer.encode(word.text))
    assert "".join(word.text for word in words) == text
    assert ids == tokenizer.encode(text)


def test_merges_of_a_known_word(tokenizer):
    merges = MergeTable.of(tokenizer)
    (word,) = merges.words(" the")
    steps = merges.merges(word)
    assert steps[-1].parts == [" the"]
    assert merges.beginning(word) == [" ", "t", "h", "e"]
    learned = json.loads(tokenizer.backend.to_str())["model"]["merges"]
    for step in steps:
        assert [part.replace("Ġ", " ") for part in learned[step.rank]] == [step.left, step.right]


def test_bytes_of_a_cut_character_are_shown_as_such(tokenizer):
    merges = MergeTable.of(tokenizer)
    assert merges.beginning(merges.word("東")) == ["\\xe6", "\\x9d", "\\xb1"]
    assert merges.merges(merges.word("x" * (LONGEST_WORD + 1))) == []


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60))
def test_pieces_are_whole_characters(tokenizer, text):
    ids = tokenizer.encode(text)
    pieces = pieces_of(tokenizer, ids)
    assert "".join(piece.text for piece in pieces) == text
    assert [i for piece in pieces for i in piece.ids] == ids


# ---- parallel text

MESSAGES = {
    "": "Content-Type: text/plain; charset=UTF-8\n",
    "The file %s cannot be opened because it does not exist on this machine.": "Die Datei %s gibt es hier nicht.",
    "A short one": "Kurz",
    "This sentence was left in English by its translators, all of it, to the end.": "",
    "One file with a name that is rather long was removed\0%d files were removed": "Eine\0Viele",
    "menu\x04A sentence with a context, which is told apart by a control character.": "Mit Zusammenhang",
    "Grüße: a message whose English is not all ASCII, as happens now and then.": "Grüße: 東京",
}


def catalogue(messages: dict[str, str], order: str = "<") -> bytes:
    """A .mo file (GNU gettext manual, "The Format of GNU MO Files")."""
    pairs = [(key.encode(), value.encode()) for key, value in sorted(messages.items())]
    start = 28 + 16 * len(pairs)
    tables: list[list[int]] = [[], []]
    body = b""
    for side in (0, 1):
        for pair in pairs:
            tables[side] += [len(pair[side]), start + len(body)]
            body += pair[side] + b"\0"
    head = struct.pack(f"{order}7I", 0x950412DE, 0, len(pairs), 28, 28 + 8 * len(pairs), 0, start)
    return head + b"".join(struct.pack(f"{order}{len(t)}I", *t) for t in tables) + body


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_catalogue_is_read_as_gettext_reads_it(tmp_path, order):
    path = tmp_path / "x.mo"
    path.write_bytes(catalogue(MESSAGES, order))
    with open(path, "rb") as file:
        oracle = gettext.GNUTranslations(file)
    found = dict(read_messages(path))
    assert len(found) == 2
    assert all(oracle.gettext(english) == translated for english, translated in found.items())


@pytest.mark.parametrize("data", [b"", b"\xde\x12\x04\x95", b"no catalogue at all", catalogue(MESSAGES)[:60]])
def test_a_broken_catalogue_gives_nothing(tmp_path, data):
    (tmp_path / "x.mo").write_bytes(data)
    assert list(read_messages(tmp_path / "x.mo")) == []


def test_catalogues_of_a_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "MIN_MESSAGES", 2)
    many = {f"Message number {n} says something of at least sixty characters.": f"Nachricht {n}" for n in range(5)}
    for locale, messages in {"de": MESSAGES, "pt": MESSAGES, "pt_BR": many, "en_GB": many, "sr@latin": many}.items():
        (tmp_path / locale / "LC_MESSAGES").mkdir(parents=True)
        (tmp_path / locale / "LC_MESSAGES" / "a.mo").write_bytes(catalogue(messages))
    (tmp_path / "fr" / "LC_MESSAGES").mkdir(parents=True)
    found = parallel_text(tmp_path)
    assert found == installed_text(tmp_path)
    assert list(found.languages) == ["de", "pt"]
    assert len(found.languages["pt"].english) == len(many)  # the region with most messages
    assert dict(zip(*(part.to_pylist() for part in vars(found.languages["pt"]).values()), strict=True)) == many


def test_too_few_catalogues_are_none(tmp_path):
    assert installed_text(tmp_path) is None
    (tmp_path / "de" / "LC_MESSAGES").mkdir(parents=True)
    (tmp_path / "de" / "LC_MESSAGES" / "a.mo").write_bytes(catalogue(MESSAGES))
    assert installed_text(tmp_path) is None
    with pytest.raises(GristmillError, match="no language has 100"):
        parallel_text(tmp_path)


def test_files_of_the_same_content(tmp_path):
    with pytest.raises(GristmillError, match="is no directory"):
        parallel_text(tmp_path / "none")
    (tmp_path / "de.txt").write_text("Guten Tag")
    with pytest.raises(GristmillError, match="holds no parallel text"):
        parallel_text(tmp_path)
    (tmp_path / "en.txt").write_text("Good day")
    found = parallel_text(tmp_path)
    assert found.languages["de"].translated.to_pylist() == ["Guten Tag"]
    assert found.languages["de"].english.to_pylist() == ["Good day"]


# ---- the report


@pytest.fixture
def texts(tmp_path):
    (tmp_path / "texts").mkdir()
    for name, text in {"notes.en.txt": "The miller turns the wheel. " * 9, "de.txt": "Die Mühle steht. " * 9}.items():
        (tmp_path / "texts" / name).write_text(text)
    (tmp_path / "texts" / "tale.ja.txt").write_text("水車の物語。" * 9)
    (tmp_path / "texts" / ".hidden").write_text("not read")
    return tmp_path / "texts"


def test_files_have_a_domain_and_a_language(texts):
    found, _ = files_text([texts, texts / "de.txt", texts / "tale.ja.txt"])
    assert list(found) == [("tale", "ja"), ("text", "de"), ("texts", "de"), ("texts", "en"), ("texts", "ja")]
    with pytest.raises(GristmillError, match="does not exist"):
        files_text([texts / "none"])


def test_files_are_read_up_to_the_bound(texts, monkeypatch):
    monkeypatch.setattr(report_module, "SAMPLE_BYTES", 20)
    (texts / "z.en.txt").write_text("not read any more")
    found, _ = files_text([texts])
    assert found["texts", "en"].texts.to_pylist() == ["The miller turns the"]
    assert found["texts", "ja"].texts.to_pylist() == ["水車の物語。"]  # 18 bytes and two of the next character


def test_the_report_compares_on_the_same_text(texts, directory, tmp_path):
    samples, said = files_text([texts])
    entries = [own_entry(directory, "mine"), own_entry(directory, "<other>")]
    seen = []
    report = make_report(entries, samples, said, None, {"gemma3": "not here"}, lambda *step: seen.append(step))
    assert seen == [(0, 2), (1, 2), (2, 2)]
    mine = Tokenizer.load(directory)
    expected = measure(mine, samples["texts", "en"])
    assert report["languages"]["en"]["mine"]["tokens"] == expected.tokens
    assert report["languages"]["en"]["mine"]["tokens_per_word"] == pytest.approx(expected.tokens_per_word, abs=1e-6)
    assert report["languages"]["ja"]["mine"]["tokens_per_word"] is None
    assert report["overall"]["mine"]["tokens"] == sum(measure(mine, s).tokens for s in samples.values())
    ratio = report["cost"]["languages"]["de"]["ratios"]["mine"]
    of = {language: report["languages"][language]["mine"]["tokens_per_character"] for language in ("de", "en")}
    assert ratio == pytest.approx(of["de"] / of["en"], abs=1e-5)
    assert "no parallel text" in report["cost"]["basis"]
    write_report(report, tmp_path / "out")
    html = (tmp_path / "out" / "report.html").read_text()
    assert "&lt;other&gt;" in html
    assert "<other>" not in html
    assert "gemma3: not here" in html
    assert str(tmp_path) not in html + (tmp_path / "out" / "report.json").read_text()
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    assert "mine" in table(report)
    again = make_report(entries, files_text([texts])[0], said, None, {"gemma3": "not here"})
    assert again == report


def test_parallel_text_gives_the_cost(tmp_path, texts, directory, tokenizer):
    (tmp_path / "same").mkdir()
    for name, text in {"en": "Good day, dear miller.", "de": "Guten Tag, lieber Müller.", "ja": "水車の物語"}.items():
        (tmp_path / "same" / f"{name}.txt").write_text(text)
    samples, said = files_text([texts])
    report = make_report([own_entry(directory, "mine")], samples, said, parallel_text(tmp_path / "same"))
    english, german = token_counts(tokenizer, pa.array(["Good day, dear miller.", "Guten Tag, lieber Müller."]))
    entry = report["cost"]["languages"]["de"]
    assert entry["ratios"]["mine"] == pytest.approx(german / english, abs=1e-6)
    assert (entry["texts"], entry["english_bytes"], entry["bytes"]) == (1, 22, 26)
    assert re.search(rf"^de +{german / english:.2f}$", table(report), re.MULTILINE)


def test_two_tokenizers_of_one_name_and_no_text_are_said(texts, directory, corpus):
    samples, said = files_text([texts])
    with pytest.raises(GristmillError, match="called mine"):
        make_report([own_entry(directory, "mine")] * 2, samples, said, None)
    with pytest.raises(GristmillError, match="no text to measure on"):
        make_report([own_entry(directory, "mine")], {}, said, None)
    found, said = corpus_text(corpus)
    assert said == "validation text of the corpus"
    assert found


def test_a_corpus_without_validation_text_shows_training_text(tmp_path):
    rows = [{"domain": "web", "text": "only for training", "split": "train"}]
    found, said = corpus_text(write_corpus(Path(tmp_path / "c"), [rows], {"web": 1.0}))
    assert said == "training text of the corpus"
    assert found["web", "en"].texts.to_pylist() == ["only for training"]
