"""What the server counts, in Prometheus' text format, under vLLM's metric names so that its dashboards work.

The engine only stamps times on requests; all adding up happens here. Written out rather than imported: counters and
histograms that are never removed, of one process, are a page of code, and prometheus-client is one more package.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

from ..engine.request import StepOutput

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FINISHED_REASONS = ("stop", "length", "abort", "error")
SECONDS = [round(base * 10.0**exponent, 6) for exponent in range(-3, 3) for base in (1, 2.5, 5)]  # 1 ms to 500 s


class Histogram:
    """Counts of observations up to each bound, and their sum."""

    def __init__(self, bounds: Sequence[float]):
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)  # the last is beyond all bounds
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Metrics:
    """The server's counters. `observe` is called by the engine's thread, `render` by the server's."""

    def __init__(self, model_name: str):
        escaped = model_name.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
        self._model = f'model_name="{escaped}"'
        self._lock = threading.Lock()
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.finished = dict.fromkeys(FINISHED_REASONS, 0)
        self.rejected = 0
        self.request_queue_time = Histogram(SECONDS)
        self.time_to_first_token = Histogram(SECONDS)
        self.inter_token_latency = Histogram(SECONDS)
        self.e2e_request_latency = Histogram(SECONDS)

    def observe(self, outputs: Iterable[StepOutput]) -> None:
        """Count what a step gave."""
        with self._lock:
            for output in outputs:
                request = output.request
                if output.new_token_ids and request.token_times is not None:
                    now, before = request.token_times
                    first = len(request.output_ids) == 1
                    self.generation_tokens += 1
                    if first and request.scheduled is not None:
                        self.prompt_tokens += len(request.prompt_ids)
                        self.request_queue_time.observe(request.scheduled - request.arrived)
                    (self.time_to_first_token if first else self.inter_token_latency).observe(now - before)
                    if output.finish_reason is not None:
                        self.e2e_request_latency.observe(now - request.arrived)
                if output.finish_reason is not None:
                    self.finished[output.finish_reason] += 1

    def reject(self) -> None:
        """Count a request that found the queue full."""
        with self._lock:
            self.rejected += 1

    def render(self, num_running: int, num_waiting: int, cache_usage: float) -> str:
        """The exposition; gauges come from the caller, who looks at the engine now."""
        with self._lock:
            return "".join(self._lines(num_running, num_waiting, cache_usage))

    def _lines(self, num_running: int, num_waiting: int, cache_usage: float) -> Iterator[str]:
        yield from self._single("num_requests_running", "gauge", "Requests in the batch.", num_running)
        yield from self._single("num_requests_waiting", "gauge", "Requests that wait for a slot.", num_waiting)
        yield from self._single("kv_cache_usage_perc", "gauge", "Filled share of the cache, 0 to 1.", cache_usage)
        yield from self._single("prompt_tokens_total", "counter", "Prompt tokens processed.", self.prompt_tokens)
        yield from self._single("generation_tokens_total", "counter", "Tokens generated.", self.generation_tokens)
        yield from self._single("admission_rejections_total", "counter", "Requests answered 429.", self.rejected)
        yield _head("request_success_total", "counter", "Requests that ended, by reason.")
        for reason, count in self.finished.items():
            yield f'vllm:request_success_total{{{self._model},finished_reason="{reason}"}} {count}\n'
        yield from self._histogram("request_queue_time_seconds", "Arrival to first step.", self.request_queue_time)
        yield from self._histogram("time_to_first_token_seconds", "Arrival to first token.", self.time_to_first_token)
        yield from self._histogram("inter_token_latency_seconds", "Token to next token.", self.inter_token_latency)
        yield from self._histogram("e2e_request_latency_seconds", "Arrival to last token.", self.e2e_request_latency)

    def _single(self, name: str, kind: str, help: str, value: float) -> Iterator[str]:
        yield _head(name, kind, help)
        yield f"vllm:{name}{{{self._model}}} {value}\n"

    def _histogram(self, name: str, help: str, histogram: Histogram) -> Iterator[str]:
        yield _head(name, "histogram", help)
        total = 0
        for bound, count in zip([*map(repr, histogram.bounds), "+Inf"], histogram.counts, strict=True):
            total += count
            yield f'vllm:{name}_bucket{{{self._model},le="{bound}"}} {total}\n'
        yield f"vllm:{name}_sum{{{self._model}}} {histogram.sum}\n"
        yield f"vllm:{name}_count{{{self._model}}} {total}\n"


def _head(name: str, kind: str, help: str) -> str:
    return f"# HELP vllm:{name} {help}\n# TYPE vllm:{name} {kind}\n"
