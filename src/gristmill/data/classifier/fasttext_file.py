"""fastText's model files, read and written: `.bin` and the quantized `.ftz`, versions 11 and 12.

The layout is that of `FastText::saveModel` (Joulin, Grave, Bojanowski, Mikolov, arXiv 1607.01759; the quantized form
arXiv 1612.03651): magic and version, arguments, dictionary, input matrix, output matrix, all little-endian. A quantized
matrix is unpacked on reading, so that the rest of gristmill knows one form only.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gristmill.errors import GristmillError

F32 = NDArray[np.float32]

MAGIC, VERSION = 793712314, 12
HIERARCHICAL, NEGATIVE_SAMPLING, SOFTMAX, ONE_VERSUS_ALL = 1, 2, 3, 4
SUPERVISED = 3
LABEL = "__label__"
_CENTROIDS = 256


class Arguments(NamedTuple):
    """The training arguments in the order in which the file holds them."""

    dim: int
    ws: int
    epoch: int
    min_count: int
    neg: int
    word_ngrams: int
    loss: int
    model: int
    bucket: int
    minn: int
    maxn: int
    lr_update_rate: int
    t: float


@dataclass(frozen=True)
class FastTextFile:
    """A supervised model. Rows of `inputs` [words + buckets, dim] are words, then hashed n-grams; rows of `outputs`
    [labels, dim] are labels, or the inner nodes of the Huffman tree over them. `kept` [n, 2] is there where n-grams
    were pruned: hash bucket -> row behind the words."""

    arguments: Arguments
    words: list[bytes]
    word_counts: list[int]
    labels: list[str]
    label_counts: list[int]
    inputs: F32
    outputs: F32
    tokens: int = 0
    kept: NDArray[np.int32] | None = field(default=None)


def read_fasttext(path: Path | str) -> FastTextFile:
    """The model in `path`. GristmillError when the file is no supervised fastText model, or torn."""
    try:
        with Path(path).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(_Reader(data))
    except OSError as error:
        raise GristmillError(f"{path}: {error.strerror or error}; name a fastText model (.bin or .ftz)") from None
    except (struct.error, ValueError, UnicodeDecodeError) as error:
        raise GristmillError(f"{path} is no fastText model that can be read: {error}") from None


def write_fasttext(path: Path, model: FastTextFile) -> None:
    """Write `model` as an unquantized `.bin` of version 12; the same model gives the same bytes."""
    assert model.kept is None, "a pruned model is only ever read"
    parts = [struct.pack("<2i12id", MAGIC, VERSION, *model.arguments)]
    entries = len(model.words) + len(model.labels)
    parts.append(struct.pack("<3i2q", entries, len(model.words), len(model.labels), model.tokens, -1))
    for word, count in zip(model.words, model.word_counts, strict=True):
        parts.append(word + struct.pack("<xqb", count, 0))
    for label, count in zip(model.labels, model.label_counts, strict=True):
        parts.append((LABEL + label).encode() + struct.pack("<xqb", count, 1))
    with path.open("wb") as file:
        file.write(b"".join(parts))
        for matrix in (model.inputs, model.outputs):
            file.write(struct.pack("<?2q", False, *matrix.shape))
            file.write(np.ascontiguousarray(matrix, "<f4").tobytes())


class _Reader:
    def __init__(self, data: mmap.mmap):
        self.data, self.place = data, 0

    def unpack(self, layout: str) -> tuple:
        values = struct.unpack_from("<" + layout, self.data, self.place)
        self.place += struct.calcsize("<" + layout)
        return values

    def array(self, kind: str, count: int) -> NDArray:
        if not 0 <= count <= len(self.data):
            raise ValueError("a size that cannot be")
        values = np.frombuffer(self.data, kind, count, self.place).copy()  # aligned, and good without the file
        self.place += values.nbytes
        return values

    def word(self) -> bytes:
        end = self.data.find(b"\0", self.place)
        if end < 0:
            raise ValueError("its dictionary has no end")
        word = self.data[self.place : end]
        self.place = end + 1
        return word


def _parse(reader: _Reader) -> FastTextFile:
    magic, version = reader.unpack("2i")
    if magic != MAGIC or version not in (11, VERSION):
        raise ValueError(f"it begins with {magic}, version {version}; expected {MAGIC}, version 11 or {VERSION}")
    arguments = Arguments(*reader.unpack("12id"))
    if arguments.model != SUPERVISED:
        raise ValueError("it holds word vectors, not a classifier")
    if version == 11:  # older classifiers had no subwords, whatever their arguments say
        arguments = arguments._replace(maxn=0)
    size, word_count, label_count, tokens, pruned = reader.unpack("3i2q")
    if size != word_count + label_count:
        raise ValueError("its dictionary's sizes disagree")
    words, labels, counts = [], [], []
    for _ in range(size):
        entry = reader.word()
        count, kind = reader.unpack("qb")
        counts.append(count)
        if kind == 0:
            words.append(entry)
        else:
            labels.append(entry.decode().removeprefix(LABEL))
    kept = reader.array("<i4", 2 * pruned).reshape(-1, 2) if pruned >= 0 else None
    inputs = _matrix(reader)
    outputs = _matrix(reader, dense=not reader.unpack("?")[0])
    if inputs.shape[1] != arguments.dim or outputs.shape[1] != arguments.dim:
        raise ValueError("its matrices are not as wide as its arguments say")
    counted, label_counts = counts[:word_count], counts[word_count:]
    return FastTextFile(arguments, words, counted, labels, label_counts, inputs, outputs, tokens, kept)


def _matrix(reader: _Reader, dense: bool | None = None) -> F32:
    if dense is None:
        dense = not reader.unpack("?")[0]
    if dense:
        rows, columns = reader.unpack("2q")
        return reader.array("<f4", rows * columns).reshape(rows, columns)
    has_norms, rows, columns, code_count = reader.unpack("?2qi")
    codes = reader.array("u1", code_count).reshape(rows, -1)
    values = _decode(codes, *_quantizer(reader))
    if has_norms:
        norm_codes = reader.array("u1", rows).reshape(rows, 1)
        values *= _decode(norm_codes, *_quantizer(reader))
    return values


def _quantizer(reader: _Reader) -> tuple[int, int, int, F32]:
    """(width, width of a part, width of the last part, centroids) of a product quantizer."""
    width, _, part, last = reader.unpack("4i")
    return width, part, last, reader.array("<f4", width * _CENTROIDS)


def _decode(codes: NDArray[np.uint8], width: int, part: int, last: int, centroids: F32) -> F32:
    values = np.empty((len(codes), width), np.float32)
    for number in range(codes.shape[1]):
        start = number * part
        size = last if number == codes.shape[1] - 1 else part
        table = centroids[start * _CENTROIDS : (start + size) * _CENTROIDS].reshape(_CENTROIDS, size)
        values[:, start : start + size] = table[codes[:, number]]
    return values
