"""Tekken files, as Mistral publishes its byte-level tokenizers: JSON with ranks, a pattern and special tokens.

Special tokens come first: a token's id is its rank plus their number. Of the ranks only as many are used as
`default_vocab_size` has room for.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import tokenizers

from ...errors import GristmillError
from .tiktoken import LARGEST_ID, backend_of_ranks

# Those of files that list none, published with the library that reads them; the rest up to the number that the file
# gives are <SPECIAL_N>.
_UNLISTED = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]",
    "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]",
)  # fmt: skip


def is_tekken(path: Path) -> bool:
    """Whether a JSON file is a tekken file: it holds `config` and `vocab`, where tokenizer.json has `model`."""
    state = _read(path)
    return "config" in state and "vocab" in state


def read_tekken(path: Path) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """The tokenizer, and `bos_token`, `eos_token` and the like. GristmillError names the entry that is wrong."""
    state = _read(path)
    try:
        config = state["config"]
        special_count, size = config["default_num_special_tokens"], config["default_vocab_size"]
        listed = {entry["token_str"]: entry["rank"] for entry in state.get("special_tokens") or ()}
        pattern = config["pattern"]
        vocab = state["vocab"][:]
    except (KeyError, TypeError) as error:
        raise GristmillError(f"{path} is no whole tekken file: {error!r} in its config or special_tokens") from None
    _check_numbers(path, special_count, size, listed)
    if not isinstance(pattern, str) or not isinstance(vocab, list):
        raise GristmillError(f"{path}: config.pattern must be a string and vocab a list; take the published file again")
    listed = listed or {token: rank for rank, token in enumerate(_UNLISTED)}
    free = sorted(set(range(special_count)) - set(listed.values()))
    special = listed | {f"<SPECIAL_{rank}>": rank for rank in free}
    ranks: dict[bytes, int] = {}
    for index, entry in enumerate(vocab[: size - special_count]):
        try:
            token, rank = base64.b64decode(entry["token_bytes"], validate=True), entry["rank"]
        except (KeyError, TypeError, ValueError) as error:
            raise GristmillError(f"{path}: vocab[{index}] is no token in base64 with a rank: {error!r}") from None
        if type(rank) is not int or rank != index or token in ranks:
            raise GristmillError(f"{path}: vocab[{index}] has the rank {rank!r} or repeats the token {token!r}")
        ranks[token] = rank + special_count
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return backend_of_ranks(ranks, pattern, special, str(path)), {k: v for k, v in named.items() if v in special}


def _check_numbers(path: Path, special_count: Any, size: Any, listed: dict[Any, Any]) -> None:
    numbers = {"config.default_num_special_tokens": special_count, "config.default_vocab_size": size}
    numbers |= {f"special_tokens: the rank of {token!r}": rank for token, rank in listed.items()}
    for name, value in numbers.items():
        if type(value) is not int or not 0 <= value <= LARGEST_ID:
            raise GristmillError(f"{path}: {name} is {value!r}, not a whole number from 0 on; take the file again")
    wrong = next((token for token in listed if not isinstance(token, str)), None)
    if wrong is not None:
        raise GristmillError(f"{path}: special_tokens: token_str {wrong!r} is not a string; take the file again")
    if special_count > size:
        raise GristmillError(
            f"{path}: config.default_num_special_tokens is {special_count}, more than default_vocab_size, {size}"
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise GristmillError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise GristmillError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(state, dict):
        raise GristmillError(f"{path} must hold a JSON object")
    return state
