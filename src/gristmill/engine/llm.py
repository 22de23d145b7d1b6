"""A model to generate with, in one call: `LLM(path).generate(prompts, params)`."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Unpack

import torch

from ..artifact import check_files
from ..errors import GristmillError
from ..model.decoder import Decoder
from ..tokenizer.tokenizer import TOKENIZER_FILES, Tokenizer
from ..weights.load import load_model
from ..weights.locate import locate_model
from .engine import Engine
from .limits import CPU_BLOCK, GPU_BLOCK, Limits, engine_config
from .request import FinishReason, Request, TokenLogprob
from .sampling import SamplingParams
from .speculation.config import SpeculationConfig
from .speculation.draft import DraftProposer
from .speculation.paged import PagedDraftRunner

Prompt = str | Sequence[int]
Message = Mapping[str, str]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Completion:
    """What one prompt gave. `token_ids` are all generated tokens, a closing one included; `text` is without it and
    without a stop string. `logprobs` has one entry per token when asked for, `top_logprobs` pairs of id and value.
    `others`: the further replies where `SamplingParams.n` asked for several."""

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    logprobs: list[float] | None = None
    top_logprobs: list[list[TokenLogprob]] | None = None
    prompt_logprobs: list[float | None] | None = None  # of each token of the prompt, when asked for; None of the first
    prompt_top_logprobs: list[list[TokenLogprob]] | None = None  # in the place of each token; none in that of the first
    others: tuple[Completion, ...] = ()


class LLM:
    """An engine over a model and its tokenizer. Used from one thread; `server` is what many clients share."""

    def __init__(
        self,
        path: Path | str,
        dtype: torch.dtype | str | None = None,
        *,
        device: str | None = None,
        draft_model: Path | str | None = None,
        **limits: Unpack[Limits],
    ):
        """Load a model directory, or the last aligned model of a run directory.

        `device` defaults to CUDA where there is a GPU, `dtype` to bfloat16 there and float32 on the CPU; `limits` are
        those of engine/limits.py. GristmillError where the directory is an artifact and the files of its tokenizer are
        not those that it was made with, and where the memory does not hold what was asked for.

        `draft_model` is the directory of a smaller model with the same vocabulary that guesses tokens ahead.
        """
        directory = locate_model(path)
        check_files(directory, TOKENIZER_FILES)
        where = device or ("cuda" if torch.cuda.is_available() else "cpu")
        # Weights that take no gradient are read faster on a CPU (kernels/cpu_linear.py).
        model = load_model(directory, dtype=_dtype(dtype, where), device=where).requires_grad_(False)
        tokenizer = Tokenizer.load(directory)
        draft = None if draft_model is None else load_draft(draft_model, tokenizer, _dtype(dtype, where), where)
        self._init(model, tokenizer, limits, _generation_stop_ids(directory), draft)

    @classmethod
    def from_model(
        cls, model: Decoder, tokenizer: Tokenizer, draft_model: Decoder | None = None, **limits: Unpack[Limits]
    ) -> LLM:
        """Generate with a model in memory, where and in the dtype it is. It is put into eval mode."""
        llm = cls.__new__(cls)
        llm._init(model, tokenizer, limits, draft=draft_model)
        return llm

    def _init(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        limits: Limits,
        stop_ids: Iterable[int] = (),
        draft: Decoder | None = None,
    ) -> None:
        weight = model.embedding.weight
        self.tokenizer = tokenizer
        # Before the engine's configuration: the small model's cache is no free memory any more.
        proposer = _draft_proposer(model, tokenizer, draft, limits)
        config = engine_config(model.config, weight.dtype, weight.device, limits)
        self.engine = Engine(model, tokenizer, config, stop_ids, proposer)

    def generate(
        self,
        prompts: Sequence[str] | Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Completion]:
        """Complete every prompt; the completions stand in the order of the prompts.

        A prompt is text, which gets the tokenizer's beginning-of-text token, or token ids, which are taken as they
        are. What follows a text goes on with it, its first space included; what follows ids begins a text, as the reply
        to a chat does. `params` holds for all prompts or is one for each. `on_progress(done, total)` is called as
        prompts end. All prompts are checked before any is run: RequestError names the first that does not fit.
        """
        if isinstance(prompts, str):
            raise GristmillError("prompts is one string; generate takes a list of prompts")
        per_prompt = _per_prompt(params, len(prompts))
        replies = [
            [
                self.engine.make_request(ids, reply, field=f"prompts[{i}]", continues=isinstance(prompts[i], str))
                for reply in replies_of(p)
            ]
            for i, (ids, p) in enumerate(zip(prompt_ids(self.tokenizer, prompts), per_prompt, strict=True))
        ]
        for request in (request for several in replies for request in several):
            if request.constraint is not None:
                request.constraint.result()  # RequestError here, before anything runs
        self._run([request for several in replies for request in several], on_progress or (lambda done, total: None))
        return [_completion(*several) for several in replies]

    def chat(
        self,
        conversations: Sequence[Sequence[Message]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Completion]:
        """The assistant's reply to each conversation, a list of `{"role": ..., "content": ...}`."""
        prompts = [self.tokenizer.chat_ids(messages, add_generation_prompt=True) for messages in conversations]
        return self.generate(prompts, params, on_progress)

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Generator[str, None, None]:
        """The text that completes a prompt (see `generate`), piece by piece. Closing the iterator ends the request."""
        (ids,) = prompt_ids(self.tokenizer, [prompt])
        request = self.engine.add_request(ids, params or SamplingParams(), continues=isinstance(prompt, str))
        try:
            while request.finish_reason is None:
                for output in self.engine.step():
                    if output.error is not None:
                        raise output.error
                    if output.text:
                        yield output.text
        finally:
            self.engine.abort(request)

    def _run(self, requests: Sequence[Request], on_progress: Callable[[int, int], None]) -> None:
        # Prompts of equal length are computed together, and rows of like length waste least in decoding.
        for request in sorted(requests, key=lambda request: len(request.prompt_ids), reverse=True):
            self.engine.add(request)
        done = 0
        try:
            while self.engine.has_work:
                ended = 0
                for output in self.engine.step():
                    if output.error is not None:
                        raise output.error
                    ended += output.finish_reason is not None
                if ended:
                    done += ended
                    on_progress(done, len(requests))
        finally:  # after an error or Ctrl-C nothing may stay behind in the engine
            for request in requests:
                self.engine.abort(request)


def prompt_ids(tokenizer: Tokenizer, prompts: Sequence[Prompt]) -> list[Sequence[int]]:
    """Token ids of prompts, texts or ids; a text gets the token that begins every document in training.

    A tokenizer that has no such token, or has its end or `<|im_start|>` in that place, adds none.
    """
    bos = tokenizer.bos_id
    begin = [] if bos in (None, tokenizer.eos_id, tokenizer.im_start_id) else [bos]
    encoded = iter(tokenizer.encode_batch([prompt for prompt in prompts if isinstance(prompt, str)]))
    return [begin + next(encoded) if isinstance(prompt, str) else prompt for prompt in prompts]


def replies_of(params: SamplingParams) -> list[SamplingParams]:
    """Parameters of each of the `n` replies to a prompt: a seed counts up from one to the next. A beam search finds all
    of its own at once."""
    if params.n == 1 or params.beam_width is not None:
        return [params]
    seeds = [None if params.seed is None else params.seed + number for number in range(params.n)]
    return [replace(params, n=1, seed=seed) for seed in seeds]


def _completion(request: Request, *others: Request) -> Completion:
    assert request.finish_reason is not None
    params = request.params
    scored = params.prompt_logprobs is not None
    return Completion(
        text="".join(request.text),
        token_ids=request.output_ids,
        finish_reason=request.finish_reason,
        logprobs=request.logprobs if params.logprobs else None,
        top_logprobs=request.top_logprobs if params.top_logprobs else None,
        prompt_logprobs=[None, *request.prompt_logprobs] if scored else None,
        prompt_top_logprobs=[[], *request.prompt_top_logprobs] if scored else None,
        others=tuple(_completion(other) for other in (*others, *request.others)),
    )


def _per_prompt(params: SamplingParams | Sequence[SamplingParams] | None, count: int) -> Sequence[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if len(params) != count:
        raise GristmillError(f"params has {len(params)} entries for {count} prompts; give one for all, or one for each")
    return params


def load_draft(path: Path | str, tokenizer: Tokenizer, dtype: torch.dtype, device: str | torch.device) -> Decoder:
    """A smaller model that guesses for one with this tokenizer; GristmillError where its vocabulary is another."""
    directory = locate_model(path)
    other = Tokenizer.load(directory)
    if other.backend.get_vocab() != tokenizer.backend.get_vocab():
        raise GristmillError(f"the draft model {path} has another vocabulary than the model: its guesses mean nothing")
    return load_model(directory, dtype=dtype, device=device).requires_grad_(False)


def _draft_proposer(
    model: Decoder, tokenizer: Tokenizer, draft: Decoder | None, limits: Limits
) -> DraftProposer | None:
    """What guesses with a smaller model, where there is one; `limits` then say so."""
    settings = limits.get("speculation")
    if draft is None:
        if settings is not None and settings.method == "draft":
            raise GristmillError("speculation with a draft model needs draft_model, the directory of a smaller model")
        return None
    if settings is None:
        settings = limits["speculation"] = SpeculationConfig(method="draft")
    if settings.method != "draft":
        raise GristmillError(f"draft_model and speculation with {settings.method} contradict each other")
    vocab = min(tokenizer.vocab_size, model.config.vocab_size)
    if draft.config.vocab_size < vocab:
        raise GristmillError(f"the draft model has {draft.config.vocab_size} tokens, the model {vocab}")
    on_gpu = model.embedding.weight.is_cuda
    longest = limits.get("max_model_len") or model.config.max_seq_len
    runner = PagedDraftRunner(
        draft,
        slots=min(settings.max_batch, limits.get("max_num_seqs") or settings.max_batch),
        max_len=min(longest, draft.config.max_seq_len),
        block_size=GPU_BLOCK if on_gpu else CPU_BLOCK,
        vocab_size=vocab,
        graphs=limits.get("graphs", True),
    )
    return DraftProposer(runner)


def _dtype(dtype: torch.dtype | str | None, device: str) -> torch.dtype:
    if dtype is None:
        return torch.bfloat16 if device.startswith("cuda") else torch.float32
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise GristmillError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
        return DTYPES[dtype]
    return dtype


def _generation_stop_ids(directory: Path) -> list[int]:
    """The end tokens that a model's `generation_config.json` names beside those of its tokenizer."""
    path = directory / "generation_config.json"
    if not path.exists():
        return []
    ids = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
    return ids if isinstance(ids, list) else [] if ids is None else [ids]
