"""The tokens stage and its reader: documents come back exactly, kills leave no trace, damage is named."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from tokenizer_rooms import VOCAB_SIZE, WEIGHTS, example_shards, files_of, write_corpus
from tokenizer_rooms import stage_run as any_stage_run

from gristmill.artifact import StageRun
from gristmill.errors import GristmillError
from gristmill.events import EventLog
from gristmill.tokenizer import pack as pack_module
from gristmill.tokenizer.config import TokensConfig
from gristmill.tokenizer.encoder import Encoder
from gristmill.tokenizer.pack import pack, token_dtype, write_piece
from gristmill.tokenizer.store import TokenStore
from gristmill.tokenizer.tokenizer import Tokenizer

SPLITS = ("train", "validation")


def stage_run(out: Path, workers: int | None = 1, **inputs: Path) -> StageRun:
    return replace(any_stage_run(out, **inputs), workers=workers)


@pytest.fixture(scope="module")
def packed(corpus: Path, directory: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    run = stage_run(tmp_path_factory.mktemp("packed") / "tokens", corpus=corpus, tokenizer=directory)
    figures = pack(TokensConfig(), run)
    shutil.rmtree(run.scratch)
    return run.out, figures


def documents(split: str, domain: str) -> list[str]:
    rows = [row for shard in example_shards() for row in shard]
    return [row["text"] for row in rows if (row["split"], row["domain"]) == (split, domain)]


def test_every_document_comes_back(packed: tuple[Path, dict[str, Any]], tokenizer: Tokenizer) -> None:
    store = TokenStore.open(packed[0])
    assert store.domains == sorted(WEIGHTS)
    assert store.weights == WEIGHTS
    assert (store.vocab_size, store.tokenizer_hash) == (VOCAB_SIZE, tokenizer.hash)
    for split in SPLITS:
        for domain in store.domains:
            texts = documents(split, domain)
            tokens, offsets = store.tokens(split, domain), store.offsets(split, domain)
            assert isinstance(tokens, np.memmap)
            assert (tokens.dtype, offsets.dtype) == (np.uint16, np.int64)
            assert (offsets[0], offsets[-1], len(offsets)) == (0, len(tokens), len(texts) + 1)
            found = [tokens[start:end].tolist() for start, end in pairwise(offsets)]
            assert found == [[0, *tokenizer.encode(text), 1] for text in texts]
            assert [tokenizer.decode(ids) for ids in found] == texts
            assert store.bytes(split, domain) == sum(len(text.encode()) for text in texts)
            assert store.bytes(split, domain) == tokenizer.token_bytes[tokens].sum()


def test_files_and_meta(packed: tuple[Path, dict[str, Any]], tokenizer: Tokenizer) -> None:
    out, figures = packed
    expected = ["meta.json", *(f"{s}/{d}{end}" for s in SPLITS for d in WEIGHTS for end in (".bin", ".idx.npy"))]
    assert sorted(files_of(out)) == sorted(expected)
    meta = json.loads((out / "meta.json").read_text())
    assert list(meta) == ["vocab_size", "dtype", "tokenizer_hash", "domains"]
    assert list(meta["domains"]["web"]) == ["weight", *SPLITS]
    for split in SPLITS:
        counts = [meta["domains"][domain][split] for domain in WEIGHTS]
        assert figures[f"{split}_tokens"] == sum(count["tokens"] for count in counts)
        assert figures[f"{split}_documents"] == sum(len(documents(split, domain)) for domain in WEIGHTS)
    json.dumps(figures)


def test_uint32_holds_the_same_ids(
    packed: tuple[Path, dict[str, Any]], corpus: Path, directory: Path, tmp_path: Path
) -> None:
    pack(TokensConfig(dtype="uint32"), stage_run(tmp_path, corpus=corpus, tokenizer=directory))
    narrow, wide = TokenStore.open(packed[0]), TokenStore.open(tmp_path)
    assert wide.tokens("train", "code").dtype == np.uint32
    assert np.array_equal(wide.tokens("train", "code"), narrow.tokens("train", "code"))


class Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", [0, 1, 2, 4, 5, 7, 16, 17])
def test_a_killed_stage_ends_the_same(
    moment: int,
    packed: tuple[Path, dict[str, Any]],
    corpus: Path,
    directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Cut off at the n-th rename: before the first piece, at the end of one, while joining, before meta.json."""
    monkeypatch.setattr(pack_module, "ROW_GROUPS_PER_PIECE", 3)
    run = stage_run(tmp_path, corpus=corpus, tokenizer=directory)
    renames = 0
    rename = pack_module.os.replace

    def killed_rename(source: Path, target: Path) -> None:
        nonlocal renames
        if renames == moment:
            raise Killed
        renames += 1
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(pack_module.os, "replace", killed_rename)
        with pytest.raises(Killed):
            pack(TokensConfig(), run)
    torn = run.scratch / ".part-00001-00000.0badc0de.writing" / "train"  # work on a second piece
    torn.mkdir(parents=True)
    (torn / "code.bin").write_bytes(b"torn")
    pack(TokensConfig(), run)
    assert files_of(tmp_path) == files_of(packed[0])


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_makes_the_same(
    workers: int,
    packed: tuple[Path, dict[str, Any]],
    corpus: Path,
    directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pack_module, "ROW_GROUPS_PER_PIECE", 1)
    monkeypatch.setattr(pack_module, "BATCH_ROWS", 7)
    run = stage_run(tmp_path, workers, corpus=corpus, tokenizer=directory)
    figures = pack(TokensConfig(), run)
    assert files_of(tmp_path) == files_of(packed[0])
    measured = ("bytes_per_second", "cpu_seconds", "mb_per_cpu_second")
    assert {k: v for k, v in figures.items() if k not in measured} == {
        k: v for k, v in packed[1].items() if k not in measured
    }


def test_a_tokenizer_that_no_compiled_encoder_knows(
    corpus: Path, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library itself encodes in the workers, which are forked from a process that has loaded it."""
    shutil.copytree(directory, tmp_path / "tokenizer")
    path = tmp_path / "tokenizer" / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"normalizer": {"type": "Lowercase"}}))
    tokenizer = Tokenizer.load(tmp_path / "tokenizer")
    assert Encoder.of(tokenizer.backend) is None
    monkeypatch.setattr(pack_module, "ROW_GROUPS_PER_PIECE", 3)
    run = stage_run(tmp_path / "out", 2, corpus=corpus, tokenizer=tmp_path / "tokenizer")
    pack(TokensConfig(), run)
    store = TokenStore.open(run.out)
    for domain in store.domains:
        tokens, offsets = store.tokens("train", domain), store.offsets("train", domain)
        expected = [[0, *tokenizer.encode(text), 1] for text in documents("train", domain)]
        assert [tokens[start:end].tolist() for start, end in pairwise(offsets)] == expected


KILLED_RUN = """
import sys
from dataclasses import replace
from pathlib import Path
from tokenizer_rooms import stage_run
from gristmill.events import EventLog
from gristmill.tokenizer import pack
from gristmill.tokenizer.config import TokensConfig
pack.ROW_GROUPS_PER_PIECE = 1
out, corpus, tokenizer = map(Path, sys.argv[1:])
log = EventLog(None)
log.subscribers.append(lambda event: print(event["type"], flush=True))
run = stage_run(out, corpus=corpus, tokenizer=tokenizer)
pack.pack(TokensConfig(), replace(run, log=log.stage("tokens"), workers=2))
"""


@pytest.mark.slow
@pytest.mark.parametrize("lines", [1, 2, 3, 5, 8])
def test_kill_9_loses_only_what_was_under_way(
    lines: int, packed: tuple[Path, dict[str, Any]], corpus: Path, directory: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", KILLED_RUN, str(tmp_path), str(corpus), str(directory)]
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(pack_module.__file__).parents[2])])
    environment = os.environ | {"PYTHONPATH": paths}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for _ in range(lines):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    finished = {path.name for path in (tmp_path / "_scratch").glob("part-*")}
    assert len(finished) >= lines - 1  # one line comes before the first piece
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "_scratch").glob("part-*/*/*")}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    assert files_of(tmp_path) == files_of(packed[0])
    assert {path: path.stat().st_mtime_ns for path in made} == made


@pytest.mark.slow
def test_ray_makes_the_same(
    packed: tuple[Path, dict[str, Any]],
    corpus: Path,
    directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setattr(pack_module, "ROW_GROUPS_PER_PIECE", 1)
    run = stage_run(tmp_path, corpus=corpus, tokenizer=directory)
    pack(TokensConfig(), replace(run, engine="ray", workers=2))
    assert files_of(tmp_path) == files_of(packed[0])


def test_a_worker_of_an_earlier_run_puts_nothing_in(corpus: Path, directory: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(directory)
    (tmp_path / "run").write_text("the later one")
    task = {"tokenizer": str(directory), "hash": tokenizer.hash, "dtype": "uint16", "run": "the earlier one"}
    task |= {"shard": str(corpus / "documents" / "part-00000.parquet"), "row_groups": [0]}
    with pytest.raises(RuntimeError, match="another run has begun"):
        pack_module.write_piece(task | {"piece": str(tmp_path / "part-00000-00000")})
    assert not (tmp_path / "part-00000-00000").exists()


def test_another_tokenizer_in_the_same_directory_is_noticed(
    corpus: Path, directory: Path, tmp_path: Path, any_directory: Path
) -> None:
    """Whoever packs twice in one process must not encode with the tokenizer of the first time."""
    place = tmp_path / "tokenizer"
    for number, source in enumerate((directory, any_directory)):
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(source, place)
        run = stage_run(tmp_path / str(number), corpus=corpus, tokenizer=place)
        pack(TokensConfig(), run)
        store = TokenStore.open(run.out)
        tokens, offsets = store.tokens("train", "web"), store.offsets("train", "web")
        expected = Tokenizer.load(place).encode(documents("train", "web")[-1])
        assert tokens[offsets[-2] : offsets[-1]].tolist() == [0, *expected, 1]


def test_a_finished_piece_is_not_encoded_again(corpus: Path, directory: Path, tmp_path: Path) -> None:
    run = stage_run(tmp_path, corpus=corpus, tokenizer=directory)
    pack(TokensConfig(), run)
    assert pack(TokensConfig(), run)["bytes_per_second"] == 0


def test_progress_counts_documents(corpus: Path, directory: Path, tmp_path: Path) -> None:
    log = EventLog(None)
    events: list[dict[str, Any]] = []
    log.subscribers.append(events.append)
    run = replace(stage_run(tmp_path, corpus=corpus, tokenizer=directory), log=log.stage("tokens"))
    pack(TokensConfig(), run)
    total = sum(len(shard) for shard in example_shards())
    last = [event for event in events if event["type"] == "progress"][-1]
    assert (last["done"], last["total"], last["unit"]) == (total, total, "documents")


def test_a_domain_without_validation_documents(directory: Path, tmp_path: Path) -> None:
    rows = [{"domain": "a", "split": "train", "text": "grain"}, {"domain": "b", "split": "train", "text": ""}]
    rows.append({"domain": "b", "split": "validation", "text": "flour"})
    corpus = write_corpus(tmp_path / "c", [rows], {"a": 1.0, "b": 0.0})
    pack(TokensConfig(), stage_run(tmp_path / "out", corpus=corpus, tokenizer=directory))
    store = TokenStore.open(tmp_path / "out")
    assert store.tokens("validation", "a").tolist() == []
    assert store.offsets("validation", "a").tolist() == [0]
    assert store.tokens("train", "b").tolist() == [0, 1]
    assert store.bytes("train", "b") == 0


@pytest.mark.parametrize(
    ("rows", "weights", "complaint"),
    [
        ([], {"a": 1.0}, "holds no documents"),
        ([("a", "validation")], {"a": 1.0}, "no training documents of 'a', which has the weight 1.0"),
        ([("a", "train")], {"a": 0.5, "b": 0.5}, "no training documents of 'b'"),
        ([("a", "train"), ("b", "train")], {"a": 1.0}, r"report\.json gives no weight to the domain 'b'"),
        ([("a", None)], {"a": 1.0}, "of the split None"),
        ([("a", "test")], {"a": 1.0}, "of the split 'test'; known are train and validation"),
        ([("../a", "train")], {"../a": 1.0}, "which cannot be a file's name"),
    ],
)
def test_bad_corpora(
    rows: list[tuple[str, str]], weights: dict[str, float], complaint: str, directory: Path, tmp_path: Path
) -> None:
    shard = [{"domain": domain, "split": split, "text": "grain"} for domain, split in rows]
    corpus = write_corpus(tmp_path / "c", [shard], weights)
    with pytest.raises(GristmillError, match=complaint):
        pack(TokensConfig(), stage_run(tmp_path / "out", corpus=corpus, tokenizer=directory))


def test_a_tokenizer_that_is_not_there(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(GristmillError, match=r"holds no tokenizer\.json"):
        pack(TokensConfig(), stage_run(tmp_path / "out", corpus=corpus, tokenizer=tmp_path))


def test_token_dtype() -> None:
    assert token_dtype("auto", 65_536) == np.uint16
    assert token_dtype("auto", 65_537) == np.uint32
    assert token_dtype("uint32", 300) == np.uint32
    with pytest.raises(GristmillError, match=r"tokens\.dtype is uint16, which cannot hold 65537"):
        token_dtype("uint16", 65_537)
    with pytest.raises(ValidationError, match="dtype"):
        TokensConfig(dtype="int8")  # type: ignore[arg-type]


@pytest.fixture
def damaged(packed: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    shutil.copytree(packed[0], tmp_path / "tokens")
    return tmp_path / "tokens"


def test_missing_meta(damaged: Path) -> None:
    (damaged / "meta.json").unlink()
    with pytest.raises(GristmillError, match=r"is not a tokens artifact: it holds no meta\.json"):
        TokenStore.open(damaged)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"vocab_size": 1}'])
def test_corrupt_meta(damaged: Path, text: str) -> None:
    (damaged / "meta.json").write_text(text)
    with pytest.raises(GristmillError, match=r"meta\.json is corrupt"):
        TokenStore.open(damaged)


@pytest.mark.parametrize(
    ("name", "keep", "complaint"),
    [
        ("train/web.bin", -1, r"train/web\.bin has \d+ bytes, meta\.json says \d+"),
        ("validation/code.bin", None, r"validation/code\.bin is missing"),
        ("train/web.idx.npy", -8, r"train/web\.idx\.npy is not readable"),
        ("train/web.idx.npy", 0, r"train/web\.idx\.npy is not readable"),
        ("train/web.idx.npy", None, r"train/web\.idx\.npy is not readable"),
    ],
)
def test_damaged_files(damaged: Path, name: str, keep: int | None, complaint: str) -> None:
    path = damaged / name
    data = path.read_bytes()
    path.unlink()
    if keep is not None:
        path.write_bytes(data[:keep])
    with pytest.raises(GristmillError, match=complaint):
        TokenStore.open(damaged)


def test_an_index_of_other_tokens(damaged: Path) -> None:
    shutil.copy(damaged / "train" / "code.idx.npy", damaged / "train" / "web.idx.npy")
    with pytest.raises(GristmillError, match=r"train/web\.idx\.npy does not fit meta\.json"):
        TokenStore.open(damaged)


def test_unknown_split_or_domain(packed: tuple[Path, dict[str, Any]]) -> None:
    store = TokenStore.open(packed[0])
    for split, domain in [("test", "web"), ("train", "poems")]:
        with pytest.raises(GristmillError, match="splits are train, validation, domains books, code, web"):
            store.tokens(split, domain)


def test_a_task_that_is_done_twice_changes_nothing(corpus: Path, directory: Path, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mark")
    shard = sorted((corpus / "documents").glob("*.parquet"))[0]
    task = {
        "shard": str(shard), "row_groups": [0], "piece": str(tmp_path / "piece"), "tokenizer": str(directory),
        "hash": "h", "dtype": "<u2", "run": "mark",
    }  # fmt: skip
    first = write_piece(task)
    before = {path: path.read_bytes() for path in (tmp_path / "piece").rglob("*") if path.is_file()}
    assert write_piece(task) == first
    assert {path: path.read_bytes() for path in (tmp_path / "piece").rglob("*") if path.is_file()} == before
    assert not list(tmp_path.glob(".*"))
