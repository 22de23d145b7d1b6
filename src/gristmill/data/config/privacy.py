"""The configurations of what guards people: personal data, names, toxic text."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .base import Frozen


class PrivacyConfig(Frozen):
    """Personal data found by patterns."""

    kinds: tuple[Literal["email", "ip", "phone", "card"], ...] = Field(
        default=("email", "ip", "phone", "card"), min_length=1, description="What to look for."
    )
    action: Literal["redact", "drop"] = Field(
        default="redact", description="Replace a find by <email>, <ip>, <phone>, <card>, or drop the document."
    )


class NamesConfig(Frozen):
    """Names of people, found by a named-entity model (extra `names`), in documents that hold other personal data."""

    action: Literal["redact", "drop"] = Field(default="redact", description="Replace by <name>, or drop the document.")


class ToxicityConfig(Frozen):
    """A toxicity score for every document; thresholds are best effort."""

    model: str = Field(default="profanity", description="profanity (extra `toxicity`), or a classifier's .bin file.")
    max_score: float = Field(default=0.9, ge=0, le=1, description="Documents above it are removed.")
