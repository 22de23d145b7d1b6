"""A tokenizer as a SentencePiece `.model` file, which the sentencepiece package and what is built on it read.

Specification: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto. A file holds pieces
with scores and knows no cuts, so the tokenizers whose cuts matter are refused.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

from ...errors import GristmillError
from ..tokenizer import Tokenizer, read_json
from .gguf_pieces import puts_prefix, scores_of_merges, tokens_and_types
from .huggingface import read_named
from .sentencepiece import NORMAL, UNKNOWN, Piece

_MODEL_TYPES = {"Unigram": 1, "BPE": 2}
_NAMED = {"unk": (40, 45), "bos": (41, 46), "eos": (42, 47), "pad": (43, 48)}  # fields of the id and of the piece


def write_model(tokenizer: Tokenizer, path: Path) -> None:
    """Write a tokenizer of kind unigram or sentencepiece, with its special tokens as control pieces.

    GristmillError names the part of tokenizer.json that such a file cannot say.
    """
    where = tokenizer.directory / "tokenizer.json"
    if tokenizer.kind not in ("unigram", "sentencepiece"):
        raise GristmillError(f"{where} cannot be written as a SentencePiece model: it is of kind {tokenizer.kind}")
    state = read_json(where)
    model = state["model"]
    prefix = puts_prefix(state, where, "a SentencePiece model")
    pieces = _pieces(state, tokenizer.vocab_size, where)
    ids = {piece.text: token_id for token_id, piece in enumerate(pieces)}
    named = {name.removesuffix("_token"): token for name, token in read_named(tokenizer.directory).items()}
    named["unk"] = next((piece.text for piece in pieces if piece.type == UNKNOWN), "")
    if not named["unk"]:
        raise GristmillError(f"{where} cannot be written as a SentencePiece model: it names no token for the unknown")
    trainer = _number(3, _MODEL_TYPES[model["type"]]) + _number(4, len(pieces))
    trainer += _number(35, int(bool(model.get("byte_fallback"))))
    for name, (id_field, piece_field) in _NAMED.items():
        token = named.get(name)
        trainer += _number(id_field, -1 if token is None else ids[token])
        trainer += b"" if token is None else _string(piece_field, token.encode())
    normalizer = _string(1, b"identity") + _number(3, int(prefix)) + _number(4, 0) + _number(5, 1)
    entries = (_string(1, _string(1, text.encode()) + _score(score) + _number(3, kind)) for text, score, kind in pieces)
    path.parent.mkdir(parents=True, exist_ok=True)
    writing = path.with_name(f".{path.name}.writing")
    writing.write_bytes(b"".join(entries) + _string(2, trainer) + _string(3, normalizer))
    os.replace(writing, path)


def _pieces(state: dict[str, Any], vocab_size: int, where: Path) -> list[Piece]:
    model = state["model"]
    tokens, types = tokens_and_types(state, vocab_size, where, of_characters=True)
    if model["type"] == "BPE":
        merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        scores = scores_of_merges(tokens, types, merges, str(where))
    else:
        scores = [score for _, score in model["vocab"]] + [0.0] * (vocab_size - len(model["vocab"]))
    rows = zip(tokens, scores, types, strict=True)
    return [Piece(token, score if kind == NORMAL else 0.0, kind) for token, score, kind in rows]


def _number(field: int, value: int) -> bytes:
    """A protocol buffer's field of an integer; negative ones have all 64 bits."""
    return _varint(field << 3) + _varint(value & (1 << 64) - 1)


def _string(field: int, value: bytes) -> bytes:
    """A field of a string or a message."""
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _score(value: float) -> bytes:
    """Field 2 of a piece, in single precision."""
    return _varint(2 << 3 | 5) + struct.pack("<f", value)


def _varint(value: int) -> bytes:
    groups = []
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])
