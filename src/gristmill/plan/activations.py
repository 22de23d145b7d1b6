"""Bytes of activations that training keeps for backward, per token.

What a block keeps follows from what its operations need for their gradients: a product of matrices its input, a norm
its input and its statistic, attention its queries, keys, values, output and log-sums, an activation its input. Run as
written, all of that is kept; compiled, cheap results are made again in backward instead, as torch's min-cut
partitioner decides. Both are stated here for the blocks of model/decoder.py, and tested against the bytes of the
tensors that torch really keeps. Not in them: scores of attention that is not a kernel (soft-cap, ALiBi, and masks on a
CPU).

Symbols as in plan/parameters.py, and e bytes of a product's operand, r of a number in the residual stream.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ..model.config import ModelConfig
from ..model.counts import attention, feed_forward

Checkpointing = Literal["none", "sqrt", "block", "selective"]
STATISTIC = 4  # bytes of a mean, a deviation, a log-sum or a router's score, always float32

# Weights with fewer numbers multiply in 16 bits in a run in fp8: rounding would cost more than the product gains.
SMALLEST_FP8_WEIGHT = 2**20


@dataclass(frozen=True)
class Arithmetic:
    """How a training run computes, as far as its memory shows it. `precision` is fp32, bf16, fp16 or fp8; `weights` are
    kept in fp32 or bf16; a GPU's (`cuda`) kernels for norms and attention keep less than a CPU's operations."""

    precision: str = "bf16"
    weights: str = "fp32"
    device: Literal["cuda", "cpu"] = "cuda"
    compiled: bool = True

    @property
    def operand(self) -> int:
        """e: bytes of what matrices are multiplied with."""
        return 4 if self.precision == "fp32" else 2

    @property
    def weight(self) -> int:
        """Bytes of a weight, and of its gradient."""
        return 2 if self.weights == "bf16" else 4

    def stream(self, config: ModelConfig) -> int:
        """r: bytes of a number in the residual stream: it is bfloat16 where products are."""
        return 2 if self.precision in ("bf16", "fp8") else 4


@dataclass(frozen=True)
class BlockBytes:
    """Bytes per token of one block: its `input`; `norms`, `attention`, `feed_forward` all that is kept when nothing is
    computed again; `products`, the part of it (or beside it) that selective checkpointing keeps behind the input; and
    `working`, what the gradients of its widest stretch take on top while they are made."""

    input: float
    norms: float
    attention: float
    feed_forward: float
    products: float
    working: float

    @property
    def whole(self) -> float:
        return self.norms + self.attention + self.feed_forward


def block_bytes(config: ModelConfig, layer: int, arithmetic: Arithmetic, stream_parts: int = 1) -> BlockBytes:
    """What block `layer` keeps per token. `stream_parts`: devices that share out the tokens of the residual stream and
    its norms (sequence parallelism, Korthikanti et al. 2022, section 4.2.2); heads and widths are those of `config`."""
    width, e, r = config.hidden_size / stream_parts, arithmetic.operand, arithmetic.stream(config)
    wide = _wide(config, layer)
    matrices = 2 if config.gated else 1  # whose outputs are as wide as the layer
    products = _attention_products(config, e) + e * (width + matrices * wide)
    if not arithmetic.compiled:
        products += e * width  # the last product too, though nothing behind it needs it
    working = r * width + e * matrices * wide
    if config.has_experts(layer):
        assert config.experts is not None
        # Experts' results are weighted in float32.
        working += 2 * STATISTIC * config.experts.top_k * config.hidden_size
    return BlockBytes(
        input=r * width,
        norms=_norms(config, layer, arithmetic) / stream_parts,
        attention=_attention(config, arithmetic),
        feed_forward=_feed_forward(config, layer, arithmetic),
        products=products,
        working=working,
    )


def all_blocks(config: ModelConfig, arithmetic: Arithmetic, stream_parts: int = 1) -> list[BlockBytes]:
    """`block_bytes` of every layer. Layers differ by whether they have experts, and in nothing else."""
    kinds = [config.has_experts(layer) for layer in range(config.num_layers)]
    found = {kind: block_bytes(config, kinds.index(kind), arithmetic, stream_parts) for kind in set(kinds)}
    return [found[kind] for kind in kinds]


def kept_bytes(
    config: ModelConfig, arithmetic: Arithmetic, checkpointing: Checkpointing, stream_parts: int = 1
) -> float:
    """Bytes per token that all blocks keep from forward to backward: everything; the input of each of sqrt(L) groups;
    each block's input; each block's input and products."""
    blocks = all_blocks(config, arithmetic, stream_parts)
    if checkpointing == "none":
        return sum(block.whole for block in blocks)
    if checkpointing == "sqrt":
        return math.isqrt(config.num_layers) * blocks[0].input
    if checkpointing == "block":
        return sum(block.input for block in blocks)
    return sum(block.input + block.products for block in blocks)


def recomputed_bytes(
    config: ModelConfig, arithmetic: Arithmetic, checkpointing: Checkpointing, stream_parts: int = 1
) -> float:
    """Bytes per token that are alive on top of those while the stretch of blocks that needs most is in backward: what
    it computes again, and its working space."""
    blocks = all_blocks(config, arithmetic, stream_parts)
    if checkpointing == "none":
        return max(block.working for block in blocks)
    # A block's input, which is kept, is also what its first norm keeps, unless that makes a copy.
    first = blocks[0].input if arithmetic.compiled or arithmetic.operand == 4 else 0
    size = -(-config.num_layers // math.isqrt(config.num_layers)) if checkpointing == "sqrt" else 1
    if checkpointing in ("sqrt", "block"):
        starts = range(config.num_layers - size + 1)
        whole = max(sum(block.whole for block in blocks[s : s + size]) + blocks[s].working for s in starts)
        return whole - first + max(_late(config, s, size, arithmetic) for s in starts)
    again = (block.whole - _shared(config, layer, arithmetic) for layer, block in enumerate(blocks))
    return max(whole + block.working for whole, block in zip(again, blocks, strict=True)) - first


def recomputed_share(checkpointing: Checkpointing) -> float:
    """Arithmetic that is done twice, over that of forward and backward: a forward pass of three, for the blocks; none
    of the products for selective."""
    return 1 / 3 if checkpointing in ("sqrt", "block") else 0.0


def checkpointing_saving_fraction(num_layers: int) -> float:
    """Share of the activations that square-root checkpointing saves where inputs of blocks are counted alone:
    1 - 2 / sqrt(L) (Chen et al. 2016, section 4.1)."""
    return 1 - 2 / math.sqrt(num_layers)


def recompute_overhead_fraction(forward: float = 1, backward: float = 2) -> float:
    """Time of one more forward pass over that of a step: forward / (forward + backward)."""
    return forward / (forward + backward)


def multiplied_in_fp8(in_features: int, out_features: int, smallest: int = SMALLEST_FP8_WEIGHT) -> bool:
    """Whether a block's linear layer multiplies in 8 bits in a run in fp8 (train/fp8.py)."""
    return in_features % 16 == 0 and out_features % 16 == 0 and in_features * out_features >= smallest


def _wide(config: ModelConfig, layer: int) -> int:
    """Channels of a token between the feed-forward layer's matrices, over all experts that it meets."""
    if not config.has_experts(layer):
        return config.intermediate_size
    experts = config.experts
    assert experts is not None
    return experts.top_k * experts.intermediate_size + experts.shared_intermediate_size


def _matrix_input(arithmetic: Arithmetic, in_features: int, out_features: int) -> int:
    """Bytes of each number that a linear layer keeps of its input. In 8 bits a compiled layer keeps nothing: rounding
    the input is cheap, so it is made again from what stands before it."""
    if arithmetic.precision != "fp8" or not multiplied_in_fp8(in_features, out_features):
        return arithmetic.operand
    return 0 if arithmetic.compiled else 1


def _norms(config: ModelConfig, layer: int, arithmetic: Arithmetic) -> float:
    """The block's norms on the residual stream: their inputs, statistics, and their outputs as inputs of products."""
    width, e, r = config.hidden_size, arithmetic.operand, arithmetic.stream(config)
    qkv = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    into = [width * _matrix_input(arithmetic, width, qkv)]
    ff_out = (2 if config.gated else 1) * config.intermediate_size
    into.append(width * (e if config.has_experts(layer) else _matrix_input(arithmetic, width, ff_out)))
    norm = width * norm_input(config, arithmetic, r) + _statistics(config)
    as_written = not arithmetic.compiled and e < 4
    if config.parallel_block == "shared":
        return norm + into[0]
    if config.parallel_block == "separate":
        copied = as_written and norm_input(config, arithmetic, r) > r
        return sum(into) + 2 * norm - (0 if copied else width * r)
    output = width * (e if arithmetic.compiled else norm_input(config, arithmetic, e)) + _statistics(config)
    per_layer = {"pre": norm, "post": norm, "sandwich": norm + output, "output": output}[config.norm_position]
    return sum(into) + 2 * per_layer


def norm_input(config: ModelConfig, arithmetic: Arithmetic, given: int) -> int:
    """Bytes of each number that a norm keeps of an input of `given` bytes. As written, norms with gains of 1 + weight
    take a copy in float32, and a CPU's RMSNorm keeps what it has divided as well."""
    if arithmetic.compiled:
        return given
    if arithmetic.device == "cuda":
        return 4 if config.norm_unit_offset else given
    if config.norm == "layernorm":
        return 4 if config.norm_unit_offset else given
    return 8


def _statistics(config: ModelConfig) -> int:
    return STATISTIC * (2 if config.norm == "layernorm" else 1)


def _attention(config: ModelConfig, arithmetic: Arithmetic) -> float:
    """Queries, keys and values, attention's output and log-sums. Values are a view of the product that queries and keys
    came from, and keep it whole; rotated queries and keys are further tensors."""
    if arithmetic.device == "cpu" and not arithmetic.compiled:
        return _attention_on_cpu(config, arithmetic)
    e, heads, keys = arithmetic.operand, config.num_heads, config.num_kv_heads
    out_width = heads * config.value_dim
    rounded = arithmetic.precision == "fp8" and multiplied_in_fp8(out_width, config.hidden_size)
    # In 8 bits the next layer keeps its rounded input beside attention's own output.
    own = out_width * (e + (1 if rounded and not arithmetic.compiled else 0)) + heads * STATISTIC
    if config.latent is not None:
        latent = config.latent
        made = 2 * heads * config.head_dim + heads * (latent.nope_head_dim + latent.value_head_dim)
        narrow = (latent.kv_rank + (latent.q_rank or 0)) * 2 * e
        return e * made + narrow + 2 * STATISTIC + own
    made = (heads + 2 * keys) * config.head_dim
    inner = 0.0
    if config.qk_norm != "none":
        statistics = heads + keys if config.qk_norm == "head" else 2
        # What is normed is kept by the values anyway, but where a float32 copy of it is normed.
        copied = norm_input(config, arithmetic, e)
        copies = copied * (heads + keys) * config.head_dim if copied > e else 0
        inner = STATISTIC * statistics + copies
    turned = (heads + keys) * config.head_dim if config.positions == "rope" or config.qk_norm != "none" else 0
    return e * (made + turned) + inner + own


def _attention_on_cpu(config: ModelConfig, arithmetic: Arithmetic) -> float:
    """A CPU repeats key heads for their queries and computes attention in float32."""
    e, heads, keys = arithmetic.operand, config.num_heads, config.num_kv_heads
    out = heads * config.value_dim * (4 if e == 4 else 4 + e)
    made = 4 * heads * (2 * config.head_dim + config.value_dim) + out + STATISTIC * heads
    if config.qk_norm != "none":
        made += 8 * (heads + keys) * config.head_dim + STATISTIC * (heads + keys if config.qk_norm == "head" else 2)
    if config.latent is not None:
        made += (config.latent.kv_rank + (config.latent.q_rank or 0)) * (8 + e) + 2 * STATISTIC
    return made


def _attention_products(config: ModelConfig, e: int) -> float:
    """Results of the products before attention, and attention's own."""
    heads = config.num_heads
    own = heads * config.value_dim * e + heads * STATISTIC
    if (latent := config.latent) is not None:
        query = heads * config.head_dim + (latent.q_rank or 0)
        keys = latent.kv_rank + latent.rope_head_dim + heads * (latent.nope_head_dim + latent.value_head_dim)
        return e * (query + keys) + own
    return e * (heads + 2 * config.num_kv_heads) * config.head_dim + own


def _feed_forward(config: ModelConfig, layer: int, arithmetic: Arithmetic) -> float:
    """Results of the first matrices, the activation's, and the last matrix's input; of experts also the tokens that
    were sent to them and what came back, the router's scores and places."""
    e, wide, width = arithmetic.operand, _wide(config, layer), config.hidden_size
    dense = not config.has_experts(layer)
    last = _matrix_input(arithmetic, config.intermediate_size, width) if dense else e
    between = 2 * e if config.gated else e
    if config.gated and not arithmetic.compiled:
        between += e  # the activation's result, which the product with `up` needs
    total = wide * (between + last)
    if dense:
        return total
    experts = config.experts
    assert experts is not None
    routed = experts.top_k * (2 * e * width + 4 * 8 + 3 * STATISTIC) + 4 * STATISTIC * experts.num_experts
    return total + routed + (0 if arithmetic.compiled else 4 * width)


def _late(config: ModelConfig, layer: int, size: int, arithmetic: Arithmetic) -> float:
    """What lives longer where whole blocks are repeated. Compiled code writes the activation's result, which otherwise
    stays inside a kernel (for a CPU that of each block of the stretch), and takes gradients of weights behind those of
    the block's inputs, so that what they are made of outlives its last use but that. As written, experts' results in
    float32 are there twice."""
    if arithmetic.compiled:
        wide = arithmetic.operand * _wide(config, layer)
        results = size if config.gated and arithmetic.device == "cpu" else 0
        return wide * ((2 if config.gated else 1) + 1 + results)
    if not config.has_experts(layer):
        return 0.0
    assert config.experts is not None
    return 4 * STATISTIC * config.experts.top_k * config.hidden_size


def _shared(config: ModelConfig, layer: int, arithmetic: Arithmetic) -> float:
    """What selective checkpointing keeps and the repeated pass hands on, so that it is not there twice."""
    e = arithmetic.operand
    matrices = 2 if config.gated else 1
    return _attention_products(config, e) + e * matrices * _wide(config, layer)


def cast_bytes(config: ModelConfig, layer: int, arithmetic: Arithmetic, elsewhere: int = 0) -> int:
    """Copies of the block's weights in the lower type: made in forward, kept for backward. In 8 bits they are made
    anew. `elsewhere`: numbers of the routed experts that other devices hold."""
    e = arithmetic.operand
    if e == arithmetic.weight:
        return 0
    cast = attention(config) + feed_forward(config, layer) - elsewhere
    if arithmetic.precision != "fp8":
        return e * cast
    matrices = linear_layers(config, layer)
    dense = sum(rows * columns for rows, columns in matrices)
    small = sum(rows * columns for rows, columns in matrices if not multiplied_in_fp8(rows, columns))
    return e * (cast - dense + small)


def linear_layers(config: ModelConfig, layer: int) -> list[tuple[int, int]]:
    """In and out features of the block's linear layers; routed experts are none, being one tensor for all."""
    width, heads = config.hidden_size, config.num_heads
    found = [(heads * config.value_dim, width)]
    if (latent := config.latent) is not None:
        q_width = heads * config.head_dim
        found += [(width, q_width)] if latent.q_rank is None else [(width, latent.q_rank), (latent.q_rank, q_width)]
        found += [(width, latent.kv_rank + latent.rope_head_dim)]
        found += [(latent.kv_rank, heads * (latent.nope_head_dim + latent.value_head_dim))]
    else:
        found.append((width, (heads + 2 * config.num_kv_heads) * config.head_dim))
    wide = config.intermediate_size
    if config.has_experts(layer):
        assert config.experts is not None
        wide = config.experts.shared_intermediate_size
    return found + ([(width, (2 if config.gated else 1) * wide), (wide, width)] if wide else [])
