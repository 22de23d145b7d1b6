"""The one training loop: pre-training, SFT and DPO all run through `train`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from .. import hardware
from ..artifact import StageRun, rounded
from ..errors import GristmillError
from ..model.attention import DocumentAttention, causal_attention
from ..model.decoder import Decoder
from .checkpoint import load_latest, save_checkpoint
from .config import TrainingConfig
from .data import TokenBatch
from .losses import weighted_cross_entropy
from .schedule import cosine_with_warmup

BatchT = TypeVar("BatchT")
MicroBatchT = TypeVar("MicroBatchT")


@dataclass
class LossSum:
    """What a micro-batch contributes: the sum of its loss terms, and how much weight they carry. The step's loss is the
    sum of the totals over the sum of the weights of all its micro-batches, so accumulation changes nothing.
    `sums` are further quantities, reported divided by the weight."""

    total: Tensor
    weight: float
    sums: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainResult:
    """`history` has one entry per logged step; `seconds` and `steps_run` count only the steps this process ran."""

    history: list[dict[str, Any]]
    seconds: float
    steps_run: int


def train(
    model: Decoder,
    batch_at: Callable[[int], BatchT],
    split: Callable[[BatchT], list[MicroBatchT]],
    loss_function: Callable[[Decoder, MicroBatchT], LossSum],
    config: TrainingConfig,
    run: StageRun,
    evaluate: Callable[[Decoder, int], dict[str, float]] | None = None,
    evaluate_every: int = 0,
) -> TrainResult:
    """Train `model` in place for `config.steps` steps, from the newest checkpoint in `run.scratch` if there is one.

    `batch_at(step)` must depend on the step alone: that is what makes a resumed run equal to an undisturbed one.
    `split` cuts a step's batch into the micro-batches whose gradients are summed.
    `evaluate` is called every `evaluate_every` steps and at the end; its figures join the history.
    """
    device = resolve_device(config.device)
    model.to(device).train()
    optimizer = make_optimizer(model, config)
    checkpoints = run.scratch / "checkpoints"
    first, history = load_latest(checkpoints, model, optimizer)
    if first:
        run.log.note(f"resumed after step {first} of {config.steps}")
    precision = resolve_precision(config.precision, device)
    started = time.monotonic()
    for step in range(first, config.steps):
        learning_rate = cosine_with_warmup(
            step,
            steps=config.steps,
            warmup_steps=config.warmup_steps,
            peak=config.learning_rate,
            min_ratio=config.min_lr_ratio,
        )
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        entry = _step(model, split(batch_at(step)), loss_function, optimizer, config, precision, device)
        done = step + 1
        last = done == config.steps
        evaluated = evaluate is not None and evaluate_every > 0 and (done % evaluate_every == 0 or last)
        if done % config.log_every == 0 or last or done == 1 or evaluated:
            entry = {"step": done, **entry, "learning_rate": learning_rate}
            if evaluated and evaluate is not None:
                model.eval()
                entry |= evaluate(model, done)
                model.train()
            history.append(rounded(entry))
            run.log.metric(**history[-1])
        run.log.progress(done, config.steps, "steps")
        if done % config.checkpoint_every == 0 and not last:
            save_checkpoint(checkpoints, model, optimizer, done, history, config.keep_checkpoints)
    model.eval()
    return TrainResult(history, time.monotonic() - started, config.steps - first)


def _step(
    model: Decoder,
    micro_batches: list[MicroBatchT],
    loss_function: Callable[[Decoder, MicroBatchT], LossSum],
    optimizer: torch.optim.Optimizer,
    config: TrainingConfig,
    precision: str,
    device: torch.device,
) -> dict[str, float]:
    """One optimizer step; its loss, gradient norm and the loss function's further figures."""
    total, weight = 0.0, 0.0
    sums: dict[str, float] = {}
    for batch in micro_batches:
        with autocast(precision, device):
            loss = loss_function(model, batch)
        loss.total.backward()
        total += float(loss.total.detach())
        weight += loss.weight
        for key, value in loss.sums.items():
            sums[key] = sums.get(key, 0.0) + value
    if weight == 0:
        raise GristmillError("a training batch has no token to learn from: every label is masked")
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad /= weight
    norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm))
    if not math.isfinite(norm):
        raise GristmillError("the gradient is not finite: lower learning_rate, or set precision: fp32")
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {"loss": total / weight, "grad_norm": norm, **{key: value / weight for key, value in sums.items()}}


def next_token_loss(model: Decoder, batch: TokenBatch) -> LossSum:
    """Cross-entropy of the weighted targets of a batch."""
    device = model.embedding.weight.device
    inputs, targets, weights = (t.to(device) for t in (batch.inputs_BT, batch.targets_BT, batch.weights_BT))
    attend = causal_attention if batch.segments_BT is None else DocumentAttention(batch.segments_BT.to(device))
    hidden = model.hidden_states(inputs, attend=attend)
    if torch.is_autocast_enabled(device.type):
        hidden = hidden.to(torch.get_autocast_dtype(device.type))
    head = model.embedding.weight if model.head is None else model.head.weight
    total = weighted_cross_entropy(hidden.flatten(0, 1), head, targets.flatten(), weights.flatten())
    return LossSum(total, float(weights.sum()))


def make_optimizer(model: Decoder, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019); vectors such as norms are not decayed."""
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    plain = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)


def resolve_device(device: str) -> torch.device:
    if device == "cuda" and not torch.cuda.is_available():
        raise GristmillError("device: cuda was asked for, but torch sees no GPU; set device: cpu or auto")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def resolve_precision(precision: str, device: torch.device) -> str:
    """`auto` as what it stands for on this device: fp32 or bf16."""
    if precision != "auto":
        return precision
    native = torch.cuda.is_bf16_supported() if device.type == "cuda" else hardware.cpu_has_bf16()
    return "bf16" if native else "fp32"


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
