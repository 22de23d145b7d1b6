"""Text to token ids by the compiled kernel: the ids of the `tokenizers` library, many times sooner."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .pretokenize import Pattern, recognize_state

if TYPE_CHECKING:
    import tokenizers

    from .kernel.bpe import Known, Merges

KNOWN_SLOTS = 1 << 18  # 8 MiB of slots and 5 MiB for what is longer; half as many pre-tokens are remembered


class Encoder:
    """Encodes columns of texts; made by `Encoder.of`. Special tokens are never found in text, none is added.

    It remembers pre-tokens, so one thread at a time may use it; the ids do not depend on what it remembers.
    """

    def __init__(self, pattern: Pattern, merges: Merges, whole: Known):
        from .kernel.bpe import Known

        self._pattern, self._merges, self._whole = pattern, merges, whole
        self._known = Known.of_size(KNOWN_SLOTS, 4 * KNOWN_SLOTS)

    @classmethod
    def of(cls, backend: tokenizers.Tokenizer) -> Encoder | None:
        """An encoder that gives the ids of `backend.encode_batch(texts, add_special_tokens=False)` with
        `backend.encode_special_tokens` set. None where the tokenizer is not byte-level BPE by one of our patterns and
        nothing else: where it has a normalizer, dropout, truncation, added tokens that are not special, no token for
        some byte nor one for each unknown, or takes tokens of more than 4 KiB whole.
        """
        state = json.loads(backend.to_str())
        pattern = recognize_state(state["pre_tokenizer"] or {})
        if pattern is None or not _plain(state):
            return None
        return cls._of_model(pattern, state["model"])

    @classmethod
    def _of_model(cls, pattern: Pattern, model: dict[str, Any]) -> Encoder | None:
        from .kernel import bpe

        vocab: dict[str, int] = model["vocab"]
        unknown = None if model["fuse_unk"] else vocab.get(model["unk_token"])
        byte_ids = [vocab.get(letter, unknown) for letter in byte_letters()]
        if None in byte_ids:
            return None
        merges = [(vocab[a], vocab[b], vocab[a + b]) for a, b in model["merges"]]
        left, right, merged = np.array(merges, np.uint32).reshape(-1, 3).T.copy()
        tokens, ids = _token_bytes(vocab) if model["ignore_merges"] else ([], [])
        if max(map(len, tokens), default=0) > bpe.LONGEST_KNOWN:
            return None
        table = bpe.merges_of(left, right, merged, np.array(byte_ids, np.uint32))
        return cls(pattern, table, bpe.known_tokens(tokens, ids))

    def encode(self, texts: pa.StringArray | pa.LargeStringArray) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """(ids of all texts, where each begins `[texts + 1]`): text t has `ids[offsets[t]:offsets[t + 1]]`. A null is
        an empty text."""
        from gristmill.data.kernel.layout import texts_of

        from .kernel import bpe, pretokens

        laid_out = texts_of(texts)
        data, words = pretokens.words_of(laid_out.data)
        ids = np.empty(laid_out.size // 3 + 64, np.uint32)
        places = np.zeros(len(laid_out) + 1, np.int64)
        scratch = np.empty(1 << 10, np.uint64)
        text = used = 0
        for start, ends in pretokens.blocks(laid_out, self._pattern):
            needed = used + (int(ends[-1]) - start if len(ends) else 0)
            if needed > len(ids):
                ids = np.concatenate([ids[:used], np.empty(needed, np.uint32)])
            longest = int(np.diff(ends, prepend=start).max(initial=0))
            if 4 * longest > len(scratch):
                scratch = np.empty(4 * longest, np.uint64)
            self._known.clear_if_full()
            tables = self._merges, self._whole, self._known, scratch
            text, used = bpe.encode(data, words, laid_out.offsets, text, start, ends, *tables, ids, used, places)
        places[text + 1 :] = used
        return ids[:used].copy(), places


def byte_letters() -> list[str]:
    """The character that stands for each byte in the vocabulary of a byte-level tokenizer (GPT-2): itself where it is
    printable, the rest in order from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(0x100)]


def _plain(state: dict[str, Any]) -> bool:
    """Whether nothing but the pre-tokenizer and the merges decides about ids."""
    model = state["model"]
    return (
        model["type"] == "BPE"
        and not model["dropout"]
        and not model["continuing_subword_prefix"]
        and not model["end_of_word_suffix"]
        and not model["byte_fallback"]
        and all(state[name] is None for name in ("normalizer", "truncation", "padding"))
        and all(token["special"] for token in state["added_tokens"])
    )


def _token_bytes(vocab: dict[str, int]) -> tuple[list[bytes], list[int]]:
    """The bytes and ids of all tokens that stand for bytes."""
    bytes_of = {letter: byte for byte, letter in enumerate(byte_letters())}
    found = {token: id for token, id in vocab.items() if all(letter in bytes_of for letter in token)}
    return [bytes(bytes_of[letter] for letter in token) for token in found], list(found.values())
