"""The settings of the `int8` stage."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class QuantizeConfig(BaseModel):
    """Stage `int8`: weights of the blocks as 8-bit integers with one scale per output row."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="Type of what is not quantized (embeddings, norms, scales); auto keeps the input model's.",
    )
    tokens_per_domain: int = Field(
        default=4096,
        gt=1,
        description="Validation tokens per domain on which bits per byte are measured, before and after.",
    )
    window: int | None = Field(
        default=None,
        gt=0,
        description="Tokens the model sees at once while bits per byte are measured; null: all it can, up to 256.",
    )
    batch_size: int = Field(default=16, gt=0, description="Windows per forward pass.")
