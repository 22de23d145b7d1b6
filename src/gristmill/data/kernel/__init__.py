"""The compiled text kernel: everything that is measured of a text, from one look at its bytes.

`measure_step` writes the columns listed in `columns.py`; the rest serves what compares documents. Importing this
package is cheap: numba and the compiled passes are loaded when something is called. `reference.py` says in plain
Python what is counted, and the tests hold the kernel to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from gristmill.data.config import DomainRules, NearDuplicateConfig
    from gristmill.data.step import Step


def measure_step(rules: DomainRules, near: NearDuplicateConfig | None) -> Step:
    """The step that writes all statistics, digests and signatures; see `measure.measure_step`."""
    from .measure import measure_step as make

    return make(rules, near)


def shingles(texts: pa.Array | pa.ChunkedArray, ngram: int = 5) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """(hashes, offsets): the set of word n-grams of text d is `hashes[offsets[d]:offsets[d + 1]]`, sorted, each once.
    A text of fewer words has one n-gram, of all its words; one without words has none."""
    from .hashes import shingles as of_column

    return of_column(texts, ngram)


def signatures(texts: pa.Array | pa.ChunkedArray, ngram: int, size: int) -> NDArray[np.uint32]:
    """MinHash signatures `[texts, size]` of the n-grams; all ones for a text without words."""
    from .hashes import signatures_of
    from .layout import texts_of

    return signatures_of(texts_of(texts), ngram, size)[0]


def warm_up() -> None:
    """Compile whatever is not yet compiled on this machine. Called once before workers start, so that each of them
    finds machine code on disk instead of making its own."""
    import pyarrow as pa

    from gristmill.data.config import DomainRules, NearDuplicateConfig

    row = {"text": ["mill"], "domain": ["other"], "language": ["en"]}
    measure_step(DomainRules(), NearDuplicateConfig()).apply(pa.RecordBatch.from_pydict(row))
