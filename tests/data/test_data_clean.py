"""Cleaning, mending, C4's lines, cutting: the steps against plain Python and against what must hold."""

from __future__ import annotations

import re
import unicodedata

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gristmill.data.clean import clean_step, cut_step, drop_lines_step
from gristmill.data.clean.lines import drop_lines
from gristmill.data.clean.repair import decode_entities, mend_encoding
from gristmill.data.clean.text import clean
from gristmill.data.config import CleanConfig, DomainRules
from gristmill.data.config.rules import C4Rules
from gristmill.data.schema import DOCUMENTS, document_id
from gristmill.data.step import check_chain

RAW = st.text(
    alphabet=st.one_of(
        st.characters(),
        st.sampled_from(" \t\n\r\x0b\x0c\x00\x85\xa0\u200b\u2028\ufeff\u0301e\u1680\u3000\u2060\u205f"),
        st.characters(max_codepoint=127),
    ),
    max_size=80,
)
UNREPAIRED = CleanConfig(repair_encoding=False, decode_entities=False)


def batch_of(texts: list[str], domain: str = "docs") -> pa.RecordBatch:
    rows = [
        {
            "id": str(i),
            "text": text,
            "source": "s",
            "domain": domain,
            "language": "",
            "license": "",
            "origin": f"o{i}",
            "flags": "",
        }
        for i, text in enumerate(texts)
    ]
    return pa.RecordBatch.from_pylist(rows, DOCUMENTS)


@settings(max_examples=300, deadline=None)
@given(RAW)
@example("a\n \t")
@example("e\u200b\u0301 \r\n\r\n\r\n\r\n\r\nx\ud800")
def test_clean_text_is_clean_and_stays_so(raw: str) -> None:
    text = clean(raw)
    assert clean(text) == text
    assert unicodedata.is_normalized("NFC", text)
    assert text.split() == [word for word in text.replace("\t", " ").replace("\n", " ").split(" ") if word]
    assert all(line == line.rstrip() for line in text.split("\n"))
    assert "\n\n\n\n" not in text
    assert text == text.strip("\n")
    assert not any(unicodedata.category(c) in ("Cc", "Cs") for c in text if c not in "\n\t")


@settings(max_examples=300, deadline=None)
@given(st.lists(RAW.map(lambda text: text.encode("utf-8", "ignore").decode()), min_size=1, max_size=5))
@example(["", "a ", "\n\n b\n \nc\n\n\n\n\n\nd", "x\r\ny\r", "\u2028\u3000"])
def test_the_step_is_the_reference(texts: list[str]) -> None:
    result = clean_step(UNREPAIRED).apply(batch_of(["left out", *texts]).slice(1))
    assert result["text"].to_pylist() == [clean(text) for text in texts]
    assert result["bytes"].to_pylist() == [len(clean(text).encode()) for text in texts]


def test_known_cases() -> None:
    assert clean("a\r\nb\rc\x0cd") == "a\nb\nc\nd"
    assert clean("\ufeffcafe\u0301\u00a0au\u200b lait \u2028x") == "café au lait\nx"
    assert clean("    indented\n\tcode  \n") == "    indented\n\tcode"


def test_a_clean_column_is_not_copied() -> None:
    batch = batch_of(["clean", "text\n\n\nhere"])
    result = clean_step(CleanConfig()).apply(batch)
    assert result["text"].buffers()[2].address == batch["text"].buffers()[2].address


def test_normal_form_across_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    from gristmill.data.clean import step

    monkeypatch.setattr(step, "_PART", 3)
    text = "cafe\u0301 e\u0301\u0302 \u1100\u1161\u11a8 é"
    assert clean_step(UNREPAIRED).apply(batch_of([text]))["text"].to_pylist() == [unicodedata.normalize("NFC", text)]


GOOD = [
    "Übergrößenträger müssen über Äcker, ‚so‘ „und so“ – 20 € teuer…",
    "Où l’été s’achève, « à » l’œil, ça dépend : 3 °C, n° 5 ; LE CAFÉ» et voilà…",
    "El niño compró piñas: «¿Cuánto?» — ¡Qué caro! Nº 1ª",
    "Съешь ещё этих мягких французских булок, «СССР», № 5 — РСФСР…",
    "日本語の文章。「括弧」と、カタカナ・ひらがな。",
    "Αθήνα – «ελληνικά» και °C, Ελλάδα·",
    "Žluťoučký kůň úpěl ďábelské ódy, Łódź, İstanbul, ångström ±5 µm × 3²",
    "½ cup, ¼ tsp; A© B® ×2 Ô Â Ã and ô, É É» naïve §5 ¶",
    "ไทย हिन्दी العربية עברית 한국어",
]


@pytest.mark.parametrize("text", GOOD)
def test_good_text_is_left_alone(text: str) -> None:
    assert mend_encoding(text) == text
    assert clean_step(CleanConfig()).apply(batch_of([text]))["text"].to_pylist() == [text]


@pytest.mark.parametrize("charset", ["cp1252", "latin-1", "cp1251"])
def test_wrongly_decoded_text_is_mended(charset: str) -> None:
    words = {
        "cp1252": ["Müller café naïve", "It’s – “fine…", "Où ça dépend déjà", "El niño", "Citroën"],
        "latin-1": ["Müller café naïve", "It’s – “fine”…", "日本語の文章です"],
        "cp1251": ["Привет, как дела", "Съешь ещё булок"],
    }[charset]
    for good in words:
        damaged = good.encode().decode(charset, "strict" if charset != "cp1252" else "replace")
        assert "\ufffd" not in damaged
        text = f"Before it.\n{damaged}\nAfter it, “good”."
        mended = clean_step(CleanConfig()).apply(batch_of([text]))["text"][0].as_py()
        assert mended == f"Before it.\n{good}\nAfter it, “good”."
        off = clean_step(CleanConfig(repair_encoding=False)).apply(batch_of([text]))["text"][0].as_py()
        assert off == clean(text)


def test_code_is_not_repaired() -> None:
    text = 'assert decode(b"caf") == "cafÃ©"  # &eacute;'
    assert clean_step(CleanConfig()).apply(batch_of([text], "code"))["text"].to_pylist() == [text]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It&#8217;s AT&amp;T &mdash; &quot;x&quot; &#x41;", 'It’s AT&T — "x" A'),
        ("&#150; &#0; &#xD800; &unknown; &copy=1 a&b;", "– &#0; &#xD800; &unknown; &copy=1 a&b;"),
        ("write <b>&amp;amp;</b>", "write <b>&amp;amp;</b>"),
        ("&lt;p&gt; is &amp; stays", "&lt;p&gt; is &amp; stays"),
        ("u'&#1972;'", "u'&#1972;'"),
        ("use `&gt;` for\n    x&gt;\n```\n&amp;\n```\nA &amp; B", "use `&gt;` for\n    x&gt;\n```\n&amp;\n```\nA & B"),
    ],
)
def test_entities(text: str, expected: str) -> None:
    assert decode_entities(text) == expected


def test_entities_in_the_step() -> None:
    texts = ["a&nbsp;b &amp; c", "plain"]
    assert clean_step(CleanConfig()).apply(batch_of(texts))["text"].to_pylist() == ["a b & c", "plain"]
    off = clean_step(CleanConfig(decode_entities=False)).apply(batch_of(texts))
    assert off["text"].to_pylist() == texts


PAGE = """Home
A line of text about mills.[1] And more[edit] of it
See our Privacy Policy right here now

Two words

Please enable JavaScript to view { this }
The terms of use { hold } here too
lorem ipsum and javascript on one line"""


def test_lines_of_c4() -> None:
    assert drop_lines(PAGE, C4Rules()) == (
        "A line of text about mills. And more of it\n\nThe terms of use { hold } here too\n"
        "lorem ipsum and javascript on one line"
    )
    assert (
        drop_lines(PAGE, C4Rules(curly_bracket=False, forbidden_phrases=()))
        == "A line of text about mills. And more of it"
    )
    keep_all = C4Rules(min_words_per_line=0, dropped_lines=(), remove_citations=False)
    assert drop_lines(PAGE, keep_all) == PAGE
    assert (
        drop_lines("It ends.\nIt does not\nNo...\nYes!", C4Rules(min_words_per_line=0, terminal_punctuation=True))
        == "It ends.\nYes!"
    )
    assert drop_lines("a b c\n" + "x" * 30 + " b c", C4Rules(max_word_length=29)) == "a b c"


def _datatrove(text: str, rules: C4Rules) -> list[str]:
    """The lines that C4's code keeps, as datatrove writes it: a page that it removes ends there."""
    kept = []
    for line in text.splitlines():
        line = line.strip()
        words = line.split()
        if any(len(word) > rules.max_word_length for word in words):
            continue
        line = re.sub(r"\[\d*]|\[edit]|\[citation needed]", "", line)
        if rules.terminal_punctuation and (not line.endswith((".", "?", "!", '"', "'")) or line.endswith("...")):
            continue
        if len(words) < rules.min_words_per_line:
            continue
        if any(phrase in line.lower() for phrase in rules.forbidden_phrases):
            return [*kept, line]
        if "javascript" in line.lower():
            continue
        if "{" in line:
            return [*kept, line]
        if any(phrase in line.lower() for phrase in rules.dropped_lines):
            continue
        kept.append(line)
    return kept


LINES = st.lists(
    st.lists(
        st.sampled_from(
            [
                "word",
                "Lorem ipsum",
                "JavaScript",
                "{",
                "[12]",
                "[edit]",
                "uses cookies",
                "x" * 12,
                "end.",
                "...",
                '"so"',
            ]
        ),
        min_size=1,
        max_size=6,
    ).map(" ".join),
    max_size=8,
).map("\n".join)


@settings(max_examples=300, deadline=None)
@given(LINES, st.booleans(), st.integers(0, 4))
def test_the_order_of_c4s_code(text: str, terminal: bool, words: int) -> None:
    rules = C4Rules(terminal_punctuation=terminal, min_words_per_line=words, max_word_length=11)
    expected = [line.strip() for line in _datatrove(text, rules) if line.strip()]
    kept = [line.strip() for line in drop_lines(clean(text), rules).split("\n") if line.strip()]
    assert kept[: len(expected)] == expected  # ours goes on behind the line for which the page is removed


@settings(max_examples=100, deadline=None)
@given(LINES, st.booleans())
def test_datatrove_keeps_the_same_lines(text: str, terminal: bool) -> None:
    filters = pytest.importorskip("datatrove.pipeline.filters")
    document = pytest.importorskip("datatrove.data").Document(text=clean(text), id="0")
    judge = filters.C4QualityFilter(min_num_sentences=-1, filter_no_terminal_punct=terminal)
    kept = drop_lines(clean(text), C4Rules(terminal_punctuation=terminal))
    if judge.filter(document) is True:
        assert [line.strip() for line in kept.split("\n") if line] == [
            x.strip() for x in document.text.split("\n") if x
        ]
        assert "{" not in kept
    else:
        assert "{" in kept or "lorem ipsum" in kept.lower()


def test_lines_are_dropped_where_the_domain_has_the_rule() -> None:
    rules = DomainRules()
    step = drop_lines_step(rules)
    web, docs = (
        clean_step(CleanConfig()).apply(batch_of(["Home\nA line of text."], domain)) for domain in ("web", "docs")
    )
    assert step.apply(web)["text"].to_pylist() == ["A line of text."]
    assert step.apply(web)["bytes"].to_pylist() == [15]
    assert step.apply(docs).equals(docs)


def pieces(text: str, limit: int) -> list[str]:
    return cut_step(limit).apply(batch_of([text]))["text"].to_pylist()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(["word", "é", "x" * 40, "\n", "\n\n", "  ", "漢字"]), max_size=120), st.integers(20, 90)
)
def test_pieces_fit_and_lose_nothing_but_blanks(parts: list[str], limit: int) -> None:
    text = clean(" ".join(parts))
    cut = pieces(text, limit)
    assert all(len(piece.encode()) <= limit for piece in cut)
    assert all(cut) or cut == [""]
    assert "".join("".join(cut).split()) == "".join(text.split())
    assert all(clean(piece) == piece for piece in cut)


def test_a_text_that_fits_is_not_touched() -> None:
    assert pieces("a\n\nb", 4) == ["a\n\nb"]
    assert pieces("", 4) == [""]


def test_the_best_border_is_taken() -> None:
    code = "def one():\n    a\n\n    b\n\ndef two():\n    c\n\n    d"
    assert pieces(code, 30) == ["def one():\n    a\n\n    b", "def two():\n    c\n\n    d"]
    assert pieces("aaaa bbbb\ncccc dddd", 12) == ["aaaa bbbb", "cccc dddd"]
    assert pieces("é" * 10, 8) == ["ééé", "ééé", "éééé"]


def test_pieces_are_of_about_equal_size() -> None:
    text = "\n\n".join(["line " * 10 + str(i) for i in range(50)])
    sizes = [len(piece) for piece in pieces(text, 1000)]
    assert min(sizes) > 0.5 * max(sizes)


def test_cut_numbers_the_pieces() -> None:
    long = "\n\n".join(f"paragraph {i} of some words" for i in range(120))
    batch = clean_step(CleanConfig()).apply(batch_of(["short", long, "", "also short"]))
    step = cut_step(1024)
    result = step.apply(batch)
    assert result.schema == check_chain([clean_step(CleanConfig()), step], DOCUMENTS)
    origins = result["origin"].to_pylist()
    assert origins == ["o0", *(f"o1#{n}" for n in range(1, len(origins) - 2)), "o2", "o3"]
    cut = result["text"].to_pylist()
    assert "\n\n".join(cut[1:-2]) == long
    assert result["bytes"].to_pylist() == [len(text) for text in cut]
    expected = ["0", *(document_id("s", origin) for origin in origins[1:-2]), "2", "3"]
    assert result["id"].to_pylist() == expected
    assert step.apply(batch.slice(2)).equals(batch.slice(2))
