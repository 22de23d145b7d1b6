import pytest

from gristmill.errors import GristmillError
from gristmill.evaluate.tasks import FAMILIES, Task, is_correct, is_heldout, make_tasks


def test_the_splits_share_no_prompt_whatever_the_seeds():
    train = {task.prompt for seed in range(3) for task in make_tasks(800, seed, "train")}
    heldout = {task.prompt for seed in range(3) for task in make_tasks(800, seed, "heldout")}
    assert not train & heldout
    assert all(is_heldout(prompt) for prompt in heldout)


def test_tasks_are_reproducible_distinct_and_of_all_families():
    tasks = make_tasks(400, 7, "train")
    assert tasks == make_tasks(400, 7, "train")
    assert tasks != make_tasks(400, 8, "train")
    assert len({task.prompt for task in tasks}) == 400
    assert {task.family for task in tasks} == set(FAMILIES)


def test_answers_are_right():
    by_family = {}
    for task in make_tasks(2000, 1, "heldout"):
        by_family.setdefault(task.family, []).append(task)
    for task in by_family["add"]:
        a, b = task.prompt.removeprefix("What is ").removesuffix("?").split(" + ")
        assert int(a) + int(b) == int(task.answer)
    for task in by_family["larger"]:
        a, b = task.prompt.removeprefix("Which number is larger, ").removesuffix("?").split(" or ")
        assert task.answer == str(max(int(a), int(b)))
    for task in by_family["count"]:
        assert len(task.prompt.split("? ")[1].split()) == int(task.answer)
    for task in by_family["contains"]:
        question, words = task.prompt.split("? ")
        assert (question.split()[3] in words.split()) == (task.answer == "yes")
    for task in by_family["swap"]:
        assert task.prompt.split(": ")[1].split() == task.answer.split()[::-1]


@pytest.mark.parametrize(
    ("reply", "right"), [("Odd", True), (" odd.\n", True), ("odd even", False), ("", False), ("dd", False)]
)
def test_a_reply_is_right_but_for_space_case_and_a_full_stop(reply, right):
    assert is_correct(Task("x", "parity", "Is 3 even or odd?", "odd"), reply) is right


def test_asking_for_more_tasks_than_there_are_is_an_error(monkeypatch):
    monkeypatch.setattr("gristmill.evaluate.tasks.FAMILIES", {"one": lambda rng: ("only prompt", "x")})
    with pytest.raises(GristmillError, match="only 1 distinct"):
        make_tasks(5, 0, "heldout" if is_heldout("only prompt") else "train")
