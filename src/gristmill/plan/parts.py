"""Which part of a model each device holds, for any layout.

Pipeline parallelism gives a stage consecutive blocks, the first stage the embedding, the last one norm and head (and
its own copy of a tied table). Tensor parallelism cuts heads, feed-forward channels and the vocabulary (Shoeybi et al.
2019, section 3); norms, routers, learned positions, biases of output products and latent attention's narrow products
stay whole on every device, and key/value heads are there more than once where devices outnumber them. Routed experts
are cut by the devices that share them out, taken from the data-parallel ones first, and by tensor parallelism.

Symbols as in plan/parameters.py; T, D, E devices of a group.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from ..model import counts
from ..model.config import ModelConfig
from .activations import Arithmetic, cast_bytes
from .layouts import Layout
from .training import Shape, dense_shapes, expert_shapes


@dataclass(frozen=True)
class Part:
    """One device's part. `blocks` is the shape of a model whose blocks are those of the device: its layers, heads and
    channels, its share of the vocabulary, and of the experts that a token meets (`top_k`, a fraction where experts are
    taken from tensor-parallel devices) those it meets here."""

    blocks: ModelConfig
    experts: int  # routed experts of a layer that lie here
    stage: int = 0
    stages: int = 1
    tied: bool = False  # whether the table here is embedding and head in one
    tensor: int = 1
    copies: int = 1  # data-parallel devices that hold the same dense weights
    expert_copies: int = 1  # devices that hold the same experts

    @property
    def embeds(self) -> bool:
        return self.stage == 0

    @property
    def makes_logits(self) -> bool:
        return self.stage == self.stages - 1

    @cached_property
    def layers(self) -> list[list[Shape]]:
        """Shapes of the matrices of each block that every token meets."""
        return [_counted(dense_shapes(self.blocks, layer)) for layer in range(self.blocks.num_layers)]

    @cached_property
    def routed(self) -> list[list[Shape]]:
        """Shapes of each block's experts."""
        layers = range(self.blocks.num_layers)
        return [_counted(expert_shapes(self.blocks, layer, self.experts)) for layer in layers]

    @cached_property
    def ends(self) -> list[Shape]:
        """Shapes outside of the blocks, and norms and biases as one vector."""
        table = (self.blocks.vocab_size, self.blocks.hidden_size)
        found: list[Shape] = []
        if self.embeds:
            found.append((table, 1, False))
            if self.blocks.positions == "learned":
                found.append(((self.blocks.max_seq_len, self.blocks.hidden_size), 1, False))
        if self.makes_logits and not self.tied:
            found.append((table, 1, False))
        return [*found, ((self._vectors(),), 1, False)]

    @cached_property
    def dense_shapes(self) -> list[Shape]:
        """All shapes but the routed experts'."""
        return [*self.ends, *(shape for layer in self.layers for shape in layer)]

    @cached_property
    def expert_shapes(self) -> list[Shape]:
        return [shape for layer in self.routed for shape in layer]

    @property
    def params(self) -> int:
        """Parameters on the device while nothing is cut by ZeRO."""
        return numbers(self.dense_shapes) + numbers(self.expert_shapes)

    @property
    def block_params(self) -> list[int]:
        """Parameters of each block's matrices."""
        return [numbers(dense) + numbers(routed) for dense, routed in zip(self.layers, self.routed, strict=True)]

    def shared(self, dense: float, experts: float, cut: bool = True) -> float:
        """What a device keeps of so much of the dense weights and of the experts, each cut over those that hold the
        same; all of it where nothing is `cut`."""
        return dense / self.copies + experts / self.expert_copies if cut else dense + experts

    def shared_params(self, cut: bool = True) -> float:
        """Parameters of which a device keeps the state, the gradients or the weights."""
        return self.shared(numbers(self.dense_shapes), numbers(self.expert_shapes), cut)

    def cast_bytes(self, layer: int, arithmetic: Arithmetic) -> int:
        """Copies of a block's weights in the products' type."""
        away = numbers(_counted(expert_shapes(self.blocks, layer))) - numbers(self.routed[layer])
        return cast_bytes(self.blocks, layer, arithmetic, away)

    def _vectors(self) -> int:
        config = self.blocks
        one = config.hidden_size * (2 if config.norm_bias else 1)
        last, first = config.norm_position != "post", config.embedding_norm
        vectors = counts.norms(config) - (last + first) * one
        vectors += (last and self.makes_logits) * one + (first and self.embeds) * one
        vectors += config.vocab_size if config.head_bias and self.makes_logits else 0
        for layer in range(config.num_layers):
            routed = numbers(_counted(expert_shapes(config, layer)))
            router = config.experts.num_experts * config.hidden_size if config.has_experts(layer) else 0  # type: ignore[union-attr]
            matrices = numbers(self.layers[layer]) - router + routed
            vectors += counts.attention(config) + counts.feed_forward(config, layer) - matrices
        return vectors


def numbers(shapes: Iterable[Shape]) -> int:
    """How many numbers parameters of these shapes hold."""
    return sum(math.prod(shape) * count for shape, count, _ in shapes)


def whole(config: ModelConfig, processes: int = 1) -> Part:
    """All of a model on each of so many data-parallel devices."""
    return part(config, Layout(data=processes), 0)


def parts(config: ModelConfig, layout: Layout) -> list[Part]:
    """One device's part for each stage of the pipeline. GristmillError names the rule that a layout breaks."""
    layout.check(config)
    return [part(config, layout, stage) for stage in range(layout.pipeline)]


def part(config: ModelConfig, layout: Layout, stage: int) -> Part:
    """The part of a device of one stage."""
    layers = stage_layers(config.num_layers, layout.pipeline)[stage]
    tensor, tied = layout.tensor, config.tie_embeddings and layout.pipeline == 1
    held, experts = 0, config.experts
    if experts is not None:
        held = experts.num_experts // layout.expert
        dense = tuple(layer - layers.start for layer in experts.dense_layers if layer in layers)
        share = {
            "dense_layers": dense,
            "intermediate_size": _ceil(experts.intermediate_size, layout.tensor_in_expert),
            "shared_intermediate_size": _ceil(experts.shared_intermediate_size, tensor),
            "top_k": experts.top_k * layout.tensor_in_expert / tensor,
        }
        experts = experts.model_copy(update=share)
    update = {
        "num_layers": len(layers),
        "num_heads": config.num_heads // tensor,
        "num_kv_heads": max(config.num_kv_heads // tensor, 1),
        "intermediate_size": _ceil(config.intermediate_size, tensor),
        "vocab_size": _ceil(config.vocab_size, tensor),
        "attention_pattern": config.layer_kinds[layers.start : layers.stop],
        "tie_embeddings": tied,
        "experts": experts,
    }
    return Part(
        blocks=config.model_copy(update=update),
        experts=held,
        stage=stage,
        stages=layout.pipeline,
        tied=tied,
        tensor=tensor,
        copies=layout.data,
        expert_copies=layout.data // layout.expert_in_data,
    )


def stage_layers(num_layers: int, stages: int) -> list[range]:
    """Consecutive layers of each stage, as even as can be. The last stages have one more where they do not come out
    even: the first ones keep more micro-batches."""
    each, more = divmod(num_layers, stages)
    sizes = [each + (stage >= stages - more) for stage in range(stages)]
    return [range(sum(sizes[:stage]), sum(sizes[: stage + 1])) for stage in range(stages)]


def _counted(shapes: Iterable[tuple[int, ...]]) -> list[Shape]:
    return [(shape, 1, True) for shape in shapes]


def _ceil(number: int, by: int) -> int:
    return -(-number // by)
