"""The tokenizer's files as they travel inside a model directory, and the ids a model's config takes from them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from ..errors import GristmillError
from ..tokenizer.chat import ChatTemplate
from ..tokenizer.formats.huggingface import read_named
from ..tokenizer.special import IM_END
from ..tokenizer.tokenizer import read_template
from .json_files import read_object

REQUIRED = ("tokenizer.json", "tokenizer_config.json")
TRAVELLING = (*REQUIRED, "special_tokens_map.json", "chat_template.jinja", "vocab.json", "merges.txt", "vocab.txt")


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer's files from one directory into another (which may be the same)."""
    _check_present(source)
    if source.resolve() == target.resolve():
        return
    for name in TRAVELLING:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _check_present(directory: Path) -> None:
    for name in REQUIRED:
        if not (directory / name).is_file():
            raise GristmillError(f"{directory} holds no {name}; a model directory needs its tokenizer's files")


def special_token_ids(directory: Path, vocab_size: int) -> dict[str, int]:
    """Ids of the special tokens `bos`, `eos`, `pad`, `im_end`, and of the `turn_end` that the chat template writes
    behind a reply, as far as the tokenizer has them.

    GristmillError when the tokenizer holds an id that a model of `vocab_size` rows has no row for. Special tokens that
    nothing names may be such: text-only models keep the tokens of their siblings' images (Gemma 3), which no text
    becomes.
    """
    _check_present(directory)
    tokenizer, settings = (read_object(directory / name, f"{directory} holds no {name}") for name in REQUIRED)
    try:
        vocab = tokenizer["model"]["vocab"]  # a unigram model's is a list of pieces and scores
        ids: dict[str, int] = (
            dict(vocab) if isinstance(vocab, dict) else {piece: i for i, (piece, _) in enumerate(vocab)}
        )
        added = list(tokenizer.get("added_tokens") or [])
        highest = max(ids.values(), default=-1)
        beyond = {token["content"] for token in added if token.get("special") and token["id"] >= vocab_size}
        ids.update({token["content"]: token["id"] for token in added})
        highest = max([highest, *(token["id"] for token in added if token["content"] not in beyond)])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise GristmillError(f"{directory / 'tokenizer.json'} is not a whole tokenizer.json: {error!r}") from None
    named = read_named(directory)
    contents: dict[str, str | None] = {name: named.get(f"{name}_token") for name in ("bos", "eos", "pad", "unk")}
    contents |= {"im_end": IM_END, "turn_end": _turn_end(directory, settings, named, added)}
    highest = max([highest, *(ids[content] for content in beyond.intersection(contents.values()))])
    if highest >= vocab_size:
        raise GristmillError(
            f"{directory / 'tokenizer.json'} holds id {highest}, the model's vocab_size is {vocab_size}: "
            "the tokenizer belongs to another model"
        )
    return {name: ids[content] for name, content in contents.items() if name != "unk" and content in ids}


def _turn_end(
    directory: Path, settings: dict[str, Any], named: dict[str, str], added: list[dict[str, Any]]
) -> str | None:
    template = read_template(directory, settings)
    if template is None:
        return None
    specials = [
        AddedToken(token["content"], lstrip=token.get("lstrip", False), rstrip=token.get("rstrip", False), special=True)
        for token in added
        if token.get("special")
    ]
    try:
        ends = ChatTemplate(template, f"the chat template of {directory}", named, specials).turn_ends
    except GristmillError:  # whoever chats with the model is told; weights can be kept without it
        return None
    return ends[0] if ends else None
