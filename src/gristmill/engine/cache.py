"""Keys and values of all sequences, in blocks that any sequence can hold.

A block is `block_size` tokens of one sequence, or the beginning of several that is the same. Which blocks a sequence
holds, in order, stands in its row of the block table (engine/blocks.py gives them out). So memory is taken as sequences
grow, and at most one block a sequence is partly empty.

Shape suffixes: K key/value heads, D key width, E value width, S slots, M blocks of a sequence.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

from ..kernels.rope_kv import PagedLayer
from ..model.config import ModelConfig
from .config import CacheType, EngineConfig
from .sending import on_its_way

STORED = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}
SCALE_BYTES = 4  # of a key or value of one token and head that is stored in 8 bits


class PagedCache:
    """`layers`, one for each block of the model, all with the one block table `table_SM`. Latent attention keeps keys
    alone: its values lie inside them."""

    def __init__(self, model: ModelConfig, config: EngineConfig, dtype: torch.dtype, device: torch.device):
        heads, key_dim, value_dim = model.cache_shape
        kind = STORED.get(config.kv_dtype, dtype)
        blocks = config.num_blocks, config.block_size, heads
        # A row more than there are sequences: the idle one's, which fills up batches of fixed sizes.
        self.table_SM = torch.zeros(
            config.max_num_seqs + 1, config.max_blocks_per_seq, dtype=torch.int32, device=device
        )
        self.layers: list[PagedLayer] = []
        for _ in range(model.num_layers):
            keys, values = (_zeros((*blocks, width), kind, device) for width in (key_dim, value_dim))
            scales = [_zeros(blocks, torch.float32, device) if kind != dtype else None for _ in range(2)]
            self.layers.append(PagedLayer(keys, values, self.table_SM, *scales))

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy blocks, each from the first of a pair to the second; all are read before any is written."""
        sources, targets = on_its_way(pairs, torch.int64, self.table_SM.device).unbind(1)
        for layer in self.layers:
            for tensor in (layer.keys, layer.values, layer.key_scales, layer.value_scales):
                if tensor is not None:
                    moved = tensor.view(torch.uint8) if tensor.dtype.itemsize == 1 else tensor
                    moved[targets] = moved[sources]

    @staticmethod
    def bytes_per_block(model: ModelConfig, block_size: int, dtype: torch.dtype, kind: CacheType = "auto") -> int:
        heads, key_dim, value_dim = model.cache_shape
        stored = STORED.get(kind, dtype)
        scales = 2 * SCALE_BYTES if stored != dtype else 0
        return model.num_layers * block_size * heads * ((key_dim + value_dim) * stored.itemsize + scales)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros that take memory only once they are written, page by page: torch's own are written at once, and numpy's
    come in pages so large that a block's first token clears many blocks' room."""
    if device.type != "cpu" or 0 in shape:
        return torch.zeros(shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize)
    return torch.frombuffer(memory, dtype=torch.uint8).view(dtype).view(shape)
