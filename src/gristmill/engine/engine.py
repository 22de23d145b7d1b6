"""The engine: requests in, steps of the model, outputs out. It knows no threads and no files."""

from __future__ import annotations

import itertools
import operator
import time
from collections.abc import Iterable, Sequence

from torch import Tensor

from ..model.decoder import Decoder
from ..tokenizer.tokenizer import Tokenizer
from .config import EngineConfig
from .request import FinishReason, Request, StepOutput
from .runner import Runner
from .sampler import Sampled, sample
from .sampling import PromptTooLong, RequestError, SamplingParams
from .scheduler import Chunk, Scheduler
from .text import TextStream


class Engine:
    """Continuous batching: every `step` admits what fits, runs the model once and samples one token per sequence.

    One thread calls `add`, `abort` and `step`; `make_request` may be called from any.
    """

    def __init__(self, model: Decoder, tokenizer: Tokenizer, config: EngineConfig, stop_ids: Iterable[int] = ()):
        self.config = config
        self.tokenizer = tokenizer
        self.vocab_size = min(tokenizer.vocab_size, model.config.vocab_size)
        self.scheduler = Scheduler(config.max_num_seqs, config.max_num_batched_tokens)
        self.runner = Runner(model, config.max_num_seqs, config.max_model_len, self.vocab_size)
        self.stop_ids = frozenset([*tokenizer.stop_ids, *stop_ids])
        self.num_steps = 0
        self._ids = itertools.count()
        self._texts: dict[int, TextStream] = {}

    def make_request(
        self, prompt_ids: Sequence[int], params: SamplingParams, field: str = "prompt", continues: bool = False
    ) -> Request:
        """A checked request that is not in the engine yet. RequestError names `field` or the parameter at fault.

        `continues`: the output goes on with the prompt's text, where it has any; else it begins one, as a reply does.
        """
        try:
            prompt_ids = [operator.index(token) for token in prompt_ids]
        except TypeError:
            raise RequestError(field, f"{field} must be token ids, which are whole numbers") from None
        if not prompt_ids:
            raise RequestError(field, f"{field} is empty; it must hold at least one token")
        limit = self.config.max_model_len
        if len(prompt_ids) >= limit:
            raise PromptTooLong(
                field,
                f"{field} has {len(prompt_ids)} tokens; the context is {limit} tokens, prompt and reply together: "
                f"shorten it to at most {limit - 1}",
            )
        for token in (min(prompt_ids), max(prompt_ids)):
            if not 0 <= token < self.vocab_size:
                raise RequestError(field, f"{field} holds token id {token}; ids go from 0 to {self.vocab_size - 1}")
        continues = continues and any(token not in self.tokenizer.special_ids for token in prompt_ids)
        return Request(next(self._ids), prompt_ids, params, continues)

    def add(self, request: Request) -> None:
        self.scheduler.add(request)
        self._texts[request.id] = TextStream(
            self.tokenizer, request.params.stop_strings, request.continues, request.shown
        )

    def add_request(self, prompt_ids: Sequence[int], params: SamplingParams, continues: bool = False) -> Request:
        """Check a request, as `make_request` does, and put it in the queue."""
        request = self.make_request(prompt_ids, params, continues=continues)
        self.add(request)
        return request

    def abort(self, request: Request) -> None:
        """Forget a request; its slot is free for the next step. One that has finished already is left alone."""
        if request.finish_reason is None:
            self._remove(request, "abort")

    @property
    def has_work(self) -> bool:
        return self.scheduler.num_unfinished > 0

    def step(self) -> list[StepOutput]:
        """Run the model once; one output for each request that got a token or ended.

        An exception in the step ends the requests that were in it with reason "error"; waiting ones go on.
        """
        chunks = self.scheduler.schedule()
        if not chunks:
            return []
        now = time.monotonic()
        for chunk in chunks:
            if chunk.request.scheduled is None:
                chunk.request.scheduled = now
        try:
            sampled = self._sample([chunk for chunk in chunks if chunk.last], self.runner.step(chunks))
        except Exception as error:  # whatever went wrong, the requests outside this step must not suffer from it
            return [self._fail(chunk.request, error) for chunk in chunks]
        self.num_steps += 1
        for chunk in chunks:
            self.scheduler.computed(chunk)
        outputs = self._take(sampled, [chunk.request for chunk in chunks if chunk.last], time.monotonic())
        if not self.has_work:
            self.scheduler.check()
        return outputs

    def _sample(self, chunks: Sequence[Chunk], logits_BV: Tensor) -> Sampled:
        params = [chunk.request.params for chunk in chunks]
        uniforms = [0.0 if p.greedy else chunk.request.rng.random() for chunk, p in zip(chunks, params, strict=True)]
        return sample(logits_BV, params, uniforms)

    def _take(self, sampled: Sampled, requests: Sequence[Request], now: float) -> list[StepOutput]:
        outputs = []
        for row, (request, token, finite) in enumerate(zip(requests, sampled.token_ids, sampled.finite, strict=True)):
            if not finite:
                outputs.append(self._fail(request, ArithmeticError("the model's logits are not finite")))
                continue
            if row in sampled.logprobs:
                logprob, top = sampled.logprobs[row]
                request.logprobs.append(logprob)
                request.top_logprobs.append(top)
            before = request.token_times[0] if request.token_times else request.arrived
            request.token_times = (now, before)
            request.output_ids.append(token)
            try:
                outputs.append(self._advance(request, token))
            except Exception as error:  # a token this tokenizer cannot decode is this request's trouble alone
                outputs.append(self._fail(request, error))
        return outputs

    def _advance(self, request: Request, token: int) -> StepOutput:
        """The text of a new token, and whether it is the last."""
        params = request.params
        reason: FinishReason | None = None
        if token in self.stop_ids and not params.ignore_eos:
            reason = "stop"
            request.closed = True
        elif len(request.output_ids) >= params.max_tokens or request.num_tokens >= self.config.max_model_len:
            reason = "length"
        stream = self._texts[request.id]
        text = stream.push(token)
        if reason is not None:
            text += stream.finish()
        if stream.stopped:
            reason = "stop"
        request.text.append(text)
        if reason is not None:
            self._remove(request, reason)
        return StepOutput(request, [token], text, reason)

    def _fail(self, request: Request, error: Exception) -> StepOutput:
        self._remove(request, "error")
        return StepOutput(request, finish_reason="error", error=error)

    def _remove(self, request: Request, reason: FinishReason) -> None:
        request.finish_reason = reason
        if request.slot is not None and (reason == "error" or not request.output_ids):
            self.runner.cache.clear(request.slot)  # nothing sampled has shown yet that what it holds is finite
        self.scheduler.remove(request)
        self._texts.pop(request.id, None)
