"""A stack of blocks from embedded tokens to hidden states, positions included: what an encoder is, and both halves of
an encoder-decoder.

Shape suffixes: B batch, T time, C hidden_size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from .attention import Attend
from .config import ModelShape
from .decoder import Block
from .embedding import add_positions
from .norms import build_norm
from .positions import rotations
from .relative import RelativeBias


class Stack(nn.Module):
    """Blocks with their positions before them and their final norm behind. Parameters have the names they have in a
    `Decoder`.

    `relative_bias` is what all blocks add to their scores, if there is one; `block` makes the blocks.
    """

    def __init__(
        self,
        shape: ModelShape,
        relative_bias: RelativeBias | None = None,
        block: Callable[[ModelShape, int], Block] = Block,
    ):
        super().__init__()
        self.shape = shape
        learned = shape.positions == "learned"
        self.position_embedding = nn.Embedding(shape.max_seq_len, shape.hidden_size) if learned else None
        self.embedding_norm = build_norm(shape) if shape.embedding_norm else None
        blocks = [block(shape, layer) for layer in range(shape.num_layers)]
        if relative_bias is not None:
            for one in blocks:
                one.attention.spec = replace(one.attention.spec, bias=relative_bias)
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.Identity() if shape.norm_position == "post" else build_norm(shape)
        self.relative_bias = relative_bias

    def run(
        self, x_BTC: Tensor, positions_BT: Tensor, attend: Attend, per_block: Sequence[Sequence[Any]] = ()
    ) -> Tensor:
        """Hidden states `[B, T, C]` of embedded tokens. `per_block` holds further arguments, a sequence a block.

        `positions_BT` may be `[1, T]`. GristmillError where one lies beyond the learned positions.
        """
        x_BTC = add_positions(self.shape, x_BTC, positions_BT, self.position_embedding)
        x_BTC = x_BTC if self.embedding_norm is None else self.embedding_norm(x_BTC)
        angles = rotations(self.shape, positions_BT, x_BTC.dtype)
        for block, others in zip(self.blocks, per_block or [()] * len(self.blocks), strict=True):
            x_BTC = block(x_BTC, angles, attend, *others)
        return self.norm(x_BTC)
