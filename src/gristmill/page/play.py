"""The tokenization panel's two questions: how is this text divided, and what is in the vocabulary."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import GristmillError
from ..tokenizer.tokenizer import Tokenizer
from .files import Run

ROWS = 100


def tokenize(run: Run | None, text: str) -> dict[str, Any]:
    """The text in pieces, each with the ids it is made of, or an `error` that says why not.

    A piece is one token, or as many as share a character: bytes that are no whole character cannot be shown alone.
    """
    tokenizer = run_tokenizer(run)
    if tokenizer is None:
        return {"error": "The run has no tokenizer yet."}
    pieces = pieces_of(tokenizer, tokenizer.encode(text))
    tokens = sum(len(piece["ids"]) for piece in pieces)
    return {"pieces": pieces, "tokens": tokens, "bytes": len(text.encode("utf-8", "replace"))}


def pieces_of(tokenizer: Tokenizer, ids: list[int]) -> list[dict[str, Any]]:
    """The ids grouped so that each group stands for whole characters."""
    stream = tokenizer.stream(skip_special_tokens=False)
    pieces: list[dict[str, Any]] = []
    waiting: list[int] = []
    for token_id in ids:
        waiting.append(token_id)
        text = stream.push(token_id)
        if text:
            pieces.append({"text": text, "ids": waiting})
            waiting = []
    if waiting:
        pieces.append({"text": stream.finish(), "ids": waiting})
    return pieces


def vocabulary(run: Run | None, query: str, start: int) -> dict[str, Any]:
    """Entries of the vocabulary from the `start`-th match on, at most `ROWS` of them: those whose text holds the
    query, or the one with that id. `next` is where to go on, or None."""
    tokenizer = run_tokenizer(run)
    if tokenizer is None:
        return {"rows": [], "total": 0, "next": None, "error": "The run has no tokenizer yet."}
    entries = vocabulary_entries(tokenizer)
    matches = [e for e in entries if query in e["text"] or (query.isdecimal() and int(query) == e["id"])]
    end = start + ROWS
    return {"rows": matches[start:end], "total": len(matches), "next": end if end < len(matches) else None}


def vocabulary_entries(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Every id with the text it decodes to and the bytes it stands for (0 for special tokens)."""
    sizes = tokenizer.token_bytes
    return [
        {"id": i, "text": tokenizer.decode([i], skip_special_tokens=False), "bytes": int(sizes[i])}
        for i in range(tokenizer.vocab_size)
    ]


def run_tokenizer(run: Run | None) -> Tokenizer | None:
    """The run's tokenizer, loaded once for each artifact; None where there is none or it cannot be read."""
    directory = run.artifact("tokenizer") if run else None
    manifest = run.manifest("tokenizer") if run else None
    if directory is None or manifest is None:
        return None
    try:
        return _load(directory, manifest.hash)
    except (GristmillError, OSError):
        return None


@lru_cache(maxsize=2)
def _load(directory: Path, artifact_hash: str) -> Tokenizer:
    return Tokenizer.load(directory)
