"""C4's rules that change the text of a web page (JMLR 21:140, in the order of its code): lines and marks taken out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

import pyarrow as pa
import pyarrow.compute as pc

from ..config.rules import C4Rules, DomainRules
from ..step import Step, set_columns

_FIELDS = (pa.field("text", pa.string(), nullable=False), pa.field("bytes", pa.int64()))
_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_PART = 1 << 20
_TERMINAL = (".", "?", "!", '"', "'")


def drop_lines_step(rules: DomainRules) -> Step:
    """Rewrites the texts of the domains that have C4's rules, and their lengths."""

    def apply(batch: pa.RecordBatch) -> pa.RecordBatch:
        domains = batch.column("domain").to_pylist()
        found = {domain: rules.of(domain).c4 for domain in set(domains)}
        if not any(found.values()):
            return batch
        column = batch.column("text")
        changed: list[str | None] = [None] * len(column)
        for row, domain in enumerate(domains):
            c4 = found[domain]
            if c4 is not None:
                text = column[row].as_py()
                kept = drop_lines(text, c4)
                changed[row] = None if kept == text else kept
        column = pc.coalesce(pa.array(changed, pa.string()), column)
        return set_columns(batch, {"text": column, "bytes": pc.binary_length(column)}, _FIELDS)

    return Step("drop_lines", ("text", "domain", "bytes"), _FIELDS, apply)


def drop_lines(text: str, rules: C4Rules) -> str:
    """The clean text without the lines that C4 takes out, and clean again.

    A line that decides about the whole page stays for the page's rules to see, where C4's code looks at the page's rule
    first: a forbidden phrase before `dropped_lines`, a curly bracket before all of them but javascript's. Blank lines
    stay, so that paragraphs do; of those around a line that goes, one.
    """
    kept: list[str] = []
    gap = False
    for line in _kept_lines(text, rules):
        if line is None:
            gap = True
        elif line or not gap or (kept and kept[-1]):
            kept.append(line)
            gap = gap and not line
    return "\n".join(kept).strip("\n").rstrip()


def _kept_lines(text: str, rules: C4Rules) -> Iterator[str | None]:
    """Every line as it stays, or None where it goes."""
    phrases = _present(text, rules.dropped_lines)
    forbidden = _present(text, rules.forbidden_phrases) if phrases else []
    citations = rules.remove_citations and "[" in text
    enough, long_word = _patterns(rules.min_words_per_line, rules.max_word_length)
    for line in text.split("\n"):
        if not line:
            yield line
            continue
        if len(line) > rules.max_word_length and long_word.search(line):
            yield None
            continue
        few = enough.match(line) is None
        if citations:
            line = _CITATION.sub("", line)
        unfinished = rules.terminal_punctuation and (not line.endswith(_TERMINAL) or line.endswith("..."))
        dropped = few or unfinished or (phrases and _is_dropped(line, phrases, forbidden, rules.curly_bracket))
        yield None if dropped else line.rstrip() if citations else line


@lru_cache(maxsize=8)
def _patterns(min_words: int, max_word_length: int) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """What begins a line of enough words, and a word that is too long. Neither makes a copy of a line, which may be all
    of a document."""
    enough = rf"\s*(?:\S+\s+){{{min_words - 1}}}\S" if min_words else ""
    return re.compile(enough), re.compile(rf"\S{{{max_word_length + 1}}}")


def _present(text: str, phrases: tuple[str, ...]) -> list[str]:
    """Those of the phrases, in small letters, that the text holds in any case; looked for a part of it at a time."""
    wanted = [phrase.lower() for phrase in phrases]
    overlap = max(map(len, wanted), default=0)
    found: set[str] = set()
    for start in range(0, len(text), _PART):
        folded = text[start : start + _PART + overlap].lower()
        found.update(phrase for phrase in wanted if phrase in folded)
    return [phrase for phrase in wanted if phrase in found]


def _is_dropped(line: str, phrases: list[str], forbidden: list[str], curly_bracket: bool) -> bool:
    folded = line.lower()
    held = [phrase for phrase in phrases if phrase in folded]
    if not held or any(phrase in folded for phrase in forbidden):
        return False
    return "javascript" in held or not (curly_bracket and "{" in line)
