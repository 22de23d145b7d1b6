"""T5's relative position bias: a learned number per head and bucket of distances, added to the scores.

Raffel et al. 2020, section 2.1. A stack of blocks shares one table.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class RelativeBias(nn.Module):
    """The bias of one stack: `bias(query_at, key_at)` is the `AttentionSpec.bias` of all its blocks.

    `bidirectional`: keys behind and before the query have buckets of their own, half of them each (encoders);
    otherwise keys before the query are all that count (decoders).
    """

    def __init__(self, num_buckets: int, max_distance: int, num_heads: int, bidirectional: bool):
        super().__init__()
        self.num_buckets, self.max_distance, self.bidirectional = num_buckets, max_distance, bidirectional
        self.weight = nn.Parameter(torch.zeros(num_buckets, num_heads))

    def forward(self, query_at: Tensor, key_at: Tensor) -> Tensor:
        """What is added to the scores, `[H, T, S]` for positions `[T]` and `[S]`, with a batch in front where they
        have one."""
        distance = key_at[..., None, :] - query_at[..., :, None]
        buckets = relative_buckets(distance, self.num_buckets, self.max_distance, self.bidirectional)
        return self.weight[buckets].movedim(-1, -3)


def relative_buckets(distance: Tensor, num_buckets: int, max_distance: int, bidirectional: bool) -> Tensor:
    """The bucket of each distance (key minus query position), of the same shape.

    The nearer half of the buckets hold one distance each; the others grow in logarithmic steps up to `max_distance`,
    from where on all distances share the last. Bidirectional: the upper half of the buckets is for keys after the
    query.
    """
    side: Tensor | int = 0
    if bidirectional:
        num_buckets //= 2
        side = (distance > 0).long() * num_buckets
        distance = distance.abs()
    else:
        distance = (-distance).clamp(min=0)
    exact = num_buckets // 2
    # float32 and this order of operations, as published models were trained: a border case falls on the same side.
    steps = torch.log(distance.float().clamp(min=1) / exact) / math.log(max_distance / exact) * (num_buckets - exact)
    far = (exact + steps.long()).clamp(max=num_buckets - 1)
    return side + torch.where(distance < exact, distance, far)
