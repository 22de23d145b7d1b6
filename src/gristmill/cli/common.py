"""What the verbs share: arguments, options, and how a recipe or a single stage is run."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import GristmillError

if TYPE_CHECKING:
    from ..engine.sampling import SamplingParams


class EngineName(StrEnum):
    """The engines of the data stages (`artifact.Engine`)."""

    local = "local"
    ray = "ray"


RecipeArgument = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file, or a run directory.")]
RunOption = Annotated[Path | None, typer.Option("--run", metavar="DIR", help="Run directory; default runs/NAME.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY.PATH=VALUE", help="Override a recipe's value; repeatable.")
]
WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="Processes of the data and tokenizer stages; default one per core."),
]
EngineOption = Annotated[
    EngineName,
    typer.Option("--engine", help="Where the data and tokenizer stages work: in processes here, or on a Ray cluster."),
]
ModelArgument = Annotated[Path, typer.Argument(metavar="MODEL", help="A model directory, or a run directory.")]
OutOption = Annotated[Path, typer.Option("--out", metavar="DIR", help="Directory to write; replaced if an artifact.")]
MaxTokensOption = Annotated[int, typer.Option("--max-tokens", help="Longest reply in tokens.")]
TemperatureOption = Annotated[float, typer.Option("--temperature", help="0 takes the likeliest token each time.")]
TopPOption = Annotated[float, typer.Option("--top-p", help="Sample from the likeliest tokens of this total share.")]
SeedOption = Annotated[int | None, typer.Option("--seed", help="The same seed gives the same text.")]
SpeculateOption = Annotated[
    str | None,
    typer.Option(
        "--speculate", metavar="ngram|MODEL", help="Guess tokens ahead: from the text, or with a smaller model."
    ),
]


def run_recipe(
    recipe: Path, run: Path | None, first: str | None, last: str | None, overrides: list[str] | None, **how: Any
) -> tuple[Path, list[str]]:
    """Run a recipe; the run directory and the names of the stages. `how`: workers and engine of the data stages."""
    from ..pipeline import run as run_stages
    from ..recipe import load_recipe

    with terminal() as shown:
        manifests = run_stages(recipe, run, first=first, last=last, overrides=overrides or [], on_event=shown, **how)
    if run is None:
        run = recipe if recipe.is_dir() else Path("runs") / load_recipe(recipe, overrides or []).name
    return run, list(manifests)


def build_alone(out: Path, kind: str, stage: str, function: Any, config: Any, inputs: dict[str, Path]) -> None:
    """Run one stage function outside a run, into `out`."""
    from ..artifact import build, hash_json, read_manifest, verify
    from ..console import brief
    from ..pipeline import source_hash

    for path in inputs.values():
        if not (path / "manifest.json").exists():
            raise GristmillError(f"{path} is not an artifact; bring it in first: gristmill import {path} --out DIR")
        if out.resolve().is_relative_to(path.resolve()) or path.resolve().is_relative_to(out.resolve()):
            raise GristmillError(f"--out {out} would overwrite {path}, which is read: choose another directory")
    if out.exists() and read_manifest(out).kind != kind:  # what is no artifact is left alone too
        raise GristmillError(f"--out {out} holds an artifact of kind {read_manifest(out).kind!r}, not {kind!r}")
    parents = {name: verify(path).hash for name, path in inputs.items()}
    identity = [stage, config.model_dump(mode="json"), parents, source_hash(function.__module__.split(".")[1])]
    fingerprint = hash_json(identity)
    with terminal() as shown:
        manifest = build(
            out,
            kind=kind,
            stage=stage,
            function=function,
            config=config,
            inputs=inputs,
            seed=0,
            fingerprint=fingerprint,
            log=stage_log(stage, shown),
        )
    typer.echo(f"{out}: {brief(manifest.figures)}")


def locate(model: Path) -> Path:
    from ..weights.locate import locate_model

    return locate_model(model)


def sampling(max_tokens: int, temperature: float, top_p: float, seed: int | None) -> SamplingParams:
    from ..engine.sampling import SamplingParams

    return SamplingParams(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)


def beams(max_tokens: int, width: int | None, length_penalty: float) -> SamplingParams:
    from ..engine.sampling import SamplingParams

    return SamplingParams(max_tokens=max_tokens, beam_width=width, length_penalty=length_penalty)


def speculation(guess: str | None) -> dict[str, Any]:
    """What `--speculate` says, as keywords of `LLM`."""
    from ..engine.speculation.config import SpeculationConfig

    if guess is None:
        return {}
    return {"speculation": SpeculationConfig()} if guess == "ngram" else {"draft_model": Path(guess)}


def terminal() -> Any:
    from ..console import RunConsole

    return RunConsole()


def stage_log(stage: str, shown: Any) -> Any:
    from ..events import EventLog

    log = EventLog(None)
    log.subscribers.append(shown)
    return log.stage(stage)
