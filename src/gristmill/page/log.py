"""Follows a growing event log without reading it again: what the snapshot and the event stream stand on."""

from __future__ import annotations

import json
from pathlib import Path

from ..events import Event


class LogTail:
    """Reads the events that were appended to a log since the last `read`.

    Only whole lines are taken: a line that is being written, or was torn by a crash, is left until it is whole or cut
    off. A log that was replaced or emptied is read from its start again, and `restarts` counts that.
    """

    def __init__(self, path: Path):
        self.path = path
        self.restarts = 0
        self.last_seq = 0
        self._offset = 0
        self._inode: int | None = None

    def read(self) -> list[Event]:
        """The new events in order; empty when there is nothing new or no log yet."""
        try:
            stat = self.path.stat()
            if self._inode is not None and (stat.st_ino != self._inode or stat.st_size < self._offset):
                self._restart()
            self._inode = stat.st_ino
            if stat.st_size == self._offset:
                return []
            data = self._rest()
        except OSError:
            return []
        events = parse_lines(data)
        if events and events[0]["seq"] <= self.last_seq:  # another log of the same size or longer took its place
            self._restart()
            events = parse_lines(self._rest())
        if events:
            self.last_seq = events[-1]["seq"]
        return events

    def _restart(self) -> None:
        self.restarts += 1
        self.last_seq = 0
        self._offset = 0

    def _rest(self) -> bytes:
        """The whole lines after what was read."""
        with open(self.path, "rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return whole


def parse_lines(data: bytes) -> list[Event]:
    """The events among JSON lines; a line that is no event (two writers, a torn write) is left out."""
    events = []
    for line in data.splitlines():
        try:
            event = loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and isinstance(event.get("seq"), int) and isinstance(event.get("type"), str):
            events.append(event)
    return events


def loads(text: str | bytes) -> object:
    """JSON as Python writes it: NaN and the infinities, which JSON does not know, become None."""
    return json.loads(text, parse_constant=lambda _: None)
