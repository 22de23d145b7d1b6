"""How near the fleet simulator comes to a served trace, on this machine.

    python benchmarks/simulator_accuracy.py --model PATH|--shape NAME [--rate R|--load 0.7] [--requests N] [--out FILE]

In each round the engine's steps are timed over many shapes, a trace (requests with random lengths at random times) is
served, and steps are timed again; the planner's model of a step is fitted to them, and the trace simulated: percentiles
of the time to the first token and of the time per token of both, beside each other. `--rate` defaults to the share
`--load` of what the simulator says the machine can serve. `--workloads` of `gristmill bench serve` are served and
simulated too, by the last fit. On a GPU all is served until no step has to be recorded as a graph any more, then three
times, and of each percentile the median counts: a machine that others use too holds some steps up.
Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import statistics
import zlib
from dataclasses import asdict
from pathlib import Path

from gristmill import hardware
from gristmill.bench.model import versions
from gristmill.bench.serve_load import Load as BenchLoad
from gristmill.bench.serve_load import Target, engine_of, target, workload
from gristmill.capacity.fleet import FleetSettings, Result, simulate
from gristmill.capacity.measure import Sample, engine_fit, measured_steps
from gristmill.capacity.replay import replay
from gristmill.capacity.replica import Served
from gristmill.capacity.report import PERCENTILES, summary
from gristmill.capacity.traffic import Arrival, Lengths, Traffic, drawn
from gristmill.engine.engine import Engine
from gristmill.plan.ceilings import EngineFit, kept
from gristmill.plan.device import device as known_device
from gristmill.plan.step_time import Efficiency, StepModel
from gristmill.plan.step_time import Load as Decoding

TURNS, MOST_TURNS = 3, 8  # of a trace: those that count, in which nothing is recorded, and all
ONE_AFTER_ANOTHER, GAP_SECONDS = 7, 0.02  # requests of a workload of one, and what lies between them


def main() -> None:
    asked = arguments()
    assert asked.rounds >= 1, "--rounds: one at least"
    loads = [workload(name, None, asked.scale) for name in asked.workloads]
    longest = max([4 * (asked.prompt + asked.output), *(load.longest for load in loads)])
    with target(asked.shape, asked.model, asked.device, asked.dtype, longest) as served:
        engine = engine_of(served, max_num_seqs=asked.max_num_seqs, max_model_len=longest)
        prompt, output = Lengths(asked.prompt, 1.0, longest // 2), Lengths(asked.output, 1.0, longest // 2 - 1)
        rounds, rate = [], asked.rate
        for number in range(asked.rounds):
            # A machine that others use too is not equally fast all the time: steps are timed before and after.
            samples = measured_steps(engine, asked.seconds)
            if rate is None:
                at_once = drawn(Traffic(1e9, 200, prompt, output), seed=7)
                most = summary(simulate(at_once, engine.config, fitted(served, samples)[1].seconds)).requests_per_s
                rate = asked.load * most
                print(f"at most {most:.3g} requests a second can be served; {rate:.3g} are sent", flush=True)
                replay(engine, at_once[:10], seed=-2001)
            arrivals = drawn(Traffic(rate, asked.requests, prompt, output), seed=number)
            turns = replay_warm(engine, arrivals, seed=number)
            samples += measured_steps(engine, asked.seconds)
            fit, model = fitted(served, samples)
            print(
                f"round {number + 1}: {fit.samples} steps, median error on those not seen {fit.error:.1%}", flush=True
            )
            simulated = simulate(arrivals, engine.config, model.seconds, fleet_of(model))
            rounds.append({"fit": asdict(fit), "rows": beside(turns, simulated)})
        batches = [compared(engine, load, model) for load in loads]
        report = {
            "workloads": batches,
            "model": served.name,
            "dtype": served.dtype,
            "rate": rate,
            "requests": asked.requests,
            "rounds": rounds,
            "calibrated": [asdict(one) for one in kept()],
            "hardware": hardware.describe(),
            "versions": versions("torch", "triton"),
        }
    if asked.out is not None:
        asked.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def replay_warm(engine: Engine, arrivals: list[Arrival], seed: int) -> list[list[Served]]:
    """The trace served for real, each time with other prompts; on a GPU as it is once its steps are recorded."""
    gc.collect()
    gc.freeze()  # as a server does
    graphs = engine.runner.graphs
    turns: list[list[Served]] = []
    for turn in range(MOST_TURNS):
        known = 0 if graphs is None else graphs.num_recorded
        found = replay(engine, arrivals, seed=seed - 10_000 * turn)
        if graphs is None:
            return [found]
        if turn and graphs.num_recorded == known:
            turns.append(found)
        if len(turns) == TURNS:
            return turns
    print(f"steps were recorded in {MOST_TURNS - len(turns)} of {MOST_TURNS} turns")
    return turns or [found]


def compared(engine: Engine, load: BenchLoad, model: StepModel) -> dict[str, object]:
    """Requests of `gristmill bench serve`, all at once, beside their simulation. A lone one is sent several times, one
    after another, as one alone says little."""
    times = ONE_AFTER_ANOTHER if len(load.lengths) == 1 else 1
    apart = GAP_SECONDS + sum(output for _, output in load.lengths) * model.seconds(Decoding.decode(1, load.longest))
    arrivals = [Arrival(apart * turn, prompt, output) for turn in range(times) for prompt, output in load.lengths]
    turns = replay_warm(engine, arrivals, seed=1 + zlib.crc32(load.name.encode()))
    print(f"{load.name}:")
    simulated = simulate(arrivals, engine.config, model.seconds, fleet_of(model))
    return {"workload": load.name, "rows": beside(turns, simulated)}


def fleet_of(model: StepModel) -> FleetSettings:
    return FleetSettings(read_seconds=model.efficiency.read_seconds)


def fitted(served: Target, samples: list[Sample]) -> tuple[EngineFit, StepModel]:
    """The planner's model of a step, as these steps have it."""
    config, bits = served.model.config, 8 * served.model.embedding.weight.element_size()
    here = known_device("here" if served.device.type == "cuda" else "cpu")
    fit = engine_fit(samples, config, here, served.name, served.dtype, bits)
    efficiency = Efficiency(**fit.efficiency)
    return fit, StepModel(config, here, weight_bits=bits, kv_bits=bits, head_bits=bits, efficiency=efficiency)


def beside(turns: list[list[Served]], simulated: Result) -> list[dict[str, float | str | int]]:
    """A row for each percentile of both, printed."""
    rows: list[dict[str, float | str | int]] = []
    real = [summary(Result(one, max(served.last for served in one), 0.0, 0.0, 0, 0, 0.0, 0, 0)) for one in turns]
    foretold = summary(simulated)
    for name in ("ttft", "tpot", "end_to_end"):
        for percent in PERCENTILES:
            each, said = [getattr(one, name)[percent] for one in real], getattr(foretold, name)[percent]
            served, least, most = statistics.median(each), min(each), max(each)
            if math.isnan(served):  # replies of one token have no time per token
                continue
            row = {"served": served, "lowest": least, "highest": most, "simulated": said}
            rows.append({"figure": name, "percentile": percent, **row})
            off = f"{said / served - 1:+.1%}"
            print(f"{name} p{percent}: served {1e3 * served:.2f} ms, simulated {1e3 * said:.2f} ms, {off}")
    return rows


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--shape")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype")
    parser.add_argument("--rate", type=float)
    parser.add_argument("--load", type=float, default=0.7)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--prompt", type=int, default=200, help="mean tokens of a prompt")
    parser.add_argument("--output", type=int, default=60, help="mean tokens of a reply")
    parser.add_argument("--max-num-seqs", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=40.0, help="of timing steps, before and after each trace")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workloads", nargs="*", default=[], help="of bench serve, requests at once: b1 b32 prefill")
    parser.add_argument("--scale", type=float, default=1.0, help="of the workloads' lengths")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
