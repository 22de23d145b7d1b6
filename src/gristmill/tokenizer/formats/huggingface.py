"""A tokenizer directory as Hugging Face's: what transformers, vLLM and llama.cpp's converter read."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import tokenizers

from ...artifact import write_json, write_text
from ..special import Specials
from ..tokenizer import named_tokens, read_json


def read_named(directory: Path) -> dict[str, str]:
    """`bos_token`, `eos_token` and the like of a directory, as `Tokenizer.load` takes them: those that
    tokenizer_config.json does not name may stand in special_tokens_map.json."""
    files = ("special_tokens_map.json", "tokenizer_config.json")
    return named_tokens({name: value for file in files for name, value in read_json(directory / file).items()})


def write_tokenizer(backend: tokenizers.Tokenizer, specials: Specials, template: str, directory: Path) -> None:
    """Write a tokenizer trained here with its chat template's source; see `write_directory`."""
    write_directory(backend, specials.named, specials.unnamed, template, directory)


def write_directory(
    backend: tokenizers.Tokenizer,
    named: Mapping[str, str],
    unnamed: Sequence[str],
    template: str | None,
    directory: Path,
) -> None:
    """Write `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json`, `vocab.json` and `merges.txt` (BPE)
    or `vocab.txt` (WordPiece), and the chat template.

    `named`: `bos_token`, `eos_token` and the like with their strings; `unnamed`: the other special tokens. The class
    named in tokenizer_config.json takes tokenizer.json as it stands, whatever the kind; the classes that bear the name
    of a model rebuild it their own way. The template stands in its own file and in tokenizer_config.json, since older
    readers know only the latter.
    """
    directory.mkdir(parents=True, exist_ok=True)
    others = {"additional_special_tokens": list(unnamed)} if unnamed else {}
    write_text(directory / "tokenizer.json", backend.to_str(pretty=True))
    _write_vocabulary(backend, directory)
    write_json(directory / "special_tokens_map.json", {**named, **others})
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **named,
        **others,
        "clean_up_tokenization_spaces": False,
    }
    if template is not None:
        write_text(directory / "chat_template.jinja", template)
        settings["chat_template"] = template
    write_json(directory / "tokenizer_config.json", settings)


def _write_vocabulary(backend: tokenizers.Tokenizer, directory: Path) -> None:
    """The model's own files, in Google's and OpenAI's formats; a unigram model has none that others read."""
    if isinstance(backend.model, tokenizers.models.Unigram):
        return
    # The library writes its files in place; each is put there when it is whole.
    prefix = ".writing"
    for written in backend.model.save(str(directory), prefix):
        path = Path(written)
        os.replace(path, path.with_name(re.sub(f"^{re.escape(prefix)}-", "", path.name)))
