"""A small run on disk: a corpus, its tokens, and three tiny models with the files that trained them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from document_tables import write_corpus
from gristmill.artifact import StageRun, write_json
from gristmill.events import StageLog
from gristmill.model.config import ModelConfig
from gristmill.model.decoder import Decoder
from gristmill.tokenizer.config import TokenizerConfig, TokensConfig
from gristmill.tokenizer.pack import pack
from gristmill.tokenizer.tokenizer import Tokenizer
from gristmill.tokenizer.train import train_on_texts
from gristmill.weights.hf import save_model

TEXTS = {
    "books": [
        f"Chapter {i}. The miller ground the corn, and the wheel turned {'again and ' * (i % 4)}again."
        for i in range(14)
    ],
    "code": [f"def f{i}(x: int) -> int:\n    return x + {i}  # ünïcode\n" for i in range(4)],
}


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories by stage name: corpus, tokens, base, sft, dpo."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("run")
    tokenizer_directory = root / "tokenizer"
    tokenizer_directory.mkdir()
    texts = [text for documents in TEXTS.values() for text in documents]
    train_on_texts(TokenizerConfig(vocab_size=320), texts * 3, tokenizer_directory)
    tokenizer = Tokenizer.load(tokenizer_directory)
    write_corpus(root / "corpus", TEXTS)
    write_json(root / "corpus" / "report.json", {"weights": dict.fromkeys(TEXTS, 0.5)})
    inputs = {"corpus": root / "corpus", "tokenizer": tokenizer_directory}
    pack(TokensConfig(), _run(root / "tokens", inputs))
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8,
        intermediate_size=24, max_seq_len=128,
    )  # fmt: skip
    for seed, name in enumerate(("base", "sft", "dpo")):
        save_model(Decoder(config).init_weights(seed), root / name, tokenizer_directory)
    _write_prompts(root / "sft" / "dataset.jsonl", ["Name a river.", "Count to ten."])
    _write_prompts(root / "dpo" / "pairs.jsonl", ["Name a hill."])
    return {name: root / name for name in ("corpus", "tokens", "base", "sft", "dpo")}


@pytest.fixture
def stage_run(tmp_path: Path) -> Callable[..., StageRun]:
    """Makes a StageRun for `inputs` in a fresh directory, or in the one named."""

    def make(inputs: dict[str, Path], name: str = "evaluation") -> StageRun:
        return _run(tmp_path / name, inputs)

    return make


def _run(out: Path, inputs: dict[str, Path]) -> StageRun:
    (out / "_scratch").mkdir(parents=True, exist_ok=True)
    return StageRun(out=out, scratch=out / "_scratch", inputs=inputs, seed=0, log=StageLog.silent())


def _write_prompts(path: Path, prompts: list[str]) -> None:
    path.write_text("".join(json.dumps({"prompt": prompt, "completion": "..."}) + "\n" for prompt in prompts))
