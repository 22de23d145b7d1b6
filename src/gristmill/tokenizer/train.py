"""The tokenizer stage: a vocabulary learned from a sample of the corpus' train split, with its special tokens and chat
template."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from ..artifact import Figures, StageRun
from ..data.corpus import domains, mixture_weights
from ..data.engines import open_mapper
from ..errors import GristmillError
from .config import TokenizerConfig
from .fertility import fertility
from .formats.huggingface import write_tokenizer
from .sample import Sample
from .special import specials_of
from .templates import builtin_template
from .tokenizer import Tokenizer
from .training import Trained, train

FERTILITY_BYTES = 1_000_000


def train_tokenizer(config: TokenizerConfig, run: StageRun) -> Figures:
    """Train a tokenizer on the corpus `run.inputs["corpus"]` and write its directory.

    Figures: the bytes sampled per domain, what training took, and fertility per domain on validation text.
    """
    specials = specials_of(config)
    corpus = run.inputs["corpus"]
    sample = Sample(corpus, "train", mixture_weights(corpus), config.sample_bytes, run.seed)
    if sum(sample.quota.values()) == 0:
        raise GristmillError(f"{corpus} has no training text in a domain with a weight; there is nothing to train on")
    trained = _train(config, sample, specials.tokens, run)
    _write(config, trained, run.out)
    return {
        "vocab_size": trained.backend.get_vocab_size(),
        "sampled_bytes": sample.quota,
        **trained.figures,
        **_validation_fertility(Tokenizer.load(run.out), corpus, run.seed),
    }


def train_on_texts(config: TokenizerConfig, texts: Iterable[str], directory: Path) -> None:
    """Train a tokenizer on texts that are in memory and write its directory; all of them, whatever `sample_bytes`."""
    columns = [pa.array(list(texts), pa.large_string())]
    with tempfile.TemporaryDirectory() as scratch:
        trained = train(config, columns, specials_of(config).tokens, Path(scratch))
    _write(config, trained, directory)


def _train(config: TokenizerConfig, sample: Sample, specials: Sequence[str], run: StageRun) -> Trained:
    if config.kind != "bpe":
        return train(config, sample, specials, run.scratch, progress=run.log.progress)
    from .training.words import most_tasks

    preload = "gristmill.tokenizer.training.words:load_kernel"
    with open_mapper(run.engine, run.workers, most_tasks(sample), preload) as mapper:
        return train(config, sample, specials, run.scratch, mapper, run.log.progress)


def _write(config: TokenizerConfig, trained: Trained, directory: Path) -> None:
    specials = specials_of(config)
    specials = replace(specials, tokens=(*specials.tokens, *trained.padding))
    write_tokenizer(trained.backend, specials, builtin_template(config.chat_template), directory)


def _validation_fertility(tokenizer: Tokenizer, corpus: Path, seed: int) -> Figures:
    """Tokens per word and bytes per token on up to `FERTILITY_BYTES` of validation text of each domain that has any."""
    equal_weights = dict.fromkeys(domains(corpus), 1.0)
    texts: dict[str, list[str]] = {}
    for domain, text in Sample(corpus, "validation", equal_weights, FERTILITY_BYTES * len(equal_weights), seed).texts():
        texts.setdefault(domain, []).append(text)
    measured = {domain: fertility(tokenizer, texts[domain]) for domain in sorted(texts)}
    return {
        "tokens_per_word": {domain: round(counts.tokens_per_word, 4) for domain, counts in measured.items()},
        "bytes_per_token": {domain: round(counts.bytes_per_token, 4) for domain, counts in measured.items()},
    }
