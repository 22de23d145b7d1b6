"""The shape of a decoder. Torch-free, so that recipes and plans can be checked without it."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ModelShape(BaseModel):
    """A Llama-shaped decoder without its vocabulary: pre-norm RMSNorm, rotary positions, grouped queries, SwiGLU."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    hidden_size: int = Field(gt=0, description="Width of the residual stream.")
    num_layers: int = Field(gt=0, description="Number of decoder blocks.")
    num_heads: int = Field(gt=0, description="Query heads per block.")
    num_kv_heads: int = Field(gt=0, description="Key/value heads per block; divides num_heads.")
    head_dim: int = Field(gt=0, description="Width of one head; even, since rotary positions turn pairs.")
    intermediate_size: int = Field(gt=0, description="Width of the feed-forward layer.")
    max_seq_len: int = Field(gt=0, description="Longest sequence in tokens the model is made for.")
    rope_theta: float = Field(default=10_000.0, gt=0, description="Base of the rotary frequencies.")
    norm_eps: float = Field(default=1e-5, gt=0, description="Added to the mean square inside RMSNorm.")
    tie_embeddings: bool = Field(default=True, description="Use the embedding table as the output head too.")

    @model_validator(mode="after")
    def _shapes_fit(self) -> Self:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads ({self.num_heads}) is not a multiple of num_kv_heads ({self.num_kv_heads})")
        if self.head_dim % 2:
            raise ValueError(f"head_dim ({self.head_dim}) must be even for rotary positions")
        if self.hidden_size % self.num_heads:  # even where head_dim is set apart
            raise ValueError(
                f"hidden_size ({self.hidden_size}) is not a multiple of num_heads ({self.num_heads}), "
                "without which transformers refuses the model"
            )
        return self


class ModelConfig(ModelShape):
    """A decoder's whole shape, vocabulary included."""

    vocab_size: int = Field(gt=0, description="Rows of the embedding table.")

    @property
    def num_parameters(self) -> int:
        """Exact parameter count of the built model; a tied embedding table counts once."""
        attention = 2 * self.hidden_size * self.head_dim * (self.num_heads + self.num_kv_heads)
        feed_forward = 3 * self.hidden_size * self.intermediate_size
        norms = 2 * self.hidden_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_embeddings else 2)
        return embeddings + self.num_layers * (attention + feed_forward + norms) + self.hidden_size
