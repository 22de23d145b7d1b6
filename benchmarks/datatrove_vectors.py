"""Makes tests/data/vectors/datatrove.jsonl.gz: texts, and what datatrove's filters measure and decide on them.

    python -m venv /tmp/datatrove && /tmp/datatrove/bin/pip install datatrove==0.10.1 regex spacy
    /tmp/datatrove/bin/python benchmarks/datatrove_vectors.py tests/data/vectors/datatrove.jsonl.gz [TEXTS_DIRECTORY]

The texts are free to pass on: Python's language reference and standard library (PSF licence), files of TEXTS_DIRECTORY
(public-domain plays and Bible chapters, when the stored vectors were made), and edge cases written here. Without the
directory those texts are taken over from the file that is there.

datatrove's words come from spaCy. To compare the rules and not the tokenisers, its words are replaced by those between
blanks and its sentences by a pattern. How often decisions differ with its own words is printed at the end.

A statistic is found without looking inside: it is the threshold at which a filter with no other rule changes its mind.
"""

from __future__ import annotations

import gzip
import itertools
import json
import pydoc_data.topics
import random
import re
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.utils import text as datatrove_text
from datatrove.utils import word_tokenizers
from datatrove.utils.text import TERMINAL_PUNCTUATION

MAX_CHARACTERS = 2600
CLOSING = "\"')]}»”’」』】）"


class BlankTokenizer(word_tokenizers.WordTokenizer):
    """Words between blanks; sentences end at marks, behind ASCII ones only before a blank."""

    def word_tokenize(self, text: str) -> list[str]:
        return text.split()

    def sent_tokenize(self, text: str) -> list[str]:
        return [part for part in self._parts(text) if part.strip()]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        ends = [0]
        for part in self._parts(text):
            if part.strip():
                ends.append(ends[-1] + len(part))
        return list(itertools.pairwise(ends))

    def _parts(self, text: str) -> Iterator[str]:
        marks = re.escape("".join(sorted(TERMINAL_PUNCTUATION)))
        start = 0
        for run in re.finditer(f"[{marks}][{marks}{re.escape(CLOSING)}]*", text):
            foreign = any(c in TERMINAL_PUNCTUATION and not c.isascii() for c in run.group())
            if foreign or run.end() == len(text) or text[run.end()].isspace():
                yield text[start : run.end()]
                start = run.end()
        yield text[start:]


def tidy(text: str) -> str:
    """The form of a cleaned text: no blanks at line ends, at most two empty lines in a row."""
    lines = "\n".join(line.rstrip() for line in text.expandtabs().split("\n"))
    return re.sub(r"\n{4,}", "\n\n\n", lines).strip("\n")


def real_texts(directory: Path | None, old: list[str]) -> Iterator[tuple[str, str]]:
    """(kind, text)"""
    draw = random.Random(7)
    for name in draw.sample(sorted(pydoc_data.topics.topics), 34):
        yield "reference", pydoc_data.topics.topics[name][:MAX_CHARACTERS]
    sources = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    for path in draw.sample([path for path in sources if path.stat().st_size > 3000], 26):
        text = path.read_text(encoding="utf-8")
        start = draw.randrange(max(len(text) - MAX_CHARACTERS, 1))
        yield "code", text[start : start + MAX_CHARACTERS]
    if directory is None:
        yield from (("book", text) for text in old)
        return
    for path in sorted(directory.iterdir()):
        yield "book", path.read_text(encoding="utf-8")[:MAX_CHARACTERS]


def crafted_texts() -> Iterator[str]:
    """Edge cases of every rule, and random texts of few words, which repeat in every way."""
    good = " ".join(["the", "mill", "and", "stone", "river"] * 12)
    sentence = "This is a sentence about mills, and it ends here."
    yield from ("a", "the", "--", "...", "one two three four five", "a\nb\n\nc", "x" * 1200, "• •\n-\n- ...", "{", "#")
    yield from (good + " #" * n for n in (5, 6, 7))
    yield from (good + " ..." * n for n in (6, 7, 20))
    yield good + "... wheat… rye......" * 4
    yield from ("\n".join(["- " + good] * n + [good] * 2) for n in (17, 18, 19))
    yield from ("\n\n".join(["  • mill"] * n + ["river"]) for n in (4, 9))
    yield from ("\n".join([sentence] * (10 - n) + ["and so on..."] * n) for n in (2, 3, 4))
    yield from (good + " 1" * n for n in (14, 15, 16))
    yield from (good + " --" * n + " «»" * n for n in (8, 30))
    yield " ".join(["mill", "stone", "river", "the"] * 15)
    yield " ".join(["The", "Be", "to", "mill"] * 15)
    yield " ".join(["the", "and"] + ["a", "b", "c", "d"] * 20)
    yield " ".join(["the", "and"] + ["millstones-and-water"] * 60)
    yield from ("\n".join([f"line {i} of the mill and the river" for i in range(7)] + ["again"] * n) for n in (3, 4, 9))
    yield from ("\n\n".join([f"paragraph {i} of the mill" for i in range(7)] + ["again, and"] * n) for n in (3, 4, 9))
    yield "  indented first\n\nindented first\n\nindented first\n\nlast of them"
    yield from (" ".join(f"grist mill w{i}" for i in range(n)) for n in (3, 10, 40))
    rows = " ".join(f"row {i} w{i * 7} x{i * i} y{i * 3} z{i * 11}" for i in range(40))
    yield from (f"{rows[:n]} and then {rows[:n]} {rows[n:]}" for n in (60, 120, 200, 400))
    short = "\n".join(f"a short line {i}" for i in range(10))
    yield from (f"{short}\n" + "\n".join([f"{sentence} {sentence} {i}" for i in range(n)]) for n in (4, 5, 6))
    yield from (
        "\n".join([f"{sentence} ({i})." for i in range(n)] + [f"no end of line {i} here" for i in range(22)])
        for n in (2, 3, 4)
    )
    yield "\n\n".join(f"{i}-millstone-in-the-river-turning-turning ends." for i in range(12))
    yield "\n".join([sentence, "He said: “No!”", "'Yes.'", 'She said: "Why?"', "And (so on.)", "Well..."] * 2)
    yield "\n".join([f"{sentence} [1] [edit] [citation needed] {i}" for i in range(6)])
    yield "\n".join([sentence, "We use cookies on this page.", "Please enable JavaScript now.", "two words"] * 3)
    yield "\n".join([sentence] * 5 + ["Javascript and a { here."])
    yield "\n".join([sentence] * 5 + ["Our privacy policy has a { here."])
    yield "\n".join([sentence] * 5 + ["Lorem Ipsum dolor sit amet."])
    yield "\n".join([sentence] * 5 + ["y" * 1001 + " lorem ipsum {"])
    yield (
        "Die Mühle am Bach mahlt Korn. Größe und Weg sind egal! Über die Brücke? Ja.\nUnd noch ein Satz, der endet.\n"
        * 3
    )
    yield "Мельница стоит у реки. Она мелет зерно! Почему? Потому что...\nЭто ещё одно предложение.\n" * 3
    yield "नदी के पास चक्की है। वह अनाज पीसती है। क्यों? क्योंकि यह काम है।\n" * 3
    yield "水车在河边。它磨谷物！为什么？因为这是它的工作。\n" * 4
    yield "水車は川のそばにあります。「はい。」と言った。穀物を挽く！\n" * 4
    yield "الطاحونة بجانب النهر. هل تطحن الحبوب؟ نعم۔\n" * 3
    for seed in range(22):
        draw = random.Random(seed)
        words = [f"{c * draw.randint(1, 9)}" for c in "abcdefghijklmnopqrstuvwxyz"[: draw.randint(3, 26)]]
        words += ["the", "and", "of", "mill.", "--", "\n", "\n", "\n\n", "é…", "-", "stone!"]
        yield " ".join(draw.choice(words) for _ in range(draw.randint(40, 400)))


def changes(drops: Callable[[float], bool], high: float) -> float:
    """The threshold from which on `drops` is false, between 0 and `high`."""
    low = 1e-12  # datatrove takes 0 for no rule
    if not drops(low):
        return 0.0
    while drops(high):
        low, high = high, high * 2
    while (high - low) > 1e-10 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if drops(middle) else (low, middle)
    return float(f"{high:.9g}")


def statistics(text: str) -> dict[str, float]:
    document = Document(text, "0")

    def drops(kind: type, none: dict[str, Any], **rule: Any) -> bool:
        return kind(**(none | rule)).filter(document) is not True

    quality = dict.fromkeys(
        (
            "min_doc_words max_doc_words min_avg_word_length max_avg_word_length max_symbol_word_ratio"
            " max_bullet_lines_ratio max_ellipsis_lines_ratio max_non_alpha_words_ratio min_stop_words"
        ).split()
    )
    units = dict.fromkeys("dup_line_frac dup_para_frac dup_line_char_frac dup_para_char_frac".split())
    repetition: dict[str, Any] = {**units, "top_n_grams": (), "dup_n_grams": ()}
    web: dict[str, Any] = {
        "line_punct_thr": -1,
        "short_line_thr": 9,
        "char_duplicates_ratio": 9,
        "new_line_ratio": 1e9,
    }
    found = {
        "plain_words": round(changes(lambda t: drops(GopherQualityFilter, quality, max_doc_words=t), 1000)),
        "mean_word_length": changes(lambda t: drops(GopherQualityFilter, quality, max_avg_word_length=t), 10),
        "symbol_ratio": changes(lambda t: drops(GopherQualityFilter, quality, max_symbol_word_ratio=t), 1),
        "bullet_lines": changes(lambda t: drops(GopherQualityFilter, quality, max_bullet_lines_ratio=t), 1),
        "ellipsis_lines": changes(lambda t: drops(GopherQualityFilter, quality, max_ellipsis_lines_ratio=t), 1),
        "alphabetic_words": changes(
            lambda t: not drops(GopherQualityFilter, quality, max_non_alpha_words_ratio=t), 1.0001
        ),
        "stop_words": sum(not drops(GopherQualityFilter, quality, min_stop_words=n) for n in range(1, 9)),
        "terminal_lines": changes(lambda t: not drops(FineWebQualityFilter, web, line_punct_thr=t), 1.0001),
        "short_lines": changes(lambda t: drops(FineWebQualityFilter, web, short_line_thr=t), 1),
        "char_duplicates": changes(lambda t: drops(FineWebQualityFilter, web, char_duplicates_ratio=t), 1),
        "newlines_per_word": changes(lambda t: drops(FineWebQualityFilter, web, new_line_ratio=t), 1),
    }
    for name, ours in zip(units, ("lines", "paragraphs", "line_characters", "paragraph_characters"), strict=True):
        found[f"duplicate_{ours}"] = changes(
            lambda t, name=name: drops(GopherRepetitionFilter, repetition, **{name: t}), 1
        )
    for n in (2, 3, 4):
        found[f"top_{n}gram"] = changes(
            lambda t, n=n: drops(GopherRepetitionFilter, repetition, top_n_grams=((n, t),)), 1
        )
    for n in range(5, 11):
        found[f"duplicate_{n}gram"] = changes(
            lambda t, n=n: drops(GopherRepetitionFilter, repetition, dup_n_grams=((n, t),)), 1
        )
    return found


def decisions(text: str) -> dict[str, str | None]:
    """The reason of each filter at its own thresholds, None where it keeps the text; and the text that C4's leaves."""
    filters = {
        "gopher_quality": GopherQualityFilter(),
        "gopher_repetition": GopherRepetitionFilter(),
        "fineweb": FineWebQualityFilter(),
        "c4": C4QualityFilter(filter_no_terminal_punct=False),
        "c4_terminal": C4QualityFilter(),
    }
    found: dict[str, str | None] = {}
    for name, one in filters.items():
        document = Document(text, "0")
        result = one.filter(document)
        found[name] = None if result is True else result[1]
        if name.startswith("c4"):
            found[f"{name}_text"] = document.text if result is True else None
    return found


def main(target: Path, directory: Path | None) -> None:
    own_tokenizer = word_tokenizers.load_word_tokenizer
    blanks = BlankTokenizer("en")

    def use(load: Callable[..., Any]) -> None:
        word_tokenizers.load_word_tokenizer = load
        datatrove_text.split_into_parts.cache_clear()

    old = []
    if directory is None:
        with gzip.open(target) as stored:
            old = [row["text"] for row in map(json.loads, stored) if row["kind"] == "book"]
    texts = [(kind, tidy(text)) for kind, text in real_texts(directory, old)]
    texts += [("crafted", tidy(text)) for text in crafted_texts()]
    use(lambda language: blanks)
    rows = [{"kind": kind, "text": text} | {"statistics": statistics(text)} | decisions(text) for kind, text in texts]
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file, gzip.GzipFile(fileobj=file, mode="wb", filename="", mtime=0) as packed:
        for row in rows:
            packed.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    print(f"{len(rows)} texts, {target.stat().st_size} bytes")
    use(own_tokenizer)
    for name in ("gopher_quality", "gopher_repetition", "fineweb", "c4"):
        real = [row for row in rows if row["kind"] != "crafted"]
        own = [decisions(row["text"])[name] is None for row in real]
        blank = [row[name] is None for row in real]
        differ = sum(a != b for a, b in zip(own, blank, strict=True))
        print(f"{name}: of {len(real)} real texts {sum(blank)} kept, with spaCy's words {sum(own)}; {differ} differ")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
