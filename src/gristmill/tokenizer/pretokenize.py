"""Pre-tokenization: the regex that cuts text into the pieces inside which BPE merges.

The patterns are published with their models (GPT-2; GPT-4's cl100k, which Llama 3 shares; Qwen 2, which is GPT-4's with
single digits; SmolLM, which is GPT-2's behind a cut around each digit), so that other programs, llama.cpp among them,
know them by name.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gristmill.errors import GristmillError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import PreTokenizer

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# White space is cut off before digits as if they began a text of their own.
_GPT2_DIGITS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|<digits>| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
_GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|<digits>"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DIGITS = {1: r"\p{N}", 2: r"\p{N}{1,2}", 3: r"\p{N}{1,3}"}
_PUBLISHED_DIGITS = {"gpt2": None, "gpt4": 3, "llama3": 3, "qwen2": 1, "smollm": 1}
_GPT4_NAMES = {1: "qwen2", 2: "gpt4", 3: "gpt4"}


@dataclass(frozen=True)
class Pattern:
    """Where text is cut. Patterns that cut alike are equal: `Pattern("llama3")` is `Pattern("gpt4", 3)`.

    `name`: gpt2, gpt4, qwen2 or smollm; `digits`: most digits in one piece, None (gpt2 only) for any number. With
    `digits`, gpt2 cuts a space in front of a number off; smollm is gpt2 with single digits, by a younger version of
    Unicode. GristmillError for an unknown name or number of digits.
    """

    name: str
    digits: int | None = None

    def __post_init__(self) -> None:
        if self.name not in _PUBLISHED_DIGITS:
            raise GristmillError(f"pretokenizer: {self.name!r} is none of {', '.join(_PUBLISHED_DIGITS)}")
        digits = _PUBLISHED_DIGITS[self.name] if self.digits is None else self.digits
        if digits not in (None, *_DIGITS) or (self.name == "smollm" and digits != 1):
            raise GristmillError(f"digits: {digits!r} is not possible with pretokenizer {self.name}; give 1, 2 or 3")
        object.__setattr__(self, "digits", digits)
        if self.name in ("gpt4", "llama3", "qwen2"):
            object.__setattr__(self, "name", _GPT4_NAMES[digits or 3])

    @property
    def like_gpt2(self) -> bool:
        """Whether it is GPT-2's or made from it; else it is made from GPT-4's."""
        return self.name in ("gpt2", "smollm")


def pattern_of(name: str, digits: int | None = None) -> str:
    """The regex of a pre-tokenizer; `digits` is the most digits in one piece, instead of what it is published with."""
    pattern = Pattern(name, digits)
    if pattern.digits is None:
        return _GPT2
    return (_GPT2_DIGITS if pattern.like_gpt2 else _GPT4).replace("<digits>", _DIGITS[pattern.digits])


def build_pretokenizer(name: str, digits: int | None = None) -> PreTokenizer:
    """The pre-tokenizer, followed by GPT-2's map of bytes to printable characters."""
    from tokenizers import Regex, pre_tokenizers

    pattern = Pattern(name, digits)
    if pattern == Pattern("gpt2"):
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if pattern.name == "smollm":
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    split = pre_tokenizers.Split(Regex(pattern_of(name, digits)), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def recognize(backend: Tokenizer) -> Pattern | None:
    """Which pattern cuts the text of a tokenizer; None where it is none of ours, or where text is rewritten first."""
    if backend.normalizer is not None or backend.pre_tokenizer is None:
        return None
    return recognize_state(json.loads(backend.pre_tokenizer.__getstate__()))


def recognize_state(state: dict[str, Any]) -> Pattern | None:
    """`recognize` of a pre-tokenizer as tokenizer.json writes it."""
    match state:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}:
            return Pattern("gpt2")
        case {
            "type": "Sequence",
            "pretokenizers": [first, {"type": "ByteLevel", "add_prefix_space": False, "use_regex": use_regex}],
        }:
            return _behind(first, bool(use_regex))
    return None


def _behind(first: dict[str, Any], use_regex: bool) -> Pattern | None:
    """The pattern of what comes `first`, then GPT-2's own regex (`use_regex`) or none."""
    match first:
        case {"type": "Digits", "individual_digits": True} if use_regex:
            return Pattern("smollm")
        case {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False} if not use_regex:
            return _BY_REGEX.get(regex)
    return None


_BY_REGEX = {
    pattern_of(name, digits): Pattern(name, digits) for name in ("gpt2", "gpt4") for digits in (None, *_DIGITS)
}
