"""`gristmill plan`: what a model costs, before it is built."""

from __future__ import annotations

import difflib
import json
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, get_args

import typer
import yaml
from pydantic import BaseModel, ValidationError

from ..errors import GristmillError
from .common import plain_words

if TYPE_CHECKING:
    from ..model.config import ModelConfig
    from ..plan.quantity import Quantity

plan_app = typer.Typer(no_args_is_help=True, help="Planner: what a model costs, from its shape alone.")


@plan_app.callback()
def plan() -> None:
    """Planner: what a model costs, from its shape alone, each figure with its formula."""


@plan_app.command()
def model(
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A preset's name, a model or run directory, a recipe (.yaml) or a config.json."
        ),
    ],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Change a field of the shape; repeatable.")
    ] = None,
    seq_len: Annotated[
        int | None, typer.Option("--seq-len", help="Tokens in the sequence; the model's max_seq_len by default.")
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="Type of weights and cache: fp32, bf16, fp8, int4, ...")] = (
        "bf16"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Parameters by part, bytes, FLOPs per token and cache of a model.

    Presets: gristmill-5m ... gristmill-70b, gpt2-124m, llama-3-8b, deepseek-v3 and others; an unknown name lists them.

    Example: gristmill plan model llama-3-8b --seq-len 32768 --set num_kv_heads=4
    """
    from ..plan.model import plan_model
    from ..plan.parameters import symbols

    source = source_of(target)
    config = override(shape_of(source), overrides or [])
    length = config.max_seq_len if seq_len is None else seq_len
    quantities = plan_model(config, length, dtype)
    if as_json:
        head = {
            "model": target,
            "source": source,
            "seq_len": length,
            "dtype": dtype,
            "config": config.model_dump(mode="json"),
        }
        typer.echo(json.dumps(head | {"quantities": [quantity.as_json() for quantity in quantities]}, indent=2))
    else:
        meaning = " ".join(f"{symbol}={value}" for symbol, value in symbols(config).items())
        _print_figures(f"{source}: {length:,} tokens, {dtype}", meaning, quantities)


def source_of(target: str) -> str:
    """What is read for a user's MODEL: of a run directory its model, or its recipe where it has none yet."""
    from ..weights.locate import locate_model

    path = Path(target)
    if (path / "config.json").is_file() or not (path / "recipe.yaml").is_file():
        return target
    try:
        return str(locate_model(path))
    except GristmillError:
        return str(path / "recipe.yaml")


def shape_of(target: str) -> ModelConfig:
    """The shape that a user's MODEL means. Files go before presets: `./gpt2-xl` and a directory `gpt2-xl` are files."""
    from ..model.presets import preset

    path = Path(target)
    if not path.exists():
        if path.suffix in (".yaml", ".yml", ".json") or len(path.parts) > 1:
            raise GristmillError(
                f"{target} does not exist; give a preset's name, a model, a run, a recipe or config.json"
            )
        return preset(target)
    if path.suffix == ".gguf":
        raise GristmillError(f"{target}: bring it in first: gristmill import {target} --out DIR")
    if path.is_file():
        return _of_config_file(path) if path.suffix == ".json" else _of_recipe(path)
    if (path / "config.json").is_file():
        return _of_config_file(path / "config.json")
    if (source := source_of(target)) != target:
        return shape_of(source)
    raise GristmillError(f"{target} is neither a model directory (no config.json) nor a run directory (no recipe.yaml)")


def override(config: ModelConfig, overrides: list[str]) -> ModelConfig:
    """The shape with `field=value` applied, `experts.top_k=4` for a field inside; checked as a whole."""
    from ..model.config import ModelConfig

    data = config.model_dump(mode="json")
    for item in overrides:
        key, equals, value = item.partition("=")
        if not equals:
            raise GristmillError(f"--set {item}: expected field=value")
        *outer, last = key.strip().split(".")
        place, schema = data, _Fields(ModelConfig)
        for part in outer:
            schema.check(part, item)
            if not isinstance(place[part], dict):
                place[part] = {}
            place, schema = place[part], schema.inside(part)
        schema.check(last, item)
        try:
            place[last] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise GristmillError(f"--set {item}: {value!r} is not a value") from None
    try:
        return ModelConfig.model_validate(data)
    except ValidationError as error:
        _refuse(error)


class _Fields:
    """The fields of a config model, to check names against."""

    def __init__(self, model: type[BaseModel] | None):
        self.fields = {} if model is None else model.model_fields

    def check(self, name: str, item: str) -> None:
        if name not in self.fields:
            near = difflib.get_close_matches(name, self.fields, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(self.fields) or 'none'}"
            raise GristmillError(f"--set {item}: there is no field {name!r}; {hint}")

    def inside(self, name: str) -> _Fields:
        annotation = self.fields[name].annotation
        found = (t for t in (annotation, *get_args(annotation)) if isinstance(t, type) and issubclass(t, BaseModel))
        return _Fields(next(found, None))


def _refuse(error: ValidationError) -> NoReturn:
    first: Any = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "value_error":
        what = str(first["ctx"]["error"])
    else:
        what = "is required" if first["type"] == "missing" else f"{plain_words(first['msg'])}, not {first['input']!r}"
    raise GristmillError(f"--set: {where + ': ' if where else ''}{what}") from None


def _of_config_file(path: Path) -> ModelConfig:
    from ..weights.families import read_config
    from ..weights.json_files import read_object

    return read_config(read_object(path, f"{path} does not exist"), path)[1]


def _of_recipe(path: Path) -> ModelConfig:
    from ..model.config import ModelConfig
    from ..recipe import load_recipe

    recipe = load_recipe(path)
    if recipe.base is None or recipe.tokenizer is None:
        missing = "base" if recipe.base is None else "tokenizer"
        raise GristmillError(f"{path} has no section {missing!r}, so there is no model to plan")
    multiple = recipe.tokenizer.pad_to_multiple
    vocab_size = -(-recipe.tokenizer.vocab_size // multiple) * multiple
    return ModelConfig(vocab_size=vocab_size, **recipe.base.model.model_dump())


def _print_figures(title: str, meaning: str, quantities: list[Quantity]) -> None:
    """A line for each figure, grouped by the first part of the ids; a formula that does not fit behind its figure
    stands on lines of its own, whole words together."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)

    def put(line: str, formula: str = "") -> None:
        console.print(Text.assemble(line, (formula, "dim")), soft_wrap=True)

    def wrapped(text: str, indent: str) -> list[str]:
        width = max(console.width, 30)
        return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent, break_long_words=False)

    put(title)
    for line in wrapped(meaning, ""):
        put(line)
    rows = [(*quantity.id.partition(".")[::2], quantity.shown(), quantity.formula) for quantity in quantities]
    names, figures = max(len(name) for _, name, _, _ in rows), max(len(shown) for _, _, shown, _ in rows)
    group = ""
    for first, name, shown, formula in rows:
        if first != group:
            put(f"{chr(10) if group else ''}{first}")
            group = first
        line = f"  {name:<{names}}  {shown:>{figures}}"
        if len(line) + 2 + len(formula) <= console.width:
            put(f"{line}  ", formula)
            continue
        put(line)
        for part in wrapped(formula, " " * 6):
            put("", part)
