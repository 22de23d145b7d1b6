"""Steps that read prompts, as CUDA graphs: of a small model, launching their kernels one by one takes the host several
times as long as they run.

A step is a plan on the device, a row for each sequence: those with one token first, then those that read a part of
their prompt. Rows and tokens are filled up to sizes that come again; tokens that fill up stand nowhere, cost what their
products cost, and change nothing. What asks more of the host (forms, penalties, beams, log-probabilities of the prompt,
drafts) is launched kernel by kernel, and so are large steps of large models, which the host is ahead of anyway.

Shape suffixes: R rows, N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..plan.recorded_steps import recorded_size
from .sampler import Asked
from .scheduler import Chunk, Step

FACTS = 4  # numbers of a row: slot, place of the first token, tokens, whether one is drawn behind them
DECODING, READING = (8, 64), (4, 32)  # rows that steps are recorded with, below the most that there are


class Size(NamedTuple):
    """What a recorded step has room for: tokens, rows of one token, and rows that read prompts."""

    tokens: int
    decoding: int
    reading: int


def size_of(step: Step, most_rows: int) -> Size:
    """The smallest size that holds the step."""
    ones = num_ones(step)
    total = sum(chunk.num_tokens for chunk in step.chunks)
    return Size(
        recorded_size(total),
        _level(ones, DECODING, most_rows) if ones else 0,
        _level(len(step.chunks) - ones, READING, most_rows),
    )


def _level(rows: int, levels: Sequence[int], most: int) -> int:
    return next((level for level in levels if rows <= level < most), most)


def num_ones(step: Step) -> int:
    """How many chunks are of one token; they stand first."""
    return sum(chunk.num_tokens == 1 for chunk in step.chunks)


def can_be_planned(step: Step, asked: Asked) -> bool:
    """Whether all that the step asks for is part of such a step."""
    if asked.penalties or asked.beams:
        return False
    return not any(
        chunk.drafts
        or chunk.request.matcher is not None
        or chunk.request.params.prompt_logprobs is not None
        or (chunk.num_tokens == 1 and not chunk.samples)
        for chunk in step.chunks
    )


def plan_of(step: Step, size: Size, idle_slot: int) -> tuple[Tensor, list[int]]:
    """The step as rows of numbers, `[R, FACTS]`, and its chunks in the order of their rows."""
    ones = num_ones(step)
    # Those that draw come first of those that read, so that their rows lie side by side.
    order = [*range(ones), *sorted(range(ones, len(step.chunks)), key=lambda at: not step.chunks[at].samples)]
    rows_RF = torch.tensor([_row(step.chunks[at]) for at in order])
    idle_RF = idle_plan(size, idle_slot)
    behind = len(order) - ones
    filled = (rows_RF[:ones], idle_RF[ones : size.decoding], rows_RF[ones:], idle_RF[: size.reading - behind])
    return torch.cat(filled), order


def idle_plan(size: Size, idle_slot: int) -> Tensor:
    """A step of no tokens at all, of which it is recorded."""
    return torch.tensor([idle_slot, 0, 0, 0]).expand(size.decoding + size.reading, FACTS)


def _row(chunk: Chunk) -> list[int]:
    assert chunk.request.slot is not None
    return [chunk.request.slot, chunk.start, chunk.num_tokens, int(chunk.samples)]


@dataclass(frozen=True, eq=False)
class Reading:
    """A plan on the device: whose each of the step's tokens is and where it stands (-1 fills up), where in the step
    each row's tokens begin, and how long its sequence is with them (0 fills up)."""

    slots_R: Tensor
    draws_R: Tensor  # bool
    there_R: Tensor  # bool
    ends_R: Tensor  # places behind the step's tokens
    last_R: Tensor  # of the step's tokens, each row's last
    slots_N: Tensor
    positions_N: Tensor
    offsets: Tensor  # int32 [R + 1]
    lengths_R: Tensor  # int32

    @classmethod
    def of(cls, plan_RF: Tensor, tokens: int) -> Reading:
        slots_R, starts_R, counts_R, draws_R = plan_RF.unbind(1)
        behind_R = counts_R.cumsum(0)
        firsts_R = behind_R - counts_R
        numbers_N = torch.arange(tokens, device=plan_RF.device)
        row_N = torch.searchsorted(behind_R, numbers_N, right=True).clamp(max=len(plan_RF) - 1)
        places_N = starts_R[row_N] + numbers_N - firsts_R[row_N]
        there_R, ends_R = counts_R > 0, starts_R + counts_R
        return cls(
            slots_R,
            draws_R > 0,
            there_R,
            ends_R,
            (behind_R - 1).clamp(min=0),
            slots_R[row_N],
            torch.where(numbers_N < behind_R[-1], places_N, -1),
            pad(behind_R, (1, 0)).int(),
            torch.where(there_R, ends_R, 0).int(),
        )
