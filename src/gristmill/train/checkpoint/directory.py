"""The directory of a run's checkpoints: their names, which of them are whole, which of them go."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...artifact import hash_json, write_json
from ...errors import GristmillError
from .shards import FileEntry

FORMAT_VERSION = 1
STATE = "state.json"
NAME = re.compile(r"step-(\d+)-(\d+)(-golden)?")
HIDDEN = re.compile(r"\.(step-\d+-\d+(?:-golden)?)\.(writing|removing)")


@dataclass(frozen=True)
class Name:
    """A checkpoint's name: the step it was saved after, the number of the save, whether it is golden."""

    step: int
    serial: int
    golden: bool

    def __str__(self) -> str:
        return f"step-{self.step:08d}-{self.serial:04d}" + ("-golden" if self.golden else "")

    @property
    def writing(self) -> str:
        return f".{self}.writing"

    @staticmethod
    def parse(text: str) -> Name | None:
        match = NAME.fullmatch(text)
        return None if match is None else Name(int(match[1]), int(match[2]), match[3] is not None)


def list_names(directory: Path) -> list[Name]:
    """The checkpoints there, newest save first. A directory that is not there holds none."""
    found = [Name.parse(text) for text in _entries(directory)]
    return sorted((name for name in found if name is not None), key=lambda name: -name.serial)


def last_serial(directory: Path) -> int:
    """The highest number of a save there, also of those half written or half removed; 0 where there is none."""
    visible = [HIDDEN.sub(r"\1", text) for text in _entries(directory)]
    return max((name.serial for name in map(Name.parse, visible) if name is not None), default=0)


def sweep(directory: Path) -> None:
    """Take away what a killed process left behind half written or half removed."""
    for entry in directory.iterdir():
        if HIDDEN.fullmatch(entry.name):
            shutil.rmtree(entry)


def seal(directory: Path, name: Name, files: dict[str, FileEntry], identity: Mapping[str, Any], extra: Any) -> None:
    """Make the shards under the hidden name the checkpoint `name`. OSError where that fails: then it is none."""
    writing = directory / name.writing
    for file, entry in files.items():
        if not (writing / file).exists() or (writing / file).stat().st_size != entry["bytes"]:
            raise OSError(errno.ENOENT, f"{file} was written by another process and cannot be seen from the first one")
    state = {
        "format_version": FORMAT_VERSION,
        "step": name.step,
        "golden": name.golden,
        "identity": dict(identity),
        "files": files,
        "extra": extra,
    }
    write_json(writing / STATE, state | {"hash": hash_json(state)})
    sync_directory(writing)
    os.rename(writing, directory / str(name))
    sync_directory(directory)


def read_state(directory: Path, name: Name) -> dict[str, Any] | str:
    """What `state.json` holds, or why it does not count."""
    path = directory / str(name) / STATE
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"{STATE} cannot be read ({error})"
    if not isinstance(state, dict):
        return f"{STATE} was changed"
    expected = state.pop("hash", None)
    if expected != hash_json(state) or (state["step"], state["golden"]) != (name.step, name.golden):
        return f"{STATE} was changed"
    return state


def doomed(names: list[Name], keep: int, keep_golden: int) -> list[Name]:
    """Those of `names` (newest first) that are neither among the `keep` newest nor the `keep_golden` newest golden."""
    golden = [name for name in names if name.golden]
    kept = {*names[:keep], *golden[:keep_golden]}
    return [name for name in names if name not in kept]


def remove(directory: Path, name: Name) -> None:
    """Remove a checkpoint; killed on the way, it leaves nothing that looks like one."""
    removing = directory / f".{name}.removing"
    os.rename(directory / str(name), removing)
    shutil.rmtree(removing)


def sync_directory(path: Path) -> None:
    """Make the names in a directory last through a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _entries(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise GristmillError(f"the checkpoints cannot be listed: {error}") from None


def explain(error: OSError, directory: Path, needed: int = 0) -> str:
    """What went wrong with a file, and what to do. `needed`: bytes that were to be written."""
    if error.errno == errno.ENOSPC:
        free = shutil.disk_usage(directory).free
        return (
            f"no space is left on the disk ({free / 1e6:,.1f} MB are free, {needed / 1e6:,.1f} MB are needed); make "
            "room, or put the run on a larger disk"
        )
    if error.errno == errno.EDQUOT:
        return "the disk quota is used up; make room, or put the run elsewhere"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"there is no permission to write ({error.strerror}); change it, or put the run elsewhere"
    if error.errno in (errno.ENOENT, errno.ENOTDIR) and not directory.is_dir():
        return f"{directory} is no directory, or was removed meanwhile"
    return str(error)
