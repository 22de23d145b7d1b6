"""The configurations of everything that compares documents with each other or with other texts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .base import Frozen


class NearDuplicateConfig(Frozen):
    """MinHash with locality-sensitive hashing; the numbers are FineWeb's."""

    bands: int = Field(default=14, gt=0, description="Bands of the signature; one equal band makes a candidate.")
    rows: int = Field(default=8, gt=0, description="Minima per band.")
    ngram: int = Field(default=5, gt=0, description="Words per n-gram.")
    threshold: float = Field(
        default=0.7, gt=0, le=1, description="A document is removed when its true Jaccard similarity is at least this."
    )


class RepeatedUnitsConfig(Frozen):
    """Removal of lines or paragraphs that occur in many documents."""

    unit: Literal["line", "paragraph"] = Field(default="paragraph", description="What is compared.")
    min_characters: int = Field(default=80, gt=0, description="Shorter units are left alone.")
    max_documents: int = Field(default=1, ge=1, description="A unit stays in the first so many documents that hold it.")


class ContaminationConfig(Frozen):
    """Removal of documents that hold text of an evaluation set."""

    sets: tuple[str, ...] = Field(min_length=1, description="Files or globs: .jsonl(.gz), .parquet, .csv, or text.")
    fields: tuple[str, ...] | None = Field(
        default=None, description="Fields of a row to look for; null takes all text."
    )
    ngram: int = Field(default=13, gt=0, description="Words per n-gram (GPT-3, arXiv 2005.14165, appendix C).")
    min_overlap: float = Field(default=0.0, ge=0, le=1, description="Share of an item's n-grams that must be found.")
