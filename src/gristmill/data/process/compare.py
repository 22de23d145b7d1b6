"""The second phase: documents compared with each other, and with those of other corpora (`gristmill.data.dedup`).

Of equal texts the first stays that no rule removes; texts of other corpora come before those of this one.
Near-duplicates are looked for among the documents that no rule has removed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..dedup.against import OtherCorpora
from ..dedup.exact import exact_duplicates
from ..dedup.near import NearDuplicates, near_duplicates
from ..report import largest_clusters
from ..schema import read_columns
from .work import Annotated, Work

I64 = NDArray[np.int64]


@dataclass
class Duplicates:
    """Which document each one repeats, `[documents]`: its number, or -1. Numbers behind the last document are those of
    other corpora. `similarity` is the Jaccard similarity to it, 1 for equal texts, NaN where there is none."""

    of: I64
    similarity: NDArray[np.float32]
    others: OtherCorpora | None
    near: NearDuplicates | None = None

    @property
    def counts(self) -> dict[str, int]:
        """What the report says of near-duplicates."""
        near = self.near
        if near is None:
            return {}
        return {"pairs_compared": near.compared, "pairs_similar": near.similar, "removed": len(near.removed)}

    def ids(self, numbers: I64, records: NDArray[Any]) -> NDArray[np.bytes_]:
        """The ids of documents of this corpus, whose `records` are given, and of others."""
        found: NDArray[np.bytes_] = records["id"][np.minimum(numbers, len(records) - 1)]
        outside = np.flatnonzero(numbers >= len(records))
        if len(outside):
            assert self.others is not None
            found[outside] = np.array(self.others.ids(numbers[outside] - len(records)), "S16")
        return found

    def largest(self, records: NDArray[Any]) -> list[str]:
        """The ids of the documents that most others repeat."""
        return [id.decode() for id in self.ids(largest_clusters(self.of), records).tolist()]


def find_equal(work: Work, annotated: Annotated, broken: NDArray[np.bool_]) -> Duplicates:
    """The documents whose text is equal to another's. What stands for equal texts is the first that breaks no rule,
    as `broken` tells (rules differ by domain), or the first where all do."""
    near = work.config.near_duplicates
    others = OtherCorpora.open(near) if near is not None and near.against else None
    before = len(others) if others is not None else 0
    digests = chain(others.digests() if others is not None else (), _digests(annotated))
    first = exact_duplicates(digests, work.path("exact"))[before:]
    inside = np.where(first < before, first + len(annotated.files), first - before)
    of = prefer_sound(np.where(first < 0, -1, inside), broken)
    return Duplicates(of, np.where(of < 0, np.float32("nan"), np.float32(1)), others)


def prefer_sound(of: I64, broken: NDArray[np.bool_]) -> I64:
    """The same groups of equal texts, but each is stood for by its first member that is not broken, if it has one. `of`
    gives each document's first equal one, -1 where it is that itself; numbers behind the last are of other corpora."""
    members = np.flatnonzero((of >= 0) & (of < len(of)))
    spoilt = members[broken[of[members]]]
    sound = spoilt[~broken[spoilt]]
    roots, places = np.unique(of[sound], return_index=True)
    if not len(roots):
        return of
    instead = np.arange(len(of))
    instead[roots] = sound[places]
    changed = of.copy()
    changed[members] = instead[of[members]]
    changed[roots] = instead[roots]
    changed[instead[roots]] = -1
    return changed


def find_similar(work: Work, annotated: Annotated, duplicates: Duplicates, eligible: NDArray[np.bool_]) -> None:
    """Add the near-duplicates among the eligible documents."""
    config = work.config.near_duplicates
    if config is None:
        return
    near = near_duplicates(
        annotated.files, eligible, config, work.path("near"), work.mapper, duplicates.others, work.run.log.progress
    )
    duplicates.of[near.removed] = near.kept
    duplicates.similarity[near.removed] = near.jaccard
    duplicates.near = near


def _digests(annotated: Annotated) -> Iterator[Any]:
    for path in annotated.files.paths:
        yield read_columns(path, ["digest"])["digest"]
