"""Recall and precision of deduplication on a corpus in which every similarity is known."""

from __future__ import annotations

import sysconfig
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from gristmill.bench.planted import Planted, dedup_quality, grams, jaccard, plant, score, similar_pairs
from gristmill.errors import GristmillError

LIBRARY = Path(sysconfig.get_path("stdlib"))


def test_similar_pairs_are_all_pairs() -> None:
    words = [f"w{i}" for i in range(60)]
    texts = [" ".join(words[start : start + 20]) for start in range(0, 30, 2)] + ["", "a b", "A, b.", "..."]
    sets = [grams(text) for text in texts]
    expected = [(a, b, jaccard(sets[a], sets[b])) for a, b in combinations(range(len(sets)), 2)]
    assert list(similar_pairs(sets, 0.3)) == [pair for pair in expected if pair[2] >= 0.3]
    assert grams("One, two three four FIVE six") == {"one two three four five", "two three four five six"}
    assert grams("水车在河边, mill") == {"水 车 在 河 边", "车 在 河 边 mill"}
    assert (len(grams("a b")), len(grams(""))) == (1, 0)


def test_a_score_counts_what_stayed_and_why_the_rest_went() -> None:
    """0 and 1 are alike, 2 resembles 1 a little, 3 and 4 are alike, 5 resembles nothing."""
    planted = Planted(("",) * 6, ("original",) * 6, ((0, 1, 0.95), (1, 2, 0.65), (3, 4, 0.85)))
    found = score(planted, np.array([-1, 0, 1, -1, -1, 0]))
    assert found["recall"] == 0.5
    assert found["precision"] == round(1 / 3, 4)  # 1 went for 0; 2 resembles nothing that stayed by 0.7, nor does 5
    assert found["removed"] == 3
    assert found["largest_cluster"] == 4
    assert found["bins"]["0.9"] == {"pairs": 1, "dealt_with": 1.0, "together": 1.0}
    assert found["bins"]["0.6"] == {"pairs": 1, "dealt_with": 1.0, "together": 1.0}
    assert found["bins"]["0.8"] == {"pairs": 1, "dealt_with": 0.0, "together": 0.0}
    assert found["bins"]["0.5"] == {"pairs": 0, "dealt_with": None, "together": None}


def test_quality_on_a_small_corpus() -> None:
    directories = [LIBRARY / "email", LIBRARY / "asyncio", LIBRARY / "encodings"]
    corpus = plant(directories, 60, seed=1)
    assert corpus == plant(directories, 60, seed=1)
    assert set(corpus.kinds) == {"original", "edited", "headed", "cut", "chain", "template"}
    found = dedup_quality(directories, 60, seed=1)
    assert found["documents"] == len(corpus.texts)
    checked, merged = found["checked"], found["merged"]
    assert checked["recall"] >= 0.97
    assert checked["precision"] >= 0.95
    assert merged["precision"] < 0.9  # what the check is for
    assert merged["largest_cluster"] > 2 * checked["largest_cluster"]
    with pytest.raises(GristmillError, match="different passages were found; name more directories"):
        plant([LIBRARY / "json"], 60)


@pytest.mark.slow
@pytest.mark.single
def test_quality() -> None:
    found = dedup_quality(originals=1500)
    checked = found["checked"]
    assert checked["recall"] >= 0.97
    assert checked["precision"] >= 0.95
    assert sum(checked["bins"][low]["pairs"] for low in ("0.8", "0.9")) > 300
