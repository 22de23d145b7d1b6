"""The engines: one interface, the same results and errors."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gristmill.data.engines import open_mapper
from gristmill.data.pool import Mapper
from gristmill.data.ray_engine import _connect
from gristmill.errors import GristmillError


def double(task: dict[str, Any]) -> dict[str, Any]:
    if task["number"] == "user":
        raise GristmillError("file x is broken")
    return {"twice": 2 * task["number"], "pid": os.getpid()}


@pytest.fixture
def ray_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mapper]:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    with open_mapper("ray", 2, 10) as mapper:
        yield mapper


def test_no_more_workers_than_tasks_are_started() -> None:
    with open_mapper("local", 8, 1) as mapper:
        results = list(mapper("test_data_engines:double", [{"number": 1}, {"number": 2}]))
    assert [result["twice"] for result in results] == [2, 4]
    assert {result["pid"] for result in results} == {os.getpid()}


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(GristmillError, match=r"pip install 'gristmill\[ray\]'"), open_mapper("ray", 2, 10):
        pass


@pytest.mark.slow
def test_ray_gives_results_in_order_and_raises_what_a_user_should_know(ray_here: Mapper) -> None:
    results = list(ray_here("test_data_engines:double", [{"number": number} for number in range(50)]))
    assert [result["twice"] for result in results] == [2 * number for number in range(50)]
    assert ray_here.cpu_seconds > 0
    assert os.getpid() not in {result["pid"] for result in results}
    assert list(ray_here("test_data_engines:double", [])) == []
    with pytest.raises(GristmillError, match=r"^file x is broken$"):
        list(ray_here("test_data_engines:double", [{"number": "user"}]))
    with pytest.raises(RuntimeError, match="TypeError"):
        list(ray_here("test_data_engines:double", [{"number": None}]))


def test_a_cluster_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(address: str, **quiet: Any) -> None:
        raise ConnectionError(f"nobody at {address}")

    context = SimpleNamespace(DataContext=SimpleNamespace(get_current=SimpleNamespace))
    ray = SimpleNamespace(init=init, data=context)
    with socket.socket() as here:
        here.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{here.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", f"ray://{address}")
        with pytest.raises(GristmillError, match=rf"RAY_ADDRESS=ray://{address}: .*refused; start one there"):
            _connect(ray, 2)  # found out before Ray is asked
        here.listen()
        with pytest.raises(GristmillError, match=rf"RAY_ADDRESS=ray://{address}: nobody at ray://{address}; start"):
            _connect(ray, 2)
