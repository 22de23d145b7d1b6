"""Whether a checkpoint is whole and of this run, and its tensors in this run's layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from ...errors import GristmillError
from .directory import FORMAT_VERSION, Name, read_state
from .exchange import Exchange
from .shards import DTYPES, file_entry, read_into, read_metadata


def whole_state(directory: Path, name: Name, exchange: Exchange) -> dict[str, Any] | str:
    """The state of a checkpoint all of whose files are as they were written, else what is wrong with it. The processes
    share the hashing. GristmillError where another version saved it."""
    state = exchange.from_main(read_state(directory, name) if exchange.main else "")
    if isinstance(state, str):
        return state
    if state["format_version"] != FORMAT_VERSION:
        raise GristmillError(
            f"{directory / str(name)}: format version {state['format_version']} is not the {FORMAT_VERSION} that this "
            f"gristmill reads; go on with the one that saved it, or remove {directory} to start over"
        )
    problem = None
    for file, expected in list(state["files"].items())[exchange.rank :: exchange.count]:
        try:
            if file_entry(directory / str(name) / file) != expected:
                problem = f"{file} was changed or is torn"
        except OSError as error:
            problem = f"{file} cannot be read ({error.strerror})"
    return exchange.problem(problem) or state


def load(
    directory: Path, name: Name, files: Mapping[str, Any], tensors: dict[str, Tensor], exchange: Exchange
) -> str | None:
    """Fill `tensors` in place; what went wrong where files could not be read, when some may have been filled.

    GristmillError where the checkpoint holds other tensors than all processes' `tensors` together.
    """
    path = directory / str(name)
    problem = None
    try:
        metadata, place = read_metadata(path / file for file in files)
    except OSError as error:
        problem = f"it cannot be read ({error})"
    problem = exchange.problem(problem)
    if problem is not None:
        return problem
    compare(path, metadata, tensors, exchange)
    try:
        read_into(tensors, metadata, place)
    except (OSError, SafetensorError) as error:
        problem = f"it cannot be read ({error})"
    return exchange.problem(problem)


def compare(path: Path, metadata: Metadata, tensors: dict[str, Tensor], exchange: Exchange) -> None:
    """GristmillError with the first name, shape or type in which checkpoint and run differ."""
    wanted = {name: (list(tensor.shape), DTYPES[tensor.dtype]) for name, tensor in tensors.items()}
    run: dict[str, tuple[list[int], str]] = {}
    for of_process in exchange.all(wanted):
        run |= of_process
    saved = {}
    for name, tensor in metadata.state_dict_metadata.items():
        assert isinstance(tensor, TensorStorageMetadata)
        saved[name] = (list(tensor.size), DTYPES[tensor.properties.dtype])
    for name in (*run, *saved):
        if run.get(name) == saved.get(name):
            continue
        if name not in saved:
            what = f"it lacks {name} {run[name][0]}"
        elif name not in run:
            what = f"it holds {name} {saved[name][0]}, which this run has not"
        else:
            what = f"its {name} is {saved[name][0]} {saved[name][1]}, this run's {run[name][0]} {run[name][1]}"
        raise refused(path, what)


def compare_identity(path: Path, saved: Mapping[str, Any], run: Mapping[str, Any]) -> None:
    """GristmillError with the first entry of the run's identity that the checkpoint was not saved under."""
    for key in (*run, *saved):
        if run.get(key) != saved.get(key):
            raise refused(path, f"its {key} is {saved.get(key)}, this run's {run.get(key)}")


def refused(path: Path, what: str) -> GristmillError:
    return GristmillError(
        f"{path} was saved by another kind of run: {what}; set the old architecture, optimizer and tokenizer again, or "
        f"remove {path.parent} to start over"
    )
