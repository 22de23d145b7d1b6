"""The tokenization panel's questions: how is this text divided, how was this word built, what is in the vocabulary."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from ..artifact import read_manifest
from ..errors import GristmillError
from ..tokenizer.explain import LONGEST_WORD, MergeTable, Word, pieces_of
from ..tokenizer.fertility import Fertility, Group, corpus_samples, measure
from ..tokenizer.tokenizer import Tokenizer
from .files import Run

ROWS = 100
FERTILITY_BYTES = 300_000  # of each domain and language: the page is waiting
NO_TOKENIZER = "The run has no tokenizer yet."


def tokenize(run: Run | None, text: str) -> dict[str, Any]:
    """The text in pieces, each with the ids it is made of, or an `error` that says why not.

    A piece is one token, or as many as share a character: bytes that are no whole character cannot be shown alone.
    Where words are built by merges there are `words` too, and each piece has the place of its `word` among them.
    """
    try:
        tokenizer = needed_tokenizer(run)
    except GristmillError as error:
        return {"error": str(error)}
    found = pieces_of(tokenizer, tokenizer.encode(text))
    pieces: list[dict[str, Any]] = [{"text": piece.text, "ids": piece.ids} for piece in found]
    size = len(text.encode("utf-8", "replace"))
    answer: dict[str, Any] = {"pieces": pieces, "tokens": sum(len(piece.ids) for piece in found), "bytes": size}
    table = _merge_table(tokenizer)
    words = table.words(text) if table is not None else []
    if "".join(piece.text for piece in found) == "".join(word.text for word in words):
        answer["words"] = [word.text for word in words]
        for piece, word in zip(pieces, _word_of_each([piece.text for piece in found], words), strict=True):
            piece["word"] = word
    return answer


def _word_of_each(pieces: list[str], words: list[Word]) -> list[int]:
    """The place of the word in which each piece begins; pieces and words are cuts of the same text."""
    places, position, at = [], 0, 0
    for piece in pieces:
        while at + 1 < len(words) and words[at].end <= position:
            at += 1
        places.append(at)
        position += len(piece)
    return places


def merges(run: Run | None, word: str) -> dict[str, Any]:
    """How the merges build a word, or an `error` that says why there are none: `steps` of the merge's number (from 1),
    the pair and the parts of the word after it; `begins` as its single symbols."""
    try:
        table = _merge_table(needed_tokenizer(run))
    except GristmillError as error:
        return {"error": str(error)}
    if table is None:
        return {"error": "This tokenizer builds its words otherwise than by merges."}
    found = table.word(word)
    if len(found.symbols) > LONGEST_WORD:
        return {"error": f"The word has more than {LONGEST_WORD} bytes."}
    steps = [
        {"number": step.rank + 1, "left": step.left, "right": step.right, "parts": step.parts}
        for step in table.merges(found)
    ]
    return {"word": word, "begins": table.beginning(found), "steps": steps}


def vocabulary(run: Run | None, query: str, start: int) -> dict[str, Any]:
    """Entries of the vocabulary from the `start`-th match on, at most `ROWS` of them: those whose text holds the
    query, or the one with that id. `next` is where to go on, or None. Without a tokenizer an `error` says why."""
    try:
        entries = vocabulary_entries(needed_tokenizer(run))
    except GristmillError as error:
        return {"rows": [], "total": 0, "next": None, "error": str(error)}
    matches = [e for e in entries if query in e["text"] or (query.isdecimal() and int(query) == e["id"])]
    end = start + ROWS
    return {"rows": matches[start:end], "total": len(matches), "next": end if end < len(matches) else None}


@lru_cache(maxsize=2)
def vocabulary_entries(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Every id with the text it decodes to and the bytes it stands for (0 for special tokens)."""
    sizes = tokenizer.token_bytes
    return [
        {"id": i, "text": tokenizer.decode([i], skip_special_tokens=False, continues=True), "bytes": int(sizes[i])}
        for i in range(tokenizer.vocab_size)
    ]


def run_tokenizer(run: Run | None) -> Tokenizer | None:
    """The run's tokenizer; None where there is none or it cannot be read."""
    try:
        return needed_tokenizer(run)
    except GristmillError:
        return None


def needed_tokenizer(run: Run | None) -> Tokenizer:
    """The run's tokenizer, loaded once for each artifact. GristmillError says that there is none, or what is wrong with
    the one that is there."""
    directory = run.artifact("tokenizer") if run else None
    if directory is None:
        raise GristmillError(NO_TOKENIZER)
    try:
        return _load(directory, read_manifest(directory).hash)
    except (GristmillError, OSError) as error:
        raise GristmillError(f"The run's tokenizer cannot be used: {error}") from None


@lru_cache(maxsize=2)
def _load(directory: Path, artifact_hash: str) -> Tokenizer:
    return Tokenizer.load(directory)


def run_fertility(run: Run) -> dict[Group, Fertility]:
    """What the run's tokenizer makes of the corpus' validation text, by domain and language; empty without both."""
    tokenizer, corpus, manifest = run_tokenizer(run), run.artifact("corpus"), run.manifest("corpus")
    if tokenizer is None or corpus is None or manifest is None:
        return {}
    return _fertility(tokenizer, corpus, manifest.hash)


@lru_cache(maxsize=2)
def _fertility(tokenizer: Tokenizer, corpus: Path, artifact_hash: str) -> dict[Group, Fertility]:
    samples = corpus_samples(corpus, "validation", budget=FERTILITY_BYTES)
    return {group: measure(tokenizer, sample) for group, sample in samples.items()}


@lru_cache(maxsize=2)
def _merge_table(tokenizer: Tokenizer) -> MergeTable | None:
    return MergeTable.of(tokenizer)
