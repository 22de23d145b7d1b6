"""One step on the device: the scheduled tokens through the model, and the tokens drawn after them.

All that a decoding step needs lies in tables on the device, a row for each running sequence: its tokens, its blocks,
its sampling parameters. A drawn token is written into its row there, so that the next step can be launched before the
host has seen it; the host sends only what changed. `launch` gives a handle, and `read` of it waits for the device.

Shape suffixes: N tokens of the step, B rows that draw, S slots, M blocks of a sequence, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..kernels.available import has_triton
from ..kernels.paged_attention import PagedBatch
from ..model.decoder import Decoder
from .attention import PagedAttention
from .cache import PagedCache
from .config import EngineConfig
from .fused import FusedDecoder, FusedStep, unfused
from .request import Request
from .sampler import Drawn, Read, Sampler
from .scheduler import Chunk, Step


class Runner:
    """Holds the model, its cache and the tables."""

    def __init__(self, model: Decoder, config: EngineConfig, vocab_size: int, stop_ids: Iterable[int] = ()):
        weight = model.embedding.weight
        self.model, self.config = model.eval(), config
        self.device = weight.device
        scaling = model.config.rope_scaling
        self.dynamic = scaling is not None and scaling.kind == "dynamic"
        fits = weight.is_cuda and has_triton() and unfused(model.config) is None
        self.fused = FusedDecoder(model) if fits else None
        self.vocab_size = vocab_size  # rows of the head beyond it are padding that no tokenizer knows
        self.cache = PagedCache(model.config, config, weight.dtype, weight.device)
        self.sampler = Sampler(config.max_num_seqs, vocab_size, self.device, stop_ids)
        slots, longest = config.max_num_seqs, config.max_model_len
        self.tokens_ST = torch.zeros(slots, longest, dtype=torch.int64, device=self.device)
        self._placed: dict[int, tuple[int, int]] = {}  # whose row a slot's is: request, and which time it runs
        self._sent: list[int] = [0] * slots  # blocks of each row that the table has

    @torch.inference_mode()
    def launch(self, step: Step) -> Launched:
        """Start a step. What is drawn is not waited for; on a GPU the lists that are sent to it are, as they come from
        ordinary memory."""
        return self._draw(step, self.hidden_states(step))

    @torch.inference_mode()
    def hidden_states(self, step: Step) -> Tensor:
        """The step's tokens through the blocks, `[N, C]`; their keys and values are in the cache afterwards."""
        if step.copies:
            self.cache.copy(step.copies)
        self._fill_tables(step)
        slots = [_slot(chunk) for chunk in step.chunks]
        counts = [chunk.num_tokens for chunk in step.chunks]
        lengths = [chunk.start + chunk.num_tokens for chunk in step.chunks]
        batch = PagedBatch.of(slots, counts, lengths, self.device)
        counts_C, total, size = batch.offsets.diff(), sum(counts), self.config.block_size
        slots_N = batch.slots_B.long().repeat_interleave(counts_C, output_size=total)
        shift_N = (batch.lengths_B - batch.offsets[1:]).repeat_interleave(counts_C, output_size=total)
        positions_N = torch.arange(total, device=self.device) + shift_N
        ids_N = self.tokens_ST[slots_N, positions_N]
        places_N = self.cache.table_SM[slots_N, positions_N // size].long() * size + positions_N % size
        attend = PagedAttention(self.cache.layers, batch, places_N)
        lengths_1N = self._context_lengths(step.chunks) if self.dynamic else None
        if self.fused is not None:
            contexts_N = None if lengths_1N is None else lengths_1N[0]
            fused = FusedStep(positions_N, slots_N, self.cache.layers, attend.attend, contexts_N)
            return self.fused.hidden_states(ids_N, fused)
        return self.model.hidden_states(ids_N[None], positions_N[None], attend, lengths_1N)[0]

    def _draw(self, step: Step, hidden_NC: Tensor) -> Launched:
        """Logits behind each chunk that asks for a token, the token, and its place in the table."""
        drawing: list[tuple[int, int, int]] = []
        requests, end = [], 0
        for chunk in step.chunks:
            end += chunk.num_tokens
            if chunk.samples:
                drawing.append((end - 1, _slot(chunk), chunk.start + chunk.num_tokens))
                requests.append(chunk.request)
        if not drawing:
            return Launched(requests, None)
        last_B, slots_B, positions_B = self._to_device(drawing).unbind(1)
        logits_BV = self.model.logits(hidden_NC[last_B])[:, : self.vocab_size].float()
        masks, errors = self._masks(requests)
        slots = [slot for _, slot, _ in drawing]
        drawn = self.sampler.sample(logits_BV, slots_B, positions_B, masks, slots)
        drawn.start_read()
        # A token that ends a full context has no place, and no step that would read it.
        longest = self.config.max_model_len
        places_B = positions_B.clamp(max=longest - 1)
        kept_B = self.tokens_ST[slots_B, places_B]
        self.tokens_ST[slots_B, places_B] = torch.where(positions_B < longest, drawn.tokens_B, kept_B)
        return Launched(requests, drawn, errors)

    def _masks(self, requests: Sequence[Request]) -> tuple[Tensor | None, dict[int, Exception]]:
        """What structured outputs allow, int32 `[B, ceil(V / 32)]`, None where there are none; and rows that have come
        to a dead end."""
        constrained = [row for row, request in enumerate(requests) if request.matcher is not None]
        if not constrained:
            return None, {}
        masks_BW = torch.full((len(requests), -(-self.vocab_size // 32)), -1, dtype=torch.int32)
        errors: dict[int, Exception] = {}
        for row in constrained:
            matcher = requests[row].matcher
            assert matcher is not None
            try:
                matcher.mask_into(masks_BW[row])
            except Exception as error:  # this request's trouble alone
                errors[row] = error
        return masks_BW.to(self.device, non_blocking=True), errors

    def _fill_tables(self, step: Step) -> None:
        """Rows of requests that are new in their slot, and blocks that others have got since."""
        new: list[tuple[int, int, int]] = []
        for chunk in step.chunks:
            request, slot = chunk.request, _slot(chunk)
            if self._placed.get(slot) != (request.id, request.num_preemptions):
                self._place(request, slot)
            first = self._sent[slot]
            if step.copies:  # a shared block that is about to be written was replaced
                first = min(first, chunk.start // self.config.block_size)
            for number in range(first, len(request.blocks)):
                new.append((slot, number, request.blocks[number]))
            self._sent[slot] = len(request.blocks)
        if new:
            slots, numbers, blocks = self._to_device(new).unbind(1)
            self.cache.table_SM[slots, numbers] = blocks.int()

    def _place(self, request: Request, slot: int) -> None:
        self._placed[slot] = request.id, request.num_preemptions
        self._sent[slot] = 0
        ids = request.prompt_ids + request.output_ids
        self.tokens_ST[slot, : len(ids)] = torch.tensor(ids, device=self.device)
        self.sampler.place(slot, request)

    def _context_lengths(self, chunks: Sequence[Chunk]) -> Tensor:
        lengths = [length for chunk in chunks for length in context_lengths(chunk)]
        return torch.tensor([lengths], device=self.device)

    def _to_device(self, rows: Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor(rows, device=self.device)


@dataclass
class Launched:
    """A step under way: what it draws, and for whom."""

    requests: list[Request]
    drawn: Drawn | None
    errors: dict[int, Exception] = field(default_factory=dict)  # by row, of requests that cannot go on

    def read(self) -> Read:
        """The drawn tokens, one entry for each request; waits for the device."""
        return Read([], [], {}) if self.drawn is None else self.drawn.read()


def context_lengths(chunk: Chunk) -> list[int]:
    """The context that each token of a chunk reckons with, where rotary scaling is "dynamic": tokens of the prompt its
    whole length, later ones what stands up to them, as in transformers. Keys stay as they were when they were cached.
    """
    prompt = len(chunk.request.prompt_ids)
    return [max(prompt, position + 1) for position in range(chunk.start, chunk.start + chunk.num_tokens)]


def _slot(chunk: Chunk) -> int:
    assert chunk.request.slot is not None
    return chunk.request.slot
