"""The decoder: embedding, blocks of attention and feed-forward, final norm, head.

It knows nothing of caches, parallelism or quantization: attention arrives through `Attend` (model/attention.py).
Shape suffixes: B batch, T time, C hidden_size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .attention import Attend, causal_attention
from .config import LayerKind, ModelConfig, ModelShape
from .embedding import add_positions, embed_tokens
from .experts import MixtureOfExperts
from .feed_forward import FeedForward
from .head import head_logits
from .init import init_weights
from .norms import build_norm
from .positions import Rotation, rotations
from .schemes import InitScheme
from .self_attention import build_attention


class Decoder(nn.Module):
    """A language model of any shape that `ModelConfig` describes. `model(input_ids)` gives logits
    `[batch, time, vocab]`."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        learned = config.positions == "learned"
        self.position_embedding = nn.Embedding(config.max_seq_len, config.hidden_size) if learned else None
        self.embedding_norm = build_norm(config) if config.embedding_norm else None
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = nn.Identity() if config.norm_position == "post" else build_norm(config)
        self.head = (
            None if config.tie_embeddings else nn.Linear(config.hidden_size, config.vocab_size, bias=config.head_bias)
        )

    def forward(
        self, input_ids_BT: Tensor, positions_BT: Tensor | None = None, attend: Attend = causal_attention
    ) -> Tensor:
        """Logits `[B, T, V]` of the token after each one. Positions count from 0 in each row unless given."""
        return self.logits(self.hidden_states(input_ids_BT, positions_BT, attend))

    def hidden_states(
        self,
        input_ids_BT: Tensor,
        positions_BT: Tensor | None = None,
        attend: Attend = causal_attention,
        context_length: Tensor | int | None = None,
    ) -> Tensor:
        """The normed output of the last block, `[B, T, C]`; the head is left to `logits`, so that a loss or a
        sampler can apply it to fewer tokens.

        `context_length`, for `rope_scaling` "dynamic": the context in tokens that each token reckons with, `[B, T]`,
        `[B, 1]` or one number; the row's highest position + 1 unless given. A row that packs documents counts as its
        longest.
        """
        x_BTC, angles = self._enter(input_ids_BT, positions_BT, context_length)
        for block in self.blocks:
            x_BTC = block(x_BTC, angles, attend)
        return self.norm(x_BTC)

    def residual_stream(
        self, input_ids_BT: Tensor, positions_BT: Tensor | None = None, attend: Attend = causal_attention
    ) -> Iterator[Tensor]:
        """What stands in the residual stream, `[B, T, C]`: after the embedding, then after each block."""
        x_BTC, angles = self._enter(input_ids_BT, positions_BT, None)
        yield x_BTC
        for block in self.blocks:
            x_BTC = block(x_BTC, angles, attend)
            yield x_BTC

    def _enter(
        self, input_ids_BT: Tensor, positions_BT: Tensor | None, context_length: Tensor | int | None
    ) -> tuple[Tensor, dict[LayerKind, Rotation]]:
        """What the first block takes: the embedded tokens and the rotary angles."""
        if positions_BT is None:
            time = input_ids_BT.shape[1]
            positions_BT = torch.arange(time, device=input_ids_BT.device)[None]
            context_length = time if context_length is None else context_length
        x_BTC = self.embed(input_ids_BT, positions_BT)
        return x_BTC, rotations(self.config, positions_BT, x_BTC.dtype, context_length)

    def embed(self, input_ids_BT: Tensor, positions_BT: Tensor) -> Tensor:
        """Embedded tokens `[B, T, C]`, with learned or sinusoidal positions in them."""
        x_BTC = embed_tokens(self.embedding, input_ids_BT, self.config.embedding_scale)
        x_BTC = add_positions(self.config, x_BTC, positions_BT, self.position_embedding)
        return x_BTC if self.embedding_norm is None else self.embedding_norm(x_BTC)

    def logits(self, hidden: Tensor) -> Tensor:
        """The head applied to hidden states `[..., C]`: `[..., V]`."""
        head = self.embedding if self.head is None else self.head
        bias = None if self.head is None else self.head.bias
        return head_logits(hidden, head.weight, bias, self.config)

    def init_weights(self, seed: int, scheme: InitScheme = "gpt2") -> Decoder:
        """Draw all weights, see model/init.py: a seed gives the same weights on every device."""
        init_weights(self, scheme, seed)
        return self


class Block(nn.Module):
    """Attention, then feed-forward, each added to the residual stream; or both at once (`parallel_block`)."""

    def __init__(self, config: ModelShape, layer: int):
        super().__init__()
        self.kind: LayerKind = config.layer_kinds[layer]
        self.position = config.norm_position
        self.parallel = config.parallel_block
        enters = config.norm_position != "output"
        leaves = config.norm_position in ("sandwich", "output")
        self.attention_norm = build_norm(config) if enters else None
        self.attention = build_attention(config, layer)
        self.attention_output_norm = build_norm(config) if leaves else None
        self.feed_forward_norm = build_norm(config) if enters and self.parallel != "shared" else None
        self.feed_forward = MixtureOfExperts(config, layer) if config.has_experts(layer) else FeedForward(config)
        self.feed_forward_output_norm = build_norm(config) if leaves else None

    def forward(self, x_BTC: Tensor, angles: dict[LayerKind, Rotation], attend: Attend) -> Tensor:
        rotation = angles.get(self.kind)
        if self.parallel != "none":
            assert self.attention_norm is not None
            normed = self.attention_norm(x_BTC)
            other = normed if self.feed_forward_norm is None else self.feed_forward_norm(x_BTC)
            return x_BTC + self.attention(normed, rotation, attend) + self.feed_forward(other)
        entered = self._enter(x_BTC, self.attention_norm)
        x_BTC = self._add(
            x_BTC, self.attention(entered, rotation, attend), self.attention_norm, self.attention_output_norm
        )
        entered = self._enter(x_BTC, self.feed_forward_norm)
        return self._add(x_BTC, self.feed_forward(entered), self.feed_forward_norm, self.feed_forward_output_norm)

    def _enter(self, x_BTC: Tensor, norm: nn.Module | None) -> Tensor:
        return x_BTC if norm is None or self.position == "post" else norm(x_BTC)

    def _add(self, x_BTC: Tensor, out_BTC: Tensor, norm: nn.Module | None, output_norm: nn.Module | None) -> Tensor:
        if output_norm is not None:
            out_BTC = output_norm(out_BTC)
        x_BTC = x_BTC + out_BTC
        return norm(x_BTC) if norm is not None and self.position == "post" else x_BTC
