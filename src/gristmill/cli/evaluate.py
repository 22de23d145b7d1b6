"""`gristmill evaluate`: the stage of a run, or benchmarks on any model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import GristmillError
from .common import RunOption, SetOption, run_recipe, stage_log, terminal

if TYPE_CHECKING:
    from ..evaluate.benchmarks.harness import Measured, Settings


class Device(StrEnum):
    """Where the model is read."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Dtype(StrEnum):
    """The type of its weights there."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def evaluate(
    context: typer.Context,
    what: Annotated[
        Path, typer.Argument(metavar="RECIPE|MODEL", help="A recipe or a run; with --tasks a model or a run directory.")
    ],
    run: RunOption = None,
    overrides: SetOption = None,
    tasks: Annotated[
        list[Path] | None,
        typer.Option("--tasks", metavar="FILE|DIR", help="Benchmarks: items, directory, or YAML; repeatable."),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=2, help="First items of each benchmark.")] = None,
    fewshot: Annotated[
        int | None, typer.Option("--fewshot", min=0, help="Solved examples before each question.")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Ask under the model's chat template.")] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Draws the examples.")] = 0,
    device: Annotated[Device, typer.Option("--device", help="auto is cuda where there is a GPU.")] = Device.auto,
    dtype: Annotated[
        Dtype | None, typer.Option("--dtype", help="Of the weights; default float32, bfloat16 on a GPU.")
    ] = None,
    batch_tokens: Annotated[
        int | None, typer.Option("--batch-tokens", min=1, help="Tokens of one forward pass; default by the device.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Write report.json, and NAME.jsonl with every item.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure all models of a run (stage evaluation); with --tasks, one model on benchmarks.

    Example: gristmill evaluate recipes/quickstart.yaml

    Example: gristmill evaluate models/smollm2 --tasks evals/arc_easy.jsonl.gz --limit 200 --json
    """
    if not tasks:
        _refuse(context, "without --tasks", keep={"what", "run", "overrides"})
        if (what / "config.json").is_file():
            raise GristmillError(
                f"{what} is a model, no recipe and no run: name the benchmarks to measure with --tasks"
            )
        run_recipe(what, run, "evaluation", "evaluation", overrides)
        return
    _refuse(context, "with --tasks", keep=set(context.params) - {"run", "overrides"})
    from ..evaluate.benchmarks.harness import Settings, report
    from ..evaluate.benchmarks.table import render

    settings = Settings(limit=limit, num_fewshot=fewshot, chat=chat, seed=seed, batch_tokens=batch_tokens)
    if out is not None:
        _check_writable(out)
    measured: list[Measured] = []
    for one in _measure(what, tasks, settings, device.value, None if dtype is None else dtype.value):
        measured.append(one)
        if out is not None:  # what is finished is kept when the rest is cut
            _write(out, {"model": str(what), **report(measured, settings)}, one)
    result = {"model": str(what), **report(measured, settings)}
    typer.echo(json.dumps(result, indent=2) if as_json else render(result))


def _measure(model: Path, tasks: list[Path], settings: Settings, device: str, dtype: str | None) -> Iterator[Measured]:
    """One benchmark after the other; all of them are read and checked before the weights are."""
    import torch

    from ..evaluate.benchmarks.descriptions import find_benchmarks
    from ..evaluate.benchmarks.harness import measure, prepare
    from ..tokenizer.tokenizer import Tokenizer
    from ..train.device import resolve_device
    from ..weights.families import read_config
    from ..weights.hf_config import CONFIG, read_settings
    from ..weights.load import load_model
    from ..weights.locate import locate_model

    benchmarks = find_benchmarks(tasks)
    directory = locate_model(model)
    tokenizer = Tokenizer.load(directory)
    _, config = read_config(read_settings(directory), directory / CONFIG)
    prepared = [prepare(benchmark, tokenizer, config, settings) for benchmark in benchmarks]
    where = resolve_device(device)
    chosen = dtype or ("bfloat16" if where.type == "cuda" else "float32")
    decoder = load_model(directory, dtype=getattr(torch, chosen), device=where)
    for one in prepared:
        with terminal() as shown:
            (found,) = measure(decoder, tokenizer, [one], settings, _progress(shown))
        yield found


def _progress(shown: Any) -> Any:
    """A bar with rate and time left."""

    def progress(name: str, done: int, total: int, unit: str) -> None:
        logs.setdefault(name, stage_log(name, shown)).progress(done, total, unit)

    logs: dict[str, Any] = {}
    return progress


def _check_writable(out: Path) -> None:
    """GristmillError where nothing could be written once hours of measuring are over."""
    if out.exists() and not out.is_dir():
        raise GristmillError(f"--out {out} is a file; give a directory")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise GristmillError(f"--out {out} cannot be written: {error.strerror}") from None


def _write(out: Path, result: dict[str, Any], last: Measured) -> None:
    from ..artifact import rounded, write_json, write_text

    lines = (json.dumps(rounded(record), ensure_ascii=False) + "\n" for record in last.judged.records)
    write_text(out / f"{last.prepared.benchmark.name}.jsonl", "".join(lines))
    write_json(out / "report.json", result)


def _refuse(context: typer.Context, when: str, keep: set[str]) -> None:
    """GristmillError for an option that was given and has no effect here."""
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        if parameter.name not in keep and source is not None and source.name == "COMMANDLINE":
            raise GristmillError(f"{parameter.opts[0]} has no effect {when}; leave it out")
