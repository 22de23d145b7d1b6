"""Training a fastText classifier: mean of the embeddings of words and n-grams, a linear layer, softmax (Joulin, Grave,
Bojanowski, Mikolov, arXiv 1607.01759), by stochastic gradient descent with a rate that falls to 0.

One thread and a fixed order make it repeatable: the same examples and options give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gristmill.data.config import ClassifierTraining
from gristmill.data.kernel.jit import compiled
from gristmill.data.kernel.layout import texts_of

from .fasttext_file import SOFTMAX, SUPERVISED, Arguments, FastTextFile
from .features import all_rows, dictionary

F32 = NDArray[np.float32]
_END = b"</s>"
_SEED = 20161


def fit(texts: pa.Array, labels: NDArray[np.int64], names: Sequence[str], options: ClassifierTraining) -> FastTextFile:
    """A model of the examples `texts` (large_string), whose labels are places in `names`. Each label has the same
    weight whatever the number of its examples: the examples of the rarer ones are gone through more often."""
    words, counts = _vocabulary(texts, options.min_count)
    label_counts = np.bincount(labels, minlength=len(names))
    arguments = Arguments(
        dim=options.dimensions,
        ws=5,
        epoch=options.epochs,
        min_count=options.min_count,
        neg=5,
        word_ngrams=options.word_ngrams,
        loss=SOFTMAX,
        model=SUPERVISED,
        bucket=options.buckets,
        minn=options.character_ngrams[0],
        maxn=options.character_ngrams[1],
        lr_update_rate=100,
        t=1e-4,
    )
    random = np.random.Generator(np.random.PCG64(_SEED))
    # fastText draws the inputs at random and begins with outputs of 0. The other way round, an n-gram that training
    # never met adds nothing to a score instead of noise, which is what the scores of unseen sources suffer from.
    inputs = np.zeros((len(words) + options.buckets, options.dimensions), np.float32)
    bound = 1.0 / options.dimensions
    outputs = random.uniform(-bound, bound, (len(names), options.dimensions)).astype(np.float32)
    model = FastTextFile(
        arguments, words, counts, list(names), label_counts.tolist(), inputs, outputs, sum(counts) + len(labels)
    )
    laid_out = texts_of(texts)
    rows, places = all_rows(dictionary(model), laid_out.data, laid_out.offsets)
    order = np.concatenate([_epoch(labels, random) for _ in range(options.epochs)])
    _descend(inputs, outputs, rows, places, labels, order, options.learning_rate)
    return model


def _vocabulary(texts: pa.Array, min_count: int) -> tuple[list[bytes], list[int]]:
    """(words, how often each occurs), the frequent ones first. Words are what fastText takes for words."""
    found: dict[bytes, int] = {_END: len(texts)}
    for start in range(0, len(texts), 1024):
        column = texts.slice(start, 1024).cast(pa.large_binary())
        words = pc.value_counts(
            pc.list_flatten(pc.split_pattern_regex(column.cast(pa.large_string()), r"[ \t\n\v\f\r\x00]+"))
        )
        for word, count in zip(words.field(0).to_pylist(), words.field(1).to_pylist(), strict=True):
            key = word.encode()
            found[key] = found.get(key, 0) + count
    found.pop(b"", None)
    kept = sorted((word for word, count in found.items() if count >= min_count), key=lambda word: (-found[word], word))
    return kept, [found[word] for word in kept]


def _epoch(labels: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.int64]:
    """The examples of one epoch in their order, as many of each label as the most frequent one has."""
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    most = max(map(len, members))
    parts = []
    for own in members:
        times = -(-most // len(own))
        parts.append(np.concatenate([random.permutation(own) for _ in range(times)])[:most])
    return random.permutation(np.concatenate(parts))


@compiled
def _descend(inputs, outputs, rows, places, labels, order, learning_rate):  # type: ignore[no-untyped-def]
    """One step for each example of `order`; `inputs` and `outputs` are changed. The rate falls with the words seen."""
    dim, classes = inputs.shape[1], len(outputs)
    hidden, gradient = np.empty(dim, np.float32), np.empty(dim, np.float32)
    chances = np.empty(classes, np.float32)
    total = 0
    for example in order:
        total += places[example + 1] - places[example]
    seen = 0
    for example in order:
        own = rows[places[example] : places[example + 1]]
        if len(own) == 0:
            continue
        rate = np.float32(learning_rate * (1.0 - seen / total))
        seen += len(own)
        hidden[:] = 0
        for row in own:
            for k in range(dim):
                hidden[k] += inputs[row, k]
        hidden /= np.float32(len(own))
        largest = np.float32(-np.inf)
        for label in range(classes):
            chances[label] = 0
            for k in range(dim):
                chances[label] += outputs[label, k] * hidden[k]
            largest = max(largest, chances[label])
        sum_ = np.float32(0)
        for label in range(classes):
            chances[label] = np.exp(chances[label] - largest)
            sum_ += chances[label]
        gradient[:] = 0
        for label in range(classes):
            target = np.float32(1) if label == labels[example] else np.float32(0)
            alpha = rate * (target - chances[label] / sum_)
            for k in range(dim):
                gradient[k] += alpha * outputs[label, k]
                outputs[label, k] += alpha * hidden[k]
        gradient /= np.float32(len(own))
        for row in own:
            for k in range(dim):
                inputs[row, k] += gradient[k]
