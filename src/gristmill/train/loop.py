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
from ..model.attention import Attend, DocumentAttention, causal_attention
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
    `sums` are further quantities without gradients, reported divided by the weight. `weight` is known without waiting
    for the device; the tensors are scalars and read in logged steps only."""

    total: Tensor
    weight: float
    sums: dict[str, Tensor] = field(default_factory=dict)


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
    steepest = torch.zeros((), device=device)  # the largest gradient norm since it was last read; NaN stays NaN
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
        figures = _step(model, split(batch_at(step)), loss_function, optimizer, config, precision, device)
        steepest = torch.maximum(steepest, figures["grad_norm"])
        done = step + 1
        last = done == config.steps
        evaluated = evaluate is not None and evaluate_every > 0 and (done % evaluate_every == 0 or last)
        logged = done % config.log_every == 0 or last or done == 1 or evaluated
        saved = done % config.checkpoint_every == 0 and not last
        load = expert_load_metrics(model) if logged else {}
        update_selection_bias(model)
        if logged or saved:  # only here does the loop wait for the device
            *values, norm = torch.stack([value.double() for value in (*figures.values(), steepest)]).tolist()
            if not math.isfinite(norm):
                raise GristmillError("the gradient is not finite: lower learning_rate, or set precision: fp32")
            steepest.zero_()
        if logged:
            entry = {"step": done, **dict(zip(figures, values, strict=True)), **load, "learning_rate": learning_rate}
            if evaluated and evaluate is not None:
                model.eval()
                entry |= evaluate(model, done)
                model.train()
            history.append(rounded(entry))
            run.log.metric(**history[-1])
        run.log.progress(done, config.steps, "steps")
        if saved:
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
) -> dict[str, Tensor]:
    """One optimizer step; its loss, gradient norm and the loss function's further figures, scalars on the device.

    A mixture of experts adds its router's losses to what is minimised, each micro-batch's by its weight; they are
    reported apart, so that `loss` stays what the loss function says.
    """
    weight = 0.0
    sums: dict[str, Tensor] = {}
    for batch in micro_batches:
        try:
            with autocast(precision, device):
                loss = loss_function(model, batch)
            router = router_losses(model)
            (loss.total if router is None else loss.total + loss.weight * router).backward()
        finally:
            mark_padding(model, None)  # a mark left behind would change what another batch of this size gives
        weight += loss.weight
        more = {"loss": loss.total.detach().double()}
        if router is not None:
            more["router_loss"] = loss.weight * router.detach().double()
        for key, value in (more | loss.sums).items():
            sums[key] = sums[key] + value if key in sums else value.double()
    if weight == 0:
        raise GristmillError("a training batch has no token to learn from: every label is masked")
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad /= weight
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    means = {key: value / weight for key, value in sums.items()}
    return {"loss": means.pop("loss"), "grad_norm": norm, **means}


def next_token_loss(model: Decoder, batch: TokenBatch) -> LossSum:
    """Cross-entropy of the weighted targets of a batch."""
    device = model.embedding.weight.device
    inputs = on_device(batch.inputs_BT, device)
    attend: Attend = causal_attention
    positions: Tensor | None = None
    length: int | None = inputs.shape[1]
    if batch.segments_BT is not None:
        attend = DocumentAttention(on_device(batch.segments_BT, device))
        positions, length = attend.places(), None  # in its own document: learned positions are no differences
    mark_padding(model, behind_last_target(batch.weights_BT, device))
    hidden = model.hidden_states(inputs, positions, attend, context_length=length).flatten(0, 1)
    targets, weights = batch.targets_BT.flatten(), batch.weights_BT.flatten()
    kept = weights.nonzero()[:, 0]
    if len(kept) < len(weights):
        hidden, targets, weights = hidden.index_select(0, on_device(kept, device)), targets[kept], weights[kept]
    if torch.is_autocast_enabled(device.type):
        hidden = hidden.to(torch.get_autocast_dtype(device.type))
    head = model.embedding.weight if model.head is None else model.head.weight
    bias = None if model.head is None else model.head.bias
    total = weighted_cross_entropy(
        hidden,
        head,
        on_device(targets, device),
        on_device(weights, device),
        bias,
        model.config.logit_scale,
        model.config.logit_softcap,
    )
    return LossSum(total, float(batch.weights_BT.sum()))


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy for the device (the tensor itself if it is there) that does not wait for what the device still does. From
    memory that is not pinned it is safe: the tensor may be changed as soon as the call returns."""
    return tensor.to(device, non_blocking=True)


def behind_last_target(weights_BT: Tensor, device: torch.device) -> Tensor | None:
    """True for the tokens of a row behind its last target of any weight, which no loss depends on: the padding on its
    right. None where there are none. `weights_BT` lies on the CPU."""
    counted_BT = weights_BT != 0
    if bool(counted_BT[:, -1].all()):
        return None
    return on_device(counted_BT.flip(1).cumsum(dim=1).flip(1) == 0, device)


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
