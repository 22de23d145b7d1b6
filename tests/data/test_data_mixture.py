"""The validation split and the domain weights."""

from __future__ import annotations

import pytest

from gristmill.data.mixture import choose_validation, mixture
from gristmill.errors import GristmillError


def split(works: list[str], fraction: float = 0.1, minimum: int = 2, domain: str = "books") -> dict[str, bool]:
    ids = [f"{work}/{i}" for i, work in enumerate(works)]
    return dict(zip(ids, choose_validation([domain] * len(works), works, ids, fraction, minimum), strict=True))


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


def test_weights_by_temperature() -> None:
    sizes = {"web": 900, "books": 100}
    assert mixture(sizes, None, 1.0) == pytest.approx({"books": 0.1, "web": 0.9})
    assert mixture(sizes, None, 0.5) == pytest.approx({"books": 10 / 40, "web": 30 / 40})
    assert mixture(sizes, None, 0.0) == {"books": 0.5, "web": 0.5}
    assert list(mixture(sizes, None, 1.0)) == ["books", "web"]


def test_given_weights_are_normalised_and_checked() -> None:
    assert mixture({"web": 1, "books": 5}, {"web": 3, "books": 1}, 0.5) == {"books": 0.25, "web": 0.75}
    with pytest.raises(GristmillError, match=r"corpus\.mixture\.weights lacks books and names poems"):
        mixture({"web": 1, "books": 5}, {"web": 3, "poems": 1}, 0.5)
