"""How fast a server answers: time to the first token, time per token and throughput at a number of requests at once.

The engine's step takes one token of each running reply and, as they come, prompts in parts of what the step has room
for (engine/scheduler.py). In a steady state with n requests always there, each followed at once by the next, of which b
others are being answered:

  prompts a step  m = b / (O - 1), as many as replies end
  a token's time  t = the mean over steps of b + 1 replies and m prompts in the mean, or their parts
  requests        l = m / ((n - 1)/n t) a second
  first token     f = the rest of the step under way, E[t^2] / (2 E[t]) as long ones are met more often + the step that
                  is launched already + waiting while steps are full, r (1 + spread^2) / (2 (1 - r)) of a prompt's time
                  (M/G/1; r: the part of steps' room that prompts fill) + the prompt's steps, others' prompts in them
  Little 1961     n = l (f + (O - 1) t), which gives b

The fleet simulator (`plan fleet`) runs the scheduler itself and gives percentiles; this gives means.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NoReturn

from ..errors import GristmillError
from ..model.config import ModelConfig
from .device import Device
from .layouts import Layout
from .serve_memory import (
    BLOCK_TOKENS,
    STEP_TOKENS,
    ServingMemory,
    held_tokens,
    lognormal_quantile,
    preemption_probability,
    sequences_at_risk,
    served_weight_bytes,
    serving_memory,
)
from .step_time import Efficiency, Load, StepModel

MOST_SEQUENCES = 2**14  # that an engine takes (engine/limits.py)
STEPS = 60  # at most, of a search that needs about ten
MOST_PARTS = 48  # of a prompt that are reckoned one by one
RISK = 0.01  # share of time without room that is taken for safe


@dataclass(frozen=True)
class Traffic:
    """What the requests are like. `length_spread` is the coefficient of variation (standard deviation over mean) of
    prompts' and replies' lengths; `cached_prompt_share` of a prompt begins like other prompts, is computed once and
    held once. `step_tokens` and `run_ahead` are the engine's settings: the most tokens of a step, so that longer
    prompts are read in parts, and steps that are launched before a request can join them (0 on a processor)."""

    prompt_tokens: int
    output_tokens: int
    cached_prompt_share: float = 0.0
    length_spread: float = 1.0
    step_tokens: int = STEP_TOKENS
    run_ahead: int = 1

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "output_tokens", "step_tokens"):
            value = getattr(self, name)
            if not 1 <= value < math.inf:
                raise GristmillError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
        if not 0 <= self.cached_prompt_share <= 1:
            raise GristmillError(f"--cached-prompt-share must be from 0 to 1, not {self.cached_prompt_share}")
        if not 0 <= self.length_spread <= 10:
            raise GristmillError(f"--length-spread must be from 0 to 10, not {self.length_spread}")
        if self.run_ahead not in (0, 1):
            raise GristmillError(f"run_ahead must be 0 or 1, not {self.run_ahead}")

    @cached_property
    def new_prompt_tokens(self) -> int:
        """Tokens of a prompt that are computed: the last one always is, since the first token is drawn behind it."""
        return max(round(self.prompt_tokens * (1 - self.cached_prompt_share)), 1)

    @cached_property
    def shared_tokens(self) -> int:
        """Tokens of a prompt that all prompts hold together."""
        return self.prompt_tokens - self.new_prompt_tokens

    def held(self) -> tuple[float, float]:
        """Mean and variance of the tokens that a running sequence holds alone, half a block empty."""
        mean, variance = held_tokens(self.prompt_tokens, self.output_tokens, self.length_spread)
        return mean - self.shared_tokens + BLOCK_TOKENS / 2, variance


@dataclass(frozen=True)
class ServingEstimate:
    """Means over a steady state with `concurrency` requests at once, of the whole layout."""

    concurrency: int
    ttft_seconds: float
    tpot_seconds: float
    tokens_per_s: float  # written
    requests_per_s: float
    max_sequences: int  # that the cache holds in the mean
    max_sequences_worst: int  # if all were long (99 %) and at their last token
    max_sequences_safe: int  # that outgrow the cache at most 1 % of the time
    running: float  # sequences at once, the others wait for room
    decoding: float  # of them behind their first token
    preemption_probability: float
    prefill_share: float  # of the time that prompts take
    decode_step_seconds: float
    prefill_seconds: float  # of one prompt on an empty device
    memory: ServingMemory


class Server:
    """A model on the devices of a layout under some traffic; `at` estimates it for a number of requests at once."""

    def __init__(
        self,
        config: ModelConfig,
        device: Device,
        layout: Layout,
        traffic: Traffic,
        weight_bits: float = 16,
        kv_bits: float = 16,
        efficiency: Efficiency | None = None,
        utilization: float | None = None,
    ):
        if not config.causal:
            raise GristmillError("this model reads in both directions (causal: false): it writes no text to serve")
        length = traffic.prompt_tokens + traffic.output_tokens
        if length > config.max_seq_len:
            raise GristmillError(
                f"--prompt-tokens and --output-tokens are {length} together; this model takes {config.max_seq_len}"
            )
        self.config, self.device, self.layout, self.traffic = config, device, layout, traffic
        self.model = StepModel(config, device, layout, weight_bits, kv_bits, efficiency)
        self.memory = serving_memory(config, device, layout, weight_bits, kv_bits, utilization)
        self._given = weight_bits, kv_bits, efficiency, utilization
        self.groups = layout.data * layout.pipeline  # batches under way at once, each with requests of its own
        if self.memory.kv_tokens < length:
            self._refuse(length)
        self.held = self._mean, self._variance = traffic.held()
        self.context = held_tokens(traffic.prompt_tokens, traffic.output_tokens, traffic.length_spread)
        # A cache's tokens, without what all prompts share; of all replicas.
        self.tokens = self.memory.kv_tokens - traffic.shared_tokens
        self.most = self._sequences(self.tokens / self._mean)
        ends = [lognormal_quantile(mean, traffic.length_spread, 2.326)
                for mean in (traffic.prompt_tokens, traffic.output_tokens)]  # fmt: skip
        self.longest = min(math.ceil(sum(ends)), config.max_seq_len)
        self.most_worst = self._sequences(self.tokens / max(self.longest - traffic.shared_tokens, 1))
        self.most_safe = sequences_at_risk(self.tokens, self._mean, self._variance, RISK) * layout.data

    def _sequences(self, each: float) -> int:
        return int(each) * self.layout.data

    def _refuse(self, length: int) -> NoReturn:
        """Say how many devices would share the model, of numbers that divide its heads."""
        weight_bits, kv_bits, _, utilization = self._given
        needed, heads = served_weight_bytes(self.config, weight_bits), self.config.num_heads
        enough = "fewer bits (--weights, --kv) or another device"
        for tensor in range(self.layout.tensor + 1, heads + 1):
            if heads % tensor == 0:
                shared = replace(self.layout, tensor=tensor)
                memory = serving_memory(self.config, self.device, shared, weight_bits, kv_bits, utilization)
                if memory.kv_tokens >= length:
                    enough = f"--tensor {tensor}, or {enough},"
                    break
        raise GristmillError(
            f"{self.layout.tensor * self.layout.pipeline} x {self.device.name} do not hold {needed / 1e9:.1f} GB = "
            f"{needed / 2**30:.1f} GiB of weights and one sequence of {length} tokens; {enough} would"
        )

    def with_traffic(self, traffic: Traffic) -> Server:
        """The same server under other traffic."""
        return Server(self.config, self.device, self.layout, traffic, *self._given)

    def longest_gap(self, concurrency: int) -> float:
        """Seconds between two tokens of a reply while a prompt comes in between: the step that takes its first part."""
        decoding = max(min(concurrency, max(self.most, 1)) / self.groups - 1, 0.0)
        tokens = math.ceil(self.traffic.new_prompt_tokens / _parts(self.traffic, decoding + 1))
        prompt = _prompts(self.traffic, tokens, last=tokens == self.traffic.new_prompt_tokens)
        return self.model.seconds(prompt + _decoding(decoding + 1, self.context[0], self.traffic))

    def at(self, concurrency: int) -> ServingEstimate:
        """The steady state with so many requests at once; GristmillError below 1."""
        if not 1 <= concurrency < math.inf:
            raise GristmillError(f"--concurrency must be at least 1, not {concurrency}")
        # Each running sequence needs a token of every step.
        slots = min(MOST_SEQUENCES, self.traffic.step_tokens) * self.groups
        running = min(concurrency, max(self.most, 1), slots)
        each = max(running / self.groups, 1.0)  # of one batch
        state = _steady_state(self.model, self.traffic, each)
        rate = state.requests_per_s * running / each
        waiting = (concurrency - running) / rate
        replica = math.ceil(running / self.layout.data)
        return ServingEstimate(
            concurrency=concurrency,
            ttft_seconds=state.ttft + waiting,
            tpot_seconds=state.tpot,
            tokens_per_s=rate * self.traffic.output_tokens,
            requests_per_s=rate,
            max_sequences=self.most,
            max_sequences_worst=self.most_worst,
            max_sequences_safe=self.most_safe,
            running=running,
            decoding=state.decoding * running / each,
            preemption_probability=preemption_probability(replica, self.tokens, self._mean, self._variance),
            prefill_share=state.prefill_share,
            decode_step_seconds=state.step,
            prefill_seconds=_prompt_seconds(self.model, self.traffic, 0.0),
            memory=self.memory,
        )

    def best(
        self, ttft_seconds: float = math.inf, tpot_seconds: float = math.inf, gain: float = 0.95
    ) -> ServingEstimate | None:
        """The concurrency with the most tokens/s that keeps both targets and outgrows the cache at most 1 % of the
        time; without targets the fewest requests at once that give `gain` of the most tokens/s. None where even one
        request is slower than the targets."""
        free = ttft_seconds == tpot_seconds == math.inf
        within = []
        for concurrency in ladder(max(self.most_safe, 1)):
            estimate = self.at(concurrency)
            if estimate.ttft_seconds <= ttft_seconds and estimate.tpot_seconds <= tpot_seconds:
                within.append(estimate)
        if not within:
            return None
        most = max(estimate.tokens_per_s for estimate in within)
        if not free:
            return self._last(max(within, key=lambda estimate: estimate.tokens_per_s), ttft_seconds, tpot_seconds)
        return next(estimate for estimate in within if estimate.tokens_per_s >= gain * most)

    def _last(self, found: ServingEstimate, ttft_seconds: float, tpot_seconds: float) -> ServingEstimate:
        """From a rung of the ladder on to the last concurrency that keeps the targets."""
        low = found.concurrency
        high = min((rung for rung in ladder(max(self.most_safe, 1)) if rung > low), default=low)
        while low < high:
            middle = (low + high + 1) // 2
            estimate = self.at(middle)
            kept = estimate.ttft_seconds <= ttft_seconds and estimate.tpot_seconds <= tpot_seconds
            if kept and estimate.tokens_per_s >= found.tokens_per_s:
                low, found = middle, estimate
            else:
                high = middle - 1
        return found


def serving_estimate(
    config: ModelConfig,
    device: Device,
    layout: Layout,
    traffic: Traffic,
    concurrency: int,
    weight_bits: float = 16,
    kv_bits: float = 16,
    efficiency: Efficiency | None = None,
    utilization: float | None = None,
) -> ServingEstimate:
    """Mean times and throughput with `concurrency` requests at once. GristmillError where the model does not fit."""
    return Server(config, device, layout, traffic, weight_bits, kv_bits, efficiency, utilization).at(concurrency)


@dataclass(frozen=True)
class _State:
    ttft: float
    tpot: float
    requests_per_s: float
    decoding: float
    prefill_share: float
    step: float


def _steady_state(model: StepModel, traffic: Traffic, running: float) -> _State:
    """The number b of other replies under way for which Little's law gives `running` requests in all, by bisection:
    the more there are, the more requests come and go, and the longer each takes."""
    if traffic.output_tokens == 1:
        return _prompts_alone(model, traffic, running)
    written, new = traffic.output_tokens - 1, traffic.new_prompt_tokens
    # At most so many that the prompts which follow them still find room: b / (O - 1) * S = room - b.
    low, high = 0.0, running - 1
    crowded = written * (traffic.step_tokens - 1) / (new + written)
    if high > crowded:
        high = crowded * (1 - 1e-9)
    state = _with_others(model, traffic, running, high)
    above = state.requests_per_s * _latency(state, traffic) - running
    if high > 0 and above > 0:
        # Where the straight line between the ends crosses (an end that stays twice counts half, the Illinois rule); by
        # halves where that has not halved the distance, as it will not at a jump.
        below, stayed, width = -running, 0, high - low
        for _ in range(STEPS):
            share = -below / (above - below)
            middle = low + (high - low) * (0.5 if high - low > width else share)
            width = (high - low) / 2
            state = _with_others(model, traffic, running, middle)
            over = state.requests_per_s * _latency(state, traffic) - running
            if over > 0:
                high, above, below, stayed = middle, over, below / 2 if stayed > 0 else below, 1
            else:
                low, below, above, stayed = middle, over, above / 2 if stayed < 0 else above, -1
            if abs(over) <= 1e-8 * running or high - low <= 1e-13 * running:
                break
    return replace(state, requests_per_s=running / _latency(state, traffic))


def _with_others(model: StepModel, traffic: Traffic, running: float, decoding: float) -> _State:
    """The equations above for b = `decoding` other replies under way."""
    others, written = (running - 1) / running, traffic.output_tokens - 1
    steps = _Steps(model, traffic, decoding)
    if decoding <= 0:
        return _State(steps.alone + steps.prompt, steps.plain, 0.0, 1.0, 0.0, steps.plain)
    arriving = decoding / written
    tpot, square = steps.moments(arriving)
    begins = others * (square / (2 * tpot) + traffic.run_ahead * tpot)
    filled = min(arriving * traffic.new_prompt_tokens / steps.room, 1 - 1e-9)
    uneven = (1 + traffic.length_spread**2) / 2
    waiting = filled / (1 - filled) * uneven * steps.full * min(traffic.new_prompt_tokens / steps.room, steps.parts)
    ttft = begins + waiting + steps.first(arriving * square / tpot**2)
    rate = arriving / (others * tpot)
    return _State(ttft, tpot, rate, 1 + decoding, max(1 - steps.plain / tpot, 0.0), steps.plain)


class _Steps:
    """Seconds of steps of one reply and `decoding` others, with and without prompts."""

    def __init__(self, model: StepModel, traffic: Traffic, decoding: float):
        context, _ = held_tokens(traffic.prompt_tokens, traffic.output_tokens, traffic.length_spread)
        self.model, self.traffic = model, traffic
        self.replies = _decoding(1 + decoding, context, traffic)
        self.alone = _first_alone(model, traffic, 1 + decoding)
        self.room = max(traffic.step_tokens - 1 - decoding, 1.0)
        self.plain = model.seconds(self.replies)
        self.parts = math.ceil(traffic.new_prompt_tokens / self.room)
        self._one = _prompts(traffic, traffic.new_prompt_tokens)
        # All steps of one prompt, with the other replies in each.
        self.prompt = _prompt_seconds(model, traffic, decoding)
        self.full = self.prompt / self.parts if self.parts > 1 else self._with(self.room / traffic.new_prompt_tokens)

    def moments(self, arriving: float) -> tuple[float, float]:
        """Mean and mean square of a step's seconds, where `arriving` prompts come a step in the mean, independently
        (Poisson). Two numbers of prompts stand for all, which have the same mean and variance: m - sqrt(m) and
        m + sqrt(m), below 1 none and m + 1."""
        if self.parts > 1:
            often, few, many = min(arriving * self.parts, 1.0), self.plain, self.full
        elif arriving <= 1:
            often, few, many = arriving / (1 + arriving), self.plain, min(self._with(1 + arriving), self.full)
        else:
            around = math.sqrt(arriving)
            often, few, many = 0.5, self._with(arriving - around), min(self._with(arriving + around), self.full)
        return (1 - often) * few + often * many, (1 - often) * few**2 + often * many**2

    def first(self, arriving: float) -> float:
        """Of the steps that read a prompt, `arriving` others being read in the same."""
        if self.parts > 1:
            return self.alone + self.prompt
        return self.alone + min(self._with(1 + arriving), self.full)

    def _with(self, prompts: float) -> float:
        """With so many whole prompts; a part of one is that share of the steps with one."""
        if prompts < 1:
            return self.plain + prompts * (self._with(1) - self.plain)
        return self.model.seconds(replace(self.replies + _times(self._one, prompts), busy=self.plain))


def _latency(state: _State, traffic: Traffic) -> float:
    return state.ttft + (traffic.output_tokens - 1) * state.tpot


def _prompts_alone(model: StepModel, traffic: Traffic, running: float) -> _State:
    """Replies of one token: as many prompts to a step as it has room for, one step after another."""
    prompt = _prompt_seconds(model, traffic, 0.0)
    together = max(min(int(running), traffic.step_tokens // traffic.new_prompt_tokens), 1)
    if together > 1:
        prompt = model.seconds(_times(_prompts(traffic, traffic.new_prompt_tokens), together))
    prompt += _first_alone(model, traffic, running)
    rate = together / prompt
    return _State(running / rate, 0.0, rate, 0.0, 1.0, prompt)


def _first_alone(model: StepModel, traffic: Traffic, running: float) -> float:
    """What a request's first step takes longer where no other request keeps the device busy. Without steps ahead every
    step waits for the host, and its load says so."""
    if not traffic.run_ahead:
        return 0.0
    known, first = model.efficiency, _prompts(traffic, min(traffic.new_prompt_tokens, traffic.step_tokens))
    return (known.alone_seconds + known.host_seconds(first)) * max(2 - running, 0.0)


def _prompts(traffic: Traffic, tokens: int, start: int = 0, last: bool = True) -> Load:
    """A part of a prompt that begins `start` tokens behind the shared ones."""
    return replace(Load.prefill(tokens, traffic.shared_tokens + start, last=last), alone=not traffic.run_ahead)


def _decoding(sequences: float, context: float, traffic: Traffic) -> Load:
    keys = sequences * (context + 1)  # means need not be whole
    return Load(sequences, sequences, sequences, keys, keys, alone=not traffic.run_ahead)  # type: ignore[arg-type]


def _times(load: Load, count: float) -> Load:
    tokens, sequences, logits = count * load.tokens, count * load.sequences, count * load.logits
    pairs, cached, prompts = count * load.pairs, count * load.cached, count * load.prompts
    return Load(tokens, sequences, logits, pairs, cached, prompts, load.alone, load.busy)  # type: ignore[arg-type]


def _parts(traffic: Traffic, decoding: float) -> int:
    return math.ceil(traffic.new_prompt_tokens / max(traffic.step_tokens - decoding, 1))


def _prompt_seconds(model: StepModel, traffic: Traffic, decoding: float) -> float:
    """All steps of one prompt, with `decoding` replies in each; of very many parts some, evenly spread, stand for
    all."""
    parts, new = _parts(traffic, decoding), traffic.new_prompt_tokens
    context, _ = held_tokens(traffic.prompt_tokens, traffic.output_tokens, traffic.length_spread)
    replies = _decoding(decoding, context, traffic)
    plain = model.seconds(replies) if decoding else 0.0
    shown = min(parts, MOST_PARTS)
    total = 0.0
    for number in range(shown):
        part = number if shown == parts else int((number + 0.5) * parts / shown)
        start, end = part * new // parts, (part + 1) * new // parts
        load = _prompts(traffic, end - start, start, last=part == parts - 1)
        total += model.seconds(replace(load + replies, busy=plain) if decoding else load)
    return total * parts / shown


def ladder(most: int) -> list[int]:
    """Numbers of requests to try: 1, 2, 3, 4, 6, 8, 12 ... up to `most`, which is the last."""
    rungs, rung = [], 1.0
    while rung < most:
        rungs.append(round(rung))
        rung *= 1.5 if rung > 1 and math.log2(rung) % 1 == 0 else (4 / 3 if rung > 2 else 2)
    return [*dict.fromkeys(rungs), most]
