"""The kernel of `cross_entropy_`: a program a token, which reads its row of logits twice and writes it once.

The first pass keeps a running maximum and a sum rescaled to it (Milakov & Gimelshein 2018, "Online normalizer
calculation for softmax"), the second writes the gradient where the logits stood. A row (96 KiB at a vocabulary of
49,152 in bfloat16) is still in the GPU's L2 cache at its second reading, so memory sees one reading and one writing.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .cross_entropy import LogitShape
from .sizes import power_of_two

# Logits a program holds at a time, 8 a thread: 30 registers, so two programs of 1,024 threads fill a multiprocessor,
# and no more rows are under way (264 on an H100) than its L2 cache holds.
LONGEST_BLOCK = 8192


def cross_entropy_kernel(
    products_NV: Tensor,
    targets_N: Tensor,
    weights_N: Tensor,
    shape: LogitShape,
    z_loss: float = 0.0,
    learn: bool = True,
) -> tuple[Tensor, Tensor]:
    """`cross_entropy_` on a GPU."""
    count, vocab = products_NV.shape
    assert products_NV.stride(1) == 1, "a program reads a row of logits from end to end"
    sums = torch.empty(2, count, dtype=torch.float32, device=products_NV.device)
    if count == 0:
        return sums[0], sums[1]
    block = min(LONGEST_BLOCK, power_of_two(vocab))
    _cross_entropy[(count,)](
        products_NV,
        products_NV if shape.bias_V is None else shape.bias_V.contiguous(),
        targets_N.contiguous(),
        weights_N.contiguous(),
        sums,
        products_NV.stride(0),
        count,
        vocab,
        shape.scale,
        1.0 if shape.softcap is None else shape.softcap,
        z_loss,
        HAS_BIAS=shape.bias_V is not None,
        HAS_CAP=shape.softcap is not None,
        LEARN=learn,
        BLOCK=block,
        num_warps=max(block // 256, 4),
    )
    return sums[0], sums[1]


@triton.jit
def _logits(products, bias, at, vocab, scale, cap, HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr):  # type: ignore[no-untyped-def]
    """The logits at places `at`, -inf behind the vocabulary, and their tanh where there is a soft-cap."""
    inside = at < vocab
    x = tl.load(products + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        x += tl.load(bias + at, mask=inside, other=0.0).to(tl.float32)
    x *= scale
    bent = x
    if HAS_CAP:
        bent = 2 * tl.sigmoid(2 * x / cap) - 1
        x = cap * bent
    return tl.where(inside, x, float("-inf")), bent


@triton.jit
def _cross_entropy(  # type: ignore[no-untyped-def]
    products,
    bias,
    targets,
    weights,
    sums,
    stride,
    count,
    vocab,
    scale,
    cap,
    z_loss,
    HAS_BIAS: tl.constexpr,
    HAS_CAP: tl.constexpr,
    LEARN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    products += row * stride
    weight = tl.load(weights + row).to(tl.float32)
    target = tl.load(targets + row)
    places = tl.arange(0, BLOCK)
    if weight == 0.0:
        tl.store(sums + row, 0.0)
        tl.store(sums + count + row, 0.0)
        if LEARN:
            for start in range(0, vocab, BLOCK):
                at = start + places
                tl.store(products + at, tl.zeros([BLOCK], products.dtype.element_ty), mask=at < vocab)
        return
    # Read before the reductions below, which every thread waits in: the second pass overwrites it.
    chosen, _chosen_bent = _logits(products, bias, target, vocab, scale, cap, HAS_BIAS, HAS_CAP)

    highest = float("-inf")
    total = 0.0
    for start in range(0, vocab, BLOCK):
        x, bent = _logits(products, bias, start + places, vocab, scale, cap, HAS_BIAS, HAS_CAP)
        higher = tl.maximum(highest, tl.max(x, 0))
        total = total * tl.exp(highest - higher) + tl.sum(tl.exp(x - higher), 0)
        highest = higher
    log_norm = highest + tl.log(total)
    square = z_loss * log_norm * log_norm * weight
    tl.store(sums + row, (log_norm - chosen) * weight + square)
    tl.store(sums + count + row, square)

    if LEARN:
        steepness = weight * (1 + 2 * z_loss * log_norm)
        for start in range(0, vocab, BLOCK):
            at = start + places
            x, bent = _logits(products, bias, at, vocab, scale, cap, HAS_BIAS, HAS_CAP)
            grad = tl.exp(x - log_norm) * steepness - tl.where(at == target, weight, 0.0)
            if HAS_CAP:
                grad *= 1 - bent * bent
            tl.store(products + at, (grad * scale).to(products.dtype.element_ty), mask=at < vocab)
