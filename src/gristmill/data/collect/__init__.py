"""Stage `collected`: texts of every source and format as one table of documents."""

from __future__ import annotations

from typing import Any

from gristmill.artifact import Figures, StageRun

from ..config import CollectConfig


def collect(config: CollectConfig, run: StageRun) -> Figures:
    """Make the artifact `collected`; see `stage.py`."""
    from .stage import collect_documents

    return collect_documents(config, run)


def identity(config: CollectConfig) -> dict[str, Any]:
    """What the documents depend on beside the configuration, for the stage's fingerprint; see `inputs.py`."""
    from .inputs import identity as of_inputs

    return of_inputs(config)
