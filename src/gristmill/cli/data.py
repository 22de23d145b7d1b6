"""The verbs of the data stages: collect, clean, report, mix, and the models that filters score by."""

from __future__ import annotations

import typer

from .common import EngineName, EngineOption, RecipeArgument, RunOption, SetOption, WorkersOption, run_recipe

data_app = typer.Typer(
    no_args_is_help=True, help="Stages collected and corpus: from sources to a clean, weighed corpus."
)


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
