"""How good deduplication is: a corpus in which every similarity is known, and the score of what was removed from it.

The documents are passages of real text (`text.py`) of which no two share half of their n-grams, some of them under the
same boilerplate header, and what happens to pages on the web, made from them: copies with edited words, copies under a
header, copies cut short; chains of passages that each resemble the next while the ends have nothing in common; pages of
one template. All pairs of documents whose Jaccard similarity is one half or more are listed, worked out from sets of
words without any of the hashing that is under test.
"""

from __future__ import annotations

import hashlib
import random
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gristmill.data.config import NearDuplicateConfig
from gristmill.errors import GristmillError

from .text import installed_directories, texts

I64 = NDArray[np.int64]
Grams = frozenset[str]
Pair = tuple[int, int, float]

NGRAM = 5
_IDEOGRAPHS = "\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_IDEOGRAPHS}]|(?:(?![{_IDEOGRAPHS}])\w)+")
LEAST_LISTED = 0.5
BINS = (0.5, 0.6, 0.7, 0.8, 0.9)  # lower ends
SHORTEST, LONGEST = 120, 500  # words of a passage
CHAIN_LINKS = 9
TEMPLATE_PAGES = 40


@dataclass(frozen=True)
class Planted:
    """The corpus: its texts, what each is, and all pairs (first, second, Jaccard similarity) of one half and more."""

    texts: tuple[str, ...]
    kinds: tuple[str, ...]  # original, edited, headed, cut, chain, template
    pairs: tuple[Pair, ...]


def plant(directories: Iterable[Path] = (), originals: int = 1000, seed: int = 0) -> Planted:
    """Build the corpus from text below the directories (none: what is installed on this machine); the same from the
    same files and seed. GristmillError when there is too little text."""
    source = random.Random(seed)
    chains, templates = max(1, originals // 50), max(1, originals // 200)
    passages = _passages(list(directories) or installed_directories(), originals + 5 + chains + templates, source)
    headers = [_first_words(passages.pop(), source.randrange(20, 60)) for _ in range(5)]
    made = [("chain", link) for _ in range(chains) for link in _chain(passages.pop(), source)]
    made += [("template", page) for _ in range(templates) for page in _template_pages(passages.pop(), source)]
    for passage in passages:
        under_header = source.random() < 0.1
        made.append(("original", f"{source.choice(headers)}\n\n{passage}" if under_header else passage))
        share = source.random()
        if share < 0.4:
            made.append(("edited", _edited(passage, source.uniform(LEAST_LISTED, 1.0), source)))
        elif share < 0.55:
            made.append(("headed", f"{source.choice(headers)}\n\n{_edited(passage, source.uniform(0.85, 1), source)}"))
        elif share < 0.7:
            made.append(("cut", _first_words(passage, int(len(passage.split()) * source.uniform(0.5, 1)))))
    source.shuffle(made)
    kinds, documents = zip(*made, strict=True)
    return Planted(documents, kinds, tuple(similar_pairs(list(map(grams, documents)), LEAST_LISTED)))


def grams(text: str) -> Grams:
    """The word 5-grams of a text as a set; all its words where it has fewer than five. Ideographs and kana, which no
    blank parts into words, are words by themselves."""
    words = _WORD.findall(text.lower())
    return frozenset(" ".join(words[i : i + NGRAM]) for i in range(max(len(words) - NGRAM + 1, min(len(words), 1))))


def jaccard(a: Grams, b: Grams) -> float:
    """|a & b| / |a | b|, 0 for two empty sets."""
    common = len(a & b)
    return common / (len(a) + len(b) - common) if common else 0.0


def similar_pairs(sets: list[Grams], least: float) -> Iterator[Pair]:
    """All pairs (first, second, Jaccard similarity) of at least `least`, which is above 0, in order."""
    holders: dict[str, list[int]] = defaultdict(list)
    for document, mine in enumerate(sets):
        for gram in mine:
            holders[gram].append(document)
    common = Counter(pair for documents in holders.values() for pair in combinations(documents, 2))
    for (a, b), count in sorted(common.items()):
        similarity = count / (len(sets[a]) + len(sets[b]) - count)
        if similarity >= least:
            yield a, b, similarity


def _passages(directories: list[Path], wanted: int, source: random.Random) -> list[str]:
    """Passages of which no two are listed as similar, one from a file."""
    found: list[str] = []
    sizes: list[int] = []
    holders: dict[str, list[int]] = defaultdict(list)
    for text in texts(directories):
        spans = [match.span() for match in re.finditer(r"\S+", text)]
        if len(spans) < SHORTEST:
            continue
        length = source.randint(SHORTEST, min(LONGEST, len(spans)))
        start = source.randint(0, len(spans) - length)
        passage = text[spans[start][0] : spans[start + length - 1][1]]
        mine = grams(passage)
        common = Counter(other for gram in mine for other in holders.get(gram, ()))
        if len(mine) < SHORTEST // 2 or any(
            count / (len(mine) + sizes[other] - count) >= LEAST_LISTED for other, count in common.items()
        ):
            continue
        for gram in mine:
            holders[gram].append(len(found))
        found.append(passage)
        sizes.append(len(mine))
        if len(found) == wanted:
            return found
    raise GristmillError(f"only {len(found)} of {wanted} different passages were found; name more directories")


def _first_words(text: str, count: int) -> str:
    spans = [match.span() for match in re.finditer(r"\S+", text)]
    return text[: spans[min(count, len(spans)) - 1][1]]


def _edited(text: str, target: float, source: random.Random) -> str:
    """The text with as many words replaced, at places drawn at random, as bring its similarity down to the target."""
    parts = re.split(r"(\s+)", text)
    places = list(range(0, len(parts), 2))
    source.shuffle(places)
    words = {place: f"edit{source.randrange(10**9)}" for place in places}
    original = grams(text)

    def edited(count: int) -> str:
        replaced = set(places[:count])
        return "".join(words[i] if i in replaced else part for i, part in enumerate(parts))

    low, high = 0, len(places)
    while low < high:  # the similarity falls with every further edit
        middle = (low + high) // 2
        if jaccard(original, grams(edited(middle))) <= target:
            high = middle
        else:
            low = middle + 1
    return edited(low)


def _chain(text: str, source: random.Random) -> Iterator[str]:
    """Windows over a text, so wide that neighbours have a similarity between 0.72 and 0.85."""
    words = text.split()
    similarity = source.uniform(0.72, 0.85)
    step_share = (1 - similarity) / (1 + similarity)
    width = len(words) / (1 + (CHAIN_LINKS - 1) * step_share)
    for link in range(CHAIN_LINKS):
        start = int(link * step_share * width)
        yield " ".join(words[start : start + int(width)])


def _template_pages(text: str, source: random.Random) -> Iterator[str]:
    """Pages that say the same but for a word here and there; their similarity is mostly between 0.4 and 0.65."""
    words = text.split()
    distance = source.randrange(13, 22)
    for page in range(TEMPLATE_PAGES):
        yield " ".join(f"slot{page}x{i}" if i % distance == 0 else word for i, word in enumerate(words))


def score(planted: Planted, duplicate_of: I64) -> dict[str, Any]:
    """What was achieved. `duplicate_of` gives for each document the one that it was removed for, or -1.

    By lower end of the similarity's bin: `pairs`; `dealt_with`, the share of them of which not both stayed; and
    `together`, the share that stands in one cluster. `recall` is `dealt_with` over all pairs of 0.8 and more;
    `precision` the share of removed documents that some kept document resembles by at least 0.7.
    """
    from gristmill.data.dedup.near import cluster_roots

    stays, roots = duplicate_of < 0, cluster_roots(duplicate_of)
    first, second = (np.array([pair[i] for pair in planted.pairs], np.int64) for i in range(2))
    similarity = np.array([pair[2] for pair in planted.pairs])
    dealt = ~(stays[first] & stays[second])
    together = roots[first] == roots[second]
    bins = {}
    for low, high in zip(BINS, (*BINS[1:], 1.01), strict=True):
        inside = (similarity >= low) & (similarity < high)
        shares = {"dealt_with": _mean(dealt[inside]), "together": _mean(together[inside])}
        bins[str(low)] = {"pairs": int(inside.sum())} | shares
    justified = np.zeros(len(stays), np.bool_)
    close = similarity >= 0.7
    for a, b in ((first, second), (second, first)):
        justified[a[close & stays[b]]] = True
    largest = np.unique(roots, return_counts=True)[1].max()
    return {
        "removed": int((~stays).sum()),
        "recall": _mean(dealt[similarity >= 0.8]),
        "precision": _mean(justified[~stays]),
        "largest_cluster": int(largest),
        "bins": bins,
    }


def _mean(values: NDArray[np.bool_]) -> float | None:
    return round(float(values.mean()), 4) if len(values) else None


def removed_by_mill(planted: Planted, config: NearDuplicateConfig, directory: Path) -> I64:
    """What the corpus stage removes as exact and near-duplicates, as `duplicate_of`."""
    from gristmill.data.dedup.exact import exact_duplicates
    from gristmill.data.dedup.near import near_duplicates
    from gristmill.data.dedup.tables import DocumentFiles
    from gristmill.data.pool import Pool

    digests = [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in planted.texts]
    duplicate_of = exact_duplicates([pa.array(digests, pa.binary(16))], directory / "exact")
    signed = [row.astype("<u4").tobytes() for row in _signatures(planted, config)]
    lengths = [len(text.encode()) for text in planted.texts]
    table = pa.table({"text": planted.texts, "bytes": lengths, "signature": pa.array(signed, pa.binary())})
    pq.write_table(table, directory / "planted.parquet", row_group_size=1024)
    files = DocumentFiles.of([directory / "planted.parquet"])
    with Pool(1) as pool:
        found = near_duplicates(files, duplicate_of < 0, config, directory / "near", pool)
    duplicate_of[found.removed] = found.kept
    return duplicate_of


def removed_by_merging(planted: Planted, config: NearDuplicateConfig) -> I64:
    """What is removed where all documents that share a band are taken for one cluster, of which the first stays, as is
    done where candidates are not checked."""
    from gristmill.data.dedup.compiled import band_hashes, flatten, unite

    parents = np.arange(len(planted.texts))
    for band in band_hashes(_signatures(planted, config), config.bands, config.rows):
        order = np.argsort(band, kind="stable")
        same = band[order[1:]] == band[order[:-1]]
        unite(parents, np.stack([order[:-1][same], order[1:][same]], axis=1))
    flatten(parents)
    return np.where(parents == np.arange(len(parents)), -1, parents)


def _signatures(planted: Planted, config: NearDuplicateConfig) -> NDArray[np.uint32]:
    from gristmill.data.kernel import signatures

    return signatures(pa.array(planted.texts, pa.large_string()), config.ngram, config.permutations)


def dedup_quality(
    directories: Iterable[Path] = (),
    originals: int = 1000,
    seed: int = 0,
    config: NearDuplicateConfig = NearDuplicateConfig(),
) -> dict[str, Any]:
    """Build the corpus, deduplicate it, and score that beside what merging unchecked candidates would have given."""
    planted = plant(directories, originals, seed)
    with tempfile.TemporaryDirectory(prefix="gristmill-planted-") as name:
        mill = removed_by_mill(planted, config, Path(name))
    return {
        "documents": len(planted.texts),
        "kinds": dict(sorted(Counter(planted.kinds).items())),
        "checked": score(planted, mill),
        "merged": score(planted, removed_by_merging(planted, config)),
    }
