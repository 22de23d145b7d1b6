"""`gristmill scaling`: train a ladder of small models, fit a scaling law, say which sizes follow."""

from __future__ import annotations

import json
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import GristmillError
from .common import RecipeArgument, RunOption, SetOption, stage_log, terminal


def scaling(
    recipe: RecipeArgument,
    run: RunOption = None,
    overrides: SetOption = None,
    heads: Annotated[
        str, typer.Option("--heads", metavar="N,N,...", help="Sizes, as numbers of attention heads; the rest follows.")
    ] = "1,2,3,4",
    ratios: Annotated[
        str, typer.Option("--tokens-per-parameter", metavar="R,R,...", help="Tokens that each size is trained on.")
    ] = "5,10,20,40",
    budgets: Annotated[
        str | None, typer.Option("--budgets", metavar="FLOPS,...", help="Training budgets to find the best sizes for.")
    ] = None,
    inference_tokens: Annotated[
        float, typer.Option("--inference-tokens", min=0, help="Tokens the model will read and write in its life.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Train a ladder of small models on a run's tokens, fit loss over parameters and tokens, name the best sizes.

    The run's stages tokenizer and tokens must be there; report.json and scaling.png are written to its directory
    scaling/. A ladder that was cut goes on. Several processes: torchrun --nproc-per-node N -m -- gristmill scaling.

    Example: gristmill scaling recipes/quickstart.yaml --heads 1,2,4 --tokens-per-parameter 2,8
    """
    from ..pipeline import artifact_dir, lock, source_hash
    from ..recipe import load_recipe
    from ..train.scaling import scaling as train_ladder
    from ..train.scaling_figure import draw_scaling

    if not math.isfinite(inference_tokens):
        raise GristmillError(f"--inference-tokens takes a number, not {inference_tokens}")
    source = recipe / "recipe.yaml" if recipe.is_dir() else recipe
    checked = load_recipe(source, overrides or [])
    if checked.base is None:
        raise GristmillError(f"{source} has no section base, which says what shape the ladder is built from")
    directory = run or (recipe if recipe.is_dir() else Path("runs") / checked.name)
    inputs = {name: artifact_dir(directory, name) for name in ("tokenizer", "tokens")}
    for path in inputs.values():
        if not path.exists():
            raise GristmillError(f"{path} is not there: gristmill run {recipe} --run {directory} --until tokens")
    if find_spec("matplotlib") is None:  # before hours of training, not behind them
        raise GristmillError("scaling.png needs matplotlib: pip install 'gristmill[page]'")
    with lock(directory), terminal() as shown:
        report = train_ladder(
            checked.base,
            inputs,
            directory / "scaling",
            heads=_whole(heads, "--heads"),
            ratios=_numbers(ratios, "--tokens-per-parameter"),
            budgets=_numbers(budgets, "--budgets") if budgets else (),
            inference_tokens=inference_tokens,
            seed=checked.seed,
            sources=source_hash("train"),
            log=stage_log("scaling", shown),
        )
        draw_scaling(report, directory / "scaling" / "scaling.png")
    typer.echo(json.dumps(report, indent=2) if as_json else table(report, directory / "scaling"))


def table(report: dict[str, Any], directory: Path) -> str:
    """The report as lines of text."""
    law, low_high = report["law"], report["intervals"]
    shown = ", ".join(
        f"{name} {law[key]:.3g} [{low_high[key][0]:.3g}, {low_high[key][1]:.3g}]"
        for key, name in (("floor", "E"), ("alpha", "alpha"), ("beta", "beta"))
    )
    lines = [
        "parameters: those that are multiplied, N of the law; a table that is only looked up counts in `in all` alone",
        f"{'model':<12}{'parameters':>14}{'in all':>14}{'tokens':>16}{'FLOP':>11}{'bits/byte':>11}{'law':>9}",
    ]
    lines += [
        f"{one['name']:<12}{one['params']:>14,.0f}{one['total_params']:>14,.0f}{one['tokens']:>16,.0f}"
        f"{one['flops']:>11.2e}{one['loss']:>11.4f}{one['predicted']:>9.4f}"
        for one in report["models"]
    ]
    lines += ["", f"L(N, D) = E + A/N^alpha + B/D^beta: {shown} ({report['confidence']:.0%} intervals)", ""]
    if report["caveats"]:
        lines += [*report["caveats"], ""]
    for best in report["budgets"]:
        within = "[?]" if best["params_interval"] is None else "[{:,.0f}, {:,.0f}]".format(*best["params_interval"])
        lines.append(
            f"{best['flops']:.2e} FLOP: {best['params']:,.0f} parameters {within} on "
            f"{best['tokens']:,.0f} tokens ({best['tokens_per_param']:.1f} each), {best['loss']:.3f} bits per byte"
        )
        if served := best.get("with_inference"):
            lines.append(
                f"    with {report['inference_tokens']:.3g} tokens of use: {served['params']:,.0f} parameters on "
                f"{served['tokens']:,.0f} tokens, {1 - served['flops'] / served['flops_of_the_optimum']:.0%} fewer "
                "FLOPs in all"
            )
    lines += ["", f"{'published model':<16}{'tokens per parameter':>22}{'times Chinchilla':>18}"]
    lines += [
        f"{one['model']:<16}{one['tokens'] / one['params']:>22,.1f}{one['chinchilla_multiple']:>18,.1f}"
        for one in report["published"]
    ]
    return "\n".join([*lines, "", f"written to {directory}/report.json and scaling.png"])


def _numbers(text: str, option: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise GristmillError(f"{option} takes numbers with commas between them, not {text!r}") from None
    if not all(0 < number < math.inf for number in numbers):
        raise GristmillError(f"{option} takes numbers above 0, not {text!r}")
    if len(set(numbers)) < len(numbers):
        raise GristmillError(f"{option} names a number twice: {text!r}")
    return numbers


def _whole(text: str, option: str) -> list[int]:
    numbers = _numbers(text, option)
    if not all(number.is_integer() for number in numbers):
        raise GristmillError(f"{option} takes whole numbers, not {text!r}")
    return [int(number) for number in numbers]
