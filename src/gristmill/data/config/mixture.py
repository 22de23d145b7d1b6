"""The configuration of the mixture: how much each domain weighs in training."""

from __future__ import annotations

from pydantic import Field, model_validator

from .base import Frozen


class MixtureConfig(Frozen):
    """Domain weights."""

    weights: dict[str, float] | None = Field(
        default=None,
        description="Share of each domain in training; null makes it (bytes of the domain) ** temperature.",
    )
    temperature: float = Field(
        default=0.5, ge=0, le=1, description="1 samples domains by size, 0 all alike; used when weights is null."
    )

    @model_validator(mode="after")
    def _weights_are_weights(self) -> MixtureConfig:
        if self.weights is not None and (min(self.weights.values(), default=0) < 0 or sum(self.weights.values()) <= 0):
            raise ValueError("weights must not be negative, and at least one must be positive")
        return self
