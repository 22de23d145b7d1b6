"""EPUB books: the chapters of the spine in reading order, as one document.

Source: EPUB 3.3 (W3C) and OPF 2.0.1: `META-INF/container.xml` names the package document, whose manifest lists the
files and whose spine orders them. Covers, tables of contents and indexes are left out.
"""

from __future__ import annotations

import io
import posixpath
import re
import zipfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO
from urllib.parse import unquote
from xml.etree import ElementTree

from .base import MAX_WHOLE_BYTES, REPAIRED, BadInput, Extracted, language_code, read_whole
from .decode import decode
from .licenses import license_of_statement
from .markup import html_text, is_link_list
from .xml import local_name, parse_small
from .zips import open_zip

_MAX_PACKAGE_BYTES = 2 << 20
_MAX_CHAPTER_BYTES = 32 << 20
_MAX_FILES = 100_000
_XHTML = {"application/xhtml+xml", "text/html", "text/x-oeb1-document", "application/x-dtbook+xml"}
_LEFT_OUT = {"cover", "toc"}  # types of the guide (EPUB 2) that hold no prose
# `<title/>` is whole in XHTML; read as HTML it would swallow all that follows.
_SELF_CLOSED = re.compile(r"<(title|script|style|iframe|textarea|noscript|xmp|a|b|i|em|span|div|p)(\s[^<>]*)?/>", re.I)
# Fonts may be scrambled by these without the book being locked.
_FONT_SCRAMBLING = {"http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC"}


def read(stream: BinaryIO, name: str, limit: int = MAX_WHOLE_BYTES) -> Iterator[Extracted]:
    """The book as one document. A stream that cannot seek is read whole first. BadInput for a locked book."""
    limit = min(limit, MAX_WHOLE_BYTES)
    seekable = stream if stream.seekable() else io.BytesIO(read_whole(stream, limit))
    try:
        with open_zip(seekable, _MAX_FILES, limit) as archive:
            yield _book(archive, limit)
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise BadInput(f"is no whole EPUB: {error}") from None
    except (KeyError, IndexError, AttributeError) as error:  # zipfile on headers that contradict each other
        raise BadInput(f"is no whole EPUB: {type(error).__name__} {error}") from None


def _book(archive: zipfile.ZipFile, limit: int) -> Extracted:
    """The book, whose chapters may unpack to `limit` bytes together: no book is that long, a bomb is."""
    _refuse_locked(archive)
    place = _package_document(archive)
    package = parse_small(_member(archive, place, _MAX_PACKAGE_BYTES))
    chapters, repaired, size = [], False, 0
    for path in _spine(package, posixpath.dirname(place)):
        try:
            data = _member(archive, path, _MAX_CHAPTER_BYTES)
        except KeyError:
            continue  # the spine names a file that is not there
        size += len(data)
        if size > limit:
            raise BadInput(f"unpacks to more than {limit:,} bytes", "bomb")
        markup, was_repaired = decode(data)
        markup = _SELF_CLOSED.sub(r"<\1\2></\1>", markup)
        repaired |= was_repaired
        if not is_link_list(markup) and (text := html_text(markup)):
            chapters.append(text)
    if not chapters:
        raise BadInput("holds no text", "empty")
    metadata = {local_name(element): element for element in reversed(list(package.iter())) if _is_metadata(element)}
    rights, language = metadata.get("rights"), metadata.get("language")
    return Extracted(
        "\n\n".join(chapters),
        license=license_of_statement(rights.text or "") if rights is not None else None,
        language=language_code(language.text or "") if language is not None else None,
        flags=REPAIRED if repaired else "",
    )


def _is_metadata(element: ElementTree.Element) -> bool:
    return isinstance(element.tag, str) and element.tag.startswith("{http://purl.org/dc/elements/1.1/}")


def _member(archive: zipfile.ZipFile, path: str, limit: int) -> bytes:
    """The bytes of a file in the archive, unpacked; the size that its header states is not trusted."""
    with archive.open(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise BadInput(f"holds {path!r}, which unpacks to more than {limit:,} bytes", "bomb")
    return data


def _refuse_locked(archive: zipfile.ZipFile) -> None:
    names = set(archive.namelist())
    if "META-INF/encryption.xml" not in names:
        return
    root = parse_small(_member(archive, "META-INF/encryption.xml", _MAX_PACKAGE_BYTES))
    methods = {e.get("Algorithm") for e in root.iter() if local_name(e) == "EncryptionMethod"}
    if methods - _FONT_SCRAMBLING:
        raise BadInput("is locked (DRM): its chapters are encrypted", "encrypted")


def _package_document(archive: zipfile.ZipFile) -> str:
    names = archive.namelist()
    if "META-INF/container.xml" in names:
        container = parse_small(_member(archive, "META-INF/container.xml", _MAX_PACKAGE_BYTES))
        for element in container.iter():
            if local_name(element) == "rootfile" and element.get("full-path") in names:
                return str(element.get("full-path"))
    found = sorted(name for name in names if name.lower().endswith(".opf"))
    if not found:
        raise BadInput("is no EPUB: it holds no package document (.opf)")
    return found[0]


def _spine(package: ElementTree.Element, base: str) -> list[str]:
    """Paths of the chapters in reading order; those of a broken spine are all XHTML files in the manifest's order."""
    files: dict[str, str] = {}
    left_out: set[str] = set()
    order: list[str] = []
    for element in package.iter():
        kind = local_name(element)
        if kind == "item" and element.get("media-type", "").lower() in _XHTML:
            files[element.get("id", "")] = _path(base, element.get("href", ""))
            if "nav" in element.get("properties", "").split():
                left_out.add(files[element.get("id", "")])
        elif kind == "itemref" and element.get("linear") != "no":
            order.append(element.get("idref", ""))
        elif kind == "reference" and element.get("type", "").lower() in _LEFT_OUT:
            left_out.add(_path(base, element.get("href", "")))
    paths = [files[identifier] for identifier in order if identifier in files] or list(files.values())
    kept = [path for path in dict.fromkeys(paths) if path not in left_out]
    return kept or list(dict.fromkeys(paths))


def _path(base: str, href: str) -> str:
    return posixpath.normpath(posixpath.join(base, unquote(href.partition("#")[0])))
