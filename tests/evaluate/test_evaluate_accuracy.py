"""Replies, marks and accuracies, and the check that no held-out task was trained on."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gristmill.engine.llm import LLM
from gristmill.errors import GristmillError
from gristmill.evaluate.accuracy import accuracy, answer_tasks, mark
from gristmill.evaluate.heldout import check_heldout
from gristmill.evaluate.intervals import wilson
from gristmill.evaluate.tasks import Task, make_tasks
from gristmill.tokenizer.tokenizer import Tokenizer
from gristmill.weights.load import load_model

TASKS = [Task(f"t{i}", family, f"What is {i}?", str(i)) for i, family in enumerate("aababb")]


class ScriptedLLM:
    """Replies from a list and remembers how it was asked."""

    def __init__(self, replies: list[str]):
        self.replies = replies

    def chat(self, conversations: list[Any], params: Any, on_progress: Any = None) -> list[Any]:
        self.conversations, self.params = conversations, params
        return [SimpleNamespace(text=reply) for reply in self.replies]


def test_each_task_is_one_user_message_answered_greedily() -> None:
    llm = ScriptedLLM(["0", "one"])
    assert answer_tasks(llm, TASKS[:2], max_tokens=7) == ["0", "one"]  # type: ignore[arg-type]
    assert llm.conversations[1] == [{"role": "user", "content": "What is 1?"}]
    assert (llm.params.max_tokens, llm.params.temperature) == (7, 0.0)


def test_the_engine_gives_what_a_plain_greedy_loop_gives(small_run: dict[str, Path]) -> None:
    model, tokenizer = load_model(small_run["sft"]), Tokenizer.load(small_run["sft"])
    tasks = make_tasks(3, 0, "heldout")
    replies = answer_tasks(LLM.from_model(model, tokenizer, max_num_seqs=4), tasks, max_tokens=6)
    for task, reply in zip(tasks, replies, strict=True):
        ids = tokenizer.chat_ids([{"role": "user", "content": task.prompt}], add_generation_prompt=True)
        start = len(ids)
        while len(ids) < start + 6 and ids[-1] not in (tokenizer.eos_id, tokenizer.im_end_id):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
        assert reply == tokenizer.decode(ids[start:])


def test_accuracy_in_all_and_by_family() -> None:
    correct = mark(TASKS, ["0", "x", " 2. ", "3", "", "5"])
    assert correct == [True, False, True, True, False, True]
    report = accuracy(TASKS, correct, confidence=0.9)
    assert (report["correct"], report["tasks"], report["accuracy"]) == (4, 6, pytest.approx(4 / 6))
    assert (report["low"], report["high"]) == wilson(4, 6, 0.9)
    assert {family: (part["correct"], part["tasks"]) for family, part in report["families"].items()} == {
        "a": (2, 3),
        "b": (2, 3),
    }


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path.parent


def test_training_files_without_held_out_tasks_pass(tmp_path: Path) -> None:
    sft = write(tmp_path / "sft" / "dataset.jsonl", '{"prompt": "What is 17?"}', '{"prompt": "Why?"}')
    dpo = write(tmp_path / "dpo" / "pairs.jsonl", '{"prompt": "What is 17?"}')
    assert check_heldout(TASKS, {"sft": sft, "dpo": dpo, "base": tmp_path}) == {"sft": 2, "dpo": 1}
    assert check_heldout(TASKS, {"base": tmp_path}) == {}


@pytest.mark.parametrize("prompt", ["What is 3?", "what  is\n3? "])
def test_a_held_out_task_in_the_training_data_stops_the_evaluation(tmp_path: Path, prompt: str) -> None:
    dpo = write(tmp_path / "dpo" / "pairs.jsonl", '{"prompt": "Why?"}', json.dumps({"prompt": prompt}))
    with pytest.raises(GristmillError, match=r"pairs.jsonl, line 2 .* 't3' \('What is 3\?'\)"):
        check_heldout(TASKS, {"dpo": dpo})


def test_a_check_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(GristmillError, match=r"dataset.jsonl is missing"):
        check_heldout(TASKS, {"sft": tmp_path})
    for line in ("not json", '{"question": "Why?"}', '["prompt"]', '{"prompt": ["Why?"]}'):
        with pytest.raises(GristmillError, match=r"line 2 .* 'prompt'"):
            check_heldout(TASKS, {"sft": write(tmp_path / "sft" / "dataset.jsonl", '{"prompt": ""}', line)})


def test_the_tasks_own_splits_never_meet(tmp_path: Path) -> None:
    """Training tasks of any seed against held-out tasks of another: what sft writes passes the check."""
    lines = [json.dumps({"prompt": task.prompt}) for task in make_tasks(400, 1, "train")]
    sft = write(tmp_path / "sft" / "dataset.jsonl", *lines)
    assert check_heldout(make_tasks(200, 2, "heldout"), {"sft": sft}) == {"sft": 400}
