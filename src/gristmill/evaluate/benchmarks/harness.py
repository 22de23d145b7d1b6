"""Benchmarks on a model: prepared once, measured as often as wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from ...artifact import rounded
from ...errors import GristmillError
from ...model.config import ModelConfig
from ...model.decoder import Decoder
from ...tokenizer.tokenizer import Tokenizer
from .config import Benchmark, Generation, LastWord
from .estimates import Estimate, average
from .generation import check_answers, judge_replies, room, write_replies
from .items import FEWEST_ITEMS, Item, read_items
from .judging import Judged, judge_choices, judge_last_words
from .likelihood import log_likelihoods
from .prompts import examples_of, pairs, prompt
from .sequences import Scored, context_ids, encode_pairs

Progress = Callable[[str, int, int, str], None]  # benchmark, done, total, unit


@dataclass(frozen=True)
class Settings:
    """How benchmarks are measured."""

    limit: int | None = None  # the first items of each benchmark
    num_fewshot: int | None = None  # in place of the descriptions' own
    chat: bool = False  # questions as a user's message under the tokenizer's chat template
    seed: int = 0  # draws the examples
    confidence: float = 0.95
    batch_tokens: int | None = None  # of one forward pass; by the device where None
    max_num_seqs: int | None = None  # replies written side by side; what fits where None


@dataclass(frozen=True)
class Prepared:
    """A benchmark's items as ids: `groups` to be scored, or `prompts` to be answered. `of` is how many items the file
    holds, `cut` how many of these were shortened to what the model reads."""

    benchmark: Benchmark
    items: list[Item]
    of: int
    cut: int
    groups: list[list[Scored]]
    prompts: list[list[int]]


@dataclass(frozen=True)
class Measured:
    """A prepared benchmark and what came out, of weights of type `dtype`."""

    prepared: Prepared
    judged: Judged
    dtype: str

    @property
    def quoted(self) -> Estimate:
        return self.judged.figures[self.judged.quoted]


def prepare(
    benchmark: Benchmark, tokenizer: Tokenizer, model: ModelConfig, settings: Settings | None = None
) -> Prepared:
    """Read, check and encode a benchmark for a model's tokenizer and context. All errors in its files come here."""
    settings = settings or Settings()
    if not model.causal:
        raise GristmillError("this model reads in both directions (causal: false): it gives texts no likelihood")
    if settings.limit is not None and settings.limit < FEWEST_ITEMS:
        raise GristmillError(f"limit is {settings.limit}; a standard error needs {FEWEST_ITEMS} items at least")
    if settings.num_fewshot is not None:
        benchmark = benchmark.model_copy(update={"num_fewshot": settings.num_fewshot})
    every = read_items(Path(benchmark.file), benchmark)
    own = benchmark.fewshot_file is None
    pool = every if own or not benchmark.num_fewshot else read_items(Path(str(benchmark.fewshot_file)), benchmark)
    items = every[: settings.limit]
    examples = [examples_of(benchmark, number, pool, own, settings.seed) for number in range(len(items))]
    groups: list[list[Scored]] = []
    prompts: list[list[int]] = []
    if isinstance(benchmark, Generation):
        check_answers(benchmark, items)
        whole = [
            context_ids(tokenizer, prompt(benchmark, item, shown), settings.chat)
            for item, shown in zip(items, examples, strict=True)
        ]
        longest = room(benchmark, model.max_seq_len)
        prompts = [ids[-longest:] for ids in whole]
        cut = sum(len(ids) > longest for ids in whole)
    else:
        asked = [pairs(benchmark, item, shown, settings.chat) for item, shown in zip(items, examples, strict=True)]
        try:
            encoded = encode_pairs(tokenizer, list(chain.from_iterable(asked)), model.max_seq_len)
        except GristmillError as error:
            raise GristmillError(f"{benchmark.name}: {error}") from None
        groups = _grouped(encoded, asked)
        cut = sum(any(sequence.cut for sequence in group) for group in groups)
    _check_ids(benchmark, chain(prompts, (sequence.ids for group in groups for sequence in group)), model)
    return Prepared(benchmark, items, len(every), cut, groups, prompts)


def measure(
    model: Decoder,
    tokenizer: Tokenizer,
    prepared: Sequence[Prepared],
    settings: Settings | None = None,
    on_progress: Progress | None = None,
) -> list[Measured]:
    """What the model makes of each benchmark. It is read in evaluation mode, and left in the mode it was in."""
    settings = settings or Settings()
    training = model.training
    model.eval()
    try:
        dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
        return [Measured(one, _judge(model, tokenizer, one, settings, on_progress), dtype) for one in prepared]
    finally:
        model.train(training)


def report(measured: Sequence[Measured], settings: Settings) -> dict[str, Any]:
    """The figures as JSON values, floats with six places. It holds no times: the same model gives the same report."""
    benchmarks = {}
    for one in measured:
        prepared, judged = one.prepared, one.judged
        benchmarks[prepared.benchmark.name] = {
            "kind": prepared.benchmark.kind,
            "items": len(prepared.items),
            "of": prepared.of,
            "cut": prepared.cut,
            "num_fewshot": prepared.benchmark.num_fewshot,
            "chance": judged.chance,
            "quoted": judged.quoted,
            "figures": {name: asdict(estimate) for name, estimate in judged.figures.items()},
        }
    averages = {}
    for label in dict.fromkeys(one.prepared.benchmark.average for one in measured):
        members = [one for one in measured if one.prepared.benchmark.average == label]
        if label is not None and len(members) > 1:
            mean = asdict(average([one.quoted for one in members], settings.confidence))
            averages[label] = {**mean, "benchmarks": [one.prepared.benchmark.name for one in members]}
    protocol = {
        "chat": settings.chat,
        "seed": settings.seed,
        "confidence": settings.confidence,
        "dtype": measured[0].dtype,
    }
    result: dict[str, Any] = rounded({"protocol": protocol, "benchmarks": benchmarks, "averages": averages})
    return result


def _judge(
    model: Decoder, tokenizer: Tokenizer, prepared: Prepared, settings: Settings, on_progress: Progress | None
) -> Judged:
    benchmark, items = prepared.benchmark, prepared.items

    def progress(unit: str) -> Callable[[int, int], None]:
        return lambda done, total: on_progress(benchmark.name, done, total, unit) if on_progress else None

    if isinstance(benchmark, Generation):
        replies = write_replies(
            model, tokenizer, prepared.prompts, benchmark, settings.max_num_seqs, progress("replies")
        )
        return judge_replies(benchmark, items, replies, settings.confidence)
    likelihoods = log_likelihoods(
        model, prepared.groups, batch_tokens=settings.batch_tokens, on_progress=progress("answers")
    )
    if isinstance(benchmark, LastWord):
        return judge_last_words(benchmark, items, likelihoods, settings.confidence)
    return judge_choices(benchmark, items, likelihoods, settings.confidence)


def _grouped(encoded: Sequence[Scored], asked: Sequence[Sequence[object]]) -> list[list[Scored]]:
    """The encoded pairs, item by item again."""
    rest = iter(encoded)
    return [[next(rest) for _ in group] for group in asked]


def _check_ids(benchmark: Benchmark, sequences: Iterable[Sequence[int]], model: ModelConfig) -> None:
    largest = max(max(ids) for ids in sequences)
    if largest >= model.vocab_size:
        raise GristmillError(
            f"{benchmark.name}: its text has the token id {largest}, and the model only {model.vocab_size} ids: "
            "tokenizer and model do not belong together"
        )
