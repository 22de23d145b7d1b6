"""How a model knows the order of tokens: rotary positions with their scalings, and sinusoidal ones.

ALiBi is a bias on the scores (model/attention.py), learned positions are a table of the decoder.
Shape suffixes: B batch (or 1), T time, D rotating channels of a head.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .config import LayerKind, ModelShape, RopeScaling


class Rotation(NamedTuple):
    """Cosines and sines `[B, T, 1, D]` of RoPE (Su et al. 2021), the two halves of D alike: channel i turns with
    channel i + D/2."""

    cos: Tensor
    sin: Tensor


def rotations(
    config: ModelShape, positions_BT: Tensor, dtype: torch.dtype, length_BT: Tensor | int | None = None
) -> dict[LayerKind, Rotation]:
    """The angles of full and of sliding layers; empty for a model without rotary positions.

    `length_BT` is the context in tokens that "dynamic" scaling reckons with, for each token (`[B, T]` or `[B, 1]`) or
    for all: the row's highest position + 1 unless given.
    """
    if config.positions != "rope":
        return {}
    if length_BT is None and config.rope_scaling is not None and config.rope_scaling.kind == "dynamic":
        length_BT = positions_BT.amax(dim=1, keepdim=True) + 1
    found: dict[LayerKind, Rotation] = {}
    for kind in dict.fromkeys(config.layer_kinds):
        slides = kind == "sliding" and config.sliding_rope_theta is not None
        theta = config.sliding_rope_theta if slides else config.rope_theta
        assert theta is not None
        scaling = None if slides else config.rope_scaling
        frequencies = rotary_frequencies(config.rotary_dim, theta, scaling, length_BT, positions_BT.device)
        # As a plain function where nothing is compiled: torch imports its whole compiler when an operator is called.
        made = _rotation if torch.compiler.is_compiling() else _cosines_and_sines
        found[kind] = Rotation(*made(positions_BT, frequencies, attention_factor(scaling), dtype))
    return found


def _cosines_and_sines(
    positions_BT: Tensor, frequencies: Tensor, factor: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Those of a `Rotation`."""
    angles = positions_BT[..., None].float() * frequencies
    angles = torch.cat((angles, angles), dim=-1)[:, :, None, :]
    if factor == 1.0:
        return angles.cos().to(dtype), angles.sin().to(dtype)
    return (angles.cos() * factor).to(dtype), (angles.sin() * factor).to(dtype)


# An operator of its own, so that a compiler leaves them to be made once: taken into the products of every layer,
# forward and backward, they are made anew in each.
_rotation = torch.library.custom_op("gristmill::rotation", _cosines_and_sines, mutates_args=())


@_rotation.register_fake
def _(positions_BT: Tensor, frequencies: Tensor, factor: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    leading = torch.broadcast_shapes(positions_BT.shape, frequencies.shape[:-1])
    shape = (*leading, 1, 2 * frequencies.shape[-1])
    return positions_BT.new_empty(shape, dtype=dtype), positions_BT.new_empty(shape, dtype=dtype)


def rotate(x_BTHD: Tensor, rotation: Rotation | None) -> Tensor:
    """Turn each pair (i, i + D/2) of a head's first D channels by its position's angle; the others pass."""
    if rotation is None:
        return x_BTHD
    dim = rotation.cos.shape[-1]
    if dim < x_BTHD.shape[-1]:
        turning, passing = x_BTHD.split([dim, x_BTHD.shape[-1] - dim], dim=-1)
        return torch.cat((rotate(turning, rotation), passing), dim=-1)
    first, second = x_BTHD.chunk(2, dim=-1)
    return x_BTHD * rotation.cos + torch.cat((-second, first), dim=-1) * rotation.sin


def rotary_frequencies(
    dim: int, theta: float, scaling: RopeScaling | None, length: Tensor | int | None, device: torch.device
) -> Tensor:
    """Radians per token of each pair, float32 `[dim / 2]`, highest first. With scaling "dynamic" they depend on
    `length`, the context in tokens; for one of `[B, T]` they are `[B, T, dim / 2]`."""
    exponent = torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim
    if scaling is not None and scaling.kind == "dynamic":
        return dynamic_theta(dim, theta, scaling, length, device) ** -exponent
    plain = theta**-exponent
    if scaling is None:
        return plain
    if scaling.kind == "linear":  # Chen et al. 2023: all positions are pressed into the trained range
        return plain / scaling.factor
    if scaling.kind == "yarn":
        return _yarn(dim, theta, scaling, plain)
    return _llama3(scaling, plain)


def dynamic_theta(
    dim: int, theta: float, scaling: RopeScaling, length: Tensor | int | None, device: torch.device
) -> Tensor:
    """The base for a context of `length` tokens (NTK-aware scaling that grows with the length, Peng et al. 2023,
    section 3.3), float32 `[..., 1]`: unchanged up to the trained context."""
    trained = scaling.original_max_seq_len
    if length is None:
        length = trained
    tokens = torch.as_tensor(length, device=device).double().clamp(min=trained)[..., None]
    stretch = scaling.factor * tokens / trained - (scaling.factor - 1)
    return (theta * stretch ** (dim / (dim - 2))).float()


def attention_factor(scaling: RopeScaling | None) -> float:
    """yarn's factor of cosines and sines, which makes scores of longer contexts as sharp as before; else 1."""
    if scaling is None or scaling.kind != "yarn":
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return scaling.yarn_mscale(scaling.mscale) / scaling.yarn_mscale(scaling.mscale_all_dim)
    return scaling.yarn_mscale(1.0)


def _yarn(dim: int, theta: float, scaling: RopeScaling, plain: Tensor) -> Tensor:
    """Peng et al. 2023, section 3.2: pairs that turn often within the trained context keep their frequency, those that
    turn less than once are interpolated, and between them there is a ramp over the pairs' numbers."""

    def pair(turns: float) -> float:
        return dim * math.log(scaling.original_max_seq_len / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair(scaling.beta_fast), pair(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001  # a step instead of a ramp, without a division by zero
    ramp = ((torch.arange(dim // 2, device=plain.device, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return plain / scaling.factor * ramp + plain * (1 - ramp)


def _llama3(scaling: RopeScaling, plain: Tensor) -> Tensor:
    """Llama 3.1's scaling: by how many times a pair turns within the trained context."""
    turns = scaling.original_max_seq_len * plain / (2 * math.pi)
    keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    keep = keep.clamp(0, 1)
    return plain * keep + plain / scaling.factor * (1 - keep)


def sinusoidal(positions_BT: Tensor, width: int) -> Tensor:
    """Vaswani et al. 2017, section 3.5: float32 `[B, T, width]`, sine and cosine of each frequency side by side."""
    exponent = torch.arange(0, width, 2, device=positions_BT.device, dtype=torch.float32) / width
    angles = positions_BT[..., None].float() * 10_000.0**-exponent
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)
