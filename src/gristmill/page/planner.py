"""The planner of the page: its forms as data, and the answer to one of them as sections of a panel.

The figures come from the functions that `gristmill plan` calls; `Question` (planner_form.py) says how one is asked.
"""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TookTooLong
from dataclasses import replace
from functools import cache
from typing import Any

from ..errors import GristmillError
from ..model.config import ModelConfig
from ..plan.model import whole_shape
from ..plan.plot import Curve, Plot
from ..plan.quantity import Quantity
from .files import Run
from .panel_model import model_config
from .planner_form import RUN, Answer, Field, InputError, Inputs, Question, Sweep
from .planner_questions import QUESTIONS
from .sections import Section, lines

TIME_LIMIT_SECONDS = 60.0
SPELLED = {"flops": "FLOPs", "zero": "ZeRO", "mtoken": "Mtoken"}
SPELLED |= {word: word.upper() for word in ("kv", "ttft", "tpot", "mha", "usd", "api", "mtbf")}

_simulating = threading.Lock()


def forms(run: Run | None) -> dict[str, Any]:
    """Every question with its form. Where the run's shape is known, its model is what the forms begin with."""
    model = _run_model(run)
    named = run.directory.resolve().name if run and model else None
    return {"run": named, "questions": [_form(_of_run(question, model, named)) for question in QUESTIONS.values()]}


def ask(name: str, texts: Mapping[str, str], run: Run | None) -> dict[str, Any]:
    """The answer to one question as sections, with the command that prints the same. InputError names the input at
    fault; KeyError for a question that there is not."""
    started = time.perf_counter()
    model = _run_model(run)
    question = _of_run(QUESTIONS[name], model, "the run")
    inputs = question.read(texts, model)
    try:
        answer = _within_time(question, inputs) if question.slow else question.answer(inputs)
        plots = [*answer.plots, *_sweeps(question, inputs)]
    except GristmillError as error:
        field = error.field if isinstance(error, InputError) else question.field_of(str(error), texts)
        raise InputError(field, str(error)) from None
    return {
        "question": name,
        "command": _command(question, texts, run),
        "sentences": list(answer.sentences),
        "sections": _sections(answer, plots),
        "seconds": time.perf_counter() - started,
    }


def _run_model(run: Run | None) -> ModelConfig | None:
    return whole_shape(model_config(run)) if run else None


def _of_run(question: Question, model: ModelConfig | None, named: str | None) -> Question:
    """The question as a run's page begins with it: its own model, and requests no longer than that takes."""
    if model is None:
        return question
    longest = {"prompt_tokens": model.max_seq_len // 2, "output_tokens": model.max_seq_len // 4}

    def fitted(field: Field) -> Field:
        if field.kind == "model":
            return replace(field, default=RUN, help=f"The model of {named} ({RUN}), or a preset's name.")
        if field.name in longest and field.default > longest[field.name]:
            return replace(field, default=max(longest[field.name], 1), stated=True)
        return field

    return replace(question, fields=tuple(map(fitted, question.fields)), more=tuple(map(fitted, question.more)))


def _form(question: Question) -> dict[str, Any]:
    inputs = [
        {
            "name": field.name,
            "label": field.label,
            "help": field.help,
            "kind": field.kind,
            "unit": field.unit,
            "default": field.shown(field.default),
            "choices": [*([RUN] if field.default == RUN else []), *field.suggested()],
            "empty": field.empty,
            "folded": field in question.more,
        }
        for field in question.all_fields
    ]
    return {
        "name": question.name,
        "title": question.title,
        "about": question.about,
        "slow": question.slow,
        "fields": inputs,
    }


def _within_time(question: Question, inputs: Inputs) -> Answer:
    """The answer of a simulation, made in a thread of its own, one at a time; given up after a while."""
    if not _simulating.acquire(blocking=False):
        raise InputError("", "another simulation is going on here; ask again when it is done")
    future: Future[Answer] = Future()

    def work() -> None:
        try:
            answer = question.answer(inputs)
        except Exception as error:
            _simulating.release()
            future.set_exception(error)
        else:
            _simulating.release()
            future.set_result(answer)

    threading.Thread(target=work, name="simulation", daemon=True).start()  # Ctrl-C does not wait for it
    try:
        return future.result(TIME_LIMIT_SECONDS)
    except TookTooLong:
        raise InputError(
            "", f"the simulation has taken {TIME_LIMIT_SECONDS:g} s and is not waited for; ask for fewer requests"
        ) from None


def _sweeps(question: Question, inputs: Inputs) -> list[Plot]:
    """The answer's quantities over one input, at the values at which there is an answer, and at what was asked."""

    @cache
    def at(field: str, value: float, others: tuple[tuple[str, Any], ...]) -> dict[str, Quantity]:
        try:
            answer = question.answer(inputs | dict(others) | {field: value})
        except GristmillError:
            return {}
        return {quantity.id: quantity for quantity in answer.quantities}

    plots = []
    for sweep in question.sweeps:
        asked = inputs[sweep.field]
        values = sorted({*sweep.values, *([asked] if asked else [])})
        found = [(value, at(sweep.field, value, sweep.others)) for value in values]
        plots.append(_plot(question, sweep, asked, found))
    return [plot for plot in plots if plot]


def _plot(
    question: Question, sweep: Sweep, asked: float | None, found: list[tuple[float, dict[str, Quantity]]]
) -> Plot | None:
    curves, unit = [], "1"
    for id, name in sweep.quantities.items():
        points = [(x, quantities[id].value) for x, quantities in found if id in quantities]
        if len(points) > 1:
            unit = next(quantities[id].unit for _, quantities in found if id in quantities)
            curves.append(Curve(name, tuple(x for x, _ in points), tuple(y for _, y in points)))
    if not curves:
        return None
    first = dict(zip(curves[0].x, curves[0].y, strict=True))
    if asked in first:
        curves.append(Curve("as asked", (asked,), (first[asked],), kind="points"))
    field = next(field for field in question.all_fields if field.name == sweep.field)
    id = f"{question.name}-{sweep.field}-{len(sweep.quantities)}"
    return Plot(id, sweep.title, field.label.lower(), field.unit, sweep.y_name, unit, tuple(curves), True,
                sweep.log_y)  # fmt: skip


def _command(question: Question, given: Mapping[str, str], run: Run | None) -> str:
    words = ["gristmill", "plan", question.name]
    for field in question.all_fields:
        text = given.get(field.name, field.shown(field.default)).strip()
        if field.option == "":
            if field.kind == "model":
                words.append(str(run.directory) if run and text == RUN else text)
            continue
        option = field.option or f"--{field.name.replace('_', '-')}"
        if field.kind == "flag":
            chosen = field.read(text)
            words += [] if chosen == field.default else [option if chosen else f"--no-{option[2:]}"]
        elif field.kind == "words":
            words += [word for item in text.split() for word in (option, item)]
        elif text and (field.stated or text != field.shown(field.default)):
            words += [option, field.shown(field.read(text))]
    return shlex.join(words)


def _sections(answer: Answer, plots: list[Plot]) -> list[Section]:
    """Quantities grouped by the first part of their ids, the plots, tables, and what the formulas' letters mean."""
    groups: dict[str, list[Quantity]] = {}
    for quantity in answer.quantities:
        groups.setdefault(quantity.id.partition(".")[0], []).append(quantity)
    drawn: list[Section] = []
    if plots:
        drawn = [{"id": "plots", "kind": "plots", "title": "Plots", "plots": [plot.as_json() for plot in plots]}]
    meaning = [f"{symbol} = {_number(value)}" for symbol, value in (answer.symbols or {}).items()]
    return [
        *answer.sections,
        *(_group(name, quantities, answer.folded) for name, quantities in groups.items()),
        *drawn,
        *([lines("symbols", "Letters of the formulas", meaning)] if meaning else []),
    ]


def _group(name: str, quantities: list[Quantity], folded: bool) -> Section:
    items = []
    for quantity in quantities:
        value, _, second = quantity.shown().partition(" = ")
        second = "" if second == value else second
        words = quantity.id.partition(".")[2] or quantity.id
        items.append({**quantity.as_json(), "name": _words(words), "shown": value, "second": second})
    title = name if ":" in name else _capital(_words(name))
    return {"id": f"quantities-{name}", "kind": "quantities", "title": title, "items": items, "folded": folded}


def _words(id: str) -> str:
    """An id as people read it: `tokens_per_s` as tokens/s, abbreviations as they are spelled."""
    parts = (" ".join(SPELLED.get(word, word) for word in part.split("_")) for part in id.split("."))
    return ", ".join(parts).replace(" per s", "/s")


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.6g}"
