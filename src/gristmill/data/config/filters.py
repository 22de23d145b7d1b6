"""The configurations of what scores a document by a model: language, perplexity, quality."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .base import Frozen


class CleanConfig(Frozen):
    """Repair of text before anything looks at it."""

    repair_encoding: bool = Field(default=True, description="Mend wrongly decoded text (cafÃ© to café) with ftfy.")


class LanguageConfig(Frozen):
    """Language identification by fastText's lid.176, on the beginning of a document."""

    characters: int = Field(default=500, gt=0, le=500, description="How much of the beginning is looked at.")
    skip_domains: tuple[str, ...] = Field(default=("code",), description="Domains that are no natural language.")
    allowed: tuple[str, ...] | None = Field(default=None, description="Languages that stay, e.g. [en]; null keeps all.")
    min_score: float = Field(default=0.65, ge=0, le=1, description="Smallest score of an allowed language.")


class PerplexityConfig(Frozen):
    """Perplexity under a reference n-gram model (CCNet, arXiv 1911.00359)."""

    model: str | None = Field(default=None, description="An ARPA file; null trains a model on `reference`.")
    reference: tuple[str, ...] = Field(default=(), description="Domains to train the model on.")
    order: int = Field(default=5, ge=1, le=6, description="Words per n-gram of the trained model.")
    quantiles: tuple[float, float] = Field(default=(1 / 3, 2 / 3), description="Ends of head and middle, by language.")
    drop: tuple[Literal["head", "middle", "tail"], ...] = Field(default=(), description="Buckets to remove.")


class ClassifierConfig(Frozen):
    """A fastText classifier of good against bad text."""

    model: str | None = Field(default=None, description="A classifier's .bin file; null trains one.")
    good: tuple[str, ...] = Field(default=(), description="Domains of good examples to train on.")
    bad: tuple[str, ...] = Field(default=(), description="Domains of bad examples to train on.")
    min_score: float = Field(default=0.0, ge=0, le=1, description="Documents below it are removed.")
