"""The validation split and the domain weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.data.config import MixtureConfig
from gristmill.data.mixture import (
    choose_validation,
    choose_validation_hashed,
    domain_tokens,
    key_hashes,
    settle_mixture,
)
from gristmill.data.mixture.weights import by_temperature, cap_epochs, unimax
from gristmill.errors import GristmillError


def split(works: list[str], fraction: float = 0.1, minimum: int = 2, domain: str = "books") -> dict[str, bool]:
    ids = [f"{work}/{i}" for i, work in enumerate(works)]
    return dict(zip(ids, choose_validation([domain] * len(works), works, ids, fraction, minimum), strict=True))


def position(key: str) -> float:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def choose_plainly(domains: list[str], works: list[str], ids: list[str], fraction: float, minimum: int) -> list[bool]:
    """The same choice with dictionaries, one document at a time."""
    chosen = [False] * len(ids)
    for domain in set(domains):
        members = [i for i, name in enumerate(domains) if name == domain]
        keys = ids if len({works[i] for i in members}) < 4 else works
        ranked = sorted(dict.fromkeys(keys[i] for i in members), key=position)
        most = max(len(ranked) // 4, 1) if len(ranked) > 1 else 0
        taken = {key for rank, key in enumerate(ranked[:most]) if rank < minimum or position(key) < fraction}
        for i in members:
            chosen[i] = keys[i] in taken
    return chosen


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 30)), max_size=120), st.integers(1, 4))
def test_the_choice_is_the_same_as_one_document_at_a_time(rows: list[tuple[str, int]], minimum: int) -> None:
    domains, works = [domain for domain, _ in rows], [f"work {number}" for _, number in rows]
    ids = [f"id {i}" for i in range(len(rows))]
    expected = choose_plainly(domains, works, ids, 0.15, minimum)
    assert choose_validation(domains, works, ids, 0.15, minimum) == expected
    numbers = np.array([ord(domain) for domain in domains], np.int16)
    hashed = choose_validation_hashed(numbers, key_hashes(works), key_hashes(ids), 0.15, minimum)
    assert hashed.tolist() == expected


def test_the_share_is_about_the_fraction() -> None:
    chosen = split([f"work {i}" for i in range(5000)])
    assert sum(chosen.values()) == pytest.approx(500, abs=70)  # 3.3 standard deviations of a binomial


def test_a_work_is_never_divided() -> None:
    chosen = split([f"work {i % 40}" for i in range(400)], fraction=0.2)
    by_work: dict[str, set[bool]] = {}
    for key, validation in chosen.items():
        by_work.setdefault(key.split("/")[0], set()).add(validation)
    assert all(len(sides) == 1 for sides in by_work.values())
    assert any(chosen.values())


def test_works_keep_their_side_when_others_come() -> None:
    few, many = split([f"work {i}" for i in range(300)]), split([f"work {i}" for i in range(600)])
    assert all(many[key] == side for key, side in few.items())


def test_every_domain_gets_its_least_but_never_more_than_a_quarter() -> None:
    works = [f"work {i}" for i in range(20)]
    assert sum(split(works, fraction=1e-9, minimum=3).values()) == 3
    assert sum(split(works, fraction=1e-9, minimum=50).values()) == 5
    assert sum(split(works, fraction=0.49, minimum=1).values()) <= 5
    both = choose_validation(["a"] * 20 + ["b"] * 20, works * 2, [str(i) for i in range(40)], 1e-9, 3)
    assert sum(both[:20]) == sum(both[20:]) == 3


def test_a_domain_of_few_works_is_divided_by_document() -> None:
    assert sum(split(["one book"] * 12, minimum=2).values()) == 2
    assert sum(split(["one book"] * 2, minimum=2).values()) == 1
    assert sum(split(["one book"], minimum=2).values()) == 0
    assert choose_validation([], [], [], 0.1, 2) == []


# ---- weights


def weights(sizes: dict[str, int], **config: object) -> dict[str, float]:
    return settle_mixture(sizes, MixtureConfig.model_validate(config)).weights


def test_weights_by_temperature() -> None:
    sizes = {"web": 900, "books": 100}
    assert weights(sizes, temperature=1.0) == pytest.approx({"books": 0.1, "web": 0.9})
    assert weights(sizes) == pytest.approx({"books": 10 / 40, "web": 30 / 40})
    assert weights(sizes, temperature=0.0) == {"books": 0.5, "web": 0.5}
    assert list(weights(sizes)) == ["books", "web"]
    # mBERT's exponent on sizes whose ratio is 1000 : 1 (multilingual.md of its repository: 1000x becomes about 100x)
    shares = by_temperature({"en": 1000.0, "is": 1.0}, 0.7)
    assert shares["en"] / shares["is"] == pytest.approx(1000**0.7) == pytest.approx(125.9, abs=0.1)


def test_given_weights_are_normalised_and_checked() -> None:
    assert weights({"web": 1, "books": 5}, weights={"web": 3, "books": 1}) == {"books": 0.25, "web": 0.75}
    with pytest.raises(GristmillError, match=r"corpus\.mixture\.weights lacks books and names poems"):
        weights({"web": 1, "books": 5}, weights={"web": 3, "poems": 1})
    with pytest.raises(GristmillError, match="no domain holds any training text"):
        weights({"web": 0})


def test_weights_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.json"
    for content in ({"web": 3, "books": 1}, {"weights": {"web": 3, "books": 1}, "runs": 12}):
        path.write_text(json.dumps(content))
        assert weights({"web": 1, "books": 5}, weights=str(path)) == {"books": 0.25, "web": 0.75}
    path.write_text('{"web": -1, "books": 1}')
    with pytest.raises(GristmillError, match=r"weights\.json holds a negative weight"):
        weights({"web": 1, "books": 5}, weights=str(path))
    path.write_text("[1]")
    with pytest.raises(GristmillError, match=r"weights\.json is no JSON file of domains and weights"):
        weights({"web": 1, "books": 5}, weights=str(path))


def test_gpt3() -> None:
    """arXiv 2005.14165, table 2.2: tokens, weights and epochs as printed. The weights sum to 101 %; the epochs of
    WebText2 and Wikipedia (2.9 and 3.4) do not follow from the printed weights, which give 3.4 and 3.0."""
    tokens = {"common_crawl": 410e9, "webtext2": 19e9, "books1": 12e9, "books2": 55e9, "wikipedia": 3e9}
    printed = {"common_crawl": 0.60, "webtext2": 0.22, "books1": 0.08, "books2": 0.08, "wikipedia": 0.03}
    config = MixtureConfig(weights=printed, token_budget=300_000_000_000)
    found = settle_mixture({name: int(4 * count) for name, count in tokens.items()}, config)
    assert found.tokens == tokens
    assert sum(found.weights.values()) == pytest.approx(1)
    assert found.epochs == pytest.approx(
        {"common_crawl": 0.44, "webtext2": 3.44, "books1": 1.98, "books2": 0.43, "wikipedia": 2.97}, abs=0.006
    )
    assert found.drawn["common_crawl"] == pytest.approx(180e9, rel=0.011)
    table = found.as_json()
    assert table["token_budget"] == 300_000_000_000
    assert table["domains"]["wikipedia"] == {
        "bytes": 12_000_000_000,
        "tokens": 3_000_000_000,
        "weight": pytest.approx(0.0297, abs=1e-4),
        "drawn_tokens": pytest.approx(8.9e9, rel=0.01),
        "epochs": pytest.approx(2.97, abs=0.01),
    }


def test_unimax_as_its_package_computes_it() -> None:
    """The worked example of `unimax_sampling` 1.0 (README): characters of five languages of FineWeb-2, budget, cap."""
    sizes = {"swe": 179955884499, "fas": 184595788282, "ekk": 42541080893, "isl": 10027573389, "fao": 549707867}
    shares = unimax(sizes, 250_000_000_000, 4)
    expected = {"fao": 0.008795325872, "isl": 0.160441174224, "ekk": 0.2769211666, "swe": 0.2769211666}
    assert {name: shares[name] for name in expected} == pytest.approx(expected, rel=1e-9)
    config = MixtureConfig(method="unimax", token_budget=250_000_000_000, max_epochs=4, bytes_per_token=1.0)
    epochs = settle_mixture(sizes, config).epochs
    assert epochs == pytest.approx({"fao": 4, "isl": 4, "ekk": 1.627375, "swe": 0.384707, "fas": 0.375037}, rel=1e-5)
    assert unimax(sizes, 250_000_000_000, None) == pytest.approx(dict.fromkeys(sizes, 0.2))


def test_a_cap_on_repeats_moves_the_excess_in_proportion() -> None:
    tokens = {"big": 1000.0, "middle": 100.0, "small": 10.0}
    # 400 tokens: small may give 20, and the rest goes 5 : 3 to the others, of whom middle may give 200.
    capped = cap_epochs({"big": 0.5, "middle": 0.3, "small": 0.2}, tokens, 400, 2)
    assert capped == pytest.approx({"big": 380 / 400 * 5 / 8, "middle": 380 / 400 * 3 / 8, "small": 20 / 400})
    tight = cap_epochs({"big": 0.1, "middle": 0.7, "small": 0.2}, tokens, 400, 2)
    assert tight == pytest.approx({"big": 180 / 400, "middle": 200 / 400, "small": 20 / 400})
    assert cap_epochs({"big": 0.5, "middle": 0.5, "small": 0.0}, tokens, 400, 2)["small"] == 0


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 10**6), st.floats(0.001, 1)), min_size=1, max_size=8), st.floats(0.1, 1))
def test_capped_weights_hold_the_cap_and_sum_to_one(domains: list[tuple[int, float]], filled: float) -> None:
    tokens = {str(i): float(size) for i, (size, _) in enumerate(domains)}
    total = sum(weight for _, weight in domains)
    given_weights = {str(i): weight / total for i, (_, weight) in enumerate(domains)}
    budget = 3 * sum(tokens.values()) * filled
    capped = cap_epochs(given_weights, tokens, budget, 3)
    assert sum(capped.values()) == pytest.approx(1)
    assert all(weight * budget <= 3 * tokens[name] * (1 + 1e-9) for name, weight in capped.items())
    free = [name for name in tokens if capped[name] * budget < 3 * tokens[name] * (1 - 1e-6)]
    ratios = [capped[name] / given_weights[name] for name in free]
    assert ratios == pytest.approx([ratios[0]] * len(ratios)) if ratios else True
    assert all(ratio >= 1 - 1e-9 for ratio in ratios)


def test_a_budget_that_cannot_be_met_is_an_error_with_the_numbers() -> None:
    config = MixtureConfig(token_budget=1_000_000, max_epochs=4)
    with pytest.raises(GristmillError) as caught:
        settle_mixture({"books": 400_000, "web": 400_000}, config)
    said = str(caught.value)
    assert "4 epochs (max_epochs) of all domains are 800,000 tokens, token_budget is 1,000,000" in said
    assert "books 100,000, web 100,000 tokens" in said
    assert "raise max_epochs to 5.00 or more" in said


def test_without_a_budget_epochs_are_those_of_one_pass_over_everything() -> None:
    found = settle_mixture({"books": 300, "web": 100}, MixtureConfig(temperature=0.0))
    assert found.budget == 100
    assert found.epochs == pytest.approx({"books": 50 / 75, "web": 2.0})
    counted = settle_mixture({"books": 300, "web": 100}, MixtureConfig(temperature=0.0), {"books": 30.0, "web": 50.0})
    assert counted.budget == 80
    assert counted.epochs == pytest.approx({"books": 40 / 30, "web": 0.8})


def test_tokens_of_the_domains_are_read_from_a_report(tmp_path: Path) -> None:
    found = settle_mixture({"books": 300, "web": 100}, MixtureConfig())
    (tmp_path / "report.json").write_text(json.dumps({"mixture": found.as_json()}))
    assert domain_tokens(tmp_path) == {"books": 75, "web": 25}
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(GristmillError, match=r"report\.json is missing or no corpus report; run stage 'corpus' again"):
        domain_tokens(tmp_path)
