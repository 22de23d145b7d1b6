"""EPUB, PDF and Project Gutenberg texts."""

from __future__ import annotations

import io

import pytest
from format_samples import BOOK, CHAPTERS, HEADER, book, make_pdf

from gristmill.data.collect.formats import epub, gutenberg, pdf
from gristmill.data.collect.formats.base import BadInput, Extracted


def test_epub_follows_the_spine_and_leaves_out_contents_and_cover() -> None:
    (document,) = epub.read(book(), "b.epub")
    assert document == Extracted("One\n\nFirst words of it.\n\nTwo\n\na\n  b", "", "CC-BY-SA-4.0", "en", "")


def test_epub_from_a_stream_that_cannot_seek() -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    assert list(epub.read(Pipe(book().read()), "b.epub")) == list(epub.read(book(), "b.epub"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"META-INF/encryption.xml": '<e><EncryptionMethod Algorithm="http://x#aes"/></e>'}, "DRM"),
        ({"OEBPS/book.opf": '<!DOCTYPE p [<!ENTITY a "b">]><package>&a;</package>'}, "entities"),
        ({"OEBPS/book.opf": "<package>"}, "well-formed"),
        (dict.fromkeys(CHAPTERS, "<html/>"), "no text"),
        ({"OEBPS/one.xhtml": " " * (40 << 20)}, "unpacks to more"),
    ],
)
def test_epub_that_is_refused(changes: dict[str, str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        list(epub.read(book(**changes), "b.epub"))


def test_scrambled_fonts_do_not_lock_a_book() -> None:
    fonts = '<e><EncryptionMethod Algorithm="http://www.idpf.org/2008/embedding"/></e>'
    assert len(list(epub.read(book(**{"META-INF/encryption.xml": fonts}), "b"))) == 1


MILLS = ("water", "wind", "tide", "hand")
SENTENCE = "mills stand at the river where the stream is quick and the road from the village comes down to"
WAITING = "the bridge, and every morning the carts of the farmers wait for the {} mil-"


def test_pdf_lines_become_paragraphs_without_headers_and_numbers() -> None:
    pages, expected = [], []
    for number, mill in enumerate(MILLS, 1):
        end = f"ler of the {mill} mill, and for his men, to open the gate."
        last = f"Grain from a {mill} mill is ground twice."
        heading = f"{number}.1 Of grinding with {mill}"
        pages.append([f"The Book of Mills {number}", f"All {mill} {SENTENCE}", WAITING.format(mill), end, heading, last,
                      f"- {number} -"])  # fmt: skip
        text = f"All {mill} {SENTENCE} {WAITING.format(mill)[:-1]}{end}"
        expected.append(f"{text}\n\n{heading}\n\n{last}")
    (document,) = pdf.read(make_pdf(pages), "b.pdf")
    assert document.text == "\n\n".join(expected)


def test_pdf_pages_that_are_left_out_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pdf, "_MAX_PAGES", 2)
    read = pdf.read(make_pdf([[SENTENCE], [SENTENCE], ["Left out."]]), "b.pdf")
    assert "Left out" not in next(read).text
    with pytest.raises(BadInput, match="has 3 pages; those behind page 2 are left out"):
        next(read)


def test_pdf_without_text_encrypted_or_broken_is_refused() -> None:
    with pytest.raises(BadInput, match="no text layer") as scan:
        list(pdf.read(make_pdf([["x"]] * 5), "scan.pdf"))
    assert scan.value.kind == "empty"
    key = "(" + "x" * 32 + ")"
    encrypt = f"/ID [{key} {key}] /Encrypt << /Filter /Standard /V 1 /R 2 /P -4 /O {key} /U {key} >>"
    with pytest.raises(BadInput, match="encrypted") as locked:
        list(pdf.read(make_pdf([[SENTENCE]], encrypt), "locked.pdf"))
    assert locked.value.kind == "encrypted"
    for data in (b"", b"%PDF-1.7\n", b"no pdf"):
        with pytest.raises(BadInput, match="no whole PDF"):
            list(pdf.read(io.BytesIO(data), "b.pdf"))


SMALL_PRINT = "***START**THE SMALL PRINT!**FOR PUBLIC DOMAIN ETEXTS**START***\nWhy is this here?\n"
LICENSE = "\n\nSection 1. General Terms of Use\n"


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("*** START OF THIS PROJECT GUTENBERG EBOOK PRIDE ***\n\n\nProduced by Anonymous Volunteers\n\n\n",
         "\n\nEnd of the Project Gutenberg EBook of Pride, by J. A.\n\n*** END OF THIS PROJECT GUTENBERG EBOOK ***"),
        ("***START OF THE PROJECT GUTENBERG EBOOK PRIDE\nAND P***\n\nE-text prepared by A. Person and\nothers\n\n"
         "Note: Project Gutenberg also has an HTML version of this file.\n\n",
         "\n\n\n***END OF THE PROJECT GUTENBERG EBOOK PRIDE***"),
        (SMALL_PRINT + "*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*\n\n\n"
         "This etext was prepared by a volunteer.\n\n", "\n\nEnd of Project Gutenberg's Etext of Pride\n"),
        ("*** START OF THE PROJECT GUTENBERG EBOOK 1342 ***\n\n[Transcriber's Note: spelling kept.]\n\n\n",
         "\n\n\nTRANSCRIBER'S NOTES\n\nA comma was added.\n\n*** END OF THE PROJECT GUTENBERG EBOOK 1342 ***"),
    ],
)  # fmt: skip
def test_gutenberg_headers_of_all_ages(start: str, end: str) -> None:
    body = BOOK + "\n\n" + "She was a woman of mean understanding.\n\n" * 40
    data = (HEADER + start + body.rstrip() + end + LICENSE).replace("\n", "\r\n").encode()
    (document,) = gutenberg.read(io.BytesIO(data), "pg.txt")
    assert document == Extracted(body.rstrip(), "", "public-domain", "en", "")


def test_gutenberg_declared_encoding_and_copyright() -> None:
    start = "** This is a COPYRIGHTED Project Gutenberg eBook **\n*** START OF THE PROJECT GUTENBERG EBOOK X ***\n\n"
    header = HEADER.replace("English", "French") + "Character set encoding: ISO-8859-1\n\n" + start
    (document,) = gutenberg.read(io.BytesIO((header + "L'été à la mer").encode("latin-1")), "x.txt")
    assert (document.text, document.license, document.language) == ("L'été à la mer", "copyrighted", "fr")
    (document,) = gutenberg.read(io.BytesIO(b"A text of nobody's."), "x.txt")
    assert document.license is None
