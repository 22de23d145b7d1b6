"""How an item becomes text: instruction, solved examples, question, delimiter."""

from __future__ import annotations

import random
from collections.abc import Sequence

from ...errors import GristmillError
from .config import Benchmark
from .items import Item
from .sequences import Pair


def examples_of(benchmark: Benchmark, number: int, pool: Sequence[Item], own: bool, seed: int) -> list[Item]:
    """The solved examples of item `number`, drawn from `pool` by a seed of its own, so that they do not depend on how
    many items are measured. `own`: the pool is the benchmark itself, and the item is not its own example."""
    wanted = benchmark.num_fewshot
    if not wanted:
        return []
    candidates = [place for place in range(len(pool)) if not (own and place == number)]
    if wanted > len(candidates):
        raise GristmillError(f"{benchmark.name}: num_fewshot ({wanted}) is more than the {len(candidates)} other items")
    return [pool[place] for place in random.Random(f"{seed}/{number}").sample(candidates, wanted)]


def pairs(benchmark: Benchmark, item: Item, examples: Sequence[Item], chat: bool) -> list[Pair]:
    """What is compared: one pair a choice, or one a context of a schema."""
    before = _solved(benchmark, examples)
    return [
        Pair(before + benchmark.prefix + context + benchmark.delimiter, answer, chat)
        for context in item.contexts
        for answer in item.answers
    ]


def prompt(benchmark: Benchmark, item: Item, examples: Sequence[Item]) -> str:
    """What a reply is generated after."""
    return _solved(benchmark, examples) + benchmark.prefix + item.question + benchmark.delimiter


def _solved(benchmark: Benchmark, examples: Sequence[Item]) -> str:
    shown = (
        benchmark.prefix + example.question + benchmark.delimiter + example.shown + benchmark.example_delimiter
        for example in examples
    )
    return benchmark.instruction + "".join(shown)
