"""MinHash, candidates, and the check before removal."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest

from gristmill.data.minhash import band_hashes, find_duplicates, jaccard, shares_a_band, shingles, signatures
from gristmill.data.textbatch import TextBatch


def silent(done: int, total: int) -> None:
    pass


def edited(text: str, rate: float, seed: int) -> str:
    """The text with a share of its words replaced."""
    source = random.Random(seed)
    return " ".join(f"edit{source.randrange(10**6)}" if source.random() < rate else word for word in text.split(" "))


def true_jaccard(a: str, b: str, n: int = 5) -> float:
    sets = []
    for text in (a, b):
        words = "".join(c if c.isalnum() or c == "_" else " " for c in text.lower()).split()
        sets.append({tuple(words[i : i + n]) for i in range(max(len(words) - n, 0) + 1)} if words else set())
    return len(sets[0] & sets[1]) / max(len(sets[0] | sets[1]), 1)


def duplicates_of(
    texts: list[str], threshold: float = 0.7, bands: int = 14, order: list[int] | None = None
) -> dict[int, int]:
    found = shingles(TextBatch(texts), 5)
    hashes = band_hashes(signatures(found, 8 * bands), bands)
    wanted = np.array(order if order is not None else np.flatnonzero(shares_a_band(hashes)), np.int64)
    matches = find_duplicates(hashes, wanted, threshold, found.of, silent)
    return {duplicate.removed: duplicate.kept for duplicate in matches.duplicates}


def test_shingle_sets_have_the_true_jaccard(prose: Callable[..., str]) -> None:
    texts = [prose(1), edited(prose(1), 0.02, 5), prose(2), "one two three", "One, two: three!", "one two", ""]
    found = shingles(TextBatch(texts), 5)
    for i, a in enumerate(texts):
        for j, b in enumerate(texts):
            assert jaccard(found.of(i), found.of(j)) == pytest.approx(true_jaccard(a, b))
    assert len(found.of(6)) == 0


def test_signatures_estimate_the_jaccard(prose: Callable[..., str]) -> None:
    """The estimate of k minima has standard deviation sqrt(J (1 - J) / k); 40 pairs are within 4.5 of them, and their
    mean error is near 0."""
    pairs = [(prose(seed, 300), edited(prose(seed, 300), 0.01 * (seed % 12), seed)) for seed in range(40)]
    texts = [text for pair in pairs for text in pair]
    found = shingles(TextBatch(texts), 5)
    size = 512
    signature = signatures(found, size)
    errors = []
    for i in range(0, len(texts), 2):
        truth = jaccard(found.of(i), found.of(i + 1))
        estimate = float((signature[i] == signature[i + 1]).mean())
        deviation = (truth * (1 - truth) / size) ** 0.5
        assert abs(estimate - truth) <= 4.5 * deviation + 1e-9
        errors.append((estimate - truth) / max(deviation, 1e-9))
    assert abs(np.mean(errors)) < 1


def test_a_signature_does_not_depend_on_the_batch(prose: Callable[..., str]) -> None:
    texts = ["", *(prose(seed, 900) for seed in range(30)), "a b"]  # more n-grams than are hashed at a time
    together = signatures(shingles(TextBatch(texts), 5), 16)
    for i in (0, 1, 20, 30, 31):
        assert (signatures(shingles(TextBatch([texts[i]]), 5), 16)[0] == together[i]).all()


def test_band_hashes_agree_exactly_where_all_rows_do() -> None:
    signature = np.arange(24, dtype=np.uint32).reshape(2, 12)
    signature[1, :4] = signature[0, :4]
    signature[1, 4:7] = signature[0, 4:7]  # three of four rows
    hashes = band_hashes(signature, 3)
    assert (hashes[0] == hashes[1]).tolist() == [True, False, False]
    assert len(set(band_hashes(np.zeros((1, 12), np.uint32), 3)[0].tolist())) == 3  # bands are told apart


def test_planted_near_duplicates_are_found_and_others_kept(prose: Callable[..., str]) -> None:
    originals = [prose(seed, 250) for seed in range(60)]
    copies = [edited(text, 0.01, seed) for seed, text in enumerate(originals)]
    similar = [i for i, (a, b) in enumerate(zip(originals, copies, strict=True)) if true_jaccard(a, b) >= 0.8]
    removed = duplicates_of(originals + copies)
    found = [i for i in similar if removed.get(i + 60) == i]
    assert len(similar) > 40
    assert len(found) >= 0.92 * len(similar) - 2  # 1 - (1 - 0.8**8)**14 = 0.92 is the least of them
    assert all(kept == document - 60 for document, kept in removed.items())


def test_no_document_is_removed_for_one_that_it_is_not_similar_to() -> None:
    """A chain of windows, each similar to the next: merging pairs would leave only the first of all."""
    words = [f"w{i}" for i in range(600)]
    texts = [" ".join(words[start : start + 300]) for start in range(0, 300, 20)]
    assert true_jaccard(texts[0], texts[1]) > 0.8
    assert true_jaccard(texts[0], texts[-1]) < 0.1
    # With 64 bands of 2 all pairs are candidates, so only the check decides.
    found = shingles(TextBatch(texts), 5)
    hashes = band_hashes(signatures(found, 128), 64)
    matches = find_duplicates(hashes, np.arange(len(texts)), 0.7, found.of, silent)
    removed = {duplicate.removed for duplicate in matches.duplicates}
    kept = [i for i in range(len(texts)) if i not in removed]
    assert len(kept) >= 4
    for duplicate in matches.duplicates:
        assert duplicate.kept in kept
        assert true_jaccard(texts[duplicate.removed], texts[duplicate.kept]) == pytest.approx(duplicate.jaccard)
        assert duplicate.jaccard >= 0.7
    for i in kept:
        assert all(true_jaccard(texts[i], texts[j]) < 0.7 for j in kept if j != i)
    assert matches.compared > matches.similar >= len(removed)


def test_the_preferred_document_stays(prose: Callable[..., str]) -> None:
    text = prose(1, 300)
    texts = [text, text, text]
    assert duplicates_of(texts, order=[2, 0, 1]) == {0: 2, 1: 2}
    assert duplicates_of(texts, order=[0, 1, 2]) == {1: 0, 2: 0}


def test_similar_below_the_threshold_stays(prose: Callable[..., str]) -> None:
    a = prose(1, 300)
    b = edited(a, 0.03, 1)
    similarity = true_jaccard(a, b)
    assert 0.5 < similarity < 0.9
    assert duplicates_of([a, b], threshold=similarity + 0.01, bands=64) == {}
    assert duplicates_of([a, b], threshold=similarity - 0.01, bands=64) == {1: 0}


def test_shares_a_band() -> None:
    bands = np.array([[1, 2], [3, 4], [5, 2], [4, 3]], np.uint64)
    assert shares_a_band(bands).tolist() == [True, False, True, False]
