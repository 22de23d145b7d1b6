"""Attention for training: the fastest way to what `DocumentAttention` and `causal_attention` compute.

On a GPU nothing here is of the size of time x time, and nothing waits for the device: where documents begin is read on
the host, from the batch that was made there. Half precision and plain scores, windows too, run in FlashAttention's
kernels for sequences of several lengths (Dao 2023); soft-caps, ALiBi and float32 in FlexAttention (Dong et al. 2024),
which skips blocks that no pair of a document falls into. The rest (learned sinks, T5's bias) is masked.

Shape suffixes: B batch, T time, N = B * T tokens, H query heads, K key/value heads, D key width, E value width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from ..model.attention import Attend, AttentionSpec, DocumentAttention, alibi_slopes, causal_attention
from ..model.autocast import autocast_dtype

# Measured on a processor: calling attention for one more document costs as much as this many masked pairs.
PAIRS_OF_A_CALL = 4096
BLOCK = 128  # places; what FlexAttention skips, or does not
# On Hopper cuDNN's kernels are the fastest, then FlashAttention's; each says itself what it cannot do.
FASTEST_FIRST = (
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
)


def document_attention(
    segments_BT: Tensor, device: torch.device, specs: Iterable[AttentionSpec] = ()
) -> PackedAttention:
    """Attention inside documents, for rows that pack several. `segments_BT`, on the CPU, numbers the document of each
    token; a document is a run of one number. `specs` are those that the attention will be called with
    (`attention_specs`): what they need is prepared here, outside of what a compiler sees."""
    return PackedAttention(segments_BT, device, specs)


def training_attention(shape: torch.Size, device: torch.device, specs: Iterable[AttentionSpec] = ()) -> Attend:
    """Attention inside rows of that shape, `(B, T)`, each of which is one document."""
    specs = tuple(specs)
    if device.type != "cuda" or all(_is_simple(spec, shape[1]) for spec in specs):
        return whole_rows
    return PackedAttention(torch.zeros(shape, dtype=torch.int64), device, specs, one_a_row=True)


def whole_rows(spec: AttentionSpec, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKE: Tensor) -> Tensor:
    """`causal_attention` that prefers the fastest kernels of a GPU."""
    if not q_BTHD.is_cuda:
        return causal_attention(spec, q_BTHD, k_BTKD, v_BTKE)
    with sdpa_kernel(list(FASTEST_FIRST), set_priority=True):
        return causal_attention(spec, q_BTHD, k_BTKD, v_BTKE)


def attention_specs(model: nn.Module) -> tuple[AttentionSpec, ...]:
    """How the blocks of a `Decoder` or an `Encoder` attend."""
    blocks: Any = model.blocks
    return tuple(block.attention.spec for block in blocks)


class PackedAttention(DocumentAttention):
    """`DocumentAttention` whose documents are runs of one number, known on the host.

    `starts` `[documents + 1]`: where each begins in the batch's tokens, row after row, and where the last one ends.
    """

    def __init__(
        self, segments_BT: Tensor, device: torch.device, specs: Iterable[AttentionSpec] = (), one_a_row: bool = False
    ):
        # By runs: masks compare numbers, and one may come twice in a row.
        super().__init__(_new_runs(segments_BT).cumsum(1).to(device, non_blocking=True))
        self.time = segments_BT.shape[1]
        self.one_a_row = one_a_row
        self.starts = document_starts(segments_BT)
        self.lengths: list[int] = self.starts.diff().tolist()
        self.places()
        self._block_masks: dict[tuple[bool, int | None, int], BlockMask] = {}
        if device.type == "cuda":
            # As large for every batch, and lengths in a tensor on the host: so a compiler sees nothing change.
            tokens = segments_BT.numel()
            self.offsets = torch.full((tokens + 1,), tokens, dtype=torch.int32, device=device)
            self.offsets[: len(self.starts)].copy_(self.starts.int(), non_blocking=True)
            self.extent = torch.tensor([len(self.lengths), max(self.lengths)])
            dtype = autocast_dtype("cuda") or torch.float32
            for spec in specs:
                if _fits_flex(spec) and not fits_flash(spec, dtype):
                    self._prepare(spec)

    def __call__(self, spec: AttentionSpec, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKE: Tensor) -> Tensor:
        if q_BTHD.device.type == "cpu":
            return self._on_cpu(spec, q_BTHD, k_BTKD, v_BTKE)
        if not q_BTHD.is_cuda:
            return super().__call__(spec, q_BTHD, k_BTKD, v_BTKE)
        if self.one_a_row and _is_simple(spec, self.time):
            return whole_rows(spec, q_BTHD, k_BTKD, v_BTKE)
        if (dtype := autocast_dtype("cuda")) is not None:
            q_BTHD, k_BTKD, v_BTKE = q_BTHD.to(dtype), k_BTKD.to(dtype), v_BTKE.to(dtype)
        if fits_flash(spec, q_BTHD.dtype):
            return packed_flash(spec, q_BTHD, k_BTKD, v_BTKE, self.offsets, self.extent)
        if _fits_flex(spec):
            return self._flex(spec, q_BTHD, k_BTKD, v_BTKE)
        return super().__call__(spec, q_BTHD, k_BTKD, v_BTKE)

    def _on_cpu(self, spec: AttentionSpec, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKE: Tensor) -> Tensor:
        """A call a document, or a mask where documents are many and rows short, and where a compiler would make a
        program for every division into documents."""
        if torch.compiler.is_compiling():
            return super().__call__(spec, q_BTHD, k_BTKD, v_BTKE)
        pairs = self.time * q_BTHD.shape[:2].numel()
        if pairs - sum(length**2 for length in self.lengths) < PAIRS_OF_A_CALL * len(self.lengths):
            return super().__call__(spec, q_BTHD, k_BTKD, v_BTKE)
        # `split`, whose backward pass puts all parts together at once; slices would each fill the whole with zeros.
        documents = (x.flatten(0, 1).split(self.lengths) for x in (q_BTHD, k_BTKD, v_BTKE))
        out = [causal_attention(spec, q[None], k[None], v[None])[0] for q, k, v in zip(*documents, strict=True)]
        return torch.cat(out).unflatten(0, q_BTHD.shape[:2])

    def _flex(self, spec: AttentionSpec, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKE: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q_BTHD, k_BTKD, v_BTKE))
        # Inside a compiled model it becomes a kernel anyway.
        attention: Any = flex_attention if torch.compiler.is_compiling() else _compiled_flex_attention()
        out = attention(q, k, v, score_mod(spec, q.device), self._prepare(spec), spec.scale, q.shape[1] != k.shape[1])
        return out.transpose(1, 2)

    def _prepare(self, spec: AttentionSpec) -> BlockMask:
        """FlexAttention's mask for a spec."""
        key = (spec.causal, spec.window, spec.sink_tokens)
        if key not in self._block_masks:
            self._block_masks[key] = block_mask(self, spec)
        return self._block_masks[key]


def document_starts(segments_BT: Tensor) -> Tensor:
    """Where the runs of one number begin in the rows laid end to end, and where the last one ends: int64
    `[documents + 1]`. A run ends with its row."""
    return torch.cat((_new_runs(segments_BT).flatten().nonzero()[:, 0], torch.tensor([segments_BT.numel()])))


def _new_runs(segments_BT: Tensor) -> Tensor:
    """True where a run begins, `[B, T]`."""
    new_BT = torch.ones_like(segments_BT, dtype=torch.bool)
    new_BT[:, 1:] = segments_BT[:, 1:] != segments_BT[:, :-1]
    return new_BT


def _is_simple(spec: AttentionSpec, time: int) -> bool:
    return spec.plain and (spec.window is None or spec.window >= time)


def fits_flash(spec: AttentionSpec, dtype: torch.dtype) -> bool:
    """Whether FlashAttention's kernels compute it."""
    half = dtype in (torch.bfloat16, torch.float16)
    shaped = spec.head_dim == spec.value_dim and spec.head_dim % 8 == 0 and spec.head_dim <= 256
    return half and shaped and spec.plain and not (spec.window is not None and spec.sink_tokens)


def _fits_flex(spec: AttentionSpec) -> bool:
    return spec.sinks is None and spec.bias is None


def packed_flash(
    spec: AttentionSpec, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKE: Tensor, offsets: Tensor, extent: Tensor
) -> Tensor:
    """Attention inside the documents that begin at `offsets`, int32 `[N + 1]` on the device, of which the first
    extent[0] + 1 count; extent[1] is the longest document. `extent` lies on the host."""
    near = -1 if spec.window is None else spec.window - 1
    far = 0 if spec.causal else near
    q, k, v = (x.flatten(0, 1) for x in (q_BTHD, k_BTKD, v_BTKE))
    out, _ = _packed_flash(q, k, v, offsets, extent, spec.scale, near, far)
    return out.unflatten(0, q_BTHD.shape[:2])


# Operators of their own, so that a compiled model holds one call whatever documents a batch has: their number and the
# longest are read inside. torch.nn.attention.varlen is the same two operators behind a signature that changed in three
# versions of torch in a row.
@torch.library.custom_op("gristmill::packed_flash", mutates_args=())
def _packed_flash(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, extent: Tensor, scale: float, near: int, far: int
) -> tuple[Tensor, Tensor]:
    documents, longest = extent.tolist()
    starts = offsets[: documents + 1]
    causal = (near, far) == (-1, 0)
    out, log_sums, *_ = torch.ops.aten._flash_attention_forward(
        q, k, v, starts, starts, longest, longest, 0.0, causal, False,
        scale=scale, window_size_left=near, window_size_right=far,
    )  # fmt: skip
    return out, log_sums


@_packed_flash.register_fake
def _(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)


@torch.library.custom_op("gristmill::packed_flash_backward", mutates_args=())
def _packed_flash_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    log_sums: Tensor,
    offsets: Tensor,
    extent: Tensor,
    scale: float,
    near: int,
    far: int,
) -> tuple[Tensor, Tensor, Tensor]:
    documents, longest = extent.tolist()
    starts = offsets[: documents + 1]
    causal = (near, far) == (-1, 0)
    state = torch.zeros(2, dtype=torch.uint64, device=q.device)  # of dropout, which there is none of
    unused = torch.empty(0, device=q.device)
    grads: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._flash_attention_backward(
        grad.contiguous(), q, k, v, out, log_sums, starts, starts, longest, longest, 0.0, causal, state, unused,
        scale=scale, window_size_left=near, window_size_right=far,
    )  # fmt: skip
    return grads


@_packed_flash_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.scale, ctx.near, ctx.far = inputs
    q, k, v, offsets, extent = tensors
    ctx.save_for_backward(q, k, v, *output, offsets, extent)


def _go_back(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    found = _packed_flash_backward(grads[0], *ctx.saved_tensors, ctx.scale, ctx.near, ctx.far)
    return *found, None, None, None, None, None


_packed_flash.register_autograd(_go_back, setup_context=_keep)


@cache
def _compiled_flex_attention() -> Callable[..., Any]:
    """FlexAttention is a kernel only when compiled."""
    return torch.compile(flex_attention)


def score_mod(spec: AttentionSpec, device: torch.device) -> Callable[..., Tensor] | None:
    """What FlexAttention does to a scaled score: soft-cap, then ALiBi, as in `attention_weights`."""
    cap = spec.softcap
    slopes = alibi_slopes(spec.num_heads, device) if spec.alibi else None
    if cap is None and slopes is None:
        return None

    def changed(score: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        if cap is not None:
            score = cap * torch.tanh(score / cap)
        if slopes is not None:
            score = score - slopes[head] * (query - key).abs()
        return score

    return changed


def block_mask(packed: PackedAttention, spec: AttentionSpec) -> BlockMask:
    """FlexAttention's `BlockMask` of documents, causality and window. Which blocks a block of queries meets is reckoned
    on the host: those from the start of its first token's document to itself, or to the end of its last one's."""
    segments_BT, places_BT = packed.segments_BT, packed.places()
    causal, window, sinks = spec.causal, spec.window, spec.sink_tokens

    def visible(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = segments_BT[row, query] == segments_BT[row, key]
        if causal:
            seen = seen & (query >= key)
        if window is not None:
            near = query - key < window
            if not causal:
                near = near & (key - query < window)
            if sinks:
                near = near | (places_BT[row, key] < sinks)
            seen = seen & near
        return seen

    counts, indices = _met_blocks(packed, spec)
    device = segments_BT.device
    counts, indices = (x[:, None].to(device, non_blocking=True) for x in (counts, indices))
    lengths = (packed.time, packed.time)
    return BlockMask.from_kv_blocks(counts, indices, BLOCK_SIZE=BLOCK, mask_mod=visible, seq_lengths=lengths)


def _met_blocks(packed: PackedAttention, spec: AttentionSpec) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries meets and which, int32 `[B, blocks]` and `[B, blocks, blocks]`; on
    the host."""
    time, rows = packed.time, packed.segments_BT.shape[0]
    lengths = packed.starts.diff()
    starts = packed.starts[:-1].repeat_interleave(lengths)
    ends = (packed.starts[1:] - 1).repeat_interleave(lengths)
    first_query = torch.arange(0, time, BLOCK)
    last_query = (first_query + BLOCK - 1).clamp(max=time - 1)
    row_at = torch.arange(rows)[:, None] * time
    first_key = starts[row_at + first_query] - row_at
    last_key = last_query.expand_as(first_key) if spec.causal else ends[row_at + last_query] - row_at
    if spec.window is not None and not spec.sink_tokens:
        first_key = first_key.maximum(first_query - spec.window + 1)
        last_key = last_key.minimum(last_query + spec.window - 1)
    first_block = first_key // BLOCK
    counts = last_key // BLOCK - first_block + 1
    blocks = len(first_query)
    indices = (first_block[..., None] + torch.arange(blocks)).clamp(max=blocks - 1)
    return counts.int(), indices.int()


PACKED_FLASH = torch.ops.gristmill.packed_flash  # as a compiler and activation checkpointing see it
