"""One sequence on its way through the engine, and what a step says about it. No torch here."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from .sampling import SamplingParams

if TYPE_CHECKING:
    from concurrent.futures import Future

    from .beam_requests import BeamRequests
    from .constraints import Constraint, Matcher

# stop: the model's own end or a stop string; length: max_tokens or the context is full; error: a step failed.
FinishReason = Literal["stop", "length", "abort", "error"]
TokenLogprob = tuple[int, float]


@dataclass(slots=True, eq=False)
class Request:
    """A prompt, its parameters and how far it is. Times are `time.monotonic()` seconds."""

    id: int
    prompt_ids: list[int]
    params: SamplingParams
    continues: bool = False  # whether the output goes on with the prompt's text; else it begins one
    shown: Mapping[int, str] = field(default_factory=dict)  # special tokens by id that are part of the text
    output_ids: list[int] = field(default_factory=list)
    text: list[str] = field(default_factory=list)  # in pieces, one a token
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[list[TokenLogprob]] = field(default_factory=list)
    prompt_logprobs: list[float] = field(default_factory=list)  # of the prompt's second token and on
    prompt_top_logprobs: list[list[TokenLogprob]] = field(default_factory=list)
    num_scored: int = 0  # tokens behind which that has been asked of the model
    others: list[Request] = field(default_factory=list)  # further replies, which a beam search found
    search: BeamRequests | None = None  # that this request asked for, or is a beam of
    priority: int = 0  # lower goes first
    arrival: int | None = None  # then those that came first; the scheduler counts, beams share one
    num_computed: int = 0  # tokens whose keys and values are in the cache, or will be after the launched steps
    in_flight: int = 0  # tokens that launched steps draw and the host does not know yet
    num_cached: int = 0  # tokens that were in the cache when it was last admitted
    num_preemptions: int = 0
    blocks: list[int] = field(default_factory=list)  # of the cache, in order
    slot: int | None = None  # row of the device's tables, while running
    drafts: list[int] = field(default_factory=list)  # guessed tokens behind the last, for the next step to check
    constraint: Future[Constraint] | None = None  # of a structured output, while it is being made
    matcher: Matcher | None = None  # which tokens of it may come next
    finish_reason: FinishReason | None = None
    closed: bool = False  # whether the last token is the model's own end, which is no part of the text
    seed: int = field(init=False)
    arrived: float = field(default_factory=time.monotonic)
    scheduled: float | None = None  # when it was first part of a step
    token_times: tuple[float, float] | None = None  # when the last token came, and the one before (or the arrival)

    def __post_init__(self) -> None:
        self.seed = secrets.randbits(63) if self.params.seed is None else self.params.seed

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.output_ids)

    @property
    def length(self) -> int:
        """Tokens, those in flight too."""
        return self.num_tokens + self.in_flight

    @property
    def num_pending(self) -> int:
        """Tokens the model has yet to see before the next one can be sampled."""
        return self.length - self.num_computed

    @property
    def needs_host(self) -> bool:
        """Whether a step for it can only be made once the host knows its last token."""
        return self.matcher is not None or self.search is not None or bool(self.drafts)

    def ids(self, start: int, stop: int) -> list[int]:
        """Tokens `start` to `stop` of prompt and output, as far as the host knows them."""
        prompt = len(self.prompt_ids)
        if stop <= prompt:
            return self.prompt_ids[start:stop]
        if start >= prompt:
            return self.output_ids[start - prompt : stop - prompt]
        return self.prompt_ids[start:] + self.output_ids[: stop - prompt]


@dataclass(slots=True)
class StepOutput:
    """What one step added to one request. `text` is final: nothing in it is ever taken back."""

    request: Request
    new_token_ids: Sequence[int] = ()
    text: str = ""
    finish_reason: FinishReason | None = None
    error: Exception | None = None
