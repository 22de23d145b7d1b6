"""Random weights to start from: GPT-2's, depth-scaled, and muP's, whose best learning rate holds over widths.

Every parameter is drawn on its own, on the CPU in float32, by a generator seeded with the model's seed and the
parameter's name. So the same seed gives the same weights on every device, in every order of the modules, whatever
other parameters there are, and in a process that holds only some of the parameters or of the experts.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor, nn

from .config import ModelConfig, ModelShape
from .norms import OffsetLayerNorm, OffsetRMSNorm
from .schemes import InitScheme as InitScheme

ModelT = TypeVar("ModelT", bound=nn.Module)
ShapeT = TypeVar("ShapeT", bound=ModelShape)

GPT2_STD = 0.02
ROUTER_SCALE = 0.1  # Fedus et al. 2021, section 2.4: a router as large as the rest makes training unstable
MOST_DRAWN_AT_ONCE = 8  # parameters, each a float32 copy beside the weight itself
MUP_HEAD_DIM = 64  # with heads of this width muP's 1/d attention is the usual 1/sqrt(d)

_RESIDUAL_OUTPUT = re.compile(r"(\.output\.weight|\.down|\.down\.weight)$")
_BLOCK = re.compile(r"blocks\.(\d+)\.")


def init_weights(model: ModelT, scheme: InitScheme, seed: int) -> ModelT:
    """Fill every parameter and buffer of state; the model itself, for chaining. Its device and dtype stay.

    - `gpt2`: Normal(0, 0.02); outputs into the residual stream divided by sqrt(2 num_layers) (Radford et al. 2019,
      section 2.3, with a block's two outputs counted).
    - `depth_scaled`: the same, but outputs of layer l (from 0) divided by sqrt(2 (l + 1)) (after Zhang et al. 2019,
      "Improving Deep Transformer with Depth-Scaled Initialization", section 4; Groeneveld et al. 2024, OLMo).
    - `mup`: matrices of variance 1/fan_in, outputs into the stream divided by sqrt(2 num_layers), embedding of a
      constant scale, output head zero (Yang et al. 2022, tables 3 and 8). Belongs with `mup_shape` and
      `learning_rate_scales`.

    In all of them biases and sinks are 0, norms multiply by 1, a router is ten times smaller than the rest.
    """
    config: ModelConfig = model.config  # type: ignore[assignment]
    offsets = {id(module.weight) for module in model.modules() if isinstance(module, OffsetRMSNorm | OffsetLayerNorm)}

    def fill(name: str, parameter: Tensor) -> None:
        if name.endswith((".bias", ".sinks")) or id(parameter) in offsets:
            parameter.zero_()
        elif parameter.dim() == 1:
            parameter.fill_(1.0)
        else:
            parameter.copy_(_draw(name, parameter.shape, _std(name, parameter, config, scheme), seed))

    # A generator draws one number after the other, 60 million a second; parameters are independent of each other.
    with ThreadPoolExecutor(min(os.cpu_count() or 1, MOST_DRAWN_AT_ONCE)) as threads:
        for _ in threads.map(torch.no_grad()(fill), *zip(*model.named_parameters(), strict=True)):
            pass
    for name, buffer in model.named_buffers():
        if name.endswith("selection_bias"):
            buffer.zero_()
    return model


def mup_shape(shape: ShapeT, base_width: int) -> ShapeT:
    """The shape with what muP asks of the forward pass (Yang et al. 2022, section 5 and table 8): attention scores
    times 1/head_dim rather than 1/sqrt(head_dim), in units in which heads of 64 are as usual; and, where the head is
    the embedding and so cannot start at zero, logits times `base_width / hidden_size`."""
    changes: dict[str, float] = {}
    if shape.attention_scale is None and shape.head_dim != MUP_HEAD_DIM:
        changes["attention_scale"] = math.sqrt(MUP_HEAD_DIM) / shape.head_dim
    if shape.tie_embeddings and shape.hidden_size != base_width:
        changes["logit_scale"] = shape.logit_scale * base_width / shape.hidden_size
    return shape.model_copy(update=changes)


def learning_rate_scales(model: nn.Module, base_width: int) -> dict[str, float]:
    """Each parameter's factor of the learning rate under muP with Adam (Yang et al. 2022, table 3): matrices between
    wide layers, output head and router `base_width / hidden_size`; embeddings, positions and vectors 1.

    The table's factor is base fan_in / fan_in of each matrix by itself. It is the same for all of them only if the base
    model's other widths (feed-forward, experts, all heads together, `q_rank`, `kv_rank`) are smaller by the same ratio
    as `hidden_size`, which is what is assumed here: the base model is known by its hidden_size alone. A matrix behind a
    width that was not grown, such as `kv_up` behind a fixed `kv_rank`, learns too slowly by that ratio.
    """
    config: ModelConfig = model.config  # type: ignore[assignment]
    narrower = base_width / config.hidden_size
    return {
        name: 1.0 if parameter.dim() == 1 or _is_table(name) else narrower
        for name, parameter in model.named_parameters()
    }


def _std(name: str, parameter: Tensor, config: ModelConfig, scheme: InitScheme) -> float:
    scale = ROUTER_SCALE if name.endswith("router.weight") else 1.0
    if (block := _BLOCK.search(name)) and _RESIDUAL_OUTPUT.search(name):
        depth = int(block[1]) + 1 if scheme == "depth_scaled" else _depth(name, config)
        scale /= math.sqrt(2 * depth)
    if scheme != "mup":
        return GPT2_STD * scale
    if _is_table(name):  # of the same scale at any width, after the factor that some models put on the embedding
        std = GPT2_STD if config.tie_embeddings else 1.0
        return std if name.endswith("_embedding.weight") else std / config.embedding_scale
    if name in ("head.weight", "classifier.weight"):
        return 0.0
    return scale / math.sqrt(parameter.shape[-1])


def _depth(name: str, config: ModelConfig) -> int:
    """Blocks of the stack that a parameter is in."""
    return (
        getattr(config, "num_decoder_layers", config.num_layers) if name.startswith("decoder.") else config.num_layers
    )


def _is_table(name: str) -> bool:
    """Whether a matrix is looked up, not multiplied: embeddings, positions, biases by distance."""
    return name.endswith(("embedding.weight", "relative_bias.weight"))


def _draw(name: str, shape: Sequence[int], std: float, seed: int) -> Tensor:
    """Normal(0, std); experts, stacked along the first of three axes, each by a generator of its own."""
    if len(shape) == 3:
        return torch.stack([_draw(f"{name}.{expert}", shape[1:], std, seed) for expert in range(shape[0])])
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    return torch.empty(tuple(shape), dtype=torch.float32).normal_(0.0, std, generator=generator)
