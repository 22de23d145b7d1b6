"""The small model of a draft, on a paged cache of its own.

It follows the engine's requests: what is registered in its cache is shared between those that begin alike, and given
back when a request ends or, where room is wanted, while it does not run.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...model.decoder import Decoder
from ..blocks import BlockPool
from ..config import EngineConfig
from ..draft_steps import plan_of
from ..request import Request
from ..runner import Runner
from ..sampling import SamplingParams
from ..scheduler import Chunk, Step
from ..sending import on_its_way
from .draft import Piece

MOST = 1  # tokens behind the first that are read as a graph: a draft that was right to its end leaves two in all


class PagedDraftRunner:
    """A `DraftRunner` for at most `slots` running requests of at most `max_len` tokens, with room for all of them."""

    def __init__(
        self, model: Decoder, *, slots: int, max_len: int, block_size: int, vocab_size: int, graphs: bool = True
    ):
        blocks = slots * -(-max_len // block_size)
        config = EngineConfig(
            max_num_seqs=slots,
            max_model_len=max_len,
            max_num_batched_tokens=slots,
            block_size=block_size,
            num_blocks=blocks,
            graphs=graphs,
        )
        self.max_len = max_len
        self.runner = Runner(model, config, vocab_size)
        self.pool = BlockPool(blocks, block_size, caching=not self.runner.dynamic)
        self._held: dict[int, tuple[Request, Request]] = {}  # the engine's request, and the same here, by id
        self._free_slots = list(range(slots))
        self._steps = 0

    def begin(self, request: Request) -> int:
        """Take a request in; its tokens that are in the cache already."""
        assert request.id not in self._held
        if not self._free_slots:
            # A preempted request begins anew once it runs again, so nothing is lost that is still counted on.
            for asleep in [one for one, _ in self._held.values() if one.slot is None]:
                self.forget(asleep)
        own = Request(request.id, request.prompt_ids, SamplingParams(), output_ids=list(request.output_ids))
        own.slot = self._free_slots.pop()
        own.num_computed = self.pool.reuse(own)
        self.pool.query_tokens += own.num_tokens
        self.pool.hit_tokens += own.num_computed
        self._held[request.id] = request, own
        return own.num_computed

    @torch.inference_mode()
    def read(self, pieces: Sequence[Piece]) -> Tensor:
        """Logits `[B, V]` after each piece's last token; the tokens are those of the requests, no guesses."""
        chunks = []
        for request, start, tokens in pieces:
            own = self._held[request.id][1]
            own.output_ids += request.output_ids[len(own.output_ids) :]
            own.num_computed = start
            chunks.append(self._chunk(own, start, len(tokens)))
            new = on_its_way(tokens, torch.int64, self.runner.device)
            self.runner.tokens_ST[own.slot, start : start + len(tokens)] = new
        logits_BV = self._logits(chunks, [piece.tokens[1:] for piece in pieces])
        for chunk in chunks:
            chunk.request.num_computed = chunk.start + chunk.num_tokens
            self.pool.computed(chunk.request)
        return logits_BV

    @torch.inference_mode()
    def follow(self, requests: Sequence[Request], positions: Sequence[int], tokens_B: Tensor) -> Tensor:
        """The same after one guessed token each."""
        owns = [self._held[request.id][1] for request in requests]
        facts_2B = on_its_way([[own.slot for own in owns], positions], torch.int64, self.runner.device)
        self.runner.tokens_ST[facts_2B[0], facts_2B[1]] = tokens_B
        chunks = [self._chunk(own, at, 1) for own, at in zip(owns, positions, strict=True)]
        return self._logits(chunks, [()] * len(chunks))

    def forget(self, request: Request) -> None:
        """Give back what is held for a request; one that nothing is held for is left alone."""
        _, own = self._held.pop(request.id, (None, None))
        if own is not None and own.slot is not None:
            self.pool.release(own)
            self.runner.free(own.slot)
            self._free_slots.append(own.slot)

    def check(self) -> None:
        """AssertionError where a block is held by none or by too many."""
        self.pool.check([own for _, own in self._held.values()])

    def _chunk(self, own: Request, start: int, count: int) -> Chunk:
        fits = self.pool.grow(own, start + count)
        assert fits, "there are blocks for all slots"
        return Chunk(own, start, count, samples=False)

    def _logits(self, chunks: Sequence[Chunk], behind: Sequence[Sequence[int]]) -> Tensor:
        """Behind the last token of each chunk, in the order they are given in; `behind` are the tokens of each but the
        first."""
        self._steps += 1
        if max(chunk.num_tokens for chunk in chunks) <= 1 + MOST:
            plan_BP = torch.tensor([plan_of(*row, MOST) for row in zip(chunks, behind, strict=True)])
            logits_BV = self.runner.replay_reading(Step(self._steps, list(chunks), [], False), plan_BP)
            if logits_BV is not None:
                return logits_BV
        order = sorted(range(len(chunks)), key=lambda at: (chunks[at].num_tokens, chunks[at].request.slot))
        hidden_NC = self.runner.hidden_states(Step(self._steps, [chunks[at] for at in order], [], False))
        last, end = [0] * len(chunks), 0
        for at in order:
            end += chunks[at].num_tokens
            last[at] = end - 1
        return self.runner.model.logits(hidden_NC[last])[:, : self.runner.vocab_size].float()
