"""Options of the tokenizer and tokens stages."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Kind = Literal["bpe", "unigram", "wordpiece", "sentencepiece"]
Pretokenizer = Literal["gpt2", "gpt4", "llama3", "qwen2"]


class TokenizerConfig(BaseModel):
    """What tokenizer is trained, and on how much."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind = Field(
        default="bpe",
        description="bpe (of bytes, as GPT and Llama 3), unigram, wordpiece, or sentencepiece (BPE of characters with "
        "byte fallback, as Llama 2).",
    )
    vocab_size: int = Field(
        default=4096, ge=256, le=1_000_000, description="Tokens in all: special ones, the alphabet, the rest learned."
    )
    pretokenizer: Pretokenizer = Field(
        default="qwen2",
        description="Regex no token of kind bpe crosses: gpt2, gpt4 or llama3 (the same; digits by three), qwen2 "
        "(single digits).",
    )
    digits: Literal[1, 2, 3] | None = Field(
        default=None, description="Most digits in one token, instead of what the pre-tokenizer is published with."
    )
    sample_bytes: int = Field(
        default=20_000_000, ge=1_000, description="Most bytes of training text read, shared out by the mixture weights."
    )
    min_frequency: int = Field(
        default=2, ge=1, description="How often a pair must occur in the sample to be merged (not kind unigram)."
    )
    max_token_bytes: int | None = Field(
        default=None, ge=2, description="Longest token that is learned, in bytes (kind bpe)."
    )
    memory_bytes: int = Field(
        default=1_000_000_000,
        ge=50_000_000,
        description="What counting words and learning from them may hold in memory: counting goes on on disk, and of "
        "more distinct words than fit the rarest are left out (kind bpe).",
    )
    special_tokens: tuple[str, ...] = Field(default=(), description="More special tokens, behind the usual ones.")
    fill_in_the_middle: bool = Field(
        default=False, description="Add <|fim_prefix|>, <|fim_middle|> and <|fim_suffix|>."
    )
    reserved: int = Field(
        default=0, ge=0, le=10_000, description="Special tokens <|reserved_N|> kept free for later use."
    )
    pad_to_multiple: int = Field(
        default=1, ge=1, le=4096, description="Round vocab_size up to a multiple by further reserved tokens."
    )
    chat_template: str = Field(
        default="chatml", description="How chats are written: chatml, llama3, zephyr, or a file with a Jinja template."
    )


class TokensConfig(BaseModel):
    """How the corpus is packed into token files."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: Literal["auto", "uint16", "uint32"] = Field(
        default="auto", description="Width of a stored token id; auto takes uint16 where the vocabulary fits."
    )
