"""The tokenizer's files as they travel inside a model directory, and the ids a model's config takes from them.

The tokenizer itself is another room's business; here its files are copied and three or four ids are read.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from ..errors import GristmillError

REQUIRED = ("tokenizer.json", "tokenizer_config.json")
TRAVELLING = (*REQUIRED, "special_tokens_map.json", "chat_template.jinja", "vocab.json", "merges.txt")


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer's files from one directory into another (which may be the same)."""
    for name in REQUIRED:
        if not (source / name).is_file():
            raise GristmillError(f"{source} holds no {name}; a model directory needs its tokenizer's files")
    if source.resolve() == target.resolve():
        return
    for name in TRAVELLING:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def special_token_ids(directory: Path, vocab_size: int) -> dict[str, int]:
    """Ids of the special tokens `bos`, `eos`, `pad` and `im_end` (the end of a turn), as far as the tokenizer has them.

    GristmillError when the tokenizer holds an id that a model of `vocab_size` rows has no row for.
    """
    tokenizer, settings = (_read_json(directory / name) for name in REQUIRED)
    ids: dict[str, int] = dict(tokenizer["model"]["vocab"])
    ids.update({token["content"]: token["id"] for token in tokenizer.get("added_tokens", [])})
    highest = max(ids.values(), default=-1)
    if highest >= vocab_size:
        raise GristmillError(
            f"{directory / 'tokenizer.json'} holds id {highest}, the model's vocab_size is {vocab_size}: "
            "the tokenizer belongs to another model"
        )
    contents = {name: _content(settings.get(f"{name}_token")) for name in ("bos", "eos", "pad")}
    contents["im_end"] = "<|im_end|>"
    return {name: ids[content] for name, content in contents.items() if content in ids}


def _content(token: str | dict[str, Any] | None) -> str | None:
    """tokenizer_config.json writes a token as a string or as an object with its `content`."""
    return token["content"] if isinstance(token, dict) else token


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise GristmillError(f"{path} is missing; a model directory needs its tokenizer's files") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise GristmillError(f"{path} is not JSON ({error})") from None
