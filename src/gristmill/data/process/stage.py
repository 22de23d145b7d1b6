"""Stage `corpus`: what was collected, cleaned, without duplicates and junk, redacted, split and weighed.

Three phases. Each row group of the input is annotated by itself, in parallel (`annotate.py`): a chain of steps cleans
the text and puts scores and counts beside it. Then everything is decided: rules look at the columns (`judge.py`),
documents are compared with each other (`compare.py`), and each has its reason, its cluster and its split (`decide.py`).
Last the parts of the corpus are written, in parallel (`write.py`), in the order in which the documents were collected,
to `documents/` or, with the reason, to `removed/`.

Nothing depends on how many workers there are or where they run. Whatever was finished is found in scratch by a stage
that was killed, and annotations in the artifact that is about to be replaced (`reuse.py`), so that a changed threshold
costs no new pass over the texts.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from gristmill.artifact import Figures, StageRun, hash_json, write_json
from gristmill.errors import GristmillError

from ..config import CorpusConfig
from ..pool import Mapper
from ..report import make_report
from .annotate import annotate_all
from .decide import decide_all
from .inputs import check_files, expand_paths
from .models import keep_models, model_figures
from .reuse import annotation_key, reusable, reuse_all
from .rows import Problem, list_groups
from .work import Annotated, Place, Work
from .write import write_all

MOST_PROBLEMS = 1000  # that the report lists


def process_corpus(config: CorpusConfig, run: StageRun, mapper: Mapper) -> Figures:
    """Make the corpus; what `gristmill.data.process.process` does. `mapper` does the tasks."""
    clock = _Clock()
    written, config = config, expand_paths(config)
    check_files(config)
    key = annotation_key(config, run.seed)
    place = Place.begin(run.scratch, hash_json({"annotations": key, "config": config.model_dump(mode="json")}))
    groups, problems = list_groups(run.inputs["collected"] / "documents")
    previous = reusable(run, key)
    mapper.limit(len(groups))
    work = Work(config, run, place, mapper)
    annotated = annotate_all(work, groups) if previous is None else reuse_all(work, previous)
    problems += [Problem(*problem) for part in annotated.parts for problem in part.input["problems"]]
    if not len(annotated.files):
        raise _nothing_read(problems)
    evaluation_sets = _evaluation_sets(work)
    clock.lap("annotate")
    mapper.renew()
    verdict = decide_all(work, annotated)
    clock.lap("decide")
    mapper.renew()
    counts = write_all(work, annotated, verdict)
    keep_models(work, previous)
    report = make_report(
        counts,
        written,
        verdict.mixture,
        order=verdict.reasons,
        rules=verdict.rules,
        near_duplicates=verdict.near,
        evaluation_sets=evaluation_sets,
        problems=[problem._asdict() for problem in _listed(problems)],
    )
    write_json(run.out / "report.json", report)
    clock.lap("write")
    return {
        **_read(annotated),
        **verdict.figures,
        "personal_data": {kind: sum(found.values()) for kind, found in counts["personal_data"].items()},
        "problems": len(problems),
        "models": model_figures(work, previous),
        "annotation_key": key,
        "reused_annotations": previous is not None,
        **_speed(work, annotated, clock),
    }


def _evaluation_sets(work: Work) -> dict[str, dict[str, int]]:
    """How much of each evaluation set can be looked for."""
    config = work.config.contamination
    if config is None:
        return {}
    task = {"config": config.model_dump(mode="json")}
    (found,) = work.mapper("gristmill.data.dedup.contamination:coverage", [task])
    return found


def _nothing_read(problems: list[Problem]) -> GristmillError:
    said = f"{problems[0].where}: {problems[0].what}" if problems else "the table has no rows"
    return GristmillError(f"no document could be read of what was collected ({said}); run stage 'collected' again")


def _listed(problems: list[Problem]) -> Iterable[Problem]:
    yield from problems[:MOST_PROBLEMS]
    if more := problems[MOST_PROBLEMS:]:
        yield Problem("elsewhere", f"{len(more)} more problems", sum(problem.rows for problem in more))


def _read(annotated: Annotated) -> Figures:
    read = [counts for part in annotated.parts for counts in part.input["read"].values()]
    return {"documents_in": sum(counts[0] for counts in read), "bytes_in": sum(counts[1] for counts in read)}


def _speed(work: Work, annotated: Annotated, clock: _Clock) -> Figures:
    cpu_seconds = work.mapper.cpu_seconds + clock.cpu_seconds
    return {
        "seconds": clock.seconds,
        "seconds_by_step": {name: round(seconds, 3) for name, seconds in annotated.seconds.items()},
        "cpu_seconds": round(cpu_seconds, 3),
        "mb_per_cpu_second": round(_read(annotated)["bytes_in"] / 1e6 / max(cpu_seconds, 1e-9), 2),
    }


class _Clock:
    """Seconds by phase, and CPU seconds of this process, since it was made."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()
        self._cpu = time.process_time()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = round(now - self._last, 3)
        self._last = now

    @property
    def cpu_seconds(self) -> float:
        return time.process_time() - self._cpu
