"""An artifact: a directory of standard files, its manifest, its lineage, its check.

Every stage writes one. `build` gives a stage a working directory beside the target (`.NAME.partial/`), runs it, hashes
what it left there, writes `manifest.json` and renames the directory into place: a killed stage leaves no half artifact,
and what it had finished in the working directory is there when it is started again.

An artifact's hash covers its kind, its files, its parents' hashes and its stage's configuration. Times, hardware and
figures stand in the manifest but not under the hash, so the same work gives the same hash on another day.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from . import hardware
from .errors import GristmillError
from .events import StageLog

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
SCRATCH = "_scratch"
CHECKPOINTS = "checkpoints"  # in the scratch directory of a stage that trains
KINDS = (
    "collection",
    "corpus",
    "tokenizer",
    "tokens",
    "model",
    "adapter",
    "quantized-model",
    "dataset",
    "reward-model",
    "report",
)

Figures = dict[str, Any]
Engine = Literal["local", "ray"]
# (paths, limit, tokenizer, model's configuration) -> (model, step) -> figures by name
Benchmarks = Callable[[Sequence[str], int, Any, Any], Callable[[Any, int], Figures]]


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` holds. docs/architecture.md gives the reason for each field."""

    kind: str
    format_version: int
    stage: str
    hash: str
    files: dict[str, dict[str, Any]]  # relative path -> {"sha256": hex, "bytes": int}
    parents: dict[str, str]  # parent stage -> artifact hash
    config: dict[str, Any]
    fingerprint: str
    seed: int
    code_version: str
    hardware: dict[str, Any]
    started: str  # UTC, ISO 8601
    seconds: float
    figures: Figures = field(default_factory=dict)


@dataclass(frozen=True)
class StageRun:
    """What a stage is given to work with.

    Files left in `out` make up the artifact. `scratch` (inside `out`) survives a kill and is removed before the
    artifact is sealed: checkpoints live there. `inputs` maps each parent stage's name to its artifact's directory.
    `previous` is the artifact that will be replaced, which a stage may take finished work from. `workers` and `engine`
    say how the work is done; they never change what comes out. `benchmarks` reads benchmarks for pre-training, which
    stands below the room that knows them; the pipeline hands it in.
    """

    out: Path
    scratch: Path
    inputs: Mapping[str, Path]
    seed: int
    log: StageLog
    previous: Path | None = None
    workers: int | None = None  # None: one per core
    engine: Engine = "local"
    benchmarks: Benchmarks | None = None


StageFunction = Callable[[Any, StageRun], Figures]


def build(
    target: Path,
    *,
    kind: str,
    stage: str,
    function: StageFunction,
    config: Any,
    inputs: Mapping[str, Path],
    seed: int,
    fingerprint: str,
    log: StageLog,
    workers: int | None = None,
    engine: Engine = "local",
) -> Manifest:
    """Run one stage and seal what it wrote as the artifact `target`. `config` is a pydantic model.

    Earlier work in the partial directory is kept when it was made under the same fingerprint, else removed first, or
    put aside where there are checkpoints in it.
    """
    assert kind in KINDS, kind
    partial = target.parent / f".{target.name}.partial"
    finished = _finished(partial, fingerprint)
    if finished is not None:  # killed between its last file and the rename
        _replace(partial, target)
        return finished
    aside = exchange_partial(partial, fingerprint)
    resumed = prepare_partial(partial, fingerprint)
    parents = {name: read_manifest(path).hash for name, path in inputs.items()}
    log.emit("stage_started", fingerprint=fingerprint, resumed=resumed)
    if aside is not None:
        log.note(
            f"unfinished training with another recipe, other parents or another gristmill is put aside in {aside}: the "
            "same command as before goes on from it; remove it if you need it no more"
        )
    started = time.time()
    previous = target if (target / MANIFEST).exists() else None
    run = StageRun(partial, partial / SCRATCH, dict(inputs), seed, log, previous, workers, engine)
    figures = function(config, run)
    manifest = _manifest(partial, kind, stage, parents, config, fingerprint, seed, started, figures)
    write_json(partial / MANIFEST, asdict(manifest))
    _replace(partial, target)
    return manifest


def join_build(
    target: Path, *, function: StageFunction, config: Any, inputs: Mapping[str, Path], seed: int, rank: int
) -> None:
    """Run in a further process, number `rank`, the stage that the main process builds `target` with.

    It works in the same scratch directory. Its log is silent and its `out` is a directory of its own, which is thrown
    away: what is written once, the main process writes.
    """
    scratch = target.parent / f".{target.name}.partial" / SCRATCH
    out = scratch / f"process-{rank}"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    previous = target if (target / MANIFEST).exists() else None
    function(config, StageRun(out, scratch, dict(inputs), seed, StageLog.silent(), previous))


def exchange_partial(partial: Path, fingerprint: str) -> Path | None:
    """Put a working directory that holds checkpoints made under another fingerprint aside, and take back the one of
    this fingerprint if it was put aside before: no mistaken command costs a run that took days. Returns where the
    first lies now."""
    mark = partial / SCRATCH / "fingerprint"
    before = mark.read_text() if mark.exists() else ""
    aside = None
    if before != fingerprint and _has_checkpoints(partial):
        aside = _aside(partial, before)
        os.rename(partial, aside)
    kept = _aside(partial, fingerprint)
    if before != fingerprint and kept.exists():
        shutil.rmtree(partial, ignore_errors=True)
        os.rename(kept, partial)
    return aside


def _aside(partial: Path, fingerprint: str) -> Path:
    return partial.with_name(f"{partial.name}-{fingerprint[:12]}")


def prepare_partial(partial: Path, fingerprint: str) -> bool:
    """Make the working directory; True if it holds earlier work under the same fingerprint."""
    mark = partial / SCRATCH / "fingerprint"
    if mark.exists() and mark.read_text() == fingerprint:
        for torn in partial.rglob(".*.writing"):
            shutil.rmtree(torn) if torn.is_dir() else torn.unlink()
        return True
    if partial.exists():
        shutil.rmtree(partial)
    mark.parent.mkdir(parents=True)
    write_text(mark, fingerprint)
    return False


def partial_fingerprint(target: Path) -> str | None:
    """The fingerprint under which unfinished work on `target` was begun, or None where there is none."""
    mark = target.parent / f".{target.name}.partial" / SCRATCH / "fingerprint"
    return mark.read_text() if mark.exists() else None


def has_checkpoints(target: Path) -> bool:
    """Whether work cut in the midst of `target` left checkpoints to go on from."""
    return _has_checkpoints(target.parent / f".{target.name}.partial")


def _has_checkpoints(partial: Path) -> bool:
    return any((partial / SCRATCH / CHECKPOINTS).glob("step-*"))


def read_manifest(directory: Path | str) -> Manifest:
    """The manifest of an artifact. GristmillError names what is missing or malformed."""
    path = Path(directory) / MANIFEST
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        version = data["format_version"]
        if version != FORMAT_VERSION:
            raise GristmillError(
                f"{path}: format version {version} is not the {FORMAT_VERSION} that this gristmill "
                f"({hardware.code_version()}) reads"
            )
        manifest = Manifest(**data)
        if any(Path(name).is_absolute() or ".." in Path(name).parts for name in manifest.files):
            raise TypeError("it lists a file outside the artifact")
        if not all(
            isinstance(entry["sha256"], str) and isinstance(entry["bytes"], int) for entry in manifest.files.values()
        ):
            raise TypeError("a file's entry is malformed")
    except (FileNotFoundError, NotADirectoryError):
        raise GristmillError(f"{directory} is not an artifact: it holds no {MANIFEST}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError, KeyError, AttributeError) as error:
        raise GristmillError(f"{path} is corrupt ({error}); remove {directory} and run its stage again") from None
    return manifest


def verify(directory: Path | str) -> Manifest:
    """Hash every file of an artifact again; GristmillError names the first that differs, lacks or is not listed."""
    directory = Path(directory)
    manifest = read_manifest(directory)
    present = _files(directory)
    for name, listed in manifest.files.items():
        path = directory / name
        if not path.exists():
            raise GristmillError(f"{path} is missing; remove {directory} and run stage {manifest.stage!r} again")
        found = _hash_file(path)
        if found["sha256"] != listed["sha256"]:
            raise GristmillError(
                f"{path} is corrupt: {found['bytes']} bytes, sha256 {found['sha256'][:12]}, the manifest says "
                f"{listed['bytes']} bytes, {listed['sha256'][:12]}; remove {directory} and run stage "
                f"{manifest.stage!r} again"
            )
    for name in present:
        if name not in manifest.files:
            raise GristmillError(f"{directory / name} is not listed in {directory / MANIFEST}; remove it")
    expected = artifact_hash(manifest.kind, manifest.files, manifest.parents, manifest.config)
    if expected != manifest.hash:
        raise GristmillError(
            f"{directory / MANIFEST} was changed: its contents hash to {expected[:12]}, not its own hash"
        )
    return manifest


def is_artifact(directory: Path | str) -> bool:
    """Whether a manifest of ours lies there: other programs have files of that name too."""
    try:
        data = json.loads((Path(directory) / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(data, dict) and {"format_version", "kind", "stage", "files"} <= data.keys()


def check_files(directory: Path | str, names: Iterable[str]) -> None:
    """Compare a few small files of an artifact with its manifest, as `verify` does all of them.

    GristmillError names the first that was changed, added or taken away. A directory without a manifest of ours is no
    artifact and is fine as it is.
    """
    directory = Path(directory)
    if not is_artifact(directory):
        return
    manifest = read_manifest(directory)
    listed = manifest.files
    made = "imported" if manifest.stage == "import" else "trained"
    for name in names:
        path = directory / name
        found = _hash_file(path)["sha256"] if path.is_file() else None
        if found != listed.get(name, {}).get("sha256"):
            how = "is missing" if found is None else "was added" if name not in listed else "was changed"
            back = "take it away" if name not in listed else "put the old one back"
            raise GristmillError(
                f"{path} {how} since {directory / MANIFEST} was written, so the model was not {made} with it; make a "
                f"new model of it as it is now (gristmill import {directory} --out DIR), or {back}"
            )


def artifact_hash(kind: str, files: Mapping[str, Any], parents: Mapping[str, str], config: Mapping[str, Any]) -> str:
    """The identity of an artifact: 64 hex digits over kind, file hashes, parents and configuration."""
    identity = {
        "kind": kind,
        "files": {name: entry["sha256"] for name, entry in files.items()},
        "parents": dict(parents),
        "config": dict(config),
    }
    return hash_json(identity)


def hash_json(value: Any) -> str:
    """sha256 of a JSON value in canonical form (sorted keys, no spaces)."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a file so that a crash leaves either the old one or the whole new one."""
    temporary = path.with_name(f".{path.name}.writing")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, indented and newline-closed, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def rounded(value: Any) -> Any:
    """A JSON value whose floats have six places, so that the last bits of a sum do not decide a file's hash."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return round(value, 6) if isinstance(value, float) else value


def _manifest(
    directory: Path,
    kind: str,
    stage: str,
    parents: dict[str, str],
    config: Any,
    fingerprint: str,
    seed: int,
    started: float,
    figures: Figures,
) -> Manifest:
    files = {name: _hash_file(directory / name) for name in _files(directory)}
    plain_config = config.model_dump(mode="json")
    return Manifest(
        kind=kind,
        format_version=FORMAT_VERSION,
        stage=stage,
        hash=artifact_hash(kind, files, parents, plain_config),
        files=files,
        parents=parents,
        config=plain_config,
        fingerprint=fingerprint,
        seed=seed,
        code_version=hardware.code_version(),
        hardware=hardware.describe(),
        started=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        seconds=round(time.time() - started, 3),
        figures=figures,
    )


def _files(directory: Path) -> list[str]:
    """Relative paths of an artifact's files but the manifest and what is in scratch, sorted."""
    found = (path.relative_to(directory) for path in directory.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in found if path.parts[0] not in (MANIFEST, SCRATCH))


def _hash_file(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"sha256": digest, "bytes": path.stat().st_size}


def _finished(partial: Path, fingerprint: str) -> Manifest | None:
    """The manifest of a partial directory that lacks nothing but its rename, else None."""
    try:
        manifest = read_manifest(partial)
    except GristmillError:
        return None
    return manifest if manifest.fingerprint == fingerprint else None


def _replace(partial: Path, target: Path) -> None:
    """Put `partial` in `target`'s place, without its scratch; an older artifact there is removed last."""
    shutil.rmtree(partial / SCRATCH, ignore_errors=True)
    old = target.parent / f".{target.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.rename(target, old)
    os.rename(partial, target)
    shutil.rmtree(old, ignore_errors=True)
