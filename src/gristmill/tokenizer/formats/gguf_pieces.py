"""SentencePiece-style BPE inside GGUF files (`tokenizer.ggml.model` llama): a score for each token instead of merges.

llama.cpp joins the neighbours whose joined token has the best score, the leftmost of equal ones. tokenizer.json lists
the pairs that merge, in order: merging a token's own characters by all better scores leaves the pair it is made of.
SentencePiece's own files are read by the same rule (`sentencepiece`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gristmill.errors import GristmillError

from ..kinds import SPACE
from ..training.models import CUTS
from .sentencepiece import NORMAL, merges_of_scores

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
        raise GristmillError(f"{where}: its merges are not what scores of its tokens could give, as GGUF wants them")
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


def puts_prefix(state: dict[str, Any], path: Path) -> bool:
    """Whether the tokenizer.json `state` puts a space before a text; GristmillError where it treats text as no GGUF
    file can say."""
    normalizer = state.get("normalizer") or {}
    prefix = any(step.get("type") == "Prepend" for step in normalizer.get("normalizers", [normalizer]))
    wanted = sentencepiece_json(prefix, None, {}, [])
    if state.get("pre_tokenizer") == _CUT_BEFORE and state.get("normalizer") is None:
        wanted |= {"normalizer": None, "pre_tokenizer": _CUT_BEFORE}
    for name in ("normalizer", "pre_tokenizer", "decoder"):
        if _unwrapped(state.get(name)) != _unwrapped(wanted[name]):
            raise GristmillError(f"{path}: its {name} cannot be written into a GGUF file, which knows {wanted[name]}")
    return prefix


def _unwrapped(state: Any) -> Any:
    """A sequence of one step as that step."""
    parts = state.get("normalizers") if isinstance(state, dict) else None
    return parts[0] if parts is not None and len(parts) == 1 else state
