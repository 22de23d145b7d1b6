"""Ranks files, as tiktoken reads them: a line for each token, its bytes in base64 and its rank, which is its id.

tiktoken merges the neighbours whose joined bytes have the lowest rank; a tokenizer.json lists the pairs that merge, in
order. A ranks file does not say which pair makes a token, but it follows: merging the token's own bytes by all lower
ranks leaves the two that the token is made of. Wherever the token comes to be inside a longer text, what is under it
has been merged in the same way, so the list of these pairs gives tiktoken's ids for every text.

A file says nothing of how text is cut or of special tokens. Ours have a second file beside them, `NAME.json`, that
holds what `tiktoken.Encoding` wants besides the ranks.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

from ...artifact import write_json, write_text
from ...errors import GristmillError
from ..encoder import byte_letters
from ..kinds import steps
from ..pretokenize import build_pretokenizer, pattern_of, recognize
from ..tokenizer import Tokenizer

Part = TypeVar("Part", bytes, str)
LARGEST_ID = 2**31 - 1
PATTERNS = ("gpt2", "gpt4", "llama3", "qwen2", "o200k")  # those with a name; any other is given as a regex

# Of GPT-4o and its successors: words may change from upper to lower case once, and keep their endings.
O200K = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)


def read_ranks(path: Path) -> dict[bytes, int]:
    """Token -> rank. GristmillError names the line that is wrong."""
    ranks: dict[bytes, int] = {}
    seen: set[int] = set()
    for number, line in enumerate(_lines(path), start=1):
        if not line:
            continue
        try:
            encoded, rank_text = line.split(b" ")
            token, rank = base64.b64decode(encoded, validate=True), int(rank_text)
        except (ValueError, binascii.Error):
            raise GristmillError(f"{path}, line {number}: {line[:60]!r} is not a token in base64 and a rank") from None
        if not token or rank < 0 or token in ranks or rank in seen:
            raise GristmillError(f"{path}, line {number}: token {token!r}, rank {rank}: empty, negative or a repeat")
        if rank > LARGEST_ID:
            raise GristmillError(f"{path}, line {number}: rank {rank} is beyond the largest id, {LARGEST_ID}")
        ranks[token] = rank
        seen.add(rank)
    return ranks


def backend_of_ranks(
    ranks: Mapping[bytes, int], pattern: str, special_tokens: Mapping[str, int], source: str
) -> tokenizers.Tokenizer:
    """The tokenizer with tiktoken's ids for these ranks.

    `pattern`: gpt2, gpt4, llama3, qwen2 or o200k, or a regex of its own. `source` names the file in errors.
    """
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise GristmillError(f"{source} has no rank for the byte 0x{missing[0]:02X}; all 256 are needed")
    letters = byte_letters()
    spelled = {token: "".join(letters[byte] for byte in token) for token in ranks}
    _check_special(special_tokens, ranks, frozenset(spelled.values()), source)
    merges = merges_of(ranks, source)
    vocabulary = {spelled[token]: rank for token, rank in ranks.items()} | dict(special_tokens)
    model = models.BPE(vocabulary, [(spelled[left], spelled[right]) for left, right in merges])
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = _pretokenizer(pattern)
    backend.decoder = decoders.ByteLevel()
    ordered = sorted(special_tokens, key=lambda content: special_tokens[content])
    backend.add_special_tokens([AddedToken(content, special=True, normalized=False) for content in ordered])
    return backend


def _check_special(
    special_tokens: Mapping[str, int], ranks: Mapping[bytes, int], spelled: frozenset[str], source: str
) -> None:
    """GristmillError where a special token would take the id or the place of another token."""
    taken: dict[int, bytes | str] = {rank: token for token, rank in ranks.items()}
    for content, token_id in special_tokens.items():
        what = f"special token {content!r}: its id {token_id}"
        if not 0 <= token_id <= LARGEST_ID:
            raise GristmillError(f"{what} is not between 0 and {LARGEST_ID}; give another (--special TOKEN=ID)")
        if isinstance(taken.get(token_id), str):
            raise GristmillError(f"{what} is also that of {taken[token_id]!r}; give one of them another")
        if token_id in taken:
            raise GristmillError(f"{what} is the rank of {taken[token_id]!r} in {source}")
        if content in spelled or content.encode("utf-8", "replace") in ranks:
            raise GristmillError(
                f"special token {content!r} is a token of text in {source}; a special token needs a string of its own"
            )
        taken[token_id] = content


def _pretokenizer(pattern: str) -> pre_tokenizers.PreTokenizer:
    if pattern in PATTERNS and pattern != "o200k":
        return build_pretokenizer(pattern)
    try:
        split = pre_tokenizers.Split(Regex(O200K if pattern == "o200k" else pattern), behavior="isolated")
    except Exception as error:  # the library raises bare Exception
        raise GristmillError(f"pattern {pattern!r} is none of {', '.join(PATTERNS)} and no regex: {error}") from None
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def merges_of(ranks: Mapping[bytes, int], source: str) -> list[tuple[bytes, bytes]]:
    """The pairs that the tokens of two bytes and more are made of, in the order of their ranks.

    GristmillError names a token that merging never reaches: no list of merges has the same meaning as such ranks.
    """
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) == 1:
            continue
        parts = merge_bytes(token, ranks, below=rank)
        if len(parts) != 2:
            raise GristmillError(
                f"{source}: token {token!r} of rank {rank} cannot be made of tokens of lower rank by merging two at a "
                f"time, as byte pair encoding does"
            )
        merges.append((parts[0], parts[1]))
    return merges


def merge_bytes(text: bytes, ranks: Mapping[bytes, int], below: int) -> list[bytes]:
    """Byte pair encoding by ranks: of all neighbours, the first of the lowest rank are joined, while one is `below`."""
    return merge_parts([text[i : i + 1] for i in range(len(text))], ranks, below)


def merge_parts(parts: list[Part], ranks: Mapping[Part, int], below: int) -> list[Part]:
    """`merge_bytes` of a text that is in parts already, in place: bytes or characters."""
    while len(parts) > 1:
        best = min((ranks.get(left + right, below), i) for i, (left, right) in enumerate(pairwise(parts)))
        if best[0] >= below:
            break
        i = best[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def write_ranks(tokenizer: Tokenizer, path: Path) -> None:
    """Write a byte-level BPE tokenizer as a ranks file and, beside it with the ending `.json`, `pat_str` and
    `special_tokens`, so that `tiktoken.Encoding(name, mergeable_ranks=load_tiktoken_bpe(path), **json)` gives its ids.

    GristmillError where ranks cannot say what the tokenizer does: another kind, a normalizer, added tokens that are
    not special, a pre-tokenizer that is no single regex, merges in another order than their ids; and where the second
    file would take the place of one that is something else.
    """
    settings = _settings_path(path)
    backend, where = tokenizer.backend, tokenizer.directory / "tokenizer.json"
    added = backend.get_added_tokens_decoder()
    words = [token.content for token in added.values() if not token.special]
    if tokenizer.kind != "bpe" or backend.normalizer is not None or words:
        cause = f"it is of kind {tokenizer.kind}" if tokenizer.kind != "bpe" else "it has a normalizer"
        cause = f"it has the added token {words[0]!r}" if words else cause
        raise GristmillError(f"{where} cannot be written as ranks: {cause}")
    pattern = _pattern_of(backend)
    if pattern is None:
        raise GristmillError(f"{where} cannot be written as ranks: its pre-tokenizer is not a single regex")
    ranks = {
        token: token_id for token_id, token in enumerate(tokenizer._id_to_bytes) if token and token_id not in added
    }
    model: dict[str, Any] = json.loads(backend.to_str())["model"]
    numbers = {letter: byte for byte, letter in enumerate(byte_letters())}
    merges = [tuple(bytes(numbers[letter] for letter in part) for part in merge) for merge in model["merges"]]
    if merges != merges_of(ranks, str(where)):
        raise GristmillError(f"{where} cannot be written as ranks: its merges are not in the order of their ids")
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items())
    special = {token.content: token_id for token_id, token in sorted(added.items())}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(lines))
    write_json(settings, {"pat_str": pattern, "special_tokens": special})


def _settings_path(path: Path) -> Path:
    """Where the settings of the ranks file `path` go; GristmillError where another file is in the way."""
    if path.suffix.lower() == ".json":
        raise GristmillError(f"{path} ends in .json, as its second file will; name the ranks file NAME.tiktoken")
    settings = path.with_suffix(".json")
    if settings.exists() and read_settings(settings) is None:
        raise GristmillError(
            f"{settings} exists and holds no pat_str; the settings of {path.name} would go there: name another file"
        )
    return settings


def read_settings(path: Path) -> dict[str, Any] | None:
    """The second file of a ranks file; None for one that is something else: no JSON object, or one without pat_str."""
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return state if isinstance(state, dict) and "pat_str" in state else None


def _pattern_of(backend: tokenizers.Tokenizer) -> str | None:
    """The regex that cuts a byte-level tokenizer's text; None where it takes more than one."""
    ours = recognize(backend)
    if ours is not None:
        return pattern_of(ours.name, ours.digits)
    match steps(backend.pre_tokenizer):
        case [{"type": "Split", "behavior": "Isolated", "invert": False, "pattern": {"Regex": pattern}},
              {"type": "ByteLevel", "use_regex": False, "add_prefix_space": False}]:  # fmt: skip
            return str(pattern)
    return None


def _lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().splitlines()
    except OSError as error:
        raise GristmillError(f"{path} cannot be read: {error.strerror}") from None
