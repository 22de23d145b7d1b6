"""One sequence on its way through the engine, and what a step says about it. No torch here."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from .sampling import SamplingParams

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
    num_computed: int = 0  # tokens whose keys and values are in the cache
    slot: int | None = None  # row of the cache, while running
    finish_reason: FinishReason | None = None
    closed: bool = False  # whether the last token is the model's own end, which is no part of the text
    rng: random.Random = field(init=False)
    arrived: float = field(default_factory=time.monotonic)
    scheduled: float | None = None  # when it was first part of a step
    token_times: tuple[float, float] | None = None  # when the last token came, and the one before (or the arrival)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.params.seed)

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.output_ids)

    @property
    def num_pending(self) -> int:
        """Tokens the model has yet to see before the next one can be sampled."""
        return self.num_tokens - self.num_computed

    def pending_ids(self, count: int) -> Sequence[int]:
        """The next `count` tokens the model has to see."""
        if self.num_computed < len(self.prompt_ids):
            return self.prompt_ids[self.num_computed : self.num_computed + count]
        return self.output_ids[-1:]


@dataclass(slots=True)
class StepOutput:
    """What one step added to one request. `text` is final: nothing in it is ever taken back."""

    request: Request
    new_token_ids: Sequence[int] = ()
    text: str = ""
    finish_reason: FinishReason | None = None
    error: Exception | None = None
