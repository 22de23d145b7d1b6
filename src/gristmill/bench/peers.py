"""Other tools on the same documents, where they are installed: what each reaches in megabytes per processor second.

Run as a process of its own, `python -m gristmill.bench.peers NAME FILE MEGABYTES`, which prints one JSON object. Every
peer does its work the way its documentation shows; reading the file is part of it.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PERMUTATIONS, BANDS, NGRAM = 112, 14, 5


def installed() -> list[str]:
    """The peers whose packages can be imported here."""
    return [name for name, (modules, _, _) in PEERS.items() if all(map(importlib.util.find_spec, modules))]


def _documents(path: Path, megabytes: float) -> Iterator[str]:
    size = 0.0
    with open(path, encoding="utf-8") as file:
        for line in file:
            text = json.loads(line)["text"]
            size += len(text.encode()) / 1e6
            yield text
            if size >= megabytes:
                return


def _datatrove_rules(texts: Iterator[str]) -> int:
    """datatrove's Gopher repetition and quality filters, with its default words."""
    from datatrove.data import Document
    from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter

    filters = [GopherRepetitionFilter(), GopherQualityFilter()]
    kept = 0
    for number, text in enumerate(texts):
        document = Document(text=text, id=str(number))
        kept += all(step.filter(document) is True for step in filters)
    return kept


def _datatrove_minhash(texts: Iterator[str]) -> int:
    """datatrove's MinHash signatures (the first of its four steps, which is nearly all of the work)."""
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
    from datatrove.utils.hashing import HashConfig

    config = MinhashConfig(hash_config=HashConfig(precision=64), n_grams=NGRAM, num_buckets=BANDS, hashes_per_bucket=8)
    step = MinhashDedupSignature(output_folder="/tmp", config=config)
    documents = 0
    for text in texts:
        shingles = step.get_shingles(text)
        if shingles.size:
            step.get_signature(shingles)
        documents += 1
    return documents


def _datasketch(texts: Iterator[str]) -> int:
    """datasketch: MinHash of word 5-grams, and its LSH index."""
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(num_perm=PERMUTATIONS, params=(BANDS, PERMUTATIONS // BANDS))
    kept = 0
    for number, text in enumerate(texts):
        words = text.lower().split()
        signature = MinHash(num_perm=PERMUTATIONS)
        signature.update_batch([" ".join(words[i : i + NGRAM]).encode() for i in range(max(len(words) - NGRAM + 1, 1))])
        if not index.query(signature):
            index.insert(str(number), signature)
            kept += 1
    return kept


def _rensa(texts: Iterator[str]) -> int:
    """polars for words and their hashes, numpy for 5-grams, rensa for MinHash, a dictionary for each band."""
    import numpy as np
    import polars as pl
    from rensa import RMinHash

    rows = PERMUTATIONS // BANDS
    seen: list[set[bytes]] = [set() for _ in range(BANDS)]
    kept = 0
    batch: list[str] = []

    def flush() -> int:
        words = pl.Series(batch).str.to_lowercase().str.replace_all(r"\W+", " ").str.split(" ")
        hashes = words.explode().hash(seed=1).to_numpy()
        ends = np.cumsum(words.list.len().to_numpy(), dtype=np.int64)
        found = 0
        for start, end in zip(np.concatenate([[0], ends[:-1]]), ends, strict=True):
            mine = hashes[start:end]
            rolling = np.zeros(max(len(mine) - NGRAM + 1, 1), np.uint64)
            for k in range(min(NGRAM, len(mine))):
                rolling = rolling * np.uint64(0x9E3779B97F4A7C15) + mine[k : k + len(rolling)]
            signature = RMinHash(num_perm=PERMUTATIONS, seed=42)
            signature.update([value.tobytes() for value in rolling])
            digest = np.array(signature.digest(), np.uint32)
            bands = [digest[band * rows : (band + 1) * rows].tobytes() for band in range(BANDS)]
            found += not any(band in known for band, known in zip(bands, seen, strict=True))
            for band, known in zip(bands, seen, strict=True):
                known.add(band)
        return found

    for text in texts:
        batch.append(text)
        if len(batch) == 500:
            kept += flush()
            batch.clear()
    return kept + (flush() if batch else 0)


# name -> (modules it needs, what it does, the function)
PEERS: dict[str, tuple[tuple[str, ...], str, Callable[[Iterator[str]], int]]] = {
    "datatrove rules": (("datatrove", "spacy"), "Gopher rules", _datatrove_rules),
    "datatrove MinHash": (("datatrove", "spacy"), "signatures", _datatrove_minhash),
    "datasketch": (("datasketch",), "signatures and LSH", _datasketch),
    "polars + rensa": (("polars", "rensa"), "signatures and LSH", _rensa),
}


def main(name: str, path: Path, megabytes: float) -> dict[str, Any]:
    """Time one peer on the first megabytes of a JSONL file. Imports and models are loaded by a first document."""
    _, what, function = PEERS[name]
    function(iter(["The quick brown fox jumps over the lazy dog, and that was all there was to be said of it."]))
    size = sum(len(text.encode()) for text in _documents(path, megabytes)) / 1e6
    started = time.process_time()
    kept = function(_documents(path, megabytes))
    seconds = time.process_time() - started
    return {"name": name, "does": what, "megabytes": round(size, 2), "kept": kept, "mb_per_cpu_second": size / seconds}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]))))
