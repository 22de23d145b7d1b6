"""Options of the tokenizer and tokens stages."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class TokenizerConfig(BaseModel):
    """How the byte-level BPE tokenizer is trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocab_size: int = Field(
        default=4096, ge=300, le=65_536, description="Tokens in all: 5 special ones, 256 bytes, the rest merges."
    )
    pretokenizer: Literal["gpt2", "gpt4", "qwen2"] = Field(
        default="qwen2",
        description="Regex no token crosses: gpt2, gpt4 (Llama 3's too; digits by three) or qwen2 (single digits).",
    )
    sample_bytes: int = Field(
        default=20_000_000, ge=1_000, description="Most bytes of training text read, shared out by the mixture weights."
    )
    min_frequency: int = Field(default=2, ge=1, description="How often a pair must occur in the sample to be merged.")


class TokensConfig(BaseModel):
    """How the corpus is packed into token files."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: Literal["auto", "uint16", "uint32"] = Field(
        default="auto", description="Width of a stored token id; auto takes uint16 where the vocabulary fits."
    )
