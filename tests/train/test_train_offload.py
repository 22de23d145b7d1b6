import errno
import os
import threading
from pathlib import Path

import pytest
import torch
from optimizer_cases import EXPERTS, OPTIMIZERS, config, give_gradients, names_of, optimizer_of, tiny, weights_of

from gristmill.errors import GristmillError
from gristmill.train.optimizers import build_optimizer, export_state, import_state, init_state, offload
from gristmill.train.optimizers.offload import Files, HostMemory, Lane

CPU = torch.device("cpu")


class LateLane(Lane):
    """Copies as late as they may be: when something waits for them. What is not waited for is found to be stale."""

    def __init__(self, device):
        super().__init__(device)
        self.queue = []

    def computes_after(self, event):
        event.synchronize()

    def copy(self, pairs, after):
        event = LateCopy(self.queue, list(pairs), [other for other in after if other is not None])
        self.queue.append(event)
        return event

    def settle(self):
        if self.queue:
            self.queue[-1].synchronize()


class LateCopy:
    lock = threading.RLock()

    def __init__(self, queue, pairs, after):
        self.queue, self.pairs, self.after, self.done = queue, pairs, after, False

    def synchronize(self):
        with LateCopy.lock:
            for event in list(self.queue):  # a stream keeps its order
                event.perform()
                if event is self:
                    break

    def perform(self):
        if not self.done:
            for event in self.after:
                event.synchronize()
            for to, source in self.pairs:
                to.copy_(source)
            self.done = True


@pytest.fixture(params=["host", "files"])
def staged(request, tmp_path, monkeypatch):
    """Makes places for state which is copied in small portions, as on a GPU."""
    monkeypatch.setattr(offload, "PORTION_ELEMENTS", 9000)
    monkeypatch.setattr(offload, "FIRST_BLOCK", 2**15)
    return lambda: HostMemory(CPU, True) if request.param == "host" else Files(CPU, tmp_path, True)


def steps_with(optimizer, model, count=4, start=0):
    for step in range(start, start + count):
        give_gradients(model, step)
        optimizer.step()


def move_to(optimizer, residence):
    optimizer.residence = residence
    return optimizer


@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_elsewhere_gives_the_same_bits(name, staged, late, monkeypatch):
    if late:
        monkeypatch.setattr(offload, "Lane", LateLane)
    here, away = tiny(**EXPERTS, num_layers=4), tiny(**EXPERTS, num_layers=4)
    one, other = optimizer_of(here, name), move_to(optimizer_of(away, name), staged())
    one.residence.elements = offload.PORTION_ELEMENTS  # sums over batches of matrices depend on what is in them
    steps_with(one, here)
    steps_with(other, away)
    for key, weight in weights_of(here).items():
        assert torch.equal(weight, away.get_parameter(key)), key
    kept = export_state(other, names_of(away))
    for key, value in export_state(one, names_of(here)).items():
        assert torch.equal(value, kept[key]), key


def test_portions_that_change_from_step_to_step_bring_what_was_written_last(staged, monkeypatch):
    """Every second step only one parameter has a gradient, so that its state comes by another slot than it left by."""
    monkeypatch.setattr(offload, "Lane", LateLane)
    here, away = tiny(num_layers=3), tiny(num_layers=3)
    one, other = optimizer_of(here), move_to(optimizer_of(away), staged())
    portions = []
    for step in range(2 * len(list(here.parameters()))):
        for model, optimizer in ((here, one), (away, other)):
            give_gradients(model, step)
            for number, parameter in enumerate(model.parameters()):
                if step % 2 and number != step // 2:
                    parameter.grad = None
            portions.append(len(list(optimizer._portions())))
            optimizer.step()
    assert max(portions) > offload.SLOTS
    assert max(portions) % offload.SLOTS != 1  # else slot 0 is the last that is left
    assert min(portions) == 1
    for key, weight in weights_of(here).items():
        assert torch.equal(weight, away.get_parameter(key)), key


def test_a_checkpoint_moves_between_places(staged):
    away, here = tiny(), tiny()
    other, one = move_to(optimizer_of(away), staged()), optimizer_of(here)
    steps_with(other, away)
    here.load_state_dict(away.state_dict())
    state = {key: value.clone() for key, value in export_state(other, names_of(away)).items()}
    import_state(one, names_of(here), state)
    back = tiny()
    back.load_state_dict(away.state_dict())
    third = move_to(optimizer_of(back), staged())
    import_state(third, names_of(back), state)
    for optimizer, model in ((one, here), (other, away), (third, back)):
        steps_with(optimizer, model, count=2, start=4)
    for key, weight in weights_of(here).items():
        assert torch.equal(weight, away.get_parameter(key)), key
        assert torch.equal(weight, back.get_parameter(key)), key


@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_a_configuration_says_where(place, tmp_path):
    model = tiny()
    optimizer = build_optimizer(model, config(memory={"offload": place}), scratch=tmp_path / "state")
    init_state(optimizer)
    give_gradients(model)
    optimizer.step()
    assert type(optimizer.residence) is (HostMemory if place == "cpu" else Files)
    mapped = Path("/proc/self/maps")
    if place == "disk" and mapped.exists():
        assert f"{tmp_path}/state/" in mapped.read_text()
        assert list((tmp_path / "state").iterdir()) == []  # without names: nothing is left behind


def test_a_named_directory_comes_before_scratch(tmp_path):
    memory = {"offload": "disk", "offload_directory": str(tmp_path / "fast")}
    optimizer = build_optimizer(tiny(), config(memory=memory), scratch=tmp_path / "scratch")
    assert optimizer.residence.directory == tmp_path / "fast"


def test_no_room_is_said_before_anything_is_written(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    optimizer = build_optimizer(tiny(), config(memory={"offload": "disk"}), scratch=tmp_path)
    with pytest.raises(GristmillError, match=r"set aside 4 MiB in .*No space left.*memory.offload_directory"):
        init_state(optimizer)


def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    memory = {"offload": "disk", "offload_directory": str(tmp_path / "file" / "inside")}
    with pytest.raises(GristmillError, match=r"memory.offload_directory: cannot make .*inside"):
        build_optimizer(tiny(), config(memory=memory))


def test_blocks_grow_and_hold_what_is_larger_than_they_are(monkeypatch):
    monkeypatch.setattr(offload, "FIRST_BLOCK", 1024)
    monkeypatch.setattr(offload, "LARGEST_BLOCK", 2048)
    place = HostMemory(CPU)
    states = [{"step": torch.tensor(1.0), "a": torch.randn(size)} for size in (200, 100, 3, 5000, 400)]
    placed = [place.place(state) for state in states]
    for state, kept in zip(states, placed, strict=True):
        assert torch.equal(kept["a"], state["a"])
        assert kept["a"].data_ptr() != state["a"].data_ptr()
    blocks = {kept["a"].untyped_storage().data_ptr(): kept["a"].untyped_storage().nbytes() for kept in placed}
    assert list(blocks.values()) == [1024, 2048, 20224, 2048]


def test_errors_of_the_thread_that_writes_come_to_light(tmp_path, monkeypatch):
    monkeypatch.setattr(offload, "PORTION_ELEMENTS", 9000)
    model = tiny()
    optimizer = move_to(optimizer_of(model), Files(CPU, tmp_path, True))
    steps_with(optimizer, model, 1)

    def broken(pairs, left):
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(offload, "_write", broken)
    with pytest.raises(OSError, match="input/output"):
        steps_with(optimizer, model, 2)
