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
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gristmill.artifact import Figures, StageRun, hash_json, write_json
from gristmill.errors import GristmillError

from ..config import CorpusConfig
from ..engines import open_mapper
from ..mixture import Mixture, choose_validation_hashed, settle_mixture
from ..report import make_report
from ..step import Rule
from .annotate import annotate_all
from .compare import Duplicates, find_equal, find_similar
from .decide import all_reasons, decide
from .judge import NO_REASON, judge_all, reasons_of, rules_of
from .models import keep_models, model_figures, perplexity_cuts
from .reuse import annotation_key, reusable, reuse_all
from .rows import Problem, list_groups
from .work import Annotated, Place, Work
from .write import write_all


def process_corpus(config: CorpusConfig, run: StageRun) -> Figures:
    """Make the corpus; what `gristmill.data.process.process` does."""
    clock = _Clock()
    key = annotation_key(config, run.seed)
    place = Place.begin(run.scratch, hash_json({"annotations": key, "config": config.model_dump(mode="json")}))
    groups, problems = list_groups(run.inputs["collected"] / "documents")
    previous = reusable(run, key)
    with open_mapper(run.engine, run.workers, len(groups)) as mapper:
        work = Work(config, run, place, mapper)
        annotated = annotate_all(work, groups) if previous is None else reuse_all(work, previous)
        problems += [Problem(*problem) for part in annotated.parts for problem in part.input["problems"]]
        if not len(annotated.files):
            raise _nothing_read(problems)
        clock.lap("annotate")
        mapper.renew()
        verdict = _decide(work, annotated)
        clock.lap("decide")
        mapper.renew()
        clusters = verdict.duplicates.largest(verdict.records)
        counts = write_all(work, annotated, verdict.decided, clusters, verdict.reasons, verdict.cuts)
        keep_models(work, previous)
    report = make_report(
        counts,
        config,
        verdict.mixture,
        order=verdict.reasons,
        rules=verdict.rules,
        near_duplicates=verdict.duplicates.counts,
        problems=[problem._asdict() for problem in problems],
    )
    write_json(run.out / "report.json", report)
    clock.lap("write")
    ways = {"annotation_key": key, "reused_annotations": previous is not None, "models": model_figures(work, previous)}
    return ways | _figures(work, annotated, verdict, clock)


@dataclass(frozen=True)
class _Verdict:
    """All that was decided."""

    reasons: list[str]
    rules: tuple[Rule, ...]
    cuts: str
    domains: list[str]
    records: NDArray[Any]
    decided: NDArray[Any]
    duplicates: Duplicates
    mixture: Mixture


def _decide(work: Work, annotated: Annotated) -> _Verdict:
    config = work.config
    cuts = perplexity_cuts(work, annotated)
    rules = rules_of(config.model_dump_json(), cuts)
    reasons = all_reasons(reasons_of(rules))
    records, domains = judge_all(work, annotated, cuts)
    duplicates = find_equal(work, annotated)
    found = np.where(records["reason"] == NO_REASON, NO_REASON, records["reason"] + 1).astype(np.int16)
    found[duplicates.of >= 0] = 0
    find_similar(work, annotated, duplicates, found == NO_REASON)
    if duplicates.near is not None:
        found[duplicates.near.removed] = len(reasons) - 1
    decided = decide(records, found, duplicates)
    kept = np.flatnonzero(found == NO_REASON)
    if not len(kept):
        most = int(np.argmax(np.bincount(found)))
        raise GristmillError(
            f"no document is left in the corpus; most were removed as {reasons[most]}: see corpus.rules"
        )
    decided["validation"][kept] = choose_validation_hashed(
        *(records[name][kept] for name in ("domain", "work", "document")),
        config.validation_fraction,
        config.min_validation_works,
    )
    train = kept[~decided["validation"][kept]]
    sizes = np.bincount(records["domain"][train], records["bytes"][train], len(domains))
    mixture = settle_mixture({name: int(size) for name, size in zip(domains, sizes, strict=True)}, config.mixture)
    return _Verdict(reasons, rules, cuts, domains, records, decided, duplicates, mixture)


def _nothing_read(problems: list[Problem]) -> GristmillError:
    said = f"{problems[0].where}: {problems[0].what}" if problems else "the table has no rows"
    return GristmillError(f"no document could be read of what was collected ({said}); run stage 'collected' again")


def _figures(work: Work, annotated: Annotated, verdict: _Verdict, clock: _Clock) -> Figures:
    records, decided = verdict.records, verdict.decided
    reasons = np.bincount(decided["reason"] + 1, minlength=len(verdict.reasons) + 1)
    families: dict[str, int] = {}
    for reason, number in zip(verdict.reasons, reasons[1:].tolist(), strict=True):
        if number:
            family = reason.partition(":")[0]
            families[family] = families.get(family, 0) + number
    read = [counts for part in annotated.parts for counts in part.input["read"].values()]
    bytes_in = sum(size for _, size in read)
    kept = decided["reason"] == NO_REASON
    cpu_seconds = work.cpu_seconds + clock.cpu_seconds
    return {
        "documents_in": sum(documents for documents, _ in read),
        "bytes_in": bytes_in,
        "pieces": len(records),
        "documents": int(kept.sum()),
        "bytes": int(records["bytes"][kept].sum()),
        "validation_documents": int(decided["validation"].sum()),
        "removed": dict(sorted(families.items())),
        "compared_pairs": verdict.duplicates.counts.get("pairs_compared", 0),
        "near_duplicate_pairs": verdict.duplicates.counts.get("pairs_similar", 0),
        "seconds": clock.seconds,
        "seconds_by_step": {name: round(seconds, 3) for name, seconds in annotated.seconds.items()},
        "cpu_seconds": round(cpu_seconds, 3),
        "mb_per_cpu_second": round(bytes_in / 1e6 / max(cpu_seconds, 1e-9), 2),
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
