"""Small files of several formats, for the tests of their readers."""

from __future__ import annotations

import html
import io
import zipfile

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


BOOK = "PRIDE AND PREJUDICE\n\nBy Jane Austen\n\n\nChapter 1\n\n\nIt is a truth universally acknowledged."
HEADER = "The Project Gutenberg EBook of Pride, by Jane Austen\n\nTitle: Pride\n\nLanguage: English\n\n"
DUMP = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" xml:lang="de"><siteinfo>
<base>https://de.wikipedia.org/wiki/Wikipedia:Hauptseite</base>
<namespaces><namespace key="6">Datei</namespace><namespace key="14">Kategorie</namespace></namespaces></siteinfo>
<page><title>Mühle</title><ns>0</ns><id>7</id><revision><id>99</id><text>Eine '''Mühle'''
[[Datei:a.jpg|mini|x]][[Kategorie:B]] mahlt &amp;amp; klappert.</text></revision></page>
<page><title>Talk:Mühle</title><ns>1</ns><id>8</id><revision><text>talk</text></revision></page>
<page><title>Windmühle</title><ns>0</ns><id>9</id><redirect title="Mühle"/><revision><text>#WEITERLEITUNG [[Mühle]]
</text></revision></page>
<page><title>Rad</title><ns>0</ns><id>10</id><revision><text>{{Begriffsklärung}}
* [[Mühlrad]]</text></revision></page></mediawiki>"""


def row(**attributes: object) -> str:
    shown = (f'{key}="{html.escape(str(value)).replace(chr(10), "&#xA;")}"' for key, value in attributes.items())
    return f"<row {' '.join(shown)} />"


CODE = "<p>Use <code>sorted</code>:</p>\n<pre class='x'><code>a = sorted(b)\nif a &lt; b:\n    pass\n</code></pre>"
ROWS = [
    row(Id=1, PostTypeId=1, Body="<p>How to sort?</p>", Title="Sort & order", CreationDate="2009-01-01", Score=5,
        AcceptedAnswerId=4),
    row(Id=2, PostTypeId=2, ParentId=1, Body=CODE, CreationDate="2012-01-01T00:00:00", Score=9),
    row(Id=3, PostTypeId=1, Body="<p>Alone</p>", Title="No answer", CreationDate="2020-01-01", Score=1),
    row(Id=4, PostTypeId=2, ParentId=1, Body="<p>Accepted</p>", ContentLicense="CC BY-SA 4.0", Score=2),
    row(Id=5, PostTypeId=5, Body="<p>A tag's wiki</p>", Score=0),
    row(Id=6, PostTypeId=2, ParentId=1, Body="<p>Third</p>", CreationDate="2021-01-01", Score=3),
    row(Id=7, PostTypeId=2, ParentId=99, Body="<p>Orphan</p>", CreationDate="2021-01-01", Score=3),
]  # fmt: skip


def posts(rows: list[str]) -> io.BytesIO:
    return io.BytesIO(f'<?xml version="1.0" encoding="utf-8"?>\n<posts>{"".join(rows)}</posts>'.encode())
