"""From a text to the rows of fastText's input matrix: words, their character n-grams, and n-grams of words.

This is fastText's own rule, so that its models mean the same here (Joulin, Grave, Bojanowski, Mikolov, arXiv
1607.01759; Bojanowski et al., arXiv 1607.04606): words part at ASCII whitespace, a text ends in the word `</s>`, a word
is hashed by FNV-1a over signed bytes, character n-grams are taken of `<word>`, and an n-gram of words is hashed by
h * 116049371 + hash of the next word. A newline counts as a blank.

Everything works on UTF-8 bytes: document d is `data[starts[d]:ends[d]]`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gristmill.data.kernel.jit import compiled

from .fasttext_file import LABEL, FastTextFile

_END, _LABEL = np.frombuffer(b"</s>", np.uint8), np.frombuffer(LABEL.encode(), np.uint8)
_FNV_OFFSET, _FNV_PRIME = np.uint32(2166136261), np.uint32(16777619)
_NGRAM_FACTOR = np.uint64(116049371)
_BEFORE, _BEHIND = 60, 62  # < and >
_END_HASH = np.uint32(3617362777)
_NONE = np.int32(-1)
_EMPTY_ROWS = np.zeros((0, 2), np.int32)


class Dictionary(NamedTuple):
    """What the compiled functions need to know of a model, in arrays (a NamedTuple, so that they can be handed it)."""

    slots: NDArray[np.int32]  # open addressing by hash, a power of two long: the word's number, or -1
    hashes: NDArray[np.uint32]  # of each word
    spelling: NDArray[np.uint8]  # all words in a row
    places: NDArray[np.int64]  # word w is spelling[places[w]:places[w + 1]]
    bucket: int
    minn: int
    maxn: int
    word_ngrams: int
    pruned: bool
    bits: NDArray[np.uint8]  # pruned models: a bit for each hash bucket that has a row
    kept_slots: NDArray[np.int32]  # pruned models: open addressing by bucket, the number of an entry of `kept`
    kept: NDArray[np.int32]  # [n, 2]: bucket -> row behind the words


def dictionary(model: FastTextFile) -> Dictionary:
    """The arrays of a model's dictionary."""
    arguments = model.arguments
    spelling = np.frombuffer(b"".join(model.words), np.uint8).copy()
    places = np.concatenate([[0], np.cumsum([len(word) for word in model.words], dtype=np.int64)]).astype(np.int64)
    hashes = word_hashes(spelling, places)
    kept = _EMPTY_ROWS if model.kept is None else model.kept.astype(np.int32)
    bits = np.zeros(arguments.bucket // 8 + 1 if len(kept) else 1, np.uint8)
    np.bitwise_or.at(bits, kept[:, 0] >> 3, (1 << (kept[:, 0] & 7)).astype(np.uint8))
    return Dictionary(
        slots=_table(hashes),
        hashes=hashes,
        spelling=spelling,
        places=places,
        bucket=arguments.bucket,
        minn=arguments.minn,
        maxn=arguments.maxn,
        word_ngrams=arguments.word_ngrams,
        pruned=model.kept is not None,
        bits=bits,
        kept_slots=_table(kept[:, 0].astype(np.uint32)),
        kept=kept,
    )


@compiled
def word_hashes(data, places):  # type: ignore[no-untyped-def]
    """uint32 FNV-1a of each `data[places[w]:places[w + 1]]`, the bytes taken as signed, as fastText has it."""
    hashes = np.empty(len(places) - 1, np.uint32)
    for w in range(len(hashes)):
        h = _FNV_OFFSET
        for i in range(places[w], places[w + 1]):
            h = np.uint32(np.uint32(h ^ np.uint32(np.int8(data[i]))) * _FNV_PRIME)
        hashes[w] = h
    return hashes


@compiled
def _table(hashes):  # type: ignore[no-untyped-def]
    """int32 slots, a power of two of them: open addressing with linear probing, at most half full."""
    size = 16
    while size < 2 * len(hashes):
        size *= 2
    slots = np.full(size, _NONE, np.int32)
    for number in range(len(hashes)):
        slot = np.int64(hashes[number]) & (size - 1)
        while slots[slot] != _NONE:
            slot = (slot + 1) & (size - 1)
        slots[slot] = number
    return slots


@compiled
def _word(dictionary, data, start, end, h):  # type: ignore[no-untyped-def]
    """The number of the word `data[start:end]`, whose hash is h, or -1."""
    mask = len(dictionary.slots) - 1
    slot = np.int64(h) & mask
    while dictionary.slots[slot] != _NONE:
        word = dictionary.slots[slot]
        if dictionary.hashes[word] == h:
            place = dictionary.places[word]
            if dictionary.places[word + 1] - place == end - start:
                i = 0
                while i < end - start and dictionary.spelling[place + i] == data[start + i]:
                    i += 1
                if i == end - start:
                    return word
        slot = (slot + 1) & mask
    return _NONE


@compiled
def _row(dictionary, bucket):  # type: ignore[no-untyped-def]
    """The row of the hash bucket, or -1 where it was pruned."""
    words = len(dictionary.hashes)
    if not dictionary.pruned:
        return words + bucket
    if not dictionary.bits[bucket >> 3] & (1 << (bucket & 7)):
        return -1
    mask = len(dictionary.kept_slots) - 1
    slot = bucket & mask
    while dictionary.kept[dictionary.kept_slots[slot], 0] != bucket:
        slot = (slot + 1) & mask
    return words + np.int64(dictionary.kept[dictionary.kept_slots[slot], 1])


@compiled
def _byte(data, start, end, i):  # type: ignore[no-untyped-def]
    """Byte i of the word with its brackets, `<word>`."""
    if i == 0:
        return np.uint8(_BEFORE)
    if i == end - start + 1:
        return np.uint8(_BEHIND)
    return data[start + i - 1]


@compiled
def _add_subwords(dictionary, data, start, end, rows, count):  # type: ignore[no-untyped-def]
    """Append the rows of the character n-grams of the word `data[start:end]`; the new count."""
    size = end - start + 2
    bucket, inverse = np.int64(dictionary.bucket), 1.0 / dictionary.bucket
    for i in range(size):
        if _byte(data, start, end, i) & 0xC0 == 0x80:  # inside a character
            continue
        h = _FNV_OFFSET
        j = i
        n = 1
        while j < size and n <= dictionary.maxn:
            h = np.uint32(np.uint32(h ^ np.uint32(np.int8(_byte(data, start, end, j)))) * _FNV_PRIME)
            j += 1
            while j < size and _byte(data, start, end, j) & 0xC0 == 0x80:
                h = np.uint32(np.uint32(h ^ np.uint32(np.int8(_byte(data, start, end, j)))) * _FNV_PRIME)
                j += 1
            if n >= dictionary.minn and not (n == 1 and (i == 0 or j == size)):
                # h % bucket by a multiplication: the float's quotient is off by one at most, a division takes 25 cycles
                rest = np.int64(h) - np.int64(np.float64(h) * inverse) * bucket
                rest += bucket * (rest < 0) - bucket * (rest >= bucket)
                row = _row(dictionary, rest)
                if row >= 0:
                    rows[count] = row
                    count += 1
            n += 1
    return count


@compiled
def _begins(data, start, end, what):  # type: ignore[no-untyped-def]
    """Whether `data[start:end]` begins with `what`."""
    if end - start < len(what):
        return False
    equal = True
    for i in range(len(what)):
        equal &= data[start + i] == what[i]
    return equal


@compiled
def most_rows(dictionary, size):  # type: ignore[no-untyped-def]
    """More rows than a text of `size` bytes can have."""
    lengths = dictionary.maxn - dictionary.minn + 1 if dictionary.maxn > 0 else 0
    return (size + 2) * (2 * max(lengths, 0) + dictionary.word_ngrams)


@compiled
def text_rows(dictionary, data, start, end, rows, hashes):  # type: ignore[no-untyped-def]
    """Write the rows of the text `data[start:end]` to `rows` (int64, `most_rows` long), return their number; `hashes`
    is scratch (uint32, `end - start + 2` long). As in fastText a word `</s>` ends the text, and labels are left out."""
    count = words = 0
    i = start
    while True:
        while i < end and (data[i] == 32 or 9 <= data[i] <= 13 or data[i] == 0):
            i += 1
        first = i
        h = _FNV_OFFSET
        while i < end and not (data[i] == 32 or 9 <= data[i] <= 13 or data[i] == 0):
            h = np.uint32(np.uint32(h ^ np.uint32(np.int8(data[i]))) * _FNV_PRIME)
            i += 1
        if first == i or (i - first == len(_END) and _begins(data, first, i, _END)):
            break
        if _begins(data, first, i, _LABEL):
            continue
        hashes[words] = h
        words += 1
        word = _word(dictionary, data, first, i, h)
        if word >= 0:
            rows[count] = word
            count += 1
        if dictionary.maxn > 0:
            count = _add_subwords(dictionary, data, first, i, rows, count)
    hashes[words] = _END_HASH
    word = _word(dictionary, _END, 0, len(_END), _END_HASH)
    if word >= 0:
        rows[count] = word
        count += 1
    for w in range(words):
        h64 = np.uint64(np.int64(np.int32(hashes[w])))  # the sign is carried over, as in fastText
        for other in range(w + 1, min(w + dictionary.word_ngrams, words + 1)):
            h64 = h64 * _NGRAM_FACTOR + np.uint64(np.int64(np.int32(hashes[other])))
            row = _row(dictionary, np.int64(h64 % np.uint64(dictionary.bucket)))
            if row >= 0:
                rows[count] = row
                count += 1
    return count


@compiled
def mean_inputs(dictionary, inputs, data, starts, ends):  # type: ignore[no-untyped-def]
    """float32 [documents, dim]: the mean of the input rows of each document, zeros where it has none."""
    means = np.zeros((len(starts), inputs.shape[1]), np.float32)
    longest = 0
    for d in range(len(starts)):
        longest = max(longest, ends[d] - starts[d])
    rows = np.empty(most_rows(dictionary, longest), np.int64)
    hashes = np.empty(longest + 2, np.uint32)
    for d in range(len(starts)):
        count = text_rows(dictionary, data, starts[d], ends[d], rows, hashes)
        mean = means[d]
        for r in range(count):
            row = inputs[rows[r]]
            for k in range(len(mean)):
                mean[k] += row[k]
        if count:
            mean *= np.float32(1.0 / count)
    return means


@compiled
def prefix_ends(data, offsets, characters):  # type: ignore[no-untyped-def]
    """int64: where the first `characters` characters of each text end, moved back to the end of a word where the text
    goes on and the prefix has more than one word."""
    ends = np.empty(len(offsets) - 1, np.int64)
    for d in range(len(ends)):
        i, end = offsets[d], offsets[d + 1]
        if end - i > characters:
            left = characters
            while i < end:
                if data[i] & 0xC0 != 0x80:
                    if left == 0:
                        break
                    left -= 1
                i += 1
            if i < end:
                cut = i
                while cut > offsets[d] and not (data[cut] == 32 or data[cut] == 10 or data[cut] == 9):
                    cut -= 1
                if cut > offsets[d]:
                    i = cut
            end = i
        ends[d] = end
    return ends


@compiled
def all_rows(dictionary, data, offsets):  # type: ignore[no-untyped-def]
    """(int32 the rows of all texts in a row, int64 where those of each text begin and the last end)."""
    places = np.zeros(len(offsets), np.int64)
    longest = 0
    for d in range(len(offsets) - 1):
        longest = max(longest, offsets[d + 1] - offsets[d])
    rows = np.empty(most_rows(dictionary, longest), np.int64)
    hashes = np.empty(longest + 2, np.uint32)
    found = np.empty(1024, np.int32)
    for d in range(len(offsets) - 1):
        count = text_rows(dictionary, data, offsets[d], offsets[d + 1], rows, hashes)
        size = places[d] + count
        if size > len(found):
            grown = np.empty(2 * size, np.int32)
            grown[: places[d]] = found[: places[d]]
            found = grown
        for r in range(count):
            found[places[d] + r] = rows[r]
        places[d + 1] = size
    return found[: places[-1]], places
