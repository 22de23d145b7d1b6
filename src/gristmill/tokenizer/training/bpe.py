"""Byte-level BPE (Sennrich et al. 2016; Radford et al. 2019): from merges to a `tokenizers.Tokenizer`.

All 256 bytes are in the vocabulary, so every text has ids and decodes to itself. The special tokens come first, then
the bytes, then one token a merge: the ids that the library itself gives.
"""

from __future__ import annotations

from collections.abc import Sequence

import tokenizers
from tokenizers import decoders, models

from gristmill.errors import GristmillError

from ..config import TokenizerConfig
from ..encoder import byte_letters
from ..pretokenize import build_pretokenizer
from .merges import I32, byte_order


def merges_wanted(config: TokenizerConfig, specials: Sequence[str]) -> int:
    """How many merges fill the vocabulary. GristmillError where it cannot even hold the bytes."""
    least = len(specials) + 256
    if config.vocab_size < least:
        raise GristmillError(
            f"tokenizer.vocab_size is {config.vocab_size}, but {len(specials)} special tokens and the 256 bytes "
            f"are {least} tokens; raise it"
        )
    return config.vocab_size - least


def build_bpe(config: TokenizerConfig, specials: Sequence[str], merges: I32) -> tokenizers.Tokenizer:
    """The tokenizer that has learned `merges` `[n, 2]` (see `learn_merges`). `specials` have their ids, but are not yet
    known as special."""
    letters = byte_letters()
    tokens = [letters[byte] for byte in byte_order().tolist()]
    pairs = []
    for left, right in merges.tolist():
        pairs.append((tokens[left], tokens[right]))
        tokens.append(tokens[left] + tokens[right])
    known = set(tokens)
    for special in specials:
        if special in known:
            raise GristmillError(
                f"tokenizer.special_tokens: {special!r} stands in the text so often that it is learned as a token of "
                f"text; take another one"
            )
    vocabulary = {token: number for number, token in enumerate([*specials, *tokens])}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    tokenizer.pre_tokenizer = build_pretokenizer(config.pretokenizer, config.digits)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
