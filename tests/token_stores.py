"""Small token stores for the tests of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gristmill.artifact import write_json
from gristmill.tokenizer.store import TokenStore, bin_path, idx_path

BOS, EOS = 0, 1


def make_store(
    directory: Path, lengths: Mapping[str, Sequence[int]], weights: Mapping[str, float] | None = None
) -> TokenStore:
    """A token store of documents of these lengths; what stands between bos and eos is different in every place."""
    directory.mkdir(parents=True, exist_ok=True)
    domains: dict[str, dict[str, Any]] = {}
    token = 2
    for domain, of_domain in lengths.items():
        for split in ("train", "validation"):
            documents = []
            for length in of_domain if split == "train" else []:
                documents.append([BOS, *range(token, token + length - 2), EOS])
                token += length - 2
            flat = np.array([id for document in documents for id in document], np.uint16)
            ends = np.cumsum([0, *map(len, documents)], dtype=np.int64)
            bin_path(directory, split, domain).parent.mkdir(parents=True, exist_ok=True)
            flat.tofile(bin_path(directory, split, domain))
            np.save(idx_path(directory, split, domain), ends)
            counts = {"documents": len(documents), "tokens": len(flat), "bytes": len(flat)}
            domains.setdefault(domain, {"weight": (weights or {}).get(domain, 1 / len(lengths))})[split] = counts
    meta = {"vocab_size": token, "dtype": "uint16", "tokenizer_hash": "-", "domains": domains}
    write_json(directory / "meta.json", meta)
    return TokenStore.open(directory)
