"""The tokenizer stage: byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) trained on the corpus' train split.

The merges are learned by Hugging Face's `tokenizers`. All 256 bytes are in the vocabulary, so every text has ids and
decodes to itself; the special tokens come first, with fixed ids.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from ..artifact import Figures, StageRun, write_json, write_text
from ..data.corpus import domains, mixture_weights
from ..errors import GristmillError
from ..events import StageLog
from .config import TokenizerConfig
from .fertility import fertility
from .pretokenize import build_pretokenizer
from .sample import Sample
from .special import BOS, EOS, IM_END, IM_START, PAD, SPECIAL_TOKENS
from .tokenizer import Tokenizer

FERTILITY_BYTES = 1_000_000
_TEMPLATE = Path(__file__).with_name("chat_template.jinja")


def train_tokenizer(config: TokenizerConfig, run: StageRun) -> Figures:
    """Train a tokenizer on the corpus `run.inputs["corpus"]` and write its directory.

    Figures: the bytes sampled per domain, and fertility per domain on validation text.
    """
    corpus = run.inputs["corpus"]
    weights = mixture_weights(corpus)
    sample = Sample(corpus, "train", weights, config.sample_bytes, run.seed)
    if sum(sample.quota.values()) == 0:
        raise GristmillError(f"{corpus} has no training text in a domain with a weight; there is nothing to train on")
    started = time.perf_counter()
    trained = train_bpe(config, _with_progress(sample, run.log))
    seconds = time.perf_counter() - started
    if trained.get_vocab_size() < config.vocab_size:
        raise GristmillError(
            f"tokenizer.vocab_size is {config.vocab_size}, but the {sum(sample.quota.values())} bytes sampled from "
            f"{corpus} give only {trained.get_vocab_size()} tokens; lower it, lower tokenizer.min_frequency, or raise "
            f"tokenizer.sample_bytes or the amount of text"
        )
    write_tokenizer(trained, run.out)
    return {
        "vocab_size": trained.get_vocab_size(),
        "sampled_bytes": sample.quota,
        "train_bytes_per_second": round(sum(sample.quota.values()) / seconds),
        **_validation_fertility(Tokenizer.load(run.out), corpus, run.seed),
    }


def train_bpe(config: TokenizerConfig, texts: Iterator[str]) -> tokenizers.Tokenizer:
    """Learn the merges. Pairs that are equally frequent are merged in the order of their ids, so the result depends
    on the texts alone, not on threads."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = build_pretokenizer(config.pretokenizer)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def write_tokenizer(tokenizer: tokenizers.Tokenizer, directory: Path) -> None:
    """Write a tokenizer directory that transformers, vLLM and llama.cpp's converter read.

    The template stands in its own file and in tokenizer_config.json, since older readers know only the latter.
    """
    template = _TEMPLATE.read_text(encoding="utf-8")
    named = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
    others = {"additional_special_tokens": [IM_START, IM_END]}
    write_text(directory / "tokenizer.json", tokenizer.to_str(pretty=True))
    tokenizer.model.save(str(directory))  # vocab.json and merges.txt
    write_text(directory / "chat_template.jinja", template)
    write_json(directory / "special_tokens_map.json", {**named, **others})
    write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **named,
            **others,
            "clean_up_tokenization_spaces": False,
            "chat_template": template,
        },
    )


def _with_progress(sample: Sample, log: StageLog) -> Iterator[str]:
    total = sum(sample.quota.values())
    done = 0
    for _, text in sample.texts():
        yield text
        done += len(text.encode())
        log.progress(min(done, total - 1), total, "bytes")
    log.progress(total, total, "bytes")


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
