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
from ..model.experts import expert_load, mark_padding, router_losses, update_selection_bias
from .checkpoint import load_latest, save_checkpoint
from .config import TrainingConfig
from .data import TokenBatch
from .groups import parameter_groups
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
    mup_base_width: int | None = None,
) -> TrainResult:
    """Train `model` in place for `config.steps` steps, from the newest checkpoint in `run.scratch` if there is one.

    `batch_at(step)` must depend on the step alone: that is what makes a resumed run equal to an undisturbed one.
    `split` cuts a step's batch into the micro-batches whose gradients are summed.
    `evaluate` is called every `evaluate_every` steps and at the end; its figures join the history.
    `mup_base_width`: parameters learn at muP's rates (`parameter_groups`).
    """
    device = resolve_device(config.device)
    model.to(device).train()
    optimizer = make_optimizer(model, config, mup_base_width)
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
            group["lr"] = learning_rate * group["lr_scale"]
        entry = _step(model, split(batch_at(step)), loss_function, optimizer, config, precision, device)
        done = step + 1
        last = done == config.steps
        evaluated = evaluate is not None and evaluate_every > 0 and (done % evaluate_every == 0 or last)
        logged = done % config.log_every == 0 or last or done == 1 or evaluated
        load = expert_load_metrics(model) if logged else {}
        update_selection_bias(model)
        if logged:
            entry = {"step": done, **entry, **load, "learning_rate": learning_rate}
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
    mark_padding(model, None)
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
    """One optimizer step; its loss, gradient norm and the loss function's further figures.

    A mixture of experts adds its router's losses to what is minimised, each micro-batch's by its weight; they are
    reported apart, so that `loss` stays what the loss function says.
    """
    total, weight = 0.0, 0.0
    sums: dict[str, float] = {}
    for batch in micro_batches:
        with autocast(precision, device):
            loss = loss_function(model, batch)
        router = router_losses(model)
        (loss.total if router is None else loss.total + loss.weight * router).backward()
        total += float(loss.total.detach())
        weight += loss.weight
        if router is not None:
            sums["router_loss"] = sums.get("router_loss", 0.0) + loss.weight * float(router.detach())
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
    mark_padding(model, behind_last_target(batch.weights_BT, device))
    hidden = model.hidden_states(inputs, attend=attend)
    if torch.is_autocast_enabled(device.type):
        hidden = hidden.to(torch.get_autocast_dtype(device.type))
    head = model.embedding.weight if model.head is None else model.head.weight
    bias = None if model.head is None else model.head.bias
    total = weighted_cross_entropy(
        hidden.flatten(0, 1),
        head,
        targets.flatten(),
        weights.flatten(),
        bias,
        model.config.logit_scale,
        model.config.logit_softcap,
    )
    return LossSum(total, float(weights.sum()))


def behind_last_target(weights_BT: Tensor, device: torch.device) -> Tensor | None:
    """True for the tokens of a row behind its last target of any weight, which no loss depends on: the padding on its
    right. None where there are none."""
    counted_BT = weights_BT != 0
    if bool(counted_BT[:, -1].all()):
        return None
    return (counted_BT.flip(1).cumsum(dim=1).flip(1) == 0).to(device)


def expert_load_metrics(model: Decoder) -> dict[str, float]:
    """The step's load of the experts: the highest max/mean of any layer, how many experts of all layers get less than a
    tenth of the mean, and the highest share of dropped assignments of any layer; nothing without experts."""
    loads = expert_load(model)
    if not loads:
        return {}
    return {
        "expert_load_max_over_mean": max(load["max_over_mean"] for load in loads),
        "collapsed_experts": sum(len(load["collapsed"]) for load in loads),
        "dropped_assignments": max(load["dropped"] for load in loads),
    }


def make_optimizer(model: Decoder, config: TrainingConfig, mup_base_width: int | None = None) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) over `parameter_groups`; each group's `lr_scale` is for the loop to apply."""
    groups = parameter_groups(model, config.weight_decay, mup_base_width)
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
