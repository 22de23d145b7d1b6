"""Generation: what of a reply counts, and replies under the limits of a model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from benchmark_models import random_decoder

from gristmill.errors import GristmillError
from gristmill.evaluate.benchmarks.config import Generation
from gristmill.evaluate.benchmarks.generation import check_answers, extract, judge_replies, room, write_replies
from gristmill.evaluate.benchmarks.items import Item
from gristmill.evaluate.benchmarks.sequences import context_ids
from gristmill.tokenizer.tokenizer import Tokenizer


def benchmark(**fields: object) -> Generation:
    return Generation.model_validate({"name": "g", "file": "g", **fields})


@pytest.mark.parametrize(
    ("kind", "text", "found"),
    [
        ("line", "\n  The  Answer. \nmore", "the answer"),
        ("line", " \n ", None),
        ("number", " -734 and 5", "-734"),
        ("number", "It costs $1,598.50 (not 3).", "1598.5"),
        ("number", "no digits", None),
        ("last_number", "29 - 17 = 12.", "12"),
        ("last_number", "8.0", "8"),
        ("last_number", "-0", "0"),
        ("last_number", "1,000,000 people", "1000000"),
        ("last_number", "100", "100"),
        ("marked", "first 3\n#### 18\nQ", "18"),
        ("marked", "9 + 9 = 18", None),
        ("marked", "#### 5 then #### 1,200", "1200"),
    ],
)
def test_what_counts_of_a_reply(kind: str, text: str, found: str | None) -> None:
    assert extract(text, benchmark(extract=kind)) == found


def test_exact_match_compares_what_was_extracted() -> None:
    items = [Item(("?",), ("1,000",), 0, ""), Item(("?",), ("2",), 0, ""), Item(("?",), ("2.0",), 0, "")]
    judged = judge_replies(benchmark(extract="last_number"), items, ["It is 1000.", "nothing", "1 + 1 = 2"], 0.95)
    assert [record["right"] for record in judged.records] == [True, False, True]
    assert judged.figures["exact_match"].value == pytest.approx(2 / 3)
    assert judged.records[1]["found"] is None


def test_an_answer_that_nothing_matches_is_an_error() -> None:
    with pytest.raises(GristmillError, match="the answer of item 1 \\('two'\\) holds nothing that extract = 'number'"):
        check_answers(benchmark(extract="number"), [Item(("?",), ("2",), 0, ""), Item(("?",), ("two",), 0, "")])


def test_replies_leave_room_for_the_question() -> None:
    assert room(benchmark(max_tokens=24), 64) == 40
    with pytest.raises(GristmillError, match="replies of 64 tokens leave no room"):
        room(benchmark(max_tokens=64), 64)


def test_empty_stop_texts_are_refused() -> None:
    with pytest.raises(ValueError, match="empty text"):
        benchmark(stop=["\n", ""])


def test_replies_are_greedy_and_end_before_a_stop_text(small_run: dict[str, Path]) -> None:
    tokenizer = Tokenizer.load(small_run["base"])
    model = random_decoder(seed=1)
    prompts = [context_ids(tokenizer, text, chat=False) for text in ("The wheel ", "Chapter 3. The", "corn")]
    assert prompts[0] == [tokenizer.bos_id, *tokenizer.encode("The wheel")]
    plain = benchmark(max_tokens=6, stop=())
    replies = write_replies(model, tokenizer, prompts, plain)
    for prompt, reply in zip(prompts, replies, strict=True):
        ids = list(prompt)
        for _ in range(6):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
            if ids[-1] in tokenizer.stop_ids:
                break
        assert reply == tokenizer.decode(ids[len(prompt) :])
    first = next(reply for reply in replies if len(reply) > 2)
    stopped = write_replies(model, tokenizer, prompts, benchmark(max_tokens=6, stop=[first[1]]))
    assert stopped[replies.index(first)] == first[: first.index(first[1])]
