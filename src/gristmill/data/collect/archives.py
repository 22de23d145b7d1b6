"""Zip and tar archives, read member by member; nothing is ever extracted to disk.

A member comes as (its number, its name, its size, how to open it). A zip archive needs a file that can be sought in; a
tar archive is read as a stream, so its members must be read in turn.
"""

from __future__ import annotations

import posixpath
import re
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, BinaryIO, NamedTuple

from .discover import is_hidden
from .formats.base import BadInput
from .formats.licenses import nearest_license, tree_licenses
from .streams import Budget, member, problem_of
from .tally import Tally, printable

# Licence files and manifests, and what LaTeX sources input.
_ASKED_FOR = re.compile(
    r"licen[cs]e|copying|(?:^|/)(?:cargo\.toml|package\.json|pkg-info|pyproject\.toml)$|\.(?:tex|ltx|latex|sty|bbl|tikz)$"
)
SIBLING_BYTES, _TREE_BYTES = 8 << 20, 64 << 20


class Member(NamedTuple):
    """A file in an archive. `number` counts all entries from 0; `inner` is its name as it stands there, `name` the one
    for an origin; `open` may be called once, before the next member."""

    number: int
    inner: str
    name: str
    size: int
    open: Callable[[], BinaryIO]


def archive_of(head: bytes) -> str | None:
    """`zip` or `tar` by the first bytes."""
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")):
        return "zip"
    return "tar" if head[257:262] == b"ustar" or _is_old_tar(head) else None


def zip_members(archive: zipfile.ZipFile, name: str, start: int, budget: Budget, tally: Tally) -> Iterator[Member]:
    """The files of a zip archive, from entry `start` on."""
    for number, entry in enumerate(archive.infolist()):
        if entry.is_dir() or is_hidden(entry.filename):
            continue
        budget.member()
        if number < start:  # read before the stage was cut
            budget.spend(entry.file_size)
            continue
        shown = f"{name}/{clean_name(entry.filename)}"
        if entry.flag_bits & 1:
            tally.problem("encrypted", shown)
            continue
        yield Member(number, entry.filename, shown, entry.file_size, partial(_open_entry, archive, entry, budget))


def tar_members(stream: BinaryIO, name: str, start: int, budget: Budget, tally: Tally) -> Iterator[Member]:
    """The files of a tar archive that is read as a stream, from entry `start` on. What they hold stands in the stream
    as it is, and spends nothing of the budget; but for the holes of sparse files, which a few bytes describe."""
    number = -1
    try:
        with tarfile.open(fileobj=stream, mode="r|", errorlevel=0) as archive:
            while entry := archive.next():
                archive.members = []  # type: ignore[attr-defined]  # it would keep them all
                number += 1
                if not entry.isreg() or is_hidden(entry.name):
                    continue
                budget.member()
                if number < start:
                    continue
                packed, spent = entry.size, Budget(budget.limits)
                pieces: Any = entry.sparse  # (place, size) of what is no hole
                if pieces is not None:
                    packed, spent = sum(size for _, size in pieces), budget
                opened = partial(member, archive.extractfile(entry), packed, spent)
                yield Member(number, entry.name, f"{name}/{clean_name(entry.name)}", entry.size, opened)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        if number < 0:
            raise BadInput(f"is no whole tar archive: {error}") from None
        if problem_of(stream) is None:  # else the stream's own reader says it
            tally.problem("truncated", name, error)


class Tree:
    """What members of an archive need of others: licences by directory, and the files that LaTeX sources input."""

    def __init__(self, names: Iterable[str], read: Callable[[str], bytes | None]):
        self._read = read
        self._licenses = tree_licenses(names, read)

    def license(self, name: str) -> str | None:
        return nearest_license(posixpath.normpath(name), self._licenses)

    def sibling(self, name: str, other: str) -> bytes | None:
        """The bytes of a file by its path from the directory of the file `name`."""
        return self._read(posixpath.normpath(posixpath.join(posixpath.dirname(name), other)))


def zip_tree(archive: zipfile.ZipFile) -> Tree:
    """Looks at a zip archive."""

    def read(name: str) -> bytes | None:
        try:
            with archive.open(name) as file:
                return file.read(SIBLING_BYTES)
        except Exception:  # not there, damaged, encrypted, packed in an unknown way
            return None

    return Tree((entry.filename for entry in archive.infolist() if not entry.is_dir()), read)


def tar_tree(stream: BinaryIO) -> Tree:
    """Looks at a tar archive, as far as it can be read; keeps the texts that members may ask for in memory, up to a
    limit."""
    names: list[str] = []
    texts: dict[str, bytes] = {}
    left = _TREE_BYTES
    try:
        with tarfile.open(fileobj=stream, mode="r:" if stream.seekable() else "r|", errorlevel=0) as archive:
            while entry := archive.next():
                archive.members = []  # type: ignore[attr-defined]
                if not entry.isreg() or not _ASKED_FOR.search(entry.name.lower()):
                    continue
                name = posixpath.normpath(entry.name)
                names.append(name)
                if entry.size <= min(left, SIBLING_BYTES) and (file := archive.extractfile(entry)):
                    texts[name] = file.read()
                    left -= entry.size
    except (tarfile.TarError, OSError, EOFError, ValueError, BadInput):
        pass  # the reader of the members will say so
    return Tree(names, texts.get)


def clean_name(name: str) -> str:
    """A member's name as part of an origin: with `/`, without roots, dots, control characters and lone surrogates."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    return printable("/".join(parts))


def _open_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, budget: Budget) -> BinaryIO:
    budget.check_ratio(entry.file_size, entry.compress_size)  # as it is declared; what comes is looked at too
    try:
        file = archive.open(entry)
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, NotImplementedError, struct.error) as error:
        raise BadInput(f"cannot be unpacked: {error}") from None
    return member(file, entry.compress_size, budget)


def _is_old_tar(head: bytes) -> bool:
    """Tar archives of before POSIX have no magic; their headers have a checksum."""
    if len(head) < 512 or not head[0]:
        return False
    try:
        stated = int(head[148:156].strip(b" \0") or b"x", 8)
    except ValueError:
        return False
    return stated == sum(head[:148]) + sum(head[156:512]) + 8 * 32
