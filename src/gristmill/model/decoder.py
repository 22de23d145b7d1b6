"""The decoder: embedding, blocks of attention and feed-forward, final norm, head.

It knows nothing of caches, parallelism or quantization: attention arrives through `Attend` (model/attention.py).
Shape suffixes: B batch, T time, C hidden_size, H query heads, K key/value heads, D head width, V vocabulary.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Attend, AttentionSpec, causal_attention
from .config import ModelConfig


class Decoder(nn.Module):
    """A Llama-shaped decoder. `model(input_ids)` gives logits `[batch, time, vocab]`."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.head = None if config.tie_embeddings else nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(
        self, input_ids_BT: Tensor, positions_BT: Tensor | None = None, attend: Attend = causal_attention
    ) -> Tensor:
        """Logits `[B, T, V]` of the token after each one. Positions count from 0 in each row unless given."""
        return self.logits(self.hidden_states(input_ids_BT, positions_BT, attend))

    def hidden_states(
        self, input_ids_BT: Tensor, positions_BT: Tensor | None = None, attend: Attend = causal_attention
    ) -> Tensor:
        """The normed output of the last block, `[B, T, C]`; the head is left to `logits`, so that a loss or a
        sampler can apply it to fewer tokens."""
        if positions_BT is None:
            positions_BT = torch.arange(input_ids_BT.shape[1], device=input_ids_BT.device).expand_as(input_ids_BT)
        x_BTC = self.embedding(input_ids_BT)
        rotation = rotary_angles(self.config, positions_BT, x_BTC.dtype)
        for block in self.blocks:
            x_BTC = block(x_BTC, rotation, attend)
        return self.norm(x_BTC)

    def logits(self, hidden: Tensor) -> Tensor:
        """The head applied to hidden states `[..., C]`: `[..., V]`."""
        return F.linear(hidden, self.embedding.weight) if self.head is None else self.head(hidden)

    @torch.no_grad()
    def init_weights(self, seed: int) -> Decoder:
        """Normal(0, 0.02) matrices, residual outputs scaled by 1/sqrt(2 * num_layers) (GPT-2, section 2.3).

        Drawn on the CPU in the order of the parameters, so a seed gives the same weights on every device.
        """
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                parameter.fill_(1.0)
                continue
            std = 0.02
            if name.endswith(("attention.output.weight", "feed_forward.down.weight")):
                std /= math.sqrt(2 * self.config.num_layers)
            drawn = torch.empty(parameter.shape).normal_(0.0, std, generator=generator)
            parameter.copy_(drawn)
        return self


class Block(nn.Module):
    """Pre-norm residual block: attention, then feed-forward."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.attention = Attention(config, layer)
        self.feed_forward_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.feed_forward = FeedForward(config)

    def forward(self, x_BTC: Tensor, rotation: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        x_BTC = x_BTC + self.attention(self.attention_norm(x_BTC), rotation, attend)
        return x_BTC + self.feed_forward(self.feed_forward_norm(x_BTC))


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023) with rotary positions; q, k and v come from one product."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.spec = AttentionSpec(layer, config.num_heads, config.num_kv_heads, config.head_dim, config.head_dim**-0.5)
        heads = config.num_heads + 2 * config.num_kv_heads
        self.qkv = nn.Linear(config.hidden_size, heads * config.head_dim, bias=False)
        self.output = nn.Linear(config.num_heads * config.head_dim, config.hidden_size, bias=False)

    def forward(self, x_BTC: Tensor, rotation: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        spec = self.spec
        heads = self.qkv(x_BTC).unflatten(-1, (-1, spec.head_dim))
        q_BTHD, k_BTKD, v_BTKD = heads.split([spec.num_heads, spec.num_kv_heads, spec.num_kv_heads], dim=2)
        out_BTHD = attend(spec, rotate(q_BTHD, rotation), rotate(k_BTKD, rotation), v_BTKD)
        return self.output(out_BTHD.flatten(2))


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020): down(silu(gate(x)) * up(x)); gate and up come from one product."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate_up = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_BTC: Tensor) -> Tensor:
        gate, up = self.gate_up(x_BTC).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


def rotary_angles(config: ModelConfig, positions_BT: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines `[B, T, 1, D]` of RoPE (Su et al. 2021), in the half-split layout of Hugging Face's Llama."""
    exponent = torch.arange(0, config.head_dim, 2, device=positions_BT.device, dtype=torch.float32) / config.head_dim
    angles = positions_BT[..., None].float() * config.rope_theta**-exponent
    angles = torch.cat((angles, angles), dim=-1)[:, :, None, :]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x_BTHD: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair (i, i + D/2) of a head by its position's angle."""
    cos, sin = rotation
    first, second = x_BTHD.chunk(2, dim=-1)
    return x_BTHD * cos + torch.cat((-second, first), dim=-1) * sin
