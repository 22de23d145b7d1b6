"""The verbs of the data stages: collect, clean, report, mix, sample, and training the models that filters score by."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import GristmillError
from .common import EngineName, EngineOption, RecipeArgument, RunOption, SetOption, WorkersOption, run_recipe

data_app = typer.Typer(
    no_args_is_help=True, help="Stages collected and corpus: from sources to a clean, weighed corpus."
)
CorpusArgument = Annotated[
    Path, typer.Argument(metavar="RUN|CORPUS", help="A run directory, or an artifact of stage corpus.")
]
TextOption = Annotated[
    list[Path], typer.Option("--text", metavar="PATH", help="A file, directory or artifact of text; repeatable.")
]


@data_app.command()
def collect(
    recipe: RecipeArgument,
    run: RunOption = None,
    overrides: SetOption = None,
    workers: WorkersOption = None,
    engine: EngineOption = EngineName.local,
) -> None:
    """Collect documents from the recipe's sources (stage collected).

    Example: gristmill data collect recipes/quickstart.yaml
    """
    run_recipe(recipe, run, "collected", "collected", overrides, workers=workers, engine=engine.value)


@data_app.command()
def clean(
    recipe: RecipeArgument,
    run: RunOption = None,
    overrides: SetOption = None,
    workers: WorkersOption = None,
    engine: EngineOption = EngineName.local,
) -> None:
    """Clean, filter, deduplicate, redact and weigh the documents (stage corpus).

    Only thresholds changed? Then the scores of the last run are taken, and no text is read anew.

    Example: gristmill data clean recipes/quickstart.yaml --set corpus.rules.web.quality.min_words=30
    """
    run_recipe(recipe, run, "corpus", "corpus", overrides, workers=workers, engine=engine.value)


@data_app.command()
def report(
    corpus: CorpusArgument,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Where report.json and report.html go; default ./report."),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", metavar="DIR", help="Count tokens with it; default the run's own.")
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Count the tokens of all documents, not of a sample.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Show what every rule took out of a corpus and what it left, and write it as a page.

    Example: gristmill data report runs/quickstart --out report
    """
    from ..data.report.present import funnel_table, write_report

    directory, own_tokenizer = _corpus(corpus)
    chosen = tokenizer or own_tokenizer
    if exact and chosen is None:
        raise GristmillError("--exact counts tokens, and there is no tokenizer: name one with --tokenizer DIR")
    count = _token_counter(chosen) if chosen is not None else None
    target = out or Path("report")
    found = write_report(directory, target, count, exact)
    typer.echo(json.dumps(found, indent=2, ensure_ascii=False) if as_json else funnel_table(found))
    typer.echo(f"\n{target / 'report.html'} shows all of it.", err=as_json)


@data_app.command()
def mix(
    ratios: Annotated[Path, typer.Option("--ratios", metavar="CSV", help="A row for each proxy run: its mixture.")],
    metrics: Annotated[Path, typer.Option("--metrics", metavar="CSV", help="A row for each proxy run: its losses.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Weights for corpus.mixture.weights.")],
    corpus: Annotated[
        Path | None, typer.Option("--corpus", metavar="RUN|CORPUS", help="Where the sizes of the domains are read.")
    ] = None,
    token_budget: Annotated[
        float | None, typer.Option("--token-budget", help="Tokens that training will draw.")
    ] = None,
    max_epochs: Annotated[float | None, typer.Option("--max-epochs", help="Most passes over a domain.")] = None,
    pull: Annotated[float, typer.Option("--pull", help="How strongly natural shares attract; 0: not at all.")] = 0.1,
) -> None:
    """Find the weights of the domains from the losses of small proxy models.

    Example: gristmill data mix --ratios ratios.csv --metrics metrics.csv --out weights.json
    """
    from ..artifact import write_json
    from ..data.mixture import best_weights, domain_tokens, weights_table

    tokens = domain_tokens(_corpus(corpus)[0]) if corpus is not None else None
    found = best_weights(ratios, metrics, tokens=tokens, token_budget=token_budget, max_epochs=max_epochs, pull=pull)
    write_json(out, found)
    typer.echo(f"{weights_table(found)}\n\n{out}: name it in a recipe as corpus.mixture.weights")


@data_app.command()
def sample(
    corpus: CorpusArgument,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The Parquet file to write.")],
    tokens: Annotated[float | None, typer.Option("--tokens", help="About so many tokens (4 bytes each).")] = None,
    documents: Annotated[int | None, typer.Option("--documents", help="So many documents.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="The same seed draws the same documents.")] = 1,
) -> None:
    """Draw training documents by the corpus' weights into one Parquet file.

    Example: gristmill data sample runs/quickstart --tokens 1e6 --out sample.parquet
    """
    from ..data.corpus import mixture_weights
    from ..data.mixture import sample as draw
    from ..data.mixture import write_sample

    if (tokens is None) == (documents is None):
        raise GristmillError("say how much to draw: either --tokens or --documents")
    directory, _ = _corpus(corpus)
    draws = draw(directory, mixture_weights(directory), seed=seed, tokens=tokens, documents=documents)
    typer.echo(f"{out}: {write_sample(directory, out, draws):,} different documents")


@data_app.command("train-ngram")
def train_ngram(
    text: TextOption,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="model.arpa(.gz), or any name: our own format.")],
    order: Annotated[int, typer.Option("--order", help="Words per n-gram.")] = 5,
) -> None:
    """Train an n-gram model (modified Kneser-Ney) for corpus.perplexity.model.

    Example: gristmill data train-ngram --text books/ --order 5 --out books.ngram
    """
    from ..data.ngram.train import train_ngram_files

    _show(out, train_ngram_files(text, order, out))


@data_app.command("train-classifier")
def train_classifier(
    good: Annotated[list[Path], typer.Option("--good", metavar="PATH", help="Good examples; repeatable.")],
    bad: Annotated[list[Path], typer.Option("--bad", metavar="PATH", help="Bad examples; repeatable.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="model.bin, which fastText reads too.")],
) -> None:
    """Train a classifier of good and bad text for corpus.classifier.model, or of toxic text for corpus.toxicity.model.

    Example: gristmill data train-classifier --good books/ --good docs/ --bad spam/ --out quality.bin
    """
    from ..data.classifier import train_classifier_files

    _show(out, train_classifier_files(good, bad, out))


def _corpus(path: Path) -> tuple[Path, Path | None]:
    """The corpus of a run directory, or an artifact itself; and the run's tokenizer where there is one."""
    corpus = path / "artifacts" / "corpus"
    if not corpus.is_dir():
        return path, None
    tokenizer = path / "artifacts" / "tokenizer"
    return corpus, tokenizer if (tokenizer / "tokenizer.json").exists() else None


def _token_counter(directory: Path) -> Callable[[list[str]], list[int]]:
    from ..tokenizer.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(directory)
    return lambda texts: [len(ids) for ids in tokenizer.encode_batch(texts)]


def _show(out: Path, figures: dict[str, Any]) -> None:
    from ..console import brief

    typer.echo(f"{out}: {brief(figures)}")
