"""`gristmill plan calibrate`."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import GristmillError
from .plan_output import AsJson

if TYPE_CHECKING:
    from ..plan.ceilings import Calibration, EngineFit

LONGEST, SEQUENCES = 4096, {"cpu": 16, "cuda": 256}  # of the sequences and their number that the engine is timed with


def calibrate(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]", help="Time the engine's steps with it too: a model, a run, or a preset's name."
        ),
    ] = None,
    device: Annotated[str | None, typer.Option("--device", help="cpu or cuda; both that are there.")] = None,
    directory: Annotated[Path | None, typer.Option("--directory", help="Where the disk is measured.")] = None,
    seconds: Annotated[float, typer.Option("--seconds", help="At most so long for the engine's steps.")] = 60.0,
    dtype: Annotated[str | None, typer.Option("--dtype", help="Of the model: float32, bfloat16, float16.")] = None,
    show: Annotated[bool, typer.Option("--show", help="Print what was measured before.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure what this machine really reaches: memory, caches, products, links, disk; with a MODEL also what the
    engine makes of it. Other commands then plan for it with --device here.

    Example: gristmill plan calibrate smollm2-135m --device cpu
    """
    from ..plan.ceilings import keep, kept, store

    if show:
        found = [one for one in kept() if device in (None, one.kind)]
        if not found:
            raise GristmillError(f"{store()} holds nothing" + (f" of {device}" if device else "") + ": measure first")
    else:
        found = _measured(device, directory, as_json)
        path = keep(found)
        if target is not None:
            found[-1] = _with_engine(found[-1], target, dtype, seconds, as_json)
            keep(found)
        if not as_json:
            typer.echo(f"kept in {path}; plan with it: --device here")
    if as_json:
        typer.echo(json.dumps({"path": str(store()), "devices": [_as_json(one) for one in found]}, indent=2))
        return
    for one in found:
        if show:
            _print(one)
        _print_shares(one)


def _measured(device: str | None, directory: Path | None, as_json: bool) -> list[Calibration]:
    from ..plan.calibrate import busy_cores
    from ..plan.calibrate import calibrate as measure

    if device not in (None, "cpu", "cuda"):
        raise GristmillError(f"--device {device}: only cpu and cuda can be measured")
    if (busy := busy_cores()) > 0.5:
        typer.echo(f"about {busy:.1f} cores are busy already: what is measured is what they leave", err=True)
    kinds = [device]
    if device is None:
        import torch

        kinds = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    found = []
    for kind in kinds:
        assert kind is not None
        if not as_json:
            typer.echo(f"measuring {kind}, half a minute or so; nothing else should run meanwhile")
        found.append(measure(kind, directory, say=lambda text: None if as_json else typer.echo(f"  {text}")))
    return found


def _with_engine(one: Calibration, target: str, dtype: str | None, seconds: float, as_json: bool) -> Calibration:
    """The engine's steps with this model on the device, fitted."""
    from ..bench.serve_load import engine_of
    from ..bench.serve_load import target as served_target
    from ..capacity.measure import engine_fit, measured_steps
    from ..model.presets import preset_names
    from ..plan.ceilings import measured_device

    def say(text: str) -> None:
        if not as_json:
            typer.echo(f"  {text}")

    shape, path = (target, None) if target in preset_names() else (None, Path(target))
    with served_target(shape, path, one.kind, dtype, 2) as served:
        say(f"the engine's steps with {target}, {served.dtype}, for at most {seconds:.0f} s")
        longest = min(served.model.config.max_seq_len, LONGEST)
        engine = engine_of(served, max_model_len=longest, max_num_seqs=SEQUENCES[one.kind])
        samples = measured_steps(engine, seconds, say=say)
        bits = 8 * served.model.embedding.weight.element_size()
        on = measured_device("cpu" if one.kind == "cpu" else "here")
        fit = engine_fit(samples, served.model.config, on, target, served.dtype, bits)
    say(_engine_line(fit))
    return replace(one, engine=fit)


def _engine_line(fit: EngineFit) -> str:
    """Names of what is fitted, and how well."""
    parts = []
    for name, value in fit.efficiency.items():
        plain = name.removesuffix("_seconds")
        parts.append(f"{name} {value:.1%}" if plain == name else f"{plain} {1e6 * value:.3g} us")
    how = f"median error {fit.error:.1%} on steps not seen, {fit.samples} in all"
    return f"engine with {fit.model} ({fit.dtype}): {', '.join(parts)}; {how}"


def _as_json(one: Calibration) -> dict[str, Any]:
    from ..plan.calibrate import shares

    return asdict(one) | {"share_of_datasheet": {name: value / peak for name, value, peak in shares(one)}}


def _print(one: Calibration) -> None:
    from ..plan.calibrate import line

    typer.echo(f"{one.name} ({one.kind}), {one.date}, torch {one.versions.get('torch')}")
    for ceiling in one.ceilings:
        typer.echo(f"  {line(ceiling)}")
    if one.engine is not None:
        typer.echo(f"  {_engine_line(one.engine)}")


def _print_shares(one: Calibration) -> None:
    from ..plan.calibrate import shares

    for name, value, peak in shares(one):
        typer.echo(f"  {name} is {value / peak:.1%} of the datasheet's")
