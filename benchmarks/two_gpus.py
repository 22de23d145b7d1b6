"""Throughput and memory of each way to train on several GPUs, beside the planner's figures.

    torchrun --nproc-per-node 2 benchmarks/two_gpus.py                                  # 1.2b, sequence 2,048, bf16
    torchrun --nproc-per-node 2 benchmarks/two_gpus.py --shape 135m --batch 64 --out two.json
    torchrun --nproc-per-node 2 benchmarks/two_gpus.py --shape quickstart --steps 15 --device cpu    # gloo

Every way (ddp, zero1, zero2, zero3) trains a new model by `train` itself, on random tokens, one after the other in
the same processes. Each row is printed when it is there, and all of them as JSON at the end. A row: `data`, the way;
`tokens_per_second` of all processes together, the median over stretches of five steps of which the first two are left
out; losses, which must agree from row to row; and for each rank, in bytes, `peak`, the most that tensors took at
once, and `between_steps`, what stays: weights and optimizer state, and DDP's buckets of gradients (both 0 on CPUs,
where torch does not count). Beside them what the planner says: `expected_peak`; `expected_between_steps`, where zero2
too holds its weights as shards; `zero_table`, the states by the ZeRO paper's 2 + 2 + 12 bytes a parameter; and
`zero_table_ours`, by this run's own bytes.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import statistics
import tempfile
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist

from gristmill import hardware
from gristmill.artifact import StageRun, write_json
from gristmill.bench.model import versions
from gristmill.bench.train import SHAPES
from gristmill.events import Event, EventLog
from gristmill.model.decoder import Decoder
from gristmill.model.presets import preset
from gristmill.plan.training import STAGES, zero_bytes_per_process
from gristmill.train.config import TrainingConfig
from gristmill.train.data import Shard, TokenBatch
from gristmill.train.device import resolve_device
from gristmill.train.loop import train
from gristmill.train.memory import Rows, estimate_memory
from gristmill.train.objectives import next_token_loss
from gristmill.train.parallel.processes import Processes, start_processes, stop_processes
from gristmill.train.precision import resolve_precision

EVERY = 5  # steps of a stretch


def main() -> None:
    parser = argparse.ArgumentParser(description="Throughput and memory of ddp, zero1, zero2 and zero3.")
    parser.add_argument("--shape", default="1.2b", help=f"{', '.join(SHAPES)}, or a preset's name")
    parser.add_argument("--batch", type=int, default=16, help="sequences a step, over all processes")
    parser.add_argument("--micro-batch", type=int, default=None, help="sequences a forward pass and process")
    parser.add_argument("--length", type=int, default=None, help="tokens a sequence")
    parser.add_argument("--steps", type=int, default=30, help="at least 15")
    parser.add_argument("--data", nargs="+", choices=list(STAGES), default=list(STAGES), help="the ways to measure")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--weights", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--compile", default="auto")
    parser.add_argument("--checkpointing", default="none", help="memory.activation_checkpointing")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--out", type=Path, default=None, help="file for the JSON")
    options = parser.parse_args()
    if options.steps < 3 * EVERY:
        parser.error(f"--steps {options.steps}: at least {3 * EVERY}, of which the first {2 * EVERY} are not counted")
    make, _, usual_length = SHAPES.get(options.shape, (lambda: preset(options.shape), 0, 2048))
    length = options.length or usual_length
    config = make().model_copy(update={"max_seq_len": length, "rope_scaling": None})
    processes = start_processes(options.device)
    model = Decoder(config).init_weights(0)
    rows = []
    for data in options.data:
        rows.append(_measure(data, model, length, options, processes))
        if processes.main:  # at once: what follows may be cut short
            print(json.dumps(rows[-1]), flush=True)
    report = {
        "shape": options.shape,
        "parameters": config.num_parameters,
        "processes": processes.count,
        "batch": options.batch,
        "length": length,
        "rows": rows,
        "settings": {key: str(value) for key, value in vars(options).items()},
        "hardware": hardware.describe(),
        "versions": versions("torch"),
    }
    stop_processes()
    if processes.main:
        print(json.dumps(report, indent=2))
        if options.out is not None:
            write_json(options.out, report)


def _measure(
    data: str, model: Decoder, length: int, options: argparse.Namespace, processes: Processes
) -> dict[str, Any]:
    """One way's row, from a copy of the model; what it says of ranks is of all of them, in their order."""
    config = model.config
    training = TrainingConfig.model_validate(
        {
            "steps": options.steps,
            "batch_size": options.batch,
            "micro_batch_size": options.micro_batch,
            "learning_rate": 3e-4,
            "schedule": "constant",
            "precision": options.precision,
            "weights": options.weights,
            "compile": options.compile,
            "device": processes.device_type,
            "memory": {"activation_checkpointing": options.checkpointing},
            "parallel": {"data": data},
            "checkpoint_every": options.steps + 1,
            "log_every": EVERY,
            "watch": {"norms_every": 0},
        }
    )
    device = resolve_device(training.device)
    cuda = device.type == "cuda"
    times: list[float] = []
    held: list[int] = []

    def note(event: Event) -> None:
        if event["type"] == "metric":  # the host has just read the step's values from the device
            times.append(perf_counter())  # in the main process alone
        elif event["type"] == "progress":
            held.append(torch.cuda.memory_allocated(device) if cuda else 0)

    log = EventLog(None)
    log.subscribers.append(note)
    with tempfile.TemporaryDirectory(prefix="gristmill-two-gpus-") as directory:
        # Checkpoints are for all processes: they need one place, the main one's.
        out = Path(processes.broadcast_object(directory))
        run = StageRun(out, out / "scratch", {}, 0, log.stage("bench"))
        result = train(
            copy.deepcopy(model),
            _random_rows(config.vocab_size, options.batch, length),
            next_token_loss,
            training,
            run,
            sequence_length=length,
        )
        processes.barrier()
    figures, losses = result.figures, [entry["loss"] for entry in result.history]
    del result
    mine = {
        "peak": figures["memory_peak_bytes"] if cuda else 0,
        "between_steps": held[-1],
        "losses": losses,
    }
    ranks: list[Any] = [None] * processes.count
    if processes.count > 1:
        dist.all_gather_object(ranks, mine)
    else:
        ranks = [mine]
    torch.compiler.reset()
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
    if not processes.main:
        return {}
    # Noted after step 1 and then every five: a stretch of four, then whole ones, the first of which still warms up.
    seconds = [now - earlier for earlier, now in pairwise(times)][2:]
    precision = resolve_precision(training.precision, device)
    expected = estimate_memory(
        config, training, [Rows(training.batch_size, length)], processes.count, precision, device.type
    )
    weight = 2 if training.weights == "bf16" else 4
    params, stage = config.num_parameters, STAGES[training.parallel.data]
    ours = {"weight": weight, "gradient": weight, "optimizer": 2 * weight}  # AdamW's two averages
    between = {
        "weight": weight / processes.count if stage >= 2 else weight,
        "gradient": weight if stage == 0 and processes.count > 1 else 0,  # DDP keeps the buckets that it sends
        "optimizer": 2 * weight,
    }
    return {
        "data": data,
        "precision": precision,
        "tokens_per_second": round(options.batch * length * EVERY / statistics.median(seconds)),
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "same_losses_in_all_ranks": all(rank["losses"] == losses for rank in ranks),
        "ranks": [{key: value for key, value in rank.items() if key != "losses"} for rank in ranks],
        "expected_peak": round(expected.total),
        "expected_parts": {name: round(size) for name, size in expected.parts().items()},
        "expected_between_steps": round(zero_bytes_per_process(params, processes.count, min(stage, 1), **between)),
        "zero_table": round(zero_bytes_per_process(params, processes.count, stage)),
        "zero_table_ours": round(zero_bytes_per_process(params, processes.count, stage, **ours)),
    }


def _random_rows(vocab_size: int, batch: int, length: int) -> Any:
    """The same rows in every step; a process is given its share of them."""
    ids = torch.randint(vocab_size, (batch, length + 1), generator=torch.Generator().manual_seed(0))

    def batch_at(step: int, shard: Shard) -> TokenBatch:
        rows = shard.rows(batch)
        mine = ids[rows.start : rows.stop]
        return TokenBatch(mine[:, :-1].contiguous(), mine[:, 1:].contiguous(), torch.ones(len(mine), length))

    return batch_at


if __name__ == "__main__":
    main()
