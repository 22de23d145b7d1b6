"""Stage `corpus`: documents as they were collected become a corpus. `stage.py` says how.

Importing this package is cheap: what does the work is loaded when it is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gristmill.artifact import Figures, StageRun

    from ..config import CorpusConfig


def process(config: CorpusConfig, run: StageRun) -> Figures:
    """Make the corpus `run.out` of the documents `run.inputs["collected"]`; see `stage.process_corpus`."""
    from ..engines import open_mapper

    # The process that workers are forked from starts, and loads what is compiled, while this one loads the rest.
    with open_mapper(run.engine, run.workers, preload="gristmill.data.process.annotate:load_kernel") as mapper:
        from .stage import process_corpus

        return process_corpus(config, run, mapper)


def identity(config: CorpusConfig) -> dict[str, Any]:
    """What the corpus depends on beside its configuration and its parents: the files that the configuration names."""
    from .inputs import identity as of_files

    return of_files(config)
