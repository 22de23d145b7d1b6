"""SentencePiece-style BPE inside GGUF files (`tokenizer.ggml.model` llama): a score for each token instead of merges.

llama.cpp joins the neighbours whose joined token has the best score, the leftmost of equal ones. tokenizer.json lists
the pairs that merge, in order: merging a token's own characters by all better scores leaves the pair it is made of.
SentencePiece's own files are read by the same rule (`sentencepiece`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from gristmill.errors import GristmillError

from ..kinds import CUTS, SPACE
from .sentencepiece import BYTE, CONTROL, IN_BYTE_NAMES, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, merges_of_scores

_BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
_PADDING = "[PAD{}]"  # the name of an id that no token has
_WORST = -1e9  # the score of runs of spaces that were added when training was done, as Llama's

# How the tokenizer stage writes spaces for this kind. It cuts text too, but between characters that stand side by side
# in none of its tokens, so that the scores alone say the same.
_CUT_BEFORE = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": CUTS}, "behavior": "Isolated", "invert": False},
        {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "never", "split": False},
    ],
}
# Of a unigram model that was read from a SentencePiece file; it keeps letters from being taken for a byte's token.
_CUT_IN_BYTE_NAMES = {"type": "Split", "pattern": {"Regex": IN_BYTE_NAMES}, "behavior": "Isolated", "invert": False}


def tokens_and_types(
    state: dict[str, Any], vocab_size: int, path: Path, of_characters: bool
) -> tuple[list[str], list[int]]:
    """The tokens of the tokenizer.json `state` by their ids and what SentencePiece calls their types, which GGUF files
    have too; ids that no token has become unused tokens, and special tokens added behind the model's rows (Gemma 3's
    for images) are left out. `of_characters`: not byte-level, with a token for the unknown.

    GristmillError where an id is not below `vocab_size` or a piece holds NUL; KeyError, TypeError, AttributeError for a
    part that is missing or of another form.
    """
    model = state["model"]
    vocab, unknown = model["vocab"], model.get("unk_token")
    if isinstance(vocab, list):  # a unigram model's, with scores
        unknown = None if model.get("unk_id") is None else vocab[model["unk_id"]][0]
        vocab = {token: i for i, (token, _) in enumerate(vocab)}
    added = {
        entry["id"]: entry
        for entry in state["added_tokens"]
        if entry["id"] < vocab_size or not entry["special"] or entry["content"] in vocab
    }
    by_id = {i: token for token, i in vocab.items()} | {i: entry["content"] for i, entry in added.items()}
    if max(by_id, default=-1) >= vocab_size:
        raise GristmillError(f"{path} holds id {max(by_id)}, the model's vocab_size is {vocab_size}")

    def type_of(token_id: int) -> int:
        if token_id not in by_id:
            return UNUSED
        token = by_id[token_id]
        if of_characters and token == unknown:
            return UNKNOWN
        if token_id in added:
            return CONTROL if added[token_id]["special"] else USER_DEFINED
        return BYTE if model.get("byte_fallback") and _BYTE_TOKEN.fullmatch(token) else NORMAL

    tokens = [by_id.get(i, _PADDING.format(i)) for i in range(vocab_size)]
    nul = next((token for token in tokens if of_characters and "\0" in token), None)
    if nul is not None:
        raise GristmillError(
            f"{path}: its token {nul!r} holds the character NUL, which SentencePiece and llama.cpp have in no piece; "
            f"take it out of the text that the tokenizer is trained on"
        )
    return tokens, [type_of(i) for i in range(vocab_size)]


def merges_of(tokens: list[str], types: list[int], scores: list[float], where: str) -> list[tuple[str, str]]:
    """The merges that do what the scores do; GristmillError where none can."""
    rows = zip(tokens, types, scores, strict=True)
    return merges_of_scores({token: score for token, kind, score in rows if kind == NORMAL and len(token) > 1}, where)


def scores_of_merges(tokens: list[str], types: list[int], merges: list[list[str]], where: str) -> list[float]:
    """A score for each token that gives the same merges; GristmillError where none can."""
    made = [left + right for left, right in merges]
    spaces = [token for token in made if set(token) == {SPACE}]
    runs = set(spaces) if len(set(spaces)) < len(spaces) else set()  # made in several ways: all are equally good
    best = {token: -float(rank) for rank, token in reversed(list(enumerate(made)))}
    scores = [_WORST if token in runs else best.get(token, -float(len(made))) for token in tokens]
    if merges_of(tokens, types, scores, where) != [(left, right) for left, right in merges]:
        raise GristmillError(f"{where}: its merges are not what scores of its tokens could give")
    return scores


def sentencepiece_json(
    prefix: bool, unknown: str | None, vocab: dict[str, int], merges: list[tuple[str, str]]
) -> dict[str, Any]:
    """`normalizer`, `decoder` and `model` of a tokenizer.json; `prefix`: a space is put before every text."""
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    return {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [*([{"type": "Prepend", "prepend": SPACE}] if prefix else []), replace],
        },
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
        "model": {"unk_token": unknown, "fuse_unk": True, "byte_fallback": True, "vocab": vocab, "merges": merges},
    }


def puts_prefix(state: dict[str, Any], path: Path, form: str) -> bool:
    """Whether the tokenizer.json `state` puts a space before a text; GristmillError where it treats text as `form` (a
    GGUF file, a SentencePiece model) cannot say."""
    normalizer = state.get("normalizer") or {}
    prefix = any(step.get("type") == "Prepend" for step in normalizer.get("normalizers", [normalizer]))
    wanted = sentencepiece_json(prefix, None, {}, [])
    if state.get("pre_tokenizer") == _CUT_BEFORE and state.get("normalizer") is None:
        wanted |= {"normalizer": None, "pre_tokenizer": _CUT_BEFORE}
    elif state["model"]["type"] == "Unigram" and state.get("pre_tokenizer") == _CUT_IN_BYTE_NAMES:
        wanted["pre_tokenizer"] = _CUT_IN_BYTE_NAMES
    for name in ("normalizer", "pre_tokenizer", "decoder"):
        if _unwrapped(state.get(name)) != _unwrapped(wanted[name]):
            raise GristmillError(f"{path}: its {name} cannot be written into {form}, which knows {wanted[name]}")
    return prefix


def _unwrapped(state: Any) -> Any:
    """A sequence of one step as that step."""
    parts = state.get("normalizers") if isinstance(state, dict) else None
    return parts[0] if parts is not None and len(parts) == 1 else state
