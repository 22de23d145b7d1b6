"""Attention over the paged cache: the last tokens of many sequences, each over all that its sequence holds.

A step is a row of queries without padding: some of each sequence, side by side, the last of its cached tokens, whose
keys are already written. On a GPU two kernels share the work: sequences that decode (one token, or a few where drafts
are checked) have their keys divided among programs (paged_decode_triton.py), the others, parts of prompts, their
queries (paged_prefill_triton.py). Elsewhere plain torch does it (paged_reference.py), which is also what the kernels
are tested against. Inference only.

A query's result depends on its sequence alone, bit for bit, whatever else is in the step, as long as the sequence is
on the same side of `num_decoding` and `max_count` is the same.

Shape suffixes: N queries of the step, B sequences, S slots, M blocks of a sequence, H query heads, K key/value heads,
D key width, E value width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .available import has_triton
from .rope_kv import PagedLayer, store

if TYPE_CHECKING:
    from .paged_decode_triton import DecodeSpace


@dataclass(frozen=True, eq=False)
class Scores:
    """How scores are made from products of queries and keys, in this order: times `scale`, soft-capped, less
    `alibi_slopes_H` (float32) a token of distance, masked. `causal` hides later keys, `window` those that are as far
    away or further, but for the first `sink_tokens` of the sequence. `sinks_H` is one more score whose value is zero.
    """

    scale: float
    causal: bool = True
    window: int | None = None
    sink_tokens: int = 0
    softcap: float | None = None
    alibi_slopes_H: Tensor | None = None
    sinks_H: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Scaled products, masked, and nothing else."""
        return self.softcap is None and self.alibi_slopes_H is None and self.sinks_H is None


@dataclass(frozen=True, eq=False)
class PagedBatch:
    """Whose the queries of a step are.

    Sequence b has row `slots_B[b]` of the block table, queries `offsets[b]` to `offsets[b + 1]`, and `lengths_B[b]`
    cached tokens, its queries the last of them. All three are int32 and on the device, where a CUDA graph reads them
    anew at each replay: a batch is made for one step, or within one recording, and keeps what layers share of it
    (`plans`). A sequence of length 0 pads a batch; its queries get zeros. Queries behind the last sequence's, which
    fill a step up, get nothing: on a GPU what stood in memory. The first `num_decoding` sequences
    have at most `max_count` queries each. `gathered`: plain torch copies keys that lie side by side too, so that a
    result does not depend, by a last bit, on which blocks a sequence holds.
    """

    slots_B: Tensor
    offsets: Tensor
    lengths_B: Tensor
    num_decoding: int
    max_count: int = 1
    gathered: bool = False

    @classmethod
    def of(
        cls,
        slots: Sequence[int],
        counts: Sequence[int],
        lengths: Sequence[int],
        device: torch.device | str = "cpu",
        num_decoding: int | None = None,
    ) -> PagedBatch:
        """From lists; `num_decoding` is otherwise the number of sequences of one query that come first."""
        if num_decoding is None:
            num_decoding = next((at for at, count in enumerate(counts) if count != 1), len(counts))
        sequences = len(slots)
        packed = torch.tensor([*slots, *lengths, 0, *accumulate(counts)], dtype=torch.int32)
        if torch.device(device).type == "cuda":
            packed = packed.pin_memory()  # the GPU fetches it, and the host does not wait
        slots_B, lengths_B, offsets = packed.to(device, non_blocking=True).split([sequences, sequences, sequences + 1])
        return cls(slots_B, offsets, lengths_B, num_decoding, max(counts[:num_decoding], default=1))

    @cached_property
    def on_host(self) -> tuple[list[int], list[int], list[int]]:
        """Slots, offsets and lengths; waits for the device."""
        return self.slots_B.tolist(), self.offsets.tolist(), self.lengths_B.tolist()

    @cached_property
    def plans(self) -> dict[tuple[object, ...], Any]:
        """What has been worked out about this step and is the same for most layers."""
        return {}


def paged_attention(
    q_NHD: Tensor, layer: PagedLayer, batch: PagedBatch, scores: Scores, space: DecodeSpace | None = None
) -> Tensor:
    """Attention of each query over its sequence, `[N, H, E]` in the type of the queries.

    Values that lie in the keys (latent attention) are a view of them, `keys[..., :E]`, which the kernels read once.
    Keys and values in fp8 or int8 are multiplied with `layer`'s scales. `space` is what the decoding kernel works in
    (`decode_space`); an engine makes it once, so that a call neither takes memory nor clears any.
    """
    if q_NHD.is_cuda and has_triton():
        return _on_gpu(q_NHD, layer, batch, scores, space)
    from .paged_reference import paged_attention_reference

    return paged_attention_reference(q_NHD, layer, batch, scores)


def _on_gpu(q_NHD: Tensor, layer: PagedLayer, batch: PagedBatch, scores: Scores, space: DecodeSpace | None) -> Tensor:
    from .paged_decode_triton import paged_decode_kernel
    from .paged_prefill_triton import paged_prefill_kernel

    out_NHE = q_NHD.new_empty(*q_NHD.shape[:2], layer.values.shape[-1])
    if batch.num_decoding > 0:
        paged_decode_kernel(out_NHE, q_NHD, layer, batch, scores, space)
    if batch.num_decoding < batch.slots_B.shape[0]:
        paged_prefill_kernel(out_NHE, q_NHD, layer, batch, scores)
    return out_NHE


def values_in_keys(layer: PagedLayer) -> bool:
    """Whether the values are the first channels of the keys."""
    return layer.keys.data_ptr() == layer.values.data_ptr()


def value_scales(layer: PagedLayer) -> Tensor | None:
    """The scales of the values, which are the keys' where values lie in them."""
    return layer.key_scales if values_in_keys(layer) else layer.value_scales


def write_kv(layer: PagedLayer, places_N: Tensor, k_NKD: Tensor, v_NKE: Tensor) -> None:
    """Keys and values of a step's tokens into the cache, in plain torch; `places_N` is block * block_size + offset.

    A cache of fp8 or int8 gets codes, and a scale for each token and head. Values in keys are not written again.
    """
    store(layer.keys, layer.key_scales, places_N, k_NKD)
    if not values_in_keys(layer):
        store(layer.values, layer.value_scales, places_N, v_NKE)
