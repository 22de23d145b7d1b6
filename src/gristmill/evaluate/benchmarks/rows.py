"""How sequences become rows of a batch: a question's common beginning once, then what each sequence has of its own.

A row is a small tree: a trunk of `shared` tokens and one branch a sequence. Each token sees the trunk and its own
branch up to itself, at the position that it has in its sequence; so every sequence is read as if it stood alone.

Shape suffixes: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...model.attention import AttentionSpec, masked_attention
from .sequences import Scored, common_prefix

MASK_BYTES = 1 << 26  # of the masks of one batch
PADDING = -1  # the segment of padding, which only padding sees


@dataclass(frozen=True)
class Row:
    """Sequences of one group that are read together. `keys` tell where their results belong."""

    keys: tuple[tuple[int, int], ...]  # (group, place in it)
    sequences: tuple[Scored, ...]
    shared: int  # inputs of the trunk; 0 where the row is one sequence

    @property
    def branches(self) -> bool:
        return len(self.sequences) > 1

    @property
    def length(self) -> int:
        """Inputs of the row: the last id of a sequence is predicted and never read."""
        return self.shared + sum(len(sequence.ids) - 1 - self.shared for sequence in self.sequences)

    def inputs(self) -> tuple[list[int], list[int], list[int]]:
        """Ids, positions and segments (0 the trunk, 1 ... the branches)."""
        ids = list(self.sequences[0].ids[: self.shared])
        positions, segments = list(range(self.shared)), [0] * self.shared
        for branch, sequence in enumerate(self.sequences, start=1):
            own = sequence.ids[self.shared : -1]
            ids += own
            positions += range(self.shared, self.shared + len(own))
            segments += [branch] * len(own)
        return ids, positions, segments

    def predictions(self) -> Iterator[tuple[tuple[int, int], list[int], tuple[int, ...]]]:
        """For each sequence its key, the places of the row that predict its continuation, and the continuation."""
        behind = self.shared  # where the branch's own inputs begin
        for key, sequence in zip(self.keys, self.sequences, strict=True):
            before = range(sequence.start - 1, len(sequence.ids) - 1)
            places = [at if at < self.shared else behind + at - self.shared for at in before]
            yield key, places, sequence.ids[sequence.start :]
            behind += len(sequence.ids) - 1 - self.shared


class BranchAttention:
    """Attention in rows of a trunk and branches; see the top of this file."""

    def __init__(self, segments_BT: Tensor, positions_BT: Tensor):
        self.positions_BT = positions_BT
        same_BTT = segments_BT[:, :, None] == segments_BT[:, None, :]
        trunk_BT = segments_BT == 0
        earlier_BTT = positions_BT[:, None, :] <= positions_BT[:, :, None]
        padding_BT = segments_BT == PADDING
        self.mask = ((same_BTT | (trunk_BT[:, None, :] & ~padding_BT[:, :, None])) & earlier_BTT)[:, None]

    def __call__(self, spec: AttentionSpec, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKE: Tensor) -> Tensor:
        at = self.positions_BT if spec.window is not None or not spec.plain else None
        return masked_attention(spec, q_BTHD, k_BTKD, v_BTKE, self.mask, at, at)


def make_rows(groups: Sequence[Sequence[Scored]], share: bool) -> list[Row]:
    """One row a sequence, or one a group whose sequences begin alike where `share`."""
    rows = []
    for number, group in enumerate(groups):
        keys = tuple((number, place) for place in range(len(group)))
        shared = common_prefix([sequence.ids[:-1] for sequence in group]) if share and len(group) > 1 else 0
        if shared:
            rows.append(Row(keys, tuple(group), shared))
        else:
            rows += [Row((key,), (sequence,), 0) for key, sequence in zip(keys, group, strict=True)]
    return rows


def make_batches(rows: Sequence[Row], batch_tokens: int) -> list[list[Row]]:
    """Rows of like length together, the longest first, `batch_tokens` tokens with padding at most (one row at least).
    Rows with branches, whose attention needs masks, are kept apart from those without."""
    batches: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: (row.branches, -row.length, row.keys)):
        batch = batches[-1] if batches else []
        longest = batch[0].length if batch else 0
        fits = (len(batch) + 1) * longest <= batch_tokens and (len(batch) + 1) * longest**2 <= MASK_BYTES
        if batch and batch[0].branches == row.branches and fits:
            batch.append(row)
        else:
            batches.append([row])
    return batches


def pad(rows: Sequence[Row], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, positions and segments of a batch, int64 `[B, T]` each."""
    length = max(row.length for row in rows)
    table = torch.zeros(3, len(rows), length, dtype=torch.int64)
    table[2] = PADDING
    for number, row in enumerate(rows):
        table[:, number, : row.length] = torch.tensor(row.inputs())
    ids, positions, segments = table.to(device)
    return ids, positions, segments
