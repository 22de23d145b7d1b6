"""Near-duplicates: candidates, the check before removal, and that nothing depends on how the work is divided."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from gristmill.data.config import NearDuplicateConfig
from gristmill.data.config.dedup import for_threshold
from gristmill.data.dedup import verify
from gristmill.data.dedup.against import OtherCorpora, signature_schema
from gristmill.data.dedup.compiled import band_hashes, choose, flatten, unite
from gristmill.data.dedup.lsh import least_equal
from gristmill.data.dedup.near import NearDuplicates, Sizes, near_duplicates
from gristmill.data.dedup.tables import DocumentFiles
from gristmill.data.kernel import signatures
from gristmill.data.pool import Pool, Result, Task, load
from gristmill.errors import GristmillError

Prose = Callable[..., str]
ALL_PAIRS = NearDuplicateConfig(bands=64, rows=1)  # so many bands that whatever resembles at all is a candidate
SMALL = Sizes(signed=7, paired=11, read=5, verified=3)


def here(target: str, tasks: Any) -> Iterator[Result]:
    return map(load(target), tasks)


def edited(text: str, rate: float, seed: int) -> str:
    """The text with a share of its words replaced."""
    source = random.Random(seed)
    return " ".join(f"edit{source.randrange(10**6)}" if source.random() < rate else word for word in text.split(" "))


def grams(text: str, n: int = 5) -> set[tuple[str, ...]]:
    words = "".join(c if c.isalnum() or c == "_" else " " for c in text.lower()).split()
    return {tuple(words[i : i + n]) for i in range(max(len(words) - n, 0) + 1)} if words else set()


def true_jaccard(a: str, b: str) -> float:
    return len(grams(a) & grams(b)) / max(len(grams(a) | grams(b)), 1)


def columns(texts: list[str], config: NearDuplicateConfig) -> dict[str, Any]:
    signed = signatures(pa.array(texts), config.ngram, config.permutations)
    values = [row.tobytes() if grams(text) else None for row, text in zip(signed, texts, strict=True)]
    return {"text": texts, "bytes": [len(t.encode()) for t in texts], "signature": pa.array(values, pa.binary())}


def write_files(directory: Path, texts: list[str], config: NearDuplicateConfig, rows: int = 10) -> DocumentFiles:
    """Annotated files of so many documents, two row groups each."""
    directory.mkdir(parents=True)
    paths = []
    for number, start in enumerate(range(0, len(texts), rows)):
        paths.append(directory / f"{number:05d}.parquet")
        table = pa.table(columns(texts[start : start + rows], config))
        pq.write_table(table, paths[-1], row_group_size=max(1, rows // 2))
    return DocumentFiles.of(paths)


def removed(
    texts: list[str], work: Path, config: NearDuplicateConfig = NearDuplicateConfig(), **more: Any
) -> tuple[dict[int, int], NearDuplicates]:
    """removed document -> kept one."""
    files = write_files(work / "files", texts, config)
    eligible = more.pop("eligible", np.ones(len(texts), np.bool_))
    found = near_duplicates(files, eligible, config, work / "near", here, **more)
    return dict(zip(found.removed.tolist(), found.kept.tolist(), strict=True)), found


def greedy(texts: list[str], threshold: float) -> dict[int, int]:
    """What should be removed, by comparing everything: the longest first, each with the most similar one that stays."""
    kept: list[int] = []
    gone = {}
    for document in sorted(range(len(texts)), key=lambda i: (-len(texts[i].encode()), i)):
        similarity = [true_jaccard(texts[document], texts[other]) for other in kept]
        if similarity and max(similarity) >= threshold:
            gone[document] = kept[similarity.index(max(similarity))]
        else:
            kept.append(document)
    return gone


@pytest.fixture
def family(prose: Prose) -> list[str]:
    """Texts of all degrees of similarity, in no order."""
    texts = []
    for seed in range(6):
        original = prose(seed, 120)
        texts += [original, *(edited(original, rate, seed) for rate in (0.01, 0.02, 0.04, 0.06, 0.1))]
        texts.append(f"{original}\n{prose(100 + seed, 8 * seed)}")
    texts += ["", "one two three", "One, two: three!", "one two", "...", "one two three four", prose(0, 121)]
    random.Random(1).shuffle(texts)
    return texts


@pytest.mark.parametrize("threshold", [0.4, 0.7, 1.0])
def test_it_removes_what_comparing_everything_would(threshold: float, family: list[str], tmp_path: Path) -> None:
    config = ALL_PAIRS.model_copy(update={"threshold": threshold})
    gone, found = removed(family, tmp_path, config)
    assert gone == greedy(family, threshold)
    assert len(gone) > 3
    for document, kept, similarity in zip(found.removed, found.kept, found.jaccard, strict=True):
        assert true_jaccard(family[document], family[kept]) == pytest.approx(similarity, abs=1e-12)
    assert found.compared >= found.similar >= len(gone)


def test_planted_near_duplicates_are_found_and_others_kept(prose: Prose, tmp_path: Path) -> None:
    originals = [prose(seed, 250) for seed in range(60)]
    copies = [edited(text, 0.01, seed) for seed, text in enumerate(originals)]
    similar = [i for i, (a, b) in enumerate(zip(originals, copies, strict=True)) if true_jaccard(a, b) >= 0.8]
    gone, _ = removed(originals + copies, tmp_path)
    found = [i for i in similar if i in gone or i + 60 in gone]
    assert len(similar) > 40
    assert len(found) >= 0.92 * len(similar) - 2  # 1 - (1 - 0.8**8)**14 = 0.92 is the least of them
    assert all(abs(kept - document) == 60 for document, kept in gone.items())


def test_no_document_is_removed_for_one_that_it_is_not_similar_to(tmp_path: Path) -> None:
    """A chain of windows, each similar to the next: merging pairs would leave only the first of all."""
    words = [f"w{i:03d}" for i in range(600)]
    texts = [" ".join(words[start : start + 300]) for start in range(0, 300, 20)]
    assert true_jaccard(texts[0], texts[1]) > 0.8
    assert true_jaccard(texts[0], texts[-1]) < 0.1
    gone, found = removed(texts, tmp_path, ALL_PAIRS)
    kept = [i for i in range(len(texts)) if i not in gone]
    assert len(kept) >= 4
    assert found.candidates == len(texts)
    assert set(gone.values()) <= set(kept)
    assert all(true_jaccard(texts[a], texts[b]) >= 0.7 for a, b in gone.items())
    assert all(true_jaccard(texts[i], texts[j]) < 0.7 for i in kept for j in kept if i != j)


def test_only_eligible_documents_count(family: list[str], tmp_path: Path) -> None:
    eligible = np.arange(len(family)) % 3 > 0
    gone, _ = removed(family, tmp_path, ALL_PAIRS, eligible=eligible)
    left = np.flatnonzero(eligible)
    expected = greedy([family[i] for i in left], 0.7)
    assert gone == {int(left[a]): int(left[b]) for a, b in expected.items()}
    assert removed(family, tmp_path / "none", ALL_PAIRS, eligible=eligible & False)[0] == {}
    assert removed(["", "..."], tmp_path / "wordless", ALL_PAIRS)[0] == {}


def test_nothing_depends_on_how_the_work_is_divided(family: list[str], tmp_path: Path) -> None:
    config = NearDuplicateConfig(bands=20, rows=3)
    files = write_files(tmp_path / "files", family, config)
    eligible = np.arange(len(family)) != 4
    whole = near_duplicates(files, eligible, config, tmp_path / "whole", here)
    parts = near_duplicates(files, eligible, config, tmp_path / "parts", here, sizes=SMALL)
    with Pool(2) as pool:
        pooled = near_duplicates(files, eligible, config, tmp_path / "pooled", pool, sizes=SMALL)
    assert len(list((tmp_path / "parts").glob("*/verdicts-*"))) > 3
    assert len(whole.removed) > 10
    for other in (parts, pooled):
        assert other.removed.tolist() == whole.removed.tolist()
        assert other.kept.tolist() == whole.kept.tolist()
        assert other.jaccard.tobytes() == whole.jaccard.tobytes()
        assert (other.candidates, other.compared, other.similar) == (whole.candidates, whole.compared, whole.similar)


def test_what_was_finished_is_not_done_again(family: list[str], tmp_path: Path) -> None:
    files = write_files(tmp_path / "files", family, ALL_PAIRS)
    eligible = np.ones(len(family), np.bool_)
    done: list[str] = []

    def counting(target: str, tasks: Any) -> Iterator[Result]:
        def call(task: Task) -> Result:
            done.append(Path(task["out"]).name)
            return load(target)(task)

        return map(call, tasks)

    def find(**more: Any) -> list[int]:
        done.clear()
        config = ALL_PAIRS.model_copy(update=more.pop("config", {}))
        return near_duplicates(files, more.pop("eligible", eligible), config, work, counting, sizes=SMALL).kept.tolist()

    work = tmp_path / "near"
    whole, every = find(), sorted(done)
    lost = {"bands-00002.npy", "verdicts-00001.npy", "members.npy"}
    for name in lost:
        next(work.glob(f"*/{name}")).unlink()
    next(work.glob("*/pairs-00000.npy")).rename(next(work.glob("*")) / ".pairs-00000.npy.4242")  # torn by a kill
    assert find() == whole
    assert set(done) == lost | {"pairs-00000.npy"}
    assert find() == whole
    assert done == []
    other = find(eligible=np.arange(len(family)) > 5)  # another question
    assert other != whole
    assert len(done) > len(every) / 2
    assert len(list(work.iterdir())) == 1
    assert find(config={"threshold": 0.95}) != whole
    assert sorted(done) != []


def test_large_arrays_in_files_change_nothing(
    family: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, whole = removed(family, tmp_path / "a", ALL_PAIRS)
    monkeypatch.setattr(verify, "IN_MEMORY", 100)
    _, mapped = removed(family, tmp_path / "b", ALL_PAIRS)
    assert mapped.kept.tolist() == whole.kept.tolist()
    assert not list((tmp_path / "b").rglob("*-of-*"))


def test_a_bucket_of_look_alikes_costs_no_square(prose: Prose, tmp_path: Path) -> None:
    body = prose(1, 200)
    texts = [f"Page {i} of the list.\n{body}" for i in range(1500)]
    gone, found = removed(texts, tmp_path / "same")
    assert set(gone.values()) == {1000}  # the first of the longest
    assert len(gone) == 1499
    assert found.compared == 1499
    header = prose(2, 200)
    texts = [
        f"{header}\n{prose(10 + i, 70, 10**6)}" for i in range(600)
    ]  # similar by 0.6: all candidates, none removed
    gone, found = removed(texts, tmp_path / "header", NearDuplicateConfig(bands=37, rows=3))
    assert gone == {}
    assert found.candidates == 600
    assert found.compared <= 600 * verify.CLOSEST


def decide(buckets: list[list[int]], sets: list[list[int]], room: list[int], closest: int) -> tuple[list[int], int]:
    """`choose` with signatures that all agree, at a threshold of one half."""
    offsets = np.cumsum([0, *map(len, sets)])
    kept, similarity = np.empty(len(sets), np.int64), np.empty(len(sets))
    hashes = np.array([number for mine in sets for number in mine], np.uint64)
    compared, _ = choose(
        np.array(buckets), np.array(room), np.zeros((len(sets), 4), np.uint32), hashes, offsets,
        np.zeros(len(sets), np.bool_), 0.5, 1, closest, kept, similarity,
    )  # fmt: skip
    return kept.tolist(), compared


def test_a_full_bucket_forgets_the_documents_kept_first() -> None:
    sets = [[1, 2, 3], [4, 5, 6], [7, 8, 9], [1, 2, 3], [7, 8, 9]]
    assert decide([[0]] * 5, sets, [0, 3], 9)[0] == [-1, -1, -1, 0, 2]
    assert decide([[0]] * 5, sets, [0, 2], 9)[0] == [-1, -1, -1, -1, 2]  # the fourth took the second's place
    assert decide([[0]] * 5, sets, [0, 3], 1) == ([-1, -1, -1, 0, -1], 4)  # only the first of equals is looked at
    assert decide([[0, -1], [-1, 1], [0, 1], [-1, 1], [0, -1]], sets, [0, 3, 6], 9)[0] == [-1, -1, -1, -1, 2]


def test_the_most_similar_one_is_named() -> None:
    sets = [[1, 2, 3, 4], [1, 2, 7, 8], [1, 2, 3, 7]]
    assert decide([[0]] * 3, sets, [0, 3], 9)[0] == [-1, -1, 0]  # both share 3 of 5: the first
    assert decide([[0]] * 3, [sets[0], sets[1], [1, 2, 7]], [0, 3], 9)[0] == [-1, -1, 1]


def test_band_hashes_agree_exactly_where_all_rows_do() -> None:
    signed = np.arange(24, dtype=np.uint32).reshape(2, 12)
    signed[1, :7] = signed[0, :7]  # the first band, and three of four rows of the second
    hashes = band_hashes(signed, 3, 4)
    assert (hashes[:, 0] == hashes[:, 1]).tolist() == [True, False, False]
    assert len(set(band_hashes(np.zeros((1, 12), np.uint32), 3, 4)[:, 0].tolist())) == 3  # bands are told apart


def test_union_find_gives_the_components() -> None:
    source = random.Random(0)
    edges = [(source.randrange(200), source.randrange(200)) for _ in range(120)]
    parents = np.arange(200)
    unite(parents, np.array(edges[:50]))
    unite(parents, np.array(edges[50:]))
    flatten(parents)
    labels = list(range(200))
    for a, b in edges:
        low, high = sorted((labels[a], labels[b]))
        labels = [low if label == high else label for label in labels]
    assert parents.tolist() == labels


def test_bands_and_rows_for_a_threshold() -> None:
    """Oracle: datasketch 2.0.0, `lsh._optimal_param(threshold, 112, 0.3, 0.7)`."""
    oracle = {0.3: (37, 3), 0.5: (23, 4), 0.6: (18, 6), 0.7: (14, 8), 0.75: (12, 9), 0.8: (10, 11), 0.9: (6, 18)}
    assert {threshold: for_threshold(threshold, 112) for threshold in oracle} == oracle
    assert for_threshold(0.8, 256) == (19, 13)
    # With one permutation P(s) = s: nothing to choose. With two, (1, 2) has P = s**2 and (2, 1) 1 - (1 - s)**2, whose
    # weighed areas at one half are 0.3/24 + 0.7 * 5/24 and 0.3 * 5/24 + 0.7/24: the second is less.
    assert for_threshold(0.5, 1) == (1, 1)
    assert for_threshold(0.5, 2) == (2, 1)
    assert for_threshold(1.0, 30) == (1, 30)


def test_the_configuration_fills_in_what_is_not_given() -> None:
    def shape(**given: Any) -> tuple[int, int, int]:
        config = NearDuplicateConfig.model_validate(given)
        return config.permutations, config.bands, config.rows

    assert shape() == (112, 14, 8)
    assert shape(ngram=3) == (112, 14, 8)
    assert shape(threshold=0.5) == (112, 23, 4)
    assert shape(permutations=256, threshold="0.8") == (256, 19, 13)
    assert shape(bands=20, rows=13, threshold=0.5) == (260, 20, 13)
    plain = NearDuplicateConfig(threshold=0.5).model_dump()
    assert NearDuplicateConfig(**plain).model_dump() == plain
    with pytest.raises(ValidationError, match="need 112 permutations, not 100"):
        NearDuplicateConfig(permutations=100, bands=14, rows=8)
    for wrong in ({"threshold": 2}, {"threshold": "high"}, {"permutations": -1}, {"bands": "x"}, {"against": 3}):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            NearDuplicateConfig.model_validate(wrong)


def test_the_estimate_that_is_asked_for() -> None:
    assert least_equal(0.7, 112) == 64  # 78.4 - 3 * sqrt(112 * 0.7 * 0.3) = 63.8
    assert least_equal(1.0, 112) == 112
    assert least_equal(0.01, 10) == 1


def write_corpus(directory: Path, texts: list[str], kept: list[bool], config: NearDuplicateConfig | None) -> Path:
    """What other corpora keep of their documents, in two parts."""
    table = columns(texts, config) if config else {"signature": pa.nulls(len(texts), pa.binary())}
    ids = [f"{directory.name}{i}" for i in range(len(texts))]
    rows = {"id": ids, "digest": [text.encode()[:16].ljust(16) for text in texts], "signature": table["signature"]}
    signed = pa.table(rows | {"kept": kept}, signature_schema(config))
    documents = pa.table({"id": ids, "text": texts}).filter(pa.array(kept))
    for name, part in (("signatures", signed), ("documents", documents)):
        (directory / name).mkdir(parents=True)
        pq.write_table(part[:9], directory / name / "part-00000.parquet", row_group_size=4)
        pq.write_table(part[9:], directory / name / "part-00001.parquet")
    return directory


def test_documents_of_other_corpora_are_duplicates_here(prose: Prose, tmp_path: Path) -> None:
    first, second = [prose(seed, 150) for seed in range(20)], [prose(seed, 150) for seed in range(30, 45)]
    kept = [i != 3 for i in range(20)]
    config = NearDuplicateConfig(
        against=(
            str(write_corpus(tmp_path / "first", first, kept, NearDuplicateConfig())),
            str(write_corpus(tmp_path / "second", second, [True] * 15, NearDuplicateConfig(threshold=0.9))),
        )
    )
    others = OtherCorpora.open(config)
    assert len(others) == 34
    assert [len(column) for column in others.digests()] == [8, 11, 9, 6]
    # The new corpus: near-duplicates of both, of a removed document, one of its own; all longer than their likes.
    texts = [prose(60, 160), *(f"{text} More." for text in (first[0], first[3], first[19], second[14])), prose(61, 150)]
    texts += [f"{texts[5]} And more.", second[2]]
    gone, _ = removed(texts, tmp_path / "new", config, others=others)
    named = {document: kept - len(texts) for document, kept in gone.items() if kept >= len(texts)}
    numbers = np.array(list(named.values()))
    assert dict(zip(named, others.ids(numbers), strict=True)) == {
        1: "first0",
        3: "first19",
        4: "second14",
        7: "second2",
    }
    assert {document: kept for document, kept in gone.items() if document not in named} == {5: 6}
    small, _ = removed(texts, tmp_path / "small", config, others=others, sizes=SMALL)
    assert small == gone


def test_what_cannot_be_compared_is_named(prose: Prose, tmp_path: Path) -> None:
    texts = [prose(seed, 20) for seed in range(3)]
    config = NearDuplicateConfig()

    def opened(path: Path, **more: Any) -> OtherCorpora:
        return OtherCorpora.open(NearDuplicateConfig(against=(str(path),), **more))

    good = write_corpus(tmp_path / "good", texts, [True, False, True], config)
    assert len(opened(good, threshold=0.8)) == 2  # other bands and rows, the same minima
    with pytest.raises(GristmillError, match="112 minima of 5-grams, this corpus of 112 minima of 3-grams"):
        opened(good, ngram=3)
    with pytest.raises(GristmillError, match=r"good has signatures of 112 minima .* of 200 minima .*permutations"):
        opened(good, permutations=200)
    with pytest.raises(GristmillError, match=r"no documents \(near_duplicates was off\)"):
        opened(write_corpus(tmp_path / "off", texts, [True] * 3, None))
    with pytest.raises(GristmillError, match=r"holds no signatures/part-\*\.parquet; name the directory of a finished"):
        opened(tmp_path / "nowhere")
    shutil.rmtree(good / "documents")
    shutil.copytree(tmp_path / "off" / "documents", good / "documents")
    with pytest.raises(GristmillError, match="do not belong together"):
        opened(good)
    files = write_files(tmp_path / "files", texts, NearDuplicateConfig(permutations=20))
    with pytest.raises(GristmillError, match=r"00000\.parquet: its signatures do not have 112 minima"):
        near_duplicates(files, np.ones(3, np.bool_), config, tmp_path / "near", here)
