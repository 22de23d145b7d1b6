"""Web pages: their main text, their encodings, and the archives that crawls leave, whole and damaged."""

from __future__ import annotations

import gzip
import io
import lzma
import sys
from pathlib import Path

import pytest
from collecting import Collected, page, warc
from fastwarc.warc import ArchiveIterator
from warcio.archiveiterator import ArchiveIterator as WarcioIterator

from gristmill.data.collect import plan
from gristmill.data.collect.pages import HOST, WARC_DATE, write_warc
from gristmill.data.collect.pagetext import check_engine, main_text
from gristmill.errors import GristmillError

PAGES = {
    f"http://x.example/{i}": page(f"This is page {i}. " + "Grist for the mill. " * (20 + 40 * i)) for i in range(6)
}


def names(found: Collected) -> list[str]:
    return [origin.rpartition("/")[2] for origin in found.texts]


def test_main_content_leaves_navigation_out() -> None:
    html = b"<html><body><nav><ul><li><a href='x'>Home</a></li></ul></nav><main><article><h1>Mill</h1><p>"
    html += b"Grist. " * 40 + b"</p></article></main><footer><p>Imprint</p></footer></body></html>"
    text, repaired = main_text(html)
    assert "Grist." in text
    assert "Home" not in text
    assert "Imprint" not in text
    assert not repaired


@pytest.mark.parametrize(
    "declaration", ['<meta charset="iso-8859-1">', "<meta http-equiv=Content-Type content='text/html; charset=latin1'>"]
)
def test_pages_in_other_encodings_are_read(declaration: str) -> None:
    html = f"<html><head>{declaration}</head><body><main><p>Müller mahlt für später.</p></main></body></html>"
    assert "Müller mahlt für später." in main_text(html.encode("latin-1"))[0]
    assert "Müller mahlt" in main_text(html.encode())[0]  # UTF-8 whatever is declared
    greek = "<html><body><main><p>Ο μύλος αλέθει το σιτάρι.</p></main></body></html>".encode("iso-8859-7")
    assert "Ο μύλος" in main_text(greek, charset="iso-8859-7")[0]


def test_trafilatura_is_an_extra_that_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "trafilatura", None)
    with pytest.raises(GristmillError, match=r"pip install 'gristmill\[trafilatura\]'"):
        check_engine("trafilatura")
    (tmp_path / "a.html").write_bytes(page("text"))
    with pytest.raises(GristmillError, match="trafilatura"):
        Collected(tmp_path / "out", tmp_path / "a.html", html="trafilatura")


@pytest.mark.parametrize("packed", [True, False])
def test_a_crawl_gives_its_html_and_plain_text(tmp_path: Path, packed: bool) -> None:
    html, _ = warc({"http://a/1": page("an HTML page")}, packed)
    missing, _ = warc({"http://a/404": page("not found")}, packed, status="404 Not Found")
    plain, _ = warc({"http://a/2": "größer".encode("latin-1")}, packed, Content_Type="text/plain; charset=iso-8859-1")
    image, _ = warc({"http://a/3": b"\x89PNG"}, packed, Content_Type="image/png")
    request, _ = warc({"http://a/4": b"GET / HTTP/1.0\r\n\r\n"}, packed, kind="request")
    wet, _ = warc({"http://a/5": b"extracted text"}, packed, kind="conversion", Content_Type="text/plain")
    name = "crawl.warc.gz" if packed else "crawl.warc"
    (tmp_path / name).write_bytes(html + missing + plain + image + request + wet)
    found = Collected(tmp_path / "out", tmp_path / name)
    assert {k: v.strip() for k, v in found.texts.items()} == {
        f"{name}/http://a/1": "an HTML page",
        f"{name}/http://a/2": "größer",
        f"{name}/http://a/5": "extracted text",
    }
    assert found.problems == {}
    assert found.report["passed_over"] == {
        "responses other than HTML and plain text": 1,
        "responses without success": 1,
    }


def test_transfers_are_decoded_whether_or_not_the_crawler_has_done_it(tmp_path: Path) -> None:
    body = page("encoded page")
    chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    records = [
        warc({"http://a/gzip": gzip.compress(body)}, Content_Encoding="gzip"),
        warc({"http://a/decoded": body}, Content_Encoding="gzip"),
        warc({"http://a/chunked": chunks}, Transfer_Encoding="chunked"),
        warc({"http://a/unchunked": body}, Transfer_Encoding="chunked"),
        warc({"http://a/damaged": gzip.compress(body)[:40]}, Content_Encoding="gzip"),
        warc({"http://a/last": body}),
    ]
    (tmp_path / "a.warc.gz").write_bytes(b"".join(data for data, _ in records))
    found = Collected(tmp_path / "out", tmp_path / "a.warc.gz")
    assert names(found) == ["gzip", "decoded", "chunked", "unchunked", "last"]
    assert {text.strip() for text in found.texts.values()} == {"encoded page"}


def test_damage_costs_the_record_that_it_hits(tmp_path: Path) -> None:
    data, at = warc(PAGES)
    plain, plain_at = warc(PAGES, gzip=False)
    broken = bytearray(data)
    for place in range(at[2] + 60, at[2] + 90):
        broken[place] ^= 0x5A
    long = plain.replace(b"Content-Length: ", b"Content-Length: 99", 1)
    cases = {
        "broken.warc.gz": (bytes(broken), "01345"),
        "junk.warc": (plain[: plain_at[2]] + b"JUNK\r\n\r\n" + plain[plain_at[2] :], "012345"),
        "length.warc": (long, "12345"),
        "cut.warc.gz": (data[: at[4] + 100], "0123"),
        "cut.warc": (plain[:-100], "01234"),
        "head.warc": (plain[: plain_at[3] + 200], "012"),
        "first.warc.gz": (bytes(broken[at[2] :]), "345"),
    }
    for name, (content, expected) in cases.items():
        (tmp_path / name).write_bytes(content)
        found = Collected(tmp_path / "out", tmp_path / name)
        assert "".join(names(found)) == expected, name
        assert sum(len(named) for named in found.problems.values()) == 1, (name, found.problems)
        assert set(found.problems) <= {"broken", "truncated"}


def test_an_archive_compressed_as_a_whole_or_in_another_way(tmp_path: Path) -> None:
    plain, _ = warc(PAGES, gzip=False)
    whole = gzip.compress(plain)
    for name, content in {"a.warc.gz": whole, "b.gz": whole, "c.warc.xz": lzma.compress(plain)}.items():
        (tmp_path / name).write_bytes(content)
        found = Collected(tmp_path / "out", tmp_path / name)
        assert names(found) == list("012345")
        assert found.problems == {}
    (tmp_path / "d.warc.gz").write_bytes(whole[:-30])
    found = Collected(tmp_path / "out", tmp_path / "d.warc.gz")
    assert names(found) == list("01234")
    assert set(found.problems) == {"truncated"}


@pytest.mark.parametrize("packed", [True, False])
def test_a_large_archive_is_cut_into_tasks_without_loss(
    tmp_path: Path, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "a.warc.gz" if packed else "a.warc"
    (tmp_path / name).write_bytes(warc(PAGES, packed)[0])
    whole = Collected(tmp_path / "whole", tmp_path / name)
    assert names(whole) == list("012345")
    monkeypatch.setattr(plan, "SMALL_BYTES", 100)
    for size in (150, 333, 1000, 5000):
        monkeypatch.setattr(plan, "SPLIT_BYTES", size)
        cut = Collected(tmp_path / "cut", tmp_path / name)
        assert (cut.rows, cut.report) == (whole.rows, whole.report)


def test_arc_files_of_old_crawls(tmp_path: Path) -> None:
    body = b"HTTP/1.0 200 OK\r\nContent-Type: text/html\r\n\r\n" + page("an old page")
    head = b"filedesc://old.arc 0.0.0.0 20010101000000 text/plain 77\n1 0 InternetArchive\n"
    head += b"URL IP-address Archive-date Content-type Archive-length\n\n"
    head = head.replace(b" 77\n", b" %d\n" % (len(head) - head.index(b"\n") - 2))
    record = b"http://old.example/ 192.0.2.1 20010101000000 text/html %d\n" % len(body) + body + b"\n"
    (tmp_path / "old.arc").write_bytes(head + record)
    (tmp_path / "old2.arc.gz").write_bytes(gzip.compress(head) + gzip.compress(record))
    found = Collected(tmp_path / "out", tmp_path / "*.arc*")
    assert {k.partition("/")[2]: v.strip() for k, v in found.texts.items()} == {
        "old.arc/http://old.example/": "an old page",
        "old2.arc.gz/http://old.example/": "an old page",
    }


def test_two_pages_of_one_address_are_both_kept(tmp_path: Path) -> None:
    data = warc({"http://a/": page("first visit")})[0] + warc({"http://a/": page("second visit")})[0]
    (tmp_path / "a.warc.gz").write_bytes(data)
    found = Collected(tmp_path / "out", tmp_path / "a.warc.gz")
    assert {k: v.strip() for k, v in found.texts.items()} == {
        "a.warc.gz/http://a/": "first visit",
        "a.warc.gz/http://a/@2": "second visit",
    }
    assert len({row["id"] for row in found.rows}) == 2
    assert found.problems == {"repeated_name": ["a.warc.gz/http"]}


def test_warc_is_read_alike_by_both_libraries_and_is_the_same_each_time(tmp_path: Path) -> None:
    pages = [("a.b", page("Héllo mill.").decode()), ("c", "<p>2</p>")]
    for name in ("one", "two"):
        write_warc(tmp_path / f"{name}.warc.gz", pages)
    data = (tmp_path / "one.warc.gz").read_bytes()
    assert data == (tmp_path / "two.warc.gz").read_bytes()
    fast = [
        (r.headers["WARC-Target-URI"], r.headers["WARC-Date"], r.reader.read())
        for r in ArchiveIterator(io.BytesIO(data))
    ]
    with open(tmp_path / "one.warc.gz", "rb") as file:
        slow = [
            (r.rec_headers["WARC-Target-URI"], r.rec_headers["WARC-Date"], r.content_stream().read())
            for r in WarcioIterator(file)
        ]
    assert fast == slow == [(f"{HOST}/{m}.html", WARC_DATE, html.encode()) for m, html in pages]
