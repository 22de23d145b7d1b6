"""Held-out tasks: what each model replies, and how often it is right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..engine.llm import LLM
from ..engine.sampling import SamplingParams
from .intervals import wilson
from .tasks import Task, is_correct


def answer_tasks(
    llm: LLM,
    tasks: Sequence[Task],
    max_tokens: int,
    temperature: float = 0.0,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """The model's reply to each task, in order. A task is one user message under the tokenizer's own template,
    for the base model too, so that the difference between two models is theirs and not the prompt's."""
    conversations = [[{"role": "user", "content": task.prompt}] for task in tasks]
    params = SamplingParams(max_tokens=max_tokens, temperature=temperature)
    return [completion.text for completion in llm.chat(conversations, params, on_progress)]


def mark(tasks: Sequence[Task], replies: Sequence[str]) -> list[bool]:
    """Whether each reply is right."""
    return [is_correct(task, reply) for task, reply in zip(tasks, replies, strict=True)]


def accuracy(tasks: Sequence[Task], correct: Sequence[bool], confidence: float = 0.95) -> dict[str, Any]:
    """Accuracy with Wilson's interval over all tasks, and under `families` the same for each family by name."""
    families = sorted({task.family for task in tasks})
    by_family = {
        family: [right for task, right in zip(tasks, correct, strict=True) if task.family == family]
        for family in families
    }
    report = _proportion(correct, confidence)
    report["families"] = {family: _proportion(marks, confidence) for family, marks in by_family.items()}
    return report


def _proportion(correct: Sequence[bool], confidence: float) -> dict[str, Any]:
    low, high = wilson(sum(correct), len(correct), confidence)
    return {
        "correct": sum(correct),
        "tasks": len(correct),
        "accuracy": sum(correct) / len(correct),
        "low": low,
        "high": high,
    }
