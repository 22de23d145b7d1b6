"""What a request asks of the sampler. Torch-free, so that the scheduler and the server's parser can use it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import GristmillError

MAX_TOP_LOGPROBS = 20
MOST_BIASES = 1024  # tokens of a logit_bias: every running request's stand in one table
MAX_LOGIT_BIAS = 100.0  # OpenAI's bound: enough to force a token or to ban it
MAX_REPETITION_PENALTY = 1e6  # and its inverse is the least: logits must stay numbers of float32
LARGEST_NUMBER = 1e38  # float32 holds it
MAX_SEQUENCES = 64  # of one request: replies or beams
STRUCTURES = ("json_schema", "regex", "grammar", "choice")


class RequestError(GristmillError):
    """A request that cannot be served as it is; `field` names what to change."""

    def __init__(self, field: str, message: str):
        super().__init__(message)
        self.field = field


class PromptTooLong(RequestError):
    """The prompt leaves no room for a reply in the context."""


@dataclass(frozen=True)
class SamplingParams:
    """How one request is sampled and when it ends. RequestError names the first field out of range, or of two fields
    that contradict each other the one to change.

    Order of application: the mask of a structured output, `logit_bias` and `min_tokens`; `repetition_penalty`,
    `presence_penalty`, `frequency_penalty`; `temperature`; `top_k`; `top_p` over what `top_k` left; `min_p`. The
    repetition penalty is that of Keskar et al. 2019 (CTRL), section 4.1, as transformers has it; presence and frequency
    penalties are OpenAI's.
    """

    max_tokens: int = 64  # most tokens to generate, the closing one included
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0  # smallest set of tokens with at least this probability
    top_k: int = 0  # number of likeliest tokens to keep; 0 keeps all
    min_p: float = 0.0  # tokens with less than this share of the likeliest one's probability are left out
    repetition_penalty: float = 1.0  # divides positive logits of tokens of prompt and output, multiplies negative ones
    presence_penalty: float = 0.0  # taken from the logits of tokens of the output
    frequency_penalty: float = 0.0  # the same, times how often the token stands in the output
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)  # added to the logits of these token ids
    seed: int | None = None  # same seed, same draws, whatever else is in the batch
    stop: str | Sequence[str] = ()  # the text ends before the first of these
    stop_token_ids: Sequence[int] = ()  # tokens that end the text too, ignore_eos or not
    min_tokens: int = 0  # no token that ends the text comes before so many others
    n: int = 1  # replies to one prompt
    beam_width: int | None = None  # beam search that keeps so many, instead of drawing; the best n are given back
    length_penalty: float = 1.0  # beams rank by sum of log probabilities / length ** length_penalty
    logprobs: bool = False  # log probability of each generated token, of the model's own distribution
    top_logprobs: int = 0  # also those of this many likeliest tokens; needs logprobs
    prompt_logprobs: int | None = None  # the same of each token of the prompt, and of so many likeliest in its place
    ignore_eos: bool = False  # go on past the model's own end
    json_schema: Mapping[str, Any] | str | None = field(default=None, hash=False)  # what JSON the text is
    regex: str | None = None  # the whole text matches it
    grammar: str | None = None  # the text is one of this EBNF grammar
    choice: Sequence[str] | None = None  # the text is one of these

    def __post_init__(self) -> None:
        self._check_cuts()
        self._check_penalties()
        self._check_ends()
        self._check_logprobs()
        self._check_sequences()
        self._check_structure()

    def _check_cuts(self) -> None:
        if self.seed is not None:
            _whole("seed", self.seed)
        _number("temperature", self.temperature)
        if self.temperature < 0:
            raise RequestError("temperature", f"temperature is {self.temperature}; it must be 0 (greedy) or more")
        _whole("top_k", self.top_k, at_least=0)
        _number("top_p", self.top_p)
        if not 0 < self.top_p <= 1:
            raise RequestError("top_p", f"top_p is {self.top_p}; it must be above 0 and at most 1")
        _number("min_p", self.min_p)
        if not 0 <= self.min_p <= 1:
            raise RequestError("min_p", f"min_p is {self.min_p}; it must be from 0 to 1")

    def _check_penalties(self) -> None:
        _number("repetition_penalty", self.repetition_penalty)
        least, most = 1 / MAX_REPETITION_PENALTY, MAX_REPETITION_PENALTY
        if not least <= self.repetition_penalty <= most:
            raise RequestError(
                "repetition_penalty",
                f"repetition_penalty is {self.repetition_penalty}; it must be above 0, from {least:g} to {most:g} "
                "(1 changes nothing)",
            )
        for name in ("presence_penalty", "frequency_penalty"):
            _number(name, getattr(self, name))
            if not -2 <= getattr(self, name) <= 2:
                raise RequestError(name, f"{name} is {getattr(self, name)}; it must be from -2 to 2")
        if not isinstance(self.logit_bias, Mapping):
            raise RequestError("logit_bias", f"logit_bias is {self.logit_bias!r}; it must map token ids to numbers")
        if len(self.logit_bias) > MOST_BIASES:
            raise RequestError("logit_bias", f"logit_bias names {len(self.logit_bias)} tokens; at most {MOST_BIASES}")
        for token, bias in self.logit_bias.items():
            _whole("logit_bias", token, at_least=0, what="a token id of logit_bias")
            _number("logit_bias", bias, what=f"the logit_bias of token {token}")
            if abs(bias) > MAX_LOGIT_BIAS:
                raise RequestError(
                    "logit_bias",
                    f"the logit_bias of token {token} is {bias}; it must be from {-MAX_LOGIT_BIAS:g} to "
                    f"{MAX_LOGIT_BIAS:g}",
                )

    def _check_ends(self) -> None:
        _whole("max_tokens", self.max_tokens, at_least=1)
        _whole("min_tokens", self.min_tokens, at_least=0)
        if self.min_tokens > self.max_tokens:
            raise RequestError(
                "min_tokens", f"min_tokens is {self.min_tokens}, more than max_tokens ({self.max_tokens})"
            )
        if not isinstance(self.stop, str | Sequence) or not all(isinstance(s, str) and s for s in self.stop_strings):
            raise RequestError("stop", f"stop is {self.stop!r}; it must be a string or strings, none empty")
        if not isinstance(self.stop_token_ids, Sequence) or isinstance(self.stop_token_ids, str):
            raise RequestError(
                "stop_token_ids", f"stop_token_ids is {self.stop_token_ids!r}; it must be a list of token ids"
            )
        for token in self.stop_token_ids:
            _whole("stop_token_ids", token, at_least=0, what="a token id of stop_token_ids")

    def _check_logprobs(self) -> None:
        _whole("top_logprobs", self.top_logprobs, at_least=0)
        if self.top_logprobs > MAX_TOP_LOGPROBS:
            raise RequestError("top_logprobs", f"top_logprobs is {self.top_logprobs}; at most {MAX_TOP_LOGPROBS}")
        if self.top_logprobs and not self.logprobs:
            raise RequestError("top_logprobs", "top_logprobs needs logprobs to be true")
        if self.prompt_logprobs is not None:
            _whole("prompt_logprobs", self.prompt_logprobs, at_least=0)
            if self.prompt_logprobs > MAX_TOP_LOGPROBS:
                raise RequestError(
                    "prompt_logprobs", f"prompt_logprobs is {self.prompt_logprobs}; at most {MAX_TOP_LOGPROBS}"
                )

    def _check_sequences(self) -> None:
        _whole("n", self.n, at_least=1)
        if self.n > MAX_SEQUENCES:
            raise RequestError("n", f"n is {self.n}; at most {MAX_SEQUENCES}")
        _number("length_penalty", self.length_penalty)
        if self.beam_width is None:
            if self.n > 1 and self.greedy:
                raise RequestError("n", f"n is {self.n} with temperature 0: all replies would be the same")
            if self.length_penalty != 1:
                raise RequestError("length_penalty", "length_penalty needs beam_width: nothing else is ranked by it")
            return
        _whole("beam_width", self.beam_width, at_least=1)
        if self.beam_width > MAX_SEQUENCES:
            raise RequestError("beam_width", f"beam_width is {self.beam_width}; at most {MAX_SEQUENCES}")
        if self.n > self.beam_width:
            raise RequestError("n", f"n is {self.n}, more than beam_width ({self.beam_width}) keeps")
        for name, neutral in (("temperature", 1), ("top_k", 0), ("top_p", 1), ("min_p", 0)):
            if getattr(self, name) != neutral:
                raise RequestError(
                    "beam_width",
                    f"beam_width and {name} = {getattr(self, name)} contradict each other: beam search draws nothing, "
                    "leave one of them out",
                )

    def _check_structure(self) -> None:
        given = [name for name in STRUCTURES if getattr(self, name) is not None]
        if len(given) > 1:
            raise RequestError(given[1], f"{given[0]} and {given[1]} contradict each other: give one of them")
        for name in ("regex", "grammar"):
            if getattr(self, name) is not None and not isinstance(getattr(self, name), str):
                raise RequestError(name, f"{name} is {getattr(self, name)!r}; it must be a string")
        if self.json_schema is not None and not isinstance(self.json_schema, str | Mapping):
            raise RequestError("json_schema", "json_schema must be a JSON object, or its text")
        if self.choice is not None:
            fits = isinstance(self.choice, Sequence) and not isinstance(self.choice, str)
            if not fits or not self.choice or not all(isinstance(text, str) and text for text in self.choice):
                raise RequestError(
                    "choice", f"choice is {self.choice!r}; it must be strings, at least one and none empty"
                )

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def cuts(self) -> bool:
        """Whether unlikely tokens are left out of the draw."""
        return not self.greedy and (self.top_k > 0 or self.top_p < 1 or self.min_p > 0)

    @property
    def penalizes(self) -> bool:
        """Whether tokens that are there already change what comes next."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    @property
    def structured(self) -> bool:
        return any(getattr(self, name) is not None for name in STRUCTURES)


def _whole(field: str, value: object, at_least: int | None = None, what: str | None = None) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise RequestError(field, f"{what or field} is {value!r}; it must be a whole number")
    if at_least is not None and value < at_least:
        raise RequestError(field, f"{what or field} is {value}; it must be at least {at_least}")


def _number(field: str, value: object, what: str | None = None) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= LARGEST_NUMBER:
        raise RequestError(
            field, f"{what or field} is {value!r}; it must be a finite number, at most {LARGEST_NUMBER:g}"
        )
