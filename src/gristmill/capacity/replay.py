"""A trace served for real: requests come to an engine at their times, and what each gets is noted as in a simulation.

The two beside each other say how far the simulator can be believed (benchmarks/simulator_accuracy.py).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from time import perf_counter, sleep
from typing import TYPE_CHECKING

from ..engine.sampling import SamplingParams
from .replica import Served
from .traffic import Arrival

if TYPE_CHECKING:
    from ..engine.engine import Engine
    from ..engine.request import Request


def replay(engine: Engine, arrivals: Sequence[Arrival], seed: int = 0) -> list[Served]:
    """Serve the arrivals at their times, in the order given, with made-up ids; the times are seconds from the first.
    Requests that are due are taken in before each step, as the server's engine thread does."""
    ids = _ids(engine, arrivals, seed)
    served = [Served(arrival, replica=0) for arrival in arrivals]
    of_request: dict[int, Served] = {}
    began, added = perf_counter(), 0
    while added < len(arrivals) or engine.has_work:
        now = perf_counter() - began
        while added < len(arrivals) and arrivals[added].seconds <= now:
            request = _add(engine, ids[added], arrivals[added])
            of_request[request.id] = served[added]
            served[added].queued = now
            added += 1
        if not engine.has_work:
            sleep(max(arrivals[added].seconds - (perf_counter() - began), 0))
            continue
        outputs = engine.step()
        now = perf_counter() - began
        for output in outputs:
            if output.error is not None:
                raise output.error
            one, request = of_request[output.request.id], output.request
            if one.first < 0 and output.new_token_ids:
                one.first = now
                one.started = (
                    one.queued if request.scheduled is None else request.scheduled - request.arrived + one.queued
                )
            if output.finish_reason is not None:
                one.last, one.preemptions, one.cached_tokens = now, request.num_preemptions, request.num_cached
    return served


def _add(engine: Engine, ids: Sequence[int], arrival: Arrival) -> Request:
    params = SamplingParams(max_tokens=arrival.output_tokens, ignore_eos=True, temperature=0)
    return engine.add_request(ids, params)


def _ids(engine: Engine, arrivals: Sequence[Arrival], seed: int) -> list[list[int]]:
    """Prompts that begin alike where the arrivals say so."""
    common: dict[int, list[int]] = {}
    prompts = []
    for number, arrival in enumerate(arrivals):
        ids = _drawn(engine.vocab_size, arrival.prompt_tokens, f"{seed} {number}")
        if arrival.prefix_group is not None:
            group = common.setdefault(arrival.prefix_group, [])
            missing = arrival.prefix_tokens - len(group)
            group += _drawn(engine.vocab_size, max(missing, 0), f"{seed} group {arrival.prefix_group} {len(group)}")
            ids[: arrival.prefix_tokens] = group[: arrival.prefix_tokens]
        prompts.append(ids)
    return prompts


def _drawn(vocab_size: int, count: int, seed: str) -> list[int]:
    return random.Random(seed).choices(range(vocab_size), k=count)
