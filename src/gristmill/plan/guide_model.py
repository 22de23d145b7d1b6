"""Rows of the guide's table about a model's parameters, through the shape that their inputs describe."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from ..errors import GristmillError
from ..model import counts
from ..model.config import ModelConfig
from .finetune import quantized_params
from .guide_inputs import OF_MODEL, Answer, Formula, Inputs, shown
from .guide_model_text import attention_text, feed_forward_text, norms_text, parameters_text
from .parameters import active_params, bits_with_scales, quantized_weight_bytes, total_params

MOST_LAYERS = 10_000
GATED = {"swiglu": True, "geglu": True, "gelu": False, "relu": False}
ATTENTION = ("n_layers", "n_heads", "n_kv_heads", "head_dim")
WHOLE = ("vocab_size", "d_model", *ATTENTION, "d_ff")
LATENT = {
    "q_lora_rank": "q_rank",
    "kv_lora_rank": "kv_rank",
    "qk_nope_head_dim": "nope_head_dim",
    "qk_rope_head_dim": "rope_head_dim",
    "v_head_dim": "value_head_dim",
}


def shape(inputs: Inputs, needed: tuple[str, ...] = WHOLE) -> ModelConfig:
    """The shape of a row. Of what a formula does not need nothing has to be given: one layer's width, a vocabulary of
    one. Where the row lacks what is needed, and its label names a preset, that is the shape which its inputs change."""
    latent = inputs.choice("attention", ("mla", "mha", "gqa", "mqa"), "gqa") == "mla"
    if latent:  # whose widths are its own
        needed = tuple(name for name in needed if name not in ("n_kv_heads", "head_dim"))
    if inputs.has("n_experts", "moe_d_ff") and not inputs.count("first_dense_layers", 0, least=0):
        needed = tuple(name for name in needed if name != "d_ff")  # no layer is dense
    lacking = [name for name in needed if not inputs.has(name)]
    base: dict[str, Any] = {}
    if lacking:
        label = inputs.model_label()
        if label is None:
            raise inputs.missing(lacking[0])
        base = label[1].model_dump()
        for name in lacking:
            inputs.fill(name, getattr(label[1], OF_MODEL[name]), label[0])
    fields = base | _dimensions(inputs) | _kinds(inputs, base)
    if not base:
        heads = fields.setdefault("num_heads", fields.get("num_kv_heads", 1))
        fields.setdefault("num_kv_heads", heads)
        fields.setdefault("head_dim", 2)
        fields.setdefault("num_layers", 1)
        fields.setdefault("hidden_size", heads * fields["head_dim"])
        fields.setdefault("intermediate_size", 1)
        fields.setdefault("vocab_size", 1)
        fields.setdefault("max_seq_len", 1)
    if latent or base.get("latent"):
        fields |= _latent(inputs, base, fields["num_heads"], whole="n_heads" in needed)
    if inputs.has("n_experts"):
        fields["experts"] = _experts(inputs, fields)
    try:
        return ModelConfig.model_validate(fields)
    except ValidationError as error:
        first: Any = error.errors()[0]
        message = str(first["ctx"]["error"]) if first["type"] == "value_error" else first["msg"]
        place = "".join(f"{part}: " for part in first["loc"])
        for ours, theirs in OF_MODEL.items():
            message, place = (text.replace(theirs, ours) for text in (message, place))
        raise GristmillError(f"no model has such inputs: {place}{message}") from None


def _dimensions(inputs: Inputs) -> dict[str, Any]:
    names = {ours: theirs for ours, theirs in OF_MODEL.items() if ours != "params"}
    return {
        theirs: inputs.count(ours, most=MOST_LAYERS if ours == "n_layers" else 10**12)
        for ours, theirs in names.items()
        if inputs.has(ours)
    }


def _kinds(inputs: Inputs, base: dict[str, Any]) -> dict[str, Any]:
    """Choices of architecture that the row states; without a preset those that it does not are Llama's, untied."""
    fields: dict[str, Any] = {} if base else {"positions": "none", "tie_embeddings": False}
    if inputs.has("tied"):
        fields["tie_embeddings"] = inputs.flag("tied")
    if inputs.has("ffn"):
        fields["gated"] = GATED[inputs.choice("ffn", tuple(GATED), "swiglu")]
    if inputs.has("norm"):
        layernorm = inputs.choice("norm", ("rmsnorm", "layernorm"), "rmsnorm") == "layernorm"
        fields |= {"norm": "layernorm" if layernorm else "rmsnorm", "norm_bias": layernorm}
    if inputs.has("learned_positions") and (number := inputs.count("learned_positions", least=0)):
        fields |= {"positions": "learned", "max_seq_len": number}
    if inputs.has("qk_norm"):
        fields["qk_norm"] = "head" if inputs.flag("qk_norm") else "none"
    if inputs.has("qkv_bias"):
        fields["qkv_bias"] = inputs.flag("qkv_bias")
    if inputs.flag("all_bias"):
        fields |= {"qkv_bias": True, "output_bias": True, "mlp_bias": True}
    return fields


def _latent(inputs: Inputs, base: dict[str, Any], heads: int, whole: bool) -> dict[str, Any]:
    """Latent attention; a cache (not `whole`) has only the widths of what it keeps."""
    latent: dict[str, Any] = dict(base.get("latent") or {})
    for ours, theirs in LATENT.items():
        if inputs.has(ours):
            latent[theirs] = inputs.count(ours)
        elif not whole and theirs in ("nope_head_dim", "value_head_dim"):
            latent.setdefault(theirs, 1)
        elif theirs != "q_rank" and theirs not in latent:
            raise inputs.missing(ours)
    width = latent["nope_head_dim"] + latent["rope_head_dim"]
    return {"latent": latent, "positions": "rope", "head_dim": width, "num_kv_heads": heads}


def _experts(inputs: Inputs, fields: dict[str, Any]) -> dict[str, Any]:
    wide = inputs.count("moe_d_ff", fields["intermediate_size"])
    dense = inputs.count("first_dense_layers", 0, least=0, most=1000)
    if dense >= fields["num_layers"]:
        raise GristmillError(f"input 'first_dense_layers' ({dense}) leaves none of {fields['num_layers']} layers")
    return {
        "num_experts": inputs.count("n_experts"),
        "top_k": inputs.count("top_k", 1),
        "intermediate_size": wide,
        "shared_intermediate_size": wide * inputs.count("n_shared_experts", 0, least=0),
        "dense_layers": tuple(range(dense)),
    }


def _beside(inputs: Inputs, config: ModelConfig) -> int:
    """Numbers that a row may count and the shape does not: biases on the choice of experts, and more or fewer norms
    than two a layer."""
    routed = sum(config.has_experts(layer) for layer in range(config.num_layers))
    count = routed * config.experts.num_experts if config.experts and inputs.flag("router_bias") else 0
    if inputs.has("norms_per_layer"):
        one = config.hidden_size * (2 if config.norm_bias else 1)
        bare = config.model_copy(update={"norm_position": "pre", "parallel_block": "none"})
        own = counts.norms(bare) - counts.norms(config)
        count += own + (inputs.count("norms_per_layer", least=0) - 2) * config.num_layers * one
    return count


def _beside_text(count: int) -> str:
    return f" {'+' if count > 0 else '-'} {abs(count):,}" if count else ""


def parameters(inputs: Inputs) -> tuple[int, str]:
    """Parameters of a row's model, and how they are made up."""
    config = shape(inputs)
    beside = _beside(inputs, config)
    return total_params(config) + beside, parameters_text(config) + _beside_text(beside)


def _param_count(inputs: Inputs) -> Answer:
    return Answer(*parameters(inputs))


def _active(inputs: Inputs) -> Answer:
    if not inputs.has("n_experts") and inputs.has(*WHOLE):
        raise inputs.missing("n_experts")
    if inputs.has("n_experts") and not inputs.has("top_k"):
        raise inputs.missing("top_k")
    config = shape(inputs)
    beside = _beside(inputs, config)
    return Answer(active_params(config) + beside, parameters_text(config, active=True) + _beside_text(beside))


def _embedding(inputs: Inputs) -> Answer:
    vocab, width = inputs.count("vocab_size"), inputs.count("d_model")
    tables = 1 if inputs.flag("tied", True) else 2
    return Answer(
        tables * vocab * width, f"{tables} * {vocab:,} * {width:,}" if tables > 1 else f"{vocab:,} * {width:,}"
    )


def _attention_matrices(config: ModelConfig) -> int:
    bare = config.model_copy(update={"qkv_bias": False, "output_bias": False, "learned_sinks": False})
    return config.num_layers * counts.attention(bare)


def _feed_forward_matrices(config: ModelConfig) -> int:
    bare = config.model_copy(update={"mlp_bias": False})
    return sum(counts.feed_forward(bare, layer) for layer in range(config.num_layers))


def _attention(inputs: Inputs) -> Answer:
    config = shape(inputs, ("d_model", *ATTENTION))
    return Answer(_attention_matrices(config), attention_text(config))


def _qkv(inputs: Inputs) -> Answer:
    config = shape(inputs, ("d_model", *ATTENTION))
    output = config.num_layers * config.num_heads * config.value_dim * config.hidden_size
    total = _attention_matrices(config)
    last = f"{config.num_layers} * {config.num_heads} * {config.value_dim} * {config.hidden_size:,}"
    return Answer(total - output, f"{attention_text(config)} - output {last}")


def _feed_forward(inputs: Inputs) -> Answer:
    config = shape(inputs, ("n_layers", "d_model", "d_ff"))
    return Answer(_feed_forward_matrices(config), feed_forward_text(config))


def _feed_forward_layer(inputs: Inputs) -> Answer:
    config = shape(inputs, ("d_model", "d_ff"))
    bare = config.model_copy(update={"mlp_bias": False})
    matrices, last = 3 if config.gated else 2, config.num_layers - 1
    experts = config.experts
    wide = config.intermediate_size
    if experts is not None:
        wide = experts.num_experts * experts.intermediate_size + experts.shared_intermediate_size
    return Answer(counts.feed_forward(bare, last), f"{matrices} * {config.hidden_size:,} * {wide:,}")


def _share(part: str) -> Formula:
    def of(inputs: Inputs) -> Answer:
        total, _ = parameters(inputs)
        config = shape(inputs)
        own = {
            "attention": _attention_matrices,
            "feed-forward": _feed_forward_matrices,
            "norms": lambda config: _norms(inputs, config),
        }[part](config)
        return Answer(own / total, f"{part} {shown(own)} / {shown(total)}")

    return Formula("1", of)


def _norms(inputs: Inputs, config: ModelConfig) -> int:
    without = config.model_copy(update={"experts": None})
    return counts.norms(config) + _beside(inputs, without)


def _norm_params(inputs: Inputs) -> Answer:
    inner = ("head_dim",) if inputs.flag("qk_norm") else ()
    config = shape(inputs, ("n_layers", "d_model", *inner))
    total = _norms(inputs, config)
    return Answer(total, norms_text(config, total))


def _layer_coefficient(inputs: Inputs) -> Answer:
    config = shape(inputs, ("d_model", "n_heads", "n_kv_heads", "head_dim", "d_ff"))
    one = config.model_copy(update={"num_layers": 1, "experts": None})
    square = config.hidden_size**2
    attention, feed_forward = _attention_matrices(one), _feed_forward_matrices(one)
    return Answer(
        (attention + feed_forward) / square,
        f"(attention {shown(attention)} + feed-forward {shown(feed_forward)}) / {config.hidden_size:,}^2",
    )


def _quantized_file(inputs: Inputs) -> Answer:
    total, _ = parameters(inputs)
    config = shape(inputs)
    inside = quantized_params(config)
    group = inputs.number("group_size")
    scales = inputs.number("scale_bits", zero=True), inputs.number("zero_bits", 0, zero=True)
    bits = bits_with_scales(inputs.number("bits"), group, *scales)
    other = inputs.number("other_bytes_per_param", 2)
    return Answer(
        quantized_weight_bytes(inside, total - inside, bits, other),
        f"{shown(inside)} * {bits:.9g} bit / 8 + {shown(total - inside)} * {shown(other)}",
    )


def _block_params(inputs: Inputs) -> Answer:
    layers, width = inputs.count("n_layers"), inputs.count("d_model")
    return Answer(12 * layers * width**2, f"12 * {layers:,} * {width:,}^2")


def _approximate(inputs: Inputs) -> Answer:
    blocks, table = _block_params(inputs), _embedding(inputs)
    return Answer(blocks.value + table.value, f"{table.formula} + {blocks.formula}")


def _head_dim(inputs: Inputs) -> Answer:
    width, heads = inputs.count("d_model"), inputs.count("n_heads")
    return Answer(width / heads, f"{width:,} / {heads:,}")


def _d_ff(inputs: Inputs) -> Answer:
    width, multiple = inputs.count("d_model"), inputs.number("multiple")
    return Answer(width * multiple, f"{shown(multiple)} * {width:,}")


def _swiglu_ratio(inputs: Inputs) -> Answer:
    width, gated, plain = inputs.count("d_model"), inputs.count("d_ff_swiglu"), inputs.count("d_ff_relu")
    return Answer(3 * width * gated / (2 * width * plain), f"3 * {width:,} * {gated:,} / (2 * {width:,} * {plain:,})")


FORMULAS: dict[str, Formula] = {
    "param_count": Formula("param", _param_count),
    "active_param_count": Formula("param", _active),
    "embedding_params": Formula("param", _embedding),
    "attention_params": Formula("param", _attention),
    "qkv_projection_params": Formula("param", _qkv),
    "ffn_params": Formula("param", _feed_forward),
    "ffn_params_per_layer": Formula("param", _feed_forward_layer),
    "norm_params": Formula("param", _norm_params),
    "attention_param_fraction": _share("attention"),
    "ffn_param_fraction": _share("feed-forward"),
    "norm_param_fraction": _share("norms"),
    "layer_d2_coefficient": Formula("1", _layer_coefficient),
    "quantized_file_bytes": Formula("byte", _quantized_file),
    "block_params_12ld2": Formula("param", _block_params),
    "approx_param_count": Formula("param", _approximate),
    "head_dim": Formula("1", _head_dim),
    "d_ff": Formula("1", _d_ff),
    "swiglu_param_ratio": Formula("1", _swiglu_ratio),
}
