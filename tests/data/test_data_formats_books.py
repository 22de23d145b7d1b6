"""EPUB, PDF and Project Gutenberg texts."""

from __future__ import annotations

import io
import zipfile

import pytest

from gristmill.data.collect.formats import epub, gutenberg, pdf
from gristmill.data.collect.formats.base import BadInput, Extracted

CONTAINER = (
    '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
    '<rootfile full-path="OEBPS/book.opf"/></rootfiles></container>'
)
PACKAGE = """<package xmlns="http://www.idpf.org/2007/opf" xmlns:dc="http://purl.org/dc/elements/1.1/">
<metadata><dc:language>en-GB</dc:language>
<dc:rights>https://creativecommons.org/licenses/by-sa/4.0/</dc:rights></metadata>
<manifest>
<item id="two" href="two%20b.xhtml" media-type="application/xhtml+xml"/>
<item id="one" href="one.xhtml" media-type="application/xhtml+xml"/>
<item id="nav" href="nav.xhtml" media-type="application/xhtml+xml" properties="nav"/>
<item id="toc" href="toc.xhtml" media-type="application/xhtml+xml"/>
<item id="lost" href="lost.xhtml" media-type="application/xhtml+xml"/>
<item id="cover" href="cover.xhtml" media-type="application/xhtml+xml"/></manifest>
<spine><itemref idref="cover"/><itemref idref="nav"/><itemref idref="toc"/><itemref idref="one"/>
<itemref idref="lost"/><itemref idref="two"/></spine>
<guide><reference type="cover" href="cover.xhtml"/></guide></package>"""
CHAPTERS = {
    "OEBPS/one.xhtml": "<html><head><title/></head><body><h1>One</h1><p>First <i>words</i>\nof it.</p></body></html>",
    "OEBPS/two b.xhtml": "<html><body><h1>Two</h1><pre>a\n  b</pre></body></html>",
    "OEBPS/nav.xhtml": "<html><body><nav>Contents</nav>More</body></html>",
    "OEBPS/toc.xhtml": "<html><body>" + "<p><a href='one.xhtml'>Chapter One</a></p>" * 9 + "</body></html>",
    "OEBPS/cover.xhtml": "<html><body>Cover</body></html>",
}


def book(**changes: str) -> io.BytesIO:
    files = {"mimetype": "application/epub+zip", "META-INF/container.xml": CONTAINER, "OEBPS/book.opf": PACKAGE}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in (files | CHAPTERS | changes).items():
            archive.writestr(name, text)
    out.seek(0)
    return out


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


def make_pdf(pages: list[list[str]], trailer: str = "") -> io.BytesIO:
    """A PDF with one line of Courier below the other."""
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", ""]
    kids = []
    for page in pages:
        lines = "".join(f"({line}) Tj T*\n".replace("\\", "") for line in page)
        stream = f"BT /F1 10 Tf 12 TL 50 780 Td\n{lines}ET"
        kids.append(len(objects) + 1)
        objects.append(
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 900 842] /Resources << /Font << /F1 "
            f"<< /Type /Font /Subtype /Type1 /BaseFont /Courier >> >> >> /Contents {len(objects) + 2} 0 R >>"
        )
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
    objects[1] = f"<< /Type /Pages /Count {len(kids)} /Kids [{' '.join(f'{kid} 0 R' for kid in kids)}] >>"
    out, places = "%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n"
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    out += f"xref\n0 {len(places) + 1}\n0000000000 65535 f \n{table}trailer\n<< /Size {len(places) + 1} /Root 1 0 R"
    return io.BytesIO(f"{out} {trailer} >>\nstartxref\n{out.index('xref')}\n%%EOF\n".encode("latin-1"))


SENTENCE = "the mill stands at the river where the water is quick and the road from the village comes down to"


def test_pdf_lines_become_paragraphs_without_headers_and_numbers() -> None:
    pages = [
        [f"The Book of Mills {number}", SENTENCE, "the bridge, and every morning the carts of the farmers wait for the mil-",
         "ler and his men to open the gate.", f"{number}.1 Of grinding {'very ' * number}fine",
         f"Grain number {number} is ground twice.", f"- {number} -"]
        for number in range(1, 5)
    ]  # fmt: skip
    (document,) = pdf.read(make_pdf(pages), "b.pdf")
    expected = "\n\n".join(
        f"{SENTENCE} the bridge, and every morning the carts of the farmers wait for the miller and his men to open the "
        f"gate.\n\n{number}.1 Of grinding {'very ' * number}fine\n\nGrain number {number} is ground twice."
        for number in range(1, 5)
    )
    assert document.text == expected


def test_pdf_without_text_encrypted_or_broken_is_refused() -> None:
    with pytest.raises(BadInput, match="no text layer"):
        list(pdf.read(make_pdf([["x"]] * 5), "scan.pdf"))
    key = "(" + "x" * 32 + ")"
    encrypt = f"/ID [{key} {key}] /Encrypt << /Filter /Standard /V 1 /R 2 /P -4 /O {key} /U {key} >>"
    with pytest.raises(BadInput, match="encrypted"):
        list(pdf.read(make_pdf([[SENTENCE]], encrypt), "locked.pdf"))
    for data in (b"", b"%PDF-1.7\n", b"no pdf"):
        with pytest.raises(BadInput, match="no whole PDF"):
            list(pdf.read(io.BytesIO(data), "b.pdf"))


BOOK = "PRIDE AND PREJUDICE\n\nBy Jane Austen\n\n\nChapter 1\n\n\nIt is a truth universally acknowledged."
HEADER = "The Project Gutenberg EBook of Pride, by Jane Austen\n\nTitle: Pride\n\nLanguage: English\n\n"
SMALL_PRINT = "***START**THE SMALL PRINT!**FOR PUBLIC DOMAIN ETEXTS**START***\nWhy is this here?\n"
LICENSE = "\n\nSection 1. General Terms of Use\n"


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("*** START OF THIS PROJECT GUTENBERG EBOOK PRIDE ***\n\n\nProduced by Anonymous Volunteers\n\n\n",
         "\n\nEnd of the Project Gutenberg EBook of Pride, by Jane Austen\n\n*** END OF THIS PROJECT GUTENBERG EBOOK ***"),
        ("***START OF THE PROJECT GUTENBERG EBOOK PRIDE\nAND PREJUDICE***\n\nE-text prepared by A. Person and\nothers\n\n"
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
