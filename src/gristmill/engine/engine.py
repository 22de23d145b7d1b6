"""The engine: requests in, steps of the model, outputs out. It knows no threads and no files."""

from __future__ import annotations

import itertools
import operator
import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, wait

from ..model.decoder import Decoder
from ..tokenizer.tokenizer import Tokenizer
from .blocks import BlockPool
from .config import EngineConfig
from .constraints import Compiler
from .request import FinishReason, Request, StepOutput
from .runner import Launched, Runner
from .sampler import Read
from .sampling import PromptTooLong, RequestError, SamplingParams
from .scheduler import Scheduler, Step
from .text import TextStream

LONGEST_WAIT = 0.05  # seconds that a step waits for a constraint when there is nothing else to do


class Engine:
    """Continuous batching over a paged cache: every step admits what fits, runs the model once and draws one token for
    each sequence that has been read. With `run_ahead` a step is launched before the tokens of the one before are read.

    One thread calls `add`, `abort` and `step`; `make_request` may be called from any.
    """

    def __init__(self, model: Decoder, tokenizer: Tokenizer, config: EngineConfig, stop_ids: Iterable[int] = ()):
        self.config = config
        self.tokenizer = tokenizer
        self.vocab_size = min(tokenizer.vocab_size, model.config.vocab_size)
        scaling = model.config.rope_scaling
        # "dynamic" turns a prompt's keys by its whole length: equal beginnings of unlike prompts have unlike keys.
        same = scaling is None or scaling.kind != "dynamic"
        self.blocks = BlockPool(config.num_blocks, config.block_size, config.prefix_caching and same)
        self.scheduler = Scheduler(config, self.blocks)
        self.stop_ids = frozenset([*tokenizer.stop_ids, *stop_ids])
        self.runner = Runner(model, config, self.vocab_size, self.stop_ids)
        self.num_steps = 0
        self._under_way: deque[tuple[Step, Launched]] = deque()
        self._ids = itertools.count()
        self._texts: dict[int, TextStream] = {}
        self._unready: list[Request] = []  # whose constraints are being made
        self._compiler: Compiler | None = None

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
        self._check(params)
        continues = continues and any(token not in self.tokenizer.special_ids for token in prompt_ids)
        request = Request(next(self._ids), prompt_ids, params, continues)
        if params.structured:
            request.constraint = self._constraints().submit(params)
        return request

    def _check(self, params: SamplingParams) -> None:
        """RequestError where this model has no such tokens, or the engine no such search."""
        for field, ids in (("logit_bias", params.logit_bias), ("stop_token_ids", params.stop_token_ids)):
            if ids and max(ids) >= self.vocab_size:
                raise RequestError(field, f"{field} holds token id {max(ids)}; ids go from 0 to {self.vocab_size - 1}")
        for field in ("beam_width", "prompt_logprobs"):
            if getattr(params, field) is not None:
                raise RequestError(field, f"this engine cannot do {field} yet; leave it out")

    def _constraints(self) -> Compiler:
        if self._compiler is None:
            self._compiler = Compiler(self.tokenizer, self.vocab_size, self.stop_ids)
        return self._compiler

    def add(self, request: Request) -> None:
        if request.constraint is None:
            self.scheduler.add(request)
        else:
            self._unready.append(request)
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
        return self.scheduler.num_unfinished > 0 or bool(self._under_way or self._unready)

    def step(self) -> list[StepOutput]:
        """Launch what may be launched, then read the oldest step under way; one output for each request that got a
        token or ended.

        An exception in a step ends the requests that were in it with reason "error"; waiting ones go on.
        """
        outputs = self._admit_ready() if self._unready else []
        while len(self._under_way) <= self.config.run_ahead and (step := self.scheduler.schedule()) is not None:
            now = time.monotonic()
            for chunk in step.chunks:
                if chunk.request.scheduled is None:
                    chunk.request.scheduled = now
            try:
                self._under_way.append((step, self.runner.launch(step)))
            except Exception as error:  # whatever went wrong, the requests outside this step must not suffer from it
                outputs += self._fail_step(step, error)
                self.scheduler.done(step)
        if self._under_way:
            step, launched = self._under_way.popleft()
            outputs += self._read(step, launched)
            self.scheduler.done(step)
        if not self.has_work:
            self.scheduler.check()
        return outputs

    def _admit_ready(self) -> list[StepOutput]:
        """Queue requests whose constraints are made; where there is nothing else to do, wait for one a little."""
        if not self.scheduler.num_unfinished and not self._under_way:
            futures = [request.constraint for request in self._unready if request.constraint is not None]
            wait(futures, timeout=LONGEST_WAIT, return_when=FIRST_COMPLETED)
        outputs, waiting = [], []
        for request in self._unready:
            assert request.constraint is not None
            if not request.constraint.done():
                waiting.append(request)
                continue
            try:
                request.matcher = request.constraint.result().start(request.continues)
            except Exception as error:  # the constraint cannot be used, or making it broke: its own trouble
                outputs.append(self._fail(request, error))
                continue
            self.scheduler.add(request)
        self._unready = waiting
        return outputs

    def _read(self, step: Step, launched: Launched) -> list[StepOutput]:
        """What a step drew, once the device is done with it."""
        try:
            drawn = launched.read()
        except Exception as error:
            return self._fail_step(step, error)
        self.num_steps += 1
        now = time.monotonic()
        outputs = []
        for row, request in enumerate(launched.requests):
            if request.finish_reason is not None:  # it ended while the step was under way
                self.scheduler.took(request, ())
                continue
            if row in launched.errors:
                self.scheduler.took(request, ())
                outputs.append(self._fail(request, launched.errors[row]))
                continue
            outputs.append(self._take(request, drawn, row, now))
        return outputs

    def _take(self, request: Request, drawn: Read, row: int, now: float) -> StepOutput:
        if not drawn.finite[row]:
            self.blocks.forget()  # what it computed may be in blocks that others would reuse
            self.scheduler.took(request, ())
            return self._fail(request, ArithmeticError("the model's logits are not finite"))
        token = drawn.token_ids[row]
        if row in drawn.logprobs:
            logprob, top = drawn.logprobs[row]
            request.logprobs.append(logprob)
            request.top_logprobs.append(top)
        before = request.token_times[0] if request.token_times else request.arrived
        request.token_times = (now, before)
        self.scheduler.took(request, [token])
        try:
            if request.matcher is not None and not request.matcher.accept(token):
                raise AssertionError(f"token {token} was drawn against the request's mask: a defect in gristmill")
            return self._advance(request, token)
        except Exception as error:  # a token that cannot be decoded, a form too large: this request's trouble alone
            return self._fail(request, error)

    def _fail_step(self, step: Step, error: Exception) -> list[StepOutput]:
        self.blocks.forget()  # what the step should have computed is not there
        outputs = []
        for chunk in step.chunks:
            if chunk.samples:
                self.scheduler.took(chunk.request, ())
            if chunk.request.finish_reason is None:
                outputs.append(self._fail(chunk.request, error))
        return outputs

    def _advance(self, request: Request, token: int) -> StepOutput:
        """The text of a new token, and whether it is the last."""
        params = request.params
        reason: FinishReason | None = None
        if (token in self.stop_ids and not params.ignore_eos) or token in params.stop_token_ids:
            reason = "stop"
            request.closed = True
        elif len(request.output_ids) >= params.max_tokens or request.num_tokens >= self.config.max_model_len:
            reason = "length"
        stream = self._texts[request.id]
        text = "" if reason == "stop" else stream.push(token)
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
        self.scheduler.remove(request)
        if self._unready:
            self._unready = [unready for unready in self._unready if unready is not request]
        self._texts.pop(request.id, None)
