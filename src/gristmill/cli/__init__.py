"""The command line: parse, call the stage, print. Heavy parts are imported by the verb that uses them."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from ..errors import GristmillError, plain_words
from ..train.parallel.launch import dismiss_others, end_failed, launched, say_once
from .bench import bench_app
from .common import (
    EngineName,
    EngineOption,
    MaxTokensOption,
    ModelArgument,
    OutOption,
    RecipeArgument,
    RunOption,
    SeedOption,
    SetOption,
    SpeculateOption,
    TemperatureOption,
    TopPOption,
    WorkersOption,
    beams,
    build_alone,
    locate,
    run_recipe,
    sampling,
    speculation,
)
from .data import data_app
from .evaluate import evaluate
from .plan import plan_app
from .scaling import scaling
from .tokenize import tokenize_app
from .weights import export, import_verb

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="gristmill: raw text in, served model out.\n\nExample: gristmill run recipes/quickstart.yaml",
)
app.add_typer(data_app, name="data")
app.add_typer(tokenize_app, name="tokenize")
app.add_typer(bench_app, name="bench")
app.add_typer(plan_app, name="plan")


@app.callback()
def _options(
    context: typer.Context,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where an error came from.")] = False,
) -> None:
    context.ensure_object(dict)
    _show_traceback[0] = traceback


_show_traceback = [False]
# Typer brings click along under a name of its own in newer versions; this is its error class in all of them.
CommandLineError: type[Any] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
INTERRUPTED = 130


@app.command("run")
def run_verb(
    recipe: RecipeArgument,
    run: RunOption = None,
    first: Annotated[
        str | None, typer.Option("--from", metavar="STAGE", help="Take earlier stages as they stand.")
    ] = None,
    last: Annotated[str | None, typer.Option("--until", metavar="STAGE", help="Leave later stages alone.")] = None,
    overrides: SetOption = None,
    workers: WorkersOption = None,
    engine: EngineOption = EngineName.local,
) -> None:
    """Run a recipe's stages in order; skip what is fresh, resume what was cut.

    Example: gristmill run recipes/quickstart.yaml --set base.training.steps=200
    """
    directory, names = run_recipe(recipe, run, first, last, overrides, workers=workers, engine=engine.value)
    summary = directory / "artifacts" / "evaluation" / "summary.txt"
    if last is None and "evaluation" in names:
        typer.echo("\n" + summary.read_text())
    if last is None and any((directory / "artifacts" / name).is_dir() for name in ("base", "sft", "dpo")):
        installed = Path(sys.executable).with_name("gristmill")  # where the virtual environment is not active
        program = "gristmill" if shutil.which("gristmill") else os.path.relpath(installed)
        typer.echo("Next:" + "".join(f"\n  {program} {verb} {directory}" for verb in ("chat", "serve", "page")))


def _stage_verb(name: str, stage: str, what: str) -> None:
    """A verb that runs one stage of a recipe, on the artifacts that stand in the run directory."""

    def verb(recipe: RecipeArgument, run: RunOption = None, overrides: SetOption = None) -> None:
        run_recipe(recipe, run, stage, stage, overrides)

    verb.__doc__ = f"{what}\n\nExample: gristmill {name} recipes/quickstart.yaml"
    app.command(name)(verb)


_stage_verb(
    "pretrain",
    "base",
    "Pre-train the recipe's model (stage base). With several processes: torchrun --nproc-per-node N -m -- gristmill "
    "pretrain RECIPE.",
)
app.command("scaling")(scaling)
_stage_verb("sft", "sft", "Fine-tune on instructions (stage sft).")
_stage_verb("dpo", "dpo", "Align by direct preference optimization (stage dpo).")
app.command("evaluate")(evaluate)


@app.command()
def quantize(
    model: ModelArgument,
    out: OutOption,
    tokens: Annotated[
        Path | None, typer.Option("--tokens", metavar="DIR", help="Tokens artifact to measure bits per byte on.")
    ] = None,
) -> None:
    """Quantize a model's weights to INT8, in compressed-tensors layout.

    Example: gristmill quantize models/smollm2 --out models/smollm2-int8
    """
    from ..quantize.config import QuantizeConfig
    from ..quantize.stage import quantize as stage

    inputs = {"model": locate(model)}
    if tokens is None and (model / "artifacts" / "tokens").is_dir():
        tokens = model / "artifacts" / "tokens"
    if tokens is not None:
        inputs["tokens"] = tokens
    build_alone(out, "quantized-model", "int8", stage, QuantizeConfig(), inputs)


@app.command()
def inspect(model: ModelArgument, out: OutOption) -> None:
    """Write attention figures, embedding neighbours, a logit lens and a weight table of a model.

    Example: gristmill inspect runs/quickstart --out inspection
    """
    from ..interpret.config import InspectConfig
    from ..interpret.stage import inspect as stage

    build_alone(out, "report", "inspect", stage, InspectConfig(), {"model": locate(model)})


@app.command()
def status(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the state of every stage of a run.

    Example: gristmill status runs/quickstart --json
    """
    from ..console import brief
    from ..pipeline import status as read_status

    found = read_status(run)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    typer.echo(f"{found['directory']}: {'running' if found['running'] else 'not running'}")
    for stage in found["stages"]:
        line = f"  {stage['name']:<11} {stage['state']:<8}"
        if "hash" in stage:
            line += f" {stage['seconds']:8.1f} s  {stage['hash'][:12]}  {brief(stage['figures'])}"
        elif stage.get("progress"):
            line += " {done:,.0f}/{total:,.0f} {unit}".format(**stage["progress"])
        typer.echo(line)


@app.command()
def verify(artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="An artifact's directory.")]) -> None:
    """Hash every file of an artifact again and compare with its manifest.

    Example: gristmill verify runs/quickstart/artifacts/base
    """
    from ..artifact import verify as check

    manifest = check(artifact)
    size = sum(entry["bytes"] for entry in manifest.files.values())
    typer.echo(f"{artifact}: whole, {len(manifest.files)} files, {size:,} bytes, hash {manifest.hash[:12]}")


@app.command()
def page(
    target: Annotated[str, typer.Argument(metavar="RUN|URL", help="A run directory, or the URL of a server.")],
    port: Annotated[int, typer.Option("--port", help="Port to listen on.")] = 8080,
) -> None:
    """Show a run, live, on a page at http://127.0.0.1:PORT.

    Example: gristmill page runs/quickstart
    """
    from ..page.app import page as show

    show(target, port=port)


app.command("import")(import_verb)
app.command()(export)


@app.command()
def generate(
    model: ModelArgument,
    prompt: Annotated[str, typer.Argument(help="Text to continue.")],
    max_tokens: MaxTokensOption = 64,
    temperature: TemperatureOption = 0.8,
    top_p: TopPOption = 0.95,
    seed: SeedOption = None,
    beam_width: Annotated[
        int | None, typer.Option("--beam-width", help="Beam search with so many beams; nothing is drawn then.")
    ] = None,
    length_penalty: Annotated[
        float, typer.Option("--length-penalty", help="Above 1 favours longer beams, below it shorter ones.")
    ] = 1.0,
    speculate: SpeculateOption = None,
) -> None:
    """Continue a text.

    Example: gristmill generate runs/quickstart "In the beginning" --max-tokens 40
    """
    from ..engine.terminal import generate_text

    if beam_width is None and length_penalty == 1:
        params = sampling(max_tokens, temperature, top_p, seed)
    else:
        params = beams(max_tokens, beam_width, length_penalty)
    generate_text(model, prompt, params, **speculation(speculate))


@app.command()
def chat(
    model: ModelArgument,
    max_tokens: MaxTokensOption = 256,
    temperature: TemperatureOption = 0.7,
    top_p: TopPOption = 0.95,
    seed: SeedOption = None,
    speculate: SpeculateOption = None,
) -> None:
    """Talk to a model in the terminal.

    Example: gristmill chat runs/quickstart --temperature 0
    """
    from ..engine.terminal import chat_loop

    chat_loop(model, sampling(max_tokens, temperature, top_p, seed), **speculation(speculate))


@app.command()
def serve(
    model: ModelArgument,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port to listen on.")] = 8000,
    name: Annotated[str | None, typer.Option("--name", help="The model's name to clients; its directory's.")] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="float32 (a CPU's), bfloat16 (a GPU's) or float16.")
    ] = None,
    max_model_len: Annotated[
        int | None, typer.Option("--max-model-len", help="Most tokens of a request, prompt and reply.")
    ] = None,
    max_num_seqs: Annotated[
        int | None, typer.Option("--max-num-seqs", help="Requests that are written at the same time.")
    ] = None,
    max_num_batched_tokens: Annotated[
        int | None, typer.Option("--max-num-batched-tokens", help="Most tokens the model sees in one step.")
    ] = None,
    memory_utilization: Annotated[
        float | None, typer.Option("--memory-utilization", help="Share of the free memory that the cache may take.")
    ] = None,
    kv_dtype: Annotated[
        str | None,
        typer.Option("--kv-dtype", help="Keys and values in fp8 or int8: half the memory."),
    ] = None,
    prefix_caching: Annotated[
        bool, typer.Option("--prefix-caching/--no-prefix-caching", help="Compute equal beginnings of prompts once.")
    ] = True,
    batch_invariant: Annotated[
        bool, typer.Option("--batch-invariant", help="A reply has the same bits whoever else is served; slower.")
    ] = False,
    speculate: SpeculateOption = None,
) -> None:
    """Serve a model over an OpenAI-compatible HTTP API.

    Example: gristmill serve runs/quickstart --port 8000
    """
    from ..server.serve import serve as serve_model

    given = {
        "max_model_len": max_model_len,
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": max_num_batched_tokens,
        "memory_utilization": memory_utilization,
        "kv_dtype": kv_dtype,
    }
    limits: Any = {key: value for key, value in given.items() if value is not None}
    limits |= {"prefix_caching": prefix_caching, "batch_invariant": batch_invariant}
    serve_model(model, host=host, port=port, model_name=name, dtype=dtype, **limits, **speculation(speculate))


def main() -> NoReturn:
    """Run the command line; a user's mistake becomes one line on stderr and exit code 1."""
    # Threads that wait for each other spin briefly, not long: as fast on a free machine, and a busy one does not stall.
    # GNU OpenMP reads this when torch loads; a value the user has set stays.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # torch looks at the first product on a GPU whether it can ever be deterministic (train/device.py).
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        launch = launched()
        if launch is not None and not launch.main:
            _help()
        elif app(prog_name="gristmill", standalone_mode=False) == INTERRUPTED:
            raise KeyboardInterrupt
        sys.exit(0)
    except CommandLineError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error)
            sys.exit(1)
        _fail(f"{plain_words(error.format_message())}{_usage_hint(error)}", error)
    except (KeyboardInterrupt, typer.Abort) as error:
        _fail("interrupted; finished work is kept, the same command goes on", error)
    except GristmillError as error:
        _fail(str(error), error)
    except BrokenPipeError:
        sys.exit(1)
    except Exception as error:
        if _disk_is_full(error):
            _fail("the disk is full: free some space and run the same command; finished work is kept", error)
        if isinstance(error, OSError):
            _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error), error)
        _fail(f"a defect in gristmill: {type(error).__name__}: {error} (gristmill --traceback ... shows where)", error)
    finally:
        dismiss_others()


def _help() -> None:
    """Torchrun's further processes: train with the main one, which reads the command line, when it calls."""
    from ..pipeline import join

    _show_traceback[0] = "--traceback" in sys.argv
    join()


def _disk_is_full(error: Exception) -> bool:
    """Whether an error says so: safetensors and numpy wrap the system's error number in words of their own."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    words = str(error)
    return "No space left" in words or "os error 28" in words or ("requested and" in words and "written" in words)


def _fail(message: str, error: BaseException) -> NoReturn:
    if _show_traceback[0]:
        raise error
    say_once(" ".join(message.split()), lambda said: print(f"gristmill: {said}", file=sys.stderr, flush=True))
    end_failed()


def _usage_hint(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    return f" (see {context.command_path} --help)" if context is not None else ""
