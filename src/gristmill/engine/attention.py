"""Attention over the paged cache as the model calls it: a step's keys and values are written, then its queries look at
what their sequences hold.

Shape suffixes: N tokens of the step, B batch (1), T time (N), H query heads, K key/value heads, D key width, E value
width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..kernels.paged_attention import PagedBatch, Scores, paged_attention, write_kv
from ..kernels.rope_kv import PagedLayer
from ..model.attention import AttentionSpec, alibi_slopes


class PagedAttention:
    """The `Attend` of one step, whose tokens are the one row that the model gets. `places_N` is where each token stands
    in the cache: block * block_size + offset."""

    latent = True

    def __init__(self, layers: Sequence[PagedLayer], batch: PagedBatch, places_N: Tensor):
        self.layers, self.batch, self.places_N = layers, batch, places_N

    def __call__(self, spec: AttentionSpec, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKE: Tensor) -> Tensor:
        layer = layer_of(spec, self.layers)
        write_kv(layer, self.places_N, k_BTKD[0], v_BTKE[0])
        return self.attend(spec, q_BTHD[0], layer)[None]

    def attend(self, spec: AttentionSpec, q_NHD: Tensor, layer: PagedLayer) -> Tensor:
        """What is written already, `[N, H, E]`."""
        return paged_attention(q_NHD, layer, self.batch, scores_of(spec, q_NHD.device))


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
