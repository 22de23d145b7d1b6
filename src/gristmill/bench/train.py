"""`gristmill bench train`: tokens a second of the training loop, beside other tools' models in plain, good loops.

One process, the sides one after the other, round by round: the same shape, batch, precision, optimizer and clipping,
random tokens that are the same for all. Ours runs through `train` itself, with all that it does in a real run
(batches from the host, judgement of spikes, figures in the event log); what the others do stands in train_peers.py. A
rate is the median over stretches of several steps between two of which the host waits for the device, the first left
out; with several rounds the best round counts, for all sides alike.
"""

from __future__ import annotations

import gc
import importlib.util
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from pydantic import ValidationError

from gristmill import hardware
from gristmill.artifact import StageRun
from gristmill.errors import GristmillError
from gristmill.events import Event, EventLog
from gristmill.model.config import ModelConfig
from gristmill.model.decoder import Decoder
from gristmill.model.presets import preset
from gristmill.train.config import TrainingConfig
from gristmill.train.data import Shard, TokenBatch
from gristmill.train.device import resolve_device
from gristmill.train.loop import train
from gristmill.train.objectives import next_token_loss
from gristmill.train.precision import resolve_precision
from gristmill.train.step import LossFunction
from gristmill.train.throughput import flops_per_token, mfu, peak_flops

from .model import versions
from .train_peers import CLIP_NORM, LEARNING_RATE, PEERS, WEIGHT_DECAY, train_peer

EVERY = 5  # steps of a stretch
QUICKSTART = ModelConfig(
    vocab_size=4096,
    hidden_size=128,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    intermediate_size=344,
    max_seq_len=128,
)
D12 = ModelConfig(
    vocab_size=32_768,
    hidden_size=768,
    num_layers=12,
    num_heads=6,
    num_kv_heads=6,
    head_dim=128,
    intermediate_size=2048,
    max_seq_len=2048,
    tie_embeddings=True,
)
# Name -> shape, and the batch and length it is measured at unless told otherwise.
SHAPES: dict[str, tuple[Callable[[], ModelConfig], int, int]] = {
    "135m": (lambda: preset("smollm2-135m"), 32, 2048),
    "d12": (lambda: D12, 32, 2048),
    "1.2b": (lambda: preset("llama-3.2-1b"), 8, 2048),
    "quickstart": (lambda: QUICKSTART, 16, 128),
}
Say = Callable[[str], None]


@dataclass(frozen=True)
class Setting:
    """What all sides have in common."""

    config: ModelConfig
    batch: int
    length: int
    training: TrainingConfig
    device: torch.device

    @property
    def tokens(self) -> int:
        return self.batch * self.length


@dataclass
class Row:
    """One side: tokens a second of its best round, the share of the device's peak that makes (train/throughput.py;
    None where the peak is not known), its peak of a GPU's memory, first and last loss."""

    name: str
    tokens_per_second: int
    rounds: list[int]
    mfu: float | None
    memory_bytes: int | None
    first_loss: float
    last_loss: float


def bench_train(
    shape: str,
    peers: list[str],
    batch: int | None = None,
    length: int | None = None,
    precision: str = "auto",
    weights: str = "auto",
    steps: int = 30,
    rounds: int = 1,
    device: str = "auto",
    compile: str = "auto",
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """The report of `gristmill bench train`: a row for us and for each of `peers` that is installed.

    `shape` is one of SHAPES or a preset's name. `weights` "auto" is what each device is used with: all in bf16 on a GPU
    where products are bf16, as the peers' published figures, else fp32 under autocast. GristmillError for a shape, peer
    or device that is not there, and for fewer steps than two stretches.
    """
    if steps < 2 * EVERY:
        raise GristmillError(f"--steps {steps}: at least {2 * EVERY}, of which the first {EVERY} are not counted")
    for name in peers:
        if name not in PEERS:
            raise GristmillError(f"--peer {name}: the peers are {', '.join(PEERS)}")
    setting = settle(shape, batch, length, precision, weights, steps, device, compile)
    installed = [name for name in peers if importlib.util.find_spec(name) is not None]
    rows: dict[str, Row] = {}
    for turn in range(rounds):
        for name in ("gristmill", *installed):
            say(f"{name}, round {turn + 1} of {rounds}")
            started = perf_counter()
            _add(rows, _measure(name, setting), setting)
            # At once: what follows may be cut short.
            rate, whole = rows[name].rounds[-1], perf_counter() - started
            say(f"{name}: {rate:,} tokens/s; {whole:.0f} s with its making and compiling")
    return {
        "rows": [asdict(row) for row in rows.values()],
        "shape": shape,
        "parameters": setting.config.num_parameters,
        "batch": setting.batch,
        "length": setting.length,
        "steps": steps,
        "precision": setting.training.precision,
        "weights": setting.training.weights,
        "compile": compile,
        "device": _device_name(setting.device),
        "hardware": hardware.describe(),
        "versions": versions("torch", *installed),
        "absent": [name for name in peers if name not in installed],
    }


def table(report: dict[str, Any]) -> str:
    """The report as lines of text."""
    ours = report["rows"][0]["tokens_per_second"]
    lines = [
        f"{report['shape']}, {report['parameters']:,} parameters, {report['batch']} x {report['length']} tokens, "
        f"{report['precision']}, weights {report['weights']}, {report['device']}; {report['steps']} steps a round",
        "",
        f"{'':<16}{'tokens/s':>12}{'we over it':>12}{'MFU':>9}{'memory':>12}  loss, first and last",
    ]
    for row in report["rows"]:
        over = "" if row is report["rows"][0] else f"{ours / row['tokens_per_second']:.2f}x"
        share = "–" if row["mfu"] is None else f"{100 * row['mfu']:.1f} %"
        memory = "–" if row["memory_bytes"] is None else f"{row['memory_bytes'] / 1e9:.2f} GB"
        lines.append(
            f"{row['name']:<16}{row['tokens_per_second']:>12,}{over:>12}{share:>9}{memory:>12}"
            f"  {row['first_loss']:.4f}, {row['last_loss']:.4f}"
        )
    return "\n".join([*lines, *(f"{name} is not installed" for name in report["absent"])])


def settle(
    shape: str,
    batch: int | None,
    length: int | None,
    precision: str,
    weights: str,
    steps: int,
    device: str,
    compile: str,
) -> Setting:
    """What a shape is measured with; GristmillError where there is no such shape or device, or settings contradict."""
    make, usual_batch, usual_length = SHAPES.get(shape, (lambda: preset(shape, SHAPES), 8, 2048))
    length = length or usual_length
    config = make().model_copy(update={"max_seq_len": length, "rope_scaling": None})
    found = resolve_device(device)
    precision = resolve_precision(precision, found)
    if weights == "auto":
        weights = "bf16" if found.type == "cuda" and precision in ("bf16", "fp8") else "fp32"
    batch = batch or usual_batch
    given = {"precision": precision, "weights": weights, "compile": compile, "device": found.type}
    try:
        training = TrainingConfig.model_validate(
            given
            | {
                "steps": steps,
                "batch_size": batch,
                "learning_rate": LEARNING_RATE,
                "schedule": "constant",
                "weight_decay": WEIGHT_DECAY,
                "clip_norm": CLIP_NORM,
                "checkpoint_every": steps + 1,
                "log_every": EVERY,
                "watch": {"norms_every": 0},
            }
        )
    except ValidationError as error:
        raise GristmillError(f"bench train: {error.errors()[0]['msg']}") from None
    return Setting(config, batch, length, training, found)


def _measure(name: str, setting: Setting) -> tuple[str, list[float], list[float], int | None]:
    """Name, losses, seconds of the stretches but the first, and peak memory of one side."""
    batch = random_batch(setting)
    model = Decoder(setting.config).init_weights(0)
    cuda = setting.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(setting.device)
    if name == "gristmill":
        losses, seconds, _ = train_ours(model, batch, setting)
    else:
        precision = "bf16" if setting.training.precision == "fp8" else setting.training.precision
        kind = torch.bfloat16 if setting.training.weights == "bf16" else torch.float32
        losses, seconds = train_peer(
            name,
            model,
            batch.inputs_BT,
            batch.targets_BT,
            setting.training.steps,
            EVERY,
            precision,
            kind,
            setting.device,
        )
    peak = torch.cuda.max_memory_allocated(setting.device) if cuda else None
    del model
    torch.compiler.reset()
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
    return name, losses, seconds, peak


def random_batch(setting: Setting) -> TokenBatch:
    """The batch of every step, the same for all sides."""
    shape = setting.batch, setting.length + 1
    ids = torch.randint(setting.config.vocab_size, shape, generator=torch.Generator().manual_seed(0))
    return TokenBatch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), torch.ones(setting.batch, setting.length))


def train_ours(
    model: Decoder, batch: TokenBatch, setting: Setting, loss_function: LossFunction = next_token_loss
) -> tuple[list[float], list[float], dict[str, Any]]:
    """Losses, seconds of stretches behind step 1 (the first is a step shorter), and the run's own figures, through
    `train`: a metric stands in the log where the host has just read the step's values."""
    losses: list[float] = []
    times = [perf_counter()]

    def note(event: Event) -> None:
        if event["type"] == "metric":
            times.append(perf_counter())
            losses.append(event["loss"])

    def batch_at(step: int, shard: Shard) -> TokenBatch:
        return batch

    log = EventLog(None)
    log.subscribers.append(note)
    with tempfile.TemporaryDirectory(prefix="gristmill-bench-") as directory:
        out = Path(directory)
        run = StageRun(out, out / "scratch", {}, 0, log.stage("bench"))
        result = train(model, batch_at, loss_function, setting.training, run, sequence_length=setting.length)
    return losses, [after - before for before, after in pairwise(times[1:])], result.figures


def _add(rows: dict[str, Row], measured: tuple[str, list[float], list[float], int | None], setting: Setting) -> None:
    """Join one round to its side's row. The stretch after step 1 is shorter and still warming up: it is left out."""
    name, losses, seconds, memory = measured
    rate = round(setting.tokens * EVERY / statistics.median(seconds[1:]))
    row = rows.setdefault(name, Row(name, 0, [], None, None, losses[0], losses[-1]))
    row.rounds.append(rate)
    row.memory_bytes = memory
    row.tokens_per_second = max(row.rounds)
    peak = peak_flops(_device_name(setting.device), setting.training.precision)
    if peak is not None:
        per_token = flops_per_token(setting.config, setting.length)
        row.mfu = round(mfu(row.tokens_per_second, per_token, peak), 4)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
