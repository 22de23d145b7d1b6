"""Runs a recipe's stages in order, skips what is fresh, resumes what was cut.

A run directory holds `recipe.yaml` (resolved), `events.jsonl` and `artifacts/STAGE/`. A stage is fresh when its
artifact's fingerprint is what it would be now: its configuration, the seed, its parents' hashes, and the sources of its
room and of the rooms below it.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from .artifact import (
    Engine,
    Manifest,
    StageFunction,
    build,
    has_checkpoints,
    hash_json,
    join_build,
    partial_fingerprint,
    read_manifest,
    verify,
    write_text,
)
from .errors import GristmillError
from .events import Event, EventLog, read_events
from .recipe import Recipe, check_ahead, dump_recipe, load_recipe
from .train.parallel.launch import check_share, dismiss_others, launched

FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "events", "hardware", "artifact"),
    ("data", "model", "kernels"),
    ("tokenizer", "weights", "plan"),
    ("train", "engine"),
    ("evaluate", "interpret"),
    ("align", "quantize", "capacity"),
)
PACKAGE = Path(__file__).parent


@dataclass(frozen=True)
class Stage:
    """One stage: the artifact it makes, what it is made from, and the function that makes it."""

    name: str
    kind: str
    function: str  # "room.module:function", loaded when the stage is run
    needs: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()  # further parents, where the recipe has them
    identity: str | None = None  # "room.module:function" giving what else the fingerprint must know
    trains: bool = False  # whether all of torchrun's processes run it together; the main one runs all others alone

    @property
    def room(self) -> str:
        return self.function.split(".", 1)[0]


STAGES: tuple[Stage, ...] = (
    Stage("collected", "collection", "data.collect:collect", identity="data.collect:identity"),
    Stage("corpus", "corpus", "data.process:process", needs=("collected",), identity="data.process:identity"),
    Stage(
        "tokenizer",
        "tokenizer",
        "tokenizer.train:train_tokenizer",
        needs=("corpus",),
        identity="tokenizer.templates:identity",
    ),
    Stage("tokens", "tokens", "tokenizer.pack:pack", needs=("corpus", "tokenizer")),
    Stage("base", "model", "train.pretrain:pretrain", needs=("tokenizer", "tokens"), trains=True),
    Stage("sft", "model", "align.sft:sft", needs=("base", "tokens"), trains=True),
    Stage("dpo", "model", "align.dpo:dpo", needs=("sft",), trains=True),
    Stage("int8", "quantized-model", "quantize.stage:quantize", needs=("base", "tokens"), uses=("sft", "dpo")),
    Stage("inspect", "report", "interpret.stage:inspect", needs=("base",), uses=("sft", "dpo")),
    Stage(
        "evaluation",
        "report",
        "evaluate.stage:evaluate",
        needs=("base", "corpus", "tokens"),
        uses=("sft", "dpo", "int8"),
    ),
)
STAGE_NAMES = tuple(stage.name for stage in STAGES)


def run(
    recipe: Path | str,
    run_dir: Path | str | None = None,
    *,
    first: str | None = None,
    last: str | None = None,
    overrides: Sequence[str] = (),
    on_event: Callable[[Event], None] | None = None,
    workers: int | None = None,
    engine: Engine = "local",
) -> dict[str, Manifest]:
    """Run the stages of the recipe file `recipe` (or of a run directory) and return their manifests by stage name.

    With `first`, earlier stages are taken as they stand, whether fresh or not; with `last`, later ones are left alone.
    `workers` (None: one per core) and `engine` are how the data stages do their work, not what comes out.

    Under torchrun every process calls it: the main one does all this, the others join it in the stages that train and
    return no manifests.
    """
    launch = launched()
    if launch is not None and not launch.main:
        join()
        return {}
    try:
        source = Path(recipe)
        if source.is_dir():
            run_dir = run_dir or source
            source = source / "recipe.yaml"
        checked = load_recipe(source, overrides)
        directory = Path(run_dir) if run_dir is not None else Path("runs") / checked.name
        plan = plan_stages(checked, first, last)
        check_ahead(checked, [stage.name for stage in plan])
        for stage in plan:
            if stage.trains:
                check_share(getattr(checked, stage.name).training.batch_size, f"{stage.name}.training.batch_size")
            if stage.name == "sft" and checked.sft is not None:
                check_share(checked.sft.replay_sequences, "sft.replay_sequences")
        with lock(directory):
            return _run_plan(checked, directory, plan, on_event, {"workers": workers, "engine": engine})
    finally:
        dismiss_others()


def _run_plan(
    recipe: Recipe,
    directory: Path,
    plan: Sequence[Stage],
    on_event: Callable[[Event], None] | None,
    how: dict[str, Any],
) -> dict[str, Manifest]:
    """Run the stages in order in a directory that this process holds, and write down how it goes."""
    log = EventLog(directory / "events.jsonl")
    if on_event is not None:
        log.subscribers.append(on_event)
    written = directory / "recipe.yaml"
    before = written.read_text(encoding="utf-8") if written.exists() else None
    write_text(written, dump_recipe(recipe))
    log.emit("run_started", recipe=recipe.name, stages=[stage.name for stage in plan])
    started = time.monotonic()
    whole: set[Path] = set()
    done: set[str] = set()  # types of this run's events
    log.subscribers.append(lambda event: done.add(event["type"]))
    manifests: dict[str, Manifest] = {}
    try:
        for stage in plan:
            manifests[stage.name] = _run_stage(stage, recipe, directory, log, whole, how)
    except BaseException as error:
        log.emit("run_failed", error="interrupted" if isinstance(error, KeyboardInterrupt) else str(error))
        refused = isinstance(error, GristmillError) and "stage_finished" not in done
        if refused and before is not None and not has_checkpoints(artifact_dir(directory, stage.name)):
            write_text(written, before)  # what was refused is not what the directory holds, nor what comes next
        raise
    else:
        log.emit("run_finished", seconds=round(time.monotonic() - started, 3))
    finally:
        log.close()
    return manifests


def join() -> None:
    """Do what the main process calls this one to, until it lets go: run the stages that train."""
    from .train.parallel.team import team

    own = team()
    assert own is not None
    for call in own.calls():
        stage = STAGES[STAGE_NAMES.index(call["stage"])]
        section: Any = Recipe.model_fields[stage.name].annotation
        config = TypeAdapter(section).validate_python(call["config"])
        with own.training(config.training.device):
            join_build(
                Path(call["target"]),
                function=_function(stage),
                config=config,
                inputs={name: Path(path) for name, path in call["inputs"].items()},
                seed=call["seed"],
                rank=own.launch.rank,
            )


def plan_stages(recipe: Recipe, first: str | None = None, last: str | None = None) -> list[Stage]:
    """The stages to run, in order; GristmillError where the recipe lacks what one of them needs."""
    for name in (first, last):
        if name is not None and (name not in STAGE_NAMES or getattr(recipe, name) is None):
            present = [stage.name for stage in STAGES if getattr(recipe, stage.name) is not None]
            raise GristmillError(f"the recipe has no stage {name!r}; it has {', '.join(present)}")
    chosen = [stage for stage in STAGES if getattr(recipe, stage.name) is not None]
    for stage in chosen:
        for parent in stage.needs:
            if getattr(recipe, parent) is None:
                raise GristmillError(f"stage {stage.name!r} needs stage {parent!r}, which the recipe lacks")
    order = STAGE_NAMES.index
    low = order(first) if first else 0
    high = order(last) if last else len(STAGES)
    if low > high:
        raise GristmillError(f"stage {first!r} comes after stage {last!r}: there is nothing to run")
    return [stage for stage in chosen if low <= order(stage.name) <= high]


def fingerprint(stage: Stage, recipe: Recipe, directory: Path) -> str:
    """What a fresh artifact of this stage would carry; its parents must be there."""
    config = getattr(recipe, stage.name)
    parents = {name: read_manifest(path).hash for name, path in _inputs(stage, recipe, directory).items()}
    identity = _load(stage.identity)(config) if stage.identity else None
    return hash_json(
        {
            "stage": stage.name,
            "config": config.model_dump(mode="json"),
            "seed": recipe.seed,
            "parents": parents,
            "sources": source_hash(stage.room),
            "identity": identity,
        }
    )


@cache
def source_hash(room: str) -> str:
    """sha256 over the sources of a room and of the rooms on the floors below it."""
    floor = next(number for number, rooms in enumerate(FLOORS) if room in rooms)
    rooms = [name for rooms in FLOORS[:floor] for name in rooms] + [room]
    digest = hashlib.sha256()
    for name in sorted(rooms):
        place = PACKAGE / name
        files = sorted(path for path in place.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        for path in files or [PACKAGE / f"{name}.py"]:
            if path.exists():
                digest.update(path.relative_to(PACKAGE).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def state(stage: Stage, recipe: Recipe, directory: Path) -> str:
    """`fresh`, `stale`, `corrupt`, `partial` (begun, not finished) or `missing`."""
    target = artifact_dir(directory, stage.name)
    try:
        expected = fingerprint(stage, recipe, directory)
    except GristmillError:
        expected = None
    if target.exists():
        try:
            return "fresh" if read_manifest(target).fingerprint == expected else "stale"
        except GristmillError:
            return "corrupt"
    return "missing" if partial_fingerprint(target) is None else "partial"


def status(directory: Path | str) -> dict[str, Any]:
    """What stands in a run directory: for each stage its state, hash, seconds and figures; and whether a run is on."""
    directory = Path(directory)
    if not (directory / "recipe.yaml").exists():
        raise GristmillError(f"{directory} is not a run directory: it holds no recipe.yaml")
    recipe = load_recipe(directory / "recipe.yaml")
    events = list(read_events(directory / "events.jsonl"))
    running = is_running(directory)
    current = next((e["stage"] for e in reversed(events) if e["type"].startswith("stage_")), None)
    open_stage = current if running and events and events[-1]["type"] not in ("run_finished", "run_failed") else None
    stages = []
    for stage in plan_stages(recipe):
        entry: dict[str, Any] = {"name": stage.name, "kind": stage.kind, "state": state(stage, recipe, directory)}
        if entry["state"] in ("fresh", "stale"):
            manifest = read_manifest(artifact_dir(directory, stage.name))
            entry |= {"hash": manifest.hash, "seconds": manifest.seconds, "figures": manifest.figures}
        if stage.name == open_stage and entry["state"] != "fresh":
            entry["state"] = "running"
            entry["progress"] = next(
                (
                    {k: e[k] for k in ("done", "total", "unit")}
                    for e in reversed(events)
                    if e["type"] == "progress" and e["stage"] == stage.name
                ),
                None,
            )
        stages.append(entry)
    return {"name": recipe.name, "directory": str(directory), "running": running, "stages": stages}


def artifact_dir(directory: Path, stage: str) -> Path:
    return directory / "artifacts" / stage


@contextmanager
def lock(directory: Path) -> Iterator[None]:
    """Hold a run directory; GristmillError if another process runs in it. The system drops the lock of a killed one."""
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / ".lock", "w") as file:
        for patience in range(10, -1, -1):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:  # perhaps only `is_running` looking
                if not patience:
                    raise GristmillError(
                        f"another gristmill is running in {directory}; wait for it or use --run DIR"
                    ) from None
                time.sleep(0.02)
        yield


def is_running(directory: Path) -> bool:
    """Whether a process holds the run directory."""
    path = directory / ".lock"
    if not path.exists():
        return False
    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def _run_stage(
    stage: Stage, recipe: Recipe, directory: Path, log: EventLog, whole: set[Path], how: dict[str, Any]
) -> Manifest:
    """Make one stage's artifact, or find it fresh. `whole` remembers which artifacts this run has hashed already."""
    target = artifact_dir(directory, stage.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    inputs = _inputs(stage, recipe, directory)
    for name, path in inputs.items():
        if not path.exists():
            raise GristmillError(
                f"stage {stage.name!r} needs the artifact {path}, which is not there; `gristmill run {directory} "
                f"--until {name}`, without --from, makes it"
            )
    expected = fingerprint(stage, recipe, directory)
    if target.exists():
        manifest = read_manifest(target)
        if manifest.fingerprint == expected:
            verify(target)
            whole.add(target)
            log.emit("stage_skipped", stage.name, hash=manifest.hash)
            return manifest
    stage_log = log.stage(stage.name)
    try:
        for path in inputs.values():
            if path not in whole:
                verify(path)
                whole.add(path)
        manifest = build(
            target,
            kind=stage.kind,
            stage=stage.name,
            function=_shared(stage, target) if stage.trains and launched() else _function(stage),
            config=getattr(recipe, stage.name),
            inputs=inputs,
            seed=recipe.seed,
            fingerprint=expected,
            log=stage_log,
            **how,
        )
    except BaseException as error:
        log.emit(
            "stage_failed", stage.name, error="interrupted" if isinstance(error, KeyboardInterrupt) else str(error)
        )
        raise
    whole.add(target)
    log.emit("stage_finished", stage.name, hash=manifest.hash, seconds=manifest.seconds, figures=manifest.figures)
    return manifest


def _shared(stage: Stage, target: Path) -> StageFunction:
    """The stage's function, to which the main process calls the others."""
    from .train.parallel.team import together

    return together(stage.name, target, _function(stage))


def _function(stage: Stage) -> StageFunction:
    """The stage's function; pre-training is handed the benchmarks, which stand a floor above it."""
    function: StageFunction = _load(stage.function)
    if stage.name != "base":
        return function
    in_loop = _load("evaluate.benchmarks.loop:benchmarks_in_loop")
    return lambda config, run: function(config, replace(run, benchmarks=in_loop))


def _inputs(stage: Stage, recipe: Recipe, directory: Path) -> dict[str, Path]:
    names = [*stage.needs, *(name for name in stage.uses if getattr(recipe, name) is not None)]
    return {name: artifact_dir(directory, name) for name in names}


def _load(reference: str) -> Callable[..., Any]:
    module, _, name = reference.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(f".{module}", __package__), name)
    return function
