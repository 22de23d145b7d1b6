"""Where training and engine meet: a model being aligned answers tasks."""

from __future__ import annotations

from collections.abc import Callable

from ..engine.llm import LLM
from ..engine.sampling import SamplingParams
from ..evaluate.accuracy import answer_tasks
from ..evaluate.tasks import Task, is_correct, make_tasks
from ..model.decoder import Decoder
from ..tokenizer.tokenizer import Tokenizer

MAX_NUM_SEQS = 64  # fixed, not chosen by free memory: the same batches give the same replies to the last bit


def heldout_accuracy(model: Decoder, tokenizer: Tokenizer, count: int, seed: int, max_tokens: int) -> float:
    """Share of `count` held-out tasks that the model answers rightly, greedily."""
    tasks = make_tasks(count, seed, "heldout")
    replies = answer_tasks(LLM.from_model(model, tokenizer, max_num_seqs=MAX_NUM_SEQS), tasks, max_tokens)
    return sum(is_correct(task, reply) for task, reply in zip(tasks, replies, strict=True)) / count


def sample_answers(
    model: Decoder,
    tokenizer: Tokenizer,
    tasks: list[Task],
    samples: int,
    temperature: float,
    max_tokens: int,
    seed: int,
    on_progress: Callable[[int, int], None],
) -> list[list[str]]:
    """`samples` replies to each task, each with a seed of its own. A reply cut off by `max_tokens` is kept:
    it is a wrong answer too."""
    llm = LLM.from_model(model, tokenizer, max_num_seqs=MAX_NUM_SEQS)
    prompts, params = [], []
    for number, task in enumerate(tasks):
        ids = tokenizer.chat_ids([{"role": "user", "content": task.prompt}], add_generation_prompt=True)
        for sample in range(samples):
            prompts.append(ids)
            params.append(
                SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=seed + number * samples + sample)
            )
    texts = [done.text for done in llm.generate(prompts, params, on_progress=on_progress)]
    return [texts[start : start + samples] for start in range(0, len(texts), samples)]
