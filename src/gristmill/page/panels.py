"""One panel for each stage of the rail: which sections it has, and what stands there when a file cannot be read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from ..errors import GristmillError
from . import panel_corpus, panel_deploy, panel_model, panel_text
from .files import Run
from .sections import Section, empty

SectionMaker = Callable[[Run], Section | None]

PANELS: dict[str, tuple[SectionMaker, ...]] = {
    "data": panel_text.DATA,
    "processing": panel_corpus.PROCESSING,
    "tokenization": panel_text.TOKENIZATION,
    "architecture": panel_model.ARCHITECTURE,
    "pretraining": panel_model.PRETRAINING,
    "alignment": panel_model.ALIGNMENT,
    "artifacts": panel_deploy.ARTIFACTS,
    "deployment": panel_deploy.DEPLOYMENT,
}

# What files of another version, or files just being replaced, can raise when they are read.
UNREADABLE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    GristmillError,
    pa.ArrowException,
)


def panel(run: Run | None, key: str) -> dict[str, Any]:
    """The sections of one stage's panel. A section whose files cannot be read says so; the others stand."""
    if run is None:
        if key == "deployment":
            return {"key": key, "sections": [panel_deploy.chat(None)]}
        nothing = empty(
            "no-run", "No run", "This page shows a model server only. A run is shown by:", "gristmill page RUN"
        )
        return {"key": key, "sections": [nothing]}
    made = [_guarded(maker, run) for maker in PANELS[key]]
    return {"key": key, "sections": [section for section in made if section is not None]}


def _guarded(maker: SectionMaker, run: Run) -> Section | None:
    try:
        return maker(run)
    except UNREADABLE as error:
        title = maker.__name__.replace("_", " ").capitalize()
        return empty(maker.__name__, title, f"This part cannot be shown: {type(error).__name__}: {error}")
