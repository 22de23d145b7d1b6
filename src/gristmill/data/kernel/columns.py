"""The columns that `measure_step` writes: what they are called, their types, what they say.

Lines and paragraphs are not empty ones unless said otherwise; words are what stands between blanks; characters are code
points. A plain word is one that is not of punctuation alone. Shares are between 0 and 1, and 0 where there is nothing
to take a share of. "Repeated" is what stood in the same document before.
"""

from __future__ import annotations

from typing import NamedTuple

import pyarrow as pa


class Column(NamedTuple):
    """A column of measurements."""

    name: str
    type: pa.DataType
    meaning: str


_COUNTS = {
    "characters": "Characters.",
    "words": "Words.",
    "plain_words": "Plain words.",
    "lines": "Lines.",
    "newlines": "Newlines.",
    "paragraphs": "Paragraphs: lines that no blank line parts.",
    "stop_words": "Distinct stop words of the document's language; null where there is no list of them.",
    "sentences": "Sentences: ends of sentences within lines, and lines that have none at their end.",
    "curly_brackets": "Opening curly brackets.",
    "forbidden_phrases": "How many of the domain's forbidden phrases occur; null where it has none.",
    "bad_words": "Occurrences of the domain's bad words; null where it has none.",
    "longest_line": "Characters of the longest line.",
}
_SHARES = {
    "mean_word_length": "Mean length of plain words in characters.",
    "mean_line_length": "Mean length of lines in characters.",
    "hash_ratio": "# per word.",
    "ellipsis_ratio": "Ellipses (... or …) per word.",
    "newlines_per_word": "Newlines per word.",
    "alphabetic_words": "Share of words with a letter.",
    "alphabetic_characters": "Share of characters that are letters.",
    "digit_characters": "Share of characters that are digits.",
    "bullet_lines": "Share of lines, empty ones too, that begin - or •.",
    "ellipsis_lines": "Share of lines, empty ones too, that end in an ellipsis.",
    "terminal_lines": "Share of lines that end in a mark that ends a sentence in any script.",
    "quoted_lines": "Share of lines that end in a quotation mark.",
    "short_lines": "Share of lines of at most the domain's `short_line_characters`, else 30.",
    "uppercase_lines": "Share of lines of which more than half are capitals.",
    "hexadecimal_lines": "Share of lines with a number such as 0x1f, \\x1f or \\u001f.",
    "duplicate_lines": "Share of lines that are repeated.",
    "duplicate_line_characters": "Characters in repeated lines, of all.",
    "char_duplicates": "The same, of all but newlines.",
    "duplicate_paragraphs": "Share of paragraphs that are repeated.",
    "duplicate_paragraph_characters": "Characters in repeated paragraphs, of all.",
    **{f"top_{n}gram": f"Characters in the most frequent {n}-gram of words, of all." for n in (2, 3, 4)},
    **{
        f"duplicate_{n}gram": f"Characters in {n}-grams of words that a scan has met before, of all."
        for n in range(5, 11)
    },
}

STATISTICS = tuple(
    [Column(name, pa.int64(), meaning) for name, meaning in _COUNTS.items()]
    + [Column(name, pa.float32(), meaning) for name, meaning in _SHARES.items()]
)
RULE_LANGUAGE = Column("rule_language", pa.string(), "The language whose stop words and thresholds hold.")
DIGEST = Column("digest", pa.binary(16), "BLAKE2b of the text, 16 bytes.")
SIGNATURE = Column("signature", pa.binary(), "MinHash minima, uint32; null without words or where not asked for.")

COLUMNS = (RULE_LANGUAGE, *STATISTICS, DIGEST, SIGNATURE)
FIELDS = tuple(pa.field(column.name, column.type) for column in COLUMNS)
