"""Limits of one's own: the columns that they name are checked before anything is annotated."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from gristmill.data.config import CorpusConfig, DomainRules, Limit, PerplexityConfig, RuleSet
from gristmill.data.process import annotate
from gristmill.data.rules import check_limits
from gristmill.errors import GristmillError


def test_limits_are_checked_against_the_columns_there_will_be() -> None:
    schema = pa.schema([("text", pa.string()), ("words", pa.int64()), ("score", pa.float32())])

    def limits(*names: str) -> DomainRules:
        return DomainRules(docs=RuleSet(limits={name: Limit(max=1) for name in names}))

    check_limits(limits("words", "score"), schema)
    check_limits(limits("perplexity"), schema, to_come=["perplexity"])
    for name in ("text", "wrods", "perplexity"):
        with pytest.raises(
            GristmillError, match=rf"docs\.limits: '{name}' is no column of numbers; those are words, s"
        ):
            check_limits(limits("words", name), schema)


def test_limits_are_checked_before_anything_is_annotated() -> None:
    def found(**fields: Any) -> None:
        rules = DomainRules(other=RuleSet(limits={"perplexity": Limit(max=900)}))
        config = CorpusConfig(language=None, privacy=None, rules=rules, **fields)
        annotate.check({"config": config.model_dump_json(), "repeated": "", "models": None if fields else ""})

    found(perplexity=PerplexityConfig(reference=("books",)))  # whose model is still to come
    with pytest.raises(GristmillError, match=r"corpus\.rules\.other\.limits: 'perplexity' is no column of numbers"):
        found()
