"""A small sample of benchmarks for the training loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...model.config import ModelConfig
from ...model.decoder import Decoder
from ...tokenizer.tokenizer import Tokenizer
from .config import Benchmark
from .harness import Settings, measure, prepare


def evaluation_in_loop(
    benchmarks: Sequence[Benchmark],
    tokenizer: Tokenizer,
    model: ModelConfig,
    settings: Settings,
) -> Callable[[Decoder, int], dict[str, float]]:
    """What `train` takes as `evaluate`: a function of model and step that gives, for each benchmark, its quoted figure
    under its name, with `NAME_stderr`, and of last words `NAME_perplexity`.

    Everything is read and encoded here, once, so that mistakes come before the first step and every evaluation sees
    the same items; `settings.limit` keeps it short.
    """
    prepared = [prepare(benchmark, tokenizer, model, settings) for benchmark in benchmarks]

    def evaluate(model: Decoder, step: int) -> dict[str, float]:
        figures: dict[str, float] = {}
        for one in measure(model, tokenizer, prepared, settings):
            name = one.prepared.benchmark.name
            figures[name] = one.quoted.value
            figures[f"{name}_stderr"] = one.quoted.stderr
            if "perplexity" in one.judged.figures:
                figures[f"{name}_perplexity"] = one.judged.figures["perplexity"].value
        return figures

    return evaluate
