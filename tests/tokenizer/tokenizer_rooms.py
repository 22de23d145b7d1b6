"""What the tokenizer tests share: a small corpus on disk, a stage's run, and text that is hard to tokenize."""

from __future__ import annotations

import inspect
import json
import json.decoder
import json.scanner
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gristmill.artifact import StageRun
from gristmill.events import StageLog

VOCAB_SIZE = 640
WEIGHTS = {"books": 0.5, "code": 0.3, "web": 0.2}

HARD_TEXTS = [
    "",
    " ",
    "plain words, and more of them",
    "  leading,   inner and trailing   ",
    "line\n\n\nline\r\n\tline \n",
    "Don't they'LL I've 'sblood it'sfoo O'Reilly's",
    "1234567 3.14159 0x1F 12,345,678 ١٢٣ ²³",
    "def f(x):\n    return {'a': x[0] != None}  # done\n\n\tif x:\n\t\tpass\n",
    "naïve café e\u0301 İstanbul straße ſ K",
    "מה נשמע? مرحبا بالعالم",
    "日本語の文章です。你好，世界！한국어",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇨🇭",
    "nul\x00 bell\x07 unit\x1c\x1d\x1e\x1f sep\x85nel\xa0nbsp\u2003em\u3000ideo\u180emongol\ufeffbom",
    "\u200b\u200e\u202e\ufffd\U000f0000\U0010ffff\ufdd0",
    "a" * 300 + "-" * 100 + " " * 50 + "é" * 40,
    "<|im_start|>assistant\n<|im_end|> <|bos|><|eos|><|pad|> <|im_end",
]


def write_corpus(directory: Path, shards: list[list[dict[str, str]]], weights: Mapping[str, float]) -> Path:
    """A corpus artifact with the documented columns; each row gives at least text, domain and split."""
    names = ["id", "text", "source", "domain", "language", "license", "origin", "split"]
    schema = pa.schema([(name, pa.string()) for name in names])
    (directory / "documents").mkdir(parents=True)
    for number, rows in enumerate(shards):
        full = [
            {
                "id": f"{number:08x}{row_number:08x}",
                "source": "s",
                "language": "en",
                "license": "CC0-1.0",
                "origin": "o",
                **row,
            }
            for row_number, row in enumerate(rows)
        ]
        table = pa.Table.from_pylist(full, schema=schema)
        pq.write_table(table, directory / "documents" / f"part-{number:05d}.parquet", row_group_size=64)
    (directory / "report.json").write_text(json.dumps({"weights": dict(weights)}))
    return directory


def example_shards() -> list[list[dict[str, str]]]:
    """Two shards of three domains, about 90 kB, some of it outside ASCII; every fifth document is for validation."""
    sources = [inspect.getsource(json.decoder), inspect.getsource(textwrap)]
    functions = [part for source in sources for part in source.split("\n\n") if part.strip()]
    documents = [{"domain": "code", "text": part} for part in functions]
    nouns = ["miller", "river", "stone", "wheel", "grain", "flour", "Mühle", "café", "水車", "🌾"]
    verbs = ["turns", "grinds", "carries", "doesn't stop", "waits for", "counted 1,024 of"]
    for number in range(240):
        words = [
            f"The {nouns[number % 10]} {verbs[(number + turn) % 6]} the {nouns[(number * turn) % 10]}."
            for turn in range(8)
        ]
        documents.append({"domain": "books", "text": f"Chapter {number}\n\n" + " ".join(words)})
        documents.append(
            {"domain": "web", "text": f"<p>Item {number * 37}: {words[3]}</p>\nhttps://example.org/{number}"}
        )
    documents += [{"domain": "web", "text": text} for text in HARD_TEXTS]
    rows = [{**row, "split": "validation" if index % 5 == 4 else "train"} for index, row in enumerate(documents)]
    return [rows[: len(rows) // 2], rows[len(rows) // 2 :]]


def stage_run(out: Path, seed: int = 7, **inputs: Path) -> StageRun:
    (out / "_scratch").mkdir(parents=True, exist_ok=True)
    return StageRun(out=out, scratch=out / "_scratch", inputs=inputs, seed=seed, log=StageLog.silent())


def files_of(directory: Path) -> dict[str, bytes]:
    """Relative path -> contents of an artifact's files, scratch left out."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and "_scratch" not in path.parts
    }


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}
