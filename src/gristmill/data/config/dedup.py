"""The configurations of everything that compares documents with each other or with other texts."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from .base import Frozen

MOST_PERMUTATIONS = 9000  # RefinedWeb's (arXiv 2306.01116)
# A false candidate costs one comparison, a missed one leaves a duplicate in the corpus.
FALSE_CANDIDATE_WEIGHT = 0.3


class NearDuplicateConfig(Frozen):
    """MinHash with locality-sensitive hashing, each candidate compared exactly; the numbers are FineWeb's."""

    permutations: int = Field(
        default=112,
        gt=0,
        le=MOST_PERMUTATIONS,
        description="Minima of a signature. Bands x rows of them are used to find candidates, all to judge them.",
    )
    bands: int = Field(
        default=14,
        gt=0,
        description="Bands of the signature; one equal band makes a candidate. Chosen for the threshold "
        "when neither bands nor rows are given.",
    )
    rows: int = Field(default=8, gt=0, description="Minima per band; chosen like the bands.")
    ngram: int = Field(default=5, gt=0, description="Words per n-gram.")
    threshold: float = Field(
        default=0.7, gt=0, le=1, description="A document is removed when its true Jaccard similarity is at least this."
    )
    against: tuple[str, ...] = Field(
        default=(), description="Directories of finished corpora: what they hold already is removed as a duplicate."
    )

    @model_validator(mode="before")
    @classmethod
    def _choose(cls, values: Any) -> Any:
        """Fill in bands and rows, or permutations, from what is given; the fields' own checks name mistakes."""
        if not isinstance(values, dict) or not values:
            return values
        known = {name: field.default for name, field in cls.model_fields.items()} | values
        try:
            threshold, sizes = float(known["threshold"]), [int(known[n]) for n in ("permutations", "bands", "rows")]
        except (TypeError, ValueError):
            return values
        if {"bands", "rows"} & values.keys():
            return {"permutations": sizes[1] * sizes[2], **values}
        if not 0 < threshold <= 1 or not 0 < sizes[0] <= MOST_PERMUTATIONS:
            return values
        bands, rows = for_threshold(threshold, sizes[0])
        return {"bands": bands, "rows": rows, **values}

    @model_validator(mode="after")
    def _bands_fit(self) -> NearDuplicateConfig:
        if self.bands * self.rows > self.permutations:
            needed = f"{self.bands} bands x {self.rows} rows need {self.bands * self.rows} permutations"
            raise ValueError(f"{needed}, not {self.permutations}")
        return self


class RepeatedUnitsConfig(Frozen):
    """Removal of lines or paragraphs that occur in many documents."""

    unit: Literal["line", "paragraph"] = Field(default="paragraph", description="What is compared.")
    min_characters: int = Field(default=80, gt=0, description="Shorter units are left alone.")
    max_documents: int = Field(default=1, ge=1, description="A unit stays in the first so many documents that hold it.")


class ContaminationConfig(Frozen):
    """Removal of documents that hold text of an evaluation set."""

    sets: tuple[str, ...] = Field(
        min_length=1, description="Files or globs: .jsonl, .json, .csv, .tsv, .parquet or .txt; .gz too."
    )
    fields: tuple[str, ...] | None = Field(
        default=None, description="Fields of a row to look for; null takes all text."
    )
    ngram: int = Field(default=13, gt=0, description="Words per n-gram (GPT-3, arXiv 2005.14165, appendix C).")
    min_words: int = Field(
        default=8, gt=0, description="A text of fewer words than an n-gram counts whole, if it has at least so many."
    )
    max_items: int = Field(
        default=10,
        gt=0,
        description="An n-gram that more items of the sets share is their template and proves nothing.",
    )
    min_overlap: float = Field(default=0.0, ge=0, le=1, description="Share of an item's n-grams that must be found.")


def for_threshold(threshold: float, permutations: int) -> tuple[int, int]:
    """(bands, rows), of at most `permutations` minima, that tell pairs above a Jaccard similarity from those below.

    Documents become candidates with probability P(s) = 1 - (1 - s**rows)**bands. What is minimised is the weighed sum
    of the area under P below the threshold (false candidates) and above P beyond it (missed pairs), as in Zhu et al.,
    LSH Ensemble (VLDB 2016); of equal sums the one with fewer rows wins.
    """
    best, least = (1, 1), float("inf")
    for rows in range(1, permutations + 1):
        for bands in range(1, permutations // rows + 1):
            false = _candidate_area(bands, rows, 0.0, threshold)
            missed = (1.0 - threshold) - _candidate_area(bands, rows, threshold, 1.0)
            weighed = FALSE_CANDIDATE_WEIGHT * false + (1 - FALSE_CANDIDATE_WEIGHT) * missed
            if weighed < least - 1e-12:
                best, least = (bands, rows), weighed
    return best


def _candidate_area(bands: int, rows: int, low: float, high: float, intervals: int = 50) -> float:
    """The integral of P from `low` to `high`, by Simpson's rule."""
    width = (high - low) / intervals
    heights = [1 - (1 - min(low + width * i, 1.0) ** rows) ** bands for i in range(intervals + 1)]
    return width / 3 * (heights[0] + heights[-1] + 4 * sum(heights[1:-1:2]) + 2 * sum(heights[2:-1:2]))
