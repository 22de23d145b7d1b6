"""Configuration of the evaluation."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

ModelName = Literal["base", "sft", "dpo", "int8"]


class EvaluateConfig(BaseModel):
    """Stage `evaluation`: every model of the run on the same validation text and the same held-out tasks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens_per_domain: int = Field(default=8192, gt=1, description="Validation tokens read per domain, in file order.")
    tokens_per_document: int = Field(
        default=768, gt=1, description="Most tokens read of one document, so that a domain is more than one of them."
    )
    window: int = Field(default=256, gt=0, description="Tokens the model sees at once when it reads validation text.")
    stride: int = Field(
        default=128,
        gt=0,
        description="Tokens scored per window; all but the first see at least window - stride others.",
    )
    batch_size: int = Field(default=8, gt=0, description="Windows per forward pass.")
    bits_per_byte_models: tuple[ModelName, ...] = Field(
        default=("base", "dpo", "int8"), description="Models whose bits per byte are measured."
    )
    tasks: int = Field(default=600, gt=0, description="Held-out tasks every model answers.")
    seed: int = Field(
        default=0, ge=0, description="Draws the tasks; apart from the run's seed, so that runs face the same questions."
    )
    max_tokens: int = Field(default=24, gt=0, description="Longest reply to a task, in tokens.")
    max_num_seqs: int = Field(default=64, gt=0, description="Replies generated side by side.")
    confidence: float = Field(default=0.95, gt=0, lt=1, description="Confidence of every interval.")
    prompts: tuple[str, ...] = Field(
        default=("In the beginning", "The king said to", "Once upon a time", "To install the package"),
        description="Openings that the base model continues in the report.",
    )
    prompt_tokens: int = Field(default=48, gt=0, description="Length of each continuation, in tokens.")
    shown_tasks: int = Field(default=8, ge=0, description="Tasks whose replies the report shows for every model.")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto is cuda where there is a GPU.")

    @model_validator(mode="after")
    def _stride_fits(self) -> EvaluateConfig:
        if self.stride > self.window:
            raise ValueError(f"stride ({self.stride}) is larger than window ({self.window}): tokens would be left out")
        return self
