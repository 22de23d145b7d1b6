"""Kills, full disks, missing permissions: the last whole checkpoint is there, and nothing else passes for one."""

import errno
import os
import random
import resource
import shutil
import signal
import sys
import threading

import pytest
import torch

from gristmill.errors import GristmillError
from gristmill.train.checkpoint import Checkpoints, saving, shards
from gristmill.train.checkpoint.directory import HIDDEN
from gristmill.train.parallel.processes import alone

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
# Every call by which a save touches the disk.
DISK = {"write", "writelines", "rename", "replace", "mkdir", "unlink", "rmdir", "open", "close", "__exit__"}


def state(step: int, size: int = 5000) -> dict[str, torch.Tensor]:
    return {"w": torch.full((size,), float(step)), "moment": torch.full((size,), -float(step))}


def checkpoints(directory, asynchronous=False, keep=1, **more) -> Checkpoints:
    made = Checkpoints(directory, keep, 1, asynchronous, alone(), **more)
    made.check_writable()
    return made


def loaded_step(directory, golden=False, size=5000) -> int:
    """The step of what is loaded, after a look at every number of it."""
    made = checkpoints(directory, note=lambda message: pytest.fail(message))
    load = made.load_golden if golden else made.load_latest
    tensors, extra = load(lambda: state(0, size))
    expected = state(extra["step"], size)
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    return extra["step"]


def child(work) -> int:
    """Run `work` in a process of its own and return how it ended (as `os.waitstatus_to_exitcode`)."""
    process = os.fork()
    if process == 0:
        try:
            work()
        except BaseException as error:
            sys.__stderr__.write(repr(error))
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def killed_before(number: int, work) -> int:
    """Run `work` in a process that kills itself right before it touches the disk for the `number`-th time."""
    count = 0

    def watch(frame, event, function):
        nonlocal count
        if event == "c_call" and function.__name__ in DISK:
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    def watched():
        threading.setprofile(watch)
        sys.setprofile(watch)
        work()

    return child(watched)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_killed_between_any_two_touches_of_the_disk_a_save_leaves_the_old_one_or_the_new_one(
    tmp_path, monkeypatch, asynchronous
):
    monkeypatch.setattr(shards, "WRITE_BYTES", 16384)  # several writes a shard
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: None
    )  # what a kill leaves does not depend on it, and it is slow
    base = tmp_path / "base"
    made = checkpoints(base)
    made.save(1, state(1), {"step": 1}, golden=True)
    made.save(2, state(2), {"step": 2})

    found = []
    for number in range(1, 1000):
        directory = tmp_path / str(number)
        shutil.copytree(base, directory)

        def save(directory=directory):
            with checkpoints(directory, asynchronous) as again:
                again.save(3, state(3), {"step": 3})
                if not asynchronous:  # the thread makes the same calls
                    again.save(4, state(4), {"step": 4}, golden=True)

        end = killed_before(number, save)
        assert end in (0, -signal.SIGKILL)
        found.append(loaded_step(directory))
        assert loaded_step(directory, golden=True) in (1, 4)
        checkpoints(directory).save(2, state(5), {"step": 5})  # and the run goes on
        assert loaded_step(directory) == 5
        assert not any(HIDDEN.fullmatch(name) for name in os.listdir(directory))
        shutil.rmtree(directory)
        if end == 0:
            break
    assert number > 30
    assert found == sorted(found)
    assert set(found) == ({2, 3} if asynchronous else {2, 3, 4})


@pytest.mark.slow
@pytest.mark.parametrize("asynchronous", [False, True])
def test_killed_at_random_moments_a_writing_loop_loses_at_most_the_save_under_way(tmp_path, asynchronous):
    """The child says what stands; it is killed after a random number of words, while it writes some 4 MB a save."""
    random.seed(6)
    step = 1
    for _ in range(60):
        reading, writing = os.pipe()
        process = os.fork()
        if process == 0:
            try:
                os.close(reading)
                save_on(tmp_path, asynchronous, step, writing)
            finally:
                os._exit(1)
        os.close(writing)
        words = b""
        for _ in range(random.randrange(1, 40)):
            words += os.read(reading, 1)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        words += os.read(reading, 1 << 20)
        os.close(reading)
        saved = words.count(b"s")
        if step > 1 or saved > 1:
            # What was said to be saved stands; an asynchronous save is said to be when it has begun.
            last = loaded_step(tmp_path, size=500_000)
            assert step - 1 + saved - asynchronous <= last <= step + saved
            step = last + 1
            if last > 10:
                assert loaded_step(tmp_path, golden=True, size=500_000) > last - 10
    assert step > 100


def save_on(directory, asynchronous, first, writing) -> None:
    """Save step after step, with a dot for each tensor that is written and an s for each save that returned."""
    tell, shards._bytes = shards._bytes, lambda tensor: (os.write(writing, b"."), tell(tensor))[1]
    made = checkpoints(directory, asynchronous, keep=2)
    tensors = state(0, 500_000)
    for now in range(first, first + 1000):
        tensors["w"].fill_(now)
        tensors["moment"].fill_(-now)
        made.save(now, tensors, {"step": now}, golden=now % 5 == 0)
        os.write(writing, b"s")


FAULTS = {
    errno.ENOSPC: r"no space is left on the disk \([\d,.]+ MB are free, 0\.0 MB are needed\); make room",
    errno.EDQUOT: "the disk quota is used up; make room",
    errno.EACCES: "there is no permission to write",
    errno.EROFS: "there is no permission to write",
    errno.EIO: "Input/output error",
}


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("number", FAULTS)
def test_a_save_that_fails_says_why_and_leaves_the_last_one(tmp_path, monkeypatch, number, asynchronous):
    made = checkpoints(tmp_path, asynchronous)
    made.save(1, state(1), {"step": 1})
    made.wait()
    with monkeypatch.context() as broken:
        broken.setattr(saving, "write_shard", fails(number))
        with pytest.raises(GristmillError, match=FAULTS[number]) as raised:
            made.save(2, state(2), {"step": 2})
            made.wait()
    assert "the checkpoint of step 2 could not be saved" in str(raised.value)
    assert "step-00000001-0001 stands" in str(raised.value)
    assert sorted(os.listdir(tmp_path)) == ["step-00000001-0001"]
    made.save(3, state(3), {"step": 3})  # said once; with room made, it goes on
    made.wait()
    assert loaded_step(tmp_path) == 3


def fails(number):
    def call(*arguments):
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize("step", ["seal", "write_json", "sync_directory", "rename"])
def test_a_save_that_fails_at_its_end_is_none(tmp_path, monkeypatch, step):
    made = checkpoints(tmp_path)
    made.save(1, state(1), {"step": 1})
    room = "saving" if step == "seal" else "directory"
    place = "os.rename" if step == "rename" else f"gristmill.train.checkpoint.{room}.{step}"
    with monkeypatch.context() as broken:
        broken.setattr(place, fails(errno.ENOSPC))
        with pytest.raises(GristmillError, match="no space is left"):
            made.save(2, state(2), {"step": 2})
    assert loaded_step(tmp_path) == 1
    assert sorted(os.listdir(tmp_path)) == ["step-00000001-0001"]


def test_an_error_of_the_thread_is_raised_at_the_next_call_once(tmp_path, monkeypatch):
    made = checkpoints(tmp_path, asynchronous=True)
    with monkeypatch.context() as broken:
        broken.setattr(saving, "write_shard", fails(errno.ENOSPC))
        made.save(1, state(1), {"step": 1})
        made._thread.join()
    with pytest.raises(GristmillError, match=r"step 1 could not be saved .* there is none before it"):
        made.save(2, state(2), {"step": 2})
    made.save(2, state(2), {"step": 2})
    made.wait()
    assert loaded_step(tmp_path) == 2


def test_a_poll_tells_of_a_save_that_failed_and_does_not_wait_for_one_under_way(tmp_path, monkeypatch):
    made = checkpoints(tmp_path, asynchronous=True)
    made.poll()
    go_on = threading.Event()
    with monkeypatch.context() as broken:
        broken.setattr(saving, "write_shard", lambda path, pieces: go_on.wait(30) and fails(errno.ENOSPC)())
        made.save(1, state(1), {"step": 1})
        made.poll()  # under way
        go_on.set()
        made._thread.join()
    with pytest.raises(GristmillError, match=r"step 1 could not be saved .*no space is left on the disk"):
        made.poll()
    made.poll()  # said once


def test_a_file_that_the_system_cuts_off_is_a_failed_save(tmp_path):
    """A real failing write, in the middle of a shard: the limit on a file's size."""

    def save():
        made = checkpoints(tmp_path)
        made.save(1, state(1), {"step": 1})
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
        with pytest.raises(GristmillError, match=r"step 2 could not be saved .*File too large.* stands"):
            made.save(2, state(2, 500_000), {"step": 2})

    assert child(save) == 0
    assert sorted(os.listdir(tmp_path)) == ["step-00000001-0001"]
    assert loaded_step(tmp_path) == 1


def test_a_directory_that_was_removed_is_said(tmp_path):
    made = checkpoints(tmp_path / "run")
    made.save(1, state(1), {"step": 1})
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(GristmillError, match=r"run is no directory, or was removed meanwhile; there is none before it"):
        made.save(2, state(2), {"step": 2})


def test_older_ones_that_cannot_be_removed_are_noted_only(tmp_path, monkeypatch):
    notes = []
    made = checkpoints(tmp_path, note=notes.append)
    made.save(1, state(1), {"step": 1})
    with monkeypatch.context() as broken:
        broken.setattr(saving, "remove", fails(errno.EACCES))
        made.save(2, state(2), {"step": 2})
    assert len(notes) == 1
    assert "could not be removed: there is no permission" in notes[0]
    assert loaded_step(tmp_path) == 2


def test_an_unwritable_directory_is_refused_before_the_first_step(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(GristmillError, match=r"checkpoints cannot be written to .*file/run: .*no directory"):
        checkpoints(tmp_path / "file" / "run")
    with pytest.raises(GristmillError, match="no space is left on the disk"):
        Checkpoints(tmp_path / "run", 1, 1, False, alone()).check_writable(expected_bytes=1 << 60)
    monkeypatch.setattr(saving.os, "fsync", fails(errno.EROFS))
    with pytest.raises(GristmillError, match="there is no permission to write"):
        checkpoints(tmp_path / "run")
