"""How the language model sees a text: as sentences of words, each word a 64-bit number.

Two ways, of which a model keeps the one it was trained with:

`words`: for text as people write it. Case is folded, every decimal digit is a 0. A word is a run of letters, digits,
    underscores and combining marks; an ideograph or kana is a word by itself, and so is every other character that is
    no blank. A sentence ends behind a mark that ends sentences (and quotation marks or brackets that close after it)
    where a blank follows, behind an East Asian full stop even without one, and at a blank line; a single newline
    is a blank, so that it does not matter how lines are wrapped.
`spaces`: for text that is split already. Words part at blanks, every line is a sentence; this is what KenLM's tools do.
    Empty lines are no sentences here.

Words of more than 2**31 bytes are not expected. Two words are taken for one where their 64-bit hashes agree: among a
million words, that happens once in about 37 million vocabularies.
"""

from __future__ import annotations

from functools import cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gristmill.data.kernel import characters
from gristmill.data.kernel.jit import compiled
from gristmill.data.kernel.layout import Texts

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]
Tokenization = Literal["words", "spaces"]

SPECIAL = (b"<unk>", b"<s>", b"</s>")  # the first words of every vocabulary
SENTENCE_END = np.uint64(0)  # stands in the row of words where a sentence ends

_WORD, _SINGLE, _BLANK, _TERMINAL, _CLOSING, _ABRUPT = 1, 2, 4, 8, 16, 32
_SPACE, _NEWLINE = 32, 10
_ABRUPT_MARKS = "。．！？｡"  # no blank follows them
_FOLDED_CODES = 1 << 17  # no character above it has a case that is in use
_SEED, _P = np.uint64(0xCBF29CE484222325), np.uint64(0x9E3779B97F4A7C15)
_HALF = np.uint64(32)


class Sentences(NamedTuple):
    """The words of some texts in a row. Those of text d are `hashes[places[d]:places[d + 1]]`, a `SENTENCE_END` behind
    the last of each sentence; word i stands at `data[starts[i]:ends[i]]`."""

    hashes: U64
    starts: I64
    ends: I64
    places: I64


@cache
def _classes() -> NDArray[np.uint8]:
    of = characters.alphabet()
    return characters.table(
        {
            _WORD: of.tokens,
            _SINGLE: of.singles,
            _BLANK: of.blanks,
            _TERMINAL: of.among(characters.TERMINAL),
            _CLOSING: of.closings,
            _ABRUPT: of.among(_ABRUPT_MARKS),
        }
    )


@cache
def _folded() -> NDArray[np.int32]:
    """The code point that stands for each one: small for capital letters, 0 for digits."""
    codes = np.arange(_FOLDED_CODES, dtype=np.int32)
    letters = codes.copy().view("U1")
    codes[np.char.isdecimal(letters)] = ord("0")
    for code in np.flatnonzero(np.char.isupper(letters) | np.char.istitle(letters)).tolist():
        small = chr(code).lower()
        if len(small) == 1:
            codes[code] = ord(small)
    return codes


@cache
def _unchanged() -> NDArray[np.int32]:
    return np.zeros(0, np.int32)


def sentences(texts: Texts, tokenization: Tokenization) -> Sentences:
    """The sentences of the texts."""
    data, offsets = texts
    size = int(offsets[-1] - offsets[0]) if len(texts) else 0
    room = 2 * size + 2 * len(texts) + 2  # an end behind every word at most; what is not written costs no memory
    found = Sentences(
        np.empty(room, np.uint64),
        np.empty(room, np.int64),
        np.empty(room, np.int64),
        np.zeros(len(texts) + 1, np.int64),
    )
    if tokenization == "words":
        count = _split_words(data, offsets, _classes(), _folded(), *found)
    else:
        count = _split_spaces(data, offsets, _unchanged(), *found)
    return Sentences(found.hashes[:count], found.starts[:count], found.ends[:count], found.places)


def spelling(word: bytes, tokenization: Tokenization) -> bytes:
    """The word as it stands in the vocabulary."""
    if tokenization == "spaces":
        return word
    folded = _folded()
    return "".join(chr(folded[ord(c)]) if ord(c) < _FOLDED_CODES else c for c in word.decode()).encode()


def hash_words(words: list[bytes]) -> U64:
    """The numbers of words that are spelled as in a vocabulary."""
    places = np.concatenate([[0], np.cumsum([len(word) for word in words], dtype=np.int64)]).astype(np.int64)
    data = np.frombuffer(b"".join(words), np.uint8)
    return hash_spans(data, places[:-1], places[1:])


def hash_spans(data: NDArray[np.uint8], starts: I64, ends: I64) -> U64:
    """The numbers of the words `data[starts[i]:ends[i]]`, spelled as in a vocabulary."""
    hashes = np.empty(len(starts), np.uint64)
    _hash_spans(data, starts, ends, _unchanged(), hashes)
    return hashes


@compiled
def _character(data, i, end):  # type: ignore[no-untyped-def]
    """(code point, length in bytes) of the character at `i`; a byte that begins none stands for itself."""
    lead = data[i]
    if lead < 0x80:
        return np.int64(lead), 1
    if lead >= 0xF0 and i + 3 < end:
        high = (np.int64(lead & 7) << 18) | (np.int64(data[i + 1] & 63) << 12)
        return high | (np.int64(data[i + 2] & 63) << 6) | np.int64(data[i + 3] & 63), 4
    if lead >= 0xE0 and i + 2 < end:
        return (np.int64(lead & 15) << 12) | (np.int64(data[i + 1] & 63) << 6) | np.int64(data[i + 2] & 63), 3
    if lead >= 0xC0 and i + 1 < end:
        return (np.int64(lead & 31) << 6) | np.int64(data[i + 1] & 63), 2
    return np.int64(lead), 1


@compiled
def _added(h, code, folded):  # type: ignore[no-untyped-def]
    """The hash with one more character."""
    if code < len(folded):
        code = np.int64(folded[code])
    h = (h ^ np.uint64(code)) * _P
    return h ^ (h >> _HALF)


@compiled
def _finished(h):  # type: ignore[no-untyped-def]
    """A hash that is not `SENTENCE_END`."""
    h *= np.uint64(0xBF58476D1CE4E5B9)
    h ^= h >> np.uint64(29)
    return h if h != np.uint64(0) else np.uint64(1)


@compiled
def _hash_spans(data, starts, ends, folded, hashes):  # type: ignore[no-untyped-def]
    for w in range(len(starts)):
        h, i = _SEED, starts[w]
        while i < ends[w]:
            code, size = _character(data, i, ends[w])
            h = _added(h, code, folded)
            i += size
        hashes[w] = _finished(h)


@compiled
def _split_spaces(data, offsets, folded, hashes, starts, ends, places):  # type: ignore[no-untyped-def]
    """One sentence a line; returns the number of words and sentence ends."""
    n = 0
    for d in range(len(offsets) - 1):
        places[d] = n
        sentence = n
        i, end = offsets[d], offsets[d + 1]
        while i <= end:
            b = data[i] if i < end else _NEWLINE
            if b == _NEWLINE and n > sentence:
                hashes[n], starts[n], ends[n] = SENTENCE_END, i, i
                n += 1
                sentence = n
            if b in (_SPACE, _NEWLINE, 9, 13, 0):
                i += 1
                continue
            h, start = _SEED, i
            while i < end and data[i] not in (_SPACE, _NEWLINE, 9, 13, 0):
                code, size = _character(data, i, end)
                h = _added(h, code, folded)
                i += size
            hashes[n], starts[n], ends[n] = _finished(h), start, i
            n += 1
    places[len(offsets) - 1] = n
    return n


@compiled
def _split_words(data, offsets, classes, folded, hashes, starts, ends, places):  # type: ignore[no-untyped-def]
    """Sentences of text as people write it; returns the number of words and sentence ends."""
    n = 0
    for d in range(len(offsets) - 1):
        places[d] = n
        sentence = n  # where the sentence begins
        over, abrupt = False, False  # a mark that ends sentences was the last word but for closing marks
        newlines = 0
        i, end = offsets[d], offsets[d + 1]
        while i < end:
            code, size = _character(data, i, end)
            kind = classes[code]
            if kind & _BLANK:
                if code == _NEWLINE:
                    newlines += 1
                if (over or newlines == 2) and n > sentence:
                    hashes[n], starts[n], ends[n] = SENTENCE_END, i, i
                    n += 1
                    sentence = n
                    over = abrupt = False
                i += size
                continue
            newlines = 0
            start = i
            if abrupt and not kind & (_TERMINAL | _CLOSING):
                hashes[n], starts[n], ends[n] = SENTENCE_END, i, i
                n += 1
                sentence = n
            h = _added(_SEED, code, folded)
            i += size
            if kind & _WORD and not kind & _SINGLE:
                while i < end:
                    code, size = _character(data, i, end)
                    if classes[code] & (_WORD | _SINGLE) != _WORD:
                        break
                    h = _added(h, code, folded)
                    i += size
            hashes[n], starts[n], ends[n] = _finished(h), start, i
            n += 1
            over = bool(kind & _TERMINAL) or (over and bool(kind & _CLOSING))
            abrupt = bool(kind & _ABRUPT) or (abrupt and bool(kind & (_TERMINAL | _CLOSING)))
        if n > sentence:
            hashes[n], starts[n], ends[n] = SENTENCE_END, end, end
            n += 1
    places[len(offsets) - 1] = n
    return n
