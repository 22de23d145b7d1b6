"""The kinds of tokenizer that are read, told by the parts of a tokenizer.json, and whether a kind keeps all text."""

from __future__ import annotations

import json
from itertools import chain
from typing import Any

import tokenizers
from tokenizers import models

from ..errors import GristmillError
from .config import Kind
from .encoder import byte_letters

SPACE = "▁"  # U+2581, which SentencePiece writes for a space
# Where the kinds that write "▁" cut text when they are trained: a "▁" of the text is cut as a space is, which programs
# without these cuts take it for.
CUTS = r"[ ▁]*(?:[\p{L}\p{M}]+|\p{N}|[^\s▁\p{L}\p{M}\p{N}]+)|[ ▁]+|[^\S ]"

State = dict[str, Any]  # one step of a normalizer, pre-tokenizer or decoder as it stands in tokenizer.json

_BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]
_UNKNOWN = "\U0010ffff"  # a noncharacter, which no vocabulary holds


def steps(component: Any) -> list[State]:
    """A normalizer, pre-tokenizer or decoder as the list of its steps; none for None."""
    return [] if component is None else _flatten(json.loads(component.__getstate__()))


def _flatten(state: State) -> list[State]:
    for key in ("normalizers", "pretokenizers", "decoders"):
        if key in state:
            return list(chain.from_iterable(_flatten(part) for part in state[key]))
    return [state]


def kind_of(backend: tokenizers.Tokenizer) -> Kind:
    """The kind of a tokenizer; GristmillError says what of it is not known here."""
    model = backend.model
    decoder = {step["type"] for step in steps(backend.decoder)}
    encoder = {step["type"] for step in chain(steps(backend.normalizer), steps(backend.pre_tokenizer))}
    if not decoder:
        raise GristmillError("it names no decoder, so its tokens cannot be made text again")
    if ("ByteLevel" in decoder) != ("ByteLevel" in encoder):
        raise GristmillError("only one of its pre-tokenizer and its decoder is ByteLevel, so its text would be garbled")
    if isinstance(model, models.Unigram):
        return "unigram"
    if isinstance(model, models.WordPiece):
        return "wordpiece"
    if not isinstance(model, models.BPE):
        raise GristmillError(f"its model is {type(model).__name__}; known are BPE, Unigram and WordPiece")
    if model.continuing_subword_prefix or model.end_of_word_suffix:
        raise GristmillError("its BPE marks the insides or the ends of words, which is not read")
    return "bpe" if "ByteLevel" in decoder else "sentencepiece"


def adds_prefix(backend: tokenizers.Tokenizer) -> bool:
    """Whether a space is put before a text (SentencePiece's `add_dummy_prefix`)."""
    return any(
        step["type"] == "Prepend" or step.get("prepend_scheme", "never") != "never" or step.get("add_prefix_space")
        for step in chain(steps(backend.normalizer), steps(backend.pre_tokenizer))
    )


def is_lossless(backend: tokenizers.Tokenizer) -> bool:
    """Whether every text decodes to itself; of parts that are not known to keep text it is not believed.

    One exception is let pass: where "▁" stands for a space, a "▁" of the text itself becomes a space.
    """
    cutters = steps(backend.pre_tokenizer)
    if not all(_keeps_text(step) for step in cutters):
        return False
    decoder = steps(backend.decoder)
    if decoder[0]["type"] == "ByteLevel":
        vocabulary = backend.get_vocab(with_added_tokens=False)
        return not steps(backend.normalizer) and all(letter in vocabulary for letter in byte_letters())
    rewriting = [
        step
        for step in steps(backend.normalizer)
        if step != {"type": "Prepend", "prepend": SPACE}
        and step != {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    ]
    strips = decoder[-1]["type"] == "Strip"
    drops = any(step.get("prepend_scheme", "never") != "never" for step in decoder)
    return not rewriting and not drops and strips == adds_prefix(backend) and _falls_back_to_bytes(backend)


def _keeps_text(step: State) -> bool:
    """Whether a pre-tokenizer takes no character away and adds none that decoding does not take away."""
    if step["type"] in ("Split", "Punctuation"):
        return step["behavior"] != "Removed"
    if step["type"] == "ByteLevel":
        return not step["add_prefix_space"]
    if step["type"] == "Metaspace":  # one that adds "▁" leaves it out where the text begins with a space
        return step["prepend_scheme"] == "never" or step["replacement"] == " "
    return step["type"] in ("Digits", "UnicodeScripts", "FixedLength")


def _falls_back_to_bytes(backend: tokenizers.Tokenizer) -> bool:
    pieces = [token.value for token in backend.model.tokenize(_UNKNOWN)]
    return pieces == [f"<0x{byte:02X}>" for byte in _UNKNOWN.encode()] and all(
        backend.token_to_id(token) is not None for token in _BYTE_TOKENS
    )


def hide_from_text(backend: tokenizers.Tokenizer, special_ids: frozenset[int]) -> None:
    """Make the letters of a special token in a text mere letters for a Unigram or WordPiece model.

    Both look pieces up in one table that holds the special tokens too. They stay there under a name with a space,
    which no text has where these models see it: pre-tokenizers have made it "▁" or cut there.
    """
    if not isinstance(backend.model, models.Unigram | models.WordPiece):
        return
    state = json.loads(backend.to_str())
    model = state["model"]

    def hidden(token: str, token_id: int) -> str:
        return f"{token} {token_id}" if token_id in special_ids else token

    if model["type"] == "Unigram":
        model["vocab"] = [[hidden(piece, i), score] for i, (piece, score) in enumerate(model["vocab"])]
    else:
        unknown = model["vocab"].get(model["unk_token"])
        model["vocab"] = {hidden(token, i): i for token, i in model["vocab"].items()}
        if unknown is not None:
            model["unk_token"] = hidden(model["unk_token"], unknown)
    for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder", "truncation", "padding"):
        state[name] = None
    backend.model = tokenizers.Tokenizer.from_str(json.dumps({**state, "added_tokens": []})).model


def without_first(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The tokenizer for what stands behind other tokens: the same, unless a space is put at the very beginning only
    (`prepend_scheme` "first", which the library can tell from elsewhere by a text's offsets)."""
    if all(step.get("prepend_scheme") != "first" for step in steps(backend.pre_tokenizer)):
        return backend
    state = json.loads(backend.to_str())
    cutter = state["pre_tokenizer"]
    for step in cutter.get("pretokenizers", [cutter]):
        if step.get("prepend_scheme") == "first":
            step["prepend_scheme"] = "never"
    later = tokenizers.Tokenizer.from_str(json.dumps(state))
    later.encode_special_tokens = True
    return later
