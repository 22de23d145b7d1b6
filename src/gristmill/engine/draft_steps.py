"""Steps in which drafts are checked, as CUDA graphs: of a small model, checking eight tokens kernel by kernel would
take the host longer than writing them one by one.

The small model whose guesses they are reads them in the same way, and its own guesses one by one.

The host knows of every sequence where it stands and what was guessed, and sends it as a plan, one row for each; from
there on all is on the device. Sequences without a draft are rows with an empty one. What asks more of the host (forms,
log-probabilities, penalties, beams, drafts that bring probabilities) is launched kernel by kernel (scoring.py).

Shape suffixes: B rows, P numbers of a row's plan, K most tokens of a draft, J = K + 1, N = B * J tokens of the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..kernels.decode_tables import write_tokens
from .sampler import Asked
from .scheduler import Chunk, Step
from .scoring import Drafts

FACTS = 3  # numbers of a plan before the draft: slot, place of the first token that is computed, tokens of the draft
SHORT = 2  # of the two widths that steps are recorded with


def plans(step: Step, drafts: Drafts, asked: Asked, most: int) -> Tensor | None:
    """The step as rows of numbers, `[B, P]`, each with room for SHORT or for `most` guessed tokens; None where it is
    more than one token and a draft of every sequence, or asks what such a step has not."""
    if asked.penalties or asked.beams or asked.top is not None:
        return None
    for chunk in step.chunks:
        if not chunk.samples or chunk.num_tokens != 1 + len(chunk.drafts) or chunk.request.matcher is not None:
            return None
        if chunk.drafts and drafts[chunk.request.id][0].probs is not None:
            return None
    longest = max(len(chunk.drafts) for chunk in step.chunks)
    width = SHORT if longest <= SHORT else most
    return torch.tensor([plan_of(chunk, chunk.drafts, width) for chunk in step.chunks])


def plan_of(chunk: Chunk, behind: Sequence[int], width: int) -> list[int]:
    """A row: the token that stands in the table where the chunk begins, and those `behind` it, at most `width`."""
    assert chunk.request.slot is not None
    return [chunk.request.slot, chunk.start, len(behind), *behind, *[0] * (width - len(behind))]


def idle_draft(slot: int, width: int) -> Tensor:
    """A row that fills a batch up: it has not even a token."""
    return torch.tensor([slot, 0, -1, *[0] * width])


@dataclass(frozen=True, eq=False)
class Planned:
    """A plan on the device: int64 tokens and places of the step's tokens (a place of -1 pads), whose they are, and
    where in the step each row's tokens are; `rows_BJ`: the tokens behind which something is to be drawn."""

    slots_B: Tensor
    starts_B: Tensor
    counts_B: Tensor  # -1 pads
    drafts_BK: Tensor
    ids_N: Tensor
    positions_N: Tensor
    slots_N: Tensor
    offsets: Tensor  # int32 [B + 1]
    lengths_B: Tensor  # int32, of the sequences with the step's tokens; 0 pads
    rows_BJ: Tensor

    @classmethod
    def of(cls, plan_BP: Tensor, tokens_SL: Tensor) -> Planned:
        rows, width = plan_BP.shape[0], plan_BP.shape[1] - FACTS
        slots_B, starts_B, counts_B = plan_BP[:, :FACTS].unbind(1)
        drafts_BK, tokens_B = plan_BP[:, FACTS:], counts_B + 1
        ends_B = tokens_B.cumsum(0)
        firsts_B = ends_B - tokens_B
        numbers_N = torch.arange(rows * (width + 1), device=plan_BP.device)
        row_N = torch.searchsorted(ends_B, numbers_N, right=True).clamp(max=rows - 1)
        at_N, slots_N = numbers_N - firsts_B[row_N], slots_B[row_N]
        positions_N = torch.where(numbers_N < ends_B[-1], starts_B[row_N] + at_N, -1)
        guessed_N = drafts_BK[row_N, (at_N - 1).clamp(0, width - 1)]
        ids_N = torch.where(at_N == 0, tokens_SL[slots_N, positions_N.clamp(min=0)], guessed_N)
        lengths_B = torch.where(tokens_B > 0, starts_B + tokens_B, 0).int()
        behind_J = torch.arange(width + 1, device=plan_BP.device)
        rows_BJ = firsts_B[:, None] + torch.minimum(behind_J, counts_B.clamp(min=0)[:, None])
        return cls(
            slots_B, starts_B, counts_B, drafts_BK, ids_N, positions_N, slots_N, pad(ends_B, (1, 0)).int(), lengths_B,
            rows_BJ.clamp(max=len(numbers_N) - 1),
        )  # fmt: skip

    def keep(self, tokens_SL: Tensor, places_S: Tensor, accepted_B: Tensor, next_B: Tensor) -> None:
        """Write the token that follows each draft behind what stays of it, as the next that the model sees."""
        places_B, there_B = self.starts_B + 1 + accepted_B, self.counts_B >= 0
        write_tokens(tokens_SL, self.slots_B, places_B, next_B, there_B)
        places_S[self.slots_B] = torch.where(there_B, places_B, -1)


@dataclass
class Found:
    """What a recorded step found, on the device: of each row how many guesses stay, those and the token that follows
    (the rest has no meaning), and whether the model gave usable logits. The next step of this kind writes it again."""

    tokens_BJ: Tensor
    accepted_B: Tensor
    finite_B: Tensor
