"""Configuration of the inspection."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class InspectConfig(BaseModel):
    """Stage `inspect`: what the run's last unquantized model holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str = Field(
        default="The king said to the people, and the people said to the king",
        min_length=1,
        description="Text whose attention patterns and logit lens are recorded.",
    )
    words: tuple[str, ...] = Field(
        default=("king", "water", "day", "said", "good", "one", "two", "city", "return", "file"),
        description="Words whose nearest embeddings are listed, where a word is one token.",
    )
    frequent_tokens: int = Field(
        default=30,
        ge=0,
        description="How many of the vocabulary's most frequent words are listed besides, by the order of its merges.",
    )
    neighbours: int = Field(default=8, gt=0, description="Nearest tokens listed for each.")
    lens_tokens: int = Field(default=5, gt=0, description="Predictions listed for each layer and position.")
    repeated_tokens: int = Field(
        default=48, gt=1, description="Length of the random token sequence that is repeated to find induction heads."
    )
