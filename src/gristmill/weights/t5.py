"""T5 on disk (`model_type` t5): the keys of its `config.json` and the names of its tensors, versions 1.0 (ReLU, tied
and scaled head) and 1.1 (gated GELU, a head of its own)."""

from __future__ import annotations

from typing import Any

from ..errors import GristmillError
from ..model.encoder_decoder import EncoderDecoderConfig
from .families import Layout, Part
from .families.settings import Settings
from .families.standard import ACTIVATION_NAMES, ACTIVATIONS, linear

HEAD = "lm_head.weight"
KEYS = {
    "hidden_size": "d_model",
    "head_dim": "d_kv",
    "intermediate_size": "d_ff",
    "norm_eps": "layer_norm_epsilon",
    "start_id": "decoder_start_token_id",
    "relative_buckets": "relative_attention_num_buckets",
    "relative_max_distance": "relative_attention_max_distance",
}
_SHAPE: dict[str, Any] = {"positions": "none", "attention_scale": 1.0}


def read_t5(settings: Settings, tied: bool) -> dict[str, Any]:
    """The fields of an `EncoderDecoderConfig`. `tied`: whether the weights hold no head but the embedding.

    GristmillError names a key whose value the model does not compute.
    """
    settings.only("is_encoder_decoder", True)
    named = settings.filled("architectures", ["T5ForConditionalGeneration"])
    if named != ["T5ForConditionalGeneration"]:
        settings.refuse("architectures", "T5ForConditionalGeneration")
    activation, gated = _activation(settings)
    heads, layers = settings.integer("num_heads", 8), settings.integer("num_layers", 6)
    hidden = settings.integer("d_model", 512)
    # transformers 5 says by a key of its own whether logits are scaled, 4 by whether the head is tied.
    scaled = settings.flag("scale_decoder_outputs", settings.flag("tie_word_embeddings", True))
    return {
        "vocab_size": settings.integer("vocab_size", 32128),
        "hidden_size": hidden,
        "intermediate_size": settings.integer("d_ff", 2048),
        "num_layers": layers,
        "num_decoder_layers": settings.integer("num_decoder_layers", layers),
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": settings.integer("d_kv", 64),
        "max_seq_len": settings.integer("n_positions", 512),
        "relative_buckets": settings.integer("relative_attention_num_buckets", 32),
        "relative_max_distance": settings.integer("relative_attention_max_distance", 128),
        "start_id": settings.filled("decoder_start_token_id", settings.filled("pad_token_id", 0)),
        "norm_eps": settings.number("layer_norm_epsilon", 1e-6),
        "activation": activation,
        "gated": gated,
        "tie_embeddings": tied,
        "logit_scale": hidden**-0.5 if scaled else 1.0,
        **_SHAPE,
    }


def _activation(settings: Settings) -> tuple[str, bool]:
    name = settings.filled("feed_forward_proj", "relu")
    if name == "gated-gelu":  # which means the approximation
        return "gelu_tanh", True
    kind = name.removeprefix("gated-") if isinstance(name, str) else None
    if kind not in ACTIVATIONS:
        settings.refuse("feed_forward_proj", "one of " + ", ".join(ACTIVATIONS) + ", as it is or behind 'gated-'")
    return ACTIVATIONS[kind], name != kind


def write_t5(config: EncoderDecoderConfig) -> dict[str, Any]:
    """The keys of `config.json`, without those of tokens and types. GristmillError says what T5 cannot hold."""
    if not config.relative_buckets:
        raise GristmillError(
            "T5 has a relative position bias and no other positions; this model has relative_buckets = 0 and "
            f"positions = {config.positions!r}"
        )
    scaled = config.logit_scale != 1.0
    if scaled != config.tie_embeddings:
        raise GristmillError(
            "T5 scales the logits of a tied head (logit_scale hidden_size**-0.5) and no others; this model has "
            f"tie_embeddings = {config.tie_embeddings} and logit_scale = {config.logit_scale}"
        )
    name = "gelu" if (config.gated, config.activation) == (True, "gelu_tanh") else ACTIVATION_NAMES[config.activation]
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "is_encoder_decoder": True,
        "vocab_size": config.vocab_size,
        "d_model": config.hidden_size,
        "d_kv": config.head_dim,
        "d_ff": config.intermediate_size,
        "num_layers": config.num_layers,
        "num_decoder_layers": config.num_decoder_layers,
        "num_heads": config.num_heads,
        "n_positions": config.max_seq_len,
        "relative_attention_num_buckets": config.relative_buckets,
        "relative_attention_max_distance": config.relative_max_distance,
        "layer_norm_epsilon": config.norm_eps,
        "feed_forward_proj": f"gated-{name}" if config.gated else name,
        "tie_word_embeddings": config.tie_embeddings,
        "scale_decoder_outputs": scaled,
        "decoder_start_token_id": config.start_id,
        "dropout_rate": 0.0,
    }


def t5_layout(config: EncoderDecoderConfig) -> Layout:
    """Our parameters and the tensors they are stored as."""
    vocab = (config.vocab_size, config.hidden_size)
    table: Layout = {"embedding.weight": (Part("shared.weight", vocab),)}
    for half, layers in (("encoder", config.num_layers), ("decoder", config.num_decoder_layers)):
        bias = f"{half}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        table[f"{half}.relative_bias.weight"] = (Part(bias, (config.relative_buckets, config.num_heads)),)
        for layer in range(layers):
            table |= _block(config, f"{half}.blocks.{layer}", f"{half}.block.{layer}.layer", half == "decoder")
        table |= _norm(config, f"{half}.norm", f"{half}.final_layer_norm")
    if not config.tie_embeddings:
        table["head.weight"] = (Part(HEAD, vocab),)
    return table


def _block(config: EncoderDecoderConfig, ours: str, theirs: str, crosses: bool) -> Layout:
    """One block: attention stands in its layer 0, cross-attention in 1, the feed-forward in the last."""
    hidden, width, wide = config.hidden_size, config.num_heads * config.head_dim, config.intermediate_size

    def projections(attention: str, names: str) -> tuple[Part, ...]:
        return tuple(linear(f"{theirs}.{attention}.{name}", width, hidden) for name in names)

    def output(attention: str) -> tuple[Part, ...]:
        return (linear(f"{theirs}.{attention}.o", hidden, width),)

    table: Layout = {
        f"{ours}.attention.qkv.weight": projections("0.SelfAttention", "qkv"),
        f"{ours}.attention.output.weight": output("0.SelfAttention"),
        **_norm(config, f"{ours}.attention_norm", f"{theirs}.0.layer_norm"),
    }
    if crosses:
        table |= {
            f"{ours}.cross_attention.q.weight": projections("1.EncDecAttention", "q"),
            f"{ours}.cross_attention.kv.weight": projections("1.EncDecAttention", "kv"),
            f"{ours}.cross_attention.output.weight": output("1.EncDecAttention"),
            **_norm(config, f"{ours}.cross_attention_norm", f"{theirs}.1.layer_norm"),
        }
    dense = f"{theirs}.{2 if crosses else 1}.DenseReluDense"
    first, names = ("gate_up", ("wi_0", "wi_1")) if config.gated else ("up", ("wi",))
    return table | {
        f"{ours}.feed_forward.{first}.weight": tuple(linear(f"{dense}.{name}", wide, hidden) for name in names),
        f"{ours}.feed_forward.down.weight": (linear(f"{dense}.wo", hidden, wide),),
        **_norm(config, f"{ours}.feed_forward_norm", f"{theirs}.{2 if crosses else 1}.layer_norm"),
    }


def _norm(config: EncoderDecoderConfig, ours: str, theirs: str) -> Layout:
    return {f"{ours}.weight": (Part(f"{theirs}.weight", (config.hidden_size,)),)}


# The shared embedding, which some writers repeat under each half's name.
TIED = {"encoder.embed_tokens.weight": "embedding.weight", "decoder.embed_tokens.weight": "embedding.weight"}
# A bias that the first T5 files held and that no one computes with.
HARMLESS = ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",)
