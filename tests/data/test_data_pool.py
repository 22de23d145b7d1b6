"""The pool of worker processes, and the engines behind one interface."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest

from gristmill.data.pool import FORKS, Pool
from gristmill.errors import GristmillError

HERE = Path(__file__).parent
LOADED: list[bool] = []


def work(task: dict[str, Any]) -> dict[str, Any]:
    """What the workers of these tests do."""
    how = task["how"]
    if how == "user":
        raise GristmillError("file x is broken")
    if how == "defect":
        raise KeyError("oops")
    if how == "exit":
        os._exit(9)
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "print":
        print("not an answer")
    if how == "wait":  # until another task has made the file
        while not Path(task["file"]).exists():
            pass
    if how == "touch":
        Path(task["file"]).touch()
    if how == "load":
        importlib.import_module("pyarrow.parquet")
        importlib.import_module("numpy.linalg")
        LOADED.append(True)
    if how == "compute":
        end = time.process_time() + task["seconds"]
        while time.process_time() < end:
            pass
    if how == "hang":
        Path(task["file"]).write_text(str(os.getpid()))
        while True:
            signal.pause()
    return {"pid": os.getpid(), "number": task.get("number"), "loaded": bool(LOADED)}


def prepare_for_long(task: dict[str, Any]) -> dict[str, Any]:
    return work({"how": "compute", "seconds": 0.5})


@pytest.fixture(autouse=True)
def _workers_find_this_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HERE))


def run(pool: Pool, tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return list(pool("test_data_pool:work", tasks))


def test_results_come_in_the_order_of_the_tasks_whichever_is_done_first(tmp_path: Path) -> None:
    file = str(tmp_path / "made")
    tasks = [{"how": "wait", "file": file, "number": 0}, {"how": "touch", "file": file, "number": 1}]
    tasks += [{"how": "well", "number": number} for number in range(2, 30)]
    with Pool(2) as pool:
        assert [result["number"] for result in run(pool, tasks)] == list(range(30))


def test_workers_are_other_processes_and_serve_every_call() -> None:
    with Pool(2) as pool:
        first = {result["pid"] for result in run(pool, [{"how": "print"}] * 8)}
        second = {result["pid"] for result in run(pool, [{"how": "well"}] * 8)}
    assert os.getpid() not in first
    assert len(first) <= 2
    assert second <= first
    with pytest.raises(ProcessLookupError):  # and they are gone
        for pid in first:
            os.kill(pid, 0)


@pytest.mark.skipif(not FORKS, reason="workers are forked on Linux alone")
def test_workers_have_what_was_prepared_and_are_forked_from_one_thread() -> None:
    with Pool(2) as pool:
        pool.prepare("test_data_pool:work", {"how": "load"})
        found = run(pool, [{"how": "loaded?"}] * 8)
        assert all(result["loaded"] for result in found)
        assert pool._root is not None
        assert len(os.listdir(f"/proc/{pool._root._pid}/task")) == 1
        pool.renew()
        again = run(pool, [{"how": "loaded?"}] * 8)
    assert all(result["loaded"] for result in again)
    assert not {result["pid"] for result in found} & {result["pid"] for result in again}


def test_without_forking_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gristmill.data.pool.FORKS", False)
    with Pool(2) as pool:
        pool.prepare("test_data_pool:work", {"how": "load"})
        found = run(pool, [{"how": "well", "number": number} for number in range(20)])
        assert [result["number"] for result in found] == list(range(20))
        assert os.getpid() not in {result["pid"] for result in found}
        with pytest.raises(GristmillError, match="was killed by signal 9"):
            run(pool, [{"how": "killed"}])
    with pytest.raises(ProcessLookupError):
        os.kill(found[0]["pid"], 0)


def test_processor_time_of_other_processes_is_counted() -> None:
    with Pool(2, "test_data_pool:prepare_for_long") as pool:
        run(pool, [{"how": "well"}] * 2)
        prepared = pool.cpu_seconds
        run(pool, [{"how": "compute", "seconds": 0.2}] * 2)
        assert prepared >= 0.5
        assert pool.cpu_seconds >= prepared + 0.4
    with Pool(1) as pool:
        run(pool, [{"how": "compute", "seconds": 0.1}])
        assert pool.cpu_seconds == 0  # it was this process that took it


def test_an_error_of_what_was_to_be_prepared_comes_before_the_first_task() -> None:
    with Pool(2) as pool:
        pool.prepare("test_data_pool:work", {"how": "user"})
        with pytest.raises(GristmillError, match="file x is broken"):
            run(pool, [{"how": "well"}] * 3)
        pool.prepare("test_data_pool:work", {"how": "well"})
        pool.prepare("test_data_pool:work", {"how": "well"})
        assert len(run(pool, [{"how": "well"}] * 3)) == 3


def test_one_worker_is_this_process() -> None:
    with Pool(1) as pool:
        assert {result["pid"] for result in run(pool, [{"how": "well"}] * 3)} == {os.getpid()}


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ("user", GristmillError, "^file x is broken$"),
        ("defect", RuntimeError, "KeyError: 'oops'"),
        ("exit", GristmillError, "ended with code 9.*--workers 1"),
        ("killed", GristmillError, "was killed by signal 9, most likely for want of memory"),
    ],
)
def test_what_goes_wrong_in_a_worker_is_raised_here(how: str, kind: type[Exception], message: str) -> None:
    with Pool(2) as pool:
        with pytest.raises(kind, match=message):
            run(pool, [{"how": "well"}, {"how": how}, {"how": "well"}])
        assert len(run(pool, [{"how": "well"}] * 2)) == 2  # new workers


def test_a_caller_that_stops_asking_leaves_no_worker_behind() -> None:
    with Pool(2) as pool:
        results: Iterator[dict[str, Any]] = pool("test_data_pool:work", repeat({"how": "well"}))
        pid = next(results)["pid"]
        results.close()  # type: ignore[attr-defined]
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    script = (
        "import sys; from gristmill.data.pool import FORKS, Pool\n"
        "list(Pool(2)('test_data_pool:work', [{'how': 'hang', 'file': sys.argv[1]}, {'how': 'well'}]))"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, str(file)])
    while not (file.exists() and file.read_text()):
        assert parent.poll() is None
    worker = int(file.read_text())
    parent.kill()
    parent.wait()
    stat = Path(f"/proc/{worker}/stat")
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":  # it hangs for ever, or ends
        pass
