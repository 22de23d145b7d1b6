"""From raw results to the report: rates, intervals, and what each rung of the ladder changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from ..artifact import rounded
from .accuracy import accuracy, mark
from .compression import gzip_bits_per_byte
from .config import EvaluateConfig
from .intervals import paired_difference, ratio_interval
from .tasks import Task
from .text import ValidationText

Results = Mapping[str, Mapping[str, Any]]
Strata = list[tuple[np.ndarray, np.ndarray]]


def build_report(
    config: EvaluateConfig,
    tasks: Sequence[Task],
    texts: Mapping[str, ValidationText],
    results: Results,
    checked: Mapping[str, int],
) -> dict[str, Any]:
    """The contents of `report.json`: JSON values only, floats to six places, no times."""
    report = {
        "models": {
            name: {"parameters": result["parameters"], "file_bytes": result["file_bytes"]}
            for name, result in results.items()
        },
        "confidence": config.confidence,
        "bits_per_byte": _text_report(config, texts, results),
        "tasks": _task_report(config, tasks, results),
        "heldout_check": {"prompts_trained_on": dict(checked), "heldout_among_them": 0},
        "samples": _samples(config, tasks, results),
    }
    return rounded(report)


def _text_report(config: EvaluateConfig, texts: Mapping[str, ValidationText], results: Results) -> dict[str, Any]:
    domains = {domain: _text_scores(config, {domain: text}, results) for domain, text in texts.items()}
    return {
        "window": config.window,
        "stride": config.stride,
        "domains": domains,
        "all": _text_scores(config, texts, results),
    }


def _text_scores(config: EvaluateConfig, texts: Mapping[str, ValidationText], results: Results) -> dict[str, Any]:
    """gzip and the models on the same bytes: one domain's, or all domains' (gzip then reads them as one stream)."""
    measured = [name for name, result in results.items() if "bits" in result]
    strata = {
        name: [
            (np.array(results[name]["bits"][domain]), text.by_document(text.sizes)) for domain, text in texts.items()
        ]
        for name in measured
    }
    return {
        "documents": sum(len(text.offsets) - 1 for text in texts.values()),
        "tokens": sum(len(text.token_ids) for text in texts.values()),
        "bytes": sum(len(text.text) for text in texts.values()),
        "gzip": gzip_bits_per_byte(b"".join(text.text for text in texts.values())),
        "models": {name: _ratio(strata[name], config) for name in measured},
        "differences": {
            f"{above} - {below}": _ratio(_minus(strata[above], strata[below]), config)
            for below, above in pairwise(measured)
        },
    }


def _ratio(strata: Strata, config: EvaluateConfig) -> dict[str, Any]:
    value = sum(bits.sum() for bits, _ in strata) / sum(sizes.sum() for _, sizes in strata)
    interval = ratio_interval(strata, config.confidence)
    low, high = interval if interval is not None else (None, None)
    return {"value": float(value), "low": low, "high": high}


def _minus(above: Strata, below: Strata) -> Strata:
    """The change in bits of each document, over the same bytes: a paired comparison."""
    return [(a - b, sizes) for (a, sizes), (b, _) in zip(above, below, strict=True)]


def _task_report(config: EvaluateConfig, tasks: Sequence[Task], results: Results) -> dict[str, Any]:
    marks = {name: mark(tasks, result["replies"]) for name, result in results.items()}
    differences = {}
    for below, above in pairwise(marks):
        difference, low, high = paired_difference(marks[above], marks[below], config.confidence)
        differences[f"{above} - {below}"] = {"difference": difference, "low": low, "high": high}
    return {
        "tasks": len(tasks),
        "seed": config.seed,
        "models": {name: accuracy(tasks, correct, config.confidence) for name, correct in marks.items()},
        "differences": differences,
    }


def _samples(config: EvaluateConfig, tasks: Sequence[Task], results: Results) -> dict[str, Any]:
    continued = [result["continuations"] for result in results.values() if result["continuations"]]
    return {
        "continuations": [
            {"prompt": prompt, "text": text}
            for texts in continued
            for prompt, text in zip(config.prompts, texts, strict=True)
        ],
        "tasks": [
            {
                "prompt": task.prompt,
                "answer": task.answer,
                "replies": {name: result["replies"][i] for name, result in results.items()},
            }
            for i, task in enumerate(tasks[: config.shown_tasks])
        ],
    }
