"""Further places for the metrics: TensorBoard, Weights & Biases, trackio. Each is a package that the user installs.

All are fed what the event log is fed, at the same steps and under the same names. TensorBoard's files and those of
Weights & Biases lie in the run directory; trackio keeps its own. A resumed run goes on in the same series.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ..errors import GristmillError

PROJECT = "gristmill"


class Logger(Protocol):
    """A place for metrics."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def text(self, step: int, name: str, text: str) -> None:
        """A sampled text; a place that holds numbers alone leaves it out."""

    def close(self) -> None: ...


class TensorBoardLogger:
    """Scalars and texts in `directory`/tensorboard/`name`, for `tensorboard --logdir`. What a killed run wrote behind
    `first_step` is hidden there (`purge_step`)."""

    def __init__(self, directory: Path, name: str, settings: Mapping[str, Any], first_step: int):
        _module("tensorboard")
        writer = _module("torch.utils.tensorboard", package="tensorboard").SummaryWriter
        self._writer = writer(log_dir=str(directory / "tensorboard" / name), purge_step=first_step + 1)
        if not first_step:
            self._writer.add_text("settings", "\n".join(f"    {key}: {value}" for key, value in settings.items()))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def text(self, step: int, name: str, text: str) -> None:
        self._writer.add_text(name, text, step)

    def close(self) -> None:
        self._writer.close()


class WandbLogger:
    """A run of project `gristmill` at Weights & Biases, or on disk alone with its offline mode (`wandb offline`).

    Its own step only rises, and what comes with a lower one is dropped. A run that went back, or was cut and goes on
    from a checkpoint, makes steps again: so the step is a metric like others, and the axis of all of them."""

    def __init__(self, directory: Path, name: str, settings: Mapping[str, Any], first_step: int):
        directory.mkdir(parents=True, exist_ok=True)
        self._run = _module("wandb").init(
            project=PROJECT,
            name=name,
            id=_run_id(directory, name) if first_step else None,
            dir=str(directory),
            config=dict(settings),
            resume="allow",
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        if not first_step:
            _id_file(directory, name).write_text(str(self._run.id) + "\n")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "step": step})

    def text(self, step: int, name: str, text: str) -> None:
        """Left out: a table of texts would be sent whole again at every step."""

    def close(self) -> None:
        self._run.finish()


class TrackioLogger:
    """A run of project `gristmill` of trackio, shown by `trackio show`."""

    def __init__(self, directory: Path, name: str, settings: Mapping[str, Any], first_step: int):
        run_name = f"{directory.name}-{name}"
        resume = "allow" if first_step else "never"
        self._run = _module("trackio").init(project=PROJECT, name=run_name, config=dict(settings), resume=resume)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def text(self, step: int, name: str, text: str) -> None:
        """Left out: trackio's series are numbers."""

    def close(self) -> None:
        self._run.finish()


LOGGERS: dict[str, Callable[[Path, str, Mapping[str, Any], int], Logger]] = {
    "tensorboard": TensorBoardLogger,
    "wandb": WandbLogger,
    "trackio": TrackioLogger,
}


def open_loggers(
    names: Sequence[str], directory: Path, stage: str, settings: Mapping[str, Any], first_step: int = 0
) -> list[Logger]:
    """The places called `names`, ready for the steps after `first_step` (0 unless a cut run goes on). `directory` is
    the run's, `settings` the stage's configuration. GristmillError names a package that is not installed."""
    return [LOGGERS[name](directory, stage, _flat(settings), first_step) for name in names]


def _module(name: str, package: str | None = None) -> Any:
    package = package or name
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise GristmillError(
            f"training.watch.loggers names {package}, which cannot be imported ({error}): pip install {package}, or "
            "take it out of the list"
        ) from None


def _id_file(directory: Path, name: str) -> Path:
    return directory / f"wandb-{name}.id"


def _run_id(directory: Path, name: str) -> str | None:
    file = _id_file(directory, name)
    return file.read_text().strip() if file.exists() else None


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted names, lists as text: what all three show in a table."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, (int, float, str)) else str(value)
    return flat
