"""From token ids to what the first block takes: rows of a table, scaled, with learned or sinusoidal positions in them.

Shape suffixes: B batch, T time, C hidden_size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import GristmillError
from .autocast import autocast_dtype
from .config import ModelShape
from .positions import sinusoidal


def embed_tokens(table: nn.Embedding, input_ids_BT: Tensor, scale: float) -> Tensor:
    """Rows of the embedding table `[B, T, C]`, times `scale` in the table's type.

    Under autocast to bfloat16 they come in that type, and with them the residual stream: in float32 every sum and norm
    would move twice the bytes. float16 has too short a range for it.
    """
    x_BTC: Tensor = table(input_ids_BT)
    if scale != 1.0:
        x_BTC = x_BTC * torch.full((), scale, dtype=x_BTC.dtype, device=x_BTC.device)
    if autocast_dtype(x_BTC.device.type) == torch.bfloat16:
        return x_BTC.to(torch.bfloat16)
    return x_BTC


def add_positions(shape: ModelShape, x_BTC: Tensor, positions_BT: Tensor, learned: nn.Embedding | None) -> Tensor:
    """Embedded tokens with their positions, where `shape` adds any; `positions_BT` may be `[1, T]`.

    GristmillError where one lies beyond the learned positions."""
    if learned is not None:
        # Looked up where it costs no wait, and where a row is too long by itself; no compiler can follow it.
        here = type(positions_BT) is Tensor and x_BTC.device.type == "cpu" and not torch.compiler.is_compiling()
        if here or x_BTC.shape[1] > shape.max_seq_len:
            highest = int(positions_BT.max()) if positions_BT.numel() else 0
            if highest >= shape.max_seq_len:
                raise GristmillError(
                    f"a text of {highest + 1} tokens is longer than the {shape.max_seq_len} learned positions of the "
                    "model (max_seq_len); cut it"
                )
        return x_BTC + learned(positions_BT).to(x_BTC.dtype)
    if shape.positions == "sinusoidal":
        return x_BTC + sinusoidal(positions_BT, shape.hidden_size).to(x_BTC.dtype)
    return x_BTC
