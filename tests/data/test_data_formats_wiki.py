"""Dumps of Wikipedia and Stack Exchange."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
from format_samples import DUMP, ROWS, posts

from gristmill.data.collect.formats import stackexchange, wikipedia
from gristmill.data.collect.formats.base import BadInput, Extracted
from gristmill.data.collect.formats.wikitext import wikitext_to_text


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("'''Bold''' and ''italic''", "Bold and italic"),
        (
            "[[bus]]es, [[City (x)|the city]], [[Foo (bar)|]], [[:Category:X|a category]]",
            "buses, the city, Foo, a category",
        ),
        ("a [[File:x.jpg|thumb|A [[link]] in a ''caption'']] b [[Category:Y]]", "a b"),
        ("x<ref name=a>{{cite|[[y]]}}</ref>, y<ref name='a' />.", "x, y."),
        ("{{Infobox\n| a = {{nested|{{deep}}}}\n| b = [[c]]\n}}\nText", "Text"),
        ("before\n{| class=x\n|-\n| a || b\n{|\n| inner\n|}\n|}\nafter", "before\n\nafter"),
        ("{{Box|\n|}}\ntail", "tail"),
        ("{{convert|5|to|6|km|mi}}, {{lang|fr|été}}, {{circa|1900}}, {{nowrap|a b}}", "5 to 6 km, été, c. 1900, a b"),
        ("== Life ==\nText\n=== Early ===\n== Notes ==\n{{reflist}}", "## Life\n\nText"),
        ("* a\n** b\n# x\n# y\n## z\n; term : def\n: indented", "- a\n  - b\n1. x\n2. y\n  1. z\nterm: def\nindented"),
        ("[http://x.org the site] and [http://y.org]", "the site and"),
        ("Ana ({{IPA|x}}; born 1900), (), ( , ) x", "Ana (born 1900), x"),
        ("10<sup>6</sup> m<sup>2</sup> H<sub>2</sub>O", "10⁶ m² H₂O"),
        ("a&nbsp;b &amp; c &lt;d&gt;", "a b & c <d>"),
        ("<math>x^{[[2]]}</math> and <nowiki>'''[[raw]]'''</nowiki>", "$x^{[[2]]}$ and '''[[raw]]'''"),
        ("<syntaxhighlight lang='c'>\nint a[[2]];\n</syntaxhighlight>", "```\nint a[[2]];\n```"),
        ("a <!-- [[ -- {{ -->b<br />c __NOTOC__", "a b\nc"),
        ("unclosed {{template|a\n\nand [[link", "unclosed template|a\n\nand link"),
        ("closed }} ]] |} too often", "closed |} too often"),
        ("[[de:Mühle]][[fr:Moulin]]end", "end"),
    ],
)
def test_wikitext(source: str, text: str) -> None:
    assert wikitext_to_text(source) == text


def test_wikitext_nested_beyond_all_measure_ends() -> None:
    for opening in ("{{a|", "[[a|", "\n{|\n", "<ref>", "{{a|[[b|"):
        wikitext_to_text(opening * 20_000)
        wikitext_to_text(opening * 5_000 + "x" + ("]]}}" * 5_000))


def test_wikipedia_dump() -> None:
    assert list(wikipedia.read(io.BytesIO(DUMP.encode()), "d.xml")) == [
        Extracted("# Mühle\n\nEine Mühle\nmahlt & klappert.", "7", "CC-BY-SA-4.0", "de", ""),
        Extracted("# Rad\n\n- Mühlrad", "10", "CC-BY-SA-4.0", "de", "disambiguation"),
    ]


def test_wikipedia_dump_that_breaks_off_gives_what_came_before() -> None:
    documents = wikipedia.read(io.BytesIO(DUMP.encode()[:700]), "d.xml")
    assert next(documents).part == "7"
    with pytest.raises(BadInput, match="well-formed"):
        list(documents)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"<mediawiki></mediawiki>", "no page"),
        (b'<!DOCTYPE a [<!ENTITY b "cc"><!ENTITY d "&b;&b;">]><mediawiki>&d;</mediawiki>', "entity"),
        (b"<?xml version='1.0' encoding='utf-E'?><a/>", "well-formed"),
        (b"", "well-formed"),
    ],
)
def test_wikipedia_dump_that_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        list(wikipedia.read(io.BytesIO(data), "d.xml"))


def test_stackexchange_posts_one_by_one() -> None:
    documents = list(stackexchange.read(posts(ROWS), "Posts.xml"))
    assert [d.part for d in documents] == ["1", "1#2", "3", "1#4", "1#6", "99#7"]
    assert [d.license for d in documents[:4]] == ["CC-BY-SA-2.5", "CC-BY-SA-3.0", "CC-BY-SA-4.0", "CC-BY-SA-4.0"]
    assert documents[0].text == "# Sort & order\n\nHow to sort?"
    assert documents[1].text == "Use sorted:\n\n```\na = sorted(b)\nif a < b:\n    pass\n```"


def test_stackexchange_questions_with_their_best_answers() -> None:
    (document,) = stackexchange.read(posts(ROWS), "Posts.xml", answers=2)
    assert document.part == "1"
    assert document.license == "CC-BY-SA-2.5 AND CC-BY-SA-3.0 AND CC-BY-SA-4.0"
    question, first, second = document.text.split("\n\n## Answer\n\n")
    assert (question, first) == ("# Sort & order\n\nHow to sort?", "Accepted")
    assert second.startswith("Use sorted")


def test_stackexchange_memory_does_not_grow_with_the_dump() -> None:
    """The stream is asked for pieces, and never more of them than the documents that were taken."""

    class Endless(io.RawIOBase):
        given = 0

        def read(self, size: int = -1) -> bytes:
            assert size > 0
            Endless.given += 1
            return b"<posts>" if Endless.given == 1 else ROWS[0].encode() * (size // len(ROWS[0]))

    documents: Iterator[Extracted] = stackexchange.read(Endless(), "Posts.xml")  # type: ignore[arg-type]
    for _ in range(1000):
        next(documents)
    assert Endless.given < 20


def test_stackexchange_that_is_no_dump() -> None:
    with pytest.raises(BadInput, match="no post"):
        list(stackexchange.read(io.BytesIO(b"<posts/>"), "Posts.xml"))


@pytest.mark.parametrize(
    ("start", "piece", "message"),
    [
        (b"<mediawiki>", b"<a>", "deep"),
        (b'<mediawiki><page x="', b"a", "single tag"),
        (b"<mediawiki>", b"<a/>", "no page"),
    ],
)
def test_dumps_made_to_fill_the_memory_are_refused(start: bytes, piece: bytes, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        list(wikipedia.read(io.BytesIO(start + piece * ((9 << 20) // len(piece)) + b"</mediawiki>"), "d.xml"))
