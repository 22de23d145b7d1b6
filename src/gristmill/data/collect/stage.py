"""Stage `collected`: texts of all sources as one table of documents, and a report of what was read and what was not.

The input is cut into tasks (`plan.py`), workers do them (`worker.py`), and what they wrote is put in order
(`assemble.py`). Everything here depends on the configuration, the files and the versions of the packages that the texts
come from, never on the machine, its clock or the number of workers.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gristmill.artifact import Figures, StageRun, write_json
from gristmill.errors import GristmillError

from ..config import CollectConfig
from ..engines import open_mapper
from ..pool import Mapper
from .assemble import assemble
from .inputs import package_versions
from .pagetext import check_engine
from .plan import Plan, Task, file_lists, make_plans, most_tasks
from .tally import PROBLEMS, Tally
from .worker import read_progress

WARC = "web.warc.gz"
REPORT = "report.json"
LOOK_SECONDS = 1.0
WAITING_LOOKED_AT = 256  # tasks are begun in their order: behind so many that were not, none was
_TARGET, _PRELOAD = "gristmill.data.collect.worker:collect_task", "gristmill.data.collect.worker:load"


def collect_documents(config: CollectConfig, run: StageRun) -> Figures:
    """Write `documents/`, `report.json` and, with the web source, `web.warc.gz`."""
    package_versions(config)  # one that is missing shows before any work
    for source in config.paths:
        check_engine(source.html)
    started = time.perf_counter()
    tally = Tally()
    files = file_lists(config, tally)
    figures: Figures = {"documents": 0, "bytes": 0, "problems": 0}
    cpu_seconds = 0.0
    with open_mapper(run.engine, run.workers, most_tasks(config, files), _PRELOAD) as mapper:
        plans = make_plans(config, files, run.out / WARC, run.scratch / "tasks", mapper)
        with _progress(run, [task for plan in plans for task in plan.tasks]):
            _consume(mapper(_TARGET, [task for plan in plans if not plan.is_cut for task in plan.tasks]))
            kept = [(plan, task) for plan in plans for task in _kept_tasks(plan, mapper)]
        for plan, task in kept:
            progress = _finished(task)
            found = Tally.from_json(progress["tally"])
            found.input_bytes = task["bytes"]
            tally.add(found)
            cpu_seconds += progress["seconds"]
            for figure, value in (("documents", found.documents), ("bytes", found.bytes)):
                figures[f"{plan.name}_{figure}"] = figures.get(f"{plan.name}_{figure}", 0) + value
        if not tally.documents:
            raise GristmillError(_nothing(tally))
        written = 0
        finished = [Path(task["out"]) for _, task in kept]
        for rows in assemble(finished, run.out / "documents", run.scratch / "parts", mapper, tally):
            written += rows
            run.log.progress(written, tally.documents, "documents written")
    write_json(run.out / REPORT, tally.report())
    return figures | {
        "documents": tally.documents,
        "bytes": tally.bytes,
        "problems": sum(count for count, _ in tally.problems.values()),
        "seconds": round(time.perf_counter() - started, 3),
        "mb_per_cpu_second": round(tally.bytes / 1e6 / max(cpu_seconds, 1e-9), 2),
    }


def _kept_tasks(plan: Plan, mapper: Mapper) -> Iterator[Task]:
    """The tasks of a plan that its documents come from. Where only the first documents are kept, the tasks are done
    here, until there are enough; the last one is done again for the documents that lack."""
    if not plan.is_cut:
        yield from plan.tasks
        return
    assert plan.max_documents is not None
    lacking = plan.max_documents
    results: Any = mapper(_TARGET, plan.tasks)
    for task, _ in zip(plan.tasks, results, strict=False):
        found = Tally.from_json(_finished(task)["tally"]).documents
        if found > lacking:
            task = task | {"out": f"{task['out']}-cut", "limit": lacking}
            results.close()
            _consume(mapper(_TARGET, [task]))
        yield task
        lacking -= min(found, lacking)
        if not lacking:
            results.close()
            return


def _finished(task: Task) -> dict[str, Any]:
    progress = read_progress(Path(task["out"]))
    assert progress is not None
    assert progress["done"]
    return progress


def _consume(results: Iterable[Any]) -> None:
    for _ in results:
        pass


@contextmanager
def _progress(run: StageRun, tasks: list[Task]) -> Iterator[None]:
    """Tells the run's log how much of the input was read, by what the tasks note down, while the block lasts."""
    total = sum(task["bytes"] for task in tasks)
    stop = threading.Event()
    finished: dict[str, int] = {}

    def look() -> None:
        while not stop.wait(LOOK_SECONDS):
            done, waiting = sum(finished.values()), 0
            for task in tasks:
                if task["out"] in finished:
                    continue
                progress = read_progress(Path(task["out"]))
                if progress is not None and progress["done"]:
                    finished[task["out"]] = task["bytes"]
                done += 0 if progress is None else task["bytes"] if progress["done"] else progress["read_bytes"]
                waiting += progress is None
                if waiting > WAITING_LOOKED_AT:
                    break
            _tell(run, len(finished), len(tasks), done, total)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()
    _tell(run, len(tasks), len(tasks), total, total)


def _tell(run: StageRun, finished: int, tasks: int, done: int, total: int) -> None:
    if total:
        run.log.progress(round(done / 1e6, 1), round(total / 1e6, 1), "MB read")
    else:
        run.log.progress(finished, tasks, "sources read")


def _nothing(tally: Tally) -> str:
    """Why no document was found, in the words of a user's mistake."""
    words = [f"{count} x {PROBLEMS[kind]} ({names[0]})" for kind, (count, names) in sorted(tally.problems.items())]
    left_out = [f"{count} x {kind}" for kind, count in sorted(tally.passed_over.items())]
    if not words and not left_out:
        return "nothing was collected: the enabled sources hold no text; look at `collected` in the recipe"
    if not words:
        return f"nothing was collected, all was passed over: {', '.join(left_out)}; look at `collected` in the recipe"
    return f"nothing was collected, every input was bad: {'; '.join(words)}"
