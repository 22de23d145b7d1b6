"""The report: counts that do not depend on chunks, a funnel that adds up, samples, clusters, tokens, the page."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.artifact import write_json
from gristmill.data.config import CorpusConfig
from gristmill.data.mixture import settle_mixture
from gristmill.data.report import count, largest_clusters, make_report, merge
from gristmill.data.report import figures as words
from gristmill.data.report.bins import EDGES, cells, histogram
from gristmill.data.report.html import page
from gristmill.data.report.partial import EXCERPT_CHARACTERS, MEMBERS, SAMPLES
from gristmill.data.report.present import funnel_table, write_report
from gristmill.data.report.thresholds import threshold
from gristmill.data.step import Rule
from gristmill.errors import GristmillError

EVIL = '<img src="https://evil.example/x" onerror="alert(1)"></pre><script>alert(2)</script>&amp;'
REASONS = ("exact_duplicate", "gopher_quality:min_words", "privacy:email", "contaminated:quiz", "near_duplicate")
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("id", "text", "source", "domain", "language", "license", "origin")),
        *((name, pa.string()) for name in ("split", "reason", "duplicate_of")),
        *((name, pa.int64()) for name in ("bytes", "words", "cluster_size")),
        *((name, pa.float32()) for name in ("hash_ratio", "similarity")),
        ("pii_email", pa.int32()),
    ]
)
Row = dict[str, Any]


def rule(reason: str, *reads: str) -> Rule:
    return Rule(reason, reads, lambda batch: np.zeros(len(batch), np.bool_))


RULES = [
    rule("gopher_quality:min_words", "words"),
    rule("gopher_quality:max_symbol_ratio", "hash_ratio", "domain"),
    rule("privacy:email", "pii_email"),
]
ORDER = ["exact_duplicate", *(one.reason for one in RULES), "near_duplicate"]


def make_rows(number: int, seed: int = 0) -> list[Row]:
    source = random.Random(seed)
    rows: list[Row] = []
    for i in range(number):
        reason = source.choice(REASONS) if source.random() < 0.5 else None
        text = " ".join(source.choice(["mill", "é", "東京", EVIL]) for _ in range(source.randrange(1, 60)))
        row = {
            "id": f"{i:016x}",
            "text": text,
            "source": source.choice(["kjv", "pages", EVIL]),
            "domain": source.choice(["books", "web", "poems"]),
            "language": source.choice(["en", "fr"]),
            "license": source.choice(["MIT", "", "public domain"]),
            "origin": f"file {i}",
            "split": None if reason else "validation" if i % 7 == 0 else "train",
            "reason": reason,
            "duplicate_of": f"{source.randrange(4):016x}" if reason in ("exact_duplicate", "near_duplicate") else None,
            "bytes": len(text.encode()),
            "words": len(text.split()),
            "cluster_size": 1 if i > 3 else 9,
            "hash_ratio": source.choice([0.0, 0.1, 0.25, 3.5, None]),
            "similarity": 0.8125 if reason == "near_duplicate" else None,
            "pii_email": source.choice([0, 0, 2, None]),
        }
        rows.append(row)
    return rows


def batch_of(rows: Sequence[Row]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(list(rows), schema=SCHEMA)


CLUSTERS = [f"{i:016x}" for i in range(4)]
READ = {"books": (40, 5000), "web": (60, 9000), "poems": (20, 100)}


def report_of(rows: Sequence[Row], **config: Any) -> dict[str, Any]:
    settings_ = CorpusConfig.model_validate(config)
    part = count(batch_of(rows), RULES, read=READ, clusters=CLUSTERS)
    sizes: dict[str, int] = {}
    for row in rows:
        if row["split"] == "train":
            sizes[row["domain"]] = sizes.get(row["domain"], 0) + row["bytes"]
    return make_report(
        merge([part]),
        settings_,
        settle_mixture(sizes, settings_.mixture),
        order=ORDER,
        rules=RULES,
        near_duplicates={"pairs_compared": 10, "removed": 3},
        evaluation_sets={"quiz": {"items": 40, "too_short": 12}},
        problems=[{"source": "local", "origin": "dump.gz", "problem": "truncated gzip"}],
    )


# ---- counting


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 90), st.lists(st.integers(0, 90), max_size=5), st.randoms(use_true_random=False))
def test_any_chunks_in_any_order_give_the_same_report(number: int, borders: list[int], order: random.Random) -> None:
    rows = make_rows(number)
    whole = merge([count(batch_of(rows), RULES, read=READ, clusters=CLUSTERS)])
    cuts = sorted({0, number, *(border for border in borders if border < number)})
    parts = [
        count(batch_of(rows[a:b]), RULES, read=READ if a == 0 else None, clusters=CLUSTERS)
        for a, b in itertools.pairwise(cuts)
    ] or [count(batch_of([]), RULES, read=READ, clusters=CLUSTERS)]
    order.shuffle(parts)
    parts = json.loads(json.dumps(parts))  # they travel as JSON
    assert json.dumps(merge(parts), sort_keys=True) == json.dumps(whole, sort_keys=True)
    twice = merge([merge(parts[:2]), *parts[2:]])
    assert json.dumps(twice, sort_keys=True) == json.dumps(whole, sort_keys=True)


def test_counts_are_those_of_the_rows() -> None:
    rows = make_rows(120)
    part = count(batch_of(rows), RULES)
    for reason in (*REASONS, None):
        for domain in ("books", "web", "poems"):
            mine = [row for row in rows if row["reason"] == reason and row["domain"] == domain]
            assert part["reasons"][reason or "kept"][domain] == [len(mine), sum(row["bytes"] for row in mine)]
    kept_mit = [row for row in rows if row["license"] == "MIT" and row["reason"] is None]
    assert part["licenses"]["MIT"]["kept"] == [len(kept_mit), sum(row["bytes"] for row in kept_mit)]
    assert sum(part["personal_data"]["email"].values()) == sum(row["pii_email"] or 0 for row in rows)
    distinct = [row for row in rows if row["reason"] != "exact_duplicate"]
    counted = [cell for by_cell in part["histograms"]["words"].values() for cell in by_cell.values()]
    assert sum(documents for documents, _ in counted) == len(distinct)
    assert sum(removed for _, removed in counted) == sum(row["reason"] is not None for row in distinct)
    known = [row for row in distinct if row["hash_ratio"] is not None]
    ratios = [cell for by_cell in part["histograms"]["hash_ratio"].values() for cell in by_cell.values()]
    assert sum(documents for documents, _ in ratios) == len(known)


def test_samples_are_those_of_lowest_hash_with_what_decided() -> None:
    rows = make_rows(200)
    samples = count(batch_of(rows), RULES)["samples"]
    by_id = {row["id"]: row for row in rows}

    def rank(row: Row) -> str:
        return hashlib.blake2b(row["id"].encode(), digest_size=8).hexdigest()

    for key in (*REASONS, "kept/web"):
        fitting = [r for r in rows if (r["reason"] or f"kept/{r['domain']}") == key]
        assert [entry["id"] for entry in samples[key]] == [r["id"] for r in sorted(fitting, key=rank)[:SAMPLES]]
    for entry in samples["gopher_quality:min_words"]:
        row = by_id[entry["id"]]
        assert entry["values"] == {"words": row["words"]}
        assert entry["text"] == row["text"][:EXCERPT_CHARACTERS]
        assert entry["characters"] == len(row["text"])
        assert (entry["source"], entry["origin"], entry["domain"]) == (row["source"], row["origin"], row["domain"])
    assert all("duplicate_of" in entry["values"] for entry in samples["exact_duplicate"])
    two = merge([count(batch_of(rows), RULES, samples=2)], samples=2)
    assert {len(entries) for entries in two["samples"].values()} == {2}


def test_clusters_show_the_kept_one_and_some_members() -> None:
    rows = make_rows(200)
    twins = [int(row["duplicate_of"], 16) if row["duplicate_of"] else -1 for row in rows]
    largest = largest_clusters(np.array(twins), 2)
    counts = {i: twins.count(i) for i in range(4)}
    assert largest.tolist() == sorted(counts, key=lambda i: (-counts[i], i))[:2]
    part = count(batch_of(rows), clusters=[rows[i]["id"] for i in largest])
    report = make_report(
        merge([part]), CorpusConfig(), settle_mixture({"web": 1}, CorpusConfig().mixture), order=ORDER
    )["clusters"]
    assert [cluster["kept"]["id"] for cluster in report["largest"]] == [rows[i]["id"] for i in largest]
    assert [cluster["duplicates"] for cluster in report["largest"]] == [counts[i] for i in largest.tolist()]
    for cluster in report["largest"]:
        assert len(cluster["members"]) == min(cluster["duplicates"], MEMBERS)
        likes = {row["id"] for row in rows if row["duplicate_of"] == cluster["kept"]["id"]}
        assert likes >= {member["id"] for member in cluster["members"]}
        near = [m for m in cluster["members"] if m["values"]["reason"] == "near_duplicate"]
        assert all(member["values"]["similarity"] == 0.8125 for member in near)
    assert report["sizes"] == {"9": sum(row["reason"] is None for row in rows[:4])}


# ---- the grid


@settings(max_examples=200, deadline=None)
@given(st.floats(-1e9, 1e9, allow_nan=False) | st.integers(-5, 5) | st.sampled_from(EDGES[:-1].tolist()))
def test_a_value_lies_in_its_cell(value: float) -> None:
    cell = int(cells(np.array([value], np.float64))[0])
    size = abs(value)
    assert (cell > 0) - (cell < 0) == (value > 0) - (value < 0)
    assert size <= EDGES[abs(cell)]
    assert size == 0 or size > EDGES[abs(cell) - 1]


def test_a_float32_at_an_edge_is_not_above_it() -> None:
    assert cells(np.array([0.1, 0.3, 10], np.float32)).tolist() == cells(np.array([0.1, 0.3, 10])).tolist()
    assert cells(np.array([7], np.int64)).tolist() == cells(np.array([7.0])).tolist()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-50, 1e6, allow_nan=False), min_size=1, max_size=60))
def test_bins_cover_the_values_in_order_and_lose_none(values: list[float]) -> None:
    found: dict[int, int] = {}
    for cell in cells(np.array(values)).tolist():
        found[cell] = found.get(cell, 0) + 1
    drawn = histogram([found, {}])
    assert sum(drawn.rows[0]) == len(values)
    assert sum(drawn.rows[1]) == 0
    assert len(drawn.bins) <= 45
    edges = [edge for span in drawn.bins for edge in span]
    assert edges == sorted(edges)
    for (low, high), number in zip(drawn.bins, drawn.rows[0], strict=True):
        if number:
            near = [v for v in values if low * 0.9999 <= v <= high * 1.0001 or low * 1.0001 <= v <= high * 0.9999]
            assert near


# ---- the report


def test_the_funnel_adds_up() -> None:
    rows = make_rows(150)
    report = report_of(rows)
    steps = report["funnel"]
    names = [step["step"] for step in steps]
    # A reason that the order lacks comes before the near-duplicates.
    reasons = [*ORDER[:-1], "contaminated:quiz", ORDER[-1]]
    assert names == ["collected", "prepared", *reasons, "train", "validation"]
    assert steps[0]["left"]["documents"] == 120
    left = rows
    for step in steps[2:-2]:
        gone = [row for row in left if row["reason"] == step["step"]]
        left = [row for row in left if row["reason"] != step["step"]]
        for side, mine in (("removed", gone), ("left", left)):
            assert step[side]["documents"] == len(mine)
            assert step[side]["bytes"] == sum(row["bytes"] for row in mine)
            assert step[side]["tokens"] == round(step[side]["bytes"] / 4)
            for domain, counts in step[side]["domains"].items():
                assert counts["documents"] == sum(row["domain"] == domain for row in mine)
    assert {row["reason"] for row in left} == {None}
    assert steps[-2]["left"]["documents"] + steps[-1]["left"]["documents"] == len(left)


def test_the_coarse_stages_follow_from_the_families() -> None:
    rows = make_rows(150)
    report = report_of(rows)
    for domain, stages in report["domains"].items():
        mine = [row["reason"] for row in rows if row["domain"] == domain]
        assert stages["collected"] == dict(zip(("documents", "bytes"), READ[domain], strict=True))
        numbers = {name: counts["documents"] for name, counts in stages.items()}
        assert numbers["cut"] == len(mine)
        assert numbers["without_exact_duplicates"] == len(mine) - mine.count("exact_duplicate")
        rules = mine.count("gopher_quality:min_words") + mine.count("contaminated:quiz")
        assert numbers["after_rules"] == numbers["without_exact_duplicates"] - rules
        assert numbers["after_privacy"] == numbers["after_rules"] - mine.count("privacy:email")
        assert numbers["without_near_duplicates"] == mine.count(None) == numbers["train"] + numbers["validation"]


def test_a_report_holds_no_clock_and_repeats_itself() -> None:
    rows = make_rows(80)
    first, second = (json.dumps(report_of(order)) for order in (rows, rows[::-1]))
    assert first == second
    weights = json.loads(first)["weights"]
    assert sum(weights.values()) == pytest.approx(1)
    assert list(json.loads(first)["histograms"]) == ["words", "hash_ratio", "pii_email", "bytes"]


def test_many_sources_are_summed_up() -> None:
    rows = [{**row, "source": f"site {i:03d}"} for i, row in enumerate(make_rows(150))]
    sources = report_of(rows)["sources"]
    assert len(sources) == 101
    assert list(sources)[-1] == "(50 others)"
    total = sum(entry[side]["bytes"] for entry in sources.values() for side in ("kept", "removed"))
    assert total == sum(row["bytes"] for row in rows)


def test_thresholds_are_found_in_the_settings() -> None:
    plain = CorpusConfig().model_dump(mode="json")
    assert threshold(plain, "gopher_quality:min_words", "books") == 50
    assert threshold(plain, "gopher_quality:min_words", "poems") == 50
    assert threshold(plain, "gopher_quality:min_words", "code") is None  # code has no such rules
    assert threshold(plain, "gopher_repetition:max_duplicate_ngrams_5", "web") == 0.15
    assert threshold(plain, "language:min_score", "web") == 0.65
    assert threshold(plain, "language:allowed", "web") is None
    assert threshold(plain, "exact_duplicate", "web") is None
    off = CorpusConfig(language=None).model_dump(mode="json")
    assert threshold(off, "language:min_score", "web") is None


# ---- presenting


def write_corpus(directory: Path, rows: Sequence[Row]) -> Path:
    """An artifact `corpus` with its report, in small row groups."""
    for name, column, mine in (
        ("documents", "split", [row for row in rows if row["reason"] is None]),
        ("removed", "reason", [row for row in rows if row["reason"] is not None]),
    ):
        (directory / name).mkdir(parents=True)
        table = pa.Table.from_pylist(mine, schema=SCHEMA).select(["id", "text", "domain", column])
        pq.write_table(table, directory / name / "part-00000.parquet", row_group_size=16)
    write_json(directory / "report.json", report_of(rows))
    return directory


def count_words(texts: list[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def test_exact_tokens_are_those_of_every_document(tmp_path: Path) -> None:
    rows = make_rows(90)
    corpus = write_corpus(tmp_path / "corpus", rows)
    report = write_report(corpus, tmp_path / "out", count_words, exact=True)
    assert report == json.loads((tmp_path / "out" / "report.json").read_text())
    left = rows
    for step in report["funnel"][1:-2]:
        left = [row for row in left if row["reason"] != step["step"]]
        assert step["left"]["tokens"] == pytest.approx(sum(row["words"] for row in left), abs=1)
    train = {d: [r for r in rows if (r["split"], r["domain"]) == ("train", d)] for d in report["mixture"]["domains"]}
    for domain, entry in report["mixture"]["domains"].items():
        tokens = sum(row["words"] for row in train[domain])
        assert entry["tokens"] == tokens
        assert entry["epochs"] == pytest.approx(entry["weight"] * report["mixture"]["token_budget"] / tokens, rel=1e-3)
    assert report["mixture"]["token_budget"] == sum(row["words"] for row in rows if row["split"] == "train")
    assert report["tokens"]["counted"] == "all documents"
    assert report["tokens"]["documents"] == 90
    assert "Tokens are counted in all 90 documents" in funnel_table(report)


def test_sampled_tokens_are_carried_over_by_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every document of a group has the same bytes per token, a sample is exact."""
    monkeypatch.setattr("gristmill.data.report.tokens.SAMPLE_KEPT", 10)
    monkeypatch.setattr("gristmill.data.report.tokens.SAMPLE_REMOVED", 3)
    rows = make_rows(300)
    for row in rows:
        row["text"] = ("abcd " if row["domain"] == "books" else "ab ") * (1 + int(row["id"], 16) % 5)
        row["bytes"], row["words"] = len(row["text"]), len(row["text"].split())
    corpus = write_corpus(tmp_path / "corpus", rows)
    seen: list[str] = []

    def counted(texts: list[str]) -> list[int]:
        seen.extend(texts)
        return count_words(texts)

    report = write_report(corpus, tmp_path / "out", counted)
    groups = Counter((row["split"], row["reason"], row["domain"]) for row in rows)
    expected = sum(min(number, 3 if reason else 10) for (_, reason, _), number in groups.items())
    assert len(seen) == report["tokens"]["documents"] == expected < 110
    lowest = [row for row in rows if (row["split"], row["domain"]) == ("train", "web")]
    lowest.sort(key=lambda row: hashlib.blake2b(row["id"].encode(), digest_size=8).digest())
    assert report["tokens"]["groups"]["train"]["web"]["tokens"] == sum(row["words"] for row in lowest[:10])
    assert report["tokens"]["counted"] == "a sample"
    assert report["funnel"][1]["left"]["tokens"] == pytest.approx(sum(row["words"] for row in rows), abs=5)
    assert re.search(r"Tokens are estimated from \d+ documents \(.* bytes a token\)", funnel_table(report))
    again = write_report(corpus, tmp_path / "again", count_words)
    assert again == report
    assert (tmp_path / "again" / "report.html").read_bytes() == (tmp_path / "out" / "report.html").read_bytes()


def test_the_table_has_a_line_for_each_step_that_removed_something() -> None:
    report = report_of(make_rows(60))
    lines = funnel_table(report).splitlines()
    assert lines[0].split() == ["step", "removed", "bytes", "left", "bytes", "tokens"]
    busy = [step for step in report["funnel"] if "removed" not in step or step["removed"]["documents"]]
    assert [line.split()[0] for line in lines[2 : 2 + len(busy)]] == [step["step"] for step in busy]
    assert "1 more rule removed nothing." in lines
    assert lines[-1] == "Tokens are estimated at 4 bytes each."


def test_a_directory_without_a_report_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(GristmillError, match=r"report\.json is missing or no corpus report; run stage 'corpus' again"):
        write_report(tmp_path, tmp_path / "out")
    (tmp_path / "report.json").write_text('{"weights": {}}')
    with pytest.raises(GristmillError, match=r"report\.json is missing or no corpus report"):
        write_report(tmp_path, tmp_path / "out")


class Page(HTMLParser):
    """Checks that elements close in order; collects what the page would load and its text."""

    VOID = frozenset(("meta", "img", "br"))

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "data", "srcset", "action")]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_is_whole_loads_nothing_and_runs_nothing(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", make_rows(120))
    write_report(corpus, tmp_path / "out", count_words)
    content = (tmp_path / "out" / "report.html").read_text()
    found = Page()
    found.feed(content)
    found.close()
    assert found.open == []
    assert not found.tags & {"script", "img", "link", "iframe", "object"}
    assert all(address.startswith("#") for address in found.addresses)
    assert "default-src 'none'" in content
    text = "".join(found.words)
    assert EVIL[:40] in text  # shown, not obeyed
    for title in ("Step by step", "Mixture", "What each rule removed", "Values", "Duplicates", "Problems"):
        assert title in text
    assert "truncated gzip" in text
    assert len(re.findall("<svg", content)) > 20


def charts(content: str) -> dict[str, str]:
    """Of all domains together: the name of each histogram, and what it shows."""
    together = content.partition('<section id="histograms">')[2].partition("By domain")[0]
    return {part.partition("</b>")[0]: part for part in together.split("<figcaption><b>")[1:]}


def test_a_histogram_says_for_whom_its_thresholds_are_and_shows_those_in_its_range() -> None:
    rules = {"books": {"quality": {"min_words": 5}}, "web": {"quality": {"min_words": 20}}}
    drawn = charts(page(report_of(make_rows(120), rules=rules | {"other": {"quality": {"min_words": 900}}})))
    words = drawn["words"]
    for cut in ("5 (books)", "20 (web)", "900 (poems)"):
        assert f"gopher_quality:min_words {cut}" in words.partition("</figcaption>")[0]
    lines = re.findall('<line class="cut".*?<title>(.*?)</title>', words)
    assert lines == ["gopher_quality:min_words 5 (books)", "gopher_quality:min_words 20 (web)"]
    alike = charts(page(report_of(make_rows(120))))["hash_ratio"]
    assert "gopher_quality:max_symbol_ratio 0.1</span>" in alike


def test_a_value_that_is_0_everywhere_is_named_but_not_drawn() -> None:
    content = page(report_of([row | {"pii_email": 0} for row in make_rows(60)]))
    assert "pii_email" not in charts(content)
    assert "0 in all documents: pii_email." in content
    assert "pii_email" in charts(page(report_of(make_rows(60))))


def test_what_is_not_looked_for_of_evaluation_sets_is_said() -> None:
    rows = make_rows(120)
    found = Page()
    found.feed(page(report_of(rows)))
    text = "|".join(found.words)
    contaminated = sum(row["reason"] == "contaminated:quiz" for row in rows)
    assert f"of them too short|documents removed|quiz|40|12|{contaminated}|" in text
    assert "Evaluation sets" not in page(report_of(rows) | {"evaluation_sets": {}})


def test_an_empty_part_of_the_report_has_no_section(tmp_path: Path) -> None:
    rows = [row for row in make_rows(60) if row["reason"] is None]
    corpus = write_corpus(tmp_path / "corpus", rows)
    write_report(corpus, tmp_path / "out")
    content = (tmp_path / "out" / "report.html").read_text()
    assert 'id="removed"' not in content
    assert 'id="kept"' in content


@pytest.mark.parametrize(
    ("value", "count_words_", "size", "short", "plain"),
    [
        (0, "0", "0 bytes", "0", "0"),
        (999, "999", "999 bytes", "999", "999"),
        (999.6, "1,000", "1 kB", "1k", "1,000"),
        (1234, "1,234", "1.23 kB", "1.23k", "1,234"),
        (999_600, "999,600", "1 MB", "1M", "1M"),
        (5.5e13, "55,000,000,000,000", "55 TB", "55T", "55T"),
        (0.0123, "0", "0 bytes", "0", "0.0123"),
    ],
)
def test_numbers_as_people_read_them(value: float, count_words_: str, size: str, short: str, plain: str) -> None:
    assert (words.count(value), words.size(value), words.short(value), words.plain(value)) == (
        count_words_,
        size,
        short,
        plain,
    )
