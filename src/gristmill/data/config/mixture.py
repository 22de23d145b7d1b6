"""The configuration of the mixture: how much each domain weighs in training."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from .base import Frozen


class MixtureConfig(Frozen):
    """Domain weights. Where none are given, `method` makes them of the domains' sizes."""

    weights: dict[str, float] | str | None = Field(
        default=None, description="Share of each domain, or a JSON file of them (`gristmill data mix` writes one)."
    )
    method: Literal["temperature", "unimax"] = Field(
        default="temperature", description="Weights when `weights` is null: by size, or UniMax (arXiv 2304.09151)."
    )
    temperature: float = Field(
        default=0.5, ge=0, le=1, description="Exponent on a domain's size: 1 samples by size, 0 all alike."
    )
    token_budget: int | None = Field(
        default=None, gt=0, description="Tokens to be drawn in training; null: as many as the corpus holds."
    )
    max_epochs: float | None = Field(
        default=None, gt=0, description="Most passes over any domain; what is above goes to the others. null: no cap."
    )
    bytes_per_token: float = Field(
        default=4.0, gt=0, description="Estimate that turns bytes into tokens, before there is a tokenizer."
    )

    @model_validator(mode="after")
    def _weights_are_weights(self) -> MixtureConfig:
        given = self.weights
        if isinstance(given, dict) and (min(given.values(), default=0) < 0 or sum(given.values()) <= 0):
            raise ValueError("weights must not be negative, and at least one must be positive")
        return self
