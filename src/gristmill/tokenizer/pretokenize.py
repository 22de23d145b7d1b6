"""Pre-tokenization: the regex that cuts text into the pieces inside which BPE merges, and where text may be cut early.

The three patterns are published with their models (GPT-2; GPT-4's cl100k, which Llama 3 shares; Qwen 2, which is
GPT-4's with single digits), so that other programs, llama.cpp among them, know them by name.
"""

from __future__ import annotations

import re

from tokenizers import Regex, Tokenizer
from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer, Sequence, Split

_GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PATTERNS = {"gpt4": _GPT4, "qwen2": _GPT4.replace("{1,3}", "")}
PRETOKENIZERS = ("gpt2", "gpt4", "qwen2")

# Between a non-space and a space, and between an ASCII letter and any other ASCII character, all three patterns end a
# piece whatever stands around: none has a space behind a non-space, none has anything behind letters, none looks back.
SAFE_CUT = re.compile(r"(?<=\S)(?= )|(?<=[A-Za-z])(?=[\x00-@\[-`{-\x7f])")


def build_pretokenizer(name: str) -> PreTokenizer:
    """The pre-tokenizer `name`, one of `PRETOKENIZERS`, followed by GPT-2's map of bytes to printable characters."""
    if name == "gpt2":
        return ByteLevel(add_prefix_space=False, use_regex=True)
    split = Split(Regex(_PATTERNS[name]), behavior="isolated")
    return Sequence([split, ByteLevel(add_prefix_space=False, use_regex=False)])


def pretokenizer_name(tokenizer: Tokenizer) -> str | None:
    """Which of `PRETOKENIZERS` a tokenizer uses, or None for any other or for one that also rewrites its text."""
    if tokenizer.normalizer is not None or tokenizer.pre_tokenizer is None:
        return None
    state = tokenizer.pre_tokenizer.__getstate__()
    for name in PRETOKENIZERS:
        if build_pretokenizer(name).__getstate__() == state:
            return name
    return None
