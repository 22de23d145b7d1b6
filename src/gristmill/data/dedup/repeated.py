"""Lines or paragraphs that other documents hold too: menus, licences, signatures.

In three passes over the row groups of the input, in order: `write_units` notes the hash of every unit of a row group;
`find_repeated` looks at the hashes of all, one range at a time, and notes what each row group has to drop;
`drop_repeated_step` drops it. A unit stays, as often as it stands there, in the first `max_documents` documents that
hold it, and goes from all later ones (as CCNet does with paragraphs, arXiv 1911.00359).

Units are told by a 64-bit hash of their exact text: among two thousand million different ones the expected number of
pairs that share a hash by chance is 0.1.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..config import RepeatedUnitsConfig
from ..step import Step, set_columns
from .runs import key_ranges, new_keys, places, read_range, sorted_run, spill
from .tables import U64, mapped, save_array

IN_MEMORY = 1 << 21  # units looked at together: about 250 MB
_BLANK_LINES = re.compile(r"(\n\n+)")
_MANY_NEWLINES = re.compile(r"\n{4,}")
_FIELDS = (pa.field("text", pa.string()), pa.field("bytes", pa.int64()))


def write_units(batches: Iterable[pa.RecordBatch], config: RepeatedUnitsConfig, out: Path) -> None:
    """Note the units of one row group in `out`, a .npy file. The batches have the columns id and text (cleaned)."""
    units: list[tuple[int, int]] = []
    for batch in batches:
        for owner, text in zip(_ids(batch), batch["text"].to_pylist(), strict=True):
            found = {_hash(unit) for unit in _split(text, config)[::2] if len(unit) >= config.min_characters}
            units += [(unit, owner) for unit in sorted(found)]
    save_array(out, np.array(units, np.uint64).reshape(-1, 2).T)


def find_repeated(
    units: Sequence[Path], work: Path, config: RepeatedUnitsConfig, limit: int = IN_MEMORY
) -> dict[str, int]:
    """Find what every row group has to drop, and note it in the directory `work`. `units` are the files of
    `write_units` in the order of the row groups. Returns how many `units` were looked at, each counted once a document,
    and how many of them are to be `dropped`."""
    work.mkdir(parents=True, exist_ok=True)
    runs, total = spill(_numbered(units), work / "units", limit)
    dropped = 0
    for number, keys in enumerate(key_ranges(total, limit) if total else ()):
        rows = read_range(runs, keys)
        hashes, owners, groups = rows[:, places(new_keys(rows[0])) >= config.max_documents]
        save_array(work / f"dropped-{number:05d}.npy", sorted_run(groups, hashes, owners))
        dropped += len(groups)
    return {"units": total, "dropped": dropped}


def drop_repeated_step(work: Path, group: int, config: RepeatedUnitsConfig) -> Step:
    """The step that drops from row group number `group` what `find_repeated` has noted in `work`."""
    dropped: dict[int, set[int]] = {}
    for path in sorted(work.glob("dropped-*.npy")):
        groups, hashes, owners = mapped(path)
        first, last = np.searchsorted(groups, (np.uint64(group), np.uint64(group + 1)))
        for unit, owner in zip(hashes[first:last].tolist(), owners[first:last].tolist(), strict=True):
            dropped.setdefault(owner, set()).add(unit)

    def apply(batch: pa.RecordBatch) -> pa.RecordBatch:
        changed = [
            _without(batch["text"][row].as_py(), dropped[owner], config) if owner in dropped else None
            for row, owner in enumerate(_ids(batch))
        ]
        if all(text is None for text in changed):
            return batch
        texts = pc.coalesce(pa.array(changed, pa.string()), batch["text"])
        return set_columns(batch, {"text": texts, "bytes": pc.binary_length(texts)}, _FIELDS)

    return Step(f"repeated_{config.unit}s", ("id", "text", "bytes"), _FIELDS, apply)


def _numbered(units: Iterable[Path]) -> Iterator[tuple[U64, U64, U64]]:
    for group, path in enumerate(units):
        hashes, owners = np.load(path, allow_pickle=False)
        yield hashes, owners, np.full(len(hashes), group, np.uint64)


def _ids(batch: pa.RecordBatch) -> list[int]:
    """A document's id, which is 16 hex digits, as a number."""
    return [int(identity, 16) for identity in batch["id"].to_pylist()]


def _hash(unit: str) -> int:
    return int.from_bytes(hashlib.blake2b(unit.encode(), digest_size=8).digest(), "little")


def _split(text: str, config: RepeatedUnitsConfig) -> list[str]:
    """Units and what stands between them, in turn: a unit first and last."""
    if config.unit == "paragraph":
        return _BLANK_LINES.split(text)
    return re.split("(\n)", text)


def _without(text: str, dropped: set[int], config: RepeatedUnitsConfig) -> str:
    """The text without the dropped units, each of which takes what stands before it along."""
    parts = _split(text, config)
    kept = []
    for before, unit in zip(["", *parts[1::2]], parts[::2], strict=True):
        if len(unit) < config.min_characters or _hash(unit) not in dropped:
            kept.append(before + unit)
    return _MANY_NEWLINES.sub("\n\n\n", "".join(kept)).strip("\n")
