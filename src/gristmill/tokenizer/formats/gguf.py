"""The tokenizer inside a GGUF file: read as Hugging Face's files, and written from them.

Two of llama.cpp's models of tokenizer are known: gpt2 (byte-level BPE, with merges) and llama (SentencePiece-style BPE,
with scores). Text is not normalized there and cut by one of a few known ways, so a tokenizer that wants anything else
is refused: it would encode without an error and differ from the one the model was trained with.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gristmill.artifact import write_json, write_text
from gristmill.errors import GristmillError

from ..pretokenize import Pattern, pattern_of, recognize_state
from ..tokenizer import read_json, read_template
from . import gguf_pieces
from .gguf_metadata import fault_of_types, read_metadata
from .huggingface import read_named
from .sentencepiece import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def _split(pretokenizer: str) -> dict[str, Any]:
    pattern = {"Regex": pattern_of(pretokenizer)}
    split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, {**_BYTE_LEVEL, "use_regex": False}]}


# How text is cut before the merges, by llama.cpp's name for it. SmolLM cuts off every digit first, then as GPT-2 does;
# Llama 3 and Qwen 2 cut as GPT-4 does, Qwen with single digits.
_PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "gpt-2": _BYTE_LEVEL,
    "smollm": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTE_LEVEL]},
    "llama-bpe": _split("llama3"),
    "qwen2": _split("qwen2"),
}
_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def import_vocabulary(file: Path, out_dir: Path) -> None:
    """Write the tokenizer of a GGUF file, of which only the head is read, as a directory."""
    metadata = read_metadata(file)

    def get(key: str, default: Any = None) -> Any:
        value = metadata.get(key, default)
        return value.tolist() if isinstance(value, np.ndarray) else value

    out_dir.mkdir(parents=True, exist_ok=True)
    write_tokenizer(get, file, len(get("tokenizer.ggml.tokens", ())), out_dir)


def write_tokenizer(get: Callable[..., Any], file: Path, vocab_size: int, out_dir: Path) -> None:
    """Write `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json` and the chat template.

    `get(key, default)` reads the file's metadata. GristmillError names the key that is damaged or not supported.
    """
    if fault := fault_of_types(get):
        raise GristmillError(f"{file}: {fault}")
    model = get("tokenizer.ggml.model")
    if model not in ("gpt2", "llama"):
        raise GristmillError(
            f"{file}: tokenizer.ggml.model {model!r} is not supported, only 'gpt2' (byte-level BPE) and 'llama' "
            f"(SentencePiece-style BPE)"
        )
    tokens = get("tokenizer.ggml.tokens") or []
    if len(tokens) != vocab_size or len(set(tokens)) != vocab_size:
        raise GristmillError(
            f"{file}: tokenizer.ggml.tokens holds {len(set(tokens))} distinct tokens, the embedding {vocab_size} rows"
        )
    types = get("tokenizer.ggml.token_type") or [NORMAL] * vocab_size
    if len(types) != vocab_size:
        raise GristmillError(f"{file}: tokenizer.ggml.token_type holds {len(types)} entries for {vocab_size} tokens")
    special = _special_tokens(get, file, tokens)
    parts = (_byte_level if model == "gpt2" else _pieces)(get, file, tokens, types)
    if get("tokenizer.ggml.add_bos_token", model == "llama"):
        parts["post_processor"] = _beginning(special, tokens, file)
    write_json(out_dir / "tokenizer.json", _tokenizer_json(tokens, types, parts))
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


def _byte_level(get: Callable[..., Any], file: Path, tokens: list[str], types: list[int]) -> dict[str, Any]:
    cutting = get("tokenizer.ggml.pre")
    if cutting not in _PRE_TOKENIZERS:
        known = ", ".join(sorted(_PRE_TOKENIZERS))
        raise GristmillError(f"{file}: tokenizer.ggml.pre {cutting!r} is not supported, only {known}")
    vocab = _vocabulary(tokens, types)
    model = {"vocab": vocab, "merges": _merges(get, file, vocab), "ignore_merges": cutting == "llama-bpe"}
    return {"pre_tokenizer": _PRE_TOKENIZERS[cutting], "decoder": _BYTE_LEVEL, "model": model}


def _pieces(get: Callable[..., Any], file: Path, tokens: list[str], types: list[int]) -> dict[str, Any]:
    scores = get("tokenizer.ggml.scores") or []
    if len(scores) != len(tokens):
        raise GristmillError(f"{file}: tokenizer.ggml.scores holds {len(scores)} entries for {len(tokens)} tokens")
    if types.count(BYTE) != 256:
        raise GristmillError(f"{file}: tokenizer.ggml.token_type marks {types.count(BYTE)} tokens of bytes, not 256")
    prefix = bool(get("tokenizer.ggml.add_space_prefix", True))
    if prefix and USER_DEFINED in types:
        raise GristmillError(
            f"{file}: tokenizer.ggml.token_type marks user-defined tokens, which together with "
            f"tokenizer.ggml.add_space_prefix is not supported"
        )
    merges = gguf_pieces.merges_of(tokens, types, scores, f"{file}: tokenizer.ggml.scores")
    unknown = next((token for token, kind in zip(tokens, types, strict=True) if kind == UNKNOWN), None)
    parts: dict[str, Any] = gguf_pieces.sentencepiece_json(prefix, unknown, _vocabulary(tokens, types), merges)
    return parts


def _vocabulary(tokens: list[str], types: list[int]) -> dict[str, int]:
    return {token: i for i, (token, kind) in enumerate(zip(tokens, types, strict=True)) if kind != UNUSED}


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


def _merges(get: Callable[..., Any], file: Path, known: dict[str, int]) -> list[list[str]]:
    merges = [merge.split(" ") for merge in get("tokenizer.ggml.merges") or []]
    for merge in merges:
        if len(merge) != 2 or any(token not in known for token in (*merge, "".join(merge))):
            raise GristmillError(f"{file}: tokenizer.ggml.merges: {' '.join(merge)!r} does not join two tokens to one")
    return merges


def _tokenizer_json(tokens: list[str], types: list[int], parts: dict[str, Any]) -> dict[str, Any]:
    """The `tokenizers` library's file. Control tokens become special ones, which decoding can leave out."""
    added = [
        {
            "id": i,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": kind == USER_DEFINED and parts.get("normalizer") is not None,
            "special": kind in (CONTROL, UNKNOWN),
        }
        for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (CONTROL, UNKNOWN, USER_DEFINED)
    ]
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        **parts["model"],
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "post_processor": None,
        **parts,
        "model": model,
    }


def _beginning(special: dict[str, str], tokens: list[str], file: Path) -> dict[str, Any]:
    """The post-processor that puts the bos token before a text."""
    bos = special.get("bos_token")
    if bos is None:
        raise GristmillError(f"{file}: tokenizer.ggml.add_bos_token is set, but tokenizer.ggml.bos_token_id is missing")
    first = {"SpecialToken": {"id": bos, "type_id": 0}}
    texts = [{"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB")]
    return {
        "type": "TemplateProcessing",
        "single": [first, texts[0]],
        "pair": [first, *texts],
        "special_tokens": {bos: {"id": bos, "ids": [tokens.index(bos)], "tokens": [bos]}},
    }


def add_tokenizer(writer: Any, directory: Path, vocab_size: int) -> None:
    """Add the tokenizer in `directory` to a `gguf.GGUFWriter`: model, way of cutting, tokens with their types, merges
    or scores, ids of special tokens and the chat template.

    `vocab_size`: the rows of the model's embedding; those beyond the vocabulary become unused tokens. GristmillError
    names the part of tokenizer.json that a GGUF file cannot say.
    """
    path = directory / "tokenizer.json"
    state, settings = read_json(path), read_json(directory / "tokenizer_config.json")
    model = state.get("model") or {}
    if model.get("type") != "BPE":
        raise GristmillError(f"{path}: a model of type {model.get('type')} is not written into GGUF files, only BPE")
    try:
        tokens, types = gguf_pieces.tokens_and_types(state, vocab_size, path, bool(model.get("byte_fallback")))
        merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise GristmillError(f"{path} is not a whole tokenizer.json: {error!r}") from None
    if model.get("byte_fallback"):
        prefix = gguf_pieces.puts_prefix(state, path, "a GGUF file")
        scores = gguf_pieces.scores_of_merges(tokens, types, merges, str(path))
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores(scores)
        writer.add_add_space_prefix(prefix)
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_cutting_of(state, path))
        writer.add_token_merges([" ".join(merge) for merge in merges])
        writer.add_add_space_prefix(False)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    _add_special(writer, directory, state, settings, tokens)


def _add_special(
    writer: Any, directory: Path, state: dict[str, Any], settings: dict[str, Any], tokens: list[str]
) -> None:
    """The ids of special tokens, whether llama.cpp puts bos before a text, and the chat template."""
    ids = {token: i for i, token in enumerate(tokens)}
    given = read_named(directory)
    named = {}
    for name, key in _SPECIAL.items():
        content = given.get(f"{name}_token")
        if content is None:
            continue
        if content not in ids:
            raise GristmillError(
                f"{directory / 'tokenizer.json'} has no token {content!r}, the {name}_token of its configuration"
            )
        named[f"{name}_token"] = content
        writer.add_uint32(f"tokenizer.ggml.{key}_token_id", ids[content])
    processor = state.get("post_processor") or {}
    begins = [{"SpecialToken": {"id": named.get("bos_token"), "type_id": 0}}]
    writer.add_add_bos_token(processor.get("single", [])[:1] == begins)
    template = read_template(directory, settings)
    if template is not None:
        writer.add_chat_template(template)


def _cutting_of(state: dict[str, Any], path: Path) -> str:
    """llama.cpp's name for the pre-tokenizer of a byte-level tokenizer."""
    if state.get("normalizer") is not None:
        raise GristmillError(f"{path}: its normalizer cannot be written into a GGUF file")
    found = recognize_state(state.get("pre_tokenizer") or {})
    for name, known in _PRE_TOKENIZERS.items():
        if found is not None and found == recognize_state(known):
            return name
    if found == Pattern("gpt2", digits=1):  # SmolLM's, but for digits that younger versions of Unicode have added
        return "smollm"
    known_names = ", ".join(sorted(_PRE_TOKENIZERS))
    raise GristmillError(f"{path}: llama.cpp has no name for its pre-tokenizer; it has {known_names}")
