"""The chain of steps that a document goes through, and the rules that are asked afterwards, both in their order.

    clean, drop_lines, repeated units     what is not the document's text goes
    cut                                   long documents become several
    privacy, names                        personal data goes
    language, measure, contamination,
    toxicity, perplexity, classifier      scores and counts beside the text

Every step is a module of its own that is imported when a configuration asks for it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from ..config import CorpusConfig
from ..step import Mask, Rule, Step

PERPLEXITY_MODEL, CLASSIFIER_MODEL = "perplexity.ngram", "classifier.bin"


def text_steps(config: CorpusConfig) -> list[Step]:
    """The steps before repeated units are looked at."""
    from ..clean import clean_step, drop_lines_step

    return [clean_step(config.clean), drop_lines_step(config.rules)]


def text_to_keep(config: CorpusConfig) -> list[Step]:
    """The steps that rewrite the text after that: documents cut, personal data redacted."""
    from ..clean import cut_step

    steps = [cut_step(config.max_document_bytes)]
    if config.privacy is not None:
        from ..privacy import privacy_step

        steps.append(privacy_step(config.privacy))
    if config.names is not None:
        from ..names import names_step

        steps.append(names_step(config.names))
    return steps


def score_steps(config: CorpusConfig) -> list[Step]:
    """The steps that add scores without a model of the stage's own."""
    from ..kernel import measure_step

    steps = []
    if config.language is not None:
        from ..language import language_step

        steps.append(language_step(config.language))
    steps.append(measure_step(config.rules, config.near_duplicates))
    if config.contamination is not None:
        from ..dedup.contamination import contamination_step

        steps.append(contamination_step(config.contamination))
    if config.toxicity is not None:
        from ..toxicity import toxicity_step

        steps.append(toxicity_step(config.toxicity))
    return steps


def model_steps(config: CorpusConfig, models: Path) -> list[Step]:
    """The steps that score by the models that the stage has made, in the directory `models`."""
    steps = []
    if config.perplexity is not None:
        from ..ngram import perplexity_step

        steps.append(perplexity_step(config.perplexity, models / PERPLEXITY_MODEL))
    if config.classifier is not None:
        from ..classifier import classifier_step

        steps.append(classifier_step(models / CLASSIFIER_MODEL))
    return steps


def build_rules(config: CorpusConfig, cuts: str) -> list[Rule]:
    """All rules on columns in the order in which a document's reason is looked for. `cuts` are the perplexities between
    head, middle and tail of each language, as JSON."""
    from ..rules import rules_for

    rules = [Rule("empty", ("bytes",), _empty)]
    if config.language is not None:
        from ..language import language_rules

        rules += language_rules(config.language, config.rules)
    rules += rules_for(config.rules)
    if config.contamination is not None:
        from ..dedup.contamination import contamination_rules

        rules += contamination_rules(config.contamination)
    if config.privacy is not None:
        from ..privacy import privacy_rules

        rules += privacy_rules(config.privacy)
    if config.names is not None:
        from ..names import names_rules

        rules += names_rules(config.names)
    if config.perplexity is not None:
        from ..ngram import perplexity_rules

        rules += perplexity_rules(config.perplexity, json.loads(cuts))
    if config.classifier is not None:
        from ..classifier import classifier_rules

        rules += classifier_rules(config.classifier)
    if config.toxicity is not None:
        from ..toxicity import toxicity_rules

        rules += toxicity_rules(config.toxicity)
    return rules


def _empty(batch: pa.RecordBatch) -> Mask:
    return np.equal(batch["bytes"].to_numpy(zero_copy_only=False), 0)
