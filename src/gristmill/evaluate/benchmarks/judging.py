"""From likelihoods to accuracies: which choice a model takes, under which length of the choices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import GristmillError
from .config import NORMALIZATIONS, LastWord, MultipleChoice, Normalization, Schema
from .estimates import Estimate, perplexity, proportion
from .items import Item
from .likelihood import Likelihood


@dataclass(frozen=True)
class Judged:
    """What came out of a benchmark: its figures by name, the name of the one that is quoted, what guessing would
    give (None where that is nothing), and one record an item."""

    figures: dict[str, Estimate]
    quoted: str
    chance: float | None
    records: list[dict[str, Any]]


def judge_choices(
    benchmark: MultipleChoice | Schema,
    items: Sequence[Item],
    likelihoods: Sequence[Sequence[Likelihood]],
    confidence: float,
) -> Judged:
    """Accuracies `accuracy_raw`, `accuracy_bytes`, ... of multiple choice, `accuracy` of a schema.

    The choice with the highest log-likelihood divided by its length is taken, the first of equals. Lengths are those of
    the choice's own text, without the delimiter; in tokens, of what was scored. A schema has one continuation for all
    contexts, so its length decides nothing.
    """
    kinds: tuple[Normalization, ...] = NORMALIZATIONS if isinstance(benchmark, MultipleChoice) else ("raw",)
    records = []
    for number, (item, found) in enumerate(zip(items, likelihoods, strict=True)):
        _check(benchmark.name, number, found)
        record: dict[str, Any] = {"item": number, "gold": item.gold}
        record["log_likelihoods"] = [one.log_likelihood for one in found]
        record["tokens"] = [one.tokens for one in found]
        record["taken"] = {kind: _taken(item, found, kind) for kind in kinds}
        records.append(record)
    accuracies = {
        kind: proportion([record["taken"][kind] == record["gold"] for record in records], confidence) for kind in kinds
    }
    chance = sum(1 / max(len(item.contexts), len(item.answers)) for item in items) / len(items)
    if isinstance(benchmark, Schema):
        return Judged({"accuracy": accuracies["raw"]}, "accuracy", chance, records)
    figures = {f"accuracy_{kind}": estimate for kind, estimate in accuracies.items()}
    return Judged(figures, f"accuracy_{benchmark.metric}", chance, records)


def judge_last_words(
    benchmark: LastWord, items: Sequence[Item], likelihoods: Sequence[Sequence[Likelihood]], confidence: float
) -> Judged:
    """`accuracy`: greedy decoding writes the continuation, all its tokens. `perplexity`: exp of the mean negative
    log-likelihood of a continuation, so of a word, not of a token."""
    records: list[dict[str, Any]] = []
    for number, (item, (found,)) in enumerate(zip(items, likelihoods, strict=True)):
        _check(benchmark.name, number, (found,))
        records.append(
            {
                "item": number,
                "word": item.answers[0],
                "log_likelihood": found.log_likelihood,
                "tokens": found.tokens,
                "right": found.greedy,
            }
        )
    figures = {
        "accuracy": proportion([record["right"] for record in records], confidence),
        "perplexity": perplexity([record["log_likelihood"] for record in records], confidence),
    }
    return Judged(figures, "accuracy", None, records)


def _taken(item: Item, found: Sequence[Likelihood], kind: Normalization) -> int:
    scores = []
    for place, one in enumerate(found):
        answer = item.answers[place % len(item.answers)]
        length = {"raw": 1, "bytes": len(answer.encode()), "characters": len(answer), "tokens": one.tokens}[kind]
        scores.append(one.log_likelihood / length)
    return scores.index(max(scores))


def _check(name: str, number: int, found: Sequence[Likelihood]) -> None:
    if any(math.isnan(one.log_likelihood) for one in found):
        raise GristmillError(
            f"{name}: the model gives item {number} a likelihood that is no number; its weights are unfit"
        )
