"""One step on the device: the scheduled tokens through the model, and the tokens drawn after them.

All that a decoding step needs lies in tables on the device, a row for each running sequence: its tokens, its blocks,
its sampling parameters. A drawn token is written into its row there, so that the next step can be launched before the
host has seen it; the host sends only what changed, and waits for nothing. `launch` gives a handle, and `read` of it
waits for the device. On a GPU a step in which every sequence decodes is a CUDA graph (graphs.py).

Shape suffixes: N tokens of the step, B rows that draw, S slots, M blocks of a sequence, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..errors import GristmillError
from ..kernels.available import has_triton
from ..kernels.cpu_linear import forget
from ..kernels.decode_tables import decode_inputs, keep_drawn, write_tokens
from ..kernels.paged_attention import PagedBatch
from ..kernels.sampling import Need
from ..model.decoder import Decoder
from ..plan.recorded_steps import recorded_tokens
from .attention import InvariantAttention, PagedAttention
from .cache import PagedCache
from .config import EngineConfig
from .draft_steps import FACTS, Found, Planned, idle_draft, plans
from .fused import FusedDecoder, FusedStep, unfused, varies
from .graphs import DecodeGraphs, NotRecorded, Recorded, unrecorded
from .prompt_steps import Reading, Size, can_be_planned, idle_plan, num_ones, plan_of, size_of
from .request import Request
from .sampler import Asked, Drawn, Read, Sampler
from .scheduler import Chunk, Step
from .scoring import Checked, Drafts, PromptScores, check_drafts, score_prompts, what_stays
from .sending import on_its_way, sent

log = logging.getLogger(__name__)
NOTHING = Asked(Need(), False, 0, None, False)  # is asked where nothing is drawn
MOST_QUERIES = 64  # of a sequence and key head that the decoding kernel takes at once; above, the other one


class Runner:
    """Holds the model, its cache and the tables."""

    def __init__(self, model: Decoder, config: EngineConfig, vocab_size: int, stop_ids: Iterable[int] = ()):
        weight = model.embedding.weight
        self.model, self.config = model.eval(), config
        self.device = weight.device
        scaling = model.config.rope_scaling
        self.dynamic = scaling is not None and scaling.kind == "dynamic"
        if config.batch_invariant and (reason := varies(model)) is not None:
            raise GristmillError(f"batch_invariant: {reason} gives other bits in other batches; leave it out")
        on_gpu = weight.is_cuda and has_triton() and unfused(model.config) is None
        self.fused = FusedDecoder(model) if on_gpu or config.batch_invariant else None
        self.vocab_size = vocab_size  # rows of the head beyond it are padding that no tokenizer knows
        slots, longest = config.max_num_seqs, config.max_model_len
        # One row more than there are slots: the idle one, which fills up batches of fixed sizes.
        self.cache = PagedCache(model.config, config, weight.dtype, weight.device)
        self.sampler = Sampler(slots + 1, vocab_size, self.device, stop_ids)
        self.tokens_ST = torch.zeros(slots + 1, longest, dtype=torch.int64, device=self.device)
        self.places_S = torch.full((slots + 1,), -1, device=self.device)  # of the token that is seen next
        self._next: list[int] = [-1] * slots  # what the host knows `places_S` to be
        self._placed: dict[int, tuple[int, int]] = {}  # whose row a slot's is: request, and which time it runs
        self._sent: list[int] = [0] * slots  # blocks of each row that the table has
        self._asked: tuple[list[int], Asked] | None = None  # of the slots that decoded last
        self.graphs: DecodeGraphs | None = None
        if on_gpu and config.graphs and unrecorded(model.config) is None:
            self.graphs = DecodeGraphs(slots, idle_slot=slots, model=model)
        self._recorded_tokens = recorded_tokens(model.config, config.max_num_batched_tokens)

    @torch.inference_mode()
    def launch(self, step: Step, drafts: Drafts | None = None) -> Launched:
        """Start a step. Nothing is waited for. `drafts`: those that the step's chunks have, or more of each."""
        if self.graphs is not None and not step.copies:
            launched = None
            if step.decode_only:
                launched = self._replay(step, self.graphs)
            elif drafts and not self.config.batch_invariant:
                launched = self._replay_checking(step, drafts, self.graphs)
            elif not self.config.batch_invariant:
                launched = self._replay_prompts(step, self.graphs)
            if launched is not None:
                return launched
        hidden_NC = self.hidden_states(step)
        launched = self._draw(step, hidden_NC)
        if not step.decode_only:
            head = self._logits
            launched.checked = check_drafts(step.chunks, hidden_NC, head, self.sampler, drafts or {}, self.tokens_ST)
            if launched.checked is not None:
                launched.checked.start_read()
            launched.prompts = score_prompts(step.chunks, hidden_NC, head, self.vocab_size)
        return launched

    def free(self, slot: int) -> None:
        """The slot's request has left it, or its tokens have been changed: what is known of it holds no more."""
        self._placed.pop(slot, None)
        self._asked = None
        self._next[slot] = -1
        self.sampler.free(slot)
        if self.graphs is not None:  # the next request may run in the same slot alone, with other weights
            self.graphs.look_again()

    def weights_changed(self) -> None:
        """What was made of the old weights is made anew."""
        forget(self.model.parameters())
        if self.graphs is not None:
            self.graphs.look_again()

    def _replay(self, step: Step, graphs: DecodeGraphs) -> Launched | None:
        """A step in which every sequence decodes, as a graph; None where what it asks of the host cannot be part of
        one, or none can be made."""
        requests = [chunk.request for chunk in step.chunks]
        self._fill_tables(step)
        slots = [_slot(chunk) for chunk in step.chunks]
        asked = self._asked_by(slots)
        if asked.beams:
            return None
        moved = [(slot, chunk.start) for slot, chunk in zip(slots, step.chunks, strict=True) if self._is_moved(chunk)]
        if moved:
            moved_2B = on_its_way(list(zip(*moved, strict=True)), torch.int64, self.device)
            self.places_S[moved_2B[0]] = moved_2B[1]
        for slot, chunk in zip(slots, step.chunks, strict=True):
            self._next[slot] = chunk.start + 1
        masks_BW, errors = self._masks(requests)
        drawn: Drawn | None
        if masks_BW is None:
            drawn = self._run(graphs, self.decode, slots, asked)
        else:
            slots_B1 = torch.tensor(slots, dtype=torch.int32)[:, None]
            idle = torch.full((1 + masks_BW.shape[1],), -1, dtype=torch.int32)
            idle[0] = graphs.idle_slot
            drawn = self._run(graphs, self.decode_masked, slots, asked, torch.cat([slots_B1, masks_BW], dim=1), idle)
        if drawn is None:
            return None
        drawn = drawn.only(slice(len(slots)))
        drawn.tops = self.sampler.tops() if asked.top is not None else {}
        drawn.start_read()
        return Launched(requests, drawn, errors, recorded=graphs.just_recorded)

    def _run(
        self,
        graphs: DecodeGraphs,
        recorded: Recorded,
        slots: list[int],
        asked: Asked,
        rows: Tensor | None = None,
        idle: Tensor | None = None,
    ) -> Any | None:
        """A step as a graph, a row for each slot; None where it cannot be recorded."""
        return self._recording(graphs.run, recorded, slots, asked, self.device, rows, idle)

    @staticmethod
    def _recording(run: Callable[..., Any | None], *arguments: Any) -> Any | None:
        """What a graph gives; None where there can be none: replies do not need it, they are slower without."""
        try:
            return run(*arguments)
        except NotRecorded as error:
            log.warning("such steps are launched kernel by kernel from now on, as they cannot be recorded: %s", error)
            return None

    def _asked_by(self, slots: list[int]) -> Asked:
        if self._asked is None or self._asked[0] != slots:
            self._asked = slots, self.sampler.asked(slots)
        return self._asked[1]

    def _replay_checking(self, step: Step, drafts: Drafts, graphs: DecodeGraphs) -> Launched | None:
        """The same of a step in which drafts are checked; they are not written into the table."""
        assert self.config.speculation is not None
        self._fill_tables(step, drafts=False)
        slots = [_slot(chunk) for chunk in step.chunks]
        asked = self._asked_by(slots)
        plan = plans(step, drafts, asked, self.config.speculation.num_tokens)
        if plan is None:
            return None
        idle = idle_draft(graphs.idle_slot, plan.shape[1] - FACTS)
        found: Found | None = self._run(graphs, self.check, slots, asked, plan, idle)
        if found is None:
            return None
        for slot, chunk in zip(slots, step.chunks, strict=True):
            self._next[slot] = -1 if chunk.drafts else chunk.start + 1  # with a draft only the device knows
        count = len(slots)
        checked = Checked(step.chunks, found.tokens_BJ[:count], found.accepted_B[:count], found.finite_B[:count])
        checked.start_read()
        return Launched([], None, checked=checked, recorded=graphs.just_recorded)

    def _replay_prompts(self, step: Step, graphs: DecodeGraphs) -> Launched | None:
        """The same of a step that reads prompts (prompt_steps.py)."""
        size = size_of(step, self.config.max_num_seqs)
        if size.tokens > self._recorded_tokens:
            return None
        self._fill_tables(step)
        slots = [_slot(chunk) for chunk in step.chunks]
        asked = self._asked_by([_slot(chunk) for chunk in step.chunks if chunk.samples])
        if not can_be_planned(step, asked):
            return None
        plan, order = plan_of(step, size, graphs.idle_slot)
        read = partial(self.read_prompts, size)
        drawn: Drawn | None = self._recording(
            graphs.run_whole, read, slots, asked, self.device, plan, idle_plan(size, graphs.idle_slot), size
        )
        if drawn is None:
            return None
        for slot, chunk in zip(slots, step.chunks, strict=True):
            self._next[slot] = chunk.start + chunk.num_tokens
        drawing = [at for at in order if step.chunks[at].samples]
        if not drawing:
            return Launched([], None, recorded=graphs.just_recorded)
        ones = num_ones(step)
        rows = [slice(0, ones), slice(size.decoding, size.decoding + len(drawing) - ones)]
        drawn = drawn.only(*[some for some in rows if some.start < some.stop])
        drawn.tops = self.sampler.tops() if asked.top is not None else {}
        drawn.start_read()
        return Launched([step.chunks[at].request for at in drawing], drawn, recorded=graphs.just_recorded)

    def read_prompts(self, size: Size, plan_RF: Tensor, asked: Asked) -> Drawn:
        """A step of these rows (prompt_steps.py), on the device from beginning to end, as `decode`."""
        reading = Reading.of(plan_RF, size.tokens)
        batch = PagedBatch(reading.slots_R.int(), reading.offsets, reading.lengths_R, size.decoding)
        ids_N = self.tokens_ST[reading.slots_N, reading.positions_N.clamp(min=0)]
        attend = PagedAttention(self.cache.layers, batch)
        hidden_NC = self._fused_states(ids_N, reading.slots_N, reading.positions_N, attend)
        self.places_S[reading.slots_R] = torch.where(reading.there_R, reading.ends_R, -1)
        logits_RV = self._logits(hidden_NC[reading.last_R], as_they_are=plan_RF.is_cuda)
        drawn = self.sampler.sample_as(asked, logits_RV, reading.slots_R, reading.ends_R)
        write_tokens(self.tokens_ST, reading.slots_R, reading.ends_R, drawn.tokens_B, reading.draws_R)
        return drawn

    def check(self, plan_BP: Tensor, asked: Asked) -> Found:
        """A step of these rows (draft_steps.py), on the device from beginning to end, as `decode`."""
        planned = Planned.of(plan_BP, self.tokens_ST)
        rows, width = planned.rows_BJ.shape
        hidden_NC = self._planned_states(planned)
        logits_BJV = self._logits(hidden_NC[planned.rows_BJ.flatten()]).view(rows, width, -1)
        counts_B = planned.counts_B.clamp(min=0)
        accepted_B, next_B = self.sampler.verify_as(
            asked, logits_BJV, planned.slots_B, planned.starts_B + 1, planned.drafts_BK, counts_B
        )
        planned.keep(self.tokens_ST, self.places_S, accepted_B, next_B)
        tokens_BJ, finite_B = what_stays(logits_BJV, planned.drafts_BK, accepted_B, next_B)
        return Found(tokens_BJ, accepted_B, finite_B)

    def read_on(self, plan_BP: Tensor, asked: Asked) -> Tensor:
        """Logits `[B, V]` behind the last token of each row, on the device from beginning to end, as `decode`."""
        planned = Planned.of(plan_BP, self.tokens_ST)
        return self._logits(self._planned_states(planned)[planned.rows_BJ[:, -1]])

    def _planned_states(self, planned: Planned) -> Tensor:
        rows, width = planned.rows_BJ.shape
        shared = self.model.config.num_heads // self.model.config.cache_shape[0]
        decoding = rows if shared * width <= MOST_QUERIES else 0
        most = width if decoding else 1
        batch = PagedBatch(planned.slots_B.int(), planned.offsets, planned.lengths_B, decoding, most)
        attend = PagedAttention(self.cache.layers, batch)
        return self._fused_states(planned.ids_N, planned.slots_N, planned.positions_N, attend)

    def replay_reading(self, step: Step, plan_BP: Tensor) -> Tensor | None:
        """Logits `[B, V]` behind each chunk of a few tokens, as a graph, of a model whose runner does nothing else
        alike; None where there are no graphs. The first token of each has its place in the table already."""
        if self.graphs is None or self.config.batch_invariant:
            return None
        self._fill_tables(step)
        idle = idle_draft(self.graphs.idle_slot, plan_BP.shape[1] - FACTS)
        slots = [_slot(chunk) for chunk in step.chunks]
        logits_BV: Tensor | None = self._run(self.graphs, self.read_on, slots, NOTHING, plan_BP, idle)
        return None if logits_BV is None else logits_BV[: len(slots)].clone()  # the next such step writes them again

    def _is_moved(self, chunk: Chunk) -> bool:
        """Whether a sequence goes on elsewhere than behind its last step, as one whose drafts were wrong."""
        return self._next[_slot(chunk)] != chunk.start

    def decode_masked(self, rows_BX: Tensor, asked: Asked) -> Drawn:
        """`decode` of rows that forms rule tokens out for: each row's slot, and its mask behind it."""
        return self.decode(rows_BX[:, 0].contiguous(), asked, rows_BX[:, 1:])

    def decode(self, slots_B: Tensor, asked: Asked, masks_BW: Tensor | None = None) -> Drawn:
        """One token of each slot (int32), on the device from beginning to end: read from the tables, through the model,
        the next one drawn and kept. The fused decoder alone runs so."""
        assert self.fused is not None
        ids_B, positions_B, lengths_B = decode_inputs(self.tokens_ST, self.places_S, slots_B)
        if self.config.batch_invariant:
            hidden_BC = self._invariant_states(ids_B, slots_B, positions_B)
        else:
            offsets = torch.arange(len(slots_B) + 1, dtype=torch.int32, device=self.device)
            attend = PagedAttention(self.cache.layers, PagedBatch(slots_B, offsets, lengths_B, len(slots_B)))
            hidden_BC = self._fused_states(ids_B, slots_B, positions_B, attend)
        logits_BV = self._logits(hidden_BC, as_they_are=slots_B.is_cuda)
        drawn = self.sampler.sample_as(asked, logits_BV, slots_B, positions_B + 1, masks_BW)
        keep_drawn(self.tokens_ST, self.places_S, slots_B, drawn.tokens_B)
        return drawn

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
        self.places_S[batch.slots_B] = batch.lengths_B.long()
        for slot, length in zip(slots, lengths, strict=True):
            self._next[slot] = length
        counts_C, total, size = batch.offsets.diff(), sum(counts), self.config.block_size
        slots_N = batch.slots_B.long().repeat_interleave(counts_C, output_size=total)
        shift_N = (batch.lengths_B - batch.offsets[1:]).repeat_interleave(counts_C, output_size=total)
        positions_N = torch.arange(total, device=self.device) + shift_N
        ids_N = self.tokens_ST[slots_N, positions_N]
        lengths_1N = self._context_lengths(step.chunks) if self.dynamic else None
        if self.config.batch_invariant:
            return self._invariant_states(ids_N, slots_N.int(), positions_N)
        if self.fused is not None:
            contexts_N = None if lengths_1N is None else lengths_1N[0]
            attend = PagedAttention(self.cache.layers, batch)
            return self._fused_states(ids_N, slots_N, positions_N, attend, contexts_N)
        places_N = self.cache.table_SM[slots_N, positions_N // size].long() * size + positions_N % size
        attend = PagedAttention(self.cache.layers, batch, places_N)
        return self.model.hidden_states(ids_N[None], positions_N[None], attend, lengths_1N)[0]

    def _fused_states(
        self,
        ids_N: Tensor,
        slots_N: Tensor,
        positions_N: Tensor,
        attend: PagedAttention | InvariantAttention,
        contexts_N: Tensor | None = None,
    ) -> Tensor:
        assert self.fused is not None
        step = FusedStep(
            positions_N, slots_N, self.cache.layers, attend.attend, contexts_N, self.config.batch_invariant
        )
        return self.fused.hidden_states(ids_N, step)

    def _invariant_states(self, ids_N: Tensor, slots_N: Tensor, positions_N: Tensor) -> Tensor:
        """Hidden states that depend on each token's sequence alone, bit for bit. A processor sees one token at a time:
        nearly all that it computes with vectors rounds as the whole tensor's size says."""
        if ids_N.is_cuda:
            return self._fused_states(ids_N, slots_N, positions_N, InvariantAttention(slots_N, positions_N))
        rows: list[Tensor] = [ids_N.new_empty(0)] * len(ids_N)
        # A sequence may begin with what another one computes in this very step: the order is that of places.
        for row in positions_N.argsort(stable=True).tolist():
            one = slice(row, row + 1)
            attend = InvariantAttention(slots_N[one], positions_N[one])
            rows[row] = self._fused_states(ids_N[one], slots_N[one], positions_N[one], attend)
        return torch.cat(rows)

    def _logits(self, hidden_BC: Tensor, as_they_are: bool = False) -> Tensor:
        """Float32 `[B, V]`, or of the model's type `as_they_are`, of the tokens that the tokenizer knows."""
        if self.config.batch_invariant and not hidden_BC.is_cuda:
            logits_BV = torch.cat([self.model.logits(hidden_BC[row : row + 1]) for row in range(len(hidden_BC))])
        elif self.fused is None:
            logits_BV = self.model.logits(hidden_BC)
        else:
            logits_BV = self.fused.logits(hidden_BC, self.config.batch_invariant)
        logits_BV = logits_BV[:, : self.vocab_size]
        return logits_BV if as_they_are else logits_BV.float()

    def _draw(self, step: Step, hidden_NC: Tensor) -> Launched:
        """Logits behind each chunk that asks for a token, the token, and its place in the table."""
        drawing: list[tuple[int, int, int]] = []
        requests, end = [], 0
        for chunk in step.chunks:
            end += chunk.num_tokens
            if chunk.samples and not chunk.drafts:
                drawing.append((end - 1, _slot(chunk), chunk.start + chunk.num_tokens))
                requests.append(chunk.request)
        if not drawing:
            return Launched(requests, None)
        last_B, slots_B, positions_B = on_its_way(drawing, torch.int64, self.device).unbind(1)
        logits_BV = self._logits(hidden_NC[last_B])
        masks, errors = self._masks(requests)
        slots = [slot for _, slot, _ in drawing]
        on_device = None if masks is None else sent(masks, self.device)
        drawn = self.sampler.sample(logits_BV, slots_B, positions_B, on_device, slots)
        drawn.start_read()
        write_tokens(self.tokens_ST, slots_B, positions_B, drawn.tokens_B)
        return Launched(requests, drawn, errors)

    def _masks(self, requests: Sequence[Request]) -> tuple[Tensor | None, dict[int, Exception]]:
        """What structured outputs allow, int32 `[B, ceil(V / 32)]`, on the host; None where there are none. And rows
        that have come to a dead end."""
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
        return masks_BW, errors

    def _fill_tables(self, step: Step, drafts: bool = True) -> None:
        """Rows of requests that are new in their slot, blocks that others have got since, and tokens of drafts."""
        new: list[tuple[int, int, int]] = []
        placed: list[tuple[int, list[int]]] = []
        guessed: list[tuple[int, int, int]] = []
        for chunk in step.chunks:
            request, slot = chunk.request, _slot(chunk)
            if self._placed.get(slot) != (request.id, request.num_preemptions):
                self._place(request, slot)
                placed.append((slot, request.prompt_ids + request.output_ids))
            first = self._sent[slot]
            if step.copies:  # a shared block that is about to be written was replaced
                first = min(first, chunk.start // self.config.block_size)
            for number in range(first, len(request.blocks)):
                new.append((slot, number, request.blocks[number]))
            self._sent[slot] = len(request.blocks)
            guessed += [(slot, place, token) for place, token in enumerate(chunk.drafts, chunk.start + 1)]
        if placed:
            self._write_rows(placed)
            self.sampler.write_placed()
        if guessed and drafts:
            slots, places, tokens = on_its_way(guessed, torch.int64, self.device).unbind(1)
            self.tokens_ST[slots, places] = tokens
        if new:
            slots, numbers, blocks = on_its_way(new, torch.int64, self.device).unbind(1)
            self.cache.table_SM[slots, numbers] = blocks.int()

    def _place(self, request: Request, slot: int) -> None:
        self._placed[slot] = request.id, request.num_preemptions
        self._sent[slot] = 0
        self._asked = None
        self.sampler.place(slot, request)

    def _write_rows(self, rows: Sequence[tuple[int, list[int]]]) -> None:
        """The tokens of each slot into its row, all with one copy."""
        longest = self.tokens_ST.shape[1]
        ids = torch.tensor([token for _, ids in rows for token in ids])
        places = torch.cat([torch.arange(slot * longest, slot * longest + len(ids)) for slot, ids in rows])
        ids_N, places_N = sent(torch.stack((ids, places)), self.device).unbind(0)
        self.tokens_ST.view(-1)[places_N] = ids_N

    def _context_lengths(self, chunks: Sequence[Chunk]) -> Tensor:
        lengths = [length for chunk in chunks for length in context_lengths(chunk)]
        return on_its_way([lengths], torch.int64, self.device)


@dataclass
class Launched:
    """A step under way: what it draws, and for whom."""

    requests: list[Request]
    drawn: Drawn | None
    errors: dict[int, Exception] = field(default_factory=dict)  # by row, of requests that cannot go on
    checked: Checked | None = None  # drafts; their requests are not among `requests`
    prompts: list[PromptScores] = field(default_factory=list)
    recorded: bool = False  # its graph was, so the time it took says nothing

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
