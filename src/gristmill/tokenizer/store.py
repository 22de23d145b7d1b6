"""Token files: what the tokens stage writes and training reads, memory-mapped.

meta.json             vocab_size, dtype, tokenizer_hash, and per domain its weight and the counts of each split
SPLIT/DOMAIN.bin      the ids of all documents, one after the other, little-endian uint16 or uint32
SPLIT/DOMAIN.idx.npy  int64 [documents + 1]: where each document starts in the .bin, and where the last one ends
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import GristmillError

META = "meta.json"
SPLITS = ("train", "validation")


def bin_path(directory: Path, split: str, domain: str) -> Path:
    return directory / split / f"{domain}.bin"


def idx_path(directory: Path, split: str, domain: str) -> Path:
    return directory / split / f"{domain}.idx.npy"


class TokenStore:
    """A tokens artifact, opened by `TokenStore.open`.

    `domains`: sorted names. `weights`: each domain's share of the training mixture; they sum to 1.
    """

    def __init__(self, directory: Path, meta: dict[str, Any]):
        self.directory = directory
        self.vocab_size: int = meta["vocab_size"]
        self.tokenizer_hash: str = meta["tokenizer_hash"]
        self.domains: list[str] = sorted(meta["domains"])
        self.weights: dict[str, float] = {domain: meta["domains"][domain]["weight"] for domain in self.domains}
        self._dtype = np.dtype(meta["dtype"]).newbyteorder("<")
        self._counts: dict[tuple[str, str], dict[str, int]] = {
            (split, domain): meta["domains"][domain][split] for domain in self.domains for split in SPLITS
        }

    @classmethod
    def open(cls, directory: Path | str) -> TokenStore:
        """Read `meta.json` and check that every file has the length it gives; GristmillError names what is wrong."""
        directory = Path(directory)
        path = directory / META
        try:
            store = cls(directory, json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise GristmillError(f"{directory} is not a tokens artifact: it holds no {META}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise GristmillError(f"{path} is corrupt ({error!r}); remove {directory} and run its stage again") from None
        for split, domain in store._counts:
            store._check(split, domain)
        return store

    def tokens(self, split: str, domain: str) -> np.ndarray:
        """The ids of all documents, `[tokens]`, as a read-only np.memmap (an ordinary array where there are none)."""
        count = self._count(split, domain)["tokens"]
        if count == 0:  # an empty file cannot be mapped
            return np.empty(0, dtype=self._dtype)
        return np.memmap(bin_path(self.directory, split, domain), dtype=self._dtype, mode="r", shape=(count,))

    def offsets(self, split: str, domain: str) -> np.ndarray:
        """int64 `[documents + 1]`, a read-only np.memmap: document i is `tokens[offsets[i]:offsets[i + 1]]`."""
        self._count(split, domain)
        return np.load(idx_path(self.directory, split, domain), mmap_mode="r")

    def bytes(self, split: str, domain: str) -> int:
        """UTF-8 bytes of the documents' text."""
        return self._count(split, domain)["bytes"]

    def _count(self, split: str, domain: str) -> dict[str, int]:
        try:
            return self._counts[split, domain]
        except KeyError:
            raise GristmillError(
                f"{self.directory} holds no tokens of split {split!r}, domain {domain!r}; "
                f"splits are {', '.join(SPLITS)}, domains {', '.join(self.domains)}"
            ) from None

    def _check(self, split: str, domain: str) -> None:
        count = self._count(split, domain)
        path = bin_path(self.directory, split, domain)
        expected = count["tokens"] * self._dtype.itemsize
        found = path.stat().st_size if path.exists() else None
        if found != expected:
            state = "is missing" if found is None else f"has {found} bytes, {META} says {expected}"
            raise GristmillError(f"{path} {state}; remove {self.directory} and run its stage again")
        path = idx_path(self.directory, split, domain)
        try:
            offsets = np.load(path, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise GristmillError(
                f"{path} is not readable ({error}); remove {self.directory} and run its stage again"
            ) from None
        if offsets.shape != (count["documents"] + 1,) or offsets[-1] != count["tokens"]:
            raise GristmillError(f"{path} does not fit {META}; remove {self.directory} and run its stage again")
