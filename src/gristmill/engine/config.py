"""The limits of an engine."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator


class EngineConfig(BaseModel):
    """How much the engine holds and does at once."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_num_seqs: int = Field(default=64, gt=0, description="Sequences that are generated at the same time: slots.")
    max_model_len: int = Field(gt=0, description="Most tokens of a sequence, prompt and reply together.")
    max_num_batched_tokens: int = Field(default=2048, gt=0, description="Most tokens the model sees in one step.")

    @model_validator(mode="after")
    def _budget_covers_decoding(self) -> EngineConfig:
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) is less than max_num_seqs "
                f"({self.max_num_seqs}): every running sequence needs one token a step"
            )
        return self
