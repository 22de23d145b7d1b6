"""The configurations of the data stages. Torch-free and light, so that recipes can be checked without the stages."""

from .collect import DEFAULT_DOCS_PACKAGES, BooksConfig, CodeConfig, CollectConfig, DocsConfig, LocalSource, WebConfig
from .corpus import CorpusConfig
from .dedup import ContaminationConfig, NearDuplicateConfig, RepeatedUnitsConfig
from .filters import ClassifierConfig, CleanConfig, LanguageConfig, PerplexityConfig
from .mixture import MixtureConfig
from .privacy import NamesConfig, PrivacyConfig, ToxicityConfig
from .rules import CodeRules, CodeRuleSet, DomainRules, PageRules, QualityRules, RepetitionRules, RuleSet, WebRuleSet

__all__ = [
    "DEFAULT_DOCS_PACKAGES",
    "BooksConfig",
    "ClassifierConfig",
    "CleanConfig",
    "CodeConfig",
    "CodeRuleSet",
    "CodeRules",
    "CollectConfig",
    "ContaminationConfig",
    "CorpusConfig",
    "DocsConfig",
    "DomainRules",
    "LanguageConfig",
    "LocalSource",
    "MixtureConfig",
    "NamesConfig",
    "NearDuplicateConfig",
    "PageRules",
    "PerplexityConfig",
    "PrivacyConfig",
    "QualityRules",
    "RepeatedUnitsConfig",
    "RepetitionRules",
    "RuleSet",
    "ToxicityConfig",
    "WebConfig",
    "WebRuleSet",
]
