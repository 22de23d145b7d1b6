"""Drawing the next token of every sequence of a step at once, from parameters that lie on the device.

A request's parameters are written into its slot's row of the tables when it gets the slot; a step then sends nothing
and waits for nothing. What the host must know, such as whether any row has penalties, it knows from the parameters.

Before a draw the logits go through, in this order: the mask of a structured output; logit bias and the ban of ends
before `min_tokens`; the repetition penalty over prompt and output; presence and frequency penalties over the output.
Then kernels/sampling.py divides by the temperature and cuts by top_k, top_p and min_p. transformers and vLLM agree on
all but the order of the first: vLLM bans and biases before it penalizes, as here, transformers biases last.

Log probabilities are of the model's own distribution, before all of this. Beams alone are ranked by what the mask,
the bias and the penalties leave, normalized (`renormalize_logits` of transformers).

Shape suffixes: B rows, S slots, V vocabulary, W entries of a slot, K tokens of a draft, J = K + 1, N tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..kernels.sampling import DrawTable, Need, Verified, draw, uniforms, verify, verify_drawn, weights
from .request import Request, TokenLogprob
from .sampling import SamplingParams
from .sending import Copied, on_its_way, sent

PROMPT = 1 << 30  # in a count: the token stands in the prompt
ALWAYS = 1 << 62  # a position that no sequence reaches
ACCEPTS, REPLACES = 1, 2  # streams of random numbers of drafts; 0 is that of plain draws
SOME_TOP = (0, 5, 20)  # likeliest tokens that steps are recorded with: few numbers, few graphs
PROMPT_CHUNK = 1 << 24  # logits of a prompt that are held at once


@dataclass(frozen=True)
class Read:
    """Drawn tokens on the host, one entry per row. `finite` is false where the model gave no usable logits and the
    token means nothing."""

    token_ids: list[int]
    finite: list[bool]
    logprobs: dict[int, tuple[float, list[TokenLogprob]]]  # by row, of those that asked


@dataclass
class Drawn:
    """Drawn tokens on the device. The last three are there where any row asked, and hold nothing of meaning in rows
    that did not."""

    tokens_B: Tensor  # int64
    finite_B: Tensor  # bool
    slots_B: Tensor
    logprob_B: Tensor | None = None
    top_ids_BK: Tensor | None = None
    top_values_BK: Tensor | None = None
    tops: Mapping[int, int] = field(default_factory=dict)  # by slot, the likeliest tokens it wants with each token
    _copied: Copied | None = None

    def _parts(self) -> list[Tensor]:
        parts = [self.tokens_B, self.finite_B]
        if self.logprob_B is not None and self.top_ids_BK is not None and self.top_values_BK is not None:
            parts += [self.slots_B, self.logprob_B, self.top_ids_BK, self.top_values_BK]
        return parts

    def only(self, *rows: slice) -> Drawn:
        """Only these rows."""
        names = ("tokens_B", "finite_B", "slots_B", "logprob_B", "top_ids_BK", "top_values_BK")
        parts: dict[str, Any] = {}
        for name in names:
            if (tensor := getattr(self, name)) is not None:
                chosen = [tensor[some] for some in rows]
                parts[name] = chosen[0] if len(chosen) == 1 else torch.cat(chosen)
        return replace(self, **parts)

    def start_read(self) -> None:
        """Start the copies that `read` needs behind the work that is under way; on a CPU there are none."""
        self._copied = Copied.of(self._parts())

    def read(self) -> Read:
        """The tokens, once the device is done with them."""
        parts = [part.tolist() for part in (self._copied or Copied(self._parts())).read()]
        logprobs = {}
        if len(parts) > 2:
            for row, (slot, logprob, ids, values) in enumerate(zip(*parts[2:], strict=True)):
                if (count := self.tops.get(slot)) is not None:
                    logprobs[row] = logprob, list(zip(ids[:count], values[:count], strict=True))
        return Read(parts[0], parts[1], logprobs)


class Asked(NamedTuple):
    """What the rows of a step ask for, known on the host: a captured graph serves all steps that ask the same."""

    need: Need
    penalties: bool
    entries: int  # of a slot's biases and bans; 0 where no row has any
    top: int | None  # most likeliest tokens that a row wants; None where none wants log probabilities
    beams: bool


class Sampler:
    """Parameters by slot, and draws with them. `stop_ids` end every request that does not ignore them."""

    def __init__(self, slots: int, vocab_size: int, device: torch.device | str, stop_ids: Iterable[int] = ()):
        self.vocab_size, self.device = vocab_size, torch.device(device)
        self.stop_ids = frozenset(stop_ids)
        self.table = DrawTable(
            self._filled(slots, 0.0),
            self._filled(slots, 0, torch.int32),
            self._filled(slots, 1.0),
            self._filled(slots, 0.0),
            self._filled(slots, 0, torch.int64),
        )
        self.penalties_S3 = self._filled((slots, 3), 0.0)  # repetition, presence, frequency
        self.penalties_S3[:, 0] = 1
        self.counted: Tensor | None = None  # int32 [slots, V]: how often in the output, and PROMPT
        self.entry_ids_SW = self._filled((slots, 0), 0, torch.int64)
        self.entry_values_SW = self._filled((slots, 0), 0.0)
        self.entry_until_SW = self._filled((slots, 0), 0, torch.int64)  # the entry holds before this position
        self._placed: dict[int, SamplingParams] = {}
        self._unwritten: dict[int, list[float]] = {}  # by slot, what `write_placed` has yet to send
        self._entries: dict[int, int] = {}  # of slots that have any

    def _filled(self, shape: int | tuple[int, ...], value: float, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.full((shape,) if isinstance(shape, int) else shape, value, dtype=dtype, device=self.device)

    @torch.inference_mode()
    def place(self, slot: int, request: Request) -> None:
        """Take a request's parameters for its slot, and what it has of tokens so far where they count. The parameters
        are in the tables after `write_placed`, which sends those of many requests at once."""
        params = request.params
        self._placed[slot] = params
        seed = request.seed & (2**64 - 1)
        self._unwritten[slot] = [
            params.temperature, min(params.top_k, 2**31 - 1), params.top_p, params.min_p, seed - (seed >> 63 << 64),
            params.repetition_penalty, params.presence_penalty, params.frequency_penalty,
        ]  # fmt: skip
        if params.penalizes:
            self._count(slot, request)
        self._place_entries(slot, request)

    @torch.inference_mode()
    def write_placed(self) -> None:
        """What was taken since the last call, into the tables."""
        if not self._unwritten:
            return
        rows = self._unwritten.values()
        exact = torch.tensor([[slot, row[1], row[4]] for slot, row in self._unwritten.items()])
        floats = torch.tensor([[row[place] for place in (0, 2, 3, 5, 6, 7)] for row in rows], dtype=torch.float32)
        # One copy for all: a float's bits as half of a whole number.
        packed = sent(torch.cat((exact, floats.view(torch.int64)), dim=1), self.device)
        slots_B, top_k_B, seed_B = packed[:, :3].unbind(1)
        numbers_B6 = packed[:, 3:].contiguous().view(torch.float32)
        self.table.top_k_S[slots_B], self.table.seed_S[slots_B] = top_k_B.int(), seed_B
        for place, column_S in enumerate((self.table.temperature_S, self.table.top_p_S, self.table.min_p_S)):
            column_S[slots_B] = numbers_B6[:, place]
        self.penalties_S3[slots_B] = numbers_B6[:, 3:]
        self._unwritten.clear()

    def _count(self, slot: int, request: Request) -> None:
        if self.counted is None:
            self.counted = self._filled((len(self.penalties_S3), self.vocab_size), 0, torch.int32)
        counts_V = torch.bincount(torch.tensor(request.output_ids, dtype=torch.int64), minlength=self.vocab_size)
        counts_V[torch.tensor(request.prompt_ids, dtype=torch.int64)] += PROMPT
        self.counted[slot] = sent(counts_V.int(), self.device)

    def _place_entries(self, slot: int, request: Request) -> None:
        params = request.params
        entries = [(token, float(bias), ALWAYS) for token, bias in params.logit_bias.items()]
        if params.min_tokens:
            ends = self._ends(params)
            until = min(len(request.prompt_ids) + params.min_tokens, ALWAYS)
            entries += [(token, -torch.inf, until) for token in sorted(ends) if token < self.vocab_size]
        if not entries and slot not in self._entries:
            return
        self._entries.pop(slot, None)
        if entries:
            self._entries[slot] = len(entries)
        width = self.entry_ids_SW.shape[1]
        if len(entries) > width:
            more = 1 << (len(entries) - 1).bit_length()
            for name in ("entry_ids_SW", "entry_values_SW", "entry_until_SW"):
                setattr(self, name, torch.nn.functional.pad(getattr(self, name), (0, more - width)))
            width = more
        ids, values, untils = zip(*entries, *[(0, 0.0, 0)] * (width - len(entries)), strict=True)
        self.entry_ids_SW[slot] = on_its_way(ids, torch.int64, self.device)
        self.entry_values_SW[slot] = on_its_way(values, torch.float32, self.device)
        self.entry_until_SW[slot] = on_its_way(untils, torch.int64, self.device)

    def _ends(self, params: SamplingParams) -> set[int]:
        return {*params.stop_token_ids, *(() if params.ignore_eos else self.stop_ids)}

    def _top(self, params: SamplingParams) -> int | None:
        """Likeliest tokens that are wanted with each token: of a beam enough that, without those that end it, there are
        as many as beams."""
        if params.beam_width is not None:
            return max(params.beam_width * (1 + max(len(self._ends(params)), 1)), params.top_logprobs)
        return params.top_logprobs if params.logprobs else None

    def free(self, slot: int) -> None:
        """The slot's request runs no more: what it asked for is not reckoned with any longer. Its entries stay known,
        for the next request has to clear them: others' entries make all rows be read."""
        self._placed.pop(slot, None)

    def asked(self, slots: Collection[int] | None = None) -> Asked:
        """What the requests in these slots (None: in all) ask for together."""
        chosen = self._placed.values() if slots is None else [self._placed[slot] for slot in slots]
        draws = any(not p.greedy and p.beam_width is None for p in chosen)
        tops = [top for p in chosen if (top := self._top(p)) is not None]
        entries = any(slot in self._entries for slot in (self._placed if slots is None else slots))
        return Asked(
            Need(draws, draws and any(p.cuts for p in chosen)),
            any(p.penalizes for p in chosen),
            self.entry_ids_SW.shape[1] if entries else 0,
            next((many for many in SOME_TOP if max(tops) <= many), max(tops)) if tops else None,
            any(p.beam_width is not None for p in chosen),
        )

    @torch.inference_mode()
    def sample(
        self,
        logits_BV: Tensor,
        slots_B: Tensor,
        positions_B: Tensor,
        masks: Tensor | None = None,
        slots: Collection[int] | None = None,
    ) -> Drawn:
        """The token of each row for its position, without waiting for the device.

        `logits_BV` is float32 and left as it is. `masks`: int32 `[B, ceil(V / 32)]`, on the device, a bit set for each
        token that may come. `slots`: those of `slots_B`, where the host knows them; without, on a GPU, all that were
        placed and not freed are reckoned with.
        """
        self.write_placed()
        if slots is None and not slots_B.is_cuda:
            slots = slots_B.tolist()
        return self.sample_as(self.asked(slots), logits_BV, slots_B, positions_B, masks)

    @torch.inference_mode()
    def sample_as(
        self, asked: Asked, logits_BV: Tensor, slots_B: Tensor, positions_B: Tensor, masks: Tensor | None = None
    ) -> Drawn:
        """`sample` of rows that ask for no more than this; what a CUDA graph holds, but for `Drawn.tops`. On a GPU
        logits may be of any type: to draw from them, and no more, they need not be widened."""
        if masks is not None or asked.entries or asked.penalties or asked.top is not None:
            logits_BV = logits_BV.float()
        ready_BV = self._ready(logits_BV, slots_B, positions_B, masks, asked)
        tokens_B, finite_B = draw(ready_BV, self.table, slots_B, positions_B, asked.need)
        drawn = Drawn(tokens_B, finite_B, slots_B)
        if asked.top is not None:
            self._add_logprobs(drawn, logits_BV, ready_BV, asked)
        if asked.penalties and self.counted is not None:
            places_B = slots_B.long() * self.vocab_size + tokens_B
            self.counted.view(-1).scatter_add_(0, places_B, torch.ones_like(places_B, dtype=torch.int32))
        return drawn

    def _ready(
        self, logits_BV: Tensor, slots_B: Tensor, positions_B: Tensor, masks: Tensor | None, asked: Asked
    ) -> Tensor:
        """Logits after the mask, bias, bans and penalties: the given ones where there is none of these."""
        if masks is not None:
            bits_32 = torch.arange(32, dtype=torch.int32, device=masks.device)
            allowed_BV = ((masks[:, :, None] >> bits_32) & 1).flatten(1)[:, : self.vocab_size].bool()
            logits_BV = torch.where(allowed_BV, logits_BV, -torch.inf)
        if asked.entries:
            holds_BW = positions_B[:, None] < self.entry_until_SW[slots_B]
            values_BW = torch.where(holds_BW, self.entry_values_SW[slots_B], 0)
            logits_BV = logits_BV.scatter_add(1, self.entry_ids_SW[slots_B], values_BW)
        if asked.penalties and self.counted is not None:
            repetition_B1, presence_B1, frequency_B1 = self.penalties_S3[slots_B].split(1, dim=1)
            counted_BV = self.counted[slots_B]
            times_BV = counted_BV & (PROMPT - 1)
            damped_BV = torch.where(logits_BV > 0, logits_BV / repetition_B1, logits_BV * repetition_B1)
            logits_BV = torch.where(counted_BV > 0, damped_BV, logits_BV)
            logits_BV = logits_BV - (frequency_B1 * times_BV + presence_B1 * (times_BV > 0))
        return logits_BV

    def tops(self) -> dict[int, int]:
        """By slot, how many of the likeliest tokens come with each token, of those that want log probabilities."""
        return {slot: top for slot, params in self._placed.items() if (top := self._top(params)) is not None}

    def _add_logprobs(self, drawn: Drawn, logits_BV: Tensor, ready_BV: Tensor, asked: Asked) -> None:
        assert asked.top is not None
        tops = self.tops()
        slots_B, tokens_B = drawn.slots_B, drawn.tokens_B
        rows: list[int] | slice = slice(None)
        if not logits_BV.is_cuda:  # on a GPU to pick rows would be to send their numbers
            rows = [row for row, slot in enumerate(slots_B.tolist()) if slot in tops]
        if asked.beams:
            beams_S = torch.zeros(len(self.penalties_S3), dtype=torch.bool)
            beams_S[[slot for slot, params in self._placed.items() if params.beam_width is not None]] = True
            logits_BV = torch.where(sent(beams_S, self.device)[slots_B][:, None], ready_BV, logits_BV)
        chosen = logprobs_of(logits_BV[rows], tokens_B[rows], min(asked.top, logits_BV.shape[1]))
        filled = [torch.zeros(len(tokens_B), *part.shape[1:], dtype=part.dtype, device=self.device) for part in chosen]
        for whole, part in zip(filled, chosen, strict=True):
            whole[rows] = part
        drawn.logprob_B, drawn.top_ids_BK, drawn.top_values_BK = filled
        drawn.tops = tops

    @torch.inference_mode()
    def verify(
        self,
        logits_BJV: Tensor,
        slots_B: Tensor,
        positions_B: Tensor,
        drafts_BK: Tensor,
        counts_B: Tensor,
        draft_probs_BKV: Tensor | None = None,
        masks: Tensor | None = None,
        slots: Collection[int] | None = None,
    ) -> Verified:
        """How many tokens of each draft stay and the one that follows, with the output's distribution as without.

        `logits_BJV`: behind the last known token and behind each token of the draft; `positions_B`: of the first token
        that is new; `counts_B`: tokens of each draft. A row of `draft_probs_BKV` that is all zeros (greedy ones, n-gram
        drafts) is a draft of probability 1: it changes no token, seeded or not. `masks`: int32 `[B, J, ceil(V / 32)]`.
        Rows with penalties have no drafts.
        """
        self.write_placed()
        if slots is None and not slots_B.is_cuda:
            slots = slots_B.tolist()
        asked = self.asked(slots)
        return self.verify_as(asked, logits_BJV, slots_B, positions_B, drafts_BK, counts_B, draft_probs_BKV, masks)

    @torch.inference_mode()
    def verify_as(
        self,
        asked: Asked,
        logits_BJV: Tensor,
        slots_B: Tensor,
        positions_B: Tensor,
        drafts_BK: Tensor,
        counts_B: Tensor,
        draft_probs_BKV: Tensor | None = None,
        masks: Tensor | None = None,
    ) -> Verified:
        """`verify` of rows that ask for no more than this; without probabilities and masks a CUDA graph can hold it."""
        assert not asked.penalties, "penalties change with every token of a draft"
        count, places, vocab = logits_BJV.shape
        flat = Sampler._repeat(slots_B, places), (positions_B[:, None] + _range(places, positions_B)).flatten()
        flat_masks = None if masks is None else masks.flatten(0, 1)
        ready = self._ready(logits_BJV.reshape(-1, vocab), *flat, flat_masks, asked)
        tokens, _ = draw(ready, self.table, *flat, asked.need)
        same = verify_drawn(tokens.view(count, places), drafts_BK, counts_B)
        if draft_probs_BKV is None:
            return same
        heat = self.table.temperature_S[flat[0]]
        probs = weights(ready, ready.amax(dim=-1), heat, self.table, flat[0], asked.need)
        probs_BJV = (probs / probs.sum(dim=-1, keepdim=True)).view(count, places, vocab)
        numbers = [uniforms(self.table.seed_S[flat[0]], flat[1], stream) for stream in (ACCEPTS, REPLACES)]
        uniforms_2BJ = torch.stack(numbers).view(2, count, places)
        other = verify(probs_BJV, drafts_BK, counts_B, draft_probs_BKV, uniforms_2BJ)
        drawn_B = draft_probs_BKV.flatten(1).any(dim=-1)
        return Verified(*(torch.where(drawn_B, a, b) for a, b in zip(other, same, strict=True)))

    @staticmethod
    def _repeat(slots_B: Tensor, times: int) -> Tensor:
        return slots_B[:, None].expand(-1, times).flatten()


def _range(count: int, like: Tensor) -> Tensor:
    return torch.arange(count, dtype=like.dtype, device=like.device)


def logprobs_of(logits_NV: Tensor, targets_N: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log probability of each row's target `[N]`, and ids and log probabilities of the `top` likeliest `[N, top]`."""
    logprobs_NV = logits_NV.log_softmax(dim=-1)
    values_NK, ids_NK = logprobs_NV.topk(top, dim=-1)
    return logprobs_NV.gather(1, targets_N[:, None])[:, 0], ids_NK, values_NK


@torch.inference_mode()
def prompt_logprobs(
    hidden_NC: Tensor, head: Callable[[Tensor], Tensor], targets_N: Tensor, top: int, vocab_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`logprobs_of` tokens of a prompt, each of which stands behind a row of `hidden_NC`; `head` makes logits of
    hidden states. Logits are made for a chunk of tokens at a time and cut to `vocab_size`."""
    top, rows = min(top, vocab_size), max(PROMPT_CHUNK // vocab_size, 1)
    chunks = [
        logprobs_of(head(hidden)[:, :vocab_size].float(), targets, top)
        for hidden, targets in zip(hidden_NC.split(rows), targets_N.split(rows), strict=True)
    ]
    logprob, ids, values = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    return logprob, ids, values
