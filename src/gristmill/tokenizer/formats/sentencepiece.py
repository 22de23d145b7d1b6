"""SentencePiece `.model` files: a protocol buffer of pieces with scores, and how text is normalized.

Specification: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto. Its BPE joins the
neighbours whose joined piece has the best score, as tiktoken does by ranks, so the merges are found in the same way
(`tiktoken.merges_of`), over characters instead of bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from ...errors import GristmillError
from ..kinds import SPACE
from .tiktoken import merge_parts

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # types of pieces; GGUF numbers tokens so too
IN_BYTE_NAMES = "(?<=<0x[0-9A-F])(?=[0-9A-F]>)"  # the place in the letters <0x41> before the last digit
_MODEL_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}

Value = int | bytes


class Piece(NamedTuple):
    """One entry of the vocabulary; its id is its place. `type` is one of the specification's six."""

    text: str
    score: float
    type: int


@dataclass(frozen=True)
class SentencePieceModel:
    """What a `.model` file says, as far as encoding depends on it. Ids of special tokens are -1 where there is none."""

    pieces: list[Piece]
    model_type: str = "unigram"
    byte_fallback: bool = False
    whitespace_as_suffix: bool = False
    ids: dict[str, int] = field(default_factory=dict)
    charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True

    def of_type(self, *types: int) -> dict[str, int]:
        """The pieces of some types with their ids."""
        return {piece.text: i for i, piece in enumerate(self.pieces) if piece.type in types}


def read_model(path: Path) -> SentencePieceModel:
    """Read a file. GristmillError names the field that is damaged."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise GristmillError(f"{path} cannot be read: {error.strerror}") from None
    try:
        model = _parsed(data)
    except (ValueError, struct.error, TypeError) as error:
        raise GristmillError(f"{path} is not a whole SentencePiece model: {error}") from None
    if not model.pieces:
        raise GristmillError(f"{path} is not a SentencePiece model: it holds no pieces")
    texts = [piece.text for piece in model.pieces]
    if len(set(texts)) < len(texts):
        twice = next(text for i, text in enumerate(texts) if text in texts[:i])
        raise GristmillError(f"{path} holds the piece {twice!r} twice")
    return model


def _parsed(data: bytes) -> SentencePieceModel:
    pieces: list[Piece] = []
    trainer: dict[int, Value] = {}
    normalizer: dict[int, Value] = {}
    for number, value in _fields(data, "the model"):
        if number == 1:
            where = f"pieces[{len(pieces)}]"
            entry = dict(_fields(_bytes(value), where))
            score = struct.unpack("<f", _bytes(entry.get(2, b"\0\0\0\0")))[0]
            pieces.append(Piece(_text(entry.get(1, b""), where), score, cast(int, entry.get(3, NORMAL))))
        elif number == 2:
            trainer = dict(_fields(_bytes(value), "trainer_spec"))
        elif number == 3:
            normalizer = dict(_fields(_bytes(value), "normalizer_spec"))
    defaults = {"unk": (40, 0), "bos": (41, 1), "eos": (42, 2), "pad": (43, -1)}
    ids = {name: _signed(cast(int, trainer.get(number, default))) for name, (number, default) in defaults.items()}
    return SentencePieceModel(
        pieces=pieces,
        model_type=_MODEL_TYPES.get(cast(int, trainer.get(3, 1)), "unknown"),
        byte_fallback=bool(trainer.get(35, 0)),
        whitespace_as_suffix=bool(trainer.get(24, 0)),
        ids={name: token_id for name, token_id in ids.items() if 0 <= token_id < len(pieces)},
        charsmap=_bytes(normalizer.get(2, b"")),
        add_dummy_prefix=bool(normalizer.get(3, 1)),
        remove_extra_whitespaces=bool(normalizer.get(4, 1)),
        escape_whitespaces=bool(normalizer.get(5, 1)),
    )


def _fields(data: bytes, where: str) -> Iterator[tuple[int, Value]]:
    """(number, value) of every field of a protocol buffer message; numbers of four or eight bytes stay bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at, where)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at, where)
            yield number, value
            continue
        if wire not in (1, 2, 5):
            raise ValueError(f"field {number} of {where} has the unknown wire type {wire}")
        size, at = _varint(data, at, where) if wire == 2 else ({1: 8, 5: 4}[wire], at)
        if at + size > len(data):
            raise ValueError(f"field {number} of {where} is cut off")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int, where: str) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError(f"a number in {where} is cut off or too long")
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            return value, at


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _bytes(value: Value) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number stands where a string or message must stand")
    return value


def _text(value: Value, where: str) -> str:
    try:
        return _bytes(value).decode()
    except UnicodeDecodeError:
        raise ValueError(f"{where} is no UTF-8") from None


def backend_of_model(model: SentencePieceModel, source: str) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """The tokenizer with the ids of the sentencepiece package, and `bos_token`, `eos_token` and the like.

    Control pieces and the unknown piece become special tokens, user-defined pieces words that are found before all
    else. GristmillError names what cannot be carried over; `source` names the file there.
    """
    _check(model, source)
    unknown = model.pieces[model.ids["unk"]].text if "unk" in model.ids else None
    if model.model_type == "bpe":
        backend = tokenizers.Tokenizer(_bpe(model, unknown, source))
    else:
        vocabulary = [(piece.text, piece.score) for piece in model.pieces]
        backend = tokenizers.Tokenizer(models.Unigram(vocabulary, model.ids.get("unk"), model.byte_fallback))
    words = model.of_type(USER_DEFINED)
    _set_spaces(backend, model, bool(words))
    special = model.of_type(CONTROL, UNKNOWN)
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    backend.add_tokens([AddedToken(text, special=False, normalized=True) for text in words])
    return backend, {f"{name}_token": model.pieces[token_id].text for name, token_id in model.ids.items()}


def _check(model: SentencePieceModel, source: str) -> None:
    words = model.of_type(USER_DEFINED)
    rewrites = bool(model.charsmap) or model.remove_extra_whitespaces
    causes = {
        f"its model type is {model.model_type}; known are unigram and bpe": model.model_type not in ("unigram", "bpe"),
        "it writes spaces behind words (treat_whitespace_as_suffix)": model.whitespace_as_suffix,
        f"it does not write {SPACE} for spaces (escape_whitespaces)": not model.escape_whitespaces,
        "it holds unused pieces": bool(model.of_type(UNUSED)),
        "it holds user-defined pieces and rewrites text": bool(words) and rewrites,
        "it is a unigram model with user-defined pieces": bool(words) and model.model_type == "unigram",
        "it names no piece for what is unknown": "unk" not in model.ids,
        "it falls back to bytes, but lacks the pieces of some": model.byte_fallback and len(model.of_type(BYTE)) < 256,
    }  # fmt: skip
    for cause, applies in causes.items():
        if applies:
            raise GristmillError(f"{source} cannot be carried over: {cause}")


def _bpe(model: SentencePieceModel, unknown: str | None, source: str) -> models.BPE:
    vocabulary = {piece.text: i for i, piece in enumerate(model.pieces)}
    scores = {piece.text: piece.score for piece in model.pieces if piece.type == NORMAL and len(piece.text) > 1}
    return models.BPE(
        vocabulary,
        merges_of_scores(scores, source),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
    )


def merges_of_scores(scores: Mapping[str, float], where: str) -> list[tuple[str, str]]:
    """The merges, best first, that do what scores of pieces (of two characters and more) do: neighbours whose joined
    piece has the best score are joined, the leftmost of equal ones. Merging a piece's own characters by all better
    scores leaves the pair it is made of.

    A piece of which more than two are left is never made in any text (better merges take its parts apart: 7 of Gemma
    3's 262,144 pieces) and has no merge. GristmillError where `where` gives two pieces equal scores, which merges
    cannot say, but for runs of spaces.
    """
    runs = _runs(scores)
    ordered = sorted((piece for piece in scores if piece not in runs), key=lambda piece: -scores[piece])
    for better, worse in pairwise(ordered):
        if scores[better] == scores[worse]:
            raise GristmillError(f"{where} cannot be carried over: {better!r} and {worse!r} have equal scores")
    ranks = {piece: rank for rank, piece in enumerate(ordered)}
    parts = (merge_parts(list(piece), ranks, rank) for piece, rank in ranks.items())
    return [*((pair[0], pair[1]) for pair in parts if len(pair) == 2), *_run_merges(runs)]


def _runs(scores: Mapping[str, float]) -> list[str]:
    """Runs of spaces that share the worst score, as Llama's have it, which were added when training was done."""
    worst = min(scores.values(), default=0.0)
    runs = [piece for piece, score in scores.items() if score == worst]
    return runs if len(runs) > 1 and all(set(piece) == {SPACE} for piece in runs) else []


def _run_merges(runs: list[str]) -> list[tuple[str, str]]:
    """The merges of equally good runs of spaces. Of equal ones the library takes the leftmost, which lets the first
    run grow as long as it can before a second begins; merges of the longest left sides first do the same."""
    sizes = {1, *map(len, runs)}
    pairs = [(a, b) for a in sizes for b in sizes if a + b in sizes]
    return [(SPACE * a, SPACE * b) for a, b in sorted(pairs, key=lambda pair: (-pair[0], -pair[1]))]


def _set_spaces(backend: tokenizers.Tokenizer, model: SentencePieceModel, has_words: bool) -> None:
    """How text is normalized, spaces written and read back."""
    chain: list[Any] = [normalizers.Precompiled(model.charsmap)] if model.charsmap else []
    if model.remove_extra_whitespaces:
        chain += [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Replace(Regex(r"\A "), "")]
    if has_words and model.add_dummy_prefix:
        # A normalizer would write the prefix behind every such word too. The first of these two knows a text's
        # beginning, and finds no space there that would keep it from writing one: they are all "▁" by then.
        scheme: tuple[Literal["first"], Literal["never"]] = ("first", "never")
        marks = [pre_tokenizers.Metaspace(mark, how, split=False) for mark, how in zip(" ▁", scheme, strict=True)]
        backend.pre_tokenizer = pre_tokenizers.Sequence(marks)
    elif model.add_dummy_prefix:
        chain.append(normalizers.Prepend(SPACE))
    if model.model_type == "unigram" and model.byte_fallback:
        # The library's Viterbi search would take the letters <0x41> for the piece of that name.
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(IN_BYTE_NAMES), "isolated")
    chain.append(normalizers.Replace(" ", SPACE))
    if model.remove_extra_whitespaces:
        chain.append(normalizers.Replace(Regex(rf"{SPACE}+\z"), ""))
    backend.normalizer = normalizers.Sequence(chain)
    reading: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if model.add_dummy_prefix:
        reading.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(reading)
