"""Attention over the paged cache as the model calls it: a step's keys and values are written, then its queries look at
what their sequences hold.

Shape suffixes: N tokens of the step, B batch (1), T time (N), H query heads, K key/value heads, D key width, E value
width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..kernels.available import has_triton
from ..kernels.paged_attention import PagedBatch, Scores, paged_attention, write_kv
from ..kernels.rope_kv import PagedLayer
from ..model.attention import AttentionSpec, alibi_slopes

if TYPE_CHECKING:
    from ..kernels.paged_decode_triton import DecodeSpace

MOST_ROWS = 512  # tokens that `InvariantAttention` looks at in one call: what the space for their parts is made for


class PagedAttention:
    """The `Attend` of one step, whose tokens are the one row that the model gets. `places_N` is where each token stands
    in the cache: block * block_size + offset; None where keys and values are written by another kernel."""

    latent = True

    def __init__(self, layers: Sequence[PagedLayer], batch: PagedBatch, places_N: Tensor | None = None):
        self.layers, self.batch, self.places_N = layers, batch, places_N
        self._space: DecodeSpace | None = None  # the layers use it one after the other

    def __call__(self, spec: AttentionSpec, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKE: Tensor) -> Tensor:
        layer = layer_of(spec, self.layers)
        assert self.places_N is not None
        write_kv(layer, self.places_N, k_BTKD[0], v_BTKE[0])
        return self.attend(spec, q_BTHD[0], layer)[None]

    def attend(self, spec: AttentionSpec, q_NHD: Tensor, layer: PagedLayer) -> Tensor:
        """What is written already, `[N, H, E]`."""
        if self._space is None and self.batch.num_decoding:
            self._space = _space(self.batch.num_decoding, q_NHD, layer, self.batch.max_count)
        return paged_attention(q_NHD, layer, self.batch, scores_of(spec, q_NHD.device), self._space)


class InvariantAttention:
    """`PagedAttention.attend` whose result for a token depends on nothing but the tokens before it: not on how a prompt
    is cut into steps, and on a GPU not on who else is in them. Every token is a sequence of its own to the decoding
    kernel, which shares out keys by their number alone; that reads a prompt's keys once for each of its tokens.

    `slots_N` (int32) and `positions_N` are each token's; a negative position pads.
    """

    def __init__(self, slots_N: Tensor, positions_N: Tensor):
        self._batches = []
        for start in range(0, len(slots_N), MOST_ROWS):
            part = slice(start, start + MOST_ROWS)
            slots_B, lengths_B = slots_N[part].contiguous(), (positions_N[part] + 1).int()
            offsets = torch.arange(len(slots_B) + 1, dtype=torch.int32, device=slots_N.device)
            self._batches.append((part, PagedBatch(slots_B, offsets, lengths_B, len(slots_B), gathered=True)))
        self._space: DecodeSpace | None = None

    def attend(self, spec: AttentionSpec, q_NHD: Tensor, layer: PagedLayer) -> Tensor:
        if self._space is None:
            self._space = _space(min(len(q_NHD), MOST_ROWS), q_NHD, layer)
        scores = scores_of(spec, q_NHD.device)
        return torch.cat(
            [paged_attention(q_NHD[part], layer, batch, scores, self._space) for part, batch in self._batches]
        )


def _space(sequences: int, q_NHD: Tensor, layer: PagedLayer, max_count: int = 1) -> DecodeSpace | None:
    """What the decoding kernel works in, for all layers of a step; None where there is no kernel."""
    if not (q_NHD.is_cuda and has_triton()):
        return None
    from ..kernels.paged_decode_triton import decode_space

    return decode_space(sequences, q_NHD.shape[1], layer, max_count)


def layer_of(spec: AttentionSpec, layers: Sequence[PagedLayer]) -> PagedLayer:
    """A block's layer of the cache; of latent attention, whose values lie in its keys, with these as a view."""
    layer = layers[spec.layer]
    return layer._replace(values=layer.keys[..., : spec.value_dim]) if spec.values_in_keys else layer


def scores_of(spec: AttentionSpec, device: torch.device) -> Scores:
    assert spec.bias is None, "biases by distance belong to encoder-decoders, which the engine does not run"
    return Scores(
        scale=spec.scale,
        causal=spec.causal,
        window=spec.window,
        sink_tokens=spec.sink_tokens,
        softcap=spec.softcap,
        alibi_slopes_H=alibi_slopes(spec.num_heads, device) if spec.alibi else None,
        sinks_H=spec.sinks,
    )
