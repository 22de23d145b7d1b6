"""The other kinds of tokenizer: unigram (Kudo 2018), SentencePiece-style BPE of characters (Kudo and Richardson 2018;
Llama 2) and WordPiece (Schuster and Nakajima 2012; BERT).

The first two write "▁" for a space and change nothing else; a character that is not in the vocabulary becomes its
bytes, which are, so every text has ids. Text is cut where two neighbouring characters say so, whatever stands around:
before a space behind something else, between letters, digits and signs, around each digit and line break. So the
programs that know only a list of pieces and no such cuts give the same ids: no piece has a cut in it.

The alphabet is the most frequent characters that make up `COVERAGE` of the text, and those of ASCII. In training, other
characters part words. The library's BPE trainers are given everything in a fixed order, since they number what they
meet first in the order of a hash table; its unigram trainer sums in that order and is not used (see `unigram.py`).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from gristmill.errors import GristmillError

from ..config import TokenizerConfig
from ..kinds import CUTS, SPACE
from ..sample import Sample
from ..special import UNK

COVERAGE = 0.9995  # SentencePiece's
_NEVER = " \0"  # in the alphabet: a space is written "▁", and SentencePiece and llama.cpp have NUL in no piece
INSIDE = "##"
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]
_PRINTABLE = [chr(code) for code in range(0x21, 0x7F)]
_MOST_CHARACTERS_PER_WORD = 100  # BERT's

Progress = Callable[[int, int, str], None]


def train_model(
    config: TokenizerConfig, texts: Sample | Sequence[pa.Array], specials: Sequence[str], progress: Progress
) -> tuple[tokenizers.Tokenizer, int]:
    """(a tokenizer of kind unigram, sentencepiece or wordpiece, bytes of text that were read). The special tokens have
    their ids, but are not yet known as special; `UNK` is one of them.

    GristmillError where the vocabulary is smaller than the alphabet."""

    def read() -> Iterator[list[str]]:
        for column in texts.arrays() if isinstance(texts, Sample) else texts:
            yield column.to_pylist()

    characters, text_bytes = _alphabet(read(), without=_SPACES if config.kind == "wordpiece" else _NEVER)
    if config.kind == "wordpiece":
        fixed = [*specials, *(INSIDE + character for character in characters)]
    else:
        characters = sorted({*characters, SPACE, "\n"})
        fixed = [*specials, *BYTE_TOKENS]
    if config.vocab_size < len(fixed) + len(characters):
        raise GristmillError(
            f"tokenizer.vocab_size is {config.vocab_size}, but the {len(specials)} special tokens, the alphabet of "
            f"{len(characters)} characters and what kind {config.kind} adds are {len(fixed) + len(characters)} tokens; "
            f"raise it, or take kind bpe"
        )
    border = " " if config.kind == "wordpiece" else "\n"
    known = _watched(_parted(read(), characters, border), text_bytes, progress)
    train = {"unigram": _unigram, "sentencepiece": _sentencepiece, "wordpiece": _wordpiece}[config.kind]
    return train(config, known, fixed, characters), text_bytes


def _sentencepiece(
    config: TokenizerConfig, texts: Iterable[str], fixed: list[str], characters: list[str]
) -> tokenizers.Tokenizer:
    tokenizer = _with_spaces(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=fixed,
        initial_alphabet=characters,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    model = _model(tokenizer)
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = _with_spaces(models.BPE(model["vocab"], merges, byte_fallback=True, unk_token=UNK, fuse_unk=True))
    return tokenizer


def _wordpiece(
    config: TokenizerConfig, texts: Iterable[str], fixed: list[str], characters: list[str]
) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=fixed,
        initial_alphabet=characters,
        continuing_subword_prefix=INSIDE,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    vocabulary = _model(tokenizer)["vocab"]
    tokenizer = tokenizers.Tokenizer(
        models.WordPiece(vocabulary, unk_token=UNK, max_input_chars_per_word=_MOST_CHARACTERS_PER_WORD)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=INSIDE, cleanup=False)
    return tokenizer


def _unigram(
    config: TokenizerConfig, texts: Iterable[str], fixed: list[str], characters: list[str]
) -> tokenizers.Tokenizer:
    from .unigram import learn_pieces

    cut = _with_spaces(models.BPE()).pre_tokenizer
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(word for word, _ in cut.pre_tokenize_str(text))
    learned = learn_pieces(counts, characters, config.vocab_size - len(fixed))
    # Where a text holds the letters of a byte's token or a special one, they are always likelier one by one.
    least = (max(map(len, fixed)) + 1) * min(score for _, score in learned)
    pieces = [*((token, least) for token in fixed), *learned]
    return _with_spaces(models.Unigram(pieces, unk_id=fixed.index(UNK), byte_fallback=True))


def _with_spaces(model: Any) -> tokenizers.Tokenizer:
    """A tokenizer that cuts text by `CUTS` and writes "▁" for spaces."""
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CUTS), behavior="isolated"),
            pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="never", split=False),
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


_SPACES = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000 and chr(code).isspace())


def _alphabet(texts: Iterable[list[str]], without: str) -> tuple[list[str], int]:
    """(the most frequent characters of the texts and all that print in ASCII, sorted; bytes of the texts)."""
    counts = np.zeros(0x110000, np.int64)
    text_bytes = 0
    for part in texts:
        joined = "".join(part)
        counts += np.bincount(np.frombuffer(joined.encode("utf-32-le"), "<u4"), minlength=len(counts))
        text_bytes += len(joined.encode())
    counts[[ord(character) for character in without]] = 0
    order = np.argsort(-counts, kind="stable")
    covered = np.cumsum(counts[order]) - counts[order] < COVERAGE * counts.sum()
    frequent = order[covered & (counts[order] > 0)].tolist()
    return sorted({*_PRINTABLE, *map(chr, frequent)}), text_bytes


def _parted(texts: Iterable[list[str]], characters: Sequence[str], border: str) -> Iterator[str]:
    """The texts with a `border` for each character that is neither in the alphabet nor a space."""
    other = re.compile(f"[^ {re.escape(''.join(characters))}]")
    for part in texts:
        for text in part:
            yield other.sub(border, text)


def _watched(texts: Iterable[str], total: int, progress: Progress) -> Iterator[str]:
    done = 0
    for text in texts:
        yield text
        done += len(text.encode())
        progress(min(done, total), total, "bytes read")


def _model(tokenizer: tokenizers.Tokenizer) -> dict[str, Any]:
    model: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    return model
