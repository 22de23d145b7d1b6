"""Names of people, by a named-entity model of spaCy, in documents in which patterns have found other personal data.

A model reads 0.04 MB a second where patterns read 80, so only documents that are flagged already are read, and of
those the ones in the model's language: an English model takes any foreign word for a name. In technical texts it takes
many products for people too, so a find must look like a name: two capitalized words or more. A single word goes only
where it is a part of a name that the document has in full.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gristmill.errors import GristmillError

from .classifier.predict import Classifier
from .config import NamesConfig
from .kernel.layout import texts_of
from .language import language_model
from .privacy.spans import replaced
from .step import Mask, Rule, Step, set_columns

_FIELDS = (
    pa.field("text", pa.string(), nullable=False),
    pa.field("bytes", pa.int64()),
    pa.field("pii_name", pa.int32()),
)
_PEOPLE = frozenset(["PERSON", "PER"])  # OntoNotes' label, and that of models trained on WikiNER
_PARTS = frozenset(["tok2vec", "transformer", "ner"])
_NOT_IN_A_NAME = re.compile(r"[<>@/\\=(){}\[\]|\n\d_•]")
_POSSESSIVE = re.compile(r"['’]s\Z")
_SIGNS = str.maketrans("", "", "'’.-")
_PARTICLES = frozenset("de da di del della do dos van von der den la le bin ibn al y e".split())
_ANY_LANGUAGE = "xx"  # what spaCy calls the language of a model for many
_SEEN_CHARACTERS = 500


def names_step(config: NamesConfig) -> Step:
    """Replaces names by `<name>` in documents with any `pii_*` count, and writes their number as `pii_name`.

    Texts are redacted whether their documents are dropped or not."""
    model = load_model(config.model)

    in_language = _language_test(model.lang)

    def apply(batch: pa.RecordBatch) -> pa.RecordBatch:
        column = batch.column("text")
        rows = np.flatnonzero(_flagged(batch, config.skip_domains))
        rows = rows[in_language(column.take(pa.array(rows)))] if len(rows) else rows
        texts = [column[row].as_py() for row in rows.tolist()]
        changed: list[str | None] = [None] * batch.num_rows
        counts = np.zeros(batch.num_rows, np.int32)
        for row, text, document in zip(rows.tolist(), texts, model.pipe(texts), strict=True):
            found = find_names(text, document.ents)
            if found:
                changed[row] = replaced(text, ((start, end, "<name>") for start, end in found))
                counts[row] = len(found)
        column = pc.coalesce(pa.array(changed, pa.string()), column)
        return set_columns(
            batch, {"text": column, "bytes": pc.binary_length(column), "pii_name": pa.array(counts)}, _FIELDS
        )

    return Step("names", ("text", "domain"), _FIELDS, apply)


def names_rules(config: NamesConfig) -> list[Rule]:
    """Documents that hold names, where they are to be dropped."""

    def broken(batch: pa.RecordBatch) -> Mask:
        return np.greater(batch.column("pii_name").to_numpy(zero_copy_only=False), 0)

    return [Rule("privacy:name", ("pii_name",), broken)] if config.action == "drop" else []


def load_model(name: str) -> Any:
    """The spaCy pipeline, as much of it as finds entities. GristmillError where spaCy or the model is missing."""
    try:
        import spacy
    except ImportError:
        raise GristmillError(
            "names of people need spaCy: pip install 'gristmill[names]', or set corpus.names=null"
        ) from None
    try:
        model = spacy.load(name)
    except OSError as error:
        raise GristmillError(f"corpus.names.model: {error}") from None
    if "ner" not in model.pipe_names:
        raise GristmillError(f"corpus.names.model: {name} has no component `ner`, which finds names")
    model.select_pipes(enable=[part for part in model.pipe_names if part in _PARTS])
    return model


def find_names(text: str, entities: Iterable[Any]) -> list[tuple[int, int]]:
    """(start, end) in characters, in order, of the names of people among `entities`, of every other place where one of
    them stands, and of the single words among them that are a part of one."""
    people = [
        (entity.start_char, _NOT_IN_A_NAME.split(text[entity.start_char : entity.end_char])[0])
        for entity in entities
        if entity.label_ in _PEOPLE
    ]
    names = {name for _, said in people if (name := _full_name(said)) is not None}
    parts = {word for name in names for word in name.split() if len(word) > 2}
    spans = {(start, start + len(said.rstrip())) for start, said in people if said.rstrip() in parts}
    for name in names:
        spans.update(match.span() for match in re.finditer(rf"\b{re.escape(name)}(?!\w)", text))
    apart: list[tuple[int, int]] = []
    for start, end in sorted(spans, key=lambda span: (span[0], -span[1])):
        if not apart or start >= apart[-1][1]:
            apart.append((start, end))
    return apart


def _full_name(said: str) -> str | None:
    """The first words of what a model takes for a person, as far as they are capitalized; None for less than two."""
    words: list[str] = []
    for word in _POSSESSIVE.sub("", said).split(" "):
        if not _is_capitalized(word) and not (words and word in _PARTICLES):
            break
        words.append(word)
    while words and words[-1] in _PARTICLES:
        words.pop()
    return " ".join(words) if len(words) > 1 else None


def _is_capitalized(word: str) -> bool:
    """Miller, O'Neil, Mary-Ann, J. and Dr., but not JSON."""
    letters = word.translate(_SIGNS)
    return letters.isalpha() and word[0].isupper() and (word[-1] == "." or any(map(str.islower, letters)))


def _language_test(language: str) -> Callable[[pa.Array], Mask]:
    """Tells which texts are in the language of a model."""
    if language == _ANY_LANGUAGE:
        return lambda texts: np.ones(len(texts), np.bool_)
    classifier = Classifier.load(language_model())
    number = classifier.labels.index(language)
    return lambda texts: np.equal(classifier.best(texts_of(texts), _SEEN_CHARACTERS)[0], number)


def _flagged(batch: pa.RecordBatch, skip_domains: tuple[str, ...]) -> Mask:
    columns = [name for name in batch.schema.names if name.startswith("pii_") and name != "pii_name"]
    if not columns:
        raise GristmillError("corpus.names looks at documents that hold other personal data: set corpus.privacy")
    counts = sum(batch.column(name).to_numpy(zero_copy_only=False) for name in columns)
    skipped = pc.is_in(batch.column("domain"), value_set=pa.array(skip_domains, pa.string()))
    return np.greater(counts, 0) & ~skipped.to_numpy(zero_copy_only=False)
