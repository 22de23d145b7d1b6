"""Small tokenizers of each kind, and what every token may do by brute force, for the tests of structured output."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from gristmill.engine.constraints import Compiler, Matcher
from gristmill.engine.sampling import SamplingParams
from gristmill.tokenizer.tokenizer import Tokenizer

SPECIALS = ["<s>", "</s>", "<unk>", "<|im_end|>"]
PIECES = [
    '{"', '":', '": ', '",', '", "', '"}', '"}]', "},", "],", "[[", "()", "))", "(((", "tr", "true", "alse", "null",
    "12", "00", "a", "b", "ab", "abc", "name", "color", "red", "é", "né", "日", "日本", " a", " 1", ' "', " {", " [",
    "  ", " né", "ye", "yes", "no",
]  # fmt: skip


def byte_level(directory: Path) -> Tokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    cutter = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    spelled = [cutter.pre_tokenize_str(piece)[0][0] for piece in PIECES]
    tokens = [*SPECIALS, *letters, *dict.fromkeys(piece for piece in spelled if len(piece) > 1)]
    # Two bytes of a character of three: a token that is no text by itself.
    tokens.append(cutter.pre_tokenize_str("日")[0][0][:2])
    backend = Backend(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    backend.pre_tokenizer = cutter
    backend.decoder = decoders.ByteLevel()
    return _load(backend, directory)


def sentencepiece(directory: Path) -> Tokenizer:
    letters = [chr(code) for code in range(33, 127)] + ["▁"]
    pieces = [piece.replace(" ", "▁") for piece in PIECES] + ["▁▁a"]
    tokens = list(dict.fromkeys([*SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *pieces]))
    vocab = {token: i for i, token in enumerate(tokens)}
    backend = Backend(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _load(backend, directory)


def word_piece(directory: Path) -> Tokenizer:
    letters = [chr(code) for code in range(33, 127)] + ["é", "n", "日", "本"]
    words = [piece.strip() for piece in PIECES if piece.strip()]
    whole = list(dict.fromkeys([*letters, *words]))
    tokens = [*SPECIALS, *whole, *(f"##{token}" for token in whole)]
    backend = Backend(models.WordPiece(vocab={token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=False)
    return _load(backend, directory)


KINDS: dict[str, Callable[[Path], Tokenizer]] = {
    "bpe": byte_level,
    "sentencepiece": sentencepiece,
    "wordpiece": word_piece,
}


def _load(backend: Backend, directory: Path) -> Tokenizer:
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    directory.mkdir(parents=True, exist_ok=True)
    backend.save(str(directory / "tokenizer.json"))
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(named))
    return Tokenizer.load(directory)


def bits_of(mask: np.ndarray, size: int) -> np.ndarray:
    return np.unpackbits(mask.view(np.uint8), bitorder="little")[:size].astype(bool)


def allowed_by(matcher: Matcher, vocab_size: int) -> set[int]:
    mask = np.full(-(-vocab_size // 32) + 1, -1, dtype=np.int32)
    matcher.mask_into(mask)
    assert not bits_of(mask, 32 * len(mask))[vocab_size:].any(), "what lies beyond the vocabulary is never allowed"
    return set(np.flatnonzero(bits_of(mask, vocab_size)).tolist())


def constrained(**asked: Any) -> SamplingParams:
    return SamplingParams(**asked)


def bytes_from(tokenizer: Tokenizer, ids: list[int], continues: bool) -> bytes:
    """The bytes of a reply by the tokenizer's own decoder, a byte at a time where they are no whole characters."""
    return tokenizer._table(True).join(ids, begins=not continues)


def written(
    compiler: Compiler, params: SamplingParams, vocab_size: int, rng: random.Random, most: int = 400
) -> tuple[list[int], bool]:
    """A reply of random tokens that the mask allows; past half of `most` the ones that close something are taken.

    (ids without the end, whether it came)
    """
    constraint = compiler.compile(params)
    assert constraint is not None
    matcher = constraint.start()
    ids: list[int] = []
    while len(ids) < most:
        allowed = sorted(allowed_by(matcher, vocab_size))
        ends = [token for token in allowed if token in constraint.vocabulary.stop_ids]
        if ends and (len(allowed) == len(ends) or len(ids) > most // 2 or rng.random() < 0.3):
            assert matcher.accept(ends[0])
            assert matcher.finished
            return ids, True
        text = [token for token in allowed if token not in ends]
        if len(ids) > most // 2:
            table = constraint.vocabulary.tokenizer._table(True).later
            text = [token for token in text if not table[token].strip(b'"]}')] or text
        token = rng.choice(text)
        assert matcher.accept(token)
        ids.append(token)
    return ids, False
