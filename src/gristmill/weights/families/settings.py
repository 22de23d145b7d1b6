"""`config.json` in the hands of a family that reads it: every value it cannot compute is refused by its key."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from ...errors import GristmillError
from ..json_files import short

MOST_LAYERS = 10_000
MOST = 2**31 - 1  # of any size: torch counts a tensor's values, products of sizes, in 63 bits
MOST_NUMBER = sys.float_info.max


class Settings:
    """The keys of `config.json`, or of an object inside it.

    `seen` collects the keys that were asked for, so that a test can tell which ones a family overlooks.
    """

    def __init__(self, values: Mapping[str, Any], path: Path, inside: str = "", seen: set[str] | None = None):
        self.values = values
        self.path = path
        self.inside = inside
        self.seen: set[str] = set() if seen is None else seen

    def has(self, key: str) -> bool:
        """Whether the key is there and not null."""
        self.seen.add(self.inside + key)
        return self.values.get(key) is not None

    def get(self, key: str, default: Any = None) -> Any:
        """The value as it stands, null included; `default` where the key is absent."""
        self.seen.add(self.inside + key)
        return self.values.get(key, default)

    def filled(self, key: str, default: Any) -> Any:
        """The value, or `default` where the key is absent or null."""
        return self.values[key] if self.has(key) else default

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number above 0 and below 2**31."""
        value = self.filled(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self.refuse(key, "a whole number above 0")
        if value > MOST:
            self.refuse(key, f"at most {MOST}")
        return value

    def layers(self, key: str, default: int | None = None) -> int:
        """A number of layers. Tables with a row for each are made from it, so it has a limit."""
        number = self.integer(key, default)
        if number > MOST_LAYERS:
            self.refuse(key, f"at most {MOST_LAYERS}")
        return number

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number."""
        value = self.filled(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.refuse(key, "a number")
        if not abs(value) <= MOST_NUMBER:  # which NaN is not either
            self.refuse(key, "a finite number")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.filled(key, default)
        if not isinstance(value, bool):
            self.refuse(key, "true or false")
        return value

    def choice(self, key: str, choices: Mapping[str, Any], default: str) -> Any:
        """What `choices` holds for the value, which must be one of its keys."""
        value = self.filled(key, default)
        if not isinstance(value, str) or value not in choices:
            self.refuse(key, " or ".join(repr(choice) for choice in choices))
        return choices[value]

    def only(self, key: str, value: Any) -> None:
        """Refuse anything but `value`, which is also what an absent key means."""
        if self.get(key, value) != value:
            self.refuse(key, f"only {value!r}")

    def nested(self, key: str) -> Settings | None:
        """The object under a key; None where it is absent, null or empty."""
        value = self.get(key)
        if value is not None and not isinstance(value, dict):
            self.refuse(key, "an object")
        return Settings(value, self.path, f"{self.inside}{key}.", self.seen) if value else None

    def refuse(self, key: str, supported: str) -> NoReturn:
        value = self.values.get(key)
        if key not in self.values:
            raise GristmillError(f"{self.path}: {self.inside}{key} is missing; it must be {supported}")
        raise GristmillError(
            f"{self.path}: {self.inside}{key} = {short(value)} is not supported; it must be {supported}"
        )
