"""The heuristic rules that decide whether a document is worth training on: one reason per removed document.

Each rule set is a configuration in `config.py`, where every threshold is a field; a reason is named after its set and
the field that was broken, such as `gopher_quality:min_words` or `code:max_line_characters`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from .config import CodeRules, PageRules, QualityRules, RepetitionRules, RuleSet
from .repetition import Repetition
from .textbatch import LETTER, TextBatch, hash_words

Mask = NDArray[np.bool_]
Failures = Iterator[tuple[str, Mask]]  # (reason, which documents break it), in the order in which reasons are given

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
_ELLIPSIS = re.compile(rb"\.\.\.|\xe2\x80\xa6")
_SENTENCE_END = re.compile(rb"[.!?][\"')\]]*(?=\s)")
_HEXADECIMAL = re.compile(rb"(?:0[xX]|\\[xu])[0-9A-Fa-f]{2}")
_BULLETS = (b"-", b"*", "•".encode(), "‣".encode())
_TERMINAL = np.isin(np.arange(256), list(b".!?\"'"))


def judge(batch: TextBatch, rules: RuleSet, texts: list[str]) -> list[str | None]:
    """The first reason to remove each document of the batch, or None where all rules hold."""
    reasons: list[str | None] = [None] * len(batch)
    checks: list[tuple[str, Failures]] = []
    if rules.code is not None:
        checks.append(("code", code_failures(batch, rules.code)))
    if rules.quality is not None:
        checks.append(("gopher_quality", quality_failures(batch, rules.quality)))
    if rules.repetition is not None:
        checks.append(("gopher_repetition", repetition_failures(batch, rules.repetition)))
    if rules.page is not None:
        checks.append(("page", page_failures(batch, rules.page, texts)))
    for name, failures in checks:
        for rule, broken in failures:
            for document in np.flatnonzero(broken):
                reasons[document] = reasons[document] or f"{name}:{rule}"
    return reasons


def quality_failures(batch: TextBatch, rules: QualityRules) -> Failures:
    """Gopher's quality rules."""
    words, lines = batch.words, batch.lines
    count = words.counts
    mean_length = words.sum(batch.characters(words)) / np.maximum(count, 1)
    yield "min_words", count < rules.min_words
    yield "max_words", count > rules.max_words
    yield "min_mean_word_length", mean_length < rules.min_mean_word_length
    yield "max_mean_word_length", mean_length > rules.max_mean_word_length

    data = batch.bytes.tobytes()
    ellipses = np.fromiter((match.end() for match in _ELLIPSIS.finditer(data)), np.int64)
    hashes = batch.count_in_documents(np.flatnonzero(batch.bytes == ord("#")))
    symbols = np.maximum(hashes, batch.count_in_documents(ellipses - 1))
    yield "max_symbol_ratio", symbols > rules.max_symbol_ratio * count

    bulleted = np.zeros(len(lines), np.bool_)
    first_word = np.searchsorted(words.starts, lines.starts)
    first = words.starts[np.minimum(first_word, len(words) - 1)] if len(words) else lines.starts
    for bullet in _BULLETS:
        bulleted |= _stands_at(batch, first, bullet)
    yield "max_bullet_lines", lines.sum(bulleted) > rules.max_bullet_lines * lines.counts

    ending = np.isin(lines.ends, ellipses)
    yield "max_ellipsis_lines", lines.sum(ending) > rules.max_ellipsis_lines * lines.counts

    alphabetic = batch.count(words, LETTER[batch.bytes]) > 0
    yield "min_alphabetic_words", words.sum(alphabetic) < rules.min_alphabetic_words * count

    yield "min_stop_words", _distinct_stop_words(batch) < rules.min_stop_words


def repetition_failures(batch: TextBatch, rules: RepetitionRules) -> Failures:
    """Gopher's repetition rules."""
    shares = Repetition(batch)
    yield "max_duplicate_lines", shares.duplicate_lines > rules.max_duplicate_lines
    yield "max_duplicate_paragraphs", shares.duplicate_paragraphs > rules.max_duplicate_paragraphs
    yield "max_duplicate_line_characters", shares.duplicate_line_characters > rules.max_duplicate_line_characters
    yield (
        "max_duplicate_paragraph_characters",
        shares.duplicate_paragraph_characters > rules.max_duplicate_paragraph_characters,
    )
    top, duplicate = shares.ngrams(sorted(rules.max_top_ngram), sorted(rules.max_duplicate_ngrams))
    for n, share in top.items():
        yield f"max_top_ngram_{n}", share > rules.max_top_ngram[n]
    for n, share in duplicate.items():
        yield f"max_duplicate_ngrams_{n}", share > rules.max_duplicate_ngrams[n]


def page_failures(batch: TextBatch, rules: PageRules, texts: list[str]) -> Failures:
    """C4's and FineWeb's rules for web pages (the lines that C4 drops are dropped in `clean.drop_lines`)."""
    phrases = [phrase.casefold() for phrase in rules.forbidden_phrases]
    folded = [text.casefold() for text in texts] if phrases else [""] * len(texts)
    yield "forbidden_phrases", np.array([any(phrase in text for phrase in phrases) for text in folded], np.bool_)

    # A document's last sentence is followed by the two newlines between documents, or by this one.
    data = batch.bytes.tobytes() + b"\n"
    sentences = np.fromiter((match.start() for match in _SENTENCE_END.finditer(data)), np.int64)
    yield "min_sentences", batch.count_in_documents(sentences) < rules.min_sentences

    lines = batch.lines
    count = np.maximum(lines.counts, 1)
    terminal = _TERMINAL[batch.bytes[lines.ends - 1]] | _stands_at(batch, lines.ends - 3, "”".encode())
    yield "min_terminal_punctuation", lines.sum(terminal) < rules.min_terminal_punctuation * count
    short = batch.characters(lines) <= rules.short_line_characters
    yield "max_short_lines", lines.sum(short) > rules.max_short_lines * count
    duplicate = Repetition(batch).duplicate_line_characters
    yield "max_duplicate_line_characters", duplicate > rules.max_duplicate_line_characters
    newlines = batch.count_in_documents(np.flatnonzero(batch.bytes == 10))
    yield "max_newlines_per_word", newlines > rules.max_newlines_per_word * batch.words.counts


def code_failures(batch: TextBatch, rules: CodeRules) -> Failures:
    """Rules for source code."""
    lines = batch.lines
    lengths = batch.characters(lines)
    total = np.maximum(batch.lengths, 1)
    yield "min_words", batch.words.counts < rules.min_words
    yield "max_line_characters", lines.sum(lengths > rules.max_line_characters) > 0
    yield "max_mean_line_characters", lines.sum(lengths) > rules.max_mean_line_characters * lines.counts
    letters = batch.count_in_documents(np.flatnonzero(LETTER[batch.bytes]))
    yield "min_alphabetic_characters", letters < rules.min_alphabetic_characters * total
    digits = batch.count_in_documents(np.flatnonzero((batch.bytes >= 48) & (batch.bytes <= 57)))
    yield "max_digit_characters", digits > rules.max_digit_characters * total
    hexadecimal = np.fromiter((match.start() for match in _HEXADECIMAL.finditer(batch.bytes.tobytes())), np.int64)
    holding = np.searchsorted(hexadecimal, lines.ends) > np.searchsorted(hexadecimal, lines.starts)
    yield "max_hexadecimal_lines", lines.sum(holding) > rules.max_hexadecimal_lines * lines.counts


def _stands_at(batch: TextBatch, places: NDArray, what: bytes) -> Mask:
    """Where the bytes `what` stand at the given places of the buffer."""
    padded = np.append(batch.bytes, np.zeros(len(what), np.uint8))
    found = np.ones(len(places), np.bool_)
    for i, byte in enumerate(what):
        found &= padded[np.maximum(places, 0) + i] == byte
    return found


def _distinct_stop_words(batch: TextBatch) -> NDArray:
    """How many different stop words each document holds as words of their own."""
    words = batch.words
    hashes = batch.hashes(words)
    short = np.flatnonzero(words.ends - words.starts <= max(map(len, STOP_WORDS)))
    candidates, owners = hashes[short], words.documents[short]
    found = np.zeros((len(STOP_WORDS), len(batch)), np.bool_)
    for row, stop_word in zip(found, hash_words(STOP_WORDS), strict=True):
        row[owners[candidates == stop_word]] = True
    return found.sum(axis=0)
