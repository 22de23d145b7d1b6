"""Scores of a fastText classifier: the same as fastText's own, for whole columns of texts at once.

No module `fasttext` is needed: several packages claim that name, and a call per document costs more than the scoring.
"""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gristmill.data.kernel.jit import compiled
from gristmill.data.kernel.layout import Texts, texts_of
from gristmill.errors import GristmillError

from .fasttext_file import HIERARCHICAL, SOFTMAX, FastTextFile, read_fasttext
from .features import Dictionary, dictionary, mean_inputs, prefix_ends

F32 = NDArray[np.float32]

GOOD = "good"
_TINY = np.float32(1e-5)  # fastText adds this before it takes a logarithm


class Classifier:
    """A trained classifier. `Classifier.load(path)` reads any supervised fastText model, quantized ones too."""

    def __init__(self, model: FastTextFile):
        self.labels = model.labels
        self._model = model

    @classmethod
    def load(cls, path: Path | str, label: str | None = None) -> Classifier:
        """GristmillError when the file is no such model, one of a kind that is not supported, or lacks `label`."""
        model = read_fasttext(path)
        if model.arguments.loss not in (HIERARCHICAL, SOFTMAX):
            raise GristmillError(f"{path} was trained with one-versus-all or sampled loss; train it with -loss softmax")
        found = cls(model)
        if label is not None and label not in found.labels:
            labels = ", ".join(f"__label__{name}" for name in found.labels[:5])
            raise GristmillError(
                f"{path} has no label __label__{label}, but {labels}; train a classifier with that label"
            )
        return found

    def probabilities(self, texts: Texts, characters: int | None = None) -> F32:
        """float32 [texts, labels]: the probability of each label, by the first `characters` characters of the text."""
        hidden = self._hidden(texts, characters)
        if self._model.arguments.loss == SOFTMAX:
            return cast(F32, _softmax(hidden, self._model.outputs))
        return cast(F32, np.exp(_leaves(hidden, self._model.outputs, self._tree)))

    def best(self, texts: Texts, characters: int | None = None) -> tuple[NDArray[np.int64], F32]:
        """The number of each text's likeliest label, and its probability."""
        if self._model.arguments.loss == SOFTMAX:
            probabilities = self.probabilities(texts, characters)
            return probabilities.argmax(axis=1), probabilities.max(axis=1, initial=0)
        found, logs = _best_leaf(self._hidden(texts, characters), self._model.outputs, self._tree)
        return found, np.exp(logs)

    def scores(self, texts: list[str] | pa.Array | pa.ChunkedArray, label: str = GOOD) -> F32:
        """float32 [texts]: the probability of `label` for each text. GristmillError when there is no such label."""
        if label not in self.labels:
            known = ", ".join(self.labels[:5]) + (", ..." if len(self.labels) > 5 else "")
            raise GristmillError(f"the classifier knows no label {label!r}; its labels are {known}")
        column = pa.array(texts, pa.large_string()) if isinstance(texts, list) else texts
        return self.probabilities(texts_of(column))[:, self.labels.index(label)]

    @cached_property
    def _dictionary(self) -> Dictionary:
        return dictionary(self._model)

    @cached_property
    def _tree(self) -> NDArray[np.int64]:
        return _huffman(np.array(self._model.label_counts, np.int64))

    def _hidden(self, texts: Texts, characters: int | None) -> F32:
        starts, ends = texts.offsets[:-1], texts.offsets[1:]
        if characters is not None:
            ends = prefix_ends(texts.data, texts.offsets, characters)
        return mean_inputs(self._dictionary, self._model.inputs, texts.data, starts, ends)


@compiled
def _softmax(hidden, outputs):  # type: ignore[no-untyped-def]
    """float32 [rows, labels]. Plain loops: a library's matrix product depends on how many rows it is given."""
    probabilities = np.empty((len(hidden), len(outputs)), np.float32)
    logits = np.empty(len(outputs), np.float64)
    for d in range(len(hidden)):
        for label in range(len(outputs)):
            total = np.float32(0)
            for k in range(hidden.shape[1]):
                total += hidden[d, k] * outputs[label, k]
            logits[label] = total
        largest = logits.max()
        total_power = 0.0
        for label in range(len(outputs)):
            logits[label] = math.exp(logits[label] - largest)
            total_power += logits[label]
        for label in range(len(outputs)):
            probabilities[d, label] = logits[label] / total_power
    return probabilities


@compiled
def _huffman(counts):  # type: ignore[no-untyped-def]
    """int64 [nodes, 2]: the children of each node of the tree over labels in falling order of count; the first
    `len(counts)` nodes are the labels themselves, the last one is the root."""
    labels = len(counts)
    weights = np.full(2 * labels - 1, np.int64(10**15))
    weights[:labels] = counts
    children = np.full((2 * labels - 1, 2), -1, np.int64)
    leaf, node = labels - 1, labels
    for made in range(labels, 2 * labels - 1):
        for side in range(2):
            if leaf >= 0 and weights[leaf] < weights[node]:
                children[made, side] = leaf
                leaf -= 1
            else:
                children[made, side] = node
                node += 1
        weights[made] = weights[children[made, 0]] + weights[children[made, 1]]
    return children


@compiled
def _branch(hidden, output):  # type: ignore[no-untyped-def]
    """(log of the chance to go left at an inner node, the same of right)."""
    total = np.float32(0)
    for k in range(len(hidden)):
        total += hidden[k] * output[k]
    right = np.float32(1.0 / (1.0 + np.exp(-total)))
    return np.log(np.float32(1) - right + _TINY), np.log(right + _TINY)


@compiled
def _best_leaf(hidden, outputs, tree):  # type: ignore[no-untyped-def]
    """(int64 the likeliest label of each row of `hidden`, float32 its log probability), by depth-first search."""
    labels = (len(tree) + 1) // 2
    found = np.zeros(len(hidden), np.int64)
    logs = np.zeros(len(hidden), np.float32)
    stack = np.empty(len(tree), np.int64)
    reached = np.empty(len(tree), np.float32)
    for d in range(len(hidden)):
        best = np.float32(-np.inf)
        stack[0], reached[0] = len(tree) - 1, np.float32(0)
        depth = 1
        while depth:
            depth -= 1
            node, log = stack[depth], reached[depth]
            if log <= best:
                continue
            if node < labels:
                found[d], best = node, log
                continue
            left, right = _branch(hidden[d], outputs[node - labels])
            first = 1 if left > right else 0  # the likelier side is looked at first, so it goes on the stack last
            for side in (first, 1 - first):
                stack[depth] = tree[node, side]
                reached[depth] = log + (right if side else left)
                depth += 1
        logs[d] = best
    return found, logs


@compiled
def _leaves(hidden, outputs, tree):  # type: ignore[no-untyped-def]
    """float32 [rows, labels]: the log probability of every label."""
    labels = (len(tree) + 1) // 2
    logs = np.zeros((len(hidden), len(tree)), np.float32)
    for d in range(len(hidden)):
        for node in range(len(tree) - 1, labels - 1, -1):
            left, right = _branch(hidden[d], outputs[node - labels])
            logs[d, tree[node, 0]] = logs[d, node] + left
            logs[d, tree[node, 1]] = logs[d, node] + right
    return logs[:, :labels].copy()
