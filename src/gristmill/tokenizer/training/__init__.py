"""Learning a vocabulary from text: counted words (`words`, `runs`), merges (`merges`, `bpe`), the other kinds
(`models`, `unigram`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gristmill.artifact import Figures
from gristmill.errors import GristmillError

from ..config import TokenizerConfig
from ..special import reserved_token

if TYPE_CHECKING:
    import pyarrow as pa
    import tokenizers

    from gristmill.data.pool import Mapper

    from ..sample import Sample
    from .words import Words

Progress = Callable[[int, int, str], None]


class Trained(NamedTuple):
    """What was learned; the special tokens at the vocabulary's end that pad it; figures of how."""

    backend: tokenizers.Tokenizer
    padding: tuple[str, ...]
    figures: Figures


def train(
    config: TokenizerConfig,
    texts: Sample | Sequence[pa.Array],
    specials: Sequence[str],
    scratch: Path,
    mapper: Mapper | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Learn a vocabulary of `config.vocab_size` tokens, `specials` first, and pad it with special tokens to a multiple.

    `texts` are columns of strings, or a sample of a corpus, whose words are counted for kind bpe by `mapper`;
    what a killed run has counted in `scratch` is taken as it is. `progress` is called with
    what is done, the total and its unit. The result depends on the texts and `config` alone.

    GristmillError where the vocabulary is smaller than the alphabet, or larger than the text can fill.
    """
    say = progress or (lambda done, total, unit: None)
    if config.kind == "bpe":
        backend, figures = _train_bpe(config, texts, specials, scratch, mapper, say)
    else:
        from .models import train_model

        started = time.perf_counter()
        backend, text_bytes = train_model(config, texts, specials, say)
        _check_filled(config, backend.get_vocab_size(), text_bytes)
        figures = {"learn_seconds": round(time.perf_counter() - started, 3)}
    from tokenizers import AddedToken

    missing = -backend.get_vocab_size() % config.pad_to_multiple
    padding = tuple(reserved_token(config.reserved + number) for number in range(missing))
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (*specials, *padding)])
    return Trained(backend, padding, figures)


def _train_bpe(
    config: TokenizerConfig,
    texts: Sample | Sequence[pa.Array],
    specials: Sequence[str],
    scratch: Path,
    mapper: Mapper | None,
    say: Progress,
) -> tuple[tokenizers.Tokenizer, Figures]:
    from .bpe import build_bpe, merges_wanted
    from .merges import learn_merges

    wanted = merges_wanted(config, specials)
    started = time.perf_counter()
    words = _count(config, texts, scratch, mapper, say)
    counted = time.perf_counter()
    merges = learn_merges(
        words.words, words.counts, wanted, config.min_frequency, config.max_token_bytes,
        lambda done, total: say(done, total, "merges"),
    )  # fmt: skip
    learned = time.perf_counter()
    _check_filled(config, len(specials) + 256 + len(merges), words.text_bytes)
    return build_bpe(config, specials, merges), {
        "words": len(words.words),
        "words_left_out": words.left_out,
        "bytes_left_out": words.left_out_bytes,
        "count_seconds": round(counted - started, 3),
        "count_bytes_per_second": round(words.text_bytes / (counted - started)),
        "learn_seconds": round(learned - counted, 3),
        "merges_per_second": round(len(merges) / (learned - counted)),
    }


def _count(
    config: TokenizerConfig,
    texts: Sample | Sequence[pa.Array],
    scratch: Path,
    mapper: Mapper | None,
    say: Progress,
) -> Words:
    from ..pretokenize import Pattern
    from ..sample import Sample
    from .words import count_sample, count_texts

    pattern = Pattern(config.pretokenizer, config.digits)
    if isinstance(texts, Sample):
        assert mapper is not None, "a sample is counted by tasks"
        return count_sample(texts, pattern, config.memory_bytes, scratch, mapper, say)
    return count_texts(texts, pattern, config.memory_bytes, scratch)


def _check_filled(config: TokenizerConfig, size: int, text_bytes: int) -> None:
    if size < config.vocab_size:
        ways = ["lower it"]
        if config.kind != "unigram" and config.min_frequency > 1:
            ways.append("lower tokenizer.min_frequency")
        if config.kind == "bpe" and config.max_token_bytes is not None:
            ways.append("raise tokenizer.max_token_bytes")
        raise GristmillError(
            f"tokenizer.vocab_size is {config.vocab_size}, but the {text_bytes} bytes of text sampled give only {size} "
            f"tokens; {', '.join(ways)}, or raise tokenizer.sample_bytes or the amount of text"
        )
