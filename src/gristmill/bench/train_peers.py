"""The loops that `bench train` compares with: another tool's model in a plain, good training loop.

Good means what the tools' own documentation and recipes do: the model and its loss compiled together on a GPU,
PyTorch's fused AdamW, gradients clipped to norm 1 (the default of both), products in bf16, one copy of the batch on the
device that is never sent again, and the host waits for the device once in many steps.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gristmill.model.decoder import Decoder

from .model import litgpt_model, transformers_model

LEARNING_RATE = 3e-4
WEIGHT_DECAY = 0.1
CLIP_NORM = 1.0

PEERS: dict[str, tuple[Callable[[Decoder], nn.Module], Callable[[Any, Tensor], Tensor]]] = {
    "transformers": (transformers_model, lambda model, ids: model(input_ids=ids, use_cache=False).logits),
    "litgpt": (lambda ours: litgpt_model(ours.config), lambda model, ids: model(ids)),
}


def train_peer(
    name: str,
    ours: Decoder,
    inputs_BT: Tensor,
    targets_BT: Tensor,
    steps: int,
    every: int,
    precision: str,
    weights: torch.dtype,
    device: torch.device,
) -> tuple[list[float], list[float]]:
    """Train the peer's model of `ours`' shape (transformers: with its weights) on one batch for `steps` steps.

    Gives the loss of the first step and of every `every`-th, and the seconds from one of them to the next.
    """
    build, logits = PEERS[name]
    with device:  # a billion weights are drawn there in a moment
        model = build(ours).to(device, weights).train()
    matrices = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}],
        lr=LEARNING_RATE,
        betas=(0.9, 0.95),
        fused=True,
    )
    lower = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    inputs, targets = inputs_BT.to(device), targets_BT.to(device).flatten()

    def forward() -> Tensor:
        return F.cross_entropy(logits(model, inputs).flatten(0, 1).float(), targets)

    loss_of = torch.compile(forward) if device.type == "cuda" else forward
    losses: list[float] = []
    seconds: list[float] = []
    since = perf_counter()
    for step in range(1, steps + 1):
        with torch.autocast(device.type, lower, enabled=lower is not None and weights is torch.float32):
            loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step == 1 or step % every == 0:
            losses.append(loss.item())
            now = perf_counter()
            seconds.append(now - since)
            since = now
    return losses, seconds[1:]
