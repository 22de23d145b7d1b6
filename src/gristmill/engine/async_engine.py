"""An engine in a thread of its own, shared by the tasks of event loops.

The thread runs steps while there is work and sleeps on a condition while there is none. Other threads never touch the
engine: they leave commands in an inbox, and each step's outputs come back to the loop that asked, one wake-up per loop.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Literal

from .engine import Engine
from .request import Request, StepOutput
from .sampling import RequestError

log = logging.getLogger(__name__)
StepObserver = Callable[[Sequence[StepOutput]], None]


class QueueFull(Exception):
    """The waiting queue is at its limit; the same requests may be sent again later."""


class EngineStopped(Exception):
    """The engine takes no requests any more, or ended before this one did."""


class Generation:
    """The requests of one submission as an asynchronous stream of `(index, StepOutput)`, until all have ended."""

    def __init__(self, owner: AsyncEngine, requests: Sequence[Request]):
        self.requests = requests
        self.loop = asyncio.get_running_loop()
        self._owner = owner
        self._indices = {request.id: index for index, request in enumerate(requests)}
        self._queue: asyncio.Queue[StepOutput] = asyncio.Queue()
        self._unfinished = len(requests)

    async def __aiter__(self) -> AsyncIterator[tuple[int, StepOutput]]:
        while self._unfinished:
            output = await self._queue.get()
            self._unfinished -= output.finish_reason is not None
            yield self._indices[output.request.id], output

    def abort(self) -> None:
        """Give up what has not ended; without effect when all has."""
        if self._unfinished:
            self._owner.abort(self.requests)

    def put(self, output: StepOutput) -> None:
        """Called in this generation's loop."""
        self._queue.put_nowait(output)


class AsyncEngine:
    """Runs an engine in a background thread. `on_step` is called there with each step's outputs, aborts included."""

    def __init__(self, engine: Engine, max_waiting: int, on_step: StepObserver | None = None):
        self.engine = engine
        self.max_waiting = max_waiting
        self._on_step = on_step or (lambda outputs: None)
        self._changed = threading.Condition()  # guards the fields below
        self._inbox: list[tuple[Literal["add", "abort"], Request]] = []
        self._open: dict[int, tuple[Generation, Request]] = {}
        self._stopping = False
        self._step_began: float | None = None
        self._thread = threading.Thread(target=self._run, name="gristmill-engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread after its current step; what is unfinished then ends with EngineStopped."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def submit(self, requests: Sequence[Request]) -> Generation:
        """Queue requests, all or none; called from a running event loop.

        QueueFull when more would wait than `max_waiting`; RequestError when they are more than ever fit.
        """
        capacity = self.engine.config.max_num_seqs + self.max_waiting
        if len(requests) > capacity:
            raise RequestError("prompt", f"{len(requests)} completions in one request; this server takes {capacity}")
        generation = Generation(self, requests)
        with self._changed:
            if self._stopping:
                raise EngineStopped("the server is stopping")
            if len(self._open) + len(requests) > capacity:
                raise QueueFull(f"{len(self._open)} requests are running or waiting; try again later")
            for request in requests:
                self._open[request.id] = (generation, request)
                self._inbox.append(("add", request))
            self._changed.notify_all()
        return generation

    def abort(self, requests: Sequence[Request]) -> None:
        """Give requests up between two steps; those that have ended are left alone."""
        with self._changed:
            self._inbox += [("abort", request) for request in requests]
            self._changed.notify_all()

    def wait_idle(self, timeout: float) -> bool:
        """Block until nothing runs or waits, at most `timeout` seconds; whether that came to be."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._open, timeout)

    @property
    def num_running(self) -> int:
        return len(self.engine.scheduler.running)

    @property
    def num_waiting(self) -> int:
        return max(0, len(self._open) - self.num_running)

    def health(self, stuck_after: float) -> str | None:
        """None when the engine works; else what is wrong: its thread ended, or a step takes over `stuck_after` s."""
        if not self._thread.is_alive():
            return "the engine's thread has ended"
        began = self._step_began
        if began is not None and time.monotonic() - began > stuck_after:
            return f"a step has been running for {time.monotonic() - began:.0f} seconds"
        return None

    def snapshot(self) -> dict[str, Any]:
        """The scheduler's state as JSON values. Read beside the running thread: two rows may be a step apart."""
        engine, scheduler, config = self.engine, self.engine.scheduler, self.engine.config
        return {
            "max_num_seqs": config.max_num_seqs,
            "max_model_len": config.max_model_len,
            "max_num_batched_tokens": config.max_num_batched_tokens,
            "max_waiting": self.max_waiting,
            "steps": self.engine.num_steps,
            "block_size": config.block_size,
            "num_blocks": config.num_blocks,
            "free_blocks": self.engine.blocks.num_free,
            "prefix_hit_tokens": self.engine.blocks.hit_tokens,
            "prefix_query_tokens": self.engine.blocks.query_tokens,
            "acceptance_length": None if engine.speculation is None else engine.speculation.acceptance_length,
            "slots": [_row(request) for request in list(scheduler.running.values())],
            "waiting": [
                {"request": r.id, "prompt_tokens": len(r.prompt_ids)} for r in list(scheduler.waiting.values())
            ],
        }

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._inbox or self._stopping or self.engine.has_work)
                if self._stopping:
                    break
                commands, self._inbox = self._inbox, []
            self._deliver([output for command in commands for output in self._obey(*command)])
            self._step_began = time.monotonic()
            try:
                outputs = self.engine.step()
            except Exception as error:  # beyond what a step answers for: end all requests, keep the thread
                outputs = self._end_all(error)
            self._step_began = None
            self._deliver(outputs)
        self._deliver(self._end_all(EngineStopped("the server stopped before this request was done")))

    def _obey(self, command: Literal["add", "abort"], request: Request) -> list[StepOutput]:
        if command == "add":
            self.engine.add(request)
            return []
        if request.finish_reason is not None:
            return []
        self.engine.abort(request)
        return [StepOutput(request, finish_reason="abort")]

    def _end_all(self, error: Exception) -> list[StepOutput]:
        with self._changed:
            self._inbox.clear()
            requests = [request for _, request in self._open.values()]
        for request in requests:
            self.engine.abort(request)
        return [StepOutput(request, finish_reason="error", error=error) for request in requests]

    def _deliver(self, outputs: Sequence[StepOutput]) -> None:
        if not outputs:
            return
        self._on_step(outputs)
        for error in {id(output.error): output.error for output in outputs}.values():
            if error is not None and not isinstance(error, EngineStopped):
                log.error("requests failed: %s", error, exc_info=error)
        per_loop: dict[asyncio.AbstractEventLoop, list[tuple[Generation, StepOutput]]] = {}
        with self._changed:
            for output in outputs:
                generation, _ = self._open[output.request.id]
                per_loop.setdefault(generation.loop, []).append((generation, output))
                if output.finish_reason is not None:
                    del self._open[output.request.id]
            self._changed.notify_all()
        for loop, batch in per_loop.items():
            try:
                loop.call_soon_threadsafe(_put_all, batch)
            except RuntimeError:  # the loop is closed: nobody waits for these any more
                continue


def _put_all(batch: Sequence[tuple[Generation, StepOutput]]) -> None:
    for generation, output in batch:
        generation.put(output)


def _row(request: Request) -> dict[str, Any]:
    return {
        "slot": request.slot,
        "request": request.id,
        "prompt_tokens": len(request.prompt_ids),
        "generated_tokens": len(request.output_ids),
        "length": request.num_computed,
        "cached": request.num_cached,
        "blocks": list(request.blocks),
        "preemptions": request.num_preemptions,
        "max_tokens": request.params.max_tokens,
    }
