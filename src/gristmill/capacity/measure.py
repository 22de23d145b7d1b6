"""What steps of the engine take on this machine: samples for `plan.step_fit.fit`, which models a device by them.

The engine is driven as it is, with made-up ids; each step's load is added up as the simulator does it, and its time is
that from the end of the step before, or from when the host began with it where nothing was under way. On a GPU a step
ends when the device is done with it: the host may read it later, while it launches the next one, or not wait for it.
"""

from __future__ import annotations

import datetime
import math
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

from ..plan.ceilings import EngineFit
from ..plan.step_time import Load
from .replica import load_of

if TYPE_CHECKING:
    import torch

    from ..engine.engine import Engine
    from ..engine.request import Request
    from ..engine.runner import Launched
    from ..engine.scheduler import Step
    from ..model.config import ModelConfig
    from ..plan.device import Device
    from ..plan.step_time import Efficiency

OUTPUT = 24  # tokens of the replies that decoding is measured by
HELD_UP = 5  # times as long as usual: what took longer was not the engine's work
MOST_OF_REST = 4  # a large shape takes a quarter of the time that is left at most
WARM_UP = 2  # tokens of the first reply, which is thrown away


class Sample(NamedTuple):
    load: Load
    seconds: float
    read: float | None = None  # seconds after which the host had read it; None: it is what ended the step


@dataclass(frozen=True)
class Shape:
    """`count` requests at once with prompts of about `prompt` tokens and replies of about `output` (from half of it to
    half as much again, where there are several: an engine is quickest with equal ones). `more` others follow, one
    whenever one ends, so that prompts are read in between the others' replies."""

    count: int
    prompt: int
    output: int = 1
    more: int = 0

    @property
    def tokens(self) -> int:
        """How much there is to compute."""
        return (self.count + self.more) * (self.prompt + self.output)


def shapes(longest: int, most_sequences: int, cache_tokens: int) -> list[Shape]:
    """Shapes that span what an engine of these limits may meet, the quickest first: prompts alone, short to long;
    replies and prompts together, few to many, short to long."""
    found = []
    length = 16
    while length < longest:
        found.append(Shape(1, length))
        length *= 4
    found.append(Shape(1, longest - 1))
    for prompt in sorted({16, longest // 16, longest // 4, longest // 2}):
        count = 1
        while count <= most_sequences and 1.5 * count * (prompt + OUTPUT) <= cache_tokens:
            if prompt and 1.5 * (prompt + OUTPUT) < longest:
                found.append(Shape(count, prompt, OUTPUT, more=count))
            count *= 2
    return sorted(found, key=lambda shape: shape.tokens)


def measured_steps(
    engine: Engine, seconds: float = 60.0, clock: Callable[[], float] = perf_counter, say: Callable[[str], None] = print
) -> list[Sample]:
    """Samples of an idle engine, shape by shape until `seconds` are over, small and large ones in turns, so that little
    time is spread over all that the engine may meet. On a GPU each is served twice, and the first time, which compiles
    kernels, does not count, nor do steps that were recorded as graphs. `clock` counts seconds; that of the processor's
    time fits an engine of one thread on a machine that others use too."""
    config = engine.config
    planned = shapes(config.max_model_len, config.max_num_seqs, config.num_blocks * config.block_size)
    rounds = 2 if engine.runner.device.type == "cuda" else 1
    draw = random.Random(0)
    timed(engine, Shape(1, 16, WARM_UP), draw)
    samples: list[Sample] = []
    most, began, largest, each = len(planned), perf_counter(), 0, 0.0  # seconds of each token of the largest so far
    while planned:
        left = began + seconds - perf_counter()
        if left <= 0:
            say(f"{seconds:.0f} s are over: {len(planned)} of {most} shapes are left out")
            break
        shape = planned.pop(_following(planned, left / MOST_OF_REST, each) if (most - len(planned)) % 2 else 0)
        started = perf_counter()
        for turn in range(rounds):
            found = timed(engine, shape, draw, clock)
            if turn == rounds - 1:
                samples += found
        if shape.tokens > largest:
            largest, each = shape.tokens, (perf_counter() - started) / shape.tokens
    return samples


def _following(planned: Sequence[Shape], seconds: float, each: float) -> int:
    """The largest shape that takes no more than so long, at `each` seconds a token; else the smallest."""
    fitting = [number for number, shape in enumerate(planned) if shape.tokens * each <= seconds]
    return fitting[-1] if fitting else 0


def timed(engine: Engine, shape: Shape, draw: random.Random, clock: Callable[[], float] = perf_counter) -> list[Sample]:
    """Every step that serving this shape takes."""
    from ..engine.sampling import SamplingParams

    def about(length: int) -> int:
        alone = shape.count + shape.more == 1
        return length if alone else draw.randint(max(length // 2, 1), length + length // 2)

    def made() -> tuple[list[int], SamplingParams]:
        params = SamplingParams(max_tokens=about(shape.output), ignore_eos=True, temperature=0)
        return draw.choices(range(engine.vocab_size), k=about(shape.prompt)), params

    requests = [made() for _ in range(shape.count + shape.more)]  # before, as a long one takes as long as a step
    with noted(engine, clock) as steps:
        for _ in range(shape.count):
            engine.add_request(*requests.pop())
        while engine.has_work:
            ended = sum(output.finish_reason is not None for output in engine.step())
            steps.read()
            for _ in range(min(ended, len(requests))):
                engine.add_request(*requests.pop())
    return steps.samples


@dataclass
class _Noted:
    load: Load
    began: float
    done: Callable[[], float] | None = None  # when the device was done with it; None: when it was read
    read: float = 0.0
    delayed: bool = False  # by what was recorded meanwhile


class Steps:
    """The steps of an engine as they are launched and read. One that was recorded as a graph took longer for it, and so
    did the one under way meanwhile: neither becomes a sample. `mark` is called behind each launch; what it returns says
    when the device was done with it."""

    def __init__(self, clock: Callable[[], float], mark: Callable[[], Callable[[], float]] | None = None):
        self._clock, self._mark = clock, mark
        self._under_way: deque[_Noted] = deque()
        self._read: list[_Noted] = []
        self._asked: float | None = None

    def asked(self) -> None:
        """A request comes: to take it in is the first that the host does for the next step."""
        if self._asked is None:
            self._asked = self._clock()

    def planned(self, step: Step, began: float) -> None:
        began, self._asked = began if self._asked is None else self._asked, None
        self._under_way.append(_Noted(load_of(step, alone=not self._under_way), began))

    def launched(self, recorded: bool) -> None:
        """The step planned last has been, `recorded` as a graph before."""
        if self._mark is not None:
            self._under_way[-1].done = self._mark()
        if recorded:
            for one in self._under_way:
                one.delayed = True

    def read(self) -> None:
        """The engine has read its oldest step."""
        if self._under_way:
            one = self._under_way.popleft()
            one.read = self._clock()
            self._read.append(one)

    @property
    def samples(self) -> list[Sample]:
        """Of the steps read so far."""
        found: list[Sample] = []
        ended = -math.inf
        for one in self._read:
            busy = max(ended - one.began, 0.0)
            began, ended = one.began + busy, one.read if one.done is None else one.done()
            if not one.delayed:
                read = None if one.done is None else max(one.read - ended, 0.0)
                found.append(Sample(replace(one.load, busy=busy), ended - began, read))
        return found


def device_marks(device: torch.device, clock: Callable[[], float]) -> Callable[[], Callable[[], float]] | None:
    """Marks behind what a GPU has been given to do, which then say when it was done with it, by `clock`; None for a
    processor, which is done when it returns."""
    import torch

    if device.type != "cuda":
        return None
    start = torch.cuda.Event(enable_timing=True)
    start.record()
    start.synchronize()
    began = clock()

    def mark() -> Callable[[], float]:
        event = torch.cuda.Event(enable_timing=True)
        event.record()

        def done() -> float:
            event.synchronize()
            milliseconds: float = start.elapsed_time(event)
            return began + milliseconds / 1e3

        return done

    return mark


@contextmanager
def noted(engine: Engine, clock: Callable[[], float]) -> Iterator[Steps]:
    """Note what the engine is asked for, its scheduler plans and its runner launches, as long as this lasts."""
    scheduler, runner = engine.scheduler, engine.runner
    steps = Steps(clock, device_marks(runner.device, clock))
    add_request, schedule, launch = engine.add_request, scheduler.schedule, runner.launch

    def adding(*asked: Any, **how: Any) -> Request:
        steps.asked()
        return add_request(*asked, **how)

    def noting() -> Step | None:
        began = clock()
        step = schedule()
        if step is not None:
            steps.planned(step, began)
        return step

    def launching(step: Step, *drafts: Any) -> Launched:
        launched = launch(step, *drafts)
        steps.launched(launched.recorded)
        return launched

    engine.add_request = adding  # type: ignore[method-assign]
    scheduler.schedule = noting  # type: ignore[method-assign]
    runner.launch = launching  # type: ignore[assignment, method-assign]
    try:
        yield steps
    finally:
        del engine.add_request, scheduler.schedule, runner.launch  # the classes' own again


def engine_fit(
    samples: Sequence[Sample], config: ModelConfig, on: Device, model_name: str, dtype: str, bits: float
) -> EngineFit:
    """What the engine reaches of a device's ceilings, fitted to all samples; its error is that of a fit to every other
    one, on those that it has not seen. `bits`: of a weight, and of a number of the cache."""
    from ..plan.step_fit import fit
    from ..plan.step_time import StepModel

    def model(efficiency: Efficiency) -> StepModel:
        return StepModel(config, on, weight_bits=bits, kv_bits=bits, head_bits=bits, efficiency=efficiency)

    def fitted(some: Sequence[Sample]) -> Efficiency:
        # A fit stands in the middle of the steps; a reply waits for all of them, the slow ones too. Not for those that
        # something else held up.
        steps = [(sample.load, sample.seconds) for sample in some]
        found = fit(steps, config, on, weight_bits=bits, kv_bits=bits, head_bits=bits)
        seconds = model(found).seconds
        waited = [(load, taken) for load, taken in steps if taken <= HELD_UP * seconds(load)] or steps
        found = slowed(found, sum(taken for _, taken in waited) / sum(seconds(load) for load, _ in waited))
        read = sorted(sample.read for sample in some if sample.read is not None)
        return replace(found, read_seconds=read[len(read) // 2]) if read else found

    error = median_error(samples[1::2], model(fitted(samples[::2])).seconds)
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return EngineFit(model_name, dtype, asdict(fitted(samples)), error, len(samples), date)


def slowed(efficiency: Efficiency, factor: float) -> Efficiency:
    """An engine whose every step takes `factor` times as long."""
    values = {
        name: value * factor if name.endswith("_seconds") else value / factor
        for name, value in asdict(efficiency).items()
    }
    return type(efficiency)(**values | {"overlap": efficiency.overlap})


def median_error(samples: Sequence[Sample], seconds: Callable[[Load], float]) -> float:
    """The median of |predicted / measured - 1|."""
    errors = sorted(abs(seconds(load) / taken - 1) for load, taken, _ in samples)
    return errors[len(errors) // 2]
