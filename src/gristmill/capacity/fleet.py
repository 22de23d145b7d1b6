"""A fleet under traffic: requests are routed to replicas, whose number follows the load if it may.

A simulation of discrete events in the order of time: arrivals, turns of replicas (replica.py), looks of the autoscaler,
replicas that have come up. The same arrivals and settings give the same result.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from ..engine.config import EngineConfig
from ..errors import GristmillError
from .replica import Replica, Seconds, Served
from .traffic import Arrival

Router = Literal["least-loaded", "round-robin", "prefix"]
# What happens at the same moment happens in this order.
ARRIVAL, UP, LOOK, TURN = range(4)


@dataclass(frozen=True)
class Autoscaling:
    """Every `look_seconds` so many replicas are wanted that each has about `target` requests, at least `least` and at
    most `most`. More are started at once and serve `start_seconds` later; a replica is let go when fewer have been
    wanted for `cooldown_seconds`, and ends what it has begun (it is paid for until then, beside `most` others). With
    `least` 0 an idle fleet costs nothing, and requests that come to it are held until a replica is up.
    """

    target: float
    least: int = 1
    most: int = 64
    look_seconds: float = 15.0
    start_seconds: float = 60.0
    cooldown_seconds: float = 300.0

    def check(self) -> None:
        """GristmillError for what cannot be."""
        if not 0 < self.target < math.inf:
            raise GristmillError(f"target must be a number of requests above 0, not {self.target:g}")
        if not 0 <= self.least <= self.most or self.most < 1:
            raise GristmillError(f"replicas go from {self.least} to {self.most}: give 0 or more, then 1 or more")
        for name in ("look_seconds", "start_seconds", "cooldown_seconds"):
            value = getattr(self, name)
            if not 0 <= value < math.inf or (name == "look_seconds" and value == 0):
                least = "above 0" if name == "look_seconds" else "0 or more"
                raise GristmillError(f"{name} must be {least} and finite, not {value:g}")


@dataclass(frozen=True)
class FleetSettings:
    """`replicas` engines of one kind. `overhead_seconds` pass before a request reaches one: network, parsing, tokens.
    `read_seconds`: from a step's end until its tokens are handed out. `autoscaling`: `replicas` is then the number at
    the beginning."""

    replicas: int = 1
    router: Router = "least-loaded"
    overhead_seconds: float = 0.0
    read_seconds: float = 0.0
    autoscaling: Autoscaling | None = None

    def check(self) -> None:
        """GristmillError for what cannot be."""
        if self.router not in get_args(Router):
            raise GristmillError(f"router {self.router!r} is not known; known are {', '.join(get_args(Router))}")
        for name in ("overhead_seconds", "read_seconds"):
            if not 0 <= getattr(self, name) < math.inf:
                raise GristmillError(f"{name} must be 0 or more, not {getattr(self, name):g}")
        if self.autoscaling is not None:
            self.autoscaling.check()
        if self.replicas < (1 if self.autoscaling is None else 0):
            raise GristmillError(f"replicas must be at least 1, not {self.replicas}")


@dataclass
class Result:
    """`served` in the order of arrival; `replicas_over_time`: (seconds, replicas that are paid for) at each change."""

    served: list[Served]
    seconds: float  # until the last token
    replica_seconds: float  # paid for
    busy_seconds: float
    steps: int
    preemptions: int
    peak_cache_usage: float
    hit_tokens: int
    query_tokens: int
    replicas_over_time: list[tuple[float, int]] = field(default_factory=list)


def simulate(
    arrivals: Sequence[Arrival], config: EngineConfig, seconds: Seconds, settings: FleetSettings = FleetSettings()
) -> Result:
    """Serve all arrivals (sorted by time). `config` is each replica's engine, `seconds` what a step of it takes.
    GristmillError where a request is longer than an engine takes."""
    settings.check()
    if not arrivals:
        raise GristmillError("there is no request to serve")
    for arrival in arrivals:
        if arrival.prompt_tokens + arrival.output_tokens > config.max_model_len:
            raise GristmillError(
                f"a request of {arrival.prompt_tokens} + {arrival.output_tokens} tokens is longer than the context of "
                f"{config.max_model_len} that the engine is given"
            )
    return _Fleet(config, seconds, settings).run(arrivals)


class _Fleet:
    def __init__(self, config: EngineConfig, seconds: Seconds, settings: FleetSettings):
        self.config, self.seconds, self.settings = config, seconds, settings
        self._events: list[tuple[float, int, int, int]] = []  # time, kind, order, number of the replica or arrival
        self._order = itertools.count()
        self._replicas: list[Replica] = []
        self._up: list[Replica] = []  # take requests
        self._starting: dict[int, Replica] = {}
        self._leaving: set[int] = set()
        self._held: deque[Served] = deque()  # while no replica is up
        self._turning: set[int] = set()  # replicas whose next turn is among the events
        self._next = 0  # of round robin
        self._wanted: deque[tuple[float, int]] = deque()  # looks of the last `cooldown_seconds`
        self._paid: dict[int, float] = {}  # since when, by replica
        self._paid_seconds = 0.0
        self._history: list[tuple[float, int]] = []

    def run(self, arrivals: Sequence[Arrival]) -> Result:
        scaling = self.settings.autoscaling
        for _ in range(self.settings.replicas):
            self._up.append(self._new(0.0))
        served = [Served(arrival) for arrival in arrivals]
        unfinished, now = len(served), 0.0
        for number, arrival in enumerate(arrivals):
            self._at(arrival.seconds + self.settings.overhead_seconds, ARRIVAL, number)
        if scaling is not None:
            self._at(0.0, LOOK, 0)
        while unfinished:
            now, kind, _, number = heapq.heappop(self._events)
            if kind == ARRIVAL:
                self._route(served[number], now)
            elif kind == TURN:
                unfinished -= self._turn(self._replicas[number], now)
            elif kind == UP:
                self._came_up(number, now)
            elif scaling is not None:
                self._look(scaling, now)
                self._at(now + scaling.look_seconds, LOOK, 0)
        for number in list(self._paid):
            self._stop_paying(number, now)
        return Result(
            served,
            now,
            self._paid_seconds,
            sum(replica.busy_seconds for replica in self._replicas),
            sum(replica.steps for replica in self._replicas),
            sum(replica.preemptions for replica in self._replicas),
            max((replica.peak_usage for replica in self._replicas), default=0.0),
            sum(replica.pool.hit_tokens for replica in self._replicas),
            sum(replica.pool.query_tokens for replica in self._replicas),
            self._history,
        )

    def _at(self, when: float, kind: int, number: int) -> None:
        heapq.heappush(self._events, (when, kind, next(self._order), number))

    def _turn(self, replica: Replica, now: float) -> int:
        """Requests that ended."""
        self._turning.discard(replica.number)
        when, ended = replica.turn(now)
        if when is not None:
            self._turning.add(replica.number)
            self._at(when, TURN, replica.number)
        elif replica.number in self._leaving and replica.idle:
            self._leaving.discard(replica.number)
            self._stop_paying(replica.number, now)
        return len(ended)

    # Who gets a request.

    def _route(self, served: Served, now: float) -> None:
        if not self._up:
            self._held.append(served)
            scaling = self.settings.autoscaling
            if scaling is not None and not self._starting:  # nothing is awaited: the request itself wakes a replica
                self._start(scaling, now)
            return
        replica = self._chosen(served.arrival)
        replica.inbox.append(served)
        if replica.number not in self._turning:
            self._turning.add(replica.number)
            self._at(now, TURN, replica.number)

    def _chosen(self, arrival: Arrival) -> Replica:
        if self.settings.router == "round-robin":
            self._next = (self._next + 1) % len(self._up)
            return self._up[self._next]
        least = min(self._up, key=lambda replica: (replica.load, replica.number))
        if self.settings.router == "prefix" and arrival.prefix_group is not None:
            home = self._up[arrival.prefix_group % len(self._up)]
            if home.load <= 2 * least.load + 4:  # its cache is worth some waiting, not any
                return home
        return least

    # How many there are.

    def _new(self, now: float) -> Replica:
        replica = Replica(len(self._replicas), self.config, self.seconds, self.settings.read_seconds)
        self._replicas.append(replica)
        self._paid[replica.number] = now
        self._note(now)
        return replica

    def _start(self, scaling: Autoscaling, now: float) -> None:
        replica = self._new(now)
        self._starting[replica.number] = replica
        self._at(now + scaling.start_seconds, UP, replica.number)

    def _came_up(self, number: int, now: float) -> None:
        replica = self._starting.pop(number, None)
        if replica is None:  # it was not wanted any more
            return
        self._up.append(replica)
        held, self._held = self._held, deque()
        for served in held:
            self._route(served, now)

    def _look(self, scaling: Autoscaling, now: float) -> None:
        load = len(self._held) + sum(replica.load for replica in self._up)
        wanted = min(max(math.ceil(load / scaling.target), scaling.least), scaling.most)
        self._wanted.append((now, wanted))
        while self._wanted[0][0] < now - scaling.cooldown_seconds:
            self._wanted.popleft()
        there = len(self._up) + len(self._starting)
        for _ in range(wanted - there):
            self._start(scaling, now)
        # Fewer only once fewer have been wanted all the while.
        for _ in range(there - max(most for _, most in self._wanted)):
            self._let_one_go(now)

    def _let_one_go(self, now: float) -> None:
        if self._starting:
            number = max(self._starting)
            del self._starting[number]
            self._stop_paying(number, now)
            return
        replica = min(self._up, key=lambda replica: (replica.load, -replica.number))
        self._up.remove(replica)
        if replica.idle:
            self._stop_paying(replica.number, now)
        else:
            self._leaving.add(replica.number)

    def _stop_paying(self, number: int, now: float) -> None:
        self._paid_seconds += now - self._paid.pop(number)
        self._note(now)

    def _note(self, now: float) -> None:
        if self._history and self._history[-1][0] == now:
            self._history.pop()
        self._history.append((now, len(self._paid)))
