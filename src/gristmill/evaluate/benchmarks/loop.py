"""A small sample of benchmarks for the training loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ...errors import GristmillError
from ...model.config import ModelConfig
from ...model.decoder import Decoder
from ...tokenizer.tokenizer import Tokenizer
from .config import Benchmark, Generation
from .descriptions import find_benchmarks
from .harness import Settings, measure, prepare
from .items import read_items


def benchmarks_in_loop(
    paths: Sequence[Path | str], limit: int, tokenizer: Tokenizer, model: ModelConfig
) -> Callable[[Decoder, int], dict[str, float]]:
    """A function of model and step that measures the first `limit` items of each benchmark: its quoted figure as
    `benchmark/NAME`, with `benchmark_stderr/NAME`, and of last words `benchmark_perplexity/NAME`.

    Everything is read and encoded here, once, so that mistakes come before the first step and every evaluation sees
    the same items. The numbers of passes and of tokens in them depend on the items alone: processes that hold shards
    of one model can measure it together.
    """
    settings = Settings(limit=limit)
    prepared = [prepare(benchmark, tokenizer, model, settings) for benchmark in check_benchmarks(paths)]

    def evaluate(model: Decoder, step: int) -> dict[str, float]:
        figures: dict[str, float] = {}
        for one in measure(model, tokenizer, prepared, settings):
            name = one.prepared.benchmark.name
            figures[f"benchmark/{name}"] = one.quoted.value
            figures[f"benchmark_stderr/{name}"] = one.quoted.stderr
            if "perplexity" in one.judged.figures:
                figures[f"benchmark_perplexity/{name}"] = one.judged.figures["perplexity"].value
        return figures

    return evaluate


def check_benchmarks(paths: Sequence[Path | str]) -> list[Benchmark]:
    """The benchmarks of files, directories and descriptions; GristmillError for what can be seen to be wrong without a
    tokenizer. Replies are not written while training: their cache would want memory that the training has taken."""
    found = find_benchmarks([Path(path) for path in paths])
    for benchmark in found:
        if isinstance(benchmark, Generation):
            raise GristmillError(
                f"{benchmark.file}: replies are not generated while training; measure {benchmark.name} afterwards "
                "with gristmill evaluate MODEL --tasks, and name the other benchmarks here"
            )
        read_items(Path(benchmark.file), benchmark)
        if benchmark.num_fewshot and benchmark.fewshot_file is not None:
            read_items(Path(benchmark.fewshot_file), benchmark)
    return found
