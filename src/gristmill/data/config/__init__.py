"""The configurations of the data stages. Torch-free and light, so that recipes can be checked without the stages."""

from .collect import (
    DEFAULT_DOCS_PACKAGES,
    BooksConfig,
    CodeConfig,
    CollectConfig,
    DocsConfig,
    LimitsConfig,
    PathSource,
    WebConfig,
)
from .corpus import CorpusConfig
from .dedup import ContaminationConfig, NearDuplicateConfig, RepeatedUnitsConfig
from .filters import ClassifierConfig, ClassifierTraining, CleanConfig, LanguageConfig, PerplexityConfig
from .mixture import MixtureConfig
from .privacy import NamesConfig, PrivacyConfig, ToxicityConfig
from .rules import (
    C4Rules,
    CodeRules,
    CodeRuleSet,
    DomainRules,
    FineWebRules,
    LanguageThresholds,
    Limit,
    QualityRules,
    RepetitionRules,
    RuleSet,
    WebRuleSet,
)

__all__ = [
    "DEFAULT_DOCS_PACKAGES",
    "BooksConfig",
    "C4Rules",
    "ClassifierConfig",
    "ClassifierTraining",
    "CleanConfig",
    "CodeConfig",
    "CodeRuleSet",
    "CodeRules",
    "CollectConfig",
    "ContaminationConfig",
    "CorpusConfig",
    "DocsConfig",
    "DomainRules",
    "FineWebRules",
    "LanguageConfig",
    "LanguageThresholds",
    "Limit",
    "LimitsConfig",
    "MixtureConfig",
    "NamesConfig",
    "NearDuplicateConfig",
    "PathSource",
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
