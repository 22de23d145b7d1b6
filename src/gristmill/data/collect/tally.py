"""What stage `collected` counts: documents by source, format and licence, and the input that could not be read.

Bad input never ends a run unless nothing else is left: it is counted by kind, and the first of each kind are named.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

NAMED = 20  # of each kind of problem so many are named in the report

# The kinds of problems, with the words of the report.
PROBLEMS = {
    "bomb": "unpacks to more than the limits allow",
    "broken": "could not be read, or not to its end",
    "empty": "no text in it",
    "encrypted": "needs a password",
    "missing_package": "needs a package that is not installed",
    "missing_field": "a table without a field that the recipe names",
    "no_text": "no text under the text field",
    "reader_failed": "its reader failed",
    "repaired": "bytes that fit no encoding, or NULs: taken out or replaced",
    "repeated_name": "a name for the second time: its origin ends in @2, @3, ...",
    "too_deep": "archives inside too many archives",
    "too_large": "larger than the limits allow",
    "truncated": "ends too early; what came before is read",
    "unknown_format": "neither text nor a format that is known here",
    "unreadable": "could not be opened, or not be read",
}


@dataclass
class Tally:
    """Counts of one task, or of all. `read` is keyed by (source, format, licence)."""

    files: int = 0
    input_bytes: int = 0
    read: dict[tuple[str, str, str], list[int]] = field(default_factory=dict)
    problems: dict[str, list[Any]] = field(default_factory=dict)  # kind -> [count, [the first ones]]
    passed_over: dict[str, int] = field(default_factory=dict)
    documents: int = 0
    bytes: int = 0  # of their texts

    def document(self, source: str, format: str, license: str, size: int) -> None:
        """Count a document of `size` bytes of text."""
        entry = self.read.setdefault((source, format, license), [0, 0])
        entry[0] += 1
        entry[1] += size
        self.documents += 1
        self.bytes += size

    def problem(self, kind: str, name: str, detail: object = "") -> None:
        """Count something that could not be read; `detail` says what is wrong with it."""
        assert kind in PROBLEMS, kind
        entry = self.problems.setdefault(kind, [0, []])
        entry[0] += 1
        if len(entry[1]) < NAMED:
            words = " ".join(str(detail).split())[:200]
            entry[1].append(printable(f"{name}: {words}" if words else name))

    def pass_over(self, kind: str) -> None:
        """Count something that is left out by design."""
        self.passed_over[kind] = self.passed_over.get(kind, 0) + 1

    def add(self, other: Tally) -> None:
        """Add the counts of a later task."""
        self.files += other.files
        self.input_bytes += other.input_bytes
        self.documents += other.documents
        self.bytes += other.bytes
        for key, (documents, size) in other.read.items():
            entry = self.read.setdefault(key, [0, 0])
            entry[0] += documents
            entry[1] += size
        for kind, (count, names) in other.problems.items():
            known = self.problems.setdefault(kind, [0, []])
            known[0] += count
            known[1] += names[: NAMED - len(known[1])]
        for kind, count in other.passed_over.items():
            self.passed_over[kind] = self.passed_over.get(kind, 0) + count

    @property
    def told(self) -> int:
        """How many problems and things passed over were counted."""
        return sum(count for count, _ in self.problems.values()) + sum(self.passed_over.values())

    def to_json(self) -> dict[str, Any]:
        return vars(self) | {"read": [[*key, *counts] for key, counts in self.read.items()]}

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> Tally:
        read = {(source, format, license): counts for source, format, license, *counts in state["read"]}
        return cls(**(state | {"read": read}))

    def report(self) -> dict[str, Any]:
        """The report of the artifact: JSON, the same for the same documents."""
        sources: dict[str, Any] = {}
        for (source, format, license), counts in sorted(self.read.items()):
            entry = sources.setdefault(source, {"documents": 0, "bytes": 0, "formats": {}, "licenses": {}})
            for place in (entry, entry["formats"].setdefault(format, {}), entry["licenses"].setdefault(license, {})):
                for name, count in zip(("documents", "bytes"), counts, strict=True):
                    place[name] = place.get(name, 0) + count
        problems = {
            kind: {"count": count, "meaning": PROBLEMS[kind], "first": names}
            for kind, (count, names) in sorted(self.problems.items())
        }
        return {
            "documents": self.documents,
            "bytes": self.bytes,
            "files": self.files,
            "input_bytes": self.input_bytes,
            "sources": sources,
            "problems": problems,
            "passed_over": dict(sorted(self.passed_over.items())),
        }


def printable(words: str) -> str:
    """Without control characters and lone surrogates: names in archives and tables can hold anything."""
    return words if words.isprintable() else "".join(c if c.isprintable() else "\ufffd" for c in words)
