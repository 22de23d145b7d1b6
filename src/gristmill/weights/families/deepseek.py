"""DeepSeek V2 and V3: latent attention, fine-grained experts with shared ones, rotary channels stored in pairs.

V2 scores experts by softmax and is balanced by a loss; V3 by sigmoid, balanced by a bias on the choice.
"""

from __future__ import annotations

import re
from typing import Any

from ...errors import GristmillError
from ...model.config import Experts, LatentAttention, ModelConfig
from . import standard
from .family import Family, Layout, Part
from .rope import read_rope, write_rope
from .settings import Settings
from .transforms import interleaved_rows

_LATENT_EPS = 1e-6  # of the norms on the narrow vectors; the reference takes no other


def _read_common(settings: Settings) -> dict[str, Any]:
    """All but the experts."""
    for key in ("attention_bias", "mlp_bias"):
        settings.only(key, False)
    settings.get("head_dim")  # written by some versions, and always that of the rotary part
    nope, turning = settings.integer("qk_nope_head_dim", 128), settings.integer("qk_rope_head_dim", 64)
    rank = settings.get("q_lora_rank", 1536)
    heads = settings.integer("num_attention_heads")
    if settings.filled("num_key_value_heads", heads) != heads:
        settings.refuse("num_key_value_heads", f"num_attention_heads ({heads})")
    return {
        "vocab_size": settings.integer("vocab_size"),
        "hidden_size": settings.integer("hidden_size"),
        "intermediate_size": settings.integer("intermediate_size"),
        "num_layers": settings.layers("num_hidden_layers"),
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": nope + turning,
        "max_seq_len": settings.integer("max_position_embeddings", 2048),
        "latent": {
            "kv_rank": settings.integer("kv_lora_rank", 512),
            "q_rank": None if rank is None else settings.integer("q_lora_rank", 1536),
            "nope_head_dim": nope,
            "rope_head_dim": turning,
            "value_head_dim": settings.integer("v_head_dim", 128),
            "norm_eps": _LATENT_EPS,
        },
        "activation": settings.choice("hidden_act", standard.ACTIVATIONS, "silu"),
        "norm_eps": settings.number("rms_norm_eps", 1e-6),
        "tie_embeddings": settings.flag("tie_word_embeddings", False),
        **read_rope(settings),
    }


def _read_experts(settings: Settings, num_experts: int, shared: int, dense: int, wide: int) -> dict[str, Any] | None:
    """The sizes of the experts, with the family's defaults; None if all layers are dense."""
    settings.only("moe_layer_freq", 1)
    first = settings.filled("first_k_dense_replace", dense)
    if isinstance(first, bool) or not isinstance(first, int) or first < 0:
        settings.refuse("first_k_dense_replace", "a whole number of layers")
    layers = settings.layers("num_hidden_layers")
    intermediate = settings.integer("moe_intermediate_size", wide)
    sizes = {
        "num_experts": settings.integer("n_routed_experts", num_experts),
        "top_k": settings.integer("num_experts_per_tok", 8),
        "intermediate_size": intermediate,
        "shared_intermediate_size": intermediate * settings.integer("n_shared_experts", shared),
        "routed_scale": settings.number("routed_scaling_factor", 1.0),
        "dense_layers": tuple(range(min(first, layers))),
    }
    return sizes if first < layers else None


def _read_v2(settings: Settings) -> dict[str, Any]:
    settings.only("scoring_func", "softmax")
    settings.only("norm_topk_prob", False)  # the reference takes the key and does not normalize
    experts = _read_experts(settings, 64, 2, 0, 1407)
    grouped = settings.choice("topk_method", {"greedy": False, "group_limited_greedy": True}, "greedy")
    groups = {
        "num_groups": settings.filled("n_group", 1),
        "top_groups": settings.filled("topk_group", 1),
        "group_score": "max",
    }
    balance = standard.read_balance(settings, "aux_loss_alpha", 0.001)
    if experts is not None:
        experts |= {"normalize_top_k": False, **balance, **(groups if grouped else {})}
    return _read_common(settings) | {"experts": experts}


def _read_v3(settings: Settings) -> dict[str, Any]:
    settings.only("scoring_func", "sigmoid")
    settings.only("topk_method", "noaux_tc")
    settings.only("rope_interleave", True)
    experts = _read_experts(settings, 256, 1, 3, 2048)
    fields = {
        "router": "sigmoid",
        "balance": "bias",
        "normalize_top_k": settings.flag("norm_topk_prob", True),
        "num_groups": settings.integer("n_group", 8),
        "top_groups": settings.integer("topk_group", 4),
        "group_score": "top2",
    }
    return _read_common(settings) | {"experts": None if experts is None else experts | fields}


def _write_common(config: ModelConfig) -> dict[str, Any]:
    latent, experts = _latent(config), config.experts
    sizes = standard.write_sizes(config)
    del sizes["head_dim"]
    return {
        **sizes,
        "hidden_act": standard.ACTIVATION_NAMES[config.activation],
        "attention_bias": config.output_bias,
        "rms_norm_eps": config.norm_eps,
        "kv_lora_rank": latent.kv_rank,
        "q_lora_rank": latent.q_rank,
        "qk_nope_head_dim": latent.nope_head_dim,
        "qk_rope_head_dim": latent.rope_head_dim,
        "v_head_dim": latent.value_head_dim,
        **(_write_experts(config, experts) if experts else {"first_k_dense_replace": config.num_layers}),
        **write_rope(config),
    }


def _write_experts(config: ModelConfig, experts: Experts) -> dict[str, Any]:
    return {
        "n_routed_experts": experts.num_experts,
        "num_experts_per_tok": experts.top_k,
        "moe_intermediate_size": experts.intermediate_size,
        "n_shared_experts": max(1, experts.shared_intermediate_size // experts.intermediate_size),
        "routed_scaling_factor": experts.routed_scale,
        "norm_topk_prob": experts.normalize_top_k,
        "first_k_dense_replace": len(experts.dense_layers),
    }


def _write_v2(config: ModelConfig) -> dict[str, Any]:
    keys = _write_common(config) | {"mlp_bias": config.mlp_bias, "scoring_func": "softmax"}
    if (experts := config.experts) is None:
        return keys
    grouped = experts.top_groups < experts.num_groups
    return keys | {
        "topk_method": "group_limited_greedy" if grouped else "greedy",
        "n_group": experts.num_groups,
        "topk_group": experts.top_groups,
        "aux_loss_alpha": experts.aux_loss_weight if experts.balance != "none" else 0.0,
    }


def _write_v3(config: ModelConfig) -> dict[str, Any]:
    keys = _write_common(config) | {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "rope_interleave": True}
    # Multi-token prediction, of which we have no layers.
    keys["num_nextn_predict_layers"] = 0
    experts = config.experts
    return keys if experts is None else keys | {"n_group": experts.num_groups, "topk_group": experts.top_groups}


def _layout(config: ModelConfig) -> Layout:
    table = standard.outside(config)
    for layer in range(config.num_layers):
        ours, theirs = f"blocks.{layer}", f"model.layers.{layer}"
        for norm, name in standard.PRE_NORMS.items():
            table |= standard.norm_parts(config, f"{ours}.{norm}", f"{theirs}.{name}")
        table |= _attention(config, f"{ours}.attention", f"{theirs}.self_attn")
        table |= standard.experts(config, layer, f"{ours}.feed_forward", f"{theirs}.mlp")
    return table


def _attention(config: ModelConfig, ours: str, theirs: str) -> Layout:
    latent, hidden, heads = _latent(config), config.hidden_size, config.num_heads
    turning = latent.rope_head_dim
    queries = interleaved_rows(heads, latent.nope_head_dim, turning)
    keys = interleaved_rows(1, latent.kv_rank, turning)
    narrow = latent.kv_rank + turning
    up = heads * (latent.nope_head_dim + latent.value_head_dim)
    table: Layout = {
        f"{ours}.kv_down.weight": (Part(f"{theirs}.kv_a_proj_with_mqa.weight", (narrow, hidden), keys, linear=True),),
        f"{ours}.kv_norm.weight": (Part(f"{theirs}.kv_a_layernorm.weight", (latent.kv_rank,)),),
        f"{ours}.kv_up.weight": (standard.linear(f"{theirs}.kv_b_proj", up, latent.kv_rank),),
        f"{ours}.output.weight": (standard.linear(f"{theirs}.o_proj", hidden, heads * latent.value_head_dim),),
    }
    width = heads * config.head_dim
    if latent.q_rank is None:
        return table | {f"{ours}.q.weight": (Part(f"{theirs}.q_proj.weight", (width, hidden), queries, linear=True),)}
    return table | {
        f"{ours}.q_down.weight": (standard.linear(f"{theirs}.q_a_proj", latent.q_rank, hidden),),
        f"{ours}.q_norm.weight": (Part(f"{theirs}.q_a_layernorm.weight", (latent.q_rank,)),),
        f"{ours}.q_up.weight": (Part(f"{theirs}.q_b_proj.weight", (width, latent.q_rank), queries, linear=True),),
    }


def _latent(config: ModelConfig) -> LatentAttention:
    if config.latent is None:
        raise GristmillError("the model has no latent attention")
    return config.latent


def _harmless(name: str, config: ModelConfig) -> bool:
    """Layers past the last one predict further tokens, which generation does without."""
    layer = re.match(r"(?:model\.)?layers\.(\d+)\.", name)
    return name.endswith(".rotary_emb.inv_freq") or (layer is not None and int(layer[1]) >= config.num_layers)


_KEYS = {key: value for key, value in standard.KEYS.items() if key != "head_dim"} | {
    "latent.kv_rank": "kv_lora_rank",
    "latent.q_rank": "q_lora_rank",
    "latent.nope_head_dim": "qk_nope_head_dim",
    "latent.rope_head_dim": "qk_rope_head_dim",
    "latent.value_head_dim": "v_head_dim",
    "experts.num_experts": "n_routed_experts",
    "experts.top_k": "num_experts_per_tok",
    "experts.intermediate_size": "moe_intermediate_size",
    "experts.shared_intermediate_size": "n_shared_experts",
    "experts.num_groups": "n_group",
    "experts.top_groups": "topk_group",
    "experts.routed_scale": "routed_scaling_factor",
}
DEEPSEEK_V2 = Family(
    model_type="deepseek_v2",
    architecture="DeepseekV2ForCausalLM",
    keys=_KEYS,
    read=_read_v2,
    write=_write_v2,
    layout=_layout,
    refuses=standard.indivisible_heads,
    harmless=_harmless,
)
DEEPSEEK_V3 = Family(
    model_type="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    keys=_KEYS,
    read=_read_v3,
    write=_write_v3,
    layout=_layout,
    harmless=_harmless,
)
