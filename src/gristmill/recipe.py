"""A recipe: the typed configurations of all stages of a run in one YAML file.

A section is named by the artifact its stage makes. A stage whose section is missing (or null) is not run, but what a
stage is made from must be there. Everything is checked before any work starts, and an error names file, line and key.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .align.config import DPOConfig, SFTConfig
from .data.config import CollectConfig, CorpusConfig
from .errors import GristmillError
from .evaluate.config import EvaluateConfig
from .interpret.config import InspectConfig
from .quantize.config import QuantizeConfig
from .tokenizer.config import TokenizerConfig, TokensConfig
from .train.config import PretrainConfig

KeyPath = tuple[str, ...]


class Recipe(BaseModel):
    """All stages of a run, in the order in which they are run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of the run; its directory is runs/NAME."
    )
    seed: int = Field(default=1, ge=0, description="Seed of everything random.")
    collected: CollectConfig | None = Field(default=None, description="Where the text comes from.")
    corpus: CorpusConfig | None = Field(default=None, description="Cleaning, deduplication, filters, privacy, weights.")
    tokenizer: TokenizerConfig | None = Field(default=None, description="Training of the tokenizer.")
    tokens: TokensConfig | None = Field(default=None, description="Packing of the corpus into token shards.")
    base: PretrainConfig | None = Field(default=None, description="The model and its pre-training.")
    sft: SFTConfig | None = Field(default=None, description="Supervised fine-tuning.")
    dpo: DPOConfig | None = Field(default=None, description="Direct preference optimization.")
    int8: QuantizeConfig | None = Field(default=None, description="Quantization of the aligned model.")
    inspect: InspectConfig | None = Field(default=None, description="A look inside the aligned model.")
    evaluation: EvaluateConfig | None = Field(default=None, description="Measurements of all models of the run.")

    @model_validator(mode="after")
    def _windows_fit(self) -> Recipe:
        for name in ("int8", "evaluation"):
            window = getattr(getattr(self, name), "window", None)
            if self.base is not None and window is not None and window > self.base.model.max_seq_len:
                longest = self.base.model.max_seq_len
                raise ValueError(f"{name}.window ({window}) exceeds base.model.max_seq_len ({longest})")
        return self


def load_recipe(path: Path | str, overrides: Iterable[str] = ()) -> Recipe:
    """Read and check a recipe file; `overrides` are `key.path=value` with a YAML value, as `--set` takes them."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise GristmillError(f"there is no recipe {path}") from None
    except (IsADirectoryError, UnicodeDecodeError):
        raise GristmillError(f"{path} is not a recipe: a YAML file is expected") from None
    try:
        data = yaml.safe_load(text)
        lines = _key_lines(yaml.compose(text, Loader=yaml.SafeLoader), path)
    except GristmillError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise GristmillError(f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(data, dict):
        raise GristmillError(f"{path} is not a recipe: it must be a mapping with the key 'name'")
    overridden = [override(data, item) for item in overrides]
    try:
        checked = Recipe.model_validate(data)
        # Once more with every default spelled out, so that a recipe and its resolved copy are the same to the bit.
        return Recipe.model_validate(checked.model_dump(mode="json"))
    except ValidationError as error:
        raise GristmillError(_first_error(error, path, lines, overridden)) from None


def check_ahead(recipe: Recipe, planned: Collection[str]) -> None:
    """What later stages would refuse once the corpus is made, if they are planned: special tokens, the room for them
    and the chat template; the benchmarks of pre-training. It reads the files of both. GristmillError names the key.
    """
    if recipe.tokenizer is not None and "tokenizer" in planned:
        from .tokenizer.special import specials_of

        specials = specials_of(recipe.tokenizer, tuned=not {"sft", "dpo"}.isdisjoint(planned))
        if recipe.base is not None and "base" in planned:
            _check_objective(recipe.base, specials.tokens, specials.mask)
    readers = [name for name in ("sft", "dpo", "int8", "inspect", "evaluation") if name in planned]
    if recipe.base is not None and recipe.base.objective == "masked" and "base" in planned and readers:
        raise GristmillError(
            f"base.objective: masked makes an encoder, which stage {readers[0]!r} cannot use: leave out stages behind "
            "base, or give --until base"
        )
    if recipe.base is not None and recipe.base.benchmarks is not None and "base" in planned:
        from .evaluate.benchmarks.loop import check_benchmarks

        try:
            check_benchmarks(recipe.base.benchmarks.paths)
        except GristmillError as error:
            raise GristmillError(f"base.benchmarks.paths: {error}") from None


def _check_objective(base: PretrainConfig, special_tokens: Collection[str], mask: str | None) -> None:
    """GristmillError where the tokenizer will lack what the objective of pre-training writes."""
    from .tokenizer.special import FILL_IN_THE_MIDDLE

    if base.objective == "masked" and mask is None:
        raise GristmillError("base.objective: masked needs tokenizer.special_tokens: ['<|mask|>']")
    if base.fim_rate and not set(FILL_IN_THE_MIDDLE) <= set(special_tokens):
        raise GristmillError("base.fim_rate above 0 needs tokenizer.fill_in_the_middle: true")


def dump_recipe(recipe: Recipe) -> str:
    """The recipe with every default spelled out, as YAML that `load_recipe` reads back."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def override(data: dict[str, Any], item: str) -> KeyPath:
    """Put `key.path=value` (YAML) into nested settings; GristmillError where it is no such thing, or leads nowhere."""
    key, equals, value = item.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or not all(path):
        raise GristmillError(f"--set {item}: expected key.path=value")
    try:
        parsed = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):
        raise GristmillError(f"--set {item}: {value!r} is not a YAML value") from None
    place: Any = data
    for depth, part in enumerate(path[:-1]):
        if place.get(part) is None:
            place[part] = {}
        place = place[part]
        if not isinstance(place, dict):
            raise GristmillError(f"--set {item}: {'.'.join(path[: depth + 1])} holds no keys")
    place[path[-1]] = parsed
    return path


def _first_error(error: ValidationError, path: Path, lines: Mapping[KeyPath, int], overridden: list[KeyPath]) -> str:
    """One line for the first thing that is wrong; an unknown key before all, since it is often the missing one."""
    errors = error.errors()
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    keys = tuple(str(part) for part in first["loc"])
    if keys in overridden or any(keys[: len(o)] == o for o in overridden):
        where = "--set"
    else:
        known = next((keys[:n] for n in range(len(keys), 0, -1) if keys[:n] in lines), None)
        where = f"{path}:{lines[known]}" if known else str(path)
    if first["type"] == "extra_forbidden":
        what = "unknown key" + _suggestion(keys)
    elif first["type"] == "missing":
        what = "this key is required"
    elif first["type"] == "value_error":
        what = str(first["ctx"]["error"])
    else:
        what = f"{first['msg'][0].lower()}{first['msg'][1:]}, not {first['input']!r}"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{where}: {'.'.join(keys)}: {what}{more}" if keys else f"{where}: {what}{more}"


def _suggestion(keys: KeyPath) -> str:
    """The nearest known key, or all of them where none is near."""
    model: type[BaseModel] | None = Recipe
    for key in keys[:-1]:
        if key.isdigit():  # an item of a list, whose model is found already
            continue
        model = _model_of(model.model_fields[key].annotation) if model and key in model.model_fields else None
    if model is None:
        return ""
    near = difflib.get_close_matches(keys[-1], model.model_fields, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(model.model_fields)}"


def _model_of(annotation: Any) -> type[BaseModel] | None:
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _key_lines(node: Any, file: Path, prefix: KeyPath = ()) -> dict[KeyPath, int]:
    """Line number (from 1) of every key path in a YAML document; a key given twice is an error."""
    lines: dict[KeyPath, int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            path = (*prefix, str(key.value))
            line = key.start_mark.line + 1
            if path in lines:
                raise GristmillError(f"{file}:{line}: {'.'.join(path)}: given twice, first on line {lines[path]}")
            lines[path] = line
            lines |= _key_lines(value, file, path)
    elif isinstance(node, yaml.SequenceNode):
        for place, value in enumerate(node.value):
            path = (*prefix, str(place))
            lines[path] = value.start_mark.line + 1
            lines |= _key_lines(value, file, path)
    return lines
