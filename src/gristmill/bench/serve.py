"""`gristmill bench serve`: what the engine reaches, beside older ways of batching and beside other engines.

All sides get the same ids and lengths, and none stops early. Ours is driven through `Engine` itself, in this process;
a peer runs in a process of its own (serve_peer_run.py). On a CPU the sides take turns, round by round; on a GPU one has
the memory to itself until all its workloads are done, for which a peer is started once. The best round counts, for all
sides alike: the first captures graphs and compiles kernels. Each figure is said as soon as it is there, for what
follows may be cut short.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from gristmill import hardware
from gristmill.engine.config import Batching
from gristmill.engine.engine import Engine
from gristmill.engine.limits import CPU_SEQS, GPU_SEQS
from gristmill.errors import GristmillError

from .model import versions
from .serve_load import Load, Target, engine_of, give_back, target, workload
from .serve_peers import PEERS, Peer, PeerFailed, installed, precision
from .serve_trials import TRIALS, Trial
from .serve_watch import Figures, PeakMemory, Watch, latencies, launches_a_step

LOADS = ("w1", "b1", "b8", "b32", "prefill")
BATCHINGS: tuple[Batching, ...] = ("continuous", "static", "naive")
Say = Callable[[str], None]


@dataclass
class Row:
    """One side of one workload: the figures of its best round by name, and the seconds of all rounds."""

    workload: str
    side: str
    figures: Figures = field(default_factory=dict)
    rounds: list[float] = field(default_factory=list)

    def add(self, seconds: float, figures: Figures) -> None:
        self.rounds.append(round(seconds, 4))
        if seconds <= min(self.rounds) + 1e-4:
            self.figures = {name: value for name, value in figures.items() if value is not None}


@dataclass(frozen=True)
class Settings:
    """What the user asked for, beside the model and the workloads."""

    requests: int | None
    scale: float
    rounds: int
    max_num_seqs: int | None
    batchings: tuple[Batching, ...]
    peers: dict[str, str]  # the Python that has it, by peer


def bench_serve(
    workloads: Sequence[str],
    shape: str | None = None,
    model: Path | None = None,
    requests: int | None = None,
    scale: float = 1.0,
    rounds: int = 2,
    batching: Sequence[str] = (),
    peers: Sequence[str] = (),
    device: str = "auto",
    dtype: str | None = None,
    max_num_seqs: int | None = None,
    peer_python: str | None = None,
    draft_model: Path | None = None,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """The report of `gristmill bench serve`: a row for each side of each workload.

    `workloads` are of LOADS and of TRIALS (serve_trials.py); `shape` is a preset's name for random weights, or `model`
    a directory. `requests` and `scale` shrink a workload: another number of requests, lengths times `scale`.
    `draft_model` guesses in `copy`. `batching`: ways to run the engine, continuous unless given. `peers` are those of
    PEERS, each run by `peer_python` or else by this Python; one that neither can import is named as absent.
    GristmillError for a name, device or type that is not there.
    """
    _check(workloads, batching, peers)
    loads = [workload(name, requests, scale) for name in workloads if name in LOADS]
    trials = [(name, TRIALS[name]) for name in workloads if name in TRIALS]
    longest = max([load.longest for load in loads] + [trial.longest(scale) for _, trial in trials])
    pythons = dict.fromkeys([peer_python or sys.executable, sys.executable])
    named = [side for peer in peers for side in PEERS[peer]]
    found = {side: next((python for python in pythons if installed(side, python)), None) for side in named}
    present = {side: python for side, python in found.items() if python is not None}
    settings = Settings(
        requests, scale, rounds, max_num_seqs, tuple(b for b in BATCHINGS if b in batching) or BATCHINGS[:1], present,
    )  # fmt: skip
    rows: list[Row] = []
    with target(shape, model, device, dtype, longest, draft_model) as served:
        rows += _compare(served, loads, settings, say)
        for name, trial in trials:
            rows += _try(served, name, trial, settings, say)
        return {
            "rows": [asdict(row) for row in rows],
            "model": served.name,
            "parameters": served.model.config.num_parameters,
            "dtype": served.dtype,
            "device": _device_name(served.device),
            "requests": requests,
            "scale": scale,
            "hardware": hardware.describe(),
            "versions": versions("torch", "triton", "transformers"),
            "precision": {side: precision(side, served.dtype) for side in present},
            "absent": [side for side in named if side not in present],
        }


def table(report: dict[str, Any]) -> str:
    """The report as lines of text: for each workload a line a figure, a column a side."""
    lines = [f"{report['model']}, {report['parameters']:,} parameters, {report['dtype']}, {report['device']}"]
    by_workload: dict[str, list[dict[str, Any]]] = {}
    for row in report["rows"]:
        by_workload.setdefault(row["workload"], []).append(row)
    for name, rows in by_workload.items():
        width = max(12, *(len(row["side"]) + 2 for row in rows))
        names = list(dict.fromkeys(figure for row in rows for figure in row["figures"]))
        lines += ["", f"{name:<36}" + "".join(f"{row['side']:>{width}}" for row in rows)]
        for figure in names:
            cells = (_shown(figure, row["figures"].get(figure)) for row in rows)
            lines.append(f"  {figure:<34}" + "".join(f"{cell:>{width}}" for cell in cells))
        if len(rows) > 1 and all(row["rounds"] for row in rows):
            ours = min(rows[0]["rounds"])
            ratios = ["", *(f"{min(row['rounds']) / ours:.2f}x" for row in rows[1:])]
            lines.append(f"  {'we over it':<34}" + "".join(f"{ratio:>{width}}" for ratio in ratios))
    precise = [f"{side}: {kept}" for side, kept in report["precision"].items()]
    return "\n".join([*lines, *precise, *(f"{name} is not installed" for name in report["absent"])])


def _check(workloads: Sequence[str], batching: Sequence[str], peers: Sequence[str]) -> None:
    for option, given, known in (
        ("--workload", workloads, (*LOADS, *TRIALS)),
        ("--batching", batching, BATCHINGS),
        ("--peer", peers, tuple(PEERS)),
    ):
        for name in given:
            if name not in known:
                raise GristmillError(f"{option} {name}: known are {', '.join(known)}")
    if not workloads:
        raise GristmillError("--workload is missing")


def _compare(served: Target, loads: Sequence[Load], settings: Settings, say: Say) -> list[Row]:
    """The workloads on all sides. A peer that fails has no figures, and says why; ours must not."""
    on_cpu = served.device.type == "cpu"
    seqs = settings.max_num_seqs or (CPU_SEQS if on_cpu else GPU_SEQS)
    makers: dict[str, Callable[[Sequence[Load]], Side]] = {}
    for batching in settings.batchings:
        name = "gristmill" if batching == "continuous" else f"gristmill {batching}"
        makers[name] = partial(_Ours, served, seqs, batching)
    for peer, python in settings.peers.items():
        makers[peer] = partial(_Theirs, served, seqs, peer, python)
    rows = {(load.name, name): Row(load.name, name) for load in loads for name in makers}
    for some, names in _together(loads, list(makers), on_cpu):
        with ExitStack() as stack:
            sides: dict[str, Side] = {}
            failed: set[str] = set()
            for load, turn, name in product(some, range(settings.rounds), names):
                if name in failed:
                    continue
                try:
                    if name not in sides:
                        sides[name] = makers[name](some)
                        stack.callback(sides[name].close)
                    _measure(rows[load.name, name], sides[name], load, turn, say)
                except PeerFailed as error:
                    failed.add(name)
                    say(str(error))
        del sides, stack
        give_back(served.device)
    return [row for row in rows.values() if row.rounds]


def _together(loads: Sequence[Load], names: list[str], on_cpu: bool) -> list[tuple[Sequence[Load], list[str]]]:
    """What runs at the same time: on a CPU all sides of a workload, on a GPU all workloads of a side."""
    return [([load], names) for load in loads] if on_cpu else [(loads, [name]) for name in names]


def _measure(row: Row, side: Side, load: Load, turn: int, say: Say) -> None:
    seconds, figures = side.round(load, turn)
    figures = _headline(load, seconds) | figures
    row.add(seconds, figures)
    say(f"{load.name}, {row.side}, round {turn + 1}: {_in_words(figures)}")


def _headline(load: Load, seconds: float) -> Figures:
    """What every side has: the whole time, and rates by it."""
    return {
        "seconds": seconds,
        "output tok/s": None if load.name == "prefill" else load.output_tokens / seconds,
        "ms a step": 1e3 * seconds / load.steps if load.steps else None,
        "prompt tok/s": load.prompt_tokens / seconds if load.name == "prefill" else None,
    }


class _Ours:
    """Our engine as a side."""

    def __init__(self, served: Target, seqs: int, batching: Batching, loads: Sequence[Load]):
        self._served, self._seqs, self._batching = served, seqs, batching
        self._engine: Engine | None = None

    def close(self) -> None:
        self._engine = None

    def round(self, load: Load, turn: int) -> tuple[float, Figures]:
        if turn == 0:
            self.close()
            give_back(self._served.device)
            self._engine = engine_of(
                self._served, max_num_seqs=self._seqs, max_model_len=load.longest, batching=self._batching
            )
        engine = self._engine
        assert engine is not None
        memory = PeakMemory(engine.runner.device)
        watch = Watch(engine)
        for ids, params in zip(load.prompts(engine.vocab_size, turn), load.params(), strict=True):
            watch.add(ids, params)
        seconds = watch.run()
        assert watch.output_tokens == load.output_tokens
        figures: Figures = latencies(watch) | {
            "steps": watch.steps,
            "KV waste": watch.waste,
            "preemptions": watch.preemptions,
            "prefix hit rate": watch.hit_rate,
            "peak memory GB": memory.read() / 1e9,
        }
        if engine.runner.device.type == "cuda" and turn and load.name == "b1":
            figures |= launches_a_step(engine)
        return seconds, figures


class _Theirs:
    """A peer as a side."""

    def __init__(self, served: Target, seqs: int, name: str, python: str, loads: Sequence[Load]):
        most, longest = max(len(load.lengths) for load in loads), max(load.longest for load in loads)
        self._peer = Peer(name, python, served, min(seqs, most), longest)
        self._vocab_size = served.vocab_size

    def close(self) -> None:
        self._peer.close()

    def round(self, load: Load, turn: int) -> tuple[float, Figures]:
        answer = self._peer.run(load, self._vocab_size, turn)
        peak = answer["peak_bytes"]
        return answer["seconds"], {
            "peak memory GB": None if peak is None else peak / 1e9,
            "ready after s": self._peer.ready_seconds,
        }


Side = _Ours | _Theirs


def _try(served: Target, name: str, trial: Trial, settings: Settings, say: Say) -> list[Row]:
    """A workload of serve_trials.py: its variants one after the other."""
    rows = []
    for side, figures in trial.run(served, settings.requests, settings.scale):
        found: Figures = {figure: value for figure, value in figures.items() if value is not None}
        rows.append(Row(name, side, found))
        say(f"{name}, {side}: {_in_words(found)}")
    give_back(served.device)
    return rows


def _in_words(figures: Figures) -> str:
    return "; ".join(f"{name} {_shown(name, value)}" for name, value in figures.items() if value is not None)


def _shown(figure: str, value: float | None) -> str:
    if value is None:
        return "–"
    if "waste" in figure or "rate" in figure or "share" in figure:
        return f"{100 * value:.1f} %"
    if isinstance(value, int) or value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
