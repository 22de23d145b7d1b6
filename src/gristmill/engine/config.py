"""The limits of an engine, and how it works. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .speculation.config import SpeculationConfig

Batching = Literal["continuous", "static", "naive"]
CacheType = Literal["auto", "fp8", "int8"]


class EngineConfig(BaseModel):
    """How much the engine holds and does at once."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_num_seqs: int = Field(default=64, gt=0, description="Sequences that are generated at the same time.")
    max_model_len: int = Field(gt=0, description="Most tokens of a sequence, prompt and reply together.")
    max_num_batched_tokens: int = Field(default=2048, gt=0, description="Most tokens the model sees in one step.")
    block_size: int = Field(default=16, gt=0, description="Tokens of a block of the cache.")
    num_blocks: int = Field(gt=0, description="Blocks of the cache, shared by all sequences.")
    kv_dtype: CacheType = Field(default="auto", description="Keys and values as the model computes, in fp8 or int8.")
    prefix_caching: bool = Field(default=True, description="Blocks of equal beginnings are computed once.")
    chunked_prefill: bool = Field(default=True, description="A long prompt is read in parts, between replies' steps.")
    batching: Batching = Field(
        default="continuous", description="continuous; static and naive are there to be measured beside it."
    )
    run_ahead: int = Field(
        default=0, ge=0, le=1, description="Steps that are launched before the last one's tokens are known."
    )
    speculation: SpeculationConfig | None = Field(default=None, description="Guessing tokens ahead, if at all.")

    graphs: bool = Field(default=True, description="Steps on a GPU are CUDA graphs, unless they read many tokens.")
    batch_invariant: bool = Field(
        default=False, description="A reply has the same bits whoever else is served; prompts are read more slowly."
    )

    @model_validator(mode="after")
    def _budget_covers_decoding(self) -> EngineConfig:
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) is less than max_num_seqs "
                f"({self.max_num_seqs}): every running sequence needs one token a step"
            )
        return self

    @model_validator(mode="after")
    def _one_sequence_fits(self) -> EngineConfig:
        if self.num_blocks * self.block_size < self.max_model_len:
            raise ValueError(
                f"num_blocks ({self.num_blocks}) of {self.block_size} tokens hold less than one sequence of "
                f"max_model_len ({self.max_model_len})"
            )
        return self

    @property
    def max_blocks_per_seq(self) -> int:
        """Blocks that one sequence of `max_model_len` tokens takes."""
        return -(-self.max_model_len // self.block_size)
