"""What encoders and encoder-decoders take beside decoders: FLOPs of tokens read and written, and what a decoder keeps.

Conventions of plan/flops.py; s tokens read, t written. Symbols as in plan/parameters.py.
"""

from __future__ import annotations

from ..model.config import ModelConfig, ModelShape
from .flops import attention_flops_per_token, flops_per_token_forward
from .kv_cache import kv_cache_bytes_per_token
from .parameters import head_params, matrix_params


def halves(config: ModelConfig) -> tuple[ModelConfig, ModelConfig]:
    """The encoder and the decoder of an encoder-decoder, each as a model of its own without cross-attention."""
    own = {name: getattr(config, name) for name in ModelConfig.model_fields}
    shape: ModelShape = config.decoder_shape()  # type: ignore[attr-defined]
    return ModelConfig(**own), ModelConfig(**shape.model_dump(), vocab_size=config.vocab_size)


def flops_per_token_read(config: ModelConfig, read: int, causal_half: bool = True) -> float:
    """FLOPs of one token that is read among `read`: 2 * the encoder's matrices + attention to both sides + the keys and
    values of cross-attention in every layer of the decoder, 2 * Ld * 2 C K D."""
    encoder, decoder = halves(config)
    attention = attention_flops_per_token(encoder, read, causal_half)
    keys_and_values = 2 * config.hidden_size * config.num_kv_heads * config.head_dim
    matrices = matrix_params(encoder) - head_params(encoder) + decoder.num_layers * keys_and_values
    return 2 * matrices + attention


def flops_per_token_written(config: ModelConfig, written: int, read: int, causal_half: bool = True) -> float:
    """FLOPs of one token that is written, mean over `written`, behind `read` others: 2 * the decoder's matrices and
    head + attention + cross-attention, Ld * (2 * 2 C H D + 4 H D s)."""
    _, decoder = halves(config)
    width = config.num_heads * config.head_dim
    cross = decoder.num_layers * (4 * config.hidden_size * width + 4 * width * read)
    return flops_per_token_forward(decoder, written, causal_half) + cross


def cross_cache_bytes_per_token(config: ModelConfig, bytes_per_element: float) -> float:
    """Bytes of keys and values that the decoder keeps of each token read: Ld * 2 K D * bytes. Of each token written it
    keeps as many."""
    _, decoder = halves(config)
    return kv_cache_bytes_per_token(decoder, bytes_per_element)


def text_flops(config: ModelConfig) -> float:
    """FLOPs of an encoder's pooler and classifier, once a text: 2 (C C + Y C)."""
    width = config.hidden_size
    pooler = width * width if getattr(config, "pooler", False) else 0
    return 2.0 * (pooler + getattr(config, "num_labels", 0) * width)
