"""The step that measures: all statistics of a batch of documents, their digests and MinHash signatures.

The batch goes through the compiled passes in parts that stay in the processor's caches; nothing is done per document in
Python but the digest.
"""

from __future__ import annotations

import hashlib
import itertools
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gristmill.data.config import DomainRules, NearDuplicateConfig
from gristmill.data.rules import DEFAULT_LANGUAGE
from gristmill.data.step import Step, set_columns

from . import hashes, repetition, scan
from .columns import DIGEST, FIELDS, RULE_LANGUAGE, SIGNATURE
from .layout import I64, U64, Texts, texts_of
from .parameters import Parameters, domain_rows

PART_BYTES = 1 << 20
SURE_LANGUAGE = 0.65  # a detected language counts from this score on: FineWeb's threshold (arXiv 2406.17557)
Columns = dict[str, NDArray]


def measure_step(rules: DomainRules, near: NearDuplicateConfig | None) -> Step:
    """Writes the columns of `columns.COLUMNS`, from the columns text, domain, language and, where there are any,
    detected_language and language_score. `rules` says what is measured (stop words, short lines, phrases), not by which
    thresholds; `near` how long signatures are, None leaving them out."""
    parameters = Parameters(rules)

    def apply(batch: pa.RecordBatch) -> pa.RecordBatch:
        texts = texts_of(batch.column("text"))
        languages = rule_languages(batch)
        domains = domain_rows(batch.column("domain"))
        stop_tables, stop_table = parameters.stop_words(domains, languages)
        columns = shares(count(texts, parameters.short_lines(domains, len(texts)), stop_tables, stop_table))
        arrays = {name: pa.array(values) for name, values in columns.items()}
        arrays["stop_words"] = pa.array(columns["stop_words"], mask=stop_table < 0)
        arrays |= parameters.phrases(batch.column("text"), domains)
        arrays |= {RULE_LANGUAGE.name: languages, DIGEST.name: digests(texts)}
        arrays[SIGNATURE.name] = signature_column(texts, near)
        return set_columns(batch, arrays, FIELDS)

    return Step("measure", ("text", "domain", "language"), FIELDS, apply)


class Counts(NamedTuple):
    """What the compiled passes count, one row per document; columns as named in `scan.py` and `repetition.py`."""

    words: I64
    lines: I64
    repeated_lines: I64
    repeated_paragraphs: I64
    tops: I64
    duplicates: I64


def count(texts: Texts, short_lines: I64, stop_tables: U64, stop_table: I64) -> Counts:
    """Run the passes. Lines of up to `short_lines[d]` characters are short in text d; its stop words are those in row
    `stop_table[d]` of `stop_tables` (see `Parameters.stop_words`)."""
    widths = (scan.WORD_COUNTS, scan.LINE_COUNTS, 2, 2, 3, 6)
    counts = Counts(*(np.zeros((len(texts), width), np.int64) for width in widths))
    for place, part in texts.parts(PART_BYTES):
        most, classes = part.size // 2 + len(part), scan.classes()
        of = Counts(*(array[place] for array in counts))

        words, lengths, places = _units(most, len(part))
        scan.words(*part, classes, of.words, words, lengths, places)
        scan.stop_words(words, places, stop_tables, stop_table[place], of.words)
        repetition.repeated_ngrams(words, lengths, places, of.tops, of.duplicates)

        lines, lengths, places = _units(most, len(part))
        breaks = np.empty(most, np.bool_)
        scan.lines(*part, classes, short_lines[place], of.lines, lines, lengths, places, breaks)
        repetition.repeated_units(lines, lengths, places, of.repeated_lines)
        paragraphs, p_lengths, p_places = _units(most, len(part))
        scan.paragraphs(*part, lines, lengths, places, breaks, paragraphs, p_lengths, p_places)
        repetition.repeated_units(paragraphs, p_lengths, p_places, of.repeated_paragraphs)
    return counts


def _units(most: int, documents: int) -> tuple[U64, NDArray[np.int32], I64]:
    return np.empty(most, np.uint64), np.empty(most, np.int32), np.zeros(documents + 1, np.int64)


def shares(counts: Counts) -> Columns:
    """The columns that follow from the counts, by name."""
    w, li = counts.words.T, counts.lines.T
    characters, words, lines, newlines = w[scan.CHARACTERS], w[scan.WORDS], li[scan.LINES], li[scan.NEWLINES]
    repeated_lines, line_characters = counts.repeated_lines.T
    repeated_paragraphs, paragraph_characters = counts.repeated_paragraphs.T
    all_lines = newlines + 1
    return {
        "characters": characters,
        "words": words,
        "plain_words": w[scan.PLAIN_WORDS],
        "lines": lines,
        "newlines": newlines,
        "paragraphs": li[scan.PARAGRAPHS],
        "stop_words": w[scan.STOP_WORDS],
        "sentences": li[scan.SENTENCES],
        "curly_brackets": w[scan.BRACKETS],
        "longest_line": li[scan.LONGEST_LINE],
        "mean_word_length": _share(w[scan.PLAIN_CHARACTERS], w[scan.PLAIN_WORDS]),
        "mean_line_length": _share(characters - newlines, lines),
        "hash_ratio": _share(w[scan.HASHES], words),
        "ellipsis_ratio": _share(w[scan.ELLIPSES], words),
        "newlines_per_word": _share(newlines, words),
        "alphabetic_words": _share(w[scan.ALPHABETIC_WORDS], words),
        "alphabetic_characters": _share(w[scan.LETTERS], characters),
        "digit_characters": _share(w[scan.DIGITS], characters),
        "bullet_lines": _share(li[scan.BULLET_LINES], all_lines),
        "ellipsis_lines": _share(li[scan.ELLIPSIS_LINES], all_lines),
        "terminal_lines": _share(li[scan.TERMINAL_LINES], lines),
        "quoted_lines": _share(li[scan.QUOTED_LINES], lines),
        "short_lines": _share(li[scan.SHORT_LINES], lines),
        "uppercase_lines": _share(li[scan.CAPITAL_LINES], lines),
        "hexadecimal_lines": _share(li[scan.HEXADECIMAL_LINES], lines),
        "duplicate_lines": _share(repeated_lines, lines),
        "duplicate_line_characters": _share(line_characters, characters),
        "char_duplicates": _share(line_characters, characters - newlines),
        "duplicate_paragraphs": _share(repeated_paragraphs, li[scan.PARAGRAPHS]),
        "duplicate_paragraph_characters": _share(paragraph_characters, characters),
        **{f"top_{n}gram": _share(column, characters) for n, column in enumerate(counts.tops.T, 2)},
        **{f"duplicate_{n}gram": _share(column, characters) for n, column in enumerate(counts.duplicates.T, 5)},
    }


def _share(part: I64, whole: I64) -> NDArray[np.float32]:
    return (part / np.maximum(whole, 1)).astype(np.float32)


def rule_languages(batch: pa.RecordBatch) -> pa.Array:
    """The language whose rules hold for each row: the detected one if that is sure, else the declared one, English
    where that is unknown; without a region or script (`pt-BR` is `pt`)."""
    language = batch.column("language")
    if "detected_language" in batch.schema.names:
        sure = pc.greater_equal(batch.column("language_score"), SURE_LANGUAGE)
        language = pc.if_else(pc.fill_null(sure, False), batch.column("detected_language"), language)
    language = pc.utf8_lower(pc.replace_substring_regex(language, "[-_].*", ""))
    return pc.if_else(pc.is_in(language, pa.array(["", "und"])), DEFAULT_LANGUAGE, language)


def digests(texts: Texts) -> pa.Array:
    """BLAKE2b of each text, 16 bytes."""
    data, offsets = texts.data.data, texts.offsets.tolist()
    found = [hashlib.blake2b(data[start:end], digest_size=16).digest() for start, end in itertools.pairwise(offsets)]
    return pa.array(found, pa.binary(16))


def signature_column(texts: Texts, near: NearDuplicateConfig | None) -> pa.Array:
    """The MinHash signatures as bytes; null without tokens, or without `near`."""
    if near is None:
        return pa.nulls(len(texts), pa.binary())
    found, some = hashes.signatures_of(texts, near.ngram, near.permutations)
    ends = np.concatenate([[0], np.cumsum(some)]) * found.shape[1] * found.itemsize
    valid = pa.py_buffer(np.packbits(some, bitorder="little"))
    data = pa.py_buffer(np.ascontiguousarray(found[some]).astype("<u4", copy=False))
    return pa.Array.from_buffers(pa.binary(), len(texts), [valid, pa.py_buffer(ends.astype(np.int32)), data])
