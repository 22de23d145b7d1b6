"""Fertility: how many tokens a tokenizer makes of text it was not trained on.

A word is a stretch without white space. Chinese, Japanese, Thai, Lao, Khmer, Burmese and Tibetan are written without
spaces, and such a stretch is a phrase there: in a text most of whose letters are of those scripts no words are counted,
and tokens per character is the figure to look at. A word is whole when its letters, behind a blank, are one token; for
that words are runs of letters, so that punctuation around them does not count.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..data.schema import row_groups
from .tokenizer import Tokenizer

SAMPLE_BYTES = 1_000_000
SAMPLE_DOCUMENTS = 1_000
_BATCH_TEXTS = 256
# RE2's \s knows ASCII only; these are the characters that str.split() splits at.
_WORD = r"[^\t-\r\x1c-\x1f\x{85}\pZ]+"
_NO_LETTERS = r"[^\pL\pM]+"
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]"
_BEFORE = "a"  # the word that a word is put behind, to see what it adds

Group = tuple[str, str]  # (domain, language)
_Place = tuple[bytes, Path, int, int]  # of a document: its digest, its file, row group and row


@dataclass(frozen=True)
class Fertility:
    """Counts over texts, which add up over parts of them; bytes are those of UTF-8.

    `words` are counted in the texts that are written with spaces, `spaced_tokens` are the tokens of those texts;
    `letter_words` are the runs of letters in them, `whole_words` those of one token.
    """

    tokens: int = 0
    words: int = 0
    bytes: int = 0
    characters: int = 0
    documents: int = 0
    spaced_tokens: int = 0
    letter_words: int = 0
    whole_words: int = 0

    def __add__(self, other: Fertility) -> Fertility:
        return Fertility(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    @property
    def tokens_per_word(self) -> float:
        """0 where no words were counted."""
        return self.spaced_tokens / max(self.words, 1)

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / max(self.tokens, 1)

    @property
    def tokens_per_character(self) -> float:
        return self.tokens / max(self.characters, 1)

    @property
    def whole_word_share(self) -> float:
        """Of the words as they occur, those that are one token; 0 where no words were counted."""
        return self.whole_words / max(self.letter_words, 1)


@dataclass(frozen=True)
class TextSample:
    """Texts with what is counted in them whatever the tokenizer; made by `TextSample.of`.

    `spaced` `[texts]`: whether a text is written with spaces. `runs`: its different runs of letters, `run_counts` how
    often each occurs.
    """

    texts: pa.LargeStringArray
    spaced: NDArray[np.bool_]
    words: int
    runs: pa.LargeStringArray
    run_counts: NDArray[np.int64]

    @classmethod
    def of(cls, texts: pa.Array | Iterable[str]) -> TextSample:
        """A sample of strings, or of an Arrow array of them."""
        if not isinstance(texts, pa.Array):
            texts = pa.array(list(texts), pa.large_string())
        texts = texts.cast(pa.large_string())
        spaced = _is_spaced(texts)
        written = texts.filter(pa.array(spaced))
        words = pc.sum(pc.count_substring_regex(written, _WORD)).as_py() or 0
        runs = pc.split_pattern(pc.replace_substring_regex(written, _NO_LETTERS, " "), " ").flatten()
        counted = runs.filter(pc.not_equal(runs, "")).value_counts()
        return cls(texts, spaced, words, counted.field("values"), np.asarray(counted.field("counts")))


def measure(tokenizer: Tokenizer, sample: TextSample) -> Fertility:
    """Count the tokens of a sample."""
    tokens = token_counts(tokenizer, sample.texts)
    alone = token_counts(tokenizer, pa.array([_BEFORE], pa.large_string()))[0]
    blank = pa.scalar(" ", pa.large_string())
    behind = pc.binary_join_element_wise(pa.scalar(_BEFORE, pa.large_string()), sample.runs, blank)
    added = token_counts(tokenizer, behind) - alone
    return Fertility(
        tokens=int(tokens.sum()),
        words=sample.words,
        bytes=int(pc.sum(pc.binary_length(sample.texts)).as_py() or 0),
        characters=int(pc.sum(pc.utf8_length(sample.texts)).as_py() or 0),
        documents=len(sample.texts),
        spaced_tokens=int(tokens[sample.spaced].sum()),
        letter_words=int(sample.run_counts.sum()),
        whole_words=int(sample.run_counts[added == 1].sum()),
    )


def fertility(tokenizer: Tokenizer, texts: Iterable[str]) -> Fertility:
    """Count the tokens of `texts`, some hundred of them in memory at a time."""
    stream = iter(texts)
    total = Fertility()
    while part := list(islice(stream, _BATCH_TEXTS)):
        total += measure(tokenizer, TextSample.of(part))
    return total


def token_counts(tokenizer: Tokenizer, texts: pa.Array) -> NDArray[np.int64]:
    """The number of tokens of each text, without bos or eos."""
    _, offsets = tokenizer.encode_array(texts)
    return np.diff(offsets)


def corpus_samples(
    corpus: Path, split: str, budget: int = SAMPLE_BYTES, documents: int = SAMPLE_DOCUMENTS
) -> dict[Group, TextSample]:
    """Documents of one split of an artifact `corpus`, of each domain and language at most so many and at most `budget`
    bytes, drawn by a hash of their ids, so always the same ones; the last one is cut short. Only the row groups that
    hold a document that is drawn are read."""
    ranked: dict[Group, list[_Place]] = {}
    for path, row_group, _ in row_groups(corpus / "documents"):
        with pq.ParquetFile(path) as file:
            table = file.read_row_group(row_group, columns=["id", "domain", "language", "split"])
        columns = (table[name].to_pylist() for name in ("id", "domain", "language", "split"))
        for row, (id, domain, language, found) in enumerate(zip(*columns, strict=True)):
            if found == split:
                digest = hashlib.blake2b(id.encode(), digest_size=8).digest()
                ranked.setdefault((domain, language or ""), []).append((digest, path, row_group, row))
    drawn = {group: heapq.nsmallest(documents, ranked[group]) for group in sorted(ranked)}
    texts = _texts_at([place for places in drawn.values() for place in places])
    return {group: TextSample.of(_cut(map(texts.__getitem__, places), budget)) for group, places in drawn.items()}


def _texts_at(places: Iterable[_Place]) -> dict[_Place, str]:
    """The texts of some documents, read row group by row group."""
    wanted: dict[tuple[Path, int], list[_Place]] = {}
    for place in places:
        wanted.setdefault(place[1:3], []).append(place)
    texts: dict[_Place, str] = {}
    for path, row_group in sorted(wanted):
        with pq.ParquetFile(path) as file:
            column = file.read_row_group(row_group, columns=["text"])["text"]
        texts.update({place: column[place[3]].as_py() for place in wanted[path, row_group]})
    return texts


def _cut(texts: Iterable[str], budget: int) -> Iterator[str]:
    """Texts until `budget` bytes are full, the last one cut short at a whole character."""
    for text in texts:
        data = text.encode()
        if budget <= 0:
            return
        yield data[:budget].decode("utf-8", "ignore")
        budget -= len(data)


def _is_spaced(texts: pa.Array) -> NDArray[np.bool_]:
    letters = np.asarray(pc.count_substring_regex(texts, r"\pL"))
    unspaced = np.asarray(pc.count_substring_regex(texts, _UNSPACED))
    return 2 * unspaced <= letters
