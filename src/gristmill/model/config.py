"""The shape of a model: every choice of architecture as one field. Torch-free, so that recipes and plans can be
checked without it."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from . import counts

LayerKind = Literal["full", "sliding"]


class LatentAttention(BaseModel):
    """Multi-head latent attention (DeepSeek-V2, section 2.1): keys and values are made from one narrow vector a token,
    which is all that a cache has to keep."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kv_rank: int = Field(gt=0, description="Width of the vector that keys and values are made from.")
    q_rank: int | None = Field(default=None, gt=0, description="Width that queries pass through; none by default.")
    nope_head_dim: int = Field(gt=0, description="Part of a query/key head without positions.")
    rope_head_dim: int = Field(gt=0, description="Part with rotary positions, its key shared by all heads; even.")
    value_head_dim: int = Field(gt=0, description="Width of a value head.")
    norm_eps: float = Field(default=1e-6, gt=0, description="Epsilon of the RMSNorms on the narrow vectors.")


class RopeScaling(BaseModel):
    """How rotary frequencies change so that a model reads further than it was trained."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Literal["linear", "dynamic", "yarn", "llama3"] = Field(
        description="linear (position interpolation), dynamic (NTK by length), yarn, or llama3 (by wavelength)."
    )
    factor: float = Field(ge=1, description="New context over trained context.")
    original_max_seq_len: int = Field(gt=0, description="Context the model was trained with, in tokens.")
    beta_fast: float = Field(default=32.0, gt=0, description="yarn: turns in the context above which a pair is kept.")
    beta_slow: float = Field(default=1.0, gt=0, description="yarn: turns below which a pair is interpolated whole.")
    attention_factor: float | None = Field(
        default=None, gt=0, description="yarn: factor of cosines and sines; 0.1 ln(factor) + 1 unless given."
    )
    mscale: float | None = Field(default=None, ge=0, description="yarn: DeepSeek's weight of the ln in that factor.")
    mscale_all_dim: float | None = Field(
        default=None, ge=0, description="yarn: the same in the factor that divides it and scales latent attention."
    )
    truncate: bool = Field(default=True, description="yarn: round the border pairs outwards to whole ones.")
    low_freq_factor: float = Field(default=1.0, gt=0, description="llama3: turns below which a pair is interpolated.")
    high_freq_factor: float = Field(default=4.0, gt=0, description="llama3: turns above which a pair is kept.")

    def yarn_mscale(self, weight: float) -> float:
        """yarn's 0.1 * weight * ln(factor) + 1 (Peng et al. 2023, equation 15, with DeepSeek's weight)."""
        return 0.1 * weight * math.log(self.factor) + 1.0

    @model_validator(mode="after")
    def _orders_fit(self) -> Self:
        if self.kind == "llama3" and self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"high_freq_factor ({self.high_freq_factor}) must be above low_freq_factor ({self.low_freq_factor})"
            )
        if self.kind == "yarn" and self.beta_fast <= self.beta_slow:
            raise ValueError(f"beta_fast ({self.beta_fast}) must be above beta_slow ({self.beta_slow})")
        return self


class Experts(BaseModel):
    """A mixture of experts in place of the feed-forward layer."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    num_experts: int = Field(gt=1, description="Routed experts per layer.")
    top_k: int = Field(gt=0, description="Experts per token.")
    intermediate_size: int = Field(gt=0, description="Width of one routed expert.")
    shared_intermediate_size: int = Field(default=0, ge=0, description="Width of the expert every token passes.")
    dense_layers: tuple[int, ...] = Field(default=(), description="Layers (from 0) with a plain feed-forward instead.")
    router: Literal["softmax", "sigmoid"] = Field(default="softmax", description="Scores from the router's logits.")
    normalize_top_k: bool = Field(default=True, description="Divide the chosen scores by their sum.")
    routed_scale: float = Field(default=1.0, gt=0, description="Factor of the routed experts' output.")
    num_groups: int = Field(default=1, gt=0, description="Groups of experts, the best of which a token chooses from.")
    top_groups: int = Field(default=1, gt=0, description="Groups a token may choose from.")
    group_score: Literal["max", "top2"] = Field(
        default="top2", description="A group's score: that of its best expert, or the sum of its two best."
    )
    balance: Literal["none", "aux_loss", "bias"] = Field(
        default="aux_loss",
        description="What keeps the load even: a loss (Switch Transformer), or a bias on the choice (DeepSeek-V3).",
    )
    aux_loss_weight: float = Field(default=0.01, ge=0, description="Weight of the balance loss.")
    z_loss_weight: float = Field(default=0.0, ge=0, description="Weight of the squared log-sum-exp of router logits.")
    bias_rate: float = Field(default=0.001, gt=0, description="Step of the bias per optimizer step.")
    capacity_factor: float | None = Field(
        default=None,
        gt=0,
        description="Most tokens per expert over the mean, while pre-training; the rest skip it. No limit (dropless) "
        "by default.",
    )

    @model_validator(mode="after")
    def _choices_fit(self) -> Self:
        if self.top_k > self.num_experts:
            raise ValueError(f"top_k ({self.top_k}) is more than num_experts ({self.num_experts})")
        if self.num_experts % self.num_groups:
            raise ValueError(f"num_experts ({self.num_experts}) is not a multiple of num_groups ({self.num_groups})")
        if self.top_groups > self.num_groups:
            raise ValueError(f"top_groups ({self.top_groups}) is more than num_groups ({self.num_groups})")
        group = self.num_experts // self.num_groups
        if self.top_k > self.top_groups * group:
            raise ValueError(f"top_k ({self.top_k}) is more than the {self.top_groups * group} experts in top_groups")
        if self.num_groups > 1 and self.group_score == "top2" and group < 2:
            raise ValueError("group_score top2 needs groups of at least 2 experts")
        return self


class ModelShape(BaseModel):
    """A transformer without its vocabulary. The defaults are a Llama: pre-norm RMSNorm, rotary positions, SwiGLU."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    hidden_size: int = Field(gt=0, description="Width of the residual stream.")
    num_layers: int = Field(gt=0, description="Number of blocks.")
    num_heads: int = Field(gt=0, description="Query heads per block.")
    num_kv_heads: int = Field(gt=0, description="Key/value heads per block; divides num_heads.")
    head_dim: int = Field(gt=0, description="Width of one head.")
    intermediate_size: int = Field(gt=0, description="Width of the feed-forward layer.")
    max_seq_len: int = Field(gt=0, description="Longest sequence in tokens the model is made for.")

    causal: bool = Field(default=True, description="Tokens see those before them; all of them if not (encoders).")
    latent: LatentAttention | None = Field(default=None, description="Latent attention; head_dim is its widths' sum.")
    qkv_bias: bool = Field(default=False, description="Biases on queries, keys and values.")
    output_bias: bool = Field(default=False, description="Bias on attention's output.")
    qk_norm: Literal["none", "head", "projection"] = Field(
        default="none", description="RMSNorm of queries and keys: per head (Qwen 3), or over all heads (OLMo 2)."
    )
    attention_scale: float | None = Field(default=None, gt=0, description="Factor of the scores; 1/sqrt(head_dim).")
    attention_softcap: float | None = Field(default=None, gt=0, description="Scores become cap * tanh(score / cap).")
    sliding_window: int | None = Field(
        default=None, gt=0, description="Tokens a sliding layer sees, its own included; encoders: to either side."
    )
    attention_pattern: tuple[LayerKind, ...] = Field(
        default=("full",), description="Which layers see everything, which slide; repeated until the last layer."
    )
    sink_tokens: int = Field(default=0, ge=0, description="First tokens that sliding layers go on seeing.")
    learned_sinks: bool = Field(default=False, description="A learned score per head that no token receives.")

    positions: Literal["rope", "alibi", "learned", "sinusoidal", "none"] = Field(
        default="rope", description="How the model knows the order of tokens."
    )
    rope_theta: float = Field(default=10_000.0, gt=1, description="Base of the rotary frequencies.")
    rope_fraction: float = Field(default=1.0, gt=0, le=1, description="Share of a head that rotates, its first part.")
    rope_scaling: RopeScaling | None = Field(default=None, description="Longer contexts; not for sliding layers.")
    sliding_rope_theta: float | None = Field(default=None, gt=1, description="Base in sliding layers, if another.")

    norm: Literal["rmsnorm", "layernorm"] = Field(default="rmsnorm", description="Kind of the norms.")
    norm_position: Literal["pre", "post", "sandwich", "output"] = Field(
        default="pre",
        description="Before each layer; after the residual sum; before and after each layer; after each layer only.",
    )
    norm_eps: float = Field(default=1e-5, gt=0, description="Added to the mean square (variance) inside the norms.")
    norm_bias: bool = Field(default=False, description="Biases in layernorm.")
    norm_unit_offset: bool = Field(default=False, description="Norms multiply by 1 + weight (Gemma).")
    embedding_norm: bool = Field(default=False, description="A norm right after the embedding.")
    embedding_scale: float = Field(default=1.0, gt=0, description="Factor of the embedding, in its type.")

    activation: Literal["silu", "gelu", "gelu_tanh", "relu", "relu2"] = Field(
        default="silu", description="Non-linearity of the feed-forward layer; relu2 is its square."
    )
    gated: bool = Field(default=True, description="down(act(gate(x)) * up(x)), not down(act(up(x))).")
    mlp_bias: bool = Field(default=False, description="Biases in the feed-forward layer.")
    parallel_block: Literal["none", "shared", "separate"] = Field(
        default="none", description="Attention and feed-forward side by side, on one norm of the input or on two."
    )
    experts: Experts | None = Field(default=None, description="A mixture of experts as feed-forward layer.")

    tie_embeddings: bool = Field(default=True, description="Use the embedding table as the output head too.")
    head_bias: bool = Field(default=False, description="Bias on the output head.")
    logit_scale: float = Field(default=1.0, gt=0, description="Factor of the logits.")
    logit_softcap: float | None = Field(default=None, gt=0, description="Logits become cap * tanh(logit / cap).")

    @model_validator(mode="after")
    def _shapes_fit(self) -> Self:
        if self.num_kv_heads > self.num_heads:
            raise ValueError(f"num_kv_heads ({self.num_kv_heads}) is more than num_heads ({self.num_heads})")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads ({self.num_heads}) is not a multiple of num_kv_heads ({self.num_kv_heads})")
        if self.positions == "rope" and (self.rotary_dim % 2 or self.rotary_dim == 0):
            part = "latent.rope_head_dim" if self.latent is not None else "head_dim times rope_fraction"
            raise ValueError(f"{part} ({self.rotary_dim}) must be even and above 0: rotary positions turn pairs")
        if self.positions == "sinusoidal" and self.hidden_size % 2:
            raise ValueError(f"hidden_size ({self.hidden_size}) must be even for sinusoidal positions")
        return self

    @model_validator(mode="after")
    def _choices_fit(self) -> Self:
        refused = [
            ("attention_pattern", not self.attention_pattern, "is empty"),
            ("attention_pattern", len(self.attention_pattern) > self.num_layers, "is longer than num_layers"),
            ("sliding_window", "sliding" in self.attention_pattern and not self.sliding_window, "must be set"),
            ("attention_pattern", bool(self.sliding_window) and "sliding" not in self.attention_pattern,
             "names no sliding layer, but sliding_window is set"),
            ("sink_tokens", self.sink_tokens > 0 and self.sliding_window is None, "needs sliding_window"),
            ("rope_scaling", self.rope_scaling is not None and self.positions != "rope", "needs positions: rope"),
            ("rope_scaling", self.rope_scaling is not None and self.sliding_rope_theta is not None
             and "full" not in self.attention_pattern, "is for full layers, and attention_pattern names none"),
            ("rope_scaling.kind", self.rope_scaling is not None and self.rope_scaling.kind == "dynamic"
             and self.rotary_dim < 4, "dynamic needs at least 4 rotating channels"),
            ("rope_fraction", self.rope_fraction != 1 and self.latent is not None, "has no place in latent attention"),
            ("rope_fraction", self.rope_fraction != 1 and self.positions != "rope", "needs positions: rope"),
            ("sliding_rope_theta", self.sliding_rope_theta is not None and self.positions != "rope",
             "needs positions: rope"),
            ("sliding_rope_theta", self.sliding_rope_theta is not None and not self.sliding_window,
             "needs sliding_window"),
            ("norm_bias", self.norm_bias and self.norm != "layernorm", "needs norm: layernorm"),
            ("parallel_block", self.parallel_block != "none" and self.norm_position != "pre",
             "needs norm_position: pre"),
            ("head_bias", self.head_bias and self.tie_embeddings, "needs tie_embeddings: false"),
        ]  # fmt: skip
        for field, wrong, why in refused:
            if wrong:
                raise ValueError(f"{field} {why}")
        if self.latent is not None:
            self._latent_fits(self.latent)
        if self.experts is not None:
            if outside := [layer for layer in self.experts.dense_layers if not 0 <= layer < self.num_layers]:
                raise ValueError(f"experts.dense_layers names layer {outside[0]}, the last is {self.num_layers - 1}")
            if len(set(self.experts.dense_layers)) < len(self.experts.dense_layers):
                raise ValueError("experts.dense_layers names a layer twice")
            if len(self.experts.dense_layers) == self.num_layers:
                raise ValueError("experts.dense_layers names every layer: leave experts out instead")
            if self.mlp_bias:
                raise ValueError("mlp_bias is not for experts")
        return self

    def _latent_fits(self, latent: LatentAttention) -> None:
        width = latent.nope_head_dim + latent.rope_head_dim
        if self.head_dim != width:
            raise ValueError(f"head_dim ({self.head_dim}) must be nope_head_dim + rope_head_dim ({width})")
        if self.num_kv_heads != self.num_heads:
            raise ValueError("latent attention has as many num_kv_heads as num_heads")
        if self.positions != "rope" or self.qk_norm != "none" or self.qkv_bias:
            raise ValueError("latent attention needs positions: rope, qk_norm: none and no qkv_bias")

    @property
    def rotary_dim(self) -> int:
        """Channels of a head that rotate."""
        return self.latent.rope_head_dim if self.latent is not None else int(self.head_dim * self.rope_fraction)

    @property
    def value_dim(self) -> int:
        """Width of a value head."""
        return self.latent.value_head_dim if self.latent is not None else self.head_dim

    @property
    def query_scale(self) -> float:
        """Factor of the products of queries and keys: `attention_scale`, else 1/sqrt(head_dim); DeepSeek's yarn scales
        latent attention by the square of its mscale too."""
        scale = self.head_dim**-0.5 if self.attention_scale is None else self.attention_scale
        scaling = self.rope_scaling
        if self.latent is not None and scaling is not None and scaling.kind == "yarn" and scaling.mscale_all_dim:
            scale *= scaling.yarn_mscale(scaling.mscale_all_dim) ** 2
        return scale

    @property
    def cache_shape(self) -> tuple[int, int, int]:
        """What a cache keeps of a token in each layer: key/value heads, width of a key, width of a value. Latent
        attention in its absorbed form has one head, and its values lie inside the keys, hence width 0."""
        if self.latent is not None:
            return 1, self.latent.kv_rank + self.latent.rope_head_dim, 0
        return self.num_kv_heads, self.head_dim, self.head_dim

    @property
    def layer_kinds(self) -> tuple[LayerKind, ...]:
        """Full or sliding, for every layer."""
        pattern = self.attention_pattern
        return tuple(pattern[layer % len(pattern)] for layer in range(self.num_layers))

    def has_experts(self, layer: int) -> bool:
        return self.experts is not None and layer not in self.experts.dense_layers


class ModelConfig(ModelShape):
    """A model's whole shape, vocabulary included."""

    vocab_size: int = Field(gt=0, description="Rows of the embedding table.")

    def parameters_by_part(self, active: bool = False) -> dict[str, int]:
        """Parameters of the built `Decoder` by part, see `counts.parameters_by_part`."""
        return counts.parameters_by_part(self, active)

    @property
    def makes_logits(self) -> bool:
        """Whether there is a head over the vocabulary."""
        return True

    @property
    def num_parameters(self) -> int:
        """Exact parameter count of the built model; a tied embedding table counts once."""
        return sum(self.parameters_by_part().values())

    @property
    def num_active_parameters(self) -> int:
        """Parameters that one token meets: of the routed experts, `top_k`."""
        return sum(self.parameters_by_part(active=True).values())
