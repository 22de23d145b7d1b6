"""From our tensors to the stored ones and back, by a family's `Layout`.

The decoder keeps q, k and v in one matrix and gate and up in another, because two large products are faster than five;
on disk they stand apart, as every other tool expects. Reading, writing and quantizing go through the one table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..errors import GristmillError
from ..model.config import ModelConfig
from ..model.decoder import Decoder
from ..model.undrawn import undrawn
from .families import Layout, Part, home_of
from .families import Shape as Shape


def layout(config: ModelConfig) -> Layout:
    """Our parameter's name -> the tensors it is saved as by `save_model`."""
    return home_of(config).layout(config)


def stored_shapes(table: Layout) -> dict[str, Shape]:
    """Every tensor of a model file and its shape."""
    return {part.name: part.shape for parts in table.values() for part in parts}


def block_matrices(config: ModelConfig) -> dict[str, Shape]:
    """The matrices inside the blocks, which are what is quantized: module name (without `.weight`) -> `(out, in)`.

    GristmillError for a family whose readers hold no linear layers (GPT-2).
    """
    matrices = linear_shapes(layout(config))
    if not matrices:
        family = home_of(config).model_type
        raise GristmillError(f"a model saved as {family!r} has no linear layers that could be quantized")
    return matrices


def linear_shapes(table: Layout) -> dict[str, Shape]:
    """`block_matrices` of a table."""
    return {part.name.removesuffix(".weight"): part.shape for parts in table.values() for part in parts if part.linear}


def split_rows(parameter: Tensor, parts: Sequence[Part]) -> Iterator[tuple[Part, Tensor]]:
    """The rows of a parameter that each part is stored from, as views; `part.save` makes the stored tensor of them."""
    shapes = [part.loaded_shape() for part in parts]
    rows = parameter.reshape(-1, *shapes[0][1:]).split([shape[0] for shape in shapes])
    yield from zip(parts, rows, strict=True)


def split_tensors(model: Decoder, table: Layout | None = None) -> Iterator[tuple[str, Tensor]]:
    """The model's tensors under their names in a file, one after the other in the order of the layers; without a
    table, as `save_model` writes them. Views of the parameters where nothing is transformed."""
    state = model.state_dict()
    for ours, parts in (layout(model.config) if table is None else table).items():
        for part, rows in split_rows(state[ours].detach(), parts):
            yield part.name, part.save(rows)


def as_type(tensor: Tensor, dtype: torch.dtype, name: str, device: torch.device | str = "cpu") -> Tensor:
    """`tensor` as `dtype`, which must be able to hold its values."""
    narrower = torch.finfo(dtype).max < torch.finfo(tensor.dtype).max
    if narrower and not torch.isfinite(tensor.to(dtype)).all():
        raise GristmillError(f"tensor {name} holds values that {dtype} cannot; load the model in a wider type")
    return tensor.to(device, dtype)


def build_decoder(
    config: ModelConfig,
    table: Layout,
    read: Callable[[str], Tensor],
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
) -> Decoder:
    """A decoder whose tensors come from `read(name in the file)`, one parameter at a time, as memory of its own.

    Parameters become `dtype`; buffers (the bias on the choice of experts) keep the type they are computed in.
    """
    with undrawn():
        model = Decoder(config)
    buffers = {name: buffer.dtype for name, buffer in model.named_buffers()}
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert set(shapes) == set(table), set(shapes) ^ set(table)
    state = {}
    for ours, parts in table.items():
        pieces = [part.load(as_type(read(part.name), buffers.get(ours, dtype), part.name, device)) for part in parts]
        # A single piece may be a view into a mapped file, which must not change under the model.
        whole = torch.cat(pieces) if len(pieces) > 1 else pieces[0].clone(memory_format=torch.contiguous_format)
        state[ours] = whole.view(shapes[ours])
    model.load_state_dict(state, assign=True)
    return model
