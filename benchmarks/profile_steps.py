"""Where a step's time goes: of the engine, decoding or reading prompts, and of the training loop.

    python benchmarks/profile_steps.py serve --shape smollm2-135m [--rows 1 32 256] [--context 256] [--prompts 4]
    python benchmarks/profile_steps.py train --shape 135m [--batch 32] [--set memory.offload=cpu]

For each kind of step: its time by the clock, without the profiler; then from some profiled steps, in a mean step, the
time of each kernel (on a CPU: of each operator) and how often it ran. What the clock says beyond the kernels' sum is
time in which the device waited for the host, or for the next kernel to begin. `--set` is a setting of `training` in a
recipe. `--out FILE` writes everything as JSON; what is printed is the `--top` of it.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile, schedule

from gristmill import hardware
from gristmill.bench.model import versions
from gristmill.bench.serve_load import engine_of, random_ids, target
from gristmill.bench.serve_watch import Watch
from gristmill.bench.train import EVERY, random_batch, settle, train_ours
from gristmill.engine.sampling import SamplingParams
from gristmill.model.decoder import Decoder
from gristmill.recipe import override
from gristmill.train.config import TrainingConfig
from gristmill.train.objectives import next_token_loss

WARM, TIMED, PROFILED = 12, 48, 16  # decoding steps
STEPS = 30  # of training
PROMPT = 2048  # tokens of a prompt that is read
Row = dict[str, Any]


def main() -> None:
    asked = arguments()
    rows = serve(asked) if asked.what == "serve" else train_steps(asked)
    for row in rows:
        busy = sum(one["us"] for one in row["kernels"])
        print(f"\n{row['name']}: {row['us']:,.0f} us by the clock, {busy:,.0f} us in kernels")
        for one in row["kernels"][: asked.top]:
            print(f"  {one['us']:>10,.1f} us {one['count']:>8,.1f} x  {one['name'][:110]}")
    if asked.out is not None:
        report = {"rows": rows, "hardware": hardware.describe(), "versions": versions("torch", "triton")}
        asked.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def serve(asked: argparse.Namespace) -> list[Row]:
    """Decoding by `--rows` requests behind `--context` tokens, and `--prompts` steps that read prompts."""
    output = WARM + TIMED + PROFILED + 64  # the first of many prompts is read some steps before the last
    longest = max(asked.context, PROMPT) + output
    found: list[Row] = []
    with target(asked.shape, asked.model, asked.device, None, longest) as served:
        engine = engine_of(served, max_num_seqs=max(asked.rows), max_model_len=longest)
        for turn, count in enumerate(asked.rows):
            watch = Watch(engine)
            for number in range(count):
                ids = random_ids(engine.vocab_size, asked.context, turn, number)
                watch.add(ids, params(output))
            while len(watch.first) < count:
                watch.step()
            for _ in range(WARM):
                watch.step()
            found.append(measured(f"{count} rows, context {asked.context}", watch.step, TIMED, PROFILED))
            watch.run()
        if asked.prompts:
            watch, budget = Watch(engine), engine.config.max_num_batched_tokens
            steps = 2 + engine.config.run_ahead + 2 * asked.prompts
            for number in range(-(-steps * budget // PROMPT)):
                watch.add(random_ids(engine.vocab_size, PROMPT, 99, number), params(1))
            watch.step()
            watch.step()
            found.append(measured(f"prompts, {budget} tokens", watch.step, asked.prompts, asked.prompts))
            watch.run()
    return found


def params(tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)


def measured(name: str, step: Callable[[], None], timed: int, profiled: int) -> Row:
    """`step` by the clock, then under the profiler."""
    wait()
    started = perf_counter()
    for _ in range(timed):
        step()
    wait()
    seconds = (perf_counter() - started) / timed
    with profile(activities=activities()) as seen:
        for _ in range(profiled):
            step()
        wait()
    return {"name": name, "us": 1e6 * seconds, "kernels": kernels(seen, profiled)}


def train_steps(asked: argparse.Namespace) -> list[Row]:
    """Steps of the training loop on random tokens, as `gristmill bench train` measures them."""
    setting = settle(asked.shape, asked.batch, None, "auto", "auto", STEPS, asked.device, "auto")
    settings = setting.training.model_dump()
    for item in asked.set:
        override(settings, item)
    setting = replace(setting, training=TrainingConfig.model_validate(settings))
    first, last = STEPS - 2 * EVERY, STEPS - EVERY  # the steps that are profiled
    plan = schedule(wait=first - 2, warmup=2, active=last - first, repeat=1)
    model = Decoder(setting.config).init_weights(0)
    with profile(activities=activities(), schedule=plan) as seen:

        def loss(*args: Any) -> Any:
            seen.step()
            return next_token_loss(*args)

        _, seconds, figures = train_ours(model, random_batch(setting), setting, loss)
    name, us = f"{asked.shape}, {setting.batch} x {setting.length}", 1e6 * median(seconds[1:-2]) / EVERY
    if (ratio := figures.get("memory_expected_over_peak")) is not None:
        name += f", peak memory {figures['memory_peak_bytes'] / 1e9:.2f} GB, expected over it {ratio:.3f}"
    return [{"name": name, "us": us, "kernels": kernels(seen, last - first)}]


def activities() -> list[ProfilerActivity]:
    return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def kernels(seen: profile, steps: int) -> list[dict[str, Any]]:
    """Of a mean step: each kernel's microseconds and how often it ran, the longest first."""
    wanted = DeviceType.CUDA if torch.cuda.is_available() else DeviceType.CPU
    total: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for event in seen.events() or ():
        if event.device_type == wanted and not event.name.startswith("ProfilerStep"):
            spent = event.time_range.elapsed_us() if wanted == DeviceType.CUDA else event.self_cpu_time_total
            total[event.name][0] += spent / steps
            total[event.name][1] += 1 / steps
    ordered = sorted(total.items(), key=lambda one: -one[1][0])
    return [{"name": name, "us": round(us, 2), "count": round(count, 2)} for name, (us, count) in ordered]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("serve", "train"))
    parser.add_argument("--shape", default=None, help="a preset; for train one of bench train's shapes")
    parser.add_argument("--model", type=Path, default=None, help="serve: a model instead of random weights")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 32], help="serve: requests that decode at once")
    parser.add_argument("--context", type=int, default=256, help="serve: tokens of their prompts")
    parser.add_argument("--prompts", type=int, default=0, help="serve: steps that read prompts")
    parser.add_argument("--batch", type=int, default=None, help="train: sequences of a step")
    parser.add_argument("--set", action="append", default=[], help="train: a setting of `training`, a.b=c")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--top", type=int, default=25)
    parser.add_argument("--out", type=Path, default=None)
    return parser.parse_args()


if __name__ == "__main__":
    main()
