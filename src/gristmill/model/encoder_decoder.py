"""The encoder-decoder (Vaswani et al. 2017; T5, Raffel et al. 2020): one stack reads, the other writes and looks at
what was read through cross-attention.

Both are stacks of the decoder's blocks, and all attention goes through `Attend`: a cache for what is written needs
nothing of the model. What was read becomes keys and values once (`Memory`), whatever is then written.

Shape suffixes: B batch, S tokens read, T tokens written, C hidden_size, H query heads, K key/value heads, D head
width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..errors import GristmillError
from .attention import Attend, AttentionSpec, causal_attention, masked_attention
from .config import LayerKind, ModelConfig, ModelShape
from .decoder import Block
from .embedding import embed_tokens
from .encoder import TextAttention, text_positions
from .head import head_logits
from .init import init_weights
from .norms import build_norm
from .positions import Rotation
from .relative import RelativeBias
from .schemes import InitScheme
from .stack import Stack


class EncoderDecoderConfig(ModelConfig):
    """The shape of an `EncoderDecoder`. Both stacks are alike, but for their depth and the direction they read in;
    `num_layers` is the encoder's."""

    causal: bool = Field(default=False, description="Always false: the encoder reads both ways, the decoder never.")
    num_decoder_layers: int = Field(gt=0, description="Blocks of the decoder.")
    start_id: int = Field(default=0, ge=0, description="Token that every output begins with.")
    relative_buckets: int = Field(
        default=0, ge=0, description="Buckets of T5's relative position bias, with positions: none; 0: no such bias."
    )
    relative_max_distance: int = Field(default=128, gt=0, description="Distance in tokens from which on all are alike.")

    @model_validator(mode="after")
    def _halves_fit(self) -> Self:
        buckets = self.relative_buckets
        refused = [
            ("causal", self.causal, "must be false: the decoder is causal, the encoder is not"),
            ("start_id", self.start_id >= self.vocab_size,
             f"({self.start_id}) is not below vocab_size ({self.vocab_size})"),
            ("latent", self.latent is not None, "is not for encoder-decoders"),
            ("learned_sinks", self.learned_sinks, "is not for encoder-decoders: cross-attention has no sinks"),
            ("qk_norm", self.qk_norm != "none",
             "must be none: cross-attention does not normalise queries and keys"),
            ("parallel_block", self.parallel_block != "none", "leaves no place for cross-attention"),
            ("rope_scaling", self.rope_scaling is not None and self.rope_scaling.kind == "dynamic",
             "dynamic is not for encoder-decoders: what is written has no length to reckon with"),
            ("relative_buckets", buckets > 0 and self.positions != "none", "needs positions: none"),
            ("relative_buckets", buckets in (1, 2, 3) or buckets % 2 == 1, f"({buckets}) must be even and 4 or more"),
            ("relative_max_distance", buckets > 0 and self.relative_max_distance <= buckets // 2,
             f"({self.relative_max_distance}) must be above {buckets // 2}, half of relative_buckets"),
        ]  # fmt: skip
        for field, wrong, why in refused:
            if wrong:
                raise ValueError(f"{field} {why}")
        self.decoder_shape()
        return self

    def decoder_shape(self) -> ModelShape:
        """The decoder's half."""
        own = {name: getattr(self, name) for name in ModelShape.model_fields}
        return ModelShape(**own | {"num_layers": self.num_decoder_layers, "causal": True})

    def parameters_by_part(self, active: bool = False) -> dict[str, int]:
        """Parameters of the built `EncoderDecoder` by part: both halves together, one embedding and head, and
        `cross_attention` and `relative_bias` beside them."""
        encoder = ModelConfig(**{name: getattr(self, name) for name in ModelConfig.model_fields})
        decoder = ModelConfig(**self.decoder_shape().model_dump(), vocab_size=self.vocab_size)
        parts, other = (half.parameters_by_part(active) for half in (encoder, decoder))
        for part in ("positions", "attention", "feed_forward", "router", "norms"):
            if part in parts:
                parts[part] += other[part]
        width, kv_width = self.num_heads * self.head_dim, 2 * self.num_kv_heads * self.head_dim
        cross = self.hidden_size * (2 * width + kv_width)
        cross += (width + kv_width if self.qkv_bias else 0) + (self.hidden_size if self.output_bias else 0)
        norms = self.hidden_size * (2 if self.norm_bias else 1) * (2 if self.norm_position == "sandwich" else 1)
        parts["norms"] += self.num_decoder_layers * norms
        parts["cross_attention"] = self.num_decoder_layers * cross
        more = {"relative_bias": 2 * self.relative_buckets * self.num_heads}
        return parts | {part: number for part, number in more.items() if number}


@dataclass(frozen=True)
class Memory:
    """What was read, as the decoder looks at it: keys and values of each decoder block, `[B, S, K, D]`, which are the
    same for every token written. `mask_BS` is false at padding; None where there is none."""

    keys_values: list[tuple[Tensor, Tensor]]
    mask_BS: Tensor | None

    @property
    def attend(self) -> Attend:
        """The attention that leaves out padding."""
        mask = None if self.mask_BS is None else self.mask_BS[:, None, None]

        def attend(spec: AttentionSpec, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKE: Tensor) -> Tensor:
            return masked_attention(spec, q_BTHD, k_BTKD, v_BTKE, mask)

        return attend


class EncoderDecoder(nn.Module):
    """Reads one sequence and writes another. `model(input_ids, output_ids)` gives logits `[B, T, V]`.

    `mask_BS` is 0 at padding, on whichever side, and 1 elsewhere. Embedding and head serve both halves. Cross-attention
    has no positions.
    """

    def __init__(self, config: EncoderDecoderConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.encoder = Stack(config, self._relative_bias(bidirectional=True))
        self.decoder = Stack(config.decoder_shape(), self._relative_bias(bidirectional=False), CrossBlock)
        self.head = (
            None if config.tie_embeddings else nn.Linear(config.hidden_size, config.vocab_size, bias=config.head_bias)
        )

    def _relative_bias(self, bidirectional: bool) -> RelativeBias | None:
        config = self.config
        if not config.relative_buckets:
            return None
        return RelativeBias(config.relative_buckets, config.relative_max_distance, config.num_heads, bidirectional)

    def forward(self, input_ids_BS: Tensor, output_ids_BT: Tensor, mask_BS: Tensor | None = None) -> Tensor:
        """Logits `[B, T, V]` of the token after each one of the output, which begins with the start token
        (`config.start_id`)."""
        return self.logits(self.decode(output_ids_BT, self.read(input_ids_BS, mask_BS)))

    def read(self, input_ids_BS: Tensor, mask_BS: Tensor | None = None) -> Memory:
        """Encode the input and turn it into what the decoder looks at. GristmillError names a row of padding alone."""
        return self.memory(self.encode(input_ids_BS, mask_BS), mask_BS)

    def encode(self, input_ids_BS: Tensor, mask_BS: Tensor | None = None) -> Tensor:
        """The encoder's hidden states `[B, S, C]`; at padding they mean nothing."""
        positions_BS = text_positions(input_ids_BS, mask_BS)
        attend = causal_attention if mask_BS is None else TextAttention(mask_BS, positions_BS)
        return self.encoder.run(self._embed(input_ids_BS), positions_BS, attend)

    def memory(self, hidden_BSC: Tensor, mask_BS: Tensor | None = None) -> Memory:
        """Keys and values of encoded tokens, of any encoder of this width."""
        if hidden_BSC.shape[-1] != self.config.hidden_size:
            raise GristmillError(
                f"cross-attention reads states of width {self.config.hidden_size} (hidden_size), these are "
                f"{hidden_BSC.shape[-1]} wide"
            )
        if mask_BS is not None:
            mask_BS = mask_BS != 0
            if bool((empty := ~mask_BS.any(dim=1)).any()):
                raise GristmillError(f"row {int(empty.nonzero()[0])} has no token that the mask leaves visible")
        keys_values = []
        for block in self.decoder.blocks:
            assert isinstance(block, CrossBlock)
            keys_values.append(block.cross_attention.keys_values(hidden_BSC))
        return Memory(keys_values, mask_BS)

    def decode(
        self,
        output_ids_BT: Tensor,
        memory: Memory,
        positions_BT: Tensor | None = None,
        attend: Attend = causal_attention,
        cross_attend: Attend | None = None,
    ) -> Tensor:
        """The decoder's hidden states `[B, T, C]`. Positions count from 0 unless given; `attend` is the attention
        among written tokens, `cross_attend` that to the memory (which leaves out padding unless it is given)."""
        if positions_BT is None:
            positions_BT = torch.arange(output_ids_BT.shape[1], device=output_ids_BT.device)[None]
        cross = memory.attend if cross_attend is None else cross_attend
        per_block = [(keys_values, cross) for keys_values in memory.keys_values]
        return self.decoder.run(self._embed(output_ids_BT), positions_BT, attend, per_block)

    def logits(self, hidden: Tensor) -> Tensor:
        """The head applied to hidden states `[..., C]`: `[..., V]`."""
        weight, bias = (self.embedding.weight, None) if self.head is None else (self.head.weight, self.head.bias)
        return head_logits(hidden, weight, bias, self.config)

    @torch.inference_mode()
    def generate(
        self,
        input_ids_BS: Tensor,
        max_tokens: int,
        stop_ids: Collection[int] = (),
        mask_BS: Tensor | None = None,
    ) -> list[list[int]]:
        """The likeliest token again and again: for each row the ids behind the start token, up to `max_tokens` of
        them, the stop token included."""
        memory = self.read(input_ids_BS, mask_BS)
        cache = GrowingCache(self.config, len(input_ids_BS), max_tokens)
        last_B1 = torch.full((len(input_ids_BS), 1), self.config.start_id, device=input_ids_BS.device)
        written: list[list[int]] = [[] for _ in input_ids_BS]
        running = set(range(len(written)))
        for step in range(max_tokens):
            hidden_B1C = self.decode(last_B1, memory, torch.full_like(last_B1[:1], step), cache)
            cache.advance(1)
            last_B1 = self.logits(hidden_B1C).argmax(-1)
            for row, token in enumerate(last_B1[:, 0].tolist()):
                if row in running:
                    written[row].append(token)
                    if token in stop_ids:
                        running.remove(row)
            if not running:
                break
        return written

    def _embed(self, ids: Tensor) -> Tensor:
        return embed_tokens(self.embedding, ids, self.config.embedding_scale)

    def init_weights(self, seed: int, scheme: InitScheme = "gpt2") -> EncoderDecoder:
        """Draw all weights, see model/init.py: a seed gives the same weights on every device."""
        init_weights(self, scheme, seed)
        return self


class CrossBlock(Block):
    """A decoder's block with cross-attention between attention and feed-forward."""

    def __init__(self, shape: ModelShape, layer: int):
        super().__init__(shape, layer)
        self.cross_attention_norm = None if self.attention_norm is None else build_norm(shape)
        self.cross_attention = CrossAttention(shape, self.attention.spec)
        self.cross_attention_output_norm = None if self.attention_output_norm is None else build_norm(shape)

    def forward(  # type: ignore[override]
        self,
        x_BTC: Tensor,
        angles: dict[LayerKind, Rotation],
        attend: Attend,
        keys_values: tuple[Tensor, Tensor],
        cross_attend: Attend,
    ) -> Tensor:
        entered = self._enter(x_BTC, self.attention_norm)
        out = self.attention(entered, angles.get(self.kind), attend)
        x_BTC = self._add(x_BTC, out, self.attention_norm, self.attention_output_norm)
        out = self.cross_attention(self._enter(x_BTC, self.cross_attention_norm), keys_values, cross_attend)
        x_BTC = self._add(x_BTC, out, self.cross_attention_norm, self.cross_attention_output_norm)
        out = self.feed_forward(self._enter(x_BTC, self.feed_forward_norm))
        return self._add(x_BTC, out, self.feed_forward_norm, self.feed_forward_output_norm)


class CrossAttention(nn.Module):
    """Attention whose queries come from what is written, whose keys and values come from what was read."""

    def __init__(self, shape: ModelShape, spec: AttentionSpec):
        super().__init__()
        self.spec = replace(spec, causal=False, window=None, sink_tokens=0, alibi=False, bias=None)
        width, kv_width = shape.num_heads * shape.head_dim, 2 * shape.num_kv_heads * shape.head_dim
        self.q = nn.Linear(shape.hidden_size, width, bias=shape.qkv_bias)
        self.kv = nn.Linear(shape.hidden_size, kv_width, bias=shape.qkv_bias)
        self.output = nn.Linear(width, shape.hidden_size, bias=shape.output_bias)

    def keys_values(self, hidden_BSC: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `[B, S, K, D]` of what was read."""
        k_BSKD, v_BSKD = self.kv(hidden_BSC).unflatten(-1, (-1, self.spec.head_dim)).chunk(2, dim=2)
        return k_BSKD, v_BSKD

    def forward(self, x_BTC: Tensor, keys_values: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        q_BTHD = self.q(x_BTC).unflatten(-1, (-1, self.spec.head_dim))
        return self.output(attend(self.spec, q_BTHD, *keys_values).flatten(2))


class GrowingCache:
    """The `Attend` that keeps what was written: rows of equal length that grow together, up to `max_len` tokens."""

    def __init__(self, config: EncoderDecoderConfig, batch: int, max_len: int):
        self.layers: list[tuple[Tensor, Tensor] | None] = [None] * config.num_decoder_layers
        self.shape = (batch, max_len, config.num_kv_heads, config.head_dim)
        self.length = 0

    def __call__(self, spec: AttentionSpec, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKE: Tensor) -> Tensor:
        kept = self.layers[spec.layer]
        if kept is None:  # made by the first step, which knows type and device
            kept = self.layers[spec.layer] = k_BTKD.new_zeros(self.shape), v_BTKE.new_zeros(self.shape)
        end = self.length + k_BTKD.shape[1]
        for tensor, new in zip(kept, (k_BTKD, v_BTKE), strict=True):
            tensor[:, self.length : end] = new
        return masked_attention(spec, q_BTHD, kept[0][:, :end], kept[1][:, :end])

    def advance(self, tokens: int) -> None:
        """After all layers: the next call's tokens stand behind these."""
        self.length += tokens
