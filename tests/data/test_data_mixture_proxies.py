"""Weights from the losses of small models: the fit, its honesty, the optimum, and input that cannot be used."""

from __future__ import annotations

import csv
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gristmill.data.mixture import best_weights, propose_ratios, weights_table, write_ratios
from gristmill.data.mixture.optimum import minimise
from gristmill.data.mixture.regression import MetricFit, fit_metric, leave_one_out, rank_correlation
from gristmill.errors import GristmillError

F64 = NDArray[np.float64]


def mixtures(runs: int, domains: int, seed: int = 0) -> F64:
    return np.random.default_rng(seed).dirichlet(np.ones(domains), runs)


def write_csv(path: Path, header: list[str], rows: list[list[Any]]) -> Path:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


# ---- the fit


def test_a_law_without_noise_is_found_again() -> None:
    ratios = mixtures(16, 3)
    truth = MetricFit(1.3, np.array([-0.4, 0.2, 0.9]))
    found = fit_metric(ratios, truth.predict(ratios))
    assert found.floor == pytest.approx(1.3, abs=1e-4)
    assert found.slopes == pytest.approx(truth.slopes, abs=1e-4)
    assert leave_one_out(ratios, truth.predict(ratios), found) == pytest.approx(truth.predict(ratios), abs=1e-5)


def test_with_noise_it_foretells_as_well_as_the_noise_allows() -> None:
    ratios, unseen = mixtures(40, 4, 1), mixtures(300, 4, 2)
    truth = MetricFit(2.0, np.array([0.5, -0.5, 0.0, 1.0]))
    losses = truth.predict(ratios) + 0.01 * np.random.default_rng(3).normal(size=40)
    found = fit_metric(ratios, losses)
    assert np.abs(found.predict(unseen) - truth.predict(unseen)).mean() < 0.01
    assert rank_correlation(leave_one_out(ratios, losses, found), losses) > 0.98


def test_a_proxy_that_went_wrong_does_not_bend_the_fit() -> None:
    ratios = mixtures(30, 3, 4)
    truth = MetricFit(1.0, np.array([0.2, -0.6, 0.4]))
    losses = truth.predict(ratios) + 0.002 * np.random.default_rng(5).normal(size=30)
    losses[7] += 1.5
    others = np.arange(30) != 7
    found = fit_metric(ratios, losses)
    assert np.abs(found.predict(ratios) - truth.predict(ratios))[others].max() < 0.02
    plain = np.linalg.lstsq(ratios, losses, rcond=None)[0]  # what squares would do
    assert np.abs(ratios @ plain - truth.predict(ratios))[others].max() > 0.05


def test_leaving_one_out_is_fitting_the_others() -> None:
    ratios = mixtures(12, 3, 6)
    losses = MetricFit(1.0, np.array([0.2, -0.6, 0.4])).predict(ratios)
    losses += 0.01 * np.random.default_rng(7).normal(size=12)
    foretold = leave_one_out(ratios, losses, fit_metric(ratios, losses))
    for run in range(12):
        others = np.arange(12) != run
        alone = fit_metric(ratios[others], losses[others]).predict(ratios[run])
        assert foretold[run] == pytest.approx(float(alone), abs=0.004)


def test_rank_correlation_by_hand() -> None:
    assert rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([10.0, 200.0, 3000.0])) == pytest.approx(1)
    assert rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0])) == pytest.approx(-1)
    # ranks 1 2 3 4 against 1 2.5 2.5 4: 4.5 / sqrt(5 * 4.5)
    tied = rank_correlation(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 5.0, 5.0, 9.0]))
    assert tied == pytest.approx(4.5 / math.sqrt(5 * 4.5))
    assert rank_correlation(np.array([1.0, 2.0]), np.array([5.0, 5.0])) == 0


# ---- the optimum

EVEN = np.array([0.5, 0.5])


def test_two_metrics_that_pull_apart_meet_where_calculus_says() -> None:
    """exp(-a w) + exp(-b (1 - w)) is smallest at w = (b + ln(a/b)) / (a + b)."""
    a, b = 3.0, 1.5
    fits = [MetricFit(1.0, np.array([-a, 0.0])), MetricFit(0.0, np.array([0.0, -b]))]
    expected = (b + math.log(a / b)) / (a + b)
    assert minimise(fits, EVEN, EVEN) == pytest.approx([expected, 1 - expected], abs=1e-4)


def test_one_metric_goes_to_the_best_domain_as_far_as_its_cap() -> None:
    fits = [MetricFit(1.0, np.array([0.1, -1.0, -0.5]))]
    natural = np.array([0.8, 0.1, 0.1])
    assert minimise(fits, np.ones(1), natural) == pytest.approx([0, 1, 0], abs=1e-6)
    caps = np.array([1.0, 0.3, 0.45])
    assert minimise(fits, np.ones(1), natural, caps) == pytest.approx([0.25, 0.3, 0.45], abs=1e-6)


def test_the_pull_leads_from_the_fit_to_the_natural_shares() -> None:
    fits, natural = [MetricFit(1.0, np.array([0.0, -1.0, -0.5]))], np.array([0.7, 0.1, 0.2])
    shares = [minimise(fits, np.ones(1), natural, None, pull) for pull in (0.0, 0.1, 1.0, 1000.0)]
    assert shares[0] == pytest.approx([0, 1, 0], abs=1e-6)
    assert shares[3] == pytest.approx(natural, abs=1e-3)
    assert [share[1] for share in shares] == sorted((share[1] for share in shares), reverse=True)
    # Where the loss is flat the exact answer is a softmax: log w = log p - slope/pull + constant.
    flat = [MetricFit(0.0, 1e-4 * np.array([0.0, -1.0, 2.0]))]
    exact = natural * np.exp(-1e-4 * np.array([0.0, -1.0, 2.0]) / 1e-4)
    assert minimise(flat, np.ones(1), natural, None, 1e-4) == pytest.approx(exact / exact.sum(), abs=1e-3)


@pytest.mark.parametrize("pull", [0.0, 0.2])
def test_no_mixture_of_a_fine_grid_is_better(pull: float) -> None:
    source = np.random.default_rng(8)
    grid = np.array([point for point in itertools.product(np.arange(51), repeat=3) if sum(point) == 50]) / 50
    for _ in range(4):
        fits = [MetricFit(0.0, source.normal(0, 1.5, 3)) for _ in range(4)]
        natural, caps = source.dirichlet(np.ones(3)), source.uniform(0.35, 1.0, 3)
        importance = source.dirichlet(np.ones(4))

        def value(
            shares: F64, fits: Any = fits, importance: Any = importance, natural: Any = natural, pull: float = pull
        ) -> F64:
            loss = sum(weight * fit.predict(shares) for weight, fit in zip(importance, fits, strict=True))
            divergence = (shares * np.log(np.maximum(shares, 1e-12) / natural)).sum(axis=-1)
            return np.asarray(loss + pull * divergence)

        best = minimise(fits, importance, natural, caps, pull)
        assert best.sum() == pytest.approx(1)
        assert (best <= caps + 1e-9).all()
        allowed = grid[(grid <= caps).all(axis=1)]
        assert value(best) <= value(allowed).min() + 1e-9
        assert value(best) >= value(allowed).min() - 0.02


# ---- from tables to weights


def tables(tmp_path: Path, runs: int = 24, noise: float = 0.002) -> tuple[Path, Path]:
    """Three domains; code lowers one metric, books the other, and web neither."""
    domains = ["books", "code", "web"]
    ratios = mixtures(runs, 3, 9)
    laws = {
        "bpb_code": MetricFit(0.8, np.array([0.2, -1.5, 0.3])),
        "bpb_prose": MetricFit(1.0, np.array([-1.2, 0.4, 0.1])),
    }
    source = np.random.default_rng(10)
    losses = np.column_stack([law.predict(ratios) + noise * source.normal(size=runs) for law in laws.values()])
    names = [f"run_{i}" for i in range(runs)]
    first = write_csv(
        tmp_path / "ratios.csv", ["run", *domains], [[n, *r] for n, r in zip(names, ratios.tolist(), strict=True)]
    )
    rows = [[n, "a label", *r] for n, r in zip(names, losses.tolist(), strict=True)]
    return first, write_csv(tmp_path / "metrics.csv", ["run_id", "name", *laws], rows[::-1])


def test_tables_in_weights_out(tmp_path: Path) -> None:
    ratios, metrics = tables(tmp_path)
    found = best_weights(ratios, metrics, pull=0.0)
    # By the true laws: books w, code 1 - w, and the derivative of the sum is zero.
    line = np.linspace(0, 1, 100_001)
    truth = np.exp(0.2 * line - 1.5 * (1 - line)) + np.exp(-1.2 * line + 0.4 * (1 - line))
    best = float(line[truth.argmin()])
    assert found["weights"] == pytest.approx({"books": best, "code": 1 - best, "web": 0}, abs=0.03)
    assert found["runs"] == 24
    for report in found["metrics"].values():
        assert report["left_out_rank_correlation"] > 0.99
        assert report["left_out_error"] < 0.005 < report["spread"]
        assert report["at_weights"] < report["at_natural"]
    assert found == best_weights(ratios, metrics, pull=0.0)
    lines = weights_table(found).splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["books", "code", "web"]
    assert lines[6].split()[0] == "bpb_code"
    only_code = best_weights(ratios, metrics, pull=0.0, importance={"bpb_prose": 0.0})
    assert only_code["weights"] == pytest.approx({"books": 0, "code": 1, "web": 0}, abs=1e-4)


def test_caps_come_from_sizes_budget_and_epochs(tmp_path: Path) -> None:
    ratios, metrics = tables(tmp_path)
    tokens = {"books": 1e6, "code": 1e5, "web": 1e7}
    found = best_weights(ratios, metrics, tokens=tokens, token_budget=2e6, max_epochs=4, pull=0.0)
    assert found["caps"] == pytest.approx({"books": 2.0, "code": 0.2, "web": 20.0})
    assert found["weights"]["code"] == pytest.approx(0.2)
    assert found["natural"] == pytest.approx({name: size / 11.1e6 for name, size in tokens.items()}, abs=1e-5)
    with pytest.raises(GristmillError, match=r"max_epochs 1 over 11,100,000 tokens gives 11,100,000, less than"):
        best_weights(ratios, metrics, tokens=tokens, token_budget=2e7, max_epochs=1)
    with pytest.raises(GristmillError, match="needs all three"):
        best_weights(ratios, metrics, max_epochs=4)


def test_one_domain_needs_no_fit(tmp_path: Path) -> None:
    ratios = write_csv(tmp_path / "r.csv", ["run", "web"], [["a", 1]])
    metrics = write_csv(tmp_path / "m.csv", ["run", "loss"], [["a", 2.5]])
    assert best_weights(ratios, metrics)["weights"] == {"web": 1.0}


def run_names(count: int) -> list[list[Any]]:
    return [[f"r{i}"] for i in range(count)]


@pytest.mark.parametrize(
    ("ratios", "metrics", "message"),
    [
        (
            [["a", 0.5, 0.5], ["b", 0.2, 0.8], ["c", 0.9, 0.1]],
            None,
            r"3 runs with metrics are too few for 2 domains; a ",
        ),
        ([["a", 0.5, 0.6], ["b", 0.2, 0.8]], None, r"ratios\.csv, run a: the shares are not positive numbers that sum"),
        ([["a", 0.5, 0.5], ["a", 0.2, 0.8]], None, "run 'a' stands there twice"),
        ([["a", 0.5, "x"]], None, "run a, column web: 'x' is no number"),
        ([["a", 0.5, ""]], None, "run a, column web: '' is no number"),
        ([["a", 0.5, 0.5]], [["z", 1.0]], r"metrics\.csv: .*ratios\.csv has no run 'z'"),
        ([["a", 0.5, 0.5]], [["a", -1.0]], "run a, column loss: a loss must be above 0"),
        ([["a", 0.5, 0.5]], [["a", "nan"]], "run a, column loss: 'nan' is no number"),
        ([[f"r{i}", 0.3, 0.7] for i in range(6)], None, "the share of books, web never changes"),
        ([[f"r{i}", i / 10, 1 - i / 10] for i in range(6)], [[f"r{i}", 2.0] for i in range(6)], "'loss' is the same"),
        ([], None, r"ratios\.csv needs a row for each proxy"),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, ratios: list[list[Any]], metrics: list[list[Any]] | None, message: str
) -> None:
    first = write_csv(tmp_path / "ratios.csv", ["run", "books", "web"], ratios)
    losses = metrics or [[name, 1.0 + i / 7] for i, name in enumerate(dict.fromkeys(row[0] for row in ratios))]
    second = write_csv(tmp_path / "metrics.csv", ["run", "loss"], losses or [["a", 1.0]])
    with pytest.raises(GristmillError, match=message):
        best_weights(first, second)


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    ratios, _ = tables(tmp_path)
    with pytest.raises(GristmillError, match=r"nothing\.csv cannot be read as a CSV table"):
        best_weights(ratios, tmp_path / "nothing.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00run")
    with pytest.raises(GristmillError, match=r"binary\.csv cannot be read as a CSV table"):
        best_weights(ratios, tmp_path / "binary.csv")
    with pytest.raises(GristmillError, match="importance names 'bpb_law'; the metrics are bpb_code, bpb_prose"):
        best_weights(*tables(tmp_path), importance={"bpb_law": 1.0})
    with pytest.raises(GristmillError, match="names the domain 'code', which holds no text"):
        best_weights(*tables(tmp_path), tokens={"books": 1.0, "web": 2.0})


def test_runs_without_metrics_are_left_out(tmp_path: Path) -> None:
    ratios, metrics = tables(tmp_path)
    lines = metrics.read_text().splitlines()
    metrics.write_text("\n".join(lines[:-3]) + "\n")
    assert best_weights(ratios, metrics)["runs"] == 21


# ---- proposals


def test_proposals_lie_around_the_natural_shares(tmp_path: Path) -> None:
    natural = {"books": 100.0, "code": 300.0, "web": 600.0}
    proposed = propose_ratios(natural, 400, seed=1)
    assert proposed == propose_ratios(natural, 400, seed=1) != propose_ratios(natural, 400, seed=2)
    table = np.array([list(mixture.values()) for mixture in proposed])
    assert list(proposed[0]) == ["books", "code", "web"]
    assert (table >= 0).all()
    assert table.sum(axis=1) == pytest.approx(np.ones(400), abs=1e-9)
    assert table.mean(axis=0) == pytest.approx([0.1, 0.3, 0.6], abs=0.05)
    close, wide = (
        np.array([[*m.values()] for m in propose_ratios(natural, 200, 3, (s, s))]).std(axis=0).max() for s in (50, 0.5)
    )
    assert close < wide / 2
    write_ratios(tmp_path / "ratios.csv", proposed)
    with open(tmp_path / "ratios.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows[:2]] == ["run_001", "run_002"]
    assert [float(row["code"]) for row in rows] == [mixture["code"] for mixture in proposed]
    with pytest.raises(GristmillError, match="every domain needs a positive natural share"):
        propose_ratios({"books": 0.0, "web": 1.0}, 3, seed=1)
