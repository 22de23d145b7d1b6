"""Stage `collected` killed at any moment, on Ray, and on more input than memory should hold. Long tests."""

from __future__ import annotations

import gzip
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from collecting import page, tarred, warc

SCRIPT = """
import resource, sys
from pathlib import Path
from collecting import only, run_in
from dataclasses import replace
from gristmill.artifact import prepare_partial
from gristmill.data.collect import collect, plan
from gristmill.data.config import PathSource
out, path, workers, engine = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
plan.SPLIT_BYTES, plan.SMALL_BYTES = int(sys.argv[5]), int(sys.argv[6])
prepare_partial(out, "fingerprint")
collect(only(paths=(PathSource(path=path, domain="mine"),)), replace(run_in(out, workers), engine=engine))
status = Path("/proc/self/status").read_text()  # the own figure of getrusage holds that of the process that forked
own = int(status.partition("VmHWM:")[2].split()[0])
print(own // 1024, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)
"""


def start(out: Path, path: Path, workers: int, engine: str = "local", split: int = 1 << 20) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, out, path, workers, engine, split, split // 4]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent)


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """About 12 MB of text in files of several kinds, some of them damaged."""
    source = random.Random(5)
    words = ["grist", "mill", "wheel", "flour", "mühle", "the", "of", "and"]

    def text(count: int) -> str:
        return " ".join(source.choice(words) for _ in range(count))

    root = tmp_path / "mixed"
    root.mkdir()
    rows = "".join(json.dumps({"text": text(200)}) + "\n" if n % 50 else "damaged\n" for n in range(3000))
    (root / "a.jsonl").write_text(rows)
    (root / "b.jsonl.gz").write_bytes(gzip.compress(rows.encode())[:-1000])
    pq.write_table(pa.table({"text": [text(300) for _ in range(1500)]}), root / "c.parquet", row_group_size=200)
    (root / "d.warc.gz").write_bytes(warc({f"http://a/{n}": page(text(400)) for n in range(700)})[0])
    (root / "e.tar.gz").write_bytes(tarred({f"{n}.txt": text(300).encode() for n in range(700)}, "w:gz"))
    return root


@pytest.mark.slow
def test_a_killed_stage_gives_the_same_bytes(
    tmp_path: Path, mixed: Path, tree: Callable[[Path], dict[str, str]]
) -> None:
    begun = time.monotonic()
    assert start(tmp_path / "whole", mixed, 1).wait() == 0
    usual = time.monotonic() - begun
    source = random.Random(7)
    kills = 0
    while True:
        run = start(tmp_path / "cut", mixed, source.choice([1, 2]))
        try:
            assert run.wait(usual * source.uniform(0.3, 0.7) * (1 + kills / 8)) == 0
            break
        except subprocess.TimeoutExpired:
            run.send_signal(signal.SIGKILL)
            run.wait()
            kills += 1
    assert kills
    assert tree(tmp_path / "cut") == tree(tmp_path / "whole")


@pytest.mark.slow
def test_ray_gives_the_same_bytes(tmp_path: Path, mixed: Path, tree: Callable[[Path], dict[str, str]]) -> None:
    pytest.importorskip("ray")
    assert start(tmp_path / "local", mixed, 2).wait() == 0
    assert start(tmp_path / "ray", mixed, 2, "ray").wait() == 0
    assert tree(tmp_path / "ray") == tree(tmp_path / "local")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_memory_does_not_grow_with_the_input(tmp_path: Path, name: str) -> None:
    row = {"text": "The mill grinds grist of every kind. " * 100}
    lines = (json.dumps(row) + "\n").encode() * 1000
    if name == "a.parquet":
        with pq.ParquetWriter(tmp_path / name, pa.schema([("text", pa.string())]), compression="none") as writer:
            for _ in range(5):  # row groups of 37 MB without dictionary
                writer.write_table(pa.table({"text": [row["text"] + str(n) for n in range(10_000)]}))
    else:
        with (gzip.open if name.endswith("gz") else open)(tmp_path / name, "wb") as file:  # type: ignore[operator]
            for _ in range(50):
                file.write(lines)
    run = start(tmp_path / "out", tmp_path / name, 2, split=64 << 20)
    output, _ = run.communicate()
    assert run.returncode == 0
    assert max(map(int, output.split())) < 260  # MB a process
