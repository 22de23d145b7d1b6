"""From many small models to domain weights: mixtures to try, a fit of their losses, the best mixture under caps.

Each proxy model is trained on a mixture of its own; `ratios.csv` says which (a run's name, a share for each domain),
`metrics.csv` what came of it (the run's name, a loss in each other column: lower is better). The method is Olmix's
(arXiv 2602.12237), after RegMix (arXiv 2407.01492); there proxies of 15M parameters rank mixtures as large models do.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gristmill.artifact import rounded
from gristmill.errors import GristmillError

from .optimum import minimise
from .regression import MetricFit, fit_metric, leave_one_out, rank_correlation

F64 = NDArray[np.float64]
RUN_COLUMNS = ("run", "run_id")
LABEL_COLUMN = "name"
SUM_TOLERANCE = 1e-3


class Proxies(NamedTuple):
    """What was tried and what came of it: `ratios` is `[runs, domains]`, each row summing to 1, `losses` `[runs,
    metrics]`."""

    runs: list[str]
    domains: list[str]
    metrics: list[str]
    ratios: F64
    losses: F64


def propose_ratios(
    natural: Mapping[str, float], runs: int, seed: int, strength: tuple[float, float] = (0.5, 5.0)
) -> list[dict[str, float]]:
    """Mixtures for `runs` proxies, around the `natural` shares (any positive numbers, such as the domains' tokens).

    Each is drawn from a Dirichlet distribution of parameters strength * domains * natural share, the strength
    log-uniform in the given range: at 1 and equal domains all mixtures are equally likely, at 5 they stay close. Four
    or five runs a domain are usual.
    """
    names = sorted(natural)
    if not names or min(natural.values()) <= 0:
        raise GristmillError("propose_ratios: every domain needs a positive natural share")
    shares = np.array([natural[name] for name in names], np.float64)
    source = np.random.default_rng([seed, 3])
    proposed = []
    for _ in range(runs):
        factor = math.exp(source.uniform(math.log(strength[0]), math.log(strength[1])))
        drawn = np.round(source.dirichlet(factor * len(names) * shares / shares.sum()), 6)
        drawn[np.argmax(drawn)] += 1 - drawn.sum()
        proposed.append({name: round(float(share), 6) for name, share in zip(names, drawn, strict=True)})
    return proposed


def write_ratios(path: Path, proposed: Sequence[Mapping[str, float]]) -> None:
    """Write mixtures as `ratios.csv`; the runs are named run_001, run_002, ..."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["run", *proposed[0]])
        for number, mixture in enumerate(proposed, 1):
            writer.writerow([f"run_{number:03d}", *mixture.values()])


def best_weights(
    ratios: Path,
    metrics: Path,
    *,
    tokens: Mapping[str, float] | None = None,
    token_budget: float | None = None,
    max_epochs: float | None = None,
    importance: Mapping[str, float] | None = None,
    pull: float = 0.1,
) -> dict[str, Any]:
    """Fit the losses of the proxies and find the weights of the smallest mean loss; a JSON value, weights first.

    `tokens` are the domains' sizes; they give the natural shares (without them the mean of the proxies' mixtures stands
    for these). With `token_budget` and `max_epochs` no domain gets more than max_epochs * its tokens / budget.
    `importance` weighs the metrics (1 each). `pull` holds the weights to the natural shares: that times the
    Kullback-Leibler divergence from them is added to the loss; 0 trusts the fit alone.
    """
    proxies = read_proxies(ratios, metrics)
    natural = _natural(proxies, tokens, ratios)
    caps = _caps(proxies.domains, tokens, token_budget, max_epochs)
    weights_of = _importance(proxies.metrics, importance)
    if len(proxies.domains) == 1:
        return {"weights": {proxies.domains[0]: 1.0}, "natural": {proxies.domains[0]: 1.0}, "metrics": {}}
    _check_runs(proxies, ratios)
    fits = [fit_metric(proxies.ratios, column) for column in proxies.losses.T]
    best = minimise(fits, weights_of, natural, caps, pull)
    named = dict(zip(proxies.domains, best.tolist(), strict=True))
    return rounded(
        {
            "weights": named,
            "natural": dict(zip(proxies.domains, natural.tolist(), strict=True)),
            "runs": len(proxies.runs),
            "pull": pull,
            "caps": None if caps is None else dict(zip(proxies.domains, caps.tolist(), strict=True)),
            "metrics": {
                name: _judge(fit, proxies, column, natural, best)
                for name, fit, column in zip(proxies.metrics, fits, proxies.losses.T, strict=True)
            },
        }
    )


def _judge(fit: MetricFit, proxies: Proxies, losses: F64, natural: F64, best: F64) -> dict[str, Any]:
    """How far one metric's fit can be believed, and what it foretells."""
    foretold = leave_one_out(proxies.ratios, losses, fit)
    return {
        "floor": fit.floor,
        "slopes": dict(zip(proxies.domains, fit.slopes.tolist(), strict=True)),
        "spread": float(losses.std()),
        "left_out_error": float(np.abs(foretold - losses).mean()),
        "left_out_rank_correlation": rank_correlation(foretold, losses),
        "best_run": float(losses.min()),
        "at_natural": float(fit.predict(natural)),
        "at_weights": float(fit.predict(best)),
    }


def weights_table(found: Mapping[str, Any]) -> str:
    """What `best_weights` gave as lines of text: the weights, then how well each metric is foretold."""
    lines = [f"{'domain':<24} {'natural':>9} {'weight':>9}"]
    lines += [f"{name:<24} {found['natural'][name]:>9.4f} {weight:>9.4f}" for name, weight in found["weights"].items()]
    lines += [
        "",
        f"{'metric':<24} {'natural':>9} {'weights':>9} {'best run':>9} {'spread':>9} {'error':>9} {'rank':>6}",
    ]
    for name, one in found["metrics"].items():
        losses = (one["at_natural"], one["at_weights"], one["best_run"], one["spread"], one["left_out_error"])
        numbers = " ".join(f"{value:>9.4f}" for value in losses)
        lines.append(f"{name:<24} {numbers} {one['left_out_rank_correlation']:>6.2f}")
    note = "error and rank: each run foretold by a fit of the others, its mean error and the correlation of the ranks."
    return "\n".join([*lines, "", note])


def read_proxies(ratios: Path, metrics: Path) -> Proxies:
    """Both tables, joined on the column `run` (or `run_id`). A run without metrics is left out; everything else that
    does not fit is a GristmillError that names the file, the run and the column."""
    mixtures, results = _read_table(ratios), _read_table(metrics)
    domains = sorted(next(iter(mixtures.values())))
    names = list(next(iter(results.values())))
    unknown = [run for run in results if run not in mixtures]
    if unknown:
        raise GristmillError(f"{metrics}: {ratios} has no run {unknown[0]!r}")
    runs = [run for run in mixtures if run in results]
    shares = np.array([[mixtures[run][domain] for domain in domains] for run in runs])
    losses = np.array([[results[run][name] for name in names] for run in runs])
    for run, row in zip(runs, shares, strict=True):
        if row.min() < 0 or abs(row.sum() - 1) > SUM_TOLERANCE:
            raise GristmillError(
                f"{ratios}, run {run}: the shares are not positive numbers that sum to 1 ({row.sum():g})"
            )
    if not losses.min(initial=1) > 0:
        run, column = np.argwhere(losses <= 0)[0]
        raise GristmillError(
            f"{metrics}, run {runs[run]}, column {names[column]}: a loss must be above 0 (and lower must be better)"
        )
    return Proxies(runs, domains, names, shares / shares.sum(axis=1, keepdims=True), losses)


def _read_table(path: Path) -> dict[str, dict[str, float]]:
    """run -> column -> number."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, skipinitialspace=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise GristmillError(f"{path} cannot be read as a CSV table: {error}") from None
    header = list(rows[0]) if rows else []
    key = next((name for name in RUN_COLUMNS if name in header), None)
    columns = [name for name in header if name is not None and name not in (*RUN_COLUMNS, LABEL_COLUMN)]
    if key is None or not columns:
        raise GristmillError(f"{path} needs a row for each proxy, a column 'run' and at least one column of numbers")
    table: dict[str, dict[str, float]] = {}
    for row in rows:
        if row[key] in table:
            raise GristmillError(f"{path}: run {row[key]!r} stands there twice")
        table[row[key]] = {name: _number(row[name], path, row[key], name) for name in columns}
    return table


def _number(value: str | None, path: Path, run: str, column: str) -> float:
    try:
        number = float(value or "")
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise GristmillError(f"{path}, run {run}, column {column}: {value!r} is no number; remove the run or repair it")
    return number


def _check_runs(proxies: Proxies, ratios: Path) -> None:
    needed = len(proxies.domains) + 2
    if len(proxies.runs) < needed:
        raise GristmillError(
            f"{ratios}: {len(proxies.runs)} runs with metrics are too few for {len(proxies.domains)} domains; "
            f"a fit needs {needed} at the least, and four or five a domain to be worth something"
        )
    if np.linalg.matrix_rank(proxies.ratios, tol=1e-4) < len(proxies.domains):
        fixed = [name for name, column in zip(proxies.domains, proxies.ratios.T, strict=True) if np.ptp(column) < 1e-4]
        said = (
            f"the share of {', '.join(fixed)} never changes"
            if fixed
            else "the mixtures do not differ in all directions"
        )
        raise GristmillError(f"{ratios}: {said}; propose_ratios gives mixtures that do")
    flat = [name for name, column in zip(proxies.metrics, proxies.losses.T, strict=True) if np.ptp(column) == 0]
    if flat:
        raise GristmillError(f"metric {flat[0]!r} is the same in every run: remove the column")


def _natural(proxies: Proxies, tokens: Mapping[str, float] | None, ratios: Path) -> F64:
    if tokens is None:
        return np.asarray(proxies.ratios.mean(axis=0))
    lacking = [name for name in proxies.domains if not tokens.get(name, 0) > 0]
    if lacking:
        raise GristmillError(
            f"{ratios} names the domain {lacking[0]!r}, which holds no text; there is {', '.join(tokens)}"
        )
    sizes = np.array([float(tokens[name]) for name in proxies.domains])
    return np.asarray(sizes / sizes.sum())


def _caps(
    domains: list[str], tokens: Mapping[str, float] | None, budget: float | None, max_epochs: float | None
) -> F64 | None:
    if budget is None and max_epochs is None:
        return None
    if tokens is None or budget is None or max_epochs is None:
        raise GristmillError("a cap on repeats needs all three: the sizes of the domains, token_budget and max_epochs")
    caps = np.array([max_epochs * tokens[name] / budget for name in domains])
    if caps.sum() < 1:
        raise GristmillError(
            f"max_epochs {max_epochs:g} over {sum(tokens[name] for name in domains):,.0f} tokens gives "
            f"{caps.sum() * budget:,.0f}, less than token_budget {budget:,.0f}"
        )
    return caps


def _importance(metrics: list[str], importance: Mapping[str, float] | None) -> F64:
    given = importance or {}
    unknown = sorted(set(given) - set(metrics))
    if unknown:
        raise GristmillError(f"importance names {unknown[0]!r}; the metrics are {', '.join(metrics)}")
    weights = np.array([float(given.get(name, 1.0)) for name in metrics])
    if weights.min() < 0 or weights.sum() <= 0:
        raise GristmillError("importance: no weight may be negative, and one must be positive")
    return np.asarray(weights / weights.sum())
