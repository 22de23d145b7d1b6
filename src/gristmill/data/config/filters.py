"""The configurations of what scores a document by a model: language, perplexity, quality."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from .base import Frozen, check_language


class CleanConfig(Frozen):
    """Repair of text before anything looks at it; domain `code` is not repaired."""

    repair_encoding: bool = Field(default=True, description="Mend wrongly decoded text (cafÃ© to café) with ftfy.")
    decode_entities: bool = Field(
        default=True, description="Decode HTML entities (&rsquo;) in texts that hold no tags, but for code in them."
    )


class LanguageConfig(Frozen):
    """Language identification by fastText's lid.176, on the beginning of a document."""

    characters: int = Field(default=500, gt=0, le=500, description="How much of the beginning is looked at.")
    skip_domains: tuple[str, ...] = Field(default=("code",), description="Domains that are no natural language.")
    allowed: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="Languages that stay, e.g. [en]; null keeps all."
    )
    min_score: float = Field(
        default=0.65, ge=0, le=1, description="Smallest score of an allowed language; no effect while all are allowed."
    )

    @field_validator("allowed")
    @classmethod
    def _are_codes(cls, allowed: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for name in allowed or ():
            check_language(name)
        return allowed


class PerplexityConfig(Frozen):
    """Perplexity under a reference n-gram model (CCNet, arXiv 1911.00359)."""

    model: str | None = Field(
        default=None, description="A model of gristmill, or an ARPA file; null trains a model on `reference`."
    )
    tokenization: Literal["words", "spaces"] = Field(
        default="words", description="How the text of an ARPA file was split: as gristmill does, or at blanks."
    )
    reference: tuple[str, ...] = Field(default=(), description="Domains to train the model on.")
    order: int = Field(default=5, ge=1, le=6, description="Words per n-gram of the trained model.")
    max_training_bytes: int = Field(
        default=32 << 20,
        gt=0,
        description="Text to train on at most, chosen evenly; takes about 22 times as much memory.",
    )
    skip_domains: tuple[str, ...] = Field(default=("code",), description="Domains that are no natural language.")
    quantiles: tuple[float, float] = Field(default=(1 / 3, 2 / 3), description="Ends of head and middle, by language.")
    drop: tuple[Literal["head", "middle", "tail"], ...] = Field(default=(), description="Buckets to remove.")

    @field_validator("quantiles")
    @classmethod
    def _rise(cls, quantiles: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= quantiles[0] <= quantiles[1] <= 1:
            raise ValueError("the ends of head and middle are shares from 0 to 1, the smaller one first")
        return quantiles

    @model_validator(mode="after")
    def _model_or_reference(self) -> PerplexityConfig:
        if self.model is not None and self.reference:
            raise ValueError("model is given, so nothing would be trained on reference: leave one of them out")
        return self


class ClassifierTraining(Frozen):
    """How a fastText classifier is trained (arXiv 1607.01759)."""

    dimensions: int = Field(default=16, gt=0, le=1024, description="Length of a word's vector.")
    word_ngrams: int = Field(default=2, ge=1, le=5, description="Longest n-gram of words.")
    character_ngrams: tuple[int, int] = Field(
        default=(0, 0), description="Shortest and longest n-gram of characters; 0, 0 for none."
    )
    buckets: int = Field(default=1 << 18, gt=0, description="Hash buckets that the n-grams share.")
    min_count: int = Field(default=2, ge=1, description="Rarer words have no vector of their own.")
    learning_rate: float = Field(default=0.1, gt=0, description="Rate of the first step; it falls to 0.")
    epochs: int = Field(default=5, ge=1, description="How often the examples are gone through.")

    @field_validator("character_ngrams")
    @classmethod
    def _rise(cls, sizes: tuple[int, int]) -> tuple[int, int]:
        if sizes != (0, 0) and not 1 <= sizes[0] <= sizes[1]:
            raise ValueError("the shortest n-gram has 1 character or more, the longest no fewer; 0, 0 for none")
        return sizes


class ClassifierConfig(Frozen):
    """A fastText classifier of good against bad text."""

    model: str | None = Field(
        default=None, description="A fastText model with the label __label__good; null trains one."
    )
    good: tuple[str, ...] = Field(default=(), description="Domains of good examples to train on.")
    bad: tuple[str, ...] = Field(default=(), description="Domains of bad examples to train on.")
    good_files: tuple[str, ...] = Field(default=(), description="Files or directories of good examples.")
    bad_files: tuple[str, ...] = Field(default=(), description="Files or directories of bad examples.")
    max_examples: int = Field(
        default=20_000, ge=1, description="Examples of each side at most, chosen evenly over their sources."
    )
    example_bytes: int = Field(default=4096, ge=256, description="Longer documents give several examples.")
    evaluate: bool = Field(default=True, description="Measure the classifier on held-out sources; trains it six times.")
    training: ClassifierTraining = Field(default=ClassifierTraining(), description="How it is trained.")
    min_score: float = Field(default=0.0, ge=0, le=1, description="Documents below it are removed.")

    @model_validator(mode="after")
    def _model_or_examples(self) -> ClassifierConfig:
        examples = [name for name in ("good", "bad", "good_files", "bad_files") if getattr(self, name)]
        if self.model is not None and examples:
            given = ", ".join(examples)
            raise ValueError(f"model is given, so nothing would be trained on {given}: leave one or the other out")
        return self
