"""The report as tables, counts of tokens and a page that is whole, loads nothing and runs nothing."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_rows import EVIL, count_words, make_rows, report_of, write_corpus

from gristmill.data.report import figures as words
from gristmill.data.report.html import page
from gristmill.data.report.present import funnel_table, write_report
from gristmill.errors import GristmillError


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
