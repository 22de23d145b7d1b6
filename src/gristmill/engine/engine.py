"""The engine: requests in, steps of the model, outputs out. It knows no threads and no files."""

from __future__ import annotations

import itertools
import logging
import operator
import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, wait

from ..model.decoder import Decoder
from ..tokenizer.tokenizer import Tokenizer
from .beam import BeamSearch
from .beam_requests import BeamRequests
from .blocks import BlockPool
from .config import EngineConfig
from .constraints import Compiler
from .request import FinishReason, Request, StepOutput, TokenLogprob
from .runner import Launched, Runner
from .sampler import Read
from .sampling import PromptTooLong, RequestError, SamplingParams
from .scheduler import Scheduler, Step
from .scoring import New
from .speculation.control import Figures, Speculator
from .speculation.ngram import NgramProposer
from .speculation.proposal import Proposer
from .text import TextStream

log = logging.getLogger(__name__)
LONGEST_WAIT = 0.05  # seconds that a step waits for a constraint when there is nothing else to do
FEW_BLOCKS = 1024  # that are all looked at in half a millisecond


class Engine:
    """Continuous batching over a paged cache: every step admits what fits, runs the model once and draws one token for
    each sequence that has been read, or several where drafts turn out right. With `run_ahead` a step is launched before
    the tokens of the one before are read.

    One thread calls `add`, `abort` and `step`; `make_request` may be called from any.
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        config: EngineConfig,
        stop_ids: Iterable[int] = (),
        proposer: Proposer | None = None,
    ):
        """`proposer` makes the drafts where `config.speculation` is of the method "draft"."""
        self.config = config
        self.tokenizer = tokenizer
        self.vocab_size = min(tokenizer.vocab_size, model.config.vocab_size)
        scaling = model.config.rope_scaling
        # "dynamic" turns a prompt's keys by its whole length: equal beginnings of unlike prompts have unlike keys.
        same = scaling is None or scaling.kind != "dynamic"
        self.blocks = BlockPool(config.num_blocks, config.block_size, config.prefix_caching and same)
        self.stop_ids = frozenset([*tokenizer.stop_ids, *stop_ids])
        self.runner = Runner(model, config, self.vocab_size, self.stop_ids)
        self.scheduler = Scheduler(config, self.blocks, self.runner.free)
        self.speculator = self._speculator(proposer)
        self._guessing = True  # until it fails
        self.num_steps = 0
        self._next_check = 0.0  # of every block
        self._under_way: deque[tuple[Step, Launched, float]] = deque()  # the time is that of its planning
        self._done_at = 0.0  # when the last step was done
        self._searches: list[BeamRequests] = []
        self._ids = itertools.count()
        self._texts: dict[int, TextStream] = {}
        self._unready: list[Request] = []  # whose constraints are being made
        self._compiler: Compiler | None = None

    def _speculator(self, proposer: Proposer | None) -> Speculator | None:
        settings = self.config.speculation
        if settings is None:
            return None
        assert (proposer is None) == (settings.method == "ngram"), "a smaller model goes with the method draft"
        return Speculator(
            settings,
            NgramProposer(settings) if proposer is None else proposer,
            end_ids=self.stop_ids,
            max_model_len=self.config.max_model_len,
            vocab_size=self.vocab_size,
        )

    @property
    def speculation(self) -> Figures | None:
        """What drafts have done so far; None where there are none."""
        return None if self.speculator is None else self.speculator.figures

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
        """RequestError where this model has no such tokens, or a beam search no such figures."""
        for field, ids in (("logit_bias", params.logit_bias), ("stop_token_ids", params.stop_token_ids)):
            if ids and max(ids) >= self.vocab_size:
                raise RequestError(field, f"{field} holds token id {max(ids)}; ids go from 0 to {self.vocab_size - 1}")
        if params.beam_width is not None and params.top_logprobs:
            raise RequestError(
                "top_logprobs", "top_logprobs and beam_width contradict each other: leave one of them out"
            )

    def _constraints(self) -> Compiler:
        if self._compiler is None:
            self._compiler = Compiler(self.tokenizer, self.vocab_size, self.stop_ids)
        return self._compiler

    def add(self, request: Request) -> None:
        if request.constraint is None:
            self._queue(request)
        else:
            self._unready.append(request)
        self._texts[request.id] = self._stream(request)

    def _stream(self, request: Request) -> TextStream:
        return TextStream(self.tokenizer, request.params.stop_strings, request.continues, request.shown)

    def _queue(self, request: Request) -> None:
        params, longest = request.params, self.config.max_model_len
        if params.beam_width is None:
            self.scheduler.add(request)
            return
        room = min(params.max_tokens, longest - len(request.prompt_ids))
        ends = {*params.stop_token_ids, *(() if params.ignore_eos else self.stop_ids)}
        search = BeamSearch(params.beam_width, room, ends, params.length_penalty)
        request.search = BeamRequests(request, search, self.scheduler, self.blocks, self.runner.free, self._ids)
        self._searches.append(request.search)

    def add_request(self, prompt_ids: Sequence[int], params: SamplingParams, continues: bool = False) -> Request:
        """Check a request, as `make_request` does, and put it in the queue."""
        request = self.make_request(prompt_ids, params, continues=continues)
        self.add(request)
        return request

    def abort(self, request: Request) -> None:
        """Forget a request; its slot is free for the next step. One that has finished already is left alone."""
        if request.finish_reason is None:
            self._remove(request, "abort")

    def weights_changed(self) -> None:
        """To be called between two steps after the model's weights have changed: what was computed with the old ones is
        not reused. Requests that run go on with the keys and values that they have."""
        self.blocks.forget()
        self.runner.weights_changed()

    @property
    def has_work(self) -> bool:
        return self.scheduler.num_unfinished > 0 or bool(self._under_way or self._unready)

    def step(self) -> list[StepOutput]:
        """Launch what may be launched, then read the oldest step under way; one output for each request that got a
        token or ended.

        An exception in a step ends the requests that were in it with reason "error"; waiting ones go on.
        """
        outputs = self._admit_ready() if self._unready else []
        began = time.monotonic()
        while len(self._under_way) <= self.config.run_ahead and (step := self._schedule()) is not None:
            for chunk in step.chunks:
                if chunk.request.scheduled is None:
                    chunk.request.scheduled = began
            try:
                self._under_way.append((step, self._launch(step), began))
            except Exception as error:  # whatever went wrong, the requests outside this step must not suffer from it
                outputs += self._fail_step(step, error)
                self.scheduler.done(step)
            began = time.monotonic()
        if self._under_way:
            step, launched, began = self._under_way.popleft()
            outputs += self._read(step, launched, began)
            self.scheduler.done(step)
        if not self.has_work:
            self._look_for_leaks()
        return outputs

    def _look_for_leaks(self) -> None:
        """AssertionError where something has leaked now that nothing is left to do. To look at each of many thousand
        blocks takes milliseconds, which the last reply would wait for: that is done for a hundredth of the time at
        most, and in between they are counted."""
        began = time.monotonic()
        if began < self._next_check:
            assert self.blocks.num_free == self.blocks.num_blocks, "blocks leaked: nobody is left to hold them"
            return
        self.scheduler.check()
        if self.blocks.num_blocks > FEW_BLOCKS:
            ended = time.monotonic()
            self._next_check = ended + 100 * (ended - began)

    def _schedule(self) -> Step | None:
        """The next step; None where what is under way has to be read before."""
        if self.speculator is not None and self._guessing and self._guess(self.speculator):
            return None
        step = self.scheduler.schedule()
        if step is None and self._searches and not self._under_way:  # beams that wait hold what the others need
            for search in self._searches:
                search.park()
            step = self.scheduler.schedule()
        return step

    def _guess(self, speculator: Speculator) -> bool:
        """Drafts for what runs; whether tokens under way have to be read before. Who fails is asked no more: replies do
        not need it."""
        try:
            return speculator.propose(self.scheduler.running.values())
        except Exception:
            log.exception("guessing tokens ahead has failed and is off from now on")
            self._guessing = False
            for request in self.scheduler.running.values():
                request.drafts = []
            return False

    def _launch(self, step: Step) -> Launched:
        if self.speculator is None:
            return self.runner.launch(step)
        drafts = {c.request.id: self.speculator.given(c.request) for c in step.chunks if c.drafts}
        return self.runner.launch(step, drafts)

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
            self._queue(request)
        self._unready = waiting
        return outputs

    def _read(self, step: Step, launched: Launched, began: float) -> list[StepOutput]:
        """What a step drew, once the device is done with it."""
        try:
            drawn = launched.read()
            checked = [] if launched.checked is None else launched.checked.read()
            for scores in launched.prompts:
                scores.read()
        except Exception as error:
            return self._fail_step(step, error)
        self.num_steps += 1
        now = time.monotonic()
        if self.speculator is not None:
            seconds = None if launched.recorded else now - max(began, self._done_at)
            self._learn(self.speculator, step, checked, seconds)
        self._done_at = now
        outputs = []
        for row, request in enumerate(launched.requests):
            if request.finish_reason is not None:  # it ended while the step was under way
                self.scheduler.took(request, ())
            elif request.search is not None:
                outputs += self._tell(request.search, request, drawn, row, launched.errors.get(row))
            elif row in launched.errors:
                self.scheduler.took(request, ())
                outputs.append(self._fail(request, launched.errors[row]))
            else:
                logprobs = [drawn.logprobs[row]] if row in drawn.logprobs else []
                new = New(request, 0, [drawn.token_ids[row]], drawn.finite[row], logprobs)
                outputs.append(self._take(new, now))
        for new in checked:
            if new.request.finish_reason is not None:
                self.scheduler.took(new.request, ())
            else:
                outputs.append(self._take(new, now))
        return outputs

    @staticmethod
    def _learn(speculator: Speculator, step: Step, checked: Sequence[New], seconds: float | None) -> None:
        """Which drafts were right, and how long the step took where that counts and it read no prompts."""
        for new in checked:
            if new.request.finish_reason is None:
                speculator.verified(new.request, new.drafted, len(new.token_ids) - 1)
        if seconds is not None and all(
            chunk.samples and chunk.num_tokens == 1 + len(chunk.drafts) for chunk in step.chunks
        ):
            tokens = len(step.chunks) + sum(len(new.token_ids) - 1 for new in checked)
            speculator.took(len(step.chunks), seconds, tokens, bool(checked))

    def _take(self, new: New, now: float) -> StepOutput:
        """New tokens of a request, as far as its end."""
        request = new.request
        if not new.finite:
            self.blocks.forget()  # what it computed may be in blocks that others would reuse
            self.scheduler.took(request, ())
            return self._fail(request, ArithmeticError("the model's logits are not finite"))
        before = request.token_times[0] if request.token_times else request.arrived
        request.token_times = (now, before)
        taken: list[int] = []
        texts: list[str] = []
        reason, failed = None, None
        for token in new.token_ids:
            taken.append(token)
            try:
                if request.matcher is not None and not request.matcher.accept(token):
                    raise AssertionError(f"token {token} was drawn against the request's mask: a defect in gristmill")
                text, reason = self._advance(request, token, len(taken))
            except Exception as error:  # a token that cannot be decoded, a form too large: this request's trouble alone
                failed = error
                break
            texts.append(text)
            if reason is not None:
                break
        for logprob, top in new.logprobs[: len(taken)]:
            request.logprobs.append(logprob)
            request.top_logprobs.append(top)
        self.scheduler.took(request, taken)
        request.text += texts
        if failed is not None:
            return self._fail(request, failed)
        if reason is not None:
            self._remove(request, reason)
        return StepOutput(request, taken, "".join(texts), reason)

    def _tell(
        self, search: BeamRequests, beam: Request, drawn: Read, row: int, error: Exception | None
    ) -> list[StepOutput]:
        """What may follow a beam; once that is known of all, their search goes on."""
        if not drawn.finite[row] and error is None:
            self.blocks.forget()
            return [self._fail(search.root, ArithmeticError("the model's logits are not finite"))]
        top: Sequence[TokenLogprob] = () if error is not None else drawn.logprobs[row][1]
        search.told(beam, top)  # a beam whose form has come to a dead end goes no further, the others do
        if not search.complete:
            return []
        try:
            found = search.turn()
            if found:
                root, reason = search.root, search.give(found, self._stream)
                self._remove(root, reason)
                return [StepOutput(root, root.output_ids, "".join(root.text), reason)]
            if search.search.done:
                raise error or AssertionError("a beam search found nothing: a defect in gristmill")
        except Exception as failed:
            return [self._fail(search.root, failed)]
        return []

    def _fail_step(self, step: Step, error: Exception) -> list[StepOutput]:
        self.blocks.forget()  # what the step should have computed is not there
        outputs = []
        for chunk in step.chunks:
            if chunk.samples:
                self.scheduler.took(chunk.request, ())
            if chunk.request.finish_reason is None:
                search = chunk.request.search
                outputs.append(self._fail(chunk.request if search is None else search.root, error))
        return outputs

    def _advance(self, request: Request, token: int, new: int) -> tuple[str, FinishReason | None]:
        """The text of the last of `new` tokens that the scheduler is yet to be told, and why it is the last of all,
        where it is."""
        params = request.params
        reason: FinishReason | None = None
        if (token in self.stop_ids and not params.ignore_eos) or token in params.stop_token_ids:
            reason = "stop"
            request.closed = True
        elif (
            len(request.output_ids) + new >= params.max_tokens or request.num_tokens + new >= self.config.max_model_len
        ):
            reason = "length"
        stream = self._texts[request.id]
        text = "" if reason == "stop" else stream.push(token)
        if reason is not None:
            text += stream.finish()
        return text, "stop" if stream.stopped else reason

    def _fail(self, request: Request, error: Exception) -> StepOutput:
        self._remove(request, "error")
        return StepOutput(request, finish_reason="error", error=error)

    def _remove(self, request: Request, reason: FinishReason) -> None:
        request.finish_reason = reason
        if request.search is not None:
            request.search.end()
            self._searches.remove(request.search)
        self.scheduler.remove(request)
        if self.speculator is not None:
            self.speculator.forget(request)
        if self._unready:
            self._unready = [unready for unready in self._unready if unready is not request]
        self._texts.pop(request.id, None)
