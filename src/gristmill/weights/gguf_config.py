"""GGUF metadata and our configuration, in both directions.

What a key means is what llama.cpp computes with it; a key that is not known is refused, since it may change that.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Collection, Mapping
from typing import Any, NoReturn

from pydantic import ValidationError
from torch import Tensor

from ..errors import GristmillError
from ..model.config import LayerKind, ModelConfig, RopeScaling
from ..model.positions import attention_factor
from .families.effective import differences, effective, shortest_pattern
from .gguf_layout import HEAD, ROPE_FACTORS
from .gguf_rope import llama3_scaling

_GEMMA = {"norm_position": "sandwich", "norm_unit_offset": True, "activation": "gelu_tanh"}
# What an architecture's name says by itself; every other field has its default, or comes from a key or a tensor.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"qk_norm": "head"},
    "qwen3moe": {"qk_norm": "head"},
    "gemma2": _GEMMA,
    "gemma3": {**_GEMMA, "qk_norm": "head"},
    "gpt2": {
        "positions": "learned",
        "norm": "layernorm",
        "norm_bias": True,
        "gated": False,
        "activation": "gelu_tanh",
        "qkv_bias": True,
        "output_bias": True,
        "mlp_bias": True,
    },
    "deepseek2": {},
}
_BIASES = {
    "qkv_bias": "blk.0.attn_q.bias",
    "output_bias": "blk.0.attn_output.bias",
    "mlp_bias": "blk.0.ffn_up.bias",
    "head_bias": "output.bias",
}
# The biases that llama.cpp adds where a file has them.
_OPTIONAL_BIASES = {
    "llama": ("qkv_bias", "output_bias", "mlp_bias"),
    "qwen2": ("qkv_bias", "head_bias"),
    "qwen3": ("qkv_bias",),
    "qwen3moe": ("qkv_bias",),
    "gemma2": ("qkv_bias",),
    "gemma3": ("qkv_bias",),
}
SLIDING_PERIOD = {"gemma2": 2, "gemma3": 6}  # every second, every sixth layer sees everything
DEFAULT_WINDOW = {"gemma2": 4096, "gemma3": 0}
# llama.cpp knows the largest Gemmas by their number of layers: these scale queries by hidden_size / num_heads.
_SCALED_BY_WIDTH = {("gemma2", 46), ("gemma3", 62)}
_ROUTERS = {1: "softmax", 2: "sigmoid"}
_HARMLESS = ("vocab_size", "tensor_data_layout", "rope.scaling.finetuned")


class Keys:
    """The metadata of one architecture. Each value is checked where it is asked for; `check_all_known` refuses the
    keys that nothing asked for."""

    def __init__(self, get: Callable[..., Any], names: Collection[str], architecture: str, where: str):
        self._get = get
        self.where = where
        self.prefix = f"{architecture}."
        self._unknown = {name.removeprefix(self.prefix) for name in names if name.startswith(self.prefix)}

    def has(self, key: str) -> bool:
        self._unknown.discard(key)
        return self._get(self.prefix + key) is not None

    def value(self, key: str, default: Any) -> Any:
        if not self.has(key):
            if default is None:
                raise GristmillError(f"{self.where}: metadata key {self.prefix}{key} is missing")
            return default
        return self._get(self.prefix + key)

    def whole(self, key: str, default: int | None = None) -> int:
        """A whole number above 0, or a list of equal ones, which is how some files give one for every layer."""
        value = self.value(key, default)
        if isinstance(value, list) and value and value.count(value[0]) == len(value):
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
            self.refuse(key, "one whole number above 0")
        return value

    def count(self, key: str, default: int = 0) -> int:
        """A whole number, 0 included."""
        return 0 if self.value(key, default) == 0 else self.whole(key, default)

    def real(self, key: str, default: float | None = None) -> float:
        value = self.value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
            self.refuse(key, "a number, not below 0")
        return shortest_float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.value(key, default)
        if not isinstance(value, bool):
            self.refuse(key, "true or false")
        return value

    def refuse(self, key: str, supported: str) -> NoReturn:
        value = str(self._get(self.prefix + key))[:80]
        raise GristmillError(f"{self.where}: {self.prefix}{key} = {value} is not supported; it must be {supported}")

    def check_all_known(self) -> None:
        for key in sorted(self._unknown.difference(_HARMLESS)):
            raise GristmillError(
                f"{self.where}: metadata key {self.prefix}{key} is not known and may change what the model computes"
            )


def read_config(
    keys: Keys, architecture: str, tensors: Collection[str], vocab_size: int, rope_factors: Tensor | None
) -> ModelConfig:
    """The configuration that metadata and names of tensors describe. GristmillError names the key that this decoder
    does not compute. `rope_factors` are those of the file's `rope_freqs.weight`."""
    fields = {**ARCHITECTURES[architecture], **_sizes(keys, tensors), "vocab_size": vocab_size}
    fields["tie_embeddings"] = HEAD not in tensors
    for bias in _OPTIONAL_BIASES.get(architecture, ()):
        fields[bias] = _BIASES[bias] in tensors
    epsilon = "attention.layer_norm_epsilon" if architecture == "gpt2" else "attention.layer_norm_rms_epsilon"
    fields["norm_eps"] = keys.real(epsilon)
    if architecture == "deepseek2":
        fields |= _latent(keys, fields["norm_eps"])
    else:
        fields |= _heads(keys, fields["hidden_size"], fields["num_heads"], architecture)
    if architecture != "gpt2":
        fields |= _rope(keys, fields, architecture, rope_factors)
    if architecture in SLIDING_PERIOD:
        fields |= _gemma(keys, architecture, fields)
    elif 0 < keys.count("attention.sliding_window") < fields["max_seq_len"]:
        keys.refuse("attention.sliding_window", f"no shorter than the context: {architecture} has no window there")
    fields |= _mixture(keys, architecture, fields, tensors)
    if not keys.flag("attention.causal", True):
        keys.refuse("attention.causal", "true")
    keys.check_all_known()
    try:
        return ModelConfig.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise GristmillError(f"{keys.where}: {field + ': ' if field else ''}{message}") from None


def _sizes(keys: Keys, tensors: Collection[str]) -> dict[str, Any]:
    layers = keys.whole("block_count")
    if layers > len(tensors):  # before a table of that length is made
        raise GristmillError(f"{keys.where}: {keys.prefix}block_count {layers} is more than the {len(tensors)} tensors")
    return {
        "num_layers": layers,
        "hidden_size": keys.whole("embedding_length"),
        "intermediate_size": keys.whole("feed_forward_length"),
        "num_heads": keys.whole("attention.head_count"),
        "max_seq_len": keys.whole("context_length"),
    }


def _heads(keys: Keys, hidden: int, heads: int, architecture: str) -> dict[str, Any]:
    width = keys.whole("attention.key_length", hidden // heads or 1)
    for key in ("attention.value_length", "rope.dimension_count"):
        if keys.whole(key, width) != width:
            keys.refuse(key, f"the width of a head, {width}")
    return {"head_dim": width, "num_kv_heads": keys.whole("attention.head_count_kv", heads)}


def _latent(keys: Keys, norm_eps: float) -> dict[str, Any]:
    """Multi-head latent attention. llama.cpp runs it in the absorbed form, as one key head of the narrow vector."""
    if not keys.has("attention.key_length_mla"):
        raise GristmillError(
            f"{keys.where}: metadata key {keys.prefix}attention.key_length_mla is missing; files from before 2025 keep "
            f"latent attention in another form, get a newer one"
        )
    rank, rope = keys.whole("attention.kv_lora_rank"), keys.whole("rope.dimension_count")
    width = keys.whole("attention.key_length_mla")
    absorbed = {"attention.head_count_kv": 1, "attention.key_length": rank + rope, "attention.value_length": rank}
    for key, expected in absorbed.items():
        if keys.whole(key, expected) != expected:
            keys.refuse(key, str(expected))
    latent = {
        "kv_rank": rank,
        "q_rank": keys.count("attention.q_lora_rank") or None,
        "nope_head_dim": width - rope,
        "rope_head_dim": rope,
        "value_head_dim": keys.whole("attention.value_length_mla"),
        "norm_eps": norm_eps,
    }
    return {"latent": latent, "head_dim": width, "num_kv_heads": keys.whole("attention.head_count")}


def _rope(keys: Keys, fields: dict[str, Any], architecture: str, factors: Tensor | None) -> dict[str, Any]:
    theta = keys.real("rope.freq_base", 10_000.0)
    if theta <= 1:
        keys.refuse("rope.freq_base", "above 1")
    factor = keys.real("rope.scaling.factor", 0.0) or keys.real("rope.scale_linear", 0.0)
    stated = keys.whole("rope.scaling.original_context_length", fields["max_seq_len"])
    kind = keys.value("rope.scaling.type", "linear")
    if kind not in ("none", "linear", "yarn"):
        keys.refuse("rope.scaling.type", "none, linear or yarn")
    scaling: RopeScaling | dict[str, Any] | None = None
    if kind != "none" and factor not in (0.0, 1.0):
        scaling = {"kind": kind, "factor": factor, "original_max_seq_len": stated}
        if kind == "yarn":
            scaling |= _yarn(keys, factor, architecture)
    if factors is not None:
        if scaling is not None:
            raise GristmillError(f"{keys.where}: tensor {ROPE_FACTORS} and rope.scaling contradict each other")
        context = stated if keys.has("rope.scaling.original_context_length") else None
        dim = fields["head_dim"]
        scaling = llama3_scaling(factors, dim, theta, context, f"{keys.where}: tensor {ROPE_FACTORS}")
    return {"rope_theta": theta, "rope_scaling": scaling}


def _yarn(keys: Keys, factor: float, architecture: str) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "beta_fast": keys.real("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": keys.real("rope.scaling.yarn_beta_slow", 1.0),
    }
    if keys.real("rope.scaling.yarn_ext_factor", 1.0) != 1.0:
        keys.refuse("rope.scaling.yarn_ext_factor", "1")
    if architecture == "deepseek2":
        weight = round(10 * keys.real("rope.scaling.yarn_log_multiplier"), 6)
        return fields | {"mscale": weight, "mscale_all_dim": weight}
    if keys.has("rope.scaling.attn_factor"):  # a factor on top of yarn's own
        own = attention_factor(RopeScaling(kind="yarn", factor=max(factor, 1.0), original_max_seq_len=1))
        fields["attention_factor"] = float(f"{own * keys.real('rope.scaling.attn_factor'):.6g}")
    elif keys.has("rope.scaling.yarn_attn_factor"):
        fields["attention_factor"] = keys.real("rope.scaling.yarn_attn_factor")
    return fields


def _gemma(keys: Keys, architecture: str, fields: dict[str, Any]) -> dict[str, Any]:
    layers, hidden = fields["num_layers"], fields["hidden_size"]
    by_width = (architecture, layers) in _SCALED_BY_WIDTH
    window = keys.count("attention.sliding_window", DEFAULT_WINDOW[architecture])
    kinds = _layer_kinds(keys, layers, SLIDING_PERIOD[architecture]) if window else ("full",) * layers
    slides = "sliding" in kinds
    found: dict[str, Any] = {
        "embedding_scale": hidden**0.5,
        "attention_scale": (hidden // fields["num_heads"]) ** -0.5 if by_width else None,
        "attention_pattern": shortest_pattern(kinds),
        "sliding_window": window if slides else None,
    }
    base = keys.real("rope.freq_base_swa", 10_000.0 if architecture == "gemma3" else fields["rope_theta"])
    if slides and (architecture == "gemma3" or base != fields["rope_theta"]):
        found["sliding_rope_theta"] = base
    if architecture == "gemma2":
        found["attention_softcap"] = keys.real("attn_logit_softcapping", 50.0)
        found["logit_softcap"] = keys.real("final_logit_softcapping", 30.0)
    else:
        found["logit_softcap"] = keys.real("final_logit_softcapping", 0.0) or None
    return found


def _layer_kinds(keys: Keys, layers: int, default: int) -> tuple[LayerKind, ...]:
    """From a period n, of which the last layer sees everything, or from one flag for each layer that slides."""
    pattern = keys.value("attention.sliding_window_pattern", default)
    if isinstance(pattern, list):
        if len(pattern) < layers or any(flag not in (0, 1) for flag in pattern):
            keys.refuse("attention.sliding_window_pattern", "one flag for every layer")
        return tuple("sliding" if flag else "full" for flag in pattern[:layers])
    period = keys.whole("attention.sliding_window_pattern", default)
    return tuple("full" if layer % period == period - 1 else "sliding" for layer in range(layers))


def _mixture(keys: Keys, architecture: str, fields: dict[str, Any], tensors: Collection[str]) -> dict[str, Any]:
    number, layers = keys.count("expert_count"), fields["num_layers"]
    latent = architecture == "deepseek2"
    dense = min(keys.count("leading_dense_block_count"), layers) if latent else 0
    used = keys.count("expert_used_count")
    own_width = keys.count("expert_feed_forward_length") if latent or architecture == "qwen3moe" else 0
    shared = keys.count("expert_shared_count") if latent else 0
    if number == 0 or dense == layers:
        if architecture == "qwen3moe":
            keys.refuse("expert_count", "above 0 in a mixture of experts")
        return {}
    wide = own_width or fields["intermediate_size"]
    experts: dict[str, Any] = {
        "num_experts": number,
        "top_k": used,
        "intermediate_size": wide,
        "shared_intermediate_size": shared * wide,
        "dense_layers": tuple(range(dense)),
    }
    if latent:
        router = keys.whole("expert_gating_func", 1)
        if router not in _ROUTERS:
            keys.refuse("expert_gating_func", "1 (softmax) or 2 (sigmoid)")
        groups = keys.count("expert_group_count") or 1
        experts |= {
            "router": _ROUTERS[router],
            "normalize_top_k": keys.flag("expert_weights_norm", False),
            "routed_scale": keys.real("expert_weights_scale", 0.0) or 1.0,
            "num_groups": groups,
            "top_groups": keys.count("expert_group_used_count") or groups,
            "balance": "bias" if f"blk.{dense}.exp_probs_b.bias" in tensors else "aux_loss",
        }
    return {"experts": experts}


def shortest_float(value: float) -> float:
    """The shortest decimal that is the same float32: 1e-05 rather than 9.999999747378752e-06."""
    try:
        (single,) = struct.unpack("<f", struct.pack("<f", value))
    except OverflowError:
        return value
    if single != value:
        return value
    for digits in range(1, 10):
        short = float(f"{value:.{digits}g}")
        if struct.unpack("<f", struct.pack("<f", short))[0] == value:
            return short
    return value


def lost(config: ModelConfig, back: ModelConfig) -> list[str]:
    """`field = value` of every field of `config` that computes something and is not so in `back`. Numbers are compared
    as float32, which is what GGUF files hold."""
    return differences(_as_single(effective(config)), _as_single(effective(back)))


def _as_single(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _as_single(item) for key, item in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value
