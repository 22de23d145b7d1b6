"""Which files a path of the recipe means: files of this machine, or files behind a URL through fsspec.

The files come sorted, under names that begin at the last directory that the path spells out, so no document's id
depends on where a checkout lies. Hidden files are passed over. A directory that is reached in several ways, by symbolic
links or in a loop of them, is read once, under the way without links if there is one.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from functools import lru_cache
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from gristmill.errors import GristmillError

from ..config import PathSource
from .tally import Tally

_MAGIC = re.compile(r"[*?[]")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_CONTAINER = re.compile(r"\.(?:zip|tar|tgz|tbz2?|txz|tzst|gz|bz2|xz|zst)$", re.IGNORECASE)
_COMPRESSED = re.compile(r"\.(?:gz|bz2|xz|zst)$", re.IGNORECASE)
_COMPRESSED_TAR = re.compile(r"\.(?:tgz|tbz2?|txz|tzst)$", re.IGNORECASE)
_PACKAGES = {  # what fsspec needs for a protocol
    "abfs": "adlfs", "az": "adlfs", "gcs": "gcsfs", "gs": "gcsfs", "hf": "huggingface_hub", "http": "aiohttp",
    "https": "aiohttp", "s3": "s3fs", "s3a": "s3fs", "sftp": "paramiko", "ssh": "paramiko", "webhdfs": "requests",
}  # fmt: skip
_STAMPS = ("ETag", "etag", "blob_id", "oid", "md5Hash", "mtime", "LastModified", "last_modified", "updated")


class File(NamedTuple):
    """One file to read. `stamp` changes when the file does; `size` is None where a server does not tell it."""

    name: str
    path: str
    size: int | None
    stamp: str


def find_files(source: PathSource, tally: Tally) -> list[File]:
    """The files that a source means, sorted by name. What cannot be looked at is counted as a problem.

    GristmillError when nothing matches, or when the path cannot be looked up at all."""
    problems = Tally()
    found = _remote(source.path) if is_url(source.path) else _local(source.path, problems)
    if not found:
        why = problems.problems["unreadable"][1][0] if problems.problems else "correct it"
        raise GristmillError(f"path {source.path!r} matches no file{_seen_from(source.path)}; {why}")
    tally.add(problems)
    chosen = [file for file in found if _is_chosen(file, source, tally)]
    return sorted(chosen)


def is_url(path: str) -> bool:
    return bool(_URL.match(path)) and not path.startswith("file://")


def open_file(path: str) -> BinaryIO:
    """A seekable binary stream of a file of this machine or of one behind a URL."""
    if not is_url(path):
        return open(path, "rb", buffering=1 << 16)
    import fsspec

    opened: BinaryIO = fsspec.open(path, "rb").open()
    return opened


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a path below a source's directory matches a pattern; one without a slash is for the last part."""
    base = name.rpartition("/")[2]
    return any(_compiled(pattern).fullmatch(name if "/" in pattern else base) for pattern in patterns)


def without_compression(name: str) -> str:
    """`a.txt` for `a.txt.gz`, `a.tar` for `a.tgz`."""
    return _COMPRESSED_TAR.sub(".tar", _COMPRESSED.sub("", name))


def is_hidden(name: str) -> bool:
    return any((part.startswith(".") and part not in (".", "..")) or part == "__MACOSX" for part in name.split("/"))


def _below(name: str, source: PathSource) -> str:
    """A file's name below its source's directory: without that directory's own name, if it has one."""
    plain = takewhile(lambda part: not _MAGIC.search(part), PurePosixPath(source.path).parts)
    begins_with_it = PurePosixPath(*plain).name not in ("", "..")
    return name.partition("/")[2] or name if begins_with_it else name


def is_wanted(name: str, source: PathSource) -> bool:
    """Whether `include` and `exclude` let a file pass. The ending of a compression counts, and does not matter."""
    if source.include:
        below = _below(name, source)
        if not matches(below, source.include) and not matches(_COMPRESSED.sub("", below), source.include):
            return False
    return not _is_excluded(name, source)


def _is_excluded(name: str, source: PathSource) -> bool:
    return bool(source.exclude) and matches(_below(name, source), source.exclude)


def _is_chosen(file: File, source: PathSource, tally: Tally) -> bool:
    """Archives pass whatever `include` says: it is for the files in them."""
    if not is_wanted(file.name, source) and not (_CONTAINER.search(file.name) and not _is_excluded(file.name, source)):
        tally.pass_over("excluded")
        return False
    if source.max_file_bytes is not None and file.size is not None and file.size > source.max_file_bytes:
        tally.problem("too_large", file.name, f"{file.size:,} bytes")
        return False
    return True


@lru_cache(256)
def _compiled(pattern: str) -> re.Pattern[str]:
    """A glob: `*` and `?` stay within a part, `**` stands for any number of parts."""
    out = ""
    for token in re.findall(r"\*\*/|\*\*|\[[!^]?\]?[^\]]*\]|.", pattern, re.DOTALL):
        if token == "**/":
            out += r"(?:[^/]+/)*"
        elif token == "**":
            out += r".*"
        elif token == "*":
            out += r"[^/]*"
        elif token == "?":
            out += r"[^/]"
        elif len(token) > 1:
            letters = token[1:-1].replace("\\", r"\\")
            out += f"(?!/)[^{letters[1:]}]" if letters[0] in "!^" else f"(?!/)[{letters}]"
        else:
            out += re.escape(token)
    try:
        return re.compile(out, re.DOTALL)
    except re.error as error:
        raise GristmillError(f"{pattern!r} is not a pattern for file names: {error}") from None


def _local(path: str, tally: Tally) -> list[File]:
    where = Path(path.removeprefix("file://")).expanduser()
    try:
        info = where.stat()
    except OSError as error:
        if error.errno in (errno.EACCES, errno.ELOOP):
            raise GristmillError(f"path {path!r} cannot be looked up: {error.strerror}") from None
        info = None
    if info is not None and not stat.S_ISDIR(info.st_mode):
        return [_local_file(where.name, where, info)] if stat.S_ISREG(info.st_mode) else []
    base, pattern = where, None
    if info is None:
        parts = where.parts
        plain = next((i for i, part in enumerate(parts) if _MAGIC.search(part)), len(parts))
        base, pattern = Path(*parts[:plain]), "/".join(parts[plain:])
        if not pattern or not base.is_dir():
            return []
    names = _walk(base, tally) if pattern is None else (n for n in _walk(base, tally) if matches_path(n, pattern))
    found = []
    for name in names:
        try:
            info = (base / name).stat()
        except OSError as error:
            tally.problem("unreadable", _named(base, name), error.strerror)
            continue
        if stat.S_ISREG(info.st_mode):
            found.append(_local_file(_named(base, name), base / name, info))
        else:
            tally.pass_over("special files")
    return found


def matches_path(name: str, pattern: str) -> bool:
    """Whether a path below the directory that a glob begins in matches the rest of the glob, all of it."""
    return bool(_compiled(pattern).fullmatch(name))


def _named(base: Path, name: str) -> str:
    place = base.name if base.name != ".." else ""
    return _text(f"{place}/{name}".strip("/") or ".")


def _text(name: str) -> str:
    """Names of files are bytes to the system; what is not UTF-8 in them is shown as escapes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _local_file(name: str, path: Path, info: os.stat_result) -> File:
    return File(_text(name), os.path.abspath(path), info.st_size, str(info.st_mtime_ns))


def _walk(base: Path, tally: Tally) -> Iterator[str]:
    """Relative paths of everything below a directory that is neither hidden nor a directory."""
    waiting = [(base, "")]
    links: list[tuple[Path, str]] = []
    seen: set[tuple[int, int]] = set()
    while waiting or links:
        directory, prefix = waiting.pop() if waiting else links.pop(0)
        try:
            info = directory.stat()
            if (info.st_dev, info.st_ino) in seen:
                continue
            seen.add((info.st_dev, info.st_ino))
            entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
        except OSError as error:
            tally.problem("unreadable", _named(base, prefix.rstrip("/")), error.strerror)
            continue
        below_here = []
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                below_here.append((Path(entry.path), f"{prefix}{entry.name}/"))
            elif entry.is_symlink() and os.path.isdir(entry.path):
                links.append((Path(entry.path), f"{prefix}{entry.name}/"))
            else:
                yield prefix + entry.name
        waiting += reversed(below_here)


def _remote(path: str) -> list[File]:
    import fsspec

    protocol = path.partition("://")[0]
    try:
        system, inner = fsspec.core.url_to_fs(path)
        base, found = _listed(system, inner)
    except ImportError as error:
        package = _PACKAGES.get(protocol)
        what = f"run `pip install {package}`" if package else str(error)
        raise GristmillError(f"path {path!r} needs a package for {protocol}:// paths: {what}") from None
    except FileNotFoundError:
        return []
    except Exception as error:  # every file system has errors of its own for having no network or no permission
        raise GristmillError(
            f"path {path!r} cannot be looked up ({type(error).__name__}: {error}); is there a network, and are you "
            "allowed to read it?"
        ) from None
    files = []
    for name, info in found.items():
        relative = PurePosixPath(name).relative_to(base).as_posix() if base else PurePosixPath(name).name
        if info.get("type", "file") == "file" and not is_hidden(relative):
            shown = f"{PurePosixPath(base).name}/{relative}" if base and PurePosixPath(base).name else relative
            stamp = next((str(info[key]) for key in _STAMPS if info.get(key) is not None), "")
            files.append(File(shown, system.unstrip_protocol(name), info.get("size"), stamp))
    return files


def _listed(system: Any, path: str) -> tuple[str, dict[str, Any]]:
    """(directory that names begin in, "" for a single file; full name -> what the file system tells of it)."""
    if _MAGIC.search(path):
        parts = path.split("/")
        plain = next(i for i, part in enumerate(parts) if _MAGIC.search(part))
        return "/".join(parts[:plain]), system.glob(path, detail=True)
    info = system.info(path)
    if info["type"] == "directory":
        return path.rstrip("/"), system.find(path, detail=True)
    return "", {path: info}


def _seen_from(path: str) -> str:
    return "" if is_url(path) else f" (looked in {Path.cwd()})"
