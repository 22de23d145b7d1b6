"""From what a user calls a model to the directory that holds it."""

from __future__ import annotations

from pathlib import Path

from ..artifact import MANIFEST, read_manifest
from ..errors import GristmillError
from .json_files import CONFIG

ALIGNED_LAST = ("dpo", "sft", "base")


def locate_model(path: Path | str) -> Path:
    """The model directory that `path` means: itself, or, for a run directory, the run's last aligned, unquantized
    model (`artifacts/dpo`, else `sft`, else `base`) that was made from those that stand beside it now."""
    path = Path(path)
    if (path / CONFIG).is_file():
        return path
    if not path.exists():
        raise GristmillError(f"{path} does not exist; give a model directory or a run directory")
    if not path.is_dir():
        raise GristmillError(f"{path} is a file; give a model directory or a run directory, or import it first")
    for stage in ALIGNED_LAST:
        candidate = path / "artifacts" / stage
        if (candidate / CONFIG).is_file() and _is_current(candidate):
            return candidate
    if (path / "artifacts").is_dir():
        wanted = ", ".join(f"artifacts/{stage}" for stage in ALIGNED_LAST)
        raise GristmillError(f"{path} is a run that has no model yet: looked for {wanted}; run its stages first")
    raise GristmillError(f"{path} is neither a model directory (no {CONFIG}) nor a run directory (no artifacts/)")


def _is_current(directory: Path) -> bool:
    """Whether the artifact's parents, where they stand beside it, are the ones it was made from."""
    if not (directory / MANIFEST).is_file():
        return True
    for name, parent_hash in read_manifest(directory).parents.items():
        parent = directory.parent / name
        if (parent / MANIFEST).is_file() and read_manifest(parent).hash != parent_hash:
            return False
    return True
