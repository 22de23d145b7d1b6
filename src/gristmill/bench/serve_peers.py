"""The other side of serve_peer_run.py: starting a peer's process, handing it requests, ending it."""

from __future__ import annotations

import json
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from gristmill.errors import GristmillError

from . import serve_peer_run
from .serve_load import Load, Target
from .serve_peer_run import Job

PEERS = {
    "vllm": ("vllm",),
    "transformers": ("transformers", "transformers continuous"),
    "llama.cpp": ("llama.cpp",),
}
GGUF_DTYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
END_SECONDS = 30
TAIL = 2000  # characters of a failed peer's output that are shown


def installed(peer: str, python: str) -> bool:
    """Whether that Python (or PATH, for llama.cpp) has the peer."""
    asked = subprocess.run(
        [python, serve_peer_run.__file__, "--installed", peer], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    return asked.returncode == 0 and asked.stdout.strip() == b"true"


def precision(peer: str, dtype: str) -> str:
    """The types that a peer's weights, and keys and values, are held in."""
    kept = f"the same weights in {dtype}"
    return f"{kept} (GGUF), keys and values in float16" if peer == "llama.cpp" else f"{kept}, keys and values too"


class PeerFailed(GristmillError):
    """A peer's process ended before it answered."""


class Peer:
    """A running peer. `ready_seconds`: from the start of its process to its first token, the model's files made."""

    def __init__(self, name: str, python: str, target: Target, max_num_seqs: int, max_model_len: int):
        self.name = name
        self._scratch = tempfile.TemporaryDirectory(prefix="gristmill-peer-")
        scratch = Path(self._scratch.name)
        gguf = scratch / "model.gguf"
        if name == "llama.cpp":
            _write_gguf(target, gguf)
        job: Job = {
            "peer": name,
            "directory": str(target.directory),
            "gguf": str(gguf),
            "random": target.random,
            "dtype": target.dtype,
            "device": target.device.type,
            "threads": torch.get_num_threads(),
            "max_num_seqs": max_num_seqs,
            "max_model_len": max_model_len,
        }
        path = scratch / "job.json"
        path.write_text(json.dumps(job), encoding="utf-8")
        self._errors = (scratch / "output.txt").open("w+", encoding="utf-8")
        started = perf_counter()
        self._process = subprocess.Popen(
            [python, serve_peer_run.__file__, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        try:
            self._answer()
        except PeerFailed:
            self.close()
            raise
        self.ready_seconds = perf_counter() - started

    def run(self, load: Load, vocab_size: int, turn: int) -> dict[str, Any]:
        """`seconds` and `peak_bytes` of one round."""
        prompts = load.prompts(vocab_size, turn)
        requests = [(ids, output) for ids, (_, output) in zip(prompts, load.lengths, strict=True)]
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended: the answer tells
            self._process.stdin.write(json.dumps({"requests": requests, "temperature": load.temperature}) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            raise PeerFailed(f"{self.name} failed: {self._errors.read()[-TAIL:].strip()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """The end of its input tells it to end; what it started ends with it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()
        self._scratch.cleanup()


def _write_gguf(target: Target, path: Path) -> None:
    from gristmill.weights.gguf_export import export_gguf

    export_gguf(target.model, target.directory, path, GGUF_DTYPES[target.dtype])  # type: ignore[arg-type]
