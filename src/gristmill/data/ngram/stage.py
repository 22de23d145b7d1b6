"""Perplexity in stage `corpus`: the reference model, the score of each document, and what the scores decide.

As in CCNet (Wenzek et al., arXiv 1911.00359) documents are told apart by quantiles of their own language, head, middle
and tail, since a perplexity as such says little: it depends on the language, the model and the words.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gristmill.data.config import PerplexityConfig
from gristmill.data.kernel.layout import texts_of
from gristmill.data.step import Mask, Rule, Step, set_columns
from gristmill.errors import GristmillError

from .arpa import read_arpa
from .model import MAGIC, NgramModel
from .train import Figures, train_ngram
from .words import Tokenization

BUCKETS = ("head", "middle", "tail")
Documents = Callable[[Sequence[str]], Iterable[pa.RecordBatch]]
Cuts = Mapping[str, tuple[float, float]]
_FIELD = pa.field("perplexity", pa.float32())
_NO_BUCKET = len(BUCKETS)


def load_model(path: Path | str, tokenization: Tokenization = "words") -> NgramModel:
    """A model from gristmill's own file, or from an ARPA file whose text was split by `tokenization`."""
    try:
        with Path(path).open("rb") as file:
            own = file.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise GristmillError(
            f"corpus.perplexity.model: {path}: {error.strerror or error}; name a model file, or domains under reference"
        ) from None
    return NgramModel.load(path) if own else read_arpa(path, tokenization)


def train_reference(config: PerplexityConfig, documents: Documents, out: Path) -> Figures:
    """Make the model that the workers will load, in `out`: read from `config.model`, or trained on the documents of
    the domains `config.reference`, by default on an even choice of `config.max_training_bytes` of them.

    `documents(domains)` gives batches with `id` and `text` of these domains, twice the same. The model appears only
    when whole. GristmillError when there is nothing to train on."""
    out.parent.mkdir(parents=True, exist_ok=True)
    torn = out.with_name(f".{out.name}.writing")
    figures: Figures = {}
    if config.model is not None:
        load_model(config.model, config.tokenization).save(torn)
    elif not config.reference:
        raise GristmillError("corpus.perplexity: name a model, or under reference the domains to train one on")
    else:
        total = sum(texts_of(batch.column("text")).size for batch in documents(config.reference))
        if not total:
            raise GristmillError(
                f"corpus.perplexity.reference: no document is in {', '.join(config.reference)}; name domains of what "
                "was collected"
            )
        share = min(1.0, config.max_training_bytes / total)
        figures = train_ngram(_chosen(documents(config.reference), share), config.order, torn)
    os.replace(torn, out)
    return figures


def _chosen(documents: Iterable[pa.RecordBatch], share: float) -> Iterator[pa.RecordBatch]:
    """The documents, or the share of them that their ids choose."""
    for batch in documents:
        if share < 1:
            low = [int(name, 16) < share * 2**64 for name in batch.column("id").to_pylist()]
            batch = batch.filter(pa.array(low, pa.bool_()))
        yield batch


def perplexity_step(config: PerplexityConfig, model: NgramModel | Path) -> Step:
    """Writes each document's perplexity; null where its domain is skipped or it has no word."""
    loaded = model if isinstance(model, NgramModel) else load_model(model, config.tokenization)
    loaded.perplexity("mill")  # makes the tables of characters and words, once for all workers that are forked later
    skipped = pa.array(config.skip_domains, pa.string())

    def apply(batch: pa.RecordBatch) -> pa.RecordBatch:
        judged = pc.invert(pc.is_in(batch.column("domain"), value_set=skipped)).to_numpy(zero_copy_only=False)
        found = np.full(batch.num_rows, np.nan, np.float32)
        found[judged] = loaded.perplexities(texts_of(batch.column("text").filter(pa.array(judged))))
        return set_columns(batch, {"perplexity": pa.array(found, mask=np.isnan(found))}, [_FIELD])

    return Step("perplexity", ("text", "domain"), (_FIELD,), apply)


def perplexity_cuts(
    perplexities: pa.Array | pa.ChunkedArray, languages: pa.Array | pa.ChunkedArray, quantiles: tuple[float, float]
) -> dict[str, tuple[float, float]]:
    """Of each language the largest perplexity of its head and of its middle. The quantile q of n values is the one at
    place ceil(q n), so that it is a value that occurs. nan and null do not count; sorts a float32 a document."""
    values = _values(perplexities)
    groups = _whole(languages).dictionary_encode()
    codes = groups.indices.to_numpy(zero_copy_only=False)
    cuts = {}
    for code, language in enumerate(groups.dictionary.to_pylist()):
        found = np.sort(values[(codes == code) & np.isfinite(values)])
        if len(found):
            places = [max(math.ceil(q * len(found)) - 1, 0) for q in quantiles]
            cuts[language] = (float(found[places[0]]), float(found[places[1]]))
    return dict(sorted(cuts.items()))


def perplexity_rules(config: PerplexityConfig, cuts: Cuts) -> list[Rule]:
    """One rule for each bucket that is to go."""

    def rule(number: int) -> Rule:
        def broken(batch: pa.RecordBatch) -> Mask:
            codes = _bucket_codes(_values(batch.column("perplexity")), batch.column("rule_language"), cuts)
            return np.equal(codes, number)

        return Rule(f"perplexity:{BUCKETS[number]}", ("perplexity", "rule_language"), broken)

    return [rule(number) for number, bucket in enumerate(BUCKETS) if bucket in config.drop]


def _bucket_codes(values: NDArray[np.float32], languages: pa.Array, cuts: Cuts) -> NDArray[np.int8]:
    groups = languages.dictionary_encode()
    ends = np.array([cuts.get(language, (np.nan, np.nan)) for language in groups.dictionary.to_pylist()], np.float32)
    of_row = ends.reshape(-1, 2)[groups.indices.to_numpy(zero_copy_only=False)]
    codes = (values > of_row[:, 0]).astype(np.int8) + (values > of_row[:, 1])
    codes[~np.isfinite(values) | np.isnan(of_row[:, 0])] = _NO_BUCKET
    return codes


def _values(column: pa.Array | pa.ChunkedArray) -> NDArray[np.float32]:
    return np.asarray(_whole(column).fill_null(np.nan))


def _whole(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
