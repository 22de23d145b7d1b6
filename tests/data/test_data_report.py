"""The report: counts that do not depend on chunks, a funnel that adds up, samples, clusters, thresholds."""

from __future__ import annotations

import hashlib
import itertools
import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_rows import CLUSTERS, ORDER, READ, REASONS, RULES, Row, batch_of, make_rows, report_of

from gristmill.data.config import CorpusConfig
from gristmill.data.mixture import settle_mixture
from gristmill.data.report import count, largest_clusters, make_report, merge
from gristmill.data.report.bins import EDGES, cells, histogram
from gristmill.data.report.partial import EXCERPT_CHARACTERS, MEMBERS, SAMPLES
from gristmill.data.report.thresholds import threshold

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
