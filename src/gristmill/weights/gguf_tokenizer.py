"""The tokenizer inside a GGUF file, written as Hugging Face's files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..artifact import write_json, write_text
from ..errors import GristmillError

_CONTROL, _USER_DEFINED = 3, 4  # token types of the GGUF specification

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
# How text is cut before the merges, by llama.cpp's name for it. SmolLM cuts off every digit first, then as GPT-2 does.
_PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "gpt-2": _BYTE_LEVEL,
    "smollm": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTE_LEVEL]},
}
_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def write_tokenizer(get: Callable[..., Any], file: Path, vocab_size: int, out_dir: Path) -> None:
    """Write `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json` and the chat template.

    `get(key, default)` reads the file's metadata. Only byte-level BPE with a known way of cutting text is taken: a
    tokenizer that cuts otherwise would encode without an error and differ from the one the model was trained with.
    """
    model, cutting = get("tokenizer.ggml.model"), get("tokenizer.ggml.pre")
    if model != "gpt2":
        raise GristmillError(f"{file}: tokenizer.ggml.model {model!r} is not supported, only 'gpt2' (byte-level BPE)")
    if cutting not in _PRE_TOKENIZERS:
        known = ", ".join(sorted(_PRE_TOKENIZERS))
        raise GristmillError(f"{file}: tokenizer.ggml.pre {cutting!r} is not supported, only {known}")
    if get("tokenizer.ggml.add_bos_token", False):
        raise GristmillError(f"{file}: tokenizer.ggml.add_bos_token is not supported")
    tokens = get("tokenizer.ggml.tokens") or []
    if len(tokens) != vocab_size or len(set(tokens)) != vocab_size:
        raise GristmillError(
            f"{file}: tokenizer.ggml.tokens holds {len(set(tokens))} distinct tokens, the embedding {vocab_size} rows"
        )
    types = get("tokenizer.ggml.token_type") or [1] * vocab_size
    if len(types) != vocab_size:
        raise GristmillError(f"{file}: tokenizer.ggml.token_type holds {len(types)} entries for {vocab_size} tokens")
    special = _special_tokens(get, file, tokens)
    write_json(out_dir / "tokenizer.json", _tokenizer_json(tokens, types, _merges(get, file, tokens), cutting))
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": get("llama.context_length"),
        "clean_up_tokenization_spaces": False,
        **special,
    }
    template = get("tokenizer.chat_template")
    if template is not None:
        settings["chat_template"] = template
        write_text(out_dir / "chat_template.jinja", template)
    write_json(out_dir / "tokenizer_config.json", settings)
    write_json(out_dir / "special_tokens_map.json", special)


def _special_tokens(get: Callable[..., Any], file: Path, tokens: list[str]) -> dict[str, str]:
    special = {}
    for name, key in _SPECIAL.items():
        token_id = get(f"tokenizer.ggml.{key}_token_id")
        if token_id is None:
            continue
        if not 0 <= token_id < len(tokens):
            raise GristmillError(
                f"{file}: tokenizer.ggml.{key}_token_id {token_id} is outside the {len(tokens)} tokens"
            )
        special[f"{name}_token"] = tokens[token_id]
    return special


def _merges(get: Callable[..., Any], file: Path, tokens: list[str]) -> list[list[str]]:
    known = set(tokens)
    merges = [merge.split(" ") for merge in get("tokenizer.ggml.merges") or []]
    for merge in merges:
        if len(merge) != 2 or not {*merge, "".join(merge)} <= known:
            raise GristmillError(f"{file}: tokenizer.ggml.merges: {' '.join(merge)!r} does not join two tokens to one")
    return merges


def _tokenizer_json(tokens: list[str], types: list[int], merges: list[list[str]], cutting: str) -> dict[str, Any]:
    """The `tokenizers` library's file. Control tokens become special ones, which decoding can leave out."""
    added = [
        {
            "id": i,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind == _CONTROL,
        }
        for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": _PRE_TOKENIZERS[cutting],
        "post_processor": None,
        "decoder": _BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": merges,
        },
    }
