"""When to guess, and how far. Torch-free.

A step with drafts takes longer and may yield more. Whether that pays depends on the model, the device, the batch and
the text, so it is measured: tokens a second of the last steps with drafts against those of the last steps without, for
each size of batch. Where drafts lose they are left off for a while and then tried again. Above `max_batch` there are
none at all: the device is busy without them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...errors import GristmillError
from ..request import Request
from .config import SpeculationConfig
from .proposal import Draft, Proposer, cut_at_end, cut_to_grammar, room

if TYPE_CHECKING:
    import numpy as np

WINDOW = 16  # last steps of either way that are compared
BASELINE = 4  # steps without drafts that are measured first
TRIAL = 8  # steps with drafts before they are judged, and between judgements
FRESH = 256  # steps with drafts in a row, after which BASELINE steps without are measured anew
PAUSE, MAX_PAUSE = 32, 512  # steps without drafts after they lost; doubled each time
MEMORY = 0.4  # weight of the last draft in a request's moving count of accepted tokens


@dataclass
class Figures:
    """What speculation has done so far."""

    drafts: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0

    @property
    def acceptance_length(self) -> float:
        """Mean tokens that a draft's step yielded, the model's own one included; 1 where there were no drafts."""
        return 1 + self.accepted_tokens / self.drafts if self.drafts else 1.0


class Pace:
    """Seconds of the last steps, and tokens that each of their sequences got."""

    def __init__(self) -> None:
        self._steps: deque[tuple[float, float]] = deque(maxlen=WINDOW)

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, seconds: float, tokens: float) -> None:
        self._steps.append((seconds, tokens))

    def clear(self) -> None:
        self._steps.clear()

    @property
    def rate(self) -> float:
        """Tokens a second of a sequence. The slowest of several steps is left out: an interruption is no measure."""
        steps = sorted(self._steps)
        if len(steps) > 2:
            steps.pop()
        return sum(tokens for _, tokens in steps) / max(sum(seconds for seconds, _ in steps), 1e-9)


class _Sizes:
    """Control for batches of about one size."""

    def __init__(self) -> None:
        self.plain, self.drafted = Pace(), Pace()
        self.plain_left = BASELINE  # steps without drafts to come
        self.pause = PAUSE
        self.unjudged = 0
        self.since_plain = 0

    def took(self, seconds: float, tokens: float, drafted: bool) -> None:
        if not drafted:
            self.plain.add(seconds, tokens)
            self.plain_left = max(self.plain_left - 1, 0)
            self.since_plain = 0
            return
        self.drafted.add(seconds, tokens)
        self.unjudged += 1
        self.since_plain += 1
        if self.unjudged >= TRIAL and self.plain:
            self._judge()
        if self.since_plain >= FRESH:  # what was measured then says little: contexts are longer now
            self.plain.clear()
            self.plain_left, self.since_plain = BASELINE, 0

    def _judge(self) -> None:
        self.unjudged = 0
        if self.drafted.rate > self.plain.rate:
            self.pause = PAUSE
            return
        self.plain_left, self.pause = self.pause, min(2 * self.pause, MAX_PAUSE)
        self.drafted.clear()


class Control:
    """Whether drafts pay, by size of batch: 1, 2-3, 4-7, 8-15 ..."""

    def __init__(self, max_batch: int):
        self.max_batch = max_batch
        self._sizes: dict[int, _Sizes] = {}

    def allows(self, batch: int) -> bool:
        """Whether the next step, of so many sequences, should have drafts."""
        return 0 < batch <= self.max_batch and self._of(batch).plain_left == 0

    def took(self, batch: int, seconds: float, tokens: int, drafted: bool) -> None:
        """A step of nothing but decoding: what `batch` sequences got from it, and after how long."""
        if 0 < batch <= self.max_batch:
            self._of(batch).took(seconds, tokens / batch, drafted)

    def _of(self, batch: int) -> _Sizes:
        return self._sizes.setdefault(batch.bit_length(), _Sizes())


class Speculator:
    """Gives running requests their `drafts` and learns from what became of them."""

    def __init__(
        self,
        config: SpeculationConfig,
        proposer: Proposer,
        *,
        end_ids: Collection[int],
        max_model_len: int,
        vocab_size: int,
    ):
        self.config = config
        self.proposer = proposer
        self.control = Control(config.max_batch)
        self.figures = Figures()
        self._end_ids = end_ids
        self._max_model_len = max_model_len
        self._mask_width = -(-vocab_size // 32)
        self._accepted: dict[int, float] = {}  # moving count of accepted tokens, by request
        self._given: dict[int, tuple[Request, Draft, np.ndarray | None]] = {}

    def propose(self, running: Collection[Request]) -> bool:
        """Set `drafts` of all running requests, before a step is scheduled.

        True: nobody has drafts yet, but somebody would once the tokens in flight are known; read these first.
        """
        for request, _, _ in self._given.values():
            request.drafts = []
        self._given.clear()
        if not self.control.allows(len(running)):
            return False
        ready = [request for request in running if self._may(request) and self.proposer.ready(request)]
        if any(request.in_flight for request in ready):
            return True
        most = [min(self._reach(request), room(request, self._max_model_len)) for request in ready]
        for request, draft in zip(ready, self.proposer.draft(ready, most), strict=True):
            self._give(request, draft)
        return False

    def given(self, request: Request) -> tuple[Draft, np.ndarray | None]:
        """The draft that stands in `request.drafts` with its probabilities, and the grammar's masks of its rows. To be
        asked for when the step is launched: the next `propose` makes new ones."""
        _, draft, masks = self._given[request.id]
        return draft, masks

    def verified(self, request: Request, drafted: int, accepted: int) -> None:
        """Of a request's draft the model computed `drafted` tokens and accepted the first `accepted`; none were
        computed where the step had no room for them."""
        if drafted == 0:
            return
        self.figures.drafts += 1
        self.figures.draft_tokens += drafted
        self.figures.accepted_tokens += accepted
        # A draft that was right to its end could have been longer.
        could = accepted if accepted < drafted else 2 * drafted
        before = self._accepted.get(request.id, float(self.config.num_tokens))
        self._accepted[request.id] = before + MEMORY * (could - before)
        self.proposer.verified(request, drafted, accepted)

    def took(self, batch: int, seconds: float, tokens: int, drafted: bool) -> None:
        """A step without prompts is done: sequences in it, seconds since the one before was done (since its launch
        where there was none), tokens it gave, and whether any of it had drafts. A step that also compiled or captured
        something is best not told."""
        self.control.took(batch, seconds, tokens, drafted)

    def forget(self, request: Request) -> None:
        """The request has ended; nothing is kept of it."""
        self._accepted.pop(request.id, None)
        self._given.pop(request.id, None)
        self.proposer.forget(request)

    def _may(self, request: Request) -> bool:
        return request.num_pending == 1 and can_speculate(request) and room(request, self._max_model_len) > 0

    def _reach(self, request: Request) -> int:
        """Tokens to guess: a little more than were right of late."""
        most = self.config.num_tokens
        return min(round(self._accepted.get(request.id, float(most))) + 1, most)

    def _give(self, request: Request, draft: Draft) -> None:
        end_ids = () if request.params.ignore_eos else self._end_ids
        ends = {*end_ids, *request.params.stop_token_ids}
        draft = cut_at_end(request, draft, ends)
        masks = None
        if request.matcher is not None and draft.tokens:
            import numpy as np

            masks = np.full((len(draft.tokens) + 1, self._mask_width), -1, dtype=np.int32)
            try:
                draft = cut_to_grammar(request.matcher, draft, masks)
            except GristmillError:  # a dead end on a way that the text need not go
                return
            masks = masks[: len(draft.tokens) + 1]
        if draft.tokens:
            request.drafts = list(draft.tokens)
            self._given[request.id] = request, draft, masks


def can_speculate(request: Request) -> bool:
    """Beam search compares all its sequences after each token; penalties change with every token of a draft."""
    params = request.params
    return params.beam_width is None and (
        params.repetition_penalty == 1 and params.presence_penalty == 0 and params.frequency_penalty == 0
    )
