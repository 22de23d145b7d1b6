"""What a request asks of the sampler. Torch-free, so that the scheduler and the server's parser can use it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import GristmillError

MAX_TOP_LOGPROBS = 20


class RequestError(GristmillError):
    """A request that cannot be served as it is; `field` names what to change."""

    def __init__(self, field: str, message: str):
        super().__init__(message)
        self.field = field


class PromptTooLong(RequestError):
    """The prompt leaves no room for a reply in the context."""


@dataclass(frozen=True)
class SamplingParams:
    """How one request is sampled and when it ends. RequestError names the first field out of range.

    Order of application: temperature, then `top_k`, then `top_p` over what `top_k` left, as in transformers.
    """

    max_tokens: int = 64  # most tokens to generate, the closing one included
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0  # smallest set of tokens with at least this probability
    top_k: int = 0  # number of likeliest tokens to keep; 0 keeps all
    seed: int | None = None  # same seed, same draws, whatever else is in the batch
    stop: str | Sequence[str] = ()  # the text ends before the first of these
    logprobs: bool = False  # log probability of each generated token, of the unscaled distribution
    top_logprobs: int = 0  # also those of this many likeliest tokens; needs logprobs
    ignore_eos: bool = False  # go on past the model's own end

    def __post_init__(self) -> None:
        _whole("max_tokens", self.max_tokens, at_least=1)
        _whole("top_k", self.top_k, at_least=0)
        _whole("top_logprobs", self.top_logprobs, at_least=0)
        if self.seed is not None:
            _whole("seed", self.seed)
        _number("temperature", self.temperature)
        _number("top_p", self.top_p)
        if self.temperature < 0:
            raise RequestError("temperature", f"temperature is {self.temperature}; it must be 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise RequestError("top_p", f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if self.top_logprobs > MAX_TOP_LOGPROBS:
            raise RequestError("top_logprobs", f"top_logprobs is {self.top_logprobs}; at most {MAX_TOP_LOGPROBS}")
        if self.top_logprobs and not self.logprobs:
            raise RequestError("top_logprobs", "top_logprobs needs logprobs to be true")
        if not isinstance(self.stop, str | Sequence) or not all(isinstance(s, str) and s for s in self.stop_strings):
            raise RequestError("stop", f"stop is {self.stop!r}; it must be a string or strings, none empty")

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


def _whole(field: str, value: object, at_least: int | None = None) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise RequestError(field, f"{field} is {value!r}; it must be a whole number")
    if at_least is not None and value < at_least:
        raise RequestError(field, f"{field} is {value}; it must be at least {at_least}")


def _number(field: str, value: object) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise RequestError(field, f"{field} is {value!r}; it must be a finite number")
