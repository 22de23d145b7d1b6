"""ARPA files: the text form of back-off models that SRILM, KenLM, IRSTLM and others read and write.

A line is `log10 probability <tab> words <tab> log10 back-off weight`, the weight being left out where it is 0.
"""

from __future__ import annotations

import gzip
import re
import zlib
from pathlib import Path
from typing import IO, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from gristmill.data.kernel.jit import compiled
from gristmill.errors import GristmillError

from .model import NgramModel, empty_table, find, insert
from .words import SPECIAL, Tokenization, hash_spans

U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]

_KENLM_MAGIC = b"mmap lm http://kheafield.com"
_NONE = np.uint32(0xFFFFFFFF)
_FREE = np.uint64(0xFFFFFFFFFFFFFFFF)
_HALF = np.uint64(32)
_UNKNOWN_LOG = -100.0  # what KenLM gives <unk> in a model that leaves it out
_LINES = 1 << 16  # lines written at a time


def read_arpa(path: Path | str, tokenization: Tokenization) -> NgramModel:
    """The model in an ARPA file (gzipped or not). `tokenization` is how the text it was trained on was split, which the
    file does not say. GristmillError names what is wrong, and where."""
    data = np.frombuffer(_content(path), np.uint8)
    text = data.tobytes()
    counts = [int(count) for count in re.findall(rb"^ngram\s+\d+\s*=\s*(\d+)", text[: 1 << 16], re.MULTILINE)]
    if not counts or b"\\data\\" not in text[: 1 << 16]:
        raise GristmillError(f"{path} is no ARPA file: \\data\\ and its counts of n-grams are missing")
    sections = [_section(path, data, text, order, count) for order, count in enumerate(counts, 1)]
    words, ids = _vocabulary(path, sections[0], data)
    counts[0] = len(words)
    table, slots = empty_table(counts)
    values = table.view(np.float32)
    table[: len(words), 0] = np.arange(len(words))
    values[: len(words), 2] = _UNKNOWN_LOG
    known = _sorted(hash_spans(data, sections[0].starts[0], sections[0].ends[0]), ids)
    values[ids, 2:] = sections[0].values
    closed = True
    for order, section in enumerate(sections[1:], 2):
        columns = [_ids(path, section, data, column, known) for column in range(order)]
        contexts = _find(table, slots, columns[:-1])
        if (contexts == _NONE).any():
            line = section.line(text, int(np.argmax(contexts == _NONE)))
            raise GristmillError(f"{path}: the first words of {line!r} are no n-gram of their own")
        found = np.empty(len(contexts), np.uint32)
        insert(table, slots[order - 2], slots[order - 1], contexts, columns[-1], found)
        values[found, 2:] = section.values
        closed &= not (_find(table, slots, columns[1:]) == _NONE).any()
    return NgramModel(tokenization, words, counts, slots, table, closed)


def write_arpa(model: NgramModel, path: Path) -> None:
    """Write the model as an ARPA file, gzipped where the name ends in .gz; n-grams come in the order of their words'
    numbers, so the same model gives the same bytes."""
    with path.open("wb") as plain:
        if path.suffix == ".gz":  # without name and time in its head
            with gzip.GzipFile("", "wb", compresslevel=6, fileobj=plain, mtime=0) as packed:
                _write(model, cast(IO[bytes], packed))
        else:
            _write(model, plain)


def _write(model: NgramModel, file: IO[bytes]) -> None:
    file.write(b"\\data\\\n")
    for order, count in enumerate(model.counts, 1):
        file.write(b"ngram %d=%d\n" % (order, count))
    words = np.array(model.words, dtype=object)
    names, slots = words, np.arange(len(words))
    for order in range(1, model.order + 1):
        if order > 1:
            names, slots = _next_order(model, order, words, names, slots)
        file.write(b"\n\\%d-grams:\n" % order)
        _write_section(file, names, model.table.view(np.float32)[slots, 2:], order < model.order)
    file.write(b"\n\\end\\\n")


def _next_order(
    model: NgramModel, order: int, words: NDArray, names: NDArray, slots: NDArray[np.int64]
) -> tuple[NDArray, NDArray[np.int64]]:
    """(the n-grams' words, their slots) of an order, from those of the order below in the order of the file."""
    first, last = model.slots[order - 2 : order]
    keys = model.table[first:last, 0]
    used = np.flatnonzero(keys != _FREE)
    by_slot = np.argsort(slots)
    contexts = by_slot[np.searchsorted(slots, keys[used] >> _HALF, sorter=by_slot)]
    last_words = keys[used].astype(np.uint32)
    in_order = np.lexsort((last_words, contexts))
    return names[contexts[in_order]] + b" " + words[last_words[in_order]], first + used[in_order]


def _write_section(file: IO[bytes], names: NDArray, values: NDArray[np.float32], has_weights: bool) -> None:
    for start in range(0, len(names), _LINES):
        rows = zip(names[start : start + _LINES], values[start : start + _LINES].tolist(), strict=True)
        if has_weights:
            lines = [b"%.8g\t%b\t%.8g\n" % (log, name, weight) for name, (log, weight) in rows]
        else:
            lines = [b"%.8g\t%b\n" % (log, name) for name, (log, _) in rows]
        file.write(b"".join(lines))


class _Section(NamedTuple):
    """The n-grams of one order: float32 values [n, 2], and where each word stands, int64 [words, n]."""

    order: int
    values: NDArray[np.float32]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]

    def line(self, text: bytes, number: int) -> str:
        return text[self.starts[0, number] : self.ends[-1, number]].decode(errors="replace")


def _content(path: Path | str) -> bytes:
    try:
        content = Path(path).read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise GristmillError(f"{path} cannot be read: {error}; name an ARPA file, plain or gzipped") from None
    if content.startswith(_KENLM_MAGIC):
        raise GristmillError(
            f"{path} is in KenLM's binary format, which is not read; name the ARPA file it was made from"
        )
    return content


def _section(path: Path | str, data: NDArray[np.uint8], text: bytes, order: int, count: int) -> _Section:
    heading = re.compile(rb"^\\%d-grams:[^\n]*\n" % order, re.MULTILINE).search(text)
    if heading is None:
        raise GristmillError(f"{path} has no section \\{order}-grams:, though its head promises {count} of them")
    values = np.zeros((count, 2), np.float32)
    starts, ends = np.zeros((order, count), np.int64), np.zeros((order, count), np.int64)
    read, place = _parse(data, heading.end(), values, starts, ends)
    if read < count:
        number = text.count(b"\n", 0, place) + 1
        raise GristmillError(f"{path}, line {number}: no {order}-gram, though {count - read} more are promised")
    return _Section(order, values, starts, ends)


def _vocabulary(path: Path | str, unigrams: _Section, data: NDArray[np.uint8]) -> tuple[list[bytes], U32]:
    """(the words, the number of each unigram): those that every model has come first."""
    spelled = [data[start:end].tobytes() for start, end in zip(unigrams.starts[0], unigrams.ends[0], strict=True)]
    spelled = [b"<unk>" if word == b"<UNK>" else word for word in spelled]  # SRILM's spelling
    others = [word for word in spelled if word not in SPECIAL]
    numbers = {word: number for number, word in enumerate([*SPECIAL, *others])}
    if len(numbers) != len(others) + len(SPECIAL) or len(set(spelled)) != len(spelled):
        raise GristmillError(f"{path} has a word twice among its unigrams")
    if b"</s>" not in spelled or b"<s>" not in spelled:
        raise GristmillError(f"{path} has no <s> or </s>: it does not model sentences, and cannot be used here")
    return [*SPECIAL, *others], np.array([numbers[word] for word in spelled], np.uint32)


def _sorted(hashes: U64, ids: U32) -> tuple[U64, U32]:
    order = np.argsort(hashes)
    return hashes[order], ids[order]


def _ids(path: Path | str, section: _Section, data: NDArray[np.uint8], column: int, known: tuple[U64, U32]) -> U32:
    hashes, ids = known
    wanted = hash_spans(data, section.starts[column], section.ends[column])
    places = np.minimum(np.searchsorted(hashes, wanted), len(hashes) - 1)
    missing = np.flatnonzero(hashes[places] != wanted)
    if len(missing):
        line = section.line(data.tobytes(), int(missing[0]))
        raise GristmillError(f"{path}: {line!r} holds a word that is no unigram")
    return ids[places]


def _find(table: U64, slots: list[int], columns: list[U32]) -> U32:
    """The slots of n-grams given as columns of words, or _NONE."""
    found = columns[0]
    for order, column in enumerate(columns[1:], 2):
        longer = np.empty(len(column), np.uint32)
        find(table, slots[order - 2], slots[order - 1], found, column, longer)
        found = longer
    return found


@compiled
def _number_at(data, i, end):  # type: ignore[no-untyped-def]
    """(the decimal number at `i`, where it ends); it ends at `i` where there is none."""
    start = i
    sign = 1.0
    if i < end and (data[i] == 45 or data[i] == 43):
        sign = -1.0 if data[i] == 45 else 1.0
        i += 1
    digits = exponent = 0
    value = 0.0
    behind_point = False
    while i < end and (48 <= data[i] <= 57 or (data[i] == 46 and not behind_point)):
        if data[i] == 46:
            behind_point = True
        else:
            value = value * 10 + (data[i] - 48)
            digits += 1
            exponent -= behind_point
        i += 1
    if digits == 0:
        if end - i >= 3 and data[i] | 32 == 105 and data[i + 1] | 32 == 110 and data[i + 2] | 32 == 102:
            return sign * np.inf, i + 3  # SRILM's -inf
        return 0.0, start
    if i < end and data[i] | 32 == 101:
        i += 1
        minus = i < end and data[i] == 45
        if i < end and (data[i] == 45 or data[i] == 43):
            i += 1
        power = 0
        while i < end and 48 <= data[i] <= 57:
            power = power * 10 + (data[i] - 48)
            i += 1
        exponent += -power if minus else power
    return sign * value * 10.0**exponent, i


@compiled
def _parse(data, place, values, starts, ends):  # type: ignore[no-untyped-def]
    """Read n-grams line by line from `place` on; returns (how many, where it stopped)."""
    order, count = starts.shape
    n = 0
    while n < count and place < len(data):
        end = place
        while end < len(data) and data[end] != 10:
            end += 1
        log, i = _number_at(data, place, end)
        if i == place:
            return n, place
        for word in range(order):
            while i < end and (data[i] == 32 or data[i] == 9):
                i += 1
            starts[word, n] = i
            while i < end and not (data[i] == 32 or data[i] == 9 or data[i] == 13):
                i += 1
            ends[word, n] = i
            if i == starts[word, n]:
                return n, place
        while i < end and (data[i] == 32 or data[i] == 9):
            i += 1
        values[n, 0] = max(log, -99.0)
        values[n, 1] = _number_at(data, i, end)[0]
        n += 1
        place = end + 1
    return n, place
