"""Requests of OpenAI's API as this server takes them, and what they mean to the engine.

Three kinds of fields. Those declared here are honoured. Those that change nothing about the reply (`user`, `metadata`)
are taken and left alone. Those that would change it and that this server does not do (`best_of`) are
refused by name unless they hold the value that asks for nothing, and so is a field that nobody knows: a client never
gets a reply to something else than it asked for.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..engine.sampling import MAX_TOP_LOGPROBS, RequestError, SamplingParams
from .errors import ApiError
from .forms import StructuredOutputs, form_of, named
from .tools import check_depth

MAX_CHOICES = 128
MAX_STOP_STRINGS = 4
DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's default for completions; a chat's reply may fill the context
HARMLESS = {
    "metadata",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
}
# Field -> the values, besides null, that ask for nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "prediction": (),
    "reasoning_effort": (),
    "suffix": ("",),
    "verbosity": (),
    "web_search_options": (),
}
# What the engine calls as requests do.
SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "seed",
    "stop_token_ids", "min_tokens", "ignore_eos",
)  # fmt: skip


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    include_usage: bool | None = Field(default=None, description="End the stream with a chunk of token counts.")


class GenerationRequest(BaseModel):
    """The fields that chats and completions share. Null stands for the default everywhere."""

    model_config = ConfigDict(strict=True, extra="allow")

    model: str | None = Field(default=None, description="The served model's name; may be left out.")
    max_tokens: int | None = Field(default=None, description="Most tokens of the reply.")
    temperature: float | None = Field(default=None, description="0 is greedy; default 1.")
    top_p: float | None = Field(default=None, description="Nucleus sampling; default 1, which keeps all.")
    top_k: int | None = Field(default=None, description="Not OpenAI's: keep this many likeliest tokens; 0 keeps all.")
    min_p: float | None = Field(
        default=None, description="Not OpenAI's: leave out what is less likely than this share."
    )
    presence_penalty: float | None = Field(default=None, description="Less of what is in the reply already, -2 to 2.")
    frequency_penalty: float | None = Field(default=None, description="The same by how often it is there, -2 to 2.")
    repetition_penalty: float | None = Field(
        default=None, description="Not OpenAI's: less of what is in prompt or reply; 1 changes nothing."
    )
    logit_bias: dict[str, float] | None = Field(default=None, description="Added to the logits of token ids.")
    seed: int | None = Field(default=None, description="Same seed, same reply; choice i of n uses seed + i.")
    stop: str | list[str] | None = Field(default=None, description="The reply ends before any of these, at most 4.")
    stop_token_ids: list[int] | None = Field(default=None, description="Not OpenAI's: the reply ends at any of these.")
    min_tokens: int | None = Field(default=None, description="Not OpenAI's: no end before so many tokens.")
    response_format: dict[str, Any] | None = Field(default=None, description="text, json_object or json_schema.")
    structured_outputs: StructuredOutputs | None = Field(
        default=None, description="Not OpenAI's: json, regex, choice, grammar or json_object."
    )
    n: int | None = Field(default=None, description="Choices per prompt; default 1.")
    stream: bool | None = Field(default=None, description="Send the reply in pieces as server-sent events.")
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = Field(default=None, description="Not OpenAI's: go on past the model's own end.")

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def params_per_choice(
        self, max_tokens: int, top_logprobs: int | None, prompt_logprobs: int | None = None
    ) -> list[SamplingParams]:
        """The parameters of each of the n choices; ApiError or RequestError names the field at fault."""
        check_extra_fields(self.model_extra or {}, known=set(type(self).model_fields))
        count = 1 if self.n is None else self.n
        if not 1 <= count <= MAX_CHOICES:
            raise ApiError(400, f"n is {count}; it must be 1 to {MAX_CHOICES}", "n", "invalid_value")
        if isinstance(self.stop, list) and len(self.stop) > MAX_STOP_STRINGS:
            raise ApiError(
                400, f"stop has {len(self.stop)} strings; at most {MAX_STOP_STRINGS}", "stop", "invalid_value"
            )
        if self.stream_options is not None and not self.stream:
            raise ApiError(400, "stream_options needs stream to be true", "stream_options", "invalid_value")
        asked: dict[str, Any] = {name: getattr(self, name) for name in SAMPLING}
        asked |= {"stop": self.stop, "logit_bias": self._biases(), "prompt_logprobs": prompt_logprobs}
        form = form_of(self.response_format, self.structured_outputs)
        try:
            params = SamplingParams(
                max_tokens=max_tokens,
                logprobs=top_logprobs is not None,
                top_logprobs=top_logprobs or 0,
                **{name: value for name, value in asked.items() if value is not None},
                **form,
            )
        except RequestError as error:
            raise named(error, self.response_format) from error
        if self.seed is None:
            return [params] * count
        return [dataclasses.replace(params, seed=self.seed + choice) for choice in range(count)]

    def _biases(self) -> dict[int, float] | None:
        """`logit_bias` by token id, which JSON can only write as text."""
        try:
            return None if self.logit_bias is None else {int(token): bias for token, bias in self.logit_bias.items()}
        except ValueError:
            raise ApiError(400, "logit_bias must map token ids to numbers", "logit_bias", "invalid_value") from None


class TextPart(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = Field(default=None, description="Functions that the assistant called.")
    tool_call_id: str | None = Field(default=None, description="The call whose result a message of role tool is.")

    def plain(self) -> dict[str, Any]:
        """The message as chat templates know it."""
        text = "".join(part.text for part in self.content) if isinstance(self.content, list) else self.content
        message: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": text or ""}
        if self.tool_calls:
            message["tool_calls"] = self.tool_calls
        if self.role == "tool":
            given = {"name": self.name, "tool_call_id": self.tool_call_id}
            message |= {field: value for field, value in given.items() if value is not None}
        return message


class ChatRequest(GenerationRequest):
    """`POST /v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, description="The newer name of max_tokens.")
    logprobs: bool | None = Field(default=None, description="Log probability of each token of the reply.")
    top_logprobs: int | None = Field(default=None, description="Also those of this many likeliest tokens.")

    tools: list[dict[str, Any]] | None = Field(default=None, description="JSON schemas of functions to call.")
    tool_choice: str | dict[str, Any] | None = Field(default=None, description="auto (the default) or none.")
    parallel_tool_calls: bool | None = Field(default=None, description="False: at most one call, the first.")

    def conversation(self) -> list[dict[str, Any]]:
        """The messages as chat templates know them; ApiError names one that is not what its role allows."""
        self._check_results()
        for index, message in enumerate(self.messages):
            if message.content is None and not message.tool_calls:
                param = f"messages[{index}].content"
                raise ApiError(400, f"{param}: give a string or a list of text parts", param, "invalid_type")
            if message.tool_calls and message.role != "assistant":
                param = f"messages[{index}].tool_calls"
                raise ApiError(400, f"{param}: only an assistant calls tools", param, "invalid_value")
            check_depth(message.tool_calls, f"messages[{index}].tool_calls", depth=1)
            for field, value in (message.model_extra or {}).items():
                if value not in (None, [], ""):
                    param = f"messages[{index}].{field}"
                    raise ApiError(400, f"{param} is not supported; leave it out", param, "unsupported_parameter")
        return [message.plain() for message in self.messages]

    def _check_results(self) -> None:
        """Every message of role tool answers a call of the assistant's message that it and its like stand behind."""
        called: set[Any] = set()
        for index, message in enumerate(self.messages):
            if message.role != "tool":
                called = {call["id"] for call in message.tool_calls or () if isinstance(call.get("id"), str)}
                continue
            param, id = f"messages[{index}].tool_call_id", message.tool_call_id
            if not id:
                raise ApiError(400, f"{param}: say which call this is the result of", param, "invalid_value")
            if id not in called:
                text = f"{param}: {id!r:.80} is no call of the assistant's message in front; give that call's id"
                raise ApiError(400, text, param, "invalid_value")

    def params(self, room: int) -> list[SamplingParams]:
        """Parameters per choice; the reply may take `room` tokens unless the request says less."""
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ApiError(400, "give max_completion_tokens or max_tokens, not both", "max_tokens", "invalid_value")
        limit = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs to be true", "top_logprobs", "invalid_value")
        return self.params_per_choice(
            room if limit is None else limit, (self.top_logprobs or 0) if self.logprobs else None
        )


TokenIds = list[int]


class CompletionRequest(GenerationRequest):
    """`POST /v1/completions`."""

    prompt: str | list[str] | TokenIds | list[TokenIds] = Field(
        description="A text, texts, token ids, or lists of ids."
    )
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = Field(
        default=None, description="Log probabilities of each token and of this many likeliest."
    )
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = Field(
        default=None, description="Not OpenAI's: the same of each token of the prompt."
    )

    def prompts(self) -> Sequence[str | TokenIds]:
        """The prompts, always as a list; ApiError when there is none."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if not self.prompt:
            raise ApiError(400, "prompt is empty", "prompt", "invalid_value")
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt

    def params(self) -> list[SamplingParams]:
        limit = DEFAULT_COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens
        if self.prompt_logprobs is not None and self.stream:
            raise ApiError(
                400, "prompt_logprobs are not streamed; leave stream out", "prompt_logprobs", "invalid_value"
            )
        return self.params_per_choice(limit, self.logprobs, self.prompt_logprobs)


def check_extra_fields(extra: Mapping[str, Any], known: set[str]) -> None:
    """Refuse what would change the reply and is not done here, and what nobody knows."""
    for field, value in extra.items():
        if value is None or field in HARMLESS:
            continue
        if field in UNSUPPORTED:
            if value not in UNSUPPORTED[field]:
                raise ApiError(
                    400, f"{field} is not supported by this server; leave it out", field, "unsupported_parameter"
                )
            continue
        near = difflib.get_close_matches(field, known | HARMLESS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ApiError(400, f"{field} is not a known field{hint}", field, "unknown_parameter")
