"""Stage `corpus` as a whole: what it writes, that it always writes the same, and that its accounts add up."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from gristmill.artifact import StageRun
from gristmill.data.config import CorpusConfig, NearDuplicateConfig, PrivacyConfig
from gristmill.data.corpus import domains, mixture_weights, read_documents
from gristmill.data.minhash import jaccard, shingles
from gristmill.data.pool import map_tasks
from gristmill.data.process import process
from gristmill.data.schema import CORPUS, REMOVED, Document, row_groups
from gristmill.data.textbatch import TextBatch
from gristmill.errors import GristmillError

Make = Callable[..., StageRun]
Prose = Callable[..., str]
Tree = Callable[[Path], dict[str, str]]


def document(text: str, name: str, domain: str = "books") -> Document:
    return Document(text, "test", domain, "en", "CC0-1.0", name)


@pytest.fixture
def planted(prose: Prose) -> list[Document]:
    """Books, pages and code with one of each thing that should go."""
    books = [document(prose(seed, 150), f"book {seed}") for seed in range(40)]
    code = [
        document("\n".join(f"def f{s}_{i}(a, b):\n    return a * {i} + b\n" for i in range(20)), f"c{s}.py", "code")
        for s in range(8)
    ]
    extra = [
        document(prose(3, 150), "copy of book 3"),
        document(prose(4, 150) + "\nOne more line at the end.", "longer book 4"),
        document("too short", "short"),
        document("  \n ", "blank"),
        document(prose(90, 150) + "\nWrite to ann@mill.org or 8.8.8.8.", "letter"),
        document("\n\n".join(prose(seed, 100) for seed in range(100, 110)), "long book"),
    ]
    return [*books, *code, *extra]


def removed_rows(run: StageRun) -> dict[str, dict[str, str]]:
    return {row["origin"]: row for row in pq.read_table(run.out / "removed").to_pylist()}


def test_what_is_planted_goes_with_its_reason(
    planted: list[Document], stage_run: Make, collected: Callable[..., Path]
) -> None:
    run = stage_run(collected=collected(planted))
    figures = process(CorpusConfig(max_document_bytes=2048), run)
    kept = {row["origin"]: row for row in read_documents(run.out).to_pylist()}
    removed = removed_rows(run)
    assert removed["copy of book 3"]["reason"] == "exact_duplicate"
    assert removed["copy of book 3"]["duplicate_of"] == kept["book 3"]["id"]
    assert removed["book 4"]["reason"] == "near_duplicate"  # the longer one stays
    assert removed["book 4"]["duplicate_of"] == kept["longer book 4"]["id"]
    assert removed["short"]["reason"] == "gopher_quality:min_words"
    assert removed["short"]["duplicate_of"] is None
    assert removed["blank"]["reason"] == "empty"
    assert set(removed) == {"copy of book 3", "book 4", "short", "blank"}
    assert kept["letter"]["text"].endswith("Write to <email> or <ip>.")
    pieces = [origin for origin in kept if origin.startswith("long book")]
    assert pieces == [f"long book#{i}" for i in range(1, len(pieces) + 1)]
    assert len(pieces) > 2
    assert len({kept[origin]["split"] for origin in pieces}) == 1
    assert figures["personal_data"] == {"email": 1, "ip": 1, "phone": 0, "card": 0}
    assert figures["removed"] == {"empty": 1, "exact_duplicate": 1, "gopher_quality": 1, "near_duplicate": 1}
    assert read_documents(run.out).schema.equals(CORPUS)
    assert pq.read_schema(run.out / "removed" / "part-00000.parquet").equals(REMOVED)


def test_the_report_adds_up(planted: list[Document], stage_run: Make, collected: Callable[..., Path]) -> None:
    run = stage_run(collected=collected(planted))
    figures = process(CorpusConfig(), run)
    report = json.loads((run.out / "report.json").read_text())
    kept, removed = read_documents(run.out).to_pylist(), list(removed_rows(run).values())
    for domain, stages in report["domains"].items():
        assert stages["collected"]["documents"] == sum(d.domain == domain for d in planted)
        counts = [count["documents"] for name, count in stages.items() if name not in ("train", "validation")]
        assert counts[1:] == sorted(counts[1:], reverse=True)
        for split in ("train", "validation"):
            rows = [row for row in kept if (row["domain"], row["split"]) == (domain, split)]
            assert stages[split] == {"documents": len(rows), "bytes": sum(len(r["text"].encode()) for r in rows)}
            assert rows
        taken = sum(counts.get(domain, {"documents": 0})["documents"] for counts in report["removed"].values())
        assert taken == sum(row["domain"] == domain for row in removed)
        assert stages["cut"]["documents"] == taken + stages["train"]["documents"] + stages["validation"]["documents"]
    assert figures["documents"] == len(kept)
    assert figures["pieces"] == len(kept) + len(removed)
    assert report["settings"]["near_duplicates"]["threshold"] == 0.7
    assert report["personal_data"]["email"] == {"books": 1, "code": 0}
    assert mixture_weights(run.out) == report["weights"]
    assert sum(report["weights"].values()) == pytest.approx(1)


def test_every_near_duplicate_is_similar_to_one_that_stays(
    prose: Prose, stage_run: Make, collected: Callable[..., Path]
) -> None:
    texts = [prose(seed, 200) for seed in range(10)]
    copies = [f"{text}\n{prose(1000 + i, 4 * i)}" for i, text in enumerate(texts)]
    run = stage_run(collected=collected([document(t, str(i)) for i, t in enumerate(texts + copies)]))
    process(CorpusConfig(near_duplicates=NearDuplicateConfig(threshold=0.75)), run)
    kept = {row["id"]: row["text"] for row in read_documents(run.out).to_pylist()}
    near = [row for row in removed_rows(run).values() if row["reason"] == "near_duplicate"]
    assert len(near) >= 7
    for row in near:
        found = shingles(TextBatch([row["text"], kept[row["duplicate_of"]]]), 5)
        assert jaccard(found.of(0), found.of(1)) >= 0.75


def test_the_same_bytes_from_any_number_of_workers_and_after_a_cut(
    planted: list[Document], prose: Prose, stage_run: Make, collected: Callable[..., Path], tree: Tree
) -> None:
    many = [document(f"{prose(seed, 60)}\n{seed}", f"many {seed}", "web") for seed in range(1100)]
    source = collected(planted + many)
    assert len(list(row_groups(source / "documents"))) > 1
    config = CorpusConfig()
    one, two = stage_run("one", collected=source), stage_run("two", collected=source)
    process(config, one, workers=1)
    process(config, two, workers=2)
    assert tree(one.out) == tree(two.out)

    # As a kill leaves it: some row groups prepared, one half written, half of the output there.
    cut = stage_run("cut", collected=source)
    prepared = cut.scratch / "prepared"
    shutil.copytree(one.scratch / "prepared", prepared)
    (prepared / "000001.parquet").rename(prepared / ".000001.parquet.4242")
    shutil.copytree(one.out / "documents", cut.out / "documents")
    (cut.out / "documents" / "part-00000.parquet").write_bytes(b"PAR1 half")
    (cut.out / "documents" / "part-00007.parquet").write_bytes(b"old")
    untouched = (prepared / "000000.parquet").stat().st_mtime_ns
    process(config, cut)
    assert tree(cut.out) == tree(one.out)
    assert (prepared / "000000.parquet").stat().st_mtime_ns == untouched


@pytest.mark.slow
@pytest.mark.parametrize("prepared_first", [0, 1])
def test_kill_minus_nine_then_again(
    prepared_first: int, prose: Prose, stage_run: Make, collected: Callable[..., Path], tree: Tree
) -> None:
    many = [document(f"{prose(seed, 400)}\n{seed}", f"many {seed}") for seed in range(3000)]
    source = collected(many)
    whole = stage_run("whole", collected=source)
    process(CorpusConfig(), whole)
    script = (
        "import sys\nfrom pathlib import Path\nfrom gristmill.artifact import StageRun\n"
        "from gristmill.events import StageLog\nfrom gristmill.data.process import process\n"
        "from gristmill.data.config import CorpusConfig\nout = Path(sys.argv[1])\n"
        "inputs = {'collected': Path(sys.argv[2])}\n"
        "process(CorpusConfig(), StageRun(out, out / '_scratch', inputs, 0, StageLog.silent()))"
    )
    run = stage_run("killed", collected=source)
    process_ = subprocess.Popen([sys.executable, "-c", script, str(run.out), str(source)])
    deadline = time.monotonic() + 60
    while len(list((run.scratch).glob("prepared/*.parquet"))) < prepared_first and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process_.pid, signal.SIGKILL)
    process_.wait()
    assert not (run.out / "report.json").exists()
    process(CorpusConfig(), run)
    assert tree(run.out) == tree(whole.out)


def test_privacy_can_drop_or_be_off(planted: list[Document], stage_run: Make, collected: Callable[..., Path]) -> None:
    source = collected(planted)
    drop, off = stage_run("drop", collected=source), stage_run("off", collected=source)
    process(CorpusConfig(privacy=PrivacyConfig(kinds=("ip",), action="drop")), drop)
    assert removed_rows(drop)["letter"]["reason"] == "privacy:ip"
    assert "ann@mill.org" in removed_rows(drop)["letter"]["text"]  # not asked for
    process(CorpusConfig(privacy=None, near_duplicates=None), off)
    kept = {row["origin"]: row["text"] for row in read_documents(off.out).to_pylist()}
    assert "ann@mill.org or 8.8.8.8" in kept["letter"]
    assert "book 4" in kept


def test_reading_by_split_domain_and_columns(
    planted: list[Document], stage_run: Make, collected: Callable[..., Path]
) -> None:
    run = stage_run(collected=collected(planted))
    process(CorpusConfig(mixture={"weights": {"books": 3, "code": 1}}), run)
    everything = read_documents(run.out)
    assert domains(run.out) == ["books", "code"]
    assert mixture_weights(run.out) == {"books": 0.75, "code": 0.25}
    expected = [r["text"] for r in everything.to_pylist() if r["split"] == "train" and r["domain"] == "code"]
    found = read_documents(run.out, split="train", domain="code", columns=["text"])
    assert found.column_names == ["text"]
    assert found["text"].to_pylist() == expected
    order = [r["origin"].partition("#")[0] for r in everything.to_pylist()]
    assert order == sorted(order, key=[d.origin for d in planted].index)


def test_mistakes_are_named(
    planted: list[Document], stage_run: Make, collected: Callable[..., Path], tmp_path: Path
) -> None:
    source = collected(planted)
    with pytest.raises(GristmillError, match=r"corpus\.mixture\.weights lacks code and names poems"):
        process(CorpusConfig(mixture={"weights": {"books": 1, "poems": 1}}), stage_run("a", collected=source))
    with pytest.raises(GristmillError, match=r"no document is left.*gopher_quality:min_words"):
        process(CorpusConfig(), stage_run("b", collected=collected([document("short", "x")])))
    with pytest.raises(GristmillError, match=r"holds no part-\*\.parquet"):
        read_documents(tmp_path)
    with pytest.raises(GristmillError, match=r"report\.json is missing"):
        mixture_weights(tmp_path)
    with pytest.raises(ValidationError, match="weights"):
        CorpusConfig(mixture={"weights": {"books": -1}})
    with pytest.raises(ValidationError, match="validation_fraction"):
        CorpusConfig(validation_fraction=0)


def test_one_section_of_the_rules_can_be_changed_alone() -> None:
    rules = CorpusConfig.model_validate({"rules": {"web": {"quality": {"min_words": 7}}}}).rules
    assert rules.web.quality is not None
    assert rules.web.quality.min_words == 7
    assert rules.of("web").page is not None
    assert rules.code.code is not None


def failing(task: dict[str, str]) -> dict[str, str]:
    if task["how"] == "user":
        raise GristmillError("file x is broken")
    if task["how"] == "die":
        os._exit(9)
    return {"pid": str(os.getpid())}


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [("user", GristmillError, "file x is broken"), ("die", RuntimeError, "ended with code 9")],
)
def test_workers_pass_errors_on(how: str, kind: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent)]))
    with pytest.raises(kind, match=message):
        list(map_tasks("test_data_process:failing", [{"how": how}, {"how": how}], workers=2))


def test_workers_are_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent)]))
    results = list(map_tasks("test_data_process:failing", [{"how": "well"}] * 4, workers=2))
    assert len(results) == 4
    assert str(os.getpid()) not in {result["pid"] for result in results}
