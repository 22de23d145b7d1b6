"""The workloads of `bench serve` that measure one idea: with it and without it, on the same engine and model."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from gristmill.engine.async_engine import AsyncEngine
from gristmill.engine.engine import Engine
from gristmill.engine.sampling import SamplingParams
from gristmill.engine.speculation.config import SpeculationConfig
from gristmill.errors import GristmillError

from . import serve_ready
from .serve_load import Target, engine_of, random_ids, scaled
from .serve_long import Variants, long_context, long_length
from .serve_watch import Figures, Watch, milliseconds

PREFIX, TAIL, PREFIX_OUTPUT = 1000, 24, 8  # tokens of `prefix`
LONG_PROMPT, SHORT_PROMPT, CHUNK, QUIET_STEPS = 8000, 128, 512, 16  # tokens and steps of `interleave`
COPY_PROMPT, COPY_OUTPUT, PATTERN, ORDER_TOKENS = 512, 256, 64, 24  # tokens of `copy`
WHO = ("Amara", "Boris", "Chen", "Dolores", "Emeka", "Farida", "Goran", "Hanna")
WHAT = ("red chairs", "oak tables", "desk lamps", "wool rugs", "clay pots", "steel shelves", "paper boxes")
WHEN = ("Monday", "Tuesday", "Wednesday", "Thursday", "Saturday")
IDLE_SECONDS = 3.0


@dataclass(frozen=True)
class Trial:
    """`run(target, requests, scale)` gives each variant with its figures; `longest(scale)` is its longest sequence."""

    run: Callable[[Target, int | None, float], Variants]
    longest: Callable[[float], int]


def greedy(max_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)


def prefix(served: Target, requests: int | None, scale: float) -> Variants:
    """Requests one after the other that share their first 1,000 tokens, beside some that share nothing."""
    count, shared, tail = requests or 16, scaled(PREFIX, scale), scaled(TAIL, scale)
    engine = engine_of(served, max_num_seqs=max(count, 2), max_model_len=_prefix_longest(scale))
    vocab = served.vocab_size

    def one_by_one(prompts: Sequence[list[int]]) -> tuple[list[float], float | None]:
        watch = Watch(engine)
        for ids in prompts:
            watch.add(ids, greedy(PREFIX_OUTPUT))
            watch.run()
        return list(watch.first.values()), watch.hit_rate

    one_by_one([random_ids(vocab, shared + tail, 0, 0)])  # kernels are compiled and graphs captured
    alone, _ = one_by_one([random_ids(vocab, shared + tail, 1, number) for number in range(min(count, 8))])
    cold = milliseconds(alone, 50)
    yield "nothing shared", {"first token ms p50": cold, "first token ms p99": milliseconds(alone, 99)}
    same = random_ids(vocab, shared, 2)
    first, hit_rate = one_by_one([same + random_ids(vocab, tail, 3, number) for number in range(count)])
    warm = milliseconds(first[1:], 50)
    yield (
        "prefix shared",
        {
            "first token ms p50": warm,
            "first token ms p99": milliseconds(first[1:], 99),
            "block hit rate": hit_rate,
            "of the time unshared": warm / cold if warm and cold else None,
        },
    )


def _prefix_longest(scale: float) -> int:
    return scaled(PREFIX, scale) + scaled(TAIL, scale) + PREFIX_OUTPUT


def interleave(served: Target, requests: int | None, scale: float) -> Variants:
    """What running requests feel while a prompt of 8,000 tokens arrives, read at once and read in parts."""
    count, longest = requests or 8, _interleave_longest(scale)
    for side, chunked in (("read at once", False), ("in parts", True)):
        budget = max(scaled(CHUNK, scale), 2 * (count + 1)) if chunked else longest + count
        engine = engine_of(
            served,
            max_num_seqs=count + 1,
            max_model_len=longest,
            max_num_batched_tokens=budget,
            chunked_prefill=chunked,
        )
        _meet(engine, count, scale, 0)  # kernels are compiled and graphs captured
        yield side, {"tokens a step at most": budget} | _meet(engine, count, scale, 1)
        del engine


def _meet(engine: Engine, count: int, scale: float, turn: int) -> Figures:
    """`count` requests write, and after a while the long prompt comes; until its first token is there."""
    watch = Watch(engine)
    vocab, length = engine.vocab_size, scaled(LONG_PROMPT, scale)
    parts = -(-length // (engine.config.max_num_batched_tokens - count))
    for number in range(count):
        ids = random_ids(vocab, scaled(SHORT_PROMPT, scale), turn, number)
        watch.add(ids, greedy(3 * QUIET_STEPS + 2 * parts))
    while len(watch.first) < count:
        watch.step()
    begin = {number: len(gaps) for number, gaps in watch.between.items()}
    for _ in range(QUIET_STEPS):
        watch.step()
    quiet = [gap for number, gaps in watch.between.items() for gap in gaps[begin[number] :]]
    begin = {number: len(gaps) for number, gaps in watch.between.items()}
    long = watch.add(random_ids(vocab, length, turn, count), greedy(2))
    while long.id not in watch.first:
        watch.step()
    during = [gap for number, start in begin.items() for gap in watch.between[number][start:]]
    watch.run()
    return {
        "between tokens ms p50, before": milliseconds(quiet, 50),
        "between tokens ms p50, meanwhile": milliseconds(during, 50),
        "between tokens ms p99, meanwhile": milliseconds(during, 99),
        "first token ms of the long prompt": 1e3 * watch.first[long.id],
    }


def _interleave_longest(scale: float) -> int:
    return scaled(LONG_PROMPT, scale) + scaled(SHORT_PROMPT, scale) + 3 * QUIET_STEPS


def copy(served: Target, requests: int | None, scale: float) -> Variants:
    """Text that is mostly written again, greedily: plain, with what followed the same tokens before as drafts, and with
    a smaller model's, where there is one.

    A model of random weights copies nothing on purpose; what it gives shows the cost of drafts more than their use.
    """
    output = scaled(COPY_OUTPUT, scale)
    longest = _copy_longest(scale)
    sides: list[tuple[str, SpeculationConfig | None]] = [("plain", None), ("drafts", SpeculationConfig())]
    if served.draft is not None:
        sides.append(("drafts of a model", SpeculationConfig(method="draft")))
    for count in dict.fromkeys((1, requests or 64)):
        plain: float | None = None
        for side, speculation in sides:
            engine = engine_of(served, max_num_seqs=count, max_model_len=longest, speculation=speculation)
            for turn in range(2):  # the first compiles kernels and captures graphs
                watch = Watch(engine)
                for ids in copy_prompts(served, count, scale, turn):
                    watch.add(ids[: longest - output], greedy(output))
                rate = count * output / watch.run()
            figures: Figures = {"output tok/s": rate, "tokens a step": watch.tokens_a_step}
            plain = plain or rate
            yield f"{side}, {count}", figures | {"times the plain one": None if rate == plain else rate / plain}
            del engine, watch


def copy_prompts(served: Target, count: int, scale: float, turn: int) -> list[list[int]]:
    """A made-up list of orders that is to be written again with one word changed; for a model of random weights, whose
    words mean nothing, the same ids over and over."""
    length, pattern = scaled(COPY_PROMPT, scale), scaled(PATTERN, scale)
    if served.random:
        patterns = [random_ids(served.vocab_size, pattern, turn, number) for number in range(count)]
        return [(ids * (length // pattern + 1))[:length] for ids in patterns]
    draw = random.Random(turn)
    prompts = []
    for _ in range(count):
        lines = [
            f"{number}. {draw.choice(WHO)} ordered {draw.randint(2, 99)} {draw.choice(WHAT)} on {draw.choice(WHEN)}, "
            f"order {draw.randint(1000, 9999)}."
            for number in range(1, 2 + length // ORDER_TOKENS)
        ]
        asked = "Write this list again, word for word, but with Friday instead of Tuesday.\n\n" + "\n".join(lines)
        try:
            ids = served.tokenizer.chat_ids([{"role": "user", "content": asked}], add_generation_prompt=True)
        except GristmillError:  # no chat template: a base model goes on with the text
            ids = served.tokenizer.encode(asked)
        prompts.append(ids)
    return prompts


def _copy_longest(scale: float) -> int:
    return 2 * scaled(COPY_PROMPT, scale) + scaled(COPY_OUTPUT, scale) + 128


def idle(served: Target, requests: int | None, scale: float) -> Variants:
    """The processor time of an engine in its thread that has served a request and now waits."""
    engine = engine_of(served, max_num_seqs=1, max_model_len=16)
    shared = AsyncEngine(engine, max_waiting=1)
    shared.start()

    async def serve_one() -> None:
        async for _, output in shared.submit([engine.make_request([1, 2, 3], greedy(2))]):
            if output.error is not None:
                raise output.error

    try:
        asyncio.run(serve_one())
        shared.wait_idle(IDLE_SECONDS)
        started, used = time.perf_counter(), time.process_time()
        time.sleep(IDLE_SECONDS)
        share = (time.process_time() - used) / (time.perf_counter() - started)
    finally:
        shared.stop()
    yield "gristmill", {"share of a core": share}


def ready(served: Target, requests: int | None, scale: float) -> Variants:
    """From the start of a process to its first token: with empty caches of compiled kernels, then with filled ones."""
    source = [] if not served.random else ["--random"]
    command = [sys.executable, "-m", serve_ready.__name__, served.name, served.device.type, served.dtype, *source]
    with TemporaryDirectory(prefix="gristmill-kernels-") as caches:
        kept = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "CUDA_CACHE_PATH")  # of Triton, Inductor, the driver
        environment = os.environ | {name: str(Path(caches) / name) for name in kept}
        for side in ("cold kernels", "warm kernels"):
            started = time.perf_counter()
            process = subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            assert process.stdout is not None
            line = process.stdout.readline()
            seconds = time.perf_counter() - started
            _, errors = process.communicate()
            if line.strip() != serve_ready.LINE:
                raise GristmillError(f"{' '.join(command)} gave no token: {errors[-2000:].strip()}")
            yield side, {"first token after s": seconds}


TRIALS: dict[str, Trial] = {
    "prefix": Trial(prefix, _prefix_longest),
    "interleave": Trial(interleave, _interleave_longest),
    "copy": Trial(copy, _copy_longest),
    "long": Trial(long_context, long_length),
    "idle": Trial(idle, lambda scale: 16),
    "ready": Trial(ready, lambda scale: serve_ready.PROMPT + 1),
}
