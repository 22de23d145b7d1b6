"""A score for toxic text: of a packaged judge of profanity, or of a classifier that gristmill trained.

`profanity` (alt-profanity-check: a linear model on words, English) is asked sentence by sentence, and the worst one is
the document's score: an insult in a long page would vanish in its mean. It knows words and no meaning, so a dictionary
or a chapter on biology may score high: thresholds are best effort, and the score stays beside the text to be looked at.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gristmill.errors import GristmillError

from .config import ToxicityConfig
from .step import Mask, Rule, Step, set_columns

_FIELD = pa.field("toxicity_score", pa.float32())
_SENTENCE = re.compile(r"[^.!?\n]{0,400}\w[^.!?\n]{0,400}")
_AT_ONCE = 20_000  # sentences: bounds the memory of the judge's matrix

Judge = Callable[[pa.Array], NDArray[np.float32]]


def toxicity_step(config: ToxicityConfig) -> Step:
    """Writes `toxicity_score`, between 0 and 1."""
    judge = _profanity() if config.model == "profanity" else _classifier(config.model)

    def apply(batch: pa.RecordBatch) -> pa.RecordBatch:
        return set_columns(batch, {_FIELD.name: pa.array(judge(batch.column("text")), pa.float32())}, (_FIELD,))

    return Step("toxicity", ("text",), (_FIELD,), apply)


def toxicity_rules(config: ToxicityConfig) -> list[Rule]:
    """Documents that score above the threshold."""

    def broken(batch: pa.RecordBatch) -> Mask:
        return np.greater(batch.column(_FIELD.name).to_numpy(zero_copy_only=False), config.max_score)

    return [Rule("toxicity:max_score", (_FIELD.name,), broken)]


def worst_sentences(texts: list[str], score: Callable[[list[str]], NDArray[np.float64]]) -> NDArray[np.float32]:
    """float32 [texts]: the largest score of a text's sentences, 0 where it has none. A sentence that stands in the
    texts several times is scored once."""
    numbers: dict[str, int] = {}
    places = [[numbers.setdefault(s, len(numbers)) for s in _SENTENCE.findall(text)] for text in texts]
    sentences = list(numbers)
    parts = [score(sentences[i : i + _AT_ONCE]) for i in range(0, len(sentences), _AT_ONCE)]
    scores = np.concatenate([np.zeros(0), *parts])
    return np.array([scores[found].max() if found else 0 for found in places], np.float32)


def _profanity() -> Judge:
    try:
        from profanity_check import predict_prob
    except ImportError:
        raise GristmillError(
            "the profanity score needs a package: pip install 'gristmill[toxicity]', set corpus.toxicity=null, or name "
            "a classifier's .bin file as corpus.toxicity.model"
        ) from None
    return lambda column: worst_sentences(column.to_pylist(), predict_prob)


def _classifier(path: str) -> Judge:
    from .classifier.predict import GOOD, Classifier

    classifier = Classifier.load(path, label=GOOD)
    return lambda column: 1 - classifier.scores(column)
