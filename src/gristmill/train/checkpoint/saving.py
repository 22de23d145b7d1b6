"""A checkpoint on its way to the disk: what this process writes of it, and the steps after which it stands."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

from ...errors import GristmillError
from .directory import Name, doomed, explain, list_names, remove, seal, sync_directory
from .exchange import Exchange
from .shards import FileEntry, Piece, write_shard


def begin(directory: Path, name: Name, tensors: dict[str, Tensor], exchange: Exchange) -> list[Piece]:
    """Make the hidden directory, and share out the work: the pieces this process writes, not copied yet.

    What every process holds whole is written by one of them; torch's planner picks the one with the least to write.
    """
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    planner.set_up_planner(tensors, is_coordinator=exchange.main)
    problem = None
    if exchange.main:
        try:
            os.mkdir(directory / name.writing)
        except OSError as error:
            problem = explain(error, directory)
    answers = exchange.all((planner.create_local_plan(), problem))
    if answers[0][1] is not None:
        raise failed(directory, name, answers[0][1])
    plans, _ = planner.create_global_plan([plan for plan, _ in answers])
    pieces = []
    for item in planner.finish_plan(plans[exchange.rank]).items:
        assert item.tensor_data is not None, item.index
        data = planner.resolve_data(item)
        assert isinstance(data, Tensor), item.index
        pieces.append(Piece(item.index.fqn, tuple(item.tensor_data.chunk.offsets), data.detach()))
    return pieces


def copied(pieces: list[Piece]) -> list[Piece]:
    """The pieces as copies in host memory, which training cannot change any more; from a GPU into pinned memory, all at
    once, which torch's allocator keeps for the next time."""
    copies = []
    for piece in pieces:
        tensor = piece.tensor
        pinned = tensor.device.type == "cuda"
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
        copies.append(Piece(piece.name, piece.offsets, host.copy_(tensor, non_blocking=pinned)))
    if any(piece.tensor.device.type == "cuda" for piece in pieces):
        torch.cuda.current_stream().synchronize()
    return copies


def finish(
    directory: Path,
    name: Name,
    pieces: list[Piece],
    identity: Mapping[str, Any],
    extra: Any,
    exchange: Exchange,
) -> None:
    """Write this process's pieces; when all processes have, the first one makes them the checkpoint `name`.

    GristmillError, the same in all processes, where any of them fails; nothing is left of the checkpoint then.
    """
    file = f"shard-{exchange.rank + 1:05d}.safetensors"
    path = directory / name.writing / file
    needed = sum(piece.tensor.nbytes for piece in pieces)
    entry: FileEntry | None = None
    problem: str | None = None
    try:
        entry = write_shard(path, pieces) if pieces else None
    except OSError as error:
        with suppress(OSError):
            path.unlink(missing_ok=True)  # before it is said how much is free
        problem = explain(error, directory, needed)
    except Exception as error:  # the other processes wait: they must hear of anything
        problem = f"{type(error).__name__}: {error}"
    written = exchange.all((file, entry, problem))
    problem = exchange.problem(problem)
    if problem is None:
        if exchange.main:
            try:
                files = {file: entry for file, entry, _ in written if entry is not None}
                seal(directory, name, files, identity, extra)
            except OSError as error:
                problem = explain(error, directory)
            except Exception as error:
                problem = f"{type(error).__name__}: {error}"
        problem = exchange.from_main(problem)
    if problem is not None:
        if exchange.main:
            shutil.rmtree(directory / name.writing, ignore_errors=True)
        raise failed(directory, name, problem)


def prune(directory: Path, keep: int, keep_golden: int, damaged: set[Name]) -> str | None:
    """Remove what need not be kept, and what was found damaged; what to note where that fails."""
    names = list_names(directory)
    whole = [name for name in names if name not in damaged]
    try:
        for name in (*doomed(whole, keep, keep_golden), *(name for name in names if name in damaged)):
            remove(directory, name)
    except OSError as error:
        return f"older checkpoints in {directory} could not be removed: {explain(error, directory)}"
    return None


def probe(directory: Path, exchange: Exchange, expected_bytes: int) -> str | None:
    """Whether this process can write, sync, rename and remove in `directory`; why it cannot."""
    first, second = (directory / f".probe-{exchange.rank}{end}" for end in ("", "-renamed"))
    try:
        with open(first, "wb") as file:
            file.write(b"gristmill")
            file.flush()
            os.fsync(file.fileno())
        os.rename(first, second)
        os.remove(second)
        sync_directory(directory)
        if shutil.disk_usage(directory).free < expected_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        return explain(error, directory, expected_bytes)
    return None


def failed(directory: Path, name: Name, problem: str) -> GristmillError:
    """The error of a save that came to nothing."""
    last = next(iter(list_names(directory)), None)
    rest = "there is none before it" if last is None else f"{last} stands, the same command goes on from it"
    return GristmillError(f"the checkpoint of step {name.step} could not be saved in {directory}: {problem}; {rest}")
