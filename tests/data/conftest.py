"""Small helpers for the data room's tests: a stage's run, a table of documents, random prose."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from document_tables import write_documents
from gristmill.artifact import StageRun
from gristmill.data.schema import Document
from gristmill.events import StageLog


@pytest.fixture
def stage_run(tmp_path: Path) -> Callable[..., StageRun]:
    """Makes a StageRun in a fresh directory, or in a named one again. `how` are its other fields."""

    def make(name: str = "out", how: dict[str, Any] | None = None, **inputs: Path) -> StageRun:
        out = tmp_path / name
        (out / "_scratch").mkdir(parents=True, exist_ok=True)
        run = StageRun(out=out, scratch=out / "_scratch", inputs=inputs, seed=0, log=StageLog.silent())
        return replace(run, **({"workers": 1} | (how or {})))

    return make


@pytest.fixture
def collected(tmp_path: Path) -> Callable[[list[Document]], Path]:
    """Writes documents as an artifact `collected` would hold them."""

    def write(documents: list[Document], name: str = "collected") -> Path:
        directory = tmp_path / name
        write_documents(directory / "documents", documents)
        return directory

    return write


@pytest.fixture
def prose() -> Callable[..., str]:
    """`prose(seed, words)`: sentences of made-up words and stop words that pass the quality rules."""

    def make(seed: int, words: int = 200, vocabulary: int = 4000) -> str:
        source = random.Random(seed)
        parts, sentence = [], []
        for _ in range(words):
            if source.random() < 0.3:
                sentence.append(source.choice(["the", "of", "and", "to", "with", "that", "have", "be"]))
            else:
                number = source.randrange(vocabulary)
                sentence.append(hashlib.md5(str(number).encode()).hexdigest().translate(_LETTERS)[:6])
            if len(sentence) >= 12:
                parts.append(" ".join(sentence) + ".")
                sentence = []
        parts.append(" ".join([*sentence, "end."]))
        return "\n".join(parts)

    return make


_LETTERS = str.maketrans("0123456789", "ghijklmnop")


@pytest.fixture
def tree() -> Callable[[Path], dict[str, str]]:
    """`tree(directory)`: relative path -> sha256 of every file that would become part of the artifact."""

    def make(directory: Path) -> dict[str, str]:
        return {
            path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(directory.rglob("*"))
            if path.is_file() and "_scratch" not in path.parts
        }

    return make
