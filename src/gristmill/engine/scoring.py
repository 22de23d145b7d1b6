"""What a step says beside the next token: which tokens of a draft stay, and how likely the tokens of a prompt are.

Shape suffixes: N tokens of the step, B drafts, K tokens of a draft, J = K + 1, S slots, L positions, V vocabulary, W
words of a mask, T likeliest tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..kernels.decode_tables import write_tokens
from .request import Request, TokenLogprob
from .sampler import Sampler, logprobs_of, prompt_logprobs
from .scheduler import Chunk
from .sending import Copied, on_its_way, sent

if TYPE_CHECKING:
    import numpy as np

    from .speculation.proposal import Draft

Head = Callable[[Tensor], Tensor]
Drafts = Mapping[int, "tuple[Draft, np.ndarray | None]"]  # by request id; the masks of a structured output's rows


class New(NamedTuple):
    """What a draft's step gave one request: the drafted tokens that stay, and the one that follows."""

    request: Request
    drafted: int
    token_ids: list[int]
    finite: bool
    logprobs: list[tuple[float, list[TokenLogprob]]]  # of each token, where asked for


@dataclass
class Checked:
    """Drafts that were checked, on the device."""

    chunks: list[Chunk]
    tokens_BJ: Tensor  # of each draft those that stay, then the one that follows; the rest has no meaning
    accepted_B: Tensor
    finite_B: Tensor
    logprobs: tuple[Tensor, Tensor, Tensor] | None = None  # `[B, J]`, and ids and values of the likeliest `[B, J, T]`
    _copied: Copied | None = None

    def start_read(self) -> None:
        """Start the copies that `read` needs behind the work that is under way."""
        self._copied = Copied.of(self._parts())

    def _parts(self) -> list[Tensor]:
        return [self.accepted_B, self.tokens_BJ, self.finite_B, *(self.logprobs or ())]

    def read(self) -> list[New]:
        """Waits for the device."""
        parts = [part.tolist() for part in (self._copied or Copied(self._parts())).read()]
        given, logprobs = zip(self.chunks, *parts[:3], strict=True), parts[3:]
        new = []
        for row, (chunk, accepted, tokens, finite) in enumerate(given):
            params, said = chunk.request.params, []
            if params.logprobs and logprobs:
                own, ids, values = (part[row][: accepted + 1] for part in logprobs)
                top = params.top_logprobs
                said = [(p, list(zip(i[:top], v[:top], strict=True))) for p, i, v in zip(own, ids, values, strict=True)]
            new.append(New(chunk.request, len(chunk.drafts), tokens[: accepted + 1], finite, said))
        return new


@torch.inference_mode()
def check_drafts(
    chunks: Sequence[Chunk], hidden_NC: Tensor, head: Head, sampler: Sampler, drafts: Drafts, tokens_SL: Tensor
) -> Checked | None:
    """Check the drafts of a step's chunks; the token that follows each goes into its place of `tokens_SL`, where the
    draft stands already. None where no chunk has a draft."""
    firsts, checked, end = [], [], 0
    for chunk in chunks:
        if chunk.drafts:
            firsts.append(end)
            checked.append(chunk)
        end += chunk.num_tokens
    if not checked:
        return None
    device, counts = hidden_NC.device, [len(chunk.drafts) for chunk in checked]
    most, slots = max(counts), [_slot(chunk) for chunk in checked]
    facts = [(slot, chunk.start + 1, count) for slot, chunk, count in zip(slots, checked, counts, strict=True)]
    slots_B, positions_B, counts_B = on_its_way(facts, torch.int64, device).unbind(1)
    drafts_BK = on_its_way([[*c.drafts, *[0] * (most - len(c.drafts))] for c in checked], torch.int64, device)
    rows_BJ = torch.tensor(
        [[first + min(j, n) for j in range(most + 1)] for first, n in zip(firsts, counts, strict=True)]
    )
    vocab = sampler.vocab_size
    logits_NV = head(hidden_NC[sent(rows_BJ.flatten(), device)])[:, :vocab].float()
    logits_BJV = logits_NV.view(*rows_BJ.shape, vocab)
    given = [drafts[chunk.request.id] for chunk in checked]
    probs = _probs([draft for draft, _ in given], counts, most, vocab, device)
    masks = _masks([masks for _, masks in given], most + 1, vocab, device)
    accepted_B, next_B = sampler.verify(logits_BJV, slots_B, positions_B, drafts_BK, counts_B, probs, masks, slots)
    tokens_BJ, finite_B = what_stays(logits_BJV, drafts_BK, accepted_B, next_B)
    write_tokens(tokens_SL, slots_B, positions_B + accepted_B, next_B)
    result = Checked(checked, tokens_BJ, accepted_B, finite_B)
    tops = [chunk.request.params.top_logprobs for chunk in checked if chunk.request.params.logprobs]
    if tops:
        logprob, ids, values = logprobs_of(logits_BJV.flatten(0, 1), tokens_BJ.flatten(), min(max(tops), vocab))
        rows = tokens_BJ.shape
        result.logprobs = logprob.view(rows), ids.view(*rows, -1), values.view(*rows, -1)
    return result


def what_stays(logits_BJV: Tensor, drafts_BK: Tensor, accepted_B: Tensor, next_B: Tensor) -> tuple[Tensor, Tensor]:
    """Each draft with the token that follows in its place `[B, J]`, and whether the logits up to there are finite."""
    tokens_BJ = pad(drafts_BK, (0, 1)).scatter(1, accepted_B[:, None], next_B[:, None])
    behind_BJ = torch.arange(tokens_BJ.shape[1], device=drafts_BK.device) > accepted_B[:, None]
    return tokens_BJ, (logits_BJV.amax(dim=-1).isfinite() | behind_BJ).all(dim=-1)


def _probs(
    drafts: Sequence[Draft], counts: Sequence[int], most: int, vocab: int, device: torch.device
) -> Tensor | None:
    """Distributions that drafts were drawn from, `[B, K, V]`; zeros where a draft counts as certain."""
    if all(draft.probs is None for draft in drafts):
        return None
    probs_BKV = torch.zeros(len(drafts), most, vocab, device=device)
    for row, (draft, count) in enumerate(zip(drafts, counts, strict=True)):
        if draft.probs is not None:
            probs_BKV[row, :count] = draft.probs[:count]
    return probs_BKV


def _masks(masks: Sequence[np.ndarray | None], rows: int, vocab: int, device: torch.device) -> Tensor | None:
    if all(own is None for own in masks):
        return None
    masks_BJW = torch.full((len(masks), rows, -(-vocab // 32)), -1, dtype=torch.int32)
    for row, own in enumerate(masks):
        if own is not None:
            masks_BJW[row, : len(own)] = torch.from_numpy(own)[:rows]
    return sent(masks_BJW, device)


@dataclass
class PromptScores:
    """Log probabilities of some tokens of a prompt, in order, on the device."""

    request: Request
    logprob_N: Tensor
    top_ids_NT: Tensor
    top_values_NT: Tensor

    def read(self) -> None:
        """Add them to the request's; waits for the device."""
        self.request.prompt_logprobs += self.logprob_N.tolist()
        for ids, values in zip(self.top_ids_NT.tolist(), self.top_values_NT.tolist(), strict=True):
            self.request.prompt_top_logprobs.append(list(zip(ids, values, strict=True)))


def score_prompts(chunks: Sequence[Chunk], hidden_NC: Tensor, head: Head, vocab_size: int) -> list[PromptScores]:
    """Of those that ask for it, the tokens that follow this step's tokens in the prompt. What a preempted request
    computes again is not scored again."""
    scores, end = [], 0
    for chunk in chunks:
        request, before = chunk.request, end - chunk.start
        end += chunk.num_tokens
        top = request.params.prompt_logprobs
        if top is None:
            continue
        first = max(chunk.start, request.num_scored)
        last = min(chunk.start + chunk.num_tokens, len(request.prompt_ids) - 1)
        if first < last:
            request.num_scored = last
            targets = on_its_way(request.prompt_ids[first + 1 : last + 1], torch.int64, hidden_NC.device)
            hidden = hidden_NC[before + first : before + last]
            scores.append(PromptScores(request, *prompt_logprobs(hidden, head, targets, top, vocab_size)))
    return scores


def _slot(chunk: Chunk) -> int:
    assert chunk.request.slot is not None
    return chunk.request.slot
