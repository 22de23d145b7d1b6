"""What a question of the planner is made of: typed inputs, the function that answers, and the plots that vary an input.

Nothing here knows a formula: planner_questions.py says which of the planner's public functions answers what.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import GristmillError
from ..model.changes import override
from ..model.config import ModelConfig
from ..model.presets import preset, preset_names
from ..plan.device import device, devices
from ..plan.names import nearest
from ..plan.plot import Plot
from ..plan.quantity import Quantity
from .sections import Section

Kind = Literal["model", "device", "words", "whole", "number", "choice", "flag", "text"]
Inputs = dict[str, Any]

RUN = "run"  # what a form calls the model of the run that the page shows
TRUE, FALSE = ("yes", "true", "on", "1"), ("no", "false", "off", "0", "")
LONGEST = 200  # characters of an input


class InputError(GristmillError):
    """An input that cannot be; `field` is its name, or "" where the message is not about a single one."""

    def __init__(self, field: str, message: str):
        super().__init__(message)
        self.field = field


@dataclass(frozen=True)
class Field:
    """An input of a form. `name` is what the planner's function calls it, and the command's option unless `option` says
    otherwise ("" for one that the command has not); of `words` each is an option of its own. A `default` of None leaves
    it empty: the planner then decides."""

    name: str
    label: str
    help: str
    kind: Kind = "number"
    default: Any = None
    unit: str = ""
    choices: tuple[str, ...] = ()
    least: float | None = None  # the smallest value; None: anything above 0
    most: float | None = None
    option: str | None = None
    empty: str = "default"  # what an empty choice is called
    optional: bool = False  # may be left empty, whatever its default
    stated: bool = False  # in the command even at its default, which is not the command's own

    def read(self, text: str) -> Any:
        """The value that a text means, None where it is empty. InputError says what would be right."""
        text = text.strip()
        if not text and self.kind != "flag":
            if self.default is not None and not self.optional:
                raise InputError(self.name, f"{self.name} is empty; give for example {self.shown(self.default)}")
            return None
        if len(text) > LONGEST:
            raise InputError(self.name, f"{self.name} is longer than {LONGEST} characters")
        if self.kind in ("whole", "number"):
            return self._number(text)
        if self.kind == "flag":
            if text.lower() not in TRUE + FALSE:
                raise InputError(self.name, f"{self.name} is yes or no, not {text!r}")
            return text.lower() in TRUE
        if self.kind == "words":
            return tuple(text.split())
        if self.kind == "choice" and text not in self.choices:
            raise InputError(self.name, f"{self.name} cannot be {text!r}; {nearest(text, self.choices)}")
        return text

    def suggested(self) -> tuple[str, ...]:
        """The values that there are; of a model or device those with a name."""
        return {"model": preset_names, "device": lambda: (*devices(), "here")}.get(self.kind, lambda: self.choices)()

    def shown(self, value: Any) -> str:
        """The value as the form shows it, and as the command takes it."""
        if value is None:
            return ""
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, float):
            return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
        return str(value)

    def _number(self, text: str) -> int | float:
        plain = re.sub(r"(?<=\d)[,_ ](?=\d{3}\b)", "", text)
        try:
            value = float(plain)
        except ValueError:
            raise InputError(self.name, f"{self.name} must be a number, not {text!r}") from None
        if not math.isfinite(value):
            raise InputError(self.name, f"{self.name} must be finite, not {text}")
        if self.kind == "whole" and not value.is_integer():
            raise InputError(self.name, f"{self.name} must be a whole number, not {text}")
        least = 1 if self.least is None and self.kind == "whole" else self.least
        if least is not None and value < least:
            raise InputError(self.name, f"{self.name} must be at least {self.shown(float(least))}, not {text}")
        if least is None and value <= 0:
            raise InputError(self.name, f"{self.name} must be above 0, not {text}")
        if self.most is not None and value > self.most:
            raise InputError(self.name, f"{self.name} must be at most {self.shown(float(self.most))}, not {text}")
        if self.kind == "number":
            return value
        return int(plain) if plain.isdecimal() else int(value)


@dataclass(frozen=True)
class Answer:
    """What a question comes to. `symbols` say what the letters of the formulas are; `sections` are further tables."""

    quantities: tuple[Quantity, ...] = ()
    plots: tuple[Plot, ...] = ()
    sentences: tuple[str, ...] = ()
    sections: tuple[Section, ...] = ()
    symbols: Mapping[str, float] | None = None
    folded: bool = False  # the quantities unfold, group by group: `sections` say the most of it


@dataclass(frozen=True)
class Sweep:
    """A plot of what becomes of an answer's quantities (id -> the curve's name) when the input `field` takes `values`;
    it has those at which there is an answer. `others` are inputs that the curves do not need, and that take time."""

    title: str
    field: str
    values: tuple[float, ...]
    quantities: Mapping[str, str]
    y_name: str
    log_y: bool = True
    others: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Question:
    """One question: a form of `fields` (those of `more` are folded away) and the function that answers. A `slow` one is
    asked by a button, not as its form changes."""

    name: str  # of the command, as in `gristmill plan NAME`
    title: str
    about: str
    fields: tuple[Field, ...]
    answer: Callable[[Inputs], Answer]
    more: tuple[Field, ...] = ()
    sweeps: tuple[Sweep, ...] = ()
    slow: bool = False

    @property
    def all_fields(self) -> tuple[Field, ...]:
        return self.fields + self.more

    def read(self, texts: Mapping[str, str], model_of_run: ModelConfig | None) -> Inputs:
        """The inputs by name, `model` as its shape with the changes made; what is not given has its default. InputError
        names the field."""
        known = [field.name for field in self.all_fields]
        for name in texts:
            if name not in known:
                raise InputError("", f"{self.name} has no input {name!r}; {nearest(name, known)}")
        inputs: Inputs = {}
        for field in self.all_fields:
            value = field.read(texts[field.name]) if field.name in texts else field.default
            try:
                inputs[field.name] = _resolved(field, value, inputs, model_of_run)
            except InputError:
                raise
            except GristmillError as error:
                raise InputError(field.name, str(error)) from None
        return inputs

    def field_of(self, message: str, given: Iterable[str] = ()) -> str:
        """The name of the input that a message of the planner is about, "" where none is found: one that the message
        begins with, else one that it spells with an underscore, else a word that names one of the `given`."""
        found = []
        for field in self.all_fields:
            spelled = {field.name, field.name.replace("_", " "), field.name.replace("_", "-"), (field.option or "")[2:]}
            words = "|".join(map(re.escape, sorted(spelled - {""}, key=len, reverse=True)))
            match = re.search(rf"(?<![\w.])({words})s?(?![\w.])", message, re.IGNORECASE)
            if match and (match.start() <= 2 or "_" in match[1] or field.name in given):
                found.append((match.start() > 2, "_" not in match[1], match.start(), field.name))
        return min(found)[-1] if found else ""


def names(text: str | None) -> tuple[str, ...]:
    """Of `bf16,fp8` each name once."""
    return tuple(dict.fromkeys(name.strip() for name in (text or "").split(",") if name.strip()))


def price_range(text: str | None, field: str) -> tuple[float, float] | None:
    """USD an hour, low and high, of `2.5` or `2,3`; None for none."""
    if text is None:
        return None
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2) or not all(0 < number < math.inf for number in numbers):
        raise InputError(field, f"{field}: expected USD an hour, one price or LOW,HIGH, not {text!r}")
    return numbers[0], numbers[-1]


def _resolved(field: Field, value: Any, inputs: Inputs, model_of_run: ModelConfig | None) -> Any:
    if field.kind == "model" and value is not None:
        if value == RUN and model_of_run is not None:
            return model_of_run
        return preset(value, (RUN,) if model_of_run else ())
    if field.kind == "device" and value is not None:
        device(value)
    if field.name == "set" and value is not None:
        inputs["model"] = override(inputs["model"], value)
    return value
