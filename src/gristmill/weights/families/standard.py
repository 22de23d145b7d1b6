"""What most families share: Llama's keys of `config.json` and Llama's names of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...errors import GristmillError
from ...model.config import Experts, ModelConfig, ModelShape
from .family import Layout, Part, Shape
from .settings import Settings

KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "max_seq_len": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
    "rope_fraction": "partial_rotary_factor",
    "rope_scaling": "rope_parameters",
}
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}
ACTIVATION_NAMES = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu", "relu2": "relu2"}
PRE_NORMS = {"attention_norm": "input_layernorm", "feed_forward_norm": "post_attention_layernorm"}

FeedForward = Callable[[ModelConfig, int, str, str], Layout]


def read_sizes(settings: Settings, kv_heads: int | None = None, head_dim: int | None = None) -> dict[str, Any]:
    """The sizes of a model whose keys are Llama's. `kv_heads` and `head_dim` are the family's defaults; without one
    they follow from the number of heads and the width."""
    heads, hidden = settings.integer("num_attention_heads"), settings.integer("hidden_size")
    if head_dim is None and not settings.has("head_dim") and hidden % heads:
        settings.refuse("num_attention_heads", f"a divisor of hidden_size ({hidden}) where head_dim is not given")
    return {
        "vocab_size": settings.integer("vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": settings.integer("intermediate_size"),
        "num_layers": settings.layers("num_hidden_layers"),
        "num_heads": heads,
        "num_kv_heads": settings.integer("num_key_value_heads", kv_heads or heads),
        "head_dim": settings.integer("head_dim", head_dim or hidden // heads),
        "max_seq_len": settings.integer("max_position_embeddings", 2048),
    }


def write_sizes(config: ModelShape) -> dict[str, Any]:
    """The inverse of `read_sizes`, but for the vocabulary."""
    return {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_seq_len,
    }


def indivisible_heads(config: ModelConfig) -> str | None:
    """Why transformers takes no such shape in some families, whatever `head_dim` says."""
    if config.hidden_size % config.num_heads:
        return f"hidden_size ({config.hidden_size}) is not a multiple of num_heads ({config.num_heads})"
    return None


def linear(name: str, out_features: int, in_features: int) -> Part:
    """The weight of a linear layer inside a block."""
    return Part(f"{name}.weight", (out_features, in_features), linear=True)


def layered(
    config: ModelConfig, norms: Mapping[str, str] = PRE_NORMS, feed_forward: FeedForward | None = None
) -> Layout:
    """Tensors named as Llama's: `norms` names the norms of a block, `feed_forward` lays out a layer's feed-forward
    tensors where they are not a plain MLP's."""
    table = outside(config)
    for layer in range(config.num_layers):
        ours, theirs = f"blocks.{layer}", f"model.layers.{layer}"
        for norm, name in norms.items():
            table |= norm_parts(config, f"{ours}.{norm}", f"{theirs}.{name}")
        table |= attention(config, f"{ours}.attention", f"{theirs}.self_attn")
        lay_out = feed_forward or dense
        table |= lay_out(config, layer, f"{ours}.feed_forward", f"{theirs}.mlp")
    return table


def outside(config: ModelConfig) -> Layout:
    """Embedding, final norm and head."""
    vocab = (config.vocab_size, config.hidden_size)
    table: Layout = {"embedding.weight": (Part("model.embed_tokens.weight", vocab),)}
    table |= norm_parts(config, "norm", "model.norm")
    if not config.tie_embeddings:
        table["head.weight"] = (Part("lm_head.weight", vocab),)
    return table


def norm_parts(config: ModelConfig, ours: str, theirs: str) -> Layout:
    """Weight and, if the model's norms have them, biases of one norm of the residual stream."""
    shape: Shape = (config.hidden_size,)
    table: Layout = {f"{ours}.weight": (Part(f"{theirs}.weight", shape),)}
    if config.norm_bias:
        table[f"{ours}.bias"] = (Part(f"{theirs}.bias", shape),)
    return table


def attention(config: ModelConfig, ours: str, theirs: str) -> Layout:
    """Queries, keys and values apart, and norms of queries and keys."""
    hidden, q, kv = config.hidden_size, config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    projections = {f"{theirs}.q_proj": q, f"{theirs}.k_proj": kv, f"{theirs}.v_proj": kv}
    table: Layout = {
        f"{ours}.qkv.weight": tuple(linear(name, rows, hidden) for name, rows in projections.items()),
        f"{ours}.output.weight": (linear(f"{theirs}.o_proj", hidden, q),),
    }
    if config.qkv_bias:
        table[f"{ours}.qkv.bias"] = tuple(Part(f"{name}.bias", (rows,)) for name, rows in projections.items())
    if config.output_bias:
        table[f"{ours}.output.bias"] = (Part(f"{theirs}.o_proj.bias", (hidden,)),)
    if config.qk_norm != "none":
        widths = (q, kv) if config.qk_norm == "projection" else (config.head_dim, config.head_dim)
        for norm, width in zip(("q_norm", "k_norm"), widths, strict=True):
            table[f"{ours}.{norm}.weight"] = (Part(f"{theirs}.{norm}.weight", (width,)),)
    return table


def dense(config: ModelConfig, layer: int, ours: str, theirs: str) -> Layout:
    """A plain MLP, gated or not, with biases if the model has them."""
    return mlp(config, ours, theirs, config.intermediate_size, config.mlp_bias)


def mlp(config: ModelConfig, ours: str, theirs: str, wide: int, bias: bool = False) -> Layout:
    hidden = config.hidden_size
    first, names = ("gate_up", ("gate_proj", "up_proj")) if config.gated else ("up", ("up_proj",))
    table: Layout = {
        f"{ours}.{first}.weight": tuple(linear(f"{theirs}.{name}", wide, hidden) for name in names),
        f"{ours}.down.weight": (linear(f"{theirs}.down_proj", hidden, wide),),
    }
    if bias:
        table[f"{ours}.{first}.bias"] = tuple(Part(f"{theirs}.{name}.bias", (wide,)) for name in names)
        table[f"{ours}.down.bias"] = (Part(f"{theirs}.down_proj.bias", (hidden,)),)
    return table


def experts(
    config: ModelConfig,
    layer: int,
    ours: str,
    theirs: str,
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
) -> Layout:
    """Router and experts of a layer, each expert's matrices apart under `names`; or a plain MLP in a dense layer."""
    if not config.has_experts(layer):
        return dense(config, layer, ours, theirs)
    sizes, hidden = experts_of(config), config.hidden_size
    gate, up, down = names
    each = [f"{theirs}.experts.{number}" for number in range(sizes.num_experts)]
    wide = sizes.intermediate_size
    table: Layout = {
        f"{ours}.router.weight": (Part(f"{theirs}.gate.weight", (sizes.num_experts, hidden)),),
        f"{ours}.gate_up": tuple(linear(f"{one}.{name}", wide, hidden) for one in each for name in (gate, up)),
        f"{ours}.down": tuple(linear(f"{one}.{down}", hidden, wide) for one in each),
    }
    if sizes.balance == "bias":
        name = f"{theirs}.gate.e_score_correction_bias"
        table[f"{ours}.selection_bias"] = (Part(name, (sizes.num_experts,)),)
    if sizes.shared_intermediate_size:
        table |= mlp(config, f"{ours}.shared", f"{theirs}.shared_experts", sizes.shared_intermediate_size)
    return table


def experts_of(config: ModelConfig) -> Experts:
    """The experts of a configuration that a family with experts is asked to write."""
    if config.experts is None:
        raise GristmillError("the model has no experts")
    return config.experts


def read_balance(settings: Settings, key: str, default: float) -> dict[str, Any]:
    """The weight of the balance loss, which training alone reads."""
    weight = settings.number(key, default)
    return {"balance": "aux_loss" if weight else "none", "aux_loss_weight": weight}
