"""Which number in the settings a reason stands for, so that a histogram can show where its rule cuts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

RULED = ("books", "web", "docs", "code")  # domains with rules of their own; all others share `other`
SECTIONS = {"gopher_quality": "quality", "gopher_repetition": "repetition"}


def threshold(settings: Mapping[str, Any], reason: str, domain: str) -> float | None:
    """The number at which the rule `family:field` cuts in a domain, or None where it is switched off or no number.

    `settings` is the stage's configuration as JSON. A field such as `max_duplicate_ngrams_5` is number 5 of a table.
    """
    family, _, field = reason.partition(":")
    rules = settings.get("rules") or {}
    of_domain = rules.get(domain if domain in RULED else "other") or {}
    values = of_domain.get(SECTIONS.get(family, family), settings.get(family)) or {}
    found = values.get(field) if isinstance(values, Mapping) else None
    numbered = re.fullmatch(r"(.+)_(\d+)", field)
    if found is None and numbered and isinstance(values, Mapping):
        table = values.get(numbered[1])
        found = table.get(numbered[2]) if isinstance(table, Mapping) else None
    return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None
