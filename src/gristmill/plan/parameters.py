"""Parameters and their bytes.

Symbols of the formulas: V vocab_size, C hidden_size, L num_layers, H num_heads, K num_kv_heads, D head_dim, F
intermediate_size, S max_seq_len; of latent attention Rq q_rank, R kv_rank, N, P, E its nope, rope and value widths; of
experts X num_experts, k top_k, Fx and Fs the widths of a routed and of the shared expert; of encoders and
encoder-decoders Tt token types, Y labels, Ld layers of the decoder, B buckets of the relative bias.
"""

from __future__ import annotations

from ..errors import GristmillError
from ..model.config import ModelConfig

BITS = {"fp32": 32, "tf32": 32, "bf16": 16, "fp16": 16, "fp8": 8, "int8": 8, "fp4": 4, "int4": 4}
_SAME = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def bits_per_element(dtype: str) -> int:
    """Bits of one number of a type (`bf16`, `bfloat16`, ...); GristmillError for a type that is not known."""
    name = _SAME.get(dtype, dtype)
    if name not in BITS:
        raise GristmillError(f"dtype {dtype!r} is not known; use one of {', '.join(BITS)}")
    return BITS[name]


def total_params(config: ModelConfig) -> int:
    """Parameters of the built model; a tied embedding table counts once."""
    return config.num_parameters


def active_params(config: ModelConfig) -> int:
    """Parameters that one token meets: of the routed experts, k. Embedding and head count whole."""
    return config.num_active_parameters


def embedding_share(config: ModelConfig) -> float:
    """Share of embedding, learned positions, token types and untied head in all parameters."""
    parts = config.parameters_by_part()
    return sum(parts.get(part, 0) for part in ("embedding", "positions", "token_types", "head")) / sum(parts.values())


def matrix_params(config: ModelConfig, active: bool = True) -> int:
    """Parameters of the matrices that a token is multiplied with: projections, feed-forward (of the experts those that
    it meets, or all), router and head, a tied one too. Lookups, biases and norms are not among them, nor what is
    computed once a text (an encoder's pooler and classifier). Of an encoder-decoder see plan/encoder_decoder.py."""
    bare = config.model_copy(
        update={"qkv_bias": False, "output_bias": False, "mlp_bias": False, "learned_sinks": False}
    )
    parts = bare.parameters_by_part(active)
    dense = config.hidden_size**2 if "masked_lm" in parts else 0
    return sum(parts.get(part, 0) for part in ("attention", "feed_forward", "router")) + head_params(config) + dense


def head_params(config: ModelConfig) -> int:
    """Parameters of the matrix that makes logits, V C, tied or not; an encoder has one for masked tokens alone."""
    return config.vocab_size * config.hidden_size if config.makes_logits else 0


def weight_bytes(params: float, bits_per_param: float) -> float:
    """Bytes of weights: params * bits / 8. Scales of quantized formats come on top (`bits_per_param` may hold them)."""
    return params * bits_per_param / 8


def bits_with_scales(bits: float, group_size: float, scale_bits: float, zero_bits: float = 0) -> float:
    """Bits of a quantized number with its share of its group's scale and zero point: bits + (scale + zero) / group."""
    return bits + (scale_bits + zero_bits) / group_size


def quantized_weight_bytes(
    quantized_params: float, other_params: float, bits_per_param: float, other_bytes_per_param: float = 2
) -> float:
    """Bytes of a model whose matrices of attention and feed-forward are quantized, and the rest is not."""
    return quantized_params * bits_per_param / 8 + other_params * other_bytes_per_param


def symbols(config: ModelConfig) -> dict[str, int]:
    """The numbers that the formulas' symbols stand for, those that this shape has."""
    latent, experts = config.latent, config.experts
    known: dict[str, int | None] = {
        "V": config.vocab_size,
        "C": config.hidden_size,
        "L": config.num_layers,
        "H": config.num_heads,
        "K": None if latent else config.num_kv_heads,
        "D": config.head_dim,
        "F": config.intermediate_size,
        "S": config.max_seq_len,
        "w": config.sliding_window,
    }
    if latent is not None:
        known |= {"Rq": latent.q_rank, "R": latent.kv_rank, "N": latent.nope_head_dim, "P": latent.rope_head_dim}
        known |= {"E": latent.value_head_dim}
    if experts is not None:
        known |= {"X": experts.num_experts, "k": experts.top_k, "Fx": experts.intermediate_size}
        known |= {"Fs": experts.shared_intermediate_size or None}
    more = {"Tt": "token_types", "Y": "num_labels", "Ld": "num_decoder_layers", "B": "relative_buckets"}
    known |= {symbol: getattr(config, name, None) or None for symbol, name in more.items()}
    return {symbol: value for symbol, value in known.items() if value is not None}


def formulas(config: ModelConfig) -> dict[str, str]:
    """How each part of `config.parameters_by_part` is counted, for this shape."""
    layers = "(L + Ld)" if is_encoder_decoder(config) else "L"
    norm = "2C" if config.norm_bias else "C"
    return {
        "embedding": "V C",
        "positions": "2 S C" if is_encoder_decoder(config) else "S C",
        "attention": f"{layers} ({_attention_formula(config)})",
        "feed_forward": _feed_forward_formula(config, layers),
        "router": f"{_expert_layers(config)} C X",
        "norms": "gains and biases of all norms",
        "head": "V C" + (" + V" if config.head_bias else ""),
        "token_types": "Tt C",
        "masked_lm": f"C C + C + {norm} + V",
        "pooler": "C C + C",
        "classifier": "Y (C + 1)",
        "cross_attention": f"Ld ({_attention_formula(config)})",
        "relative_bias": "2 B H",
    }


def is_encoder_decoder(config: ModelConfig) -> bool:
    """Whether the shape has two halves."""
    return hasattr(config, "num_decoder_layers")


def _attention_formula(config: ModelConfig) -> str:
    if config.latent is not None:
        query = "C H D" if config.latent.q_rank is None else "C Rq + Rq H D"
        text = f"{query} + C (R + P) + R H (N + E) + H E C"
    else:
        text = "C (H + 2K) D + H D C"
    biases = [(config.qkv_bias, "(H + 2K) D"), (config.output_bias, "C"), (config.learned_sinks, "H")]
    return " + ".join([text, *(bias for there, bias in biases if there)])


def _feed_forward_formula(config: ModelConfig, layers: str) -> str:
    matrices = 3 if config.gated else 2
    dense = f"{matrices} C F" + ((" + 2F + C" if config.gated else " + F + C") if config.mlp_bias else "")
    if config.experts is None:
        return f"{layers} ({dense})"
    shared = " + Fs" if config.experts.shared_intermediate_size else ""
    routed = f"{_expert_layers(config)} * {matrices} C (X Fx{shared})"
    plain = len(config.experts.dense_layers) * (2 if is_encoder_decoder(config) else 1)
    return f"{plain} * {dense} + {routed}" if plain else routed


def _expert_layers(config: ModelConfig) -> int:
    layers = [*range(config.num_layers), *range(getattr(config, "num_decoder_layers", 0))]
    return sum(config.has_experts(layer) for layer in layers)
