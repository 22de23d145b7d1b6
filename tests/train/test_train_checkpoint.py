"""Checkpoints of one process: what comes back, what is kept, what is refused."""

import json
import shutil
import threading

import pytest
import torch
from safetensors.torch import load_file

from gristmill.errors import GristmillError
from gristmill.train.checkpoint import Checkpoints, saving
from gristmill.train.checkpoint.directory import Name, doomed, list_names
from gristmill.train.parallel.processes import alone


def state(step: int) -> dict[str, torch.Tensor]:
    """Tensors of every kind that a run has, all of them other ones in another step."""
    return {
        "model/w": torch.arange(20.0).view(4, 5).add(step).t(),  # not contiguous
        "model/half": torch.full((3,), step, dtype=torch.bfloat16),
        "optimizer/w/step": torch.tensor(float(step)),
        "optimizer/w/quantized": torch.full((7,), step, dtype=torch.uint8),
        "optimizer/w/fp8": torch.full((5,), step % 8, dtype=torch.float32).to(torch.float8_e4m3fn),
        "seen": torch.tensor([step, -step]),
        "mask": torch.tensor([True, step % 2 == 0]),
        "none": torch.zeros(0, 3),
    }


def blank() -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in state(1).items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and one[name].tolist() == other[name].tolist() for name in one
    )


def checkpoints(directory, keep=2, keep_golden=1, asynchronous=False, **more) -> Checkpoints:
    made = Checkpoints(directory, keep, keep_golden, asynchronous, alone(), **more)
    made.check_writable()
    return made


def kept(directory) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_is_loaded_is_what_was_saved_bit_for_bit_and_in_place(tmp_path, asynchronous):
    with checkpoints(tmp_path / "there", asynchronous=asynchronous) as made:
        assert made.load_latest(blank) is None
        made.save(7, state(7), {"history": [{"step": 7, "loss": 0.1}]})
    tensors = blank()
    loaded = checkpoints(tmp_path / "there").load_latest(lambda: tensors)
    assert loaded == (tensors, {"history": [{"step": 7, "loss": 0.1}]})
    assert same(tensors, state(7))


def test_a_shard_is_a_plain_safetensors_file(tmp_path):
    checkpoints(tmp_path).save(3, state(3), {})
    assert same(load_file(tmp_path / "step-00000003-0001" / "shard-00001.safetensors"), state(3))


def test_parameters_are_loaded_without_leaving_a_trace_in_autograd(tmp_path):
    parameter = torch.nn.Parameter(torch.ones(3))
    made = checkpoints(tmp_path)
    made.save(1, {"w": parameter}, {})
    with torch.no_grad():
        parameter.zero_()
    made.load_latest(lambda: {"w": parameter})
    assert parameter.tolist() == [1, 1, 1]
    assert parameter.is_leaf
    assert parameter.grad_fn is None


def test_the_newest_and_the_golden_ones_are_kept(tmp_path):
    made = checkpoints(tmp_path, keep=2, keep_golden=1)
    for step in range(1, 8):
        made.save(step, state(step), {}, golden=step in (2, 3))
    assert kept(tmp_path) == ["step-00000003-0003-golden", "step-00000006-0006", "step-00000007-0007"]
    made.save(8, state(8), {}, golden=True)
    assert kept(tmp_path) == ["step-00000007-0007", "step-00000008-0008-golden"]


def test_golden_ones_are_ordinary_where_none_are_kept(tmp_path):
    made = checkpoints(tmp_path, keep=1, keep_golden=0)
    for step in (1, 2):
        made.save(step, state(step), {}, golden=step == 1)
    assert kept(tmp_path) == ["step-00000002-0002"]


def test_older_ones_go_only_after_the_new_one_stands(tmp_path, monkeypatch):
    seen = []
    remove = saving.remove
    monkeypatch.setattr(
        saving, "remove", lambda directory, name: (seen.append(kept(directory)), remove(directory, name))
    )
    made = checkpoints(tmp_path, keep=1)
    made.save(1, state(1), {})
    made.save(2, state(2), {})
    assert seen == [["step-00000001-0001", "step-00000002-0002"]]


def test_doomed_are_those_that_are_neither_new_nor_golden():
    names = [Name(step, step, step in (2, 3, 5)) for step in range(7, 0, -1)]
    assert [name.step for name in doomed(names, 1, 2)] == [6, 4, 2, 1]
    assert doomed(names, 7, 0) == []


def test_a_run_that_goes_back_passes_the_same_steps_again_safely(tmp_path):
    made = checkpoints(tmp_path, keep=2, keep_golden=1)
    made.save(100, state(1), "first time", golden=True)
    made.save(200, state(2), "first time")
    made.save(300, state(3), "first time")
    tensors, extra = made.load_golden(blank)
    assert same(tensors, state(1))
    assert extra == "first time"
    assert made.load_latest(blank)[1] == "first time"
    made.save(100, state(4), "went back", golden=True)
    assert same(made.load_latest(blank)[0], state(4))  # though there is one of step 300
    made.save(200, state(5), "second time")
    tensors, extra = checkpoints(tmp_path).load_latest(blank)
    assert same(tensors, state(5))
    assert extra == "second time"
    assert same(made.load_golden(blank)[0], state(4))
    assert kept(tmp_path) == ["step-00000100-0004-golden", "step-00000200-0005"]


def test_no_golden_one_is_none(tmp_path):
    made = checkpoints(tmp_path)
    made.save(1, state(1), {})
    assert made.load_golden(blank) is None


@pytest.mark.parametrize("file", ["state.json", "shard-00001.safetensors"])
@pytest.mark.parametrize("how", ["torn", "changed", "gone"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, file, how):
    notes = []
    made = checkpoints(tmp_path, note=notes.append)
    made.save(1, state(1), {"of": 1}, golden=True)
    made.save(2, state(2), {"of": 2})
    path = tmp_path / "step-00000002-0002" / file
    if how == "gone":
        path.unlink()
    else:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data if how == "changed" else data[: len(data) // 2])
    tensors, extra = made.load_latest(blank)
    assert same(tensors, state(1))
    assert extra == {"of": 1}
    assert len(notes) == 1
    assert file in notes[0]
    made.save(3, state(3), {})  # the damaged one does not count as one of two, and goes
    assert kept(tmp_path) == ["step-00000001-0001-golden", "step-00000003-0003"]


def test_a_state_that_was_edited_is_not_believed(tmp_path):
    made = checkpoints(tmp_path, note=lambda message: None)
    made.save(1, state(1), {"batches": 1})
    path = tmp_path / "step-00000001-0001" / "state.json"
    path.write_text(path.read_text().replace('"batches": 1', '"batches": 2'))
    with pytest.raises(GristmillError, match=r"every checkpoint in .* is damaged \(1 of them\); remove"):
        made.load_latest(blank)


def test_a_checkpoint_under_another_name_is_none(tmp_path):
    made = checkpoints(tmp_path, note=lambda message: None)
    made.save(1, state(1), {})
    made.save(2, state(2), {})
    shutil.copytree(tmp_path / "step-00000001-0001", tmp_path / "step-00000001-0001.copy")
    shutil.copytree(tmp_path / "step-00000001-0001", tmp_path / "step-00000009-0009")
    assert same(made.load_latest(blank)[0], state(2))


def test_one_of_another_version_is_refused(tmp_path, monkeypatch):
    made = checkpoints(tmp_path)
    monkeypatch.setattr("gristmill.train.checkpoint.directory.FORMAT_VERSION", 2)
    made.save(1, state(1), {})
    with pytest.raises(GristmillError, match="format version 2 is not the 1"):
        made.load_latest(blank)


CHANGES = {
    "its model/w is [5, 4] F32, this run's [6, 4] F32": lambda tensors: tensors | {"model/w": torch.zeros(6, 4)},
    "its model/half is [3] BF16, this run's [3] F32": lambda tensors: tensors | {"model/half": torch.zeros(3)},
    "it lacks model/b [2]": lambda tensors: tensors | {"model/b": torch.zeros(2)},
    "it holds seen [2], which": lambda tensors: {name: value for name, value in tensors.items() if name != "seen"},
}


@pytest.mark.parametrize("message", CHANGES)
def test_another_architecture_or_optimizer_is_refused_by_the_first_difference(tmp_path, message):
    made = checkpoints(tmp_path)
    made.save(1, state(1), {})
    tensors = CHANGES[message](blank())
    with pytest.raises(GristmillError) as raised:
        made.load_latest(lambda: tensors)
    assert message in str(raised.value)
    assert not any(tensor.float().any() for tensor in tensors.values())  # and nothing was written into them


def test_another_tokenizer_is_refused(tmp_path):
    checkpoints(tmp_path, identity={"tokenizer": "aa"}).save(1, state(1), {})
    with pytest.raises(GristmillError, match="its tokenizer is aa, this run's bb"):
        checkpoints(tmp_path, identity={"tokenizer": "bb"}).load_latest(blank)
    assert checkpoints(tmp_path, identity={"tokenizer": "aa"}).load_latest(blank) is not None


def test_an_asynchronous_save_is_of_the_moment_it_was_called(tmp_path, monkeypatch):
    """The writer is held up until training has changed everything it can change."""
    changed = threading.Event()
    write = saving.write_shard
    monkeypatch.setattr(saving, "write_shard", lambda path, pieces: (changed.wait(60), write(path, pieces))[1])
    made = checkpoints(tmp_path, asynchronous=True)
    tensors, extra = state(1), {"history": [1]}
    made.save(1, tensors, extra)
    assert list_names(tmp_path) == []
    for tensor in tensors.values():
        tensor.zero_()
    extra["history"].append(2)
    changed.set()
    loaded, extra = made.load_latest(blank)  # which waits
    assert same(loaded, state(1))
    assert extra == {"history": [1]}


def test_asynchronous_saves_keep_their_order(tmp_path, monkeypatch):
    running, at_once = [], []
    write = saving.write_shard

    def slow(path, pieces):
        running.append(path)
        entry = write(path, pieces)
        at_once.append(len(running))
        running.pop()
        return entry

    monkeypatch.setattr(saving, "write_shard", slow)
    with checkpoints(tmp_path, keep=9, asynchronous=True) as made:
        for step in (3, 1, 2):
            made.save(step, state(step), {})
    assert at_once == [1, 1, 1]
    assert [name.step for name in list_names(tmp_path)] == [2, 1, 3]


def test_leaving_with_an_error_finishes_the_save_and_keeps_the_error(tmp_path):
    with pytest.raises(KeyError), checkpoints(tmp_path, asynchronous=True) as made:
        made.save(1, state(1), {})
        raise KeyError
    assert same(checkpoints(tmp_path).load_latest(blank)[0], state(1))


def test_what_is_no_json_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        checkpoints(tmp_path).save(1, state(1), {"loss": float("nan")})
    assert kept(tmp_path) == []


def test_what_a_killed_run_left_is_cleared_away_and_its_numbers_are_not_used_again(tmp_path):
    made = checkpoints(tmp_path)
    made.save(1, state(1), {})
    (tmp_path / ".step-00000002-0002.writing").mkdir()
    (tmp_path / ".step-00000003-0003-golden.removing").mkdir()
    (tmp_path / "of the user").mkdir()
    made.save(2, state(2), {})
    assert list_names(tmp_path)[0] == Name(2, 4, False)
    made.check_writable()
    assert kept(tmp_path) == ["of the user", "step-00000001-0001", "step-00000002-0004"]


def test_the_state_says_what_is_in_the_checkpoint(tmp_path):
    checkpoints(tmp_path, identity={"tokenizer": "aa"}).save(5, state(5), {"batches": 9}, golden=True)
    written = json.loads((tmp_path / "step-00000005-0001-golden" / "state.json").read_text())
    assert (written["step"], written["golden"]) == (5, True)
    assert written["identity"] == {"tokenizer": "aa"}
    assert written["extra"] == {"batches": 9}
    size = (tmp_path / "step-00000005-0001-golden" / "shard-00001.safetensors").stat().st_size
    assert written["files"]["shard-00001.safetensors"]["bytes"] == size
