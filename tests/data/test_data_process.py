"""Stage `corpus` as a whole: what it writes, that it always writes the same, and that its accounts add up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from document_tables import CORPUS, first_reasons
from gristmill.artifact import StageRun
from gristmill.data.config import CorpusConfig, MixtureConfig, NearDuplicateConfig, PrivacyConfig
from gristmill.data.corpus import domains, mixture_weights, read_documents
from gristmill.data.kernel import shingles
from gristmill.data.process import process
from gristmill.data.process.compare import prefer_sound
from gristmill.data.schema import DOCUMENTS, ROW_GROUP_ROWS, Document, TableWriter
from gristmill.data.step import Rule, Step, check_chain, first_broken
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
        document(prose(90, 150) + "\nWrite to ann@mill.org or 81.169.145.78.", "letter"),
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
    assert figures["removed"] == {"empty": 1, "exact_duplicate": 1, "gopher_quality": 1, "near_duplicate": 1}
    assert figures["documents"] == len(kept)


def test_tables_have_the_columns_that_the_chain_writes(
    planted: list[Document], stage_run: Make, collected: Callable[..., Path]
) -> None:
    run = stage_run(collected=collected(planted))
    process(CorpusConfig(), run)
    documents = pq.read_schema(run.out / "documents" / "part-00000.parquet")
    removed = pq.read_schema(run.out / "removed" / "part-00000.parquet")
    assert documents.names[:9] == [*DOCUMENTS.names, "bytes"]
    assert documents.names[-3:] == ["cluster", "cluster_size", "split"]
    assert removed.names == [*documents.names[:-1], "reason", "duplicate_of", "similarity"]
    assert {"pii_email", "language_score", "words", "top_2gram"} < set(documents.names)
    assert not {"digest", "signature", "kept"} & set(documents.names)
    for field in CORPUS:
        assert documents.field(field.name).equals(field)
    text = read_documents(run.out)
    assert text["bytes"].to_pylist() == pc.binary_length(text["text"]).to_pylist()

    signatures = pq.read_table(run.out / "signatures")
    assert signatures.column_names == ["id", "digest", "signature", "kept"]
    both = text["id"].to_pylist(), pq.read_table(run.out / "removed")["id"].to_pylist()
    assert signatures.filter(signatures["kept"])["id"].to_pylist() == both[0]
    assert signatures.filter(pc.invert(signatures["kept"]))["id"].to_pylist() == both[1]


def test_clusters_name_the_document_that_stays(prose: Prose, stage_run: Make, collected: Callable[..., Path]) -> None:
    original, other = prose(1, 300), prose(2, 300)
    texts = {
        "first": original,
        "its copy": original,
        "longer": original + "\nAnd one more line.",
        "alone": other,
        "short": "too short",
        "short again": "too short",
    }
    run = stage_run(collected=collected([document(text, name) for name, text in texts.items()]))
    process(CorpusConfig(), run)
    kept, removed = {row["origin"]: row for row in read_documents(run.out).to_pylist()}, removed_rows(run)
    assert set(kept) == {"longer", "alone"}
    longest = kept["longer"]["id"]
    assert (kept["longer"]["cluster"], kept["longer"]["cluster_size"]) == (longest, 3)
    assert (kept["alone"]["cluster"], kept["alone"]["cluster_size"]) == (kept["alone"]["id"], 1)
    assert removed["first"]["duplicate_of"] == longest
    assert 0.7 <= removed["first"]["similarity"] < 1
    assert removed["its copy"]["duplicate_of"] == removed["first"]["id"]
    assert removed["its copy"]["similarity"] == 1
    assert {removed[name]["cluster"] for name in ("first", "its copy")} == {longest}
    assert removed["short"]["similarity"] is None
    assert (removed["short again"]["cluster"], removed["short again"]["cluster_size"]) == (removed["short"]["id"], 2)


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=12), st.sets(st.integers(0, 4), max_size=2))
def test_the_first_sound_one_stands_for_equal_texts(documents: list[tuple[int, bool]], elsewhere: set[int]) -> None:
    """Documents are (text, broken); what is equal to a text of another corpus repeats that one in any case."""
    number, texts = len(documents), [text for text, _ in documents]
    broken = np.array([bad for _, bad in documents], np.bool_)
    first = np.array([text + number if text in elsewhere else texts.index(text) for text in texts], np.int64)
    first[first == np.arange(number)] = -1
    expected = []
    for place, text in enumerate(texts):
        equal = [other for other in range(number) if texts[other] == text]
        stands = next((other for other in equal if not broken[other]), equal[0])
        stands = text + number if text in elsewhere else stands
        expected.append(-1 if stands == place else stands)
    assert prefer_sound(first, broken).tolist() == expected


def test_a_text_that_one_domain_removes_stays_in_another(
    prose: Prose, stage_run: Make, collected: Callable[..., Path]
) -> None:
    """The web's rules remove the first of three equal texts, those of books do not."""
    text = prose(1, 80)
    documents = [document(text, "page", "web"), document(text, "book"), document(text, "other page", "web")]
    more = [document(prose(seed, 150), f"book {seed}") for seed in range(2, 6)]
    run = stage_run(collected=collected([*documents, *more, document("short", "a"), document("short", "b", "web")]))
    rules = {"web": {"c4": None, "fineweb": None, "quality": {"min_words": 100}}}
    process(CorpusConfig.model_validate({"rules": rules}), run)
    kept = {row["origin"]: row for row in read_documents(run.out).to_pylist()}
    removed = removed_rows(run)
    assert set(kept) == {"book", *(f"book {seed}" for seed in range(2, 6))}
    assert kept["book"]["cluster_size"] == 3
    for name in ("page", "other page"):
        assert removed[name]["reason"] == "exact_duplicate"
        assert removed[name]["duplicate_of"] == removed[name]["cluster"] == kept["book"]["id"]
    assert removed["a"]["reason"] == "gopher_quality:min_words"
    assert (removed["b"]["reason"], removed["b"]["duplicate_of"]) == ("exact_duplicate", removed["a"]["id"])


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
    assert report["problems"] == []
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
        hashes, offsets = shingles(pa.array([row["text"], kept[row["duplicate_of"]]]), 5)
        a, b = set(hashes[: offsets[1]].tolist()), set(hashes[offsets[1] :].tolist())
        assert len(a & b) / len(a | b) >= 0.75
        assert row["similarity"] == pytest.approx(len(a & b) / len(a | b))


def test_privacy_can_drop_or_be_off(planted: list[Document], stage_run: Make, collected: Callable[..., Path]) -> None:
    source = collected(planted)
    drop, off = stage_run("drop", collected=source), stage_run("off", collected=source)
    process(CorpusConfig(privacy=PrivacyConfig(kinds=("ip",), drop=("ip",))), drop)
    assert removed_rows(drop)["letter"]["reason"] == "privacy:ip"
    assert "ann@mill.org" in removed_rows(drop)["letter"]["text"]  # not asked for
    process(CorpusConfig(privacy=None, near_duplicates=None), off)
    kept = {row["origin"]: row["text"] for row in read_documents(off.out).to_pylist()}
    assert "ann@mill.org or 81.169.145.78" in kept["letter"]
    assert "book 4" in kept


def test_reading_by_split_domain_and_columns(
    planted: list[Document], stage_run: Make, collected: Callable[..., Path]
) -> None:
    run = stage_run(collected=collected(planted))
    process(CorpusConfig(mixture=MixtureConfig(weights={"books": 3, "code": 1})), run)
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
        process(CorpusConfig(mixture=MixtureConfig(weights={"books": 1, "poems": 1})), stage_run("a", collected=source))
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


def test_a_table_without_rows_is_still_a_table(prose: Prose, stage_run: Make, collected: Callable[..., Path]) -> None:
    run = stage_run(collected=collected([document(prose(seed, 200), str(seed)) for seed in range(3)]))
    process(CorpusConfig(), run)
    assert pq.read_table(run.out / "removed").num_rows == 0
    assert read_documents(run.out).num_rows == 3


def test_parts_are_runs_of_row_groups(prose: Prose, stage_run: Make, collected: Callable[..., Path]) -> None:
    """Of five row groups two make a part; one whose documents all go has no file in documents/."""
    texts = (
        [prose(seed, 60) for seed in range(1024)] + ["short"] * 2048 + [prose(seed, 60) for seed in range(2000, 4000)]
    )
    source = collected([document(text, str(number)) for number, text in enumerate(texts)])
    run = stage_run(collected=source)
    process(CorpusConfig(part_row_groups=1, near_duplicates=None), run)
    names = {table: sorted(path.name for path in (run.out / table).iterdir()) for table in ("documents", "signatures")}
    assert names["signatures"] == [f"part-0000{i}.parquet" for i in range(5)]
    assert names["documents"] == [f"part-0000{i}.parquet" for i in (0, 3, 4)]
    origins = read_documents(run.out, columns=["origin"])["origin"].to_pylist()
    assert origins == sorted(origins, key=int)
    for table in ("documents", "removed"):
        for path in (run.out / table).iterdir():
            metadata = pq.read_metadata(path)
            assert all(metadata.row_group(i).num_rows <= 1024 for i in range(metadata.num_row_groups))


def test_a_document_longer_than_a_slice_goes_through_in_slices(
    prose: Prose, stage_run: Make, collected: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gristmill.data.process.rows.SLICE_BYTES", 10_000)
    words = [word for seed in range(40) for word in prose(seed, 200).split()]
    line = " ".join(words)  # no newline to cut at
    run = stage_run(collected=collected([document(line, "line"), *(document(prose(s), str(s)) for s in range(90, 95))]))
    process(CorpusConfig(max_document_bytes=4096, near_duplicates=None), run)
    rows = [row for row in read_documents(run.out).to_pylist() if row["origin"].startswith("line#")]
    assert " ".join(row["text"] for row in rows).split() == words
    assert max(len(row["text"].encode()) for row in rows) <= 4096
    assert len({row["id"] for row in rows}) == len(rows)
    assert len({row["split"] for row in rows}) == 1
    assert np.all(np.diff([int(row["origin"].split("#")[1]) for row in rows]) >= 0)


def test_row_groups_do_not_depend_on_how_rows_arrive(prose: Prose, tmp_path: Path) -> None:
    schema = pa.schema([pa.field("text", pa.string()), pa.field("bytes", pa.int64()), pa.field("name", pa.string())])
    texts = [prose(seed, 400) * (1 + seed % 7) for seed in range(600)] + ["x"] * 3000
    columns = {"text": texts, "bytes": [len(text.encode()) for text in texts], "name": [None, "a", "b"] * 1200}
    table = pa.table(columns, schema)
    paths = []
    for size in (1, 700, 5000):
        paths.append(tmp_path / f"{size}.parquet")
        with TableWriter(paths[-1], schema) as writer:
            for batch in table.to_batches(size):
                writer.add(batch)
    assert len({path.read_bytes() for path in paths}) == 1
    metadata = pq.read_metadata(paths[0])
    rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert len(rows) > 4
    assert max(rows) == ROW_GROUP_ROWS
    assert pq.ParquetFile(paths[0]).read().equals(table)


def test_the_first_rule_that_is_broken_is_the_reason() -> None:
    batch = pa.RecordBatch.from_pydict({"a": [1, 5, 5, 1], "b": [1, 1, 9, 9]})
    rules = [
        Rule(f"{name}:large", (name,), lambda rows, name=name: rows[name].to_numpy() > 4)  # type: ignore[misc]
        for name in ("a", "b")
    ]
    assert first_broken(batch, rules).tolist() == [-1, 0, 0, 1]
    assert first_broken(batch, []).tolist() == [-1] * 4
    assert first_reasons(batch, rules) == [None, "a:large", "a:large", "b:large"]


def test_a_chain_whose_steps_do_not_fit_is_refused() -> None:
    words, other = pa.field("words", pa.int64()), pa.field("other", pa.int64())
    count = Step("count", ("text",), (words,), lambda batch: batch)
    rate = Step("rate", ("words",), (other,), lambda batch: batch)
    schema = check_chain([count, rate], DOCUMENTS)
    assert schema.names == [*DOCUMENTS.names, "words", "other"]
    with pytest.raises(ValueError, match="step 'rate' reads words"):
        check_chain([rate, count], DOCUMENTS)
