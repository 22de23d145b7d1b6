"""`serve` as a process of its own: ready line, signals, exit."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import torch
torch.set_num_threads(1)
from engine_fixtures import make_model, make_tokenizer
from gristmill.engine import llm
directory = Path(sys.argv[2])
make_tokenizer(directory)
llm.locate_model = lambda path: directory
llm.load_model = lambda path, dtype, device: make_model(max_seq_len=2000)
from gristmill.server.serve import serve
serve(directory, port=0, max_num_seqs=4)
print("left in order")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_lets_streams_finish(tmp_path, number):
    directory = tmp_path / "model"
    tests = Path(__file__).parent.parent / "engine"
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tests), str(directory)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    guard = threading.Timer(60, process.kill)
    guard.start()
    try:
        url = re.fullmatch(r"serving model at (http://127\.0\.0\.1:\d+)/v1\n", process.stdout.readline())[1]
        body = {"prompt": [5], "max_tokens": 500, "temperature": 0, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as reply:
            lines = reply.iter_lines()
            assert next(lines).startswith("data: ")
            process.send_signal(number)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert '"finish_reason":"length"' in rest[-2]
        out, err = process.communicate()
        assert (process.returncode, out, err) == (0, "left in order\n", "")
    finally:
        guard.cancel()
        process.kill()
        process.wait()
