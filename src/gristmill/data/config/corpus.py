"""The configuration of stage `corpus`."""

from __future__ import annotations

from pydantic import Field

from .base import Frozen
from .dedup import ContaminationConfig, NearDuplicateConfig, RepeatedUnitsConfig
from .filters import ClassifierConfig, CleanConfig, LanguageConfig, PerplexityConfig
from .mixture import MixtureConfig
from .privacy import NamesConfig, PrivacyConfig, ToxicityConfig
from .rules import DomainRules


class CorpusConfig(Frozen):
    """How stage `corpus` makes a corpus of what was collected."""

    clean: CleanConfig = Field(default=CleanConfig(), description="Repair of the text.")
    max_document_bytes: int = Field(
        default=32_768, ge=1024, description="Longer documents are cut into pieces of at most so many UTF-8 bytes."
    )
    part_row_groups: int = Field(
        default=16, ge=1, description="Row groups of the input, of some 2 MB of text, that become one file."
    )
    language: LanguageConfig | None = Field(
        default=LanguageConfig(), description="Language identification; null switches it off."
    )
    rules: DomainRules = Field(default=DomainRules(), description="Heuristic rules, by domain.")
    repeated_units: RepeatedUnitsConfig | None = Field(
        default=None, description="Removal of lines or paragraphs that other documents hold too."
    )
    near_duplicates: NearDuplicateConfig | None = Field(
        default=NearDuplicateConfig(), description="Removal of near-duplicates; null switches it off."
    )
    contamination: ContaminationConfig | None = Field(
        default=None, description="Removal of documents that hold text of evaluation sets."
    )
    privacy: PrivacyConfig | None = Field(default=PrivacyConfig(), description="Personal data; null leaves it in.")
    names: NamesConfig | None = Field(default=None, description="Names of people, by a model.")
    perplexity: PerplexityConfig | None = Field(default=None, description="Perplexity under an n-gram model.")
    classifier: ClassifierConfig | None = Field(default=None, description="A classifier of good and bad text.")
    toxicity: ToxicityConfig | None = Field(default=None, description="A toxicity score.")
    validation_fraction: float = Field(
        default=0.02, gt=0, lt=0.5, description="Share of the works kept for validation."
    )
    min_validation_works: int = Field(
        default=6, ge=1, description="Fewest works of each domain kept for validation, up to a quarter of them."
    )
    mixture: MixtureConfig = Field(default=MixtureConfig(), description="How much each domain weighs in training.")
