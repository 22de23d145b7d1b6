"""Checkpoints from which a training run goes on exactly: weights, optimizer state, step, history.

A checkpoint is a directory `step-00000100/` that appears by a rename when all of it is on the disk. Its `state.json`
holds the sha256 of the other files; a checkpoint that does not match is passed over for the one before it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..artifact import write_json

FILES = ("model.safetensors", "optimizer.safetensors")


def save_checkpoint(
    directory: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    history: list[dict[str, Any]],
    keep: int,
) -> None:
    """Save the state after `step` steps under `directory` and remove all but the `keep` newest checkpoints."""
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / f"step-{step:08d}"
    writing = directory / f".{target.name}.writing"
    shutil.rmtree(writing, ignore_errors=True)
    writing.mkdir()
    # state_dict: the bias that balances experts is no parameter, and a run does not go on exactly without it.
    save_file({name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}, writing / FILES[0])
    save_file(_optimizer_tensors(model, optimizer), writing / FILES[1])
    for name in FILES:
        with open(writing / name, "rb") as file:
            os.fsync(file.fileno())
    state = {"step": step, "history": history, "sha256": {name: _sha256(writing / name) for name in FILES}}
    write_json(writing / "state.json", state)
    shutil.rmtree(target, ignore_errors=True)
    os.rename(writing, target)
    for old in sorted(directory.glob("step-*"))[:-keep]:
        shutil.rmtree(old)


def load_latest(
    directory: Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, list[dict[str, Any]]]:
    """Restore the newest whole checkpoint; `(steps done, history)`, `(0, [])` where there is none."""
    for path in sorted(directory.glob("step-*"), reverse=True):
        state = _whole_state(path)
        if state is not None:
            break
    else:
        return 0, []
    weights = load_file(path / FILES[0])
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(weights[name])
    saved = load_file(path / FILES[1])
    for name, parameter in model.named_parameters():
        prefix = f"{name}/"
        optimizer.state[parameter] = {
            key.removeprefix(prefix): _like_parameter(key, value, parameter)
            for key, value in saved.items()
            if key.startswith(prefix)
        }
    return int(state["step"]), list(state["history"])


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": value.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }


def _like_parameter(key: str, value: Tensor, parameter: Tensor) -> Tensor:
    """Optimizer state on the parameter's device; the step count stays in float32."""
    return value.to(parameter.device) if key.endswith("/step") else value.to(parameter.device, parameter.dtype)


def _whole_state(path: Path) -> dict[str, Any] | None:
    try:
        state: dict[str, Any] = json.loads((path / "state.json").read_text())
        if all(_sha256(path / name) == state["sha256"][name] for name in FILES):
            return state
    except (OSError, ValueError, KeyError):
        pass
    return None


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
