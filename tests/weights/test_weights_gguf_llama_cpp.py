"""llama.cpp itself runs what is exported: its perplexity is ours, for every architecture, and so is its greedy text.
Skipped where it is not installed (`llama-perplexity` and `llama-completion` on PATH)."""

from __future__ import annotations

import math
import re
import shutil
import subprocess

import pytest
import torch
from test_weights_gguf_architectures import CASES, byte_level_dir, random_model  # noqa: F401 - a fixture

from gristmill.model.decoder import Decoder
from gristmill.tokenizer.tokenizer import Tokenizer
from gristmill.weights.gguf_export import export_gguf

CONTEXT = 32
TEXT = "".join(f"the cat {n} sat on the mat; hé ran {n * n % 97} times, and 水 <b>was</b>\n" for n in range(12))
PROMPT, LENGTH = "the cat sat.a", 12


def run(program: str, wanted: bytes, *arguments: str) -> list[bytes]:
    """What `wanted` finds in a program's output. It now and then ends before its last lines are written: once more."""
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not on PATH")
    exact = ["-ctk", "f32", "-ctv", "f32", "-fa", "off"]  # keys in half precision would send tokens to other experts
    command = [path, *arguments, *exact, "-t", "1", "--no-warmup"]
    for _ in range(5):
        done = subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL, timeout=120)
        assert done.returncode == 0, done.stderr.decode(errors="replace")[-1000:]
        if found := re.findall(wanted, done.stdout + done.stderr):
            return found
    pytest.fail(f"no {wanted!r} in {(done.stdout + done.stderr).decode(errors='replace')[-1000:]}")


def windows_of(tokenizer: Tokenizer) -> torch.Tensor:
    ids = torch.tensor(tokenizer.encode(TEXT))
    return ids[: len(ids) // CONTEXT * CONTEXT].view(-1, CONTEXT)


def perplexity(model: Decoder, windows: torch.Tensor) -> float:
    """As llama.cpp takes it: the second half of each window is scored."""
    with torch.no_grad():
        scores = model(windows)[:, :-1].log_softmax(-1).gather(2, windows[:, 1:, None])
    return math.exp(-scores[:, CONTEXT // 2 :].mean())


@pytest.mark.parametrize("case", CASES)
def test_llama_cpp_measures_our_perplexity(case, byte_level_dir, tmp_path):  # noqa: F811 - the fixture
    model = random_model(**CASES[case][1])
    export_gguf(model, byte_level_dir, tmp_path / "m.gguf", "f32")
    (tmp_path / "text").write_text(TEXT)
    windows = windows_of(Tokenizer.load(byte_level_dir))
    assert len(windows) > 5
    after_the_last = rb"\[%d\]([0-9.]+)," % len(windows)
    files, size = ("-m", str(tmp_path / "m.gguf"), "-f", str(tmp_path / "text")), str(CONTEXT)
    (theirs,) = run("llama-perplexity", after_the_last, *files, "-c", size, "-b", size)
    # Its GELU comes from a table of half precision, the rest differs in rounding alone.
    assert float(theirs) == pytest.approx(perplexity(model, windows), rel=3e-4)


def test_llama_cpp_writes_our_greedy_text(byte_level_dir, tmp_path):  # noqa: F811 - the fixture
    """A model that counts through the letters: its best token always stands out by far."""
    tokenizer = Tokenizer.load(byte_level_dir)
    model = random_model(tie_embeddings=False, num_layers=1)
    letters = [tokenizer.encode(letter)[0] for letter in "abcdefghijklmnopqrstuvwxyz"]
    with torch.no_grad():
        model.embedding.weight.mul_(10)
        for before, after in zip(letters, letters[1:] + letters[:1], strict=True):
            model.head.weight[after] = model.embedding.weight[before]
    ids = tokenizer.encode(PROMPT)
    for _ in range(LENGTH):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    export_gguf(model, byte_level_dir, tmp_path / "m.gguf", "f32")
    ours = tokenizer.decode(ids)
    assert ours.removeprefix(PROMPT) == "bcdefghijklm"
    run(
        "llama-completion", re.escape(ours.encode()), "-m", str(tmp_path / "m.gguf"), "-p", PROMPT, "-n", str(LENGTH),
        "--temp", "0", "-no-cnv", "-c", "64",
    )  # fmt: skip
