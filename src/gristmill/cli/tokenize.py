"""The verbs of the tokenizer stages and of tokenizers by themselves: encode, decode, play, import, export, report."""

from __future__ import annotations

import io
import json
import re
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import GristmillError
from .common import (
    EngineName,
    EngineOption,
    RecipeArgument,
    RunOption,
    SetOption,
    WorkersOption,
    run_recipe,
    stage_log,
    terminal,
)

if TYPE_CHECKING:
    from ..tokenizer.report.build import Entry
    from ..tokenizer.tokenizer import Tokenizer

_SURROGATES = re.compile("[\ud800-\udfff]")  # what bytes that are no UTF-8 are to Python in an argument

tokenize_app = typer.Typer(
    no_args_is_help=True, help="Stages tokenizer and tokens, and tokenizers by themselves: try, compare, convert them."
)
TokenizerArgument = Annotated[
    Path, typer.Argument(metavar="TOKENIZER", help="A run, an artifact with a tokenizer, or a model directory.")
]
TextArgument = Annotated[str, typer.Argument(metavar="[TEXT|-]", help="The text; - or nothing reads standard input.")]


class ExportFormat(StrEnum):
    """What `tokenize export` writes."""

    tiktoken = "tiktoken"
    huggingface = "huggingface"
    sentencepiece = "sentencepiece"


def _export_format(name: str) -> ExportFormat:
    if name == "gguf":
        message = "a GGUF file holds a model with its tokenizer; write one with: gristmill export MODEL --to gguf"
        raise GristmillError(f"--format gguf: {message}")
    if name not in list(ExportFormat):
        raise GristmillError(f"--format {name!r} is not one of {', '.join(ExportFormat)}")
    return ExportFormat(name)


@tokenize_app.command()
def train(
    recipe: RecipeArgument,
    run: RunOption = None,
    overrides: SetOption = None,
    workers: WorkersOption = None,
    engine: EngineOption = EngineName.local,
) -> None:
    """Train the tokenizer on the corpus (stage tokenizer).

    Example: gristmill tokenize train recipes/quickstart.yaml --set tokenizer.vocab_size=8192
    """
    run_recipe(recipe, run, "tokenizer", "tokenizer", overrides, workers=workers, engine=engine.value)


@tokenize_app.command()
def pack(
    recipe: RecipeArgument,
    run: RunOption = None,
    overrides: SetOption = None,
    workers: WorkersOption = None,
    engine: EngineOption = EngineName.local,
) -> None:
    """Pack the corpus into token shards (stage tokens).

    Example: gristmill tokenize pack recipes/quickstart.yaml
    """
    run_recipe(recipe, run, "tokens", "tokens", overrides, workers=workers, engine=engine.value)


@tokenize_app.command()
def encode(
    tokenizer: TokenizerArgument,
    text: TextArgument = "-",
    pieces: Annotated[
        bool, typer.Option("--pieces", help="A line for each piece: its ids and, as a JSON string, its text.")
    ] = False,
) -> None:
    """Print the ids of a text, without those that begin or end a document.

    Example: gristmill tokenize encode runs/quickstart "The miller waits." --pieces
    """
    from ..tokenizer.explain import pieces_of

    loaded = _load(tokenizer)
    ids = loaded.encode(_text(text))
    if not pieces:
        typer.echo(" ".join(map(str, ids)))
        return
    for piece in pieces_of(loaded, ids):
        typer.echo(f"{' '.join(map(str, piece.ids))}\t{json.dumps(piece.text, ensure_ascii=False)}")


@tokenize_app.command()
def decode(
    tokenizer: TokenizerArgument,
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[IDS...|-]", help="Ids; - or nothing reads standard input.")
    ] = None,
) -> None:
    """Print the text of ids, special tokens included.

    Example: gristmill tokenize encode runs/quickstart "The miller waits." | gristmill tokenize decode runs/quickstart
    """
    loaded = _load(tokenizer)
    words = " ".join(ids or ["-"])
    numbers = _ids(_text(words))
    loaded.check_ids(numbers, "the command line")
    text = loaded.decode(numbers, skip_special_tokens=False)
    typer.echo(text, nl=not text.endswith("\n"))


@tokenize_app.command()
def play(
    tokenizer: TokenizerArgument,
    text: Annotated[str | None, typer.Argument(metavar="[TEXT]", help="One text; without it, line after line.")] = None,
) -> None:
    """Show how text is divided, in colours, and, of a single word, which pairs were merged in which order.

    Example: gristmill tokenize play runs/quickstart "unbelievable"
    """
    from .play import play_loop, show

    loaded = _load(tokenizer)
    if text is not None:
        show(loaded, _whole(text))
        return
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    play_loop(loaded, lambda prompt: _whole(input(prompt)))


@tokenize_app.command("import")
def import_verb(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A tokenizer of another program: a directory, or a file of any form.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The directory to write.")],
    pattern: Annotated[
        str | None,
        typer.Option(
            "--pattern", help="Of a ranks file: gpt2, gpt4, llama3, qwen2, o200k, or the regex that cuts text."
        ),
    ] = None,
    special: Annotated[
        list[str] | None,
        typer.Option("--special", metavar="TOKEN=ID", help="Of a ranks file: a special token; repeatable."),
    ] = None,
    eos: Annotated[
        str | None, typer.Option("--eos", metavar="TOKEN", help="What ends a text, where the file does not say.")
    ] = None,
) -> None:
    """Make a tokenizer directory of another program's file: ranks of tiktoken, SentencePiece .model, tekken, GGUF.

    Example: gristmill tokenize import mistral.model tokenizers/mistral
    """
    from ..tokenizer.formats import import_tokenizer

    if not path.exists():
        raise GristmillError(f"{path} does not exist; name a tokenizer's file or directory")
    _check_new(out)
    loaded = import_tokenizer(path, out, pattern, _special_tokens(special) if special else None, eos)
    typer.echo(f"{out}: {loaded.kind}, {loaded.vocab_size:,} entries, hash {loaded.hash[:12]}")


@tokenize_app.command("export")
def export_verb(
    tokenizer: TokenizerArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file, or for huggingface the directory, to write.")],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            metavar=f"[{'|'.join(ExportFormat)}]",
            help="What to write; a ranks file of tiktoken comes with a .json beside it.",
        ),
    ] = ExportFormat.huggingface.value,
) -> None:
    """Write a tokenizer for another program.

    Example: gristmill tokenize export runs/quickstart ranks.tiktoken --format tiktoken
    """
    from ..tokenizer.formats.exchange import export_tokenizer

    chosen = _export_format(form)
    if chosen is ExportFormat.huggingface:
        _check_new(out)
    elif out.is_dir():
        raise GristmillError(f"{out} is a directory; name the file to write")
    written = export_tokenizer(_load(tokenizer), chosen.value, out)
    typer.echo(f"{' and '.join(map(str, written))}: written")


@tokenize_app.command()
def report(
    target: Annotated[
        Path | None, typer.Argument(metavar="[RUN|TOKENIZER]", help="Whose tokenizer; without it the references alone.")
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option("--text", metavar="PATH", help="Files or directories of text instead of the run's; repeatable."),
    ] = None,
    references: Annotated[
        str,
        typer.Option(
            "--references",
            metavar="NAMES|all|none",
            help="Vocabularies to show beside, by name or path, by commas; default none.",
        ),
    ] = "none",
    packages: Annotated[
        list[Path] | None,
        typer.Option("--packages", metavar="DIR", help="Where packages with vocabularies lie too; repeatable."),
    ] = None,
    parallel: Annotated[
        Path | None,
        typer.Option(
            "--parallel",
            metavar="DIR",
            help="The same content in several languages; default the messages in /usr/share/locale.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Where report.json and report.html go; default ./fertility."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Show how many tokens a tokenizer makes of text, beside well-known vocabularies, and what other languages cost.

    Example: gristmill tokenize report runs/quickstart --references all
    """
    from ..tokenizer.report import build as reports
    from ..tokenizer.report.page import table
    from ..tokenizer.report.parallel import installed_text, parallel_text
    from ..tokenizer.report.references import find_references

    names = [name for name in map(str.strip, references.split(",")) if name not in ("", "none")]
    found, absent = find_references(names, packages or [])
    entries = [_own(target)] if target is not None else []
    entries += [reports.reference_entry(reference) for reference in found]
    if not entries:
        raise GristmillError(_nothing_to_report(absent))
    samples, said = reports.files_text(text) if text else reports.corpus_text(_corpus(target))
    languages = installed_text() if parallel is None else parallel_text(parallel)
    with terminal() as shown:
        log = stage_log("report", shown)
        made = reports.make_report(
            entries, samples, said, languages, absent, lambda done, total: log.progress(done, total, "tokenizers")
        )
    directory = out or Path("fertility")
    reports.write_report(made, directory)
    typer.echo(json.dumps(made, indent=2, ensure_ascii=False) if as_json else table(made))
    typer.echo(f"\n{directory / 'report.html'} shows all of it.", err=as_json)


def _load(path: Path) -> Tokenizer:
    from ..tokenizer.tokenizer import Tokenizer

    return Tokenizer.load(_locate(path))


def _locate(path: Path) -> Path:
    """The directory of a path's tokenizer: itself, or, of a run, its artifact `tokenizer`, or else its last model."""
    from ..weights.locate import ALIGNED_LAST
    from .common import locate

    artifacts = path / "artifacts"
    for candidate in (path, artifacts / "tokenizer"):
        if (candidate / "tokenizer.json").is_file():
            return candidate
    if not path.exists():
        raise GristmillError(f"{path} does not exist; give a run, an artifact with a tokenizer, or a model directory")
    if path.is_file():
        raise GristmillError(f"{path} is a file; make a directory of it first: gristmill tokenize import {path} OUT")
    if not artifacts.is_dir():
        raise GristmillError(f"{path} holds no tokenizer.json and is no run directory")
    if any((artifacts / name).is_dir() for name in ALIGNED_LAST):
        return locate(path)
    raise GristmillError(f"{path} is a run that has no tokenizer yet; make one: gristmill run {path} --until tokenizer")


def _own(path: Path) -> Entry:
    from ..tokenizer.report.build import own_entry

    return own_entry(_locate(path), path.resolve().name)


def _corpus(target: Path | None) -> Path:
    """The corpus that stands beside a run's tokenizer."""
    if target is not None:
        for root in (target, target.resolve().parent.parent):
            if (root / "artifacts" / "corpus" / "documents").is_dir():
                return root / "artifacts" / "corpus"
        raise GristmillError(f"{target} has no corpus beside it; name the text to measure on with --text PATH")
    raise GristmillError("without a run there is no corpus; name the text to measure on with --text PATH")


def _nothing_to_report(absent: dict[str, str]) -> str:
    missing = "; ".join(f"{name}: {why}" for name, why in absent.items())
    return f"there is nothing to report on: {missing or 'name a run, a tokenizer, or --references'}"


def _check_new(out: Path) -> None:
    """Files of two tokenizers must not mix in one directory."""
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise GristmillError(f"{out} exists already; name a new directory or an empty one")


def _special_tokens(given: list[str]) -> dict[str, int]:
    """`--special TOKEN=ID`; a token may hold a `=` itself."""
    tokens: dict[str, int] = {}
    for entry in given:
        token, _, number = entry.rpartition("=")
        if not token or not number.isdecimal():
            raise GristmillError(f"--special {entry} is not TOKEN=ID, such as <|endoftext|>=50256")
        if tokens.setdefault(token, int(number)) != int(number):
            raise GristmillError(f"--special gives {token} two ids, {tokens[token]} and {number}")
    return tokens


def _text(argument: str) -> str:
    """What was typed, or standard input for `-`; bytes that are no UTF-8 become U+FFFD."""
    return sys.stdin.buffer.read().decode("utf-8", "replace") if argument == "-" else _whole(argument)


def _whole(text: str) -> str:
    return _SURROGATES.sub("\ufffd", text)


def _ids(words: str) -> list[int]:
    """Ids with spaces, commas or brackets of a JSON list around them."""
    found = words.translate(str.maketrans(",[]", "   ")).split()
    for word in found:
        if not word.isdecimal():
            raise GristmillError(f"{word!r} is no id; give whole numbers with spaces between them")
    return [int(word) for word in found]
