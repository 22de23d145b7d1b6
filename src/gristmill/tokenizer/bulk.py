"""Encoding much text fast: distinct stretches are encoded once.

Text repeats itself. It is cut where no pre-token ever crosses (`SAFE_CUT`), so that the ids of the stretches, joined,
are the ids of the text; a stretch seen before costs one look-up.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .pretokenize import SAFE_CUT, pretokenizer_name
from .tokenizer import Tokenizer

CACHE_STRETCHES = 400_000  # about 100 MB


class BulkEncoder:
    """`Tokenizer.encode_batch` into arrays of `dtype`; the same ids, sooner.

    A tokenizer from elsewhere whose pre-tokenizer is not one of ours is served by `encode_batch` itself.
    """

    def __init__(self, tokenizer: Tokenizer, dtype: np.dtype):
        self._tokenizer, self._dtype = tokenizer, dtype
        self._cuttable = pretokenizer_name(tokenizer.backend) is not None
        self._known: dict[str, bytes] = {}

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, without bos or eos."""
        if not self._cuttable:
            return [np.array(ids, dtype=self._dtype) for ids in self._tokenizer.encode_batch(texts)]
        cut_texts = [SAFE_CUT.split(text) for text in texts]
        if len(self._known) > CACHE_STRETCHES:
            self._known.clear()
        known = self._known
        new = list({stretch: None for stretches in cut_texts for stretch in stretches if stretch not in known})
        for stretch, ids in zip(new, self._tokenizer.encode_batch(new), strict=True):
            known[stretch] = np.array(ids, dtype=self._dtype).tobytes()
        joined = (b"".join([known[stretch] for stretch in stretches]) for stretches in cut_texts)
        return [np.frombuffer(ids, dtype=self._dtype) for ids in joined]
