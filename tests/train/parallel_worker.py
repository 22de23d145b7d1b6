"""What two processes do in test_train_parallel.py: every case in turn, results as JSON in the file that is named.

Run by itself with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set; imported for the same losses in one process.
"""

import dataclasses
import json
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from gristmill.model.config import ModelConfig
from gristmill.model.decoder import Decoder
from gristmill.model.experts import experts_of, router_losses, update_selection_bias
from gristmill.train.activations import checkpoint_activations
from gristmill.train.config import TrainingConfig
from gristmill.train.optimizers.build import build_optimizer
from gristmill.train.parallel.data_parallel import Trainee, gather_model, parallelize
from gristmill.train.parallel.mesh import build_mesh
from gristmill.train.parallel.processes import Processes, alone, current_processes, start_processes, stop_processes

DEVICE = torch.device("cpu")  # `main` may set another
STEPS, ROWS, LENGTH, VOCAB = 10, 8, 16, 64
KINDS = ("ddp", "zero1", "zero2", "zero3")
EXPERTS = {"num_experts": 4, "top_k": 2, "intermediate_size": 16}
SHAPES = {
    "tied": {},
    "untied_sinks": {"tie_embeddings": False, "learned_sinks": True, "positions": "learned"},
    "experts_bias": {"experts": {**EXPERTS, "balance": "bias", "bias_rate": 0.01}},
    "experts_loss": {"experts": {**EXPERTS, "balance": "none", "z_loss_weight": 0.01, "dense_layers": [0]}},
}


TRAINED = [(shape, kind) for shape in ("tied", "experts_bias") for kind in KINDS]
TRAINED += [(shape, kind) for shape in ("untied_sinks", "experts_loss") for kind in ("ddp", "zero3")]
OPTIMIZERS = ("muon", "adam8bit", "adafactor")


@dataclasses.dataclass(frozen=True)
class Rows:
    """A batch whose rows weigh differently, so that a mean over processes is not the mean over tokens."""

    tokens_BT: torch.Tensor
    weights_BT: torch.Tensor

    @property
    def weight(self) -> float:
        return float(self.weights_BT.sum())

    def split(self, size: int) -> list["Rows"]:
        pairs = zip(self.tokens_BT.split(size), self.weights_BT.split(size), strict=True)
        return [Rows(tokens, weights) for tokens, weights in pairs]


class Objective(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, rows: Rows) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        hidden = self.model.hidden_states(rows.tokens_BT[:, :-1])
        losses = F.cross_entropy(
            self.model.logits(hidden).flatten(0, 1).float(), rows.tokens_BT[:, 1:].flatten(), reduction="none"
        )
        total = (losses * rows.weights_BT.flatten()).sum()
        router = router_losses(self.model)
        if router is not None:
            total = total + rows.weight * router
        return total, {"loss": total.detach()}


def batch_at(step: int, processes: Processes) -> Rows:
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(VOCAB, (ROWS, LENGTH + 1), generator=generator)
    weights = (torch.rand(ROWS, LENGTH, generator=generator) < torch.linspace(0.1, 1, ROWS)[:, None]).float()
    share = ROWS // processes.count
    rows = slice(processes.rank * share, (processes.rank + 1) * share)
    return Rows(tokens[rows].to(DEVICE), weights[rows].to(DEVICE))


def new_model(shape: str) -> Decoder:
    fields = {
        "vocab_size": VOCAB,
        "hidden_size": 24,
        "num_layers": 3,
        "num_heads": 3,
        "num_kv_heads": 1,
        "head_dim": 8,
        "intermediate_size": 40,
        "max_seq_len": 32,
        "tie_embeddings": True,
    }
    model = Decoder(ModelConfig(**{**fields, **SHAPES[shape]})).init_weights(3)
    with torch.no_grad():
        for layer in experts_of(model):  # small ones choose by next to nothing, which rounding may turn
            layer.router.weight.mul_(100)
    return model.to(DEVICE)


def training(kind: str, optimizer: str = "adamw") -> TrainingConfig:
    # Where a gradient is next to nothing, its rounding alone must not make a step of full size: hence the large eps.
    return TrainingConfig(
        steps=STEPS, batch_size=ROWS, learning_rate=0.01, eps=1e-5, optimizer=optimizer, parallel={"data": kind}
    )


def prepare(
    shape: str, kind: str, precision: str = "fp32", checkpointing: str = "none", optimizer: str = "adamw"
) -> tuple[Processes, Trainee, torch.optim.Optimizer]:
    processes = current_processes()
    config = training(kind, optimizer)
    model = new_model(shape).train()
    checkpoint_activations(model, checkpointing)
    objective = Objective(model)
    trainee = parallelize(objective, config, build_mesh(processes, config.parallel), DEVICE, precision)
    built = build_optimizer(model, config, process_group=trainee.process_group, zero_group=trainee.zero_group)
    return processes, trainee, built


def gradients_of_step(processes: Processes, trainee: Trainee, rows: Rows, micro: int, precision: str = "fp32") -> float:
    """Gradients of one step; its loss, the mean over the tokens of all processes."""
    weight = float(processes.all_reduce(torch.tensor(rows.weight)))
    pieces = rows.split(micro)
    loss = torch.zeros((), dtype=torch.float64, device=DEVICE)
    for number, piece in enumerate(pieces, start=1):
        with trainee.gradient_sync(number == len(pieces)):
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=precision == "bf16"):
                total, sums = trainee.module(piece)
            (total / weight * processes.count).backward()
        loss += sums["loss"].double()
    return float(processes.all_reduce(loss)) / weight


def train_some(shape: str, kind: str, *, micro: int = 2, steps: int = STEPS, **how: str) -> dict[str, Any]:
    """Train a little; losses, norms, validation before every third step, and the weights at the end."""
    processes, trainee, optimizer = prepare(shape, kind, **how)
    losses, norms, outside = [], [], []
    for step in range(steps):
        rows = batch_at(step, processes)
        if step % 3 == 0:
            outside.append(trainee.run(validate, step))
        losses.append(gradients_of_step(processes, trainee, rows, micro, how.get("precision", "fp32")))
        norms.append(float(trainee.gradient_norm()))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        update_selection_bias(trainee.model)
    return {"losses": losses, "norms": norms, "outside": outside, **gathered(trainee)}


@torch.no_grad()
def validate(model: Decoder, step: int) -> float:
    model.eval()
    tokens = batch_at(1000 + step, alone()).tokens_BT
    loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    model.train()
    return float(loss)


def gathered(trainee: Trainee) -> dict[str, Any]:
    """Sums over the weights of the gathered model, and what its experts hold, where this process gets it."""
    model = gather_model(trainee.model)
    if model is None:
        return {"weights": None}
    assert not any(isinstance(p, DTensor) for p in model.parameters())
    bias = [m.selection_bias.tolist() for m in experts_of(model) if m.selection_bias is not None]
    weights = {name: float(p.detach().double().norm()) for name, p in model.named_parameters()}
    tokens = batch_at(0, alone()).tokens_BT.to(model.embedding.weight.device)
    logits = model.eval()(tokens).detach().double()
    return {"weights": weights, "bias": bias, "logits": float(logits.norm())}


class Talk(TorchDispatchMode):
    """Counts collective operations."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def layout(kind: str) -> dict[str, Any]:
    """What each process holds, and how often it talks in a step of two micro-batches."""
    processes, trainee, optimizer = prepare("tied", kind)
    plain = dict(new_model("tied").named_parameters())
    shards = {name: p for name, p in trainee.named_parameters() if isinstance(p, DTensor)}
    with Talk() as talk:
        gradients_of_step(processes, trainee, batch_at(0, processes), micro=2)
    optimizer.step()
    held = getattr(optimizer, "optim", optimizer).state
    return {
        "names": [name for name, _ in trainee.named_parameters()] == list(plain),
        "sharded": len(shards) / len(plain),
        "weights": sum(p.to_local().numel() for p in shards.values()) / sum(p.numel() for p in plain.values()),
        "state": sum(local(s["exp_avg"]).numel() for s in held.values()) / sum(p.numel() for p in plain.values()),
        "talk": dict(talk.counts),
    }


def local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def loading(kind: str) -> list[float]:
    """Validation before and after the weights are changed in place, as a loaded checkpoint does."""
    _, trainee, _ = prepare("tied", kind)
    before = trainee.run(validate, 0)
    with torch.no_grad():
        for _, parameter in trainee.named_parameters():
            parameter.mul_(2.0)
    return [before, trainee.run(validate, 0)]


def talking() -> dict[str, Any]:
    processes = current_processes()
    processes.barrier()
    mesh = build_mesh(processes, training("ddp").parallel)
    assert mesh is not None
    return {
        "rank": processes.rank,
        "count": processes.count,
        "main": processes.main,
        "sum": float(processes.all_reduce(torch.tensor(processes.rank + 1.0))),
        "object": processes.broadcast_object({"from": processes.rank}),
        "axes": dict(zip(mesh.mesh_dim_names or (), mesh.shape, strict=True)),
        "along_dp": dist.get_world_size(mesh.get_group("dp")),
    }


def cases() -> dict[str, Callable[[], Any]]:
    """Everything that two processes do, by name."""
    found: dict[str, Callable[[], Any]] = {"talking": talking}
    for shape, kind in TRAINED:
        found[f"train {shape} {kind}"] = partial(train_some, shape, kind)
    for kind in KINDS:
        found[f"layout {kind}"] = partial(layout, kind)
        found[f"loading {kind}"] = partial(loading, kind)
        found[f"one micro-batch {kind}"] = partial(train_some, "tied", kind, micro=4, steps=3)
        found[f"bf16 {kind}"] = partial(train_some, "experts_bias", kind, steps=3, precision="bf16")
    for optimizer in OPTIMIZERS:
        for kind in ("ddp", "zero1", "zero3"):
            found[f"{optimizer} {kind}"] = partial(train_some, "tied", kind, steps=4, optimizer=optimizer)
    for mode in ("block", "sqrt", "selective"):
        found[f"checkpointing {mode}"] = partial(train_some, "experts_bias", "zero3", steps=3, checkpointing=mode)
    return found


def main(out: Path, device: str) -> None:
    global DEVICE
    torch.set_num_threads(1)
    processes = start_processes(device)
    DEVICE = torch.device(device, processes.local_rank) if device == "cuda" else torch.device(device)
    results = {}
    for name, case in cases().items():
        try:
            results[name] = case()
        except Exception:
            results[name] = {"error": traceback.format_exc()}
    stop_processes()
    (out / f"{processes.rank}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
