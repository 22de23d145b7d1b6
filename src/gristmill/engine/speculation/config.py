"""The settings of speculative decoding. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class SpeculationConfig(BaseModel):
    """Who guesses, how many tokens at a time, and up to which batch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["ngram", "draft"] = Field(
        default="ngram", description="ngram: what followed the same tokens earlier in the text; draft: a smaller model."
    )
    num_tokens: int = Field(default=8, ge=1, le=32, description="Most tokens guessed for a sequence in one step.")
    max_batch: int = Field(default=16, ge=1, description="With more running sequences than this nothing is guessed.")
    max_ngram: int = Field(default=4, ge=1, le=8, description="Longest run of last tokens that is looked up.")
    min_ngram: int = Field(default=2, ge=1, description="Shortest run of last tokens that is looked up.")

    @model_validator(mode="after")
    def _runs_in_order(self) -> SpeculationConfig:
        if self.min_ngram > self.max_ngram:
            raise ValueError(f"min_ngram ({self.min_ngram}) is more than max_ngram ({self.max_ngram})")
        return self
