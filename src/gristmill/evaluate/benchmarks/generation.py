"""Replies that are written greedily, and whether they are the answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

from ...engine.llm import LLM
from ...engine.sampling import SamplingParams
from ...errors import GristmillError
from ...model.decoder import Decoder
from ...tokenizer.tokenizer import Tokenizer
from .config import Generation
from .estimates import proportion
from .items import Item
from .judging import Judged

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
MARK = "####"  # what GSM8K (Cobbe et al. 2021) writes before the final number


def write_replies(
    model: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    benchmark: Generation,
    max_num_seqs: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """The greedy reply to each prompt, up to a stop text or the model's own end. Prompts leave room for
    `max_tokens`; see `room`."""
    longest = max(map(len, prompts)) + benchmark.max_tokens
    llm = LLM.from_model(model, tokenizer, max_num_seqs=max_num_seqs, max_model_len=longest)
    params = SamplingParams(max_tokens=benchmark.max_tokens, temperature=0.0, stop=benchmark.stop)
    return [completion.text for completion in llm.generate(prompts, params, on_progress)]


def room(benchmark: Generation, max_seq_len: int) -> int:
    """Tokens that a prompt may have; GristmillError where the replies alone fill the model's context."""
    if benchmark.max_tokens >= max_seq_len:
        raise GristmillError(
            f"{benchmark.name}: replies of {benchmark.max_tokens} tokens leave no room for a question in the "
            f"{max_seq_len} that the model reads; lower max_tokens"
        )
    return max_seq_len - benchmark.max_tokens


def check_answers(benchmark: Generation, items: Sequence[Item]) -> None:
    """GristmillError where an answer holds nothing that a reply could match."""
    for number, item in enumerate(items):
        if extract(item.answers[0], benchmark) is None:
            raise GristmillError(
                f"{benchmark.name}: the answer of item {number} ({item.answers[0]!r}) holds nothing that "
                f"extract = {benchmark.extract!r} finds"
            )


def judge_replies(benchmark: Generation, items: Sequence[Item], replies: Sequence[str], confidence: float) -> Judged:
    """`exact_match`: what is extracted from the reply is what is extracted from the answer."""
    records: list[dict[str, Any]] = []
    for number, (item, reply) in enumerate(zip(items, replies, strict=True)):
        expected, found = extract(item.answers[0], benchmark), extract(reply, benchmark)
        records.append({"item": number, "reply": reply, "found": found, "answer": expected, "right": found == expected})
    figures = {"exact_match": proportion([record["right"] for record in records], confidence)}
    return Judged(figures, "exact_match", None, records)


def extract(text: str, benchmark: Generation) -> str | None:
    """What counts of a reply or an answer, in one form: a line without regard to case, spaces and a closing full
    stop; a number without separators and zeros behind the point. None where there is nothing of the kind."""
    match benchmark.extract:
        case "line":
            lines = text.strip().splitlines()
            return " ".join(lines[0].split()).rstrip(".").casefold() or None if lines else None
        case "marked":
            _, mark, behind = text.rpartition(MARK)
            numbers = NUMBER.findall(behind) if mark else []
        case _:
            numbers = NUMBER.findall(text)
    if not numbers:
        return None
    return _plain_number(numbers[-1] if benchmark.extract == "last_number" else numbers[0])


def _plain_number(written: str) -> str:
    number = Decimal(written.replace(",", ""))
    return f"{number.normalize() + 0:f}"  # + 0 turns -0 into 0
