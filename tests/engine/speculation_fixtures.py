"""A generation loop without cache or scheduler, in which drafts are made and checked, and plain references."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gristmill.engine.request import Request
from gristmill.engine.sampling import SamplingParams
from gristmill.engine.speculation.config import SpeculationConfig
from gristmill.engine.speculation.control import Speculator
from gristmill.engine.speculation.draft import Piece
from gristmill.engine.speculation.ngram import NgramProposer
from gristmill.engine.speculation.proposal import Proposer

Logits = Callable[[Sequence[int]], Tensor]  # `[T, V]` after each token of a sequence
# Rows of logits `[k + 1, V]`, drafted tokens, their distributions: how many are accepted, and the token behind them.
Verify = Callable[[Tensor, Sequence[int], "Tensor | None"], tuple[int, int]]


def of_model(model: torch.nn.Module) -> Logits:
    @torch.no_grad()
    def logits(ids: Sequence[int]) -> Tensor:
        return model(torch.tensor([list(ids)]))[0].float()

    return logits


def of_table(table_VV: Tensor) -> Logits:
    """The next token depends on the last alone."""
    return lambda ids: table_VV[torch.tensor(list(ids))]


class PlainDraftRunner:
    """Stands in for a small model with a cache: it keeps the tokens at each position, and computes them all anew."""

    def __init__(self, logits: Logits, max_len: int = 1 << 30):
        self.logits, self.max_len = logits, max_len
        self.rows: dict[int, list[int]] = {}
        self.tokens_read = 0

    def begin(self, request: Request) -> int:
        return 0

    def read(self, pieces: Sequence[Piece]) -> Tensor:
        rows = []
        for request, start, tokens in pieces:
            row = self.rows.setdefault(request.id, [])
            assert tokens
            assert start <= len(row), "a position that was never read lies before"
            assert start + len(tokens) <= self.max_len
            del row[start:]
            row.extend(tokens)
            self.tokens_read += len(tokens)
            rows.append(self.logits(row)[-1])
        return torch.stack(rows)

    def follow(self, requests: Sequence[Request], positions: Sequence[int], tokens_B: Tensor) -> Tensor:
        pieces = zip(requests, positions, tokens_B.tolist(), strict=True)
        return self.read([Piece(request, position, [token]) for request, position, token in pieces])

    def forget(self, request: Request) -> None:
        self.rows.pop(request.id, None)


def verify_greedy(logits_KV: Tensor, drafts: Sequence[int], probs: Tensor | None) -> tuple[int, int]:
    best = logits_KV.argmax(dim=-1).tolist()
    count = next((i for i, (guess, token) in enumerate(zip(drafts, best, strict=False)) if guess != token), len(drafts))
    return count, best[count]


def verify_sampling(generator: torch.Generator) -> Verify:
    """Rejection sampling, word for word as in Leviathan et al. (2023), algorithm 1, at temperature 1."""

    def verify(logits_KV: Tensor, drafts: Sequence[int], probs: Tensor | None) -> tuple[int, int]:
        p_KV = logits_KV.double().softmax(dim=-1)
        for place, token in enumerate(drafts):
            q_V = torch.zeros_like(p_KV[place])
            q_V[token] = 1
            if probs is not None:
                q_V = probs[place].double()
            if torch.rand((), generator=generator, dtype=torch.float64) * q_V[token] < p_KV[place, token]:
                continue
            left_V = (p_KV[place] - q_V).clamp(min=0)
            return place, int(torch.multinomial(left_V, 1, generator=generator))
        return len(drafts), int(torch.multinomial(p_KV[len(drafts)], 1, generator=generator))

    return verify


def speculator(
    proposer: Proposer | None = None, *, end_ids=(), max_model_len=1 << 30, vocab_size=512, eager=True, **settings
) -> Speculator:
    """`eager` ones guess from the first step on and never mind whether it pays."""
    config = SpeculationConfig(**settings)
    made = Speculator(
        config,
        NgramProposer(config) if proposer is None else proposer,
        end_ids=end_ids,
        max_model_len=max_model_len,
        vocab_size=vocab_size,
    )
    if eager:
        made.control.allows = lambda batch: batch <= config.max_batch  # type: ignore[method-assign]
    return made


def generate(
    logits: Logits,
    requests: Sequence[Request],
    verify: Verify,
    speculator: Speculator | None = None,
    end_ids: Sequence[int] = (),
    max_model_len: int = 1 << 30,
) -> int:
    """Run all requests to their ends, together; the number of steps."""
    running, steps = list(requests), 0
    while running:
        steps += 1
        for request in running:
            request.num_computed = request.num_tokens - 1
        if speculator is not None:
            assert not speculator.propose(running), "nothing is ever in flight here"
        for request in list(running):
            step(logits, request, verify, speculator, end_ids, max_model_len)
            if request.finish_reason is not None:
                running.remove(request)
                if speculator is not None:
                    speculator.forget(request)
    return steps


def step(logits, request, verify, speculator, end_ids, max_model_len) -> None:
    drafts = request.drafts
    ids = request.prompt_ids + request.output_ids
    assert len(ids) + len(drafts) < max_model_len, "a draft passes the end of the context"
    rows_KV = logits([*ids, *drafts])[len(ids) - 1 :]
    probs = masks = None
    if drafts:
        draft, masks = speculator.given(request)
        assert draft.tokens == drafts
        probs = draft.probs
    if masks is not None:
        assert len(masks) == len(rows_KV)
        rows_KV = torch.where(unpacked(masks, rows_KV.shape[1]), rows_KV, -torch.inf)
    elif request.matcher is not None:
        rows_KV = torch.where(request.matcher.allowed()[None], rows_KV, -torch.inf)
    accepted, token = verify(rows_KV, drafts, probs)
    if drafts:
        speculator.verified(request, len(drafts), accepted)
    for new in [*drafts[:accepted], token]:
        take(request, new, end_ids, max_model_len)
        if request.finish_reason is not None:
            return


def take(request, token, end_ids, max_model_len) -> None:
    request.output_ids.append(token)
    if request.matcher is not None:
        assert request.matcher.accept(token)
    if token in end_ids and not request.params.ignore_eos:
        request.finish_reason = "stop"
    elif len(request.output_ids) >= request.params.max_tokens or request.num_tokens >= max_model_len:
        request.finish_reason = "length"


def unpacked(masks, vocab_size: int) -> Tensor:
    bits = torch.from_numpy(masks.astype("int64"))[:, :, None] >> torch.arange(32) & 1
    return bits.flatten(1)[:, :vocab_size].bool()


def request(prompt_ids, number=0, **params) -> Request:
    return Request(number, list(prompt_ids), SamplingParams(**params))
