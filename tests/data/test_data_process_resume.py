"""Stage `corpus` in parallel, on Ray, cut short, and over an earlier artifact: always the same bytes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from glob import glob
from pathlib import Path
from typing import Any

import pytest

from document_tables import write_documents
from gristmill.artifact import Manifest, StageRun, build
from gristmill.data.config import CorpusConfig
from gristmill.data.process import process, reuse
from gristmill.data.process.reuse import annotation_key
from gristmill.data.schema import Document, row_groups
from gristmill.events import StageLog

Make = Callable[..., StageRun]
Prose = Callable[..., str]
Tree = Callable[[Path], dict[str, str]]

SMALL: dict[str, Any] = {"max_document_bytes": 2048, "part_row_groups": 1}


def documents(prose: Prose, number: int) -> list[Document]:
    """Documents of all kinds: copies, near copies, short ones, long ones, mail addresses, code; in many row groups, of
    one of which nothing stays."""
    found = []
    for seed in range(number):
        text, domain = prose(seed, 60 + seed % 50), ("books", "web", "docs")[seed % 3]
        text = {
            5: "too short",
            6: prose(seed - 6, 60 + (seed - 6) % 50),
            7: prose(seed - 7, 60 + (seed - 7) % 50) + " And some more words at the end.",
            8: text + "\nWrite to ann@mill.org.",
            9: "\n".join(f"def f{seed}_{i}(a, b):\n    return a * {i} + b\n" for i in range(20)),
        }.get(seed % 10, text)
        text = f"short {seed}" if 80 <= seed < 210 else text
        found.append(Document(text, "test", "code" if seed % 10 == 9 else domain, "en", "CC0-1.0", f"{seed}"))
    found.insert(
        40, Document("\n\n".join(prose(s, 100) for s in range(9000, 9010)), "test", "books", "en", "x", "long")
    )
    return found


@pytest.fixture
def source(prose: Prose, collected: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    with monkeypatch.context() as small:  # in this process and for this table alone
        small.setattr("gristmill.data.schema.ROW_GROUP_ROWS", 100)
        found = collected(documents(prose, 700))
    assert len(list(row_groups(found / "documents"))) == 8
    return found


@pytest.fixture
def whole(source: Path, stage_run: Make) -> StageRun:
    """What an undisturbed run with one worker makes."""
    run = stage_run("whole", collected=source)
    process(CorpusConfig(**SMALL), run)
    report = json.loads((run.out / "report.json").read_text())
    families = {reason.partition(":")[0] for reason in report["removed"]}
    assert {"exact_duplicate", "near_duplicate", "gopher_quality"} <= families
    return run


def test_two_workers_make_the_same(source: Path, whole: StageRun, stage_run: Make, tree: Tree) -> None:
    two = stage_run("two", {"workers": 2}, collected=source)
    process(CorpusConfig(**SMALL), two)
    assert tree(two.out) == tree(whole.out)


@pytest.mark.slow
def test_ray_makes_the_same(source: Path, whole: StageRun, stage_run: Make, tree: Tree) -> None:
    run = stage_run("ray", {"workers": 2, "engine": "ray"}, collected=source)
    process(CorpusConfig(**SMALL), run)
    assert tree(run.out) == tree(whole.out)


def test_a_cut_run_goes_on_with_what_is_there(source: Path, whole: StageRun, stage_run: Make, tree: Tree) -> None:
    cut = stage_run("cut", collected=source)
    shutil.copytree(whole.out, cut.out, dirs_exist_ok=True)
    scratch = cut.scratch
    (scratch / "annotated" / "0000001.parquet").unlink()
    (scratch / "annotated" / "0000002.parquet").write_bytes(b"PAR1 half")
    (scratch / ".annotated-0000001.parquet.ab-12.writing").write_bytes(b"PAR1 half")
    for part in (1, 3):
        (scratch / "written" / f"{part:05d}.json").unlink()
    (cut.out / "documents" / "part-00001.parquet").write_bytes(b"PAR1 half")
    (cut.out / "removed" / "part-00003.parquet").unlink()
    (cut.out / "documents" / "part-00099.parquet").write_bytes(b"of another run")
    (cut.out / "report.json").unlink()
    untouched = {name: (cut.out / "documents" / name).stat().st_mtime_ns for name in ("part-00000.parquet",)}
    untouched |= {name: (scratch / "annotated" / name).stat().st_mtime_ns for name in ("0000000.parquet",)}
    process(CorpusConfig(**SMALL), cut)
    assert tree(cut.out) == tree(whole.out)
    assert not list(scratch.glob(".*.writing"))
    assert (cut.out / "documents" / "part-00000.parquet").stat().st_mtime_ns == untouched["part-00000.parquet"]
    assert (scratch / "annotated" / "0000000.parquet").stat().st_mtime_ns == untouched["0000000.parquet"]


def test_scratch_of_other_settings_is_not_used(source: Path, whole: StageRun, stage_run: Make, tree: Tree) -> None:
    other = stage_run("other", collected=source)
    process(CorpusConfig(**SMALL, privacy=None), other)
    process(CorpusConfig(**SMALL), other)
    assert tree(other.out) == tree(whole.out)


def test_a_worker_that_outlived_its_run_puts_nothing_in_place(tmp_path: Path) -> None:
    from gristmill.data.process.work import Place

    old = Place.begin(tmp_path, "key")
    out = tmp_path / "annotated" / "0000000.parquet"
    with pytest.raises(RuntimeError, match="another run"), old.writing(out) as temporary:
        temporary.write_bytes(b"late")
        Place.begin(tmp_path, "key")
        temporary.write_bytes(b"later")
    assert not out.exists()


SCRIPT = """
import sys
from pathlib import Path
from gristmill.artifact import StageRun
from gristmill.events import StageLog
from gristmill.data.config import CorpusConfig
from gristmill.data.process import process
out, config, workers = Path(sys.argv[1]), CorpusConfig.model_validate_json(sys.argv[3]), int(sys.argv[4])
process(config, StageRun(out, out / "_scratch", {"collected": Path(sys.argv[2])}, 0, StageLog.silent(), None, workers))
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    "reached",
    [
        "run",
        "annotated/*.parquet",
        "judged/*.npy",
        "near/*/signatures-*",
        "near/*/verdicts-*",
        "decided.npy",
        "written/*",
    ],
)
def test_kill_minus_nine_then_again(
    reached: str, workers: int, source: Path, whole: StageRun, stage_run: Make, tree: Tree
) -> None:
    killed = stage_run("killed", collected=source)
    arguments = [str(killed.out), str(source), CorpusConfig(**SMALL).model_dump_json(), str(workers)]
    running = subprocess.Popen([sys.executable, "-c", SCRIPT, *arguments])
    # `glob.glob` finds nothing where a directory goes while it looks; `Path.glob` raises.
    while not glob(str(killed.scratch / reached)) and running.poll() is None:
        time.sleep(0.001)
    assert running.poll() is None, "it was done before it could be killed"
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    process(CorpusConfig(**SMALL), killed)
    assert tree(killed.out) == tree(whole.out)


# --- over an earlier artifact ---

DECIDING: dict[str, dict[str, Any]] = {
    "split": {"validation_fraction": 0.2, "min_validation_works": 1},
    "weights": {"mixture": {"temperature": 0.1}},
    "near_duplicates": {"near_duplicates": {"threshold": 0.95, "bands": 14, "rows": 8}},
    "bands": {"near_duplicates": {"bands": 8, "rows": 14}},
    "language": {"language": {"allowed": ["de"], "min_score": 0.3}},
    "quality": {"rules": {"books": {"quality": {"min_words": 80}}}},
    "no repetition": {"rules": {"web": {"repetition": None}}},
    "repetition": {"rules": {"docs": {"repetition": {"max_top_ngram": {"2": 0.001}}}}},
    "code": {"rules": {"code": {"code": {"min_words": 200}}}},
    "c4": {"rules": {"web": {"c4": {"min_sentences": 9}}}},
    "fineweb": {"rules": {"web": {"fineweb": {"max_newlines_per_word": 0.01}}}},
    "limits": {"rules": {"other": {"limits": {"words": {"max": 70}}}, "docs": {"limits": {"words": {"max": 70}}}}},
    "by language": {"rules": {"languages": {"en": {"min_words": 75}}}},
    "privacy": {"privacy": {"drop": ["email"]}},
}


@pytest.fixture
def artifacts(prose: Prose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Manifest]:
    """`make(name, config)` builds corpus `name` of the same collected artifact, over what is there by that name."""

    def collect(config: Any, run: StageRun) -> dict[str, Any]:
        write_documents(run.out / "documents", documents(prose, 300))
        return {}

    common: dict[str, Any] = {"seed": 0, "log": StageLog.silent(), "config": CorpusConfig()}
    source = tmp_path / "collected"
    with monkeypatch.context() as small:
        small.setattr("gristmill.data.schema.ROW_GROUP_ROWS", 100)
        build(source, kind="collection", stage="collected", function=collect, inputs={}, fingerprint="", **common)

    def make(name: str, config: CorpusConfig) -> Manifest:
        common = {"seed": 0, "log": StageLog.silent(), "config": config, "fingerprint": config.model_dump_json()}
        what = {"kind": "corpus", "stage": "corpus", "function": process, "inputs": {"collected": source}}
        return build(tmp_path / name, **what, **common, workers=1)

    return make


def changed(*changes: dict[str, Any]) -> CorpusConfig:
    def merge(old: Any, new: Any) -> Any:
        if isinstance(old, dict) and isinstance(new, dict):
            return old | {key: merge(old.get(key), value) for key, value in new.items()}
        return new

    plain: dict[str, Any] = dict(SMALL)
    for change in changes:
        plain = merge(plain, change)
    return CorpusConfig.model_validate(plain)


def check_reuse(artifacts: Callable[..., Manifest], change: dict[str, Any]) -> None:
    before, after = changed(), changed(change)
    assert not artifacts("over", before).figures["reused_annotations"]
    again = artifacts("over", after)
    fresh = artifacts("fresh", after)
    assert again.figures["reused_annotations"]
    assert not fresh.figures["reused_annotations"]
    assert again.files == fresh.files
    back = artifacts("over", before)  # and once more, from what was taken over
    assert back.figures["reused_annotations"]


def test_changed_thresholds_take_the_annotations_that_are_there(artifacts: Callable[..., Manifest]) -> None:
    everything = changed(*(change for name, change in DECIDING.items() if name not in ("language", "no repetition")))
    check_reuse(artifacts, everything.model_dump(mode="json"))


@pytest.mark.slow
@pytest.mark.parametrize("name", DECIDING)
def test_each_setting_that_decides_takes_the_annotations_that_are_there(
    name: str, artifacts: Callable[..., Manifest]
) -> None:
    change = DECIDING[name]
    if name == "language":
        change = {"language": {"allowed": ["en"], "min_score": 0.3}}
    check_reuse(artifacts, change)


ANNOTATING: list[dict[str, Any]] = [
    {"clean": {"repair_encoding": False}},
    {"max_document_bytes": 4096},
    {"part_row_groups": 3},
    {"language": None},
    {"language": {"characters": 100}},
    {"near_duplicates": None},
    {"near_duplicates": {"ngram": 6}},
    {"near_duplicates": {"bands": 10, "rows": 10}},
    {"privacy": None},
    {"privacy": {"kinds": ["email"]}},
    {"repeated_units": {}},
    {"rules": {"web": {"c4": None}}},
    {"rules": {"books": {"quality": None}}},
    {"rules": {"web": {"c4": {"min_words_per_line": 2}}}},
    {"rules": {"web": {"c4": {"curly_bracket": False}}}},
    {"rules": {"web": {"c4": {"forbidden_phrases": ["x"]}}}},
    {"rules": {"web": {"fineweb": {"short_line_characters": 20}}}},
    {"rules": {"languages": {"en": {"stop_words": ["the"]}}}},
    {"rules": {"packaged_languages": False}},
]


def test_settings_that_annotate_do_not(artifacts: Callable[..., Manifest]) -> None:
    keys = [annotation_key(changed(change), 0) for change in ({}, *ANNOTATING)]
    assert len(set(keys)) == len(keys)
    artifacts("corpus", changed())
    assert not artifacts("corpus", changed({"privacy": None})).figures["reused_annotations"]


@pytest.mark.parametrize(
    ("change", "package"),
    [
        ({"names": {"model": "some-people-sm"}}, "some-people-sm"),
        ({"names": {}}, "spacy"),
        ({"toxicity": {}}, "scikit-learn"),
        ({"toxicity": {}}, "alt-profanity-check"),
    ],
)
def test_another_version_of_a_package_does_not_where_it_is_used(
    change: dict[str, Any], package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = changed(), changed(change)
    before = [annotation_key(config, 0) for config in configs]
    version = reuse._version
    monkeypatch.setattr(reuse, "_version", lambda name: "999" if name == package else version(name))
    after = [annotation_key(config, 0) for config in configs]
    assert before[0] == after[0]
    assert before[1] != after[1]


def test_a_spoilt_artifact_is_not_taken_from(artifacts: Callable[..., Manifest], tmp_path: Path) -> None:
    artifacts("corpus", changed())
    shard = tmp_path / "corpus" / "documents" / "part-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    again = artifacts("corpus", changed(DECIDING["quality"]))
    assert not again.figures["reused_annotations"]
    assert again.files == artifacts("fresh", changed(DECIDING["quality"])).files
