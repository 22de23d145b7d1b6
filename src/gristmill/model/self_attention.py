"""What stands around attention in a block: projections, norms of queries and keys, rotary positions.

Shape suffixes: B batch, T time, C hidden_size, H query heads, K key/value heads, D key width, E value width, R rank.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from .attention import Attend, AttentionSpec
from .config import ModelShape
from .linear import project
from .norms import RMSNorm, build_rms_norm
from .positions import Rotation, rotate


def attention_spec(config: ModelShape, layer: int) -> AttentionSpec:
    """How the scores of a layer are made."""
    slides = config.layer_kinds[layer] == "sliding"
    return AttentionSpec(
        layer=layer,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        value_dim=config.value_dim,
        scale=config.query_scale,
        causal=config.causal,
        window=config.sliding_window if slides else None,
        sink_tokens=config.sink_tokens if slides else 0,
        softcap=config.attention_softcap,
        alibi=config.positions == "alibi",
    )


class SelfAttention(nn.Module):
    """Multi-head, grouped-query (Ainslie et al. 2023) or multi-query attention; q, k and v come from one product."""

    def __init__(self, config: ModelShape, layer: int):
        super().__init__()
        self.spec = attention_spec(config, layer)
        self.heads = [config.num_heads, config.num_kv_heads, config.num_kv_heads]
        self.qkv = nn.Linear(config.hidden_size, sum(self.heads) * config.head_dim, bias=config.qkv_bias)
        self.output = nn.Linear(config.num_heads * config.head_dim, config.hidden_size, bias=config.output_bias)
        self.norm_heads = config.qk_norm == "head"
        self.norm_projections = config.qk_norm == "projection"
        if config.qk_norm != "none":
            q_heads, kv_heads = (1, 1) if self.norm_heads else (config.num_heads, config.num_kv_heads)
            self.q_norm = build_rms_norm(config, q_heads * config.head_dim)
            self.k_norm = build_rms_norm(config, kv_heads * config.head_dim)
        self.sinks = nn.Parameter(torch.zeros(config.num_heads)) if config.learned_sinks else None

    def forward(self, x_BTC: Tensor, rotation: Rotation | None, attend: Attend) -> Tensor:
        heads = project(self.qkv, x_BTC).unflatten(-1, (-1, self.spec.head_dim))
        q_BTHD, k_BTKD, v_BTKD = heads.split(self.heads, dim=2)
        if self.norm_heads:
            q_BTHD, k_BTKD = self.q_norm(q_BTHD), self.k_norm(k_BTKD)
        elif self.norm_projections:
            q_BTHD = self.q_norm(q_BTHD.flatten(2)).view_as(q_BTHD)
            k_BTKD = self.k_norm(k_BTKD.flatten(2)).view_as(k_BTKD)
        spec = self.spec if self.sinks is None else replace(self.spec, sinks=self.sinks)
        out_BTHD = attend(spec, rotate(q_BTHD, rotation), rotate(k_BTKD, rotation), v_BTKD)
        return project(self.output, out_BTHD.flatten(2))


class LatentSelfAttention(nn.Module):
    """Multi-head latent attention (DeepSeek-V2, section 2.1): keys and values are products of one narrow vector.

    Multiplied out it is multi-head attention. In the absorbed form the products move to the queries and the output
    (q (W c) = (q W) c), and every head attends to the narrow vectors themselves: one key head of R + rope channels,
    which is all that a cache keeps.
    """

    def __init__(self, config: ModelShape, layer: int):
        super().__init__()
        latent = config.latent
        assert latent is not None
        self.latent = latent
        self.spec = attention_spec(config, layer)
        width = latent.kv_rank + latent.rope_head_dim
        self.absorbed_spec = replace(
            self.spec, num_kv_heads=1, head_dim=width, value_dim=latent.kv_rank, values_in_keys=True
        )
        heads, hidden = config.num_heads, config.hidden_size
        if latent.q_rank is None:
            self.q = nn.Linear(hidden, heads * config.head_dim, bias=False)
        else:
            self.q_down = nn.Linear(hidden, latent.q_rank, bias=False)
            self.q_norm = RMSNorm(latent.q_rank, eps=latent.norm_eps)
            self.q_up = nn.Linear(latent.q_rank, heads * config.head_dim, bias=False)
        self.kv_down = nn.Linear(hidden, width, bias=False)
        self.kv_norm = RMSNorm(latent.kv_rank, eps=latent.norm_eps)
        self.kv_up = nn.Linear(latent.kv_rank, heads * (latent.nope_head_dim + latent.value_head_dim), bias=False)
        self.output = nn.Linear(heads * latent.value_head_dim, hidden, bias=config.output_bias)
        self.sinks = nn.Parameter(torch.zeros(heads)) if config.learned_sinks else None

    def forward(self, x_BTC: Tensor, rotation: Rotation | None, attend: Attend) -> Tensor:
        latent = self.latent
        if latent.q_rank is None:
            q = project(self.q, x_BTC)
        else:
            q = project(self.q_up, self.q_norm(project(self.q_down, x_BTC)))
        q_nope, q_rope = q.unflatten(-1, (self.spec.num_heads, -1)).split(
            [latent.nope_head_dim, latent.rope_head_dim], dim=-1
        )
        kv_BTR, k_rope = project(self.kv_down, x_BTC).split([latent.kv_rank, latent.rope_head_dim], dim=-1)
        kv_BTR = self.kv_norm(kv_BTR)
        q_rope, k_rope = rotate(q_rope, rotation), rotate(k_rope[:, :, None], rotation)
        if getattr(attend, "latent", False):
            out_BTHE = self._absorbed(q_nope, q_rope, kv_BTR, k_rope, attend)
        else:
            out_BTHE = self._multiplied_out(q_nope, q_rope, kv_BTR, k_rope, attend)
        return project(self.output, out_BTHE.flatten(2))

    def _multiplied_out(self, q_nope: Tensor, q_rope: Tensor, kv_BTR: Tensor, k_rope: Tensor, attend: Attend) -> Tensor:
        heads = self.kv_up(kv_BTR).unflatten(-1, (self.spec.num_heads, -1))
        k_nope, v_BTHE = heads.split([self.latent.nope_head_dim, self.latent.value_head_dim], dim=-1)
        k_rope = k_rope.expand(-1, -1, self.spec.num_heads, -1)
        q_BTHD, k_BTHD = torch.cat((q_nope, q_rope), dim=-1), torch.cat((k_nope, k_rope), dim=-1)
        return attend(self._with_sinks(self.spec), q_BTHD, k_BTHD, v_BTHE)

    def _absorbed(self, q_nope: Tensor, q_rope: Tensor, kv_BTR: Tensor, k_rope: Tensor, attend: Attend) -> Tensor:
        weight = self.kv_up.weight.unflatten(0, (self.spec.num_heads, -1))
        to_key, to_value = weight.split([self.latent.nope_head_dim, self.latent.value_head_dim], dim=1)
        q_BTHR = torch.einsum("bthn,hnr->bthr", q_nope, to_key)
        keys = torch.cat((kv_BTR[:, :, None], k_rope), dim=-1)
        values = keys[..., : self.latent.kv_rank]
        spec = self._with_sinks(self.absorbed_spec)
        out_BTHR = attend(spec, torch.cat((q_BTHR, q_rope), dim=-1), keys, values)
        return torch.einsum("bthr,her->bthe", out_BTHR, to_value)

    def _with_sinks(self, spec: AttentionSpec) -> AttentionSpec:
        return spec if self.sinks is None else replace(spec, sinks=self.sinks)


def build_attention(config: ModelShape, layer: int) -> SelfAttention | LatentSelfAttention:
    return SelfAttention(config, layer) if config.latent is None else LatentSelfAttention(config, layer)
