"""llama.cpp's names and arrangements of our parameters, for each of its architectures.

What differs from our own arrangement:
- q and k of `llama` and the rotary parts of `deepseek2` have each pair of channels side by side, ours in two halves.
  Measured on SmolLM2: without this the perplexity is 320 instead of 26.
- The norms of Gemma hold 1 + weight.
- Experts lie in one tensor of three dimensions, gate and up apart. `deepseek2` keeps the keys of `kv_up` transposed.
- A file without `output.weight` uses its embedding table as the head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..model.config import LatentAttention, ModelConfig
from ..model.decoder import Decoder
from ..model.undrawn import undrawn
from .families.family import Part, Shape, Transform
from .families.transforms import interleaved_rows
from .layout import as_type

PAIRS_APART = ("qwen2", "qwen3", "qwen3moe", "gemma2", "gemma3", "gpt2")  # rotate (i, i + D/2), as we do
HEAD = "output.weight"
ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class Stack:
    """The stored tensors of one parameter: each is transformed, they are concatenated along `axis` and viewed as the
    parameter. `view` is the parameter's shape in which they can be told apart again."""

    parts: tuple[Part, ...]
    view: Shape
    axis: int = 0

    def load(self, read: Callable[[str], Tensor], dtype: torch.dtype) -> Tensor:
        pieces = [as_type(part.load(read(part.name)), dtype, part.name) for part in self.parts]
        return torch.cat(pieces, dim=self.axis)

    def save(self, parameter: Tensor) -> Iterator[Tensor]:
        """What each part stores, one after the other."""
        sizes = [part.loaded_shape()[self.axis] for part in self.parts]
        pieces = parameter.view(self.view).split(sizes, dim=self.axis)
        for part, piece in zip(self.parts, pieces, strict=True):
            yield part.save(piece)


Stacks = dict[str, Stack]


def stacks(architecture: str, config: ModelConfig) -> Stacks:
    """Every parameter (and buffer) of the decoder -> the tensors in which a file of `architecture` keeps it."""
    hidden, vocab = config.hidden_size, config.vocab_size
    table = {"embedding.weight": _one("token_embd.weight", (vocab, hidden))}
    if config.positions == "learned":
        table["position_embedding.weight"] = _one("position_embd.weight", (config.max_seq_len, hidden))
    for layer in range(config.num_layers):
        table |= _block(architecture, config, layer)
    table |= _norm(config, "norm", "output_norm", hidden)
    if not config.tie_embeddings:
        table["head.weight"] = _one(HEAD, (vocab, hidden))
    if config.head_bias:
        table["head.bias"] = _one("output.bias", (vocab,))
    return table


def assemble(config: ModelConfig, table: Stacks, read: Callable[[str], Tensor], dtype: torch.dtype) -> Decoder:
    """A decoder whose tensors come from `read(name in the file)`, one parameter at a time."""
    with undrawn():
        model = Decoder(config)
    state = {}
    for name, empty in model.state_dict().items():
        kept = torch.float32 if name.endswith("selection_bias") else dtype
        state[name] = table[name].load(read, kept).view(empty.shape)
    model.load_state_dict(state, assign=True)
    return model


def _one(name: str, shape: Shape, transform: Transform | None = None) -> Stack:
    part = Part(name, shape, transform)
    return Stack((part,), part.loaded_shape())


def _rows(parts: list[Part]) -> Stack:
    rows = sum(part.shape[0] for part in parts)
    return Stack(tuple(parts), (rows, *parts[0].shape[1:]))


def _norm(config: ModelConfig, ours: str, theirs: str, width: int) -> Stacks:
    transform = Transform(lambda stored: stored - 1, lambda weight: weight.float() + 1)
    table = {f"{ours}.weight": _one(f"{theirs}.weight", (width,), transform if config.norm_unit_offset else None)}
    if config.norm_bias:
        table[f"{ours}.bias"] = _one(f"{theirs}.bias", (width,))
    return table


def _block(architecture: str, config: ModelConfig, layer: int) -> Stacks:
    ours, theirs = f"blocks.{layer}", f"blk.{layer}"
    table = _norm(config, f"{ours}.attention_norm", f"{theirs}.attn_norm", config.hidden_size)
    if config.latent is not None:
        table |= _latent(config, config.latent, f"{ours}.attention", theirs)
    else:
        table |= _attention(architecture, config, f"{ours}.attention", theirs)
    table |= _norm(config, f"{ours}.feed_forward_norm", f"{theirs}.ffn_norm", config.hidden_size)
    if config.norm_position == "sandwich":
        table |= _norm(config, f"{ours}.attention_output_norm", f"{theirs}.post_attention_norm", config.hidden_size)
        table |= _norm(config, f"{ours}.feed_forward_output_norm", f"{theirs}.post_ffw_norm", config.hidden_size)
    if config.has_experts(layer):
        return table | _experts(config, f"{ours}.feed_forward", theirs)
    return table | _dense(config, f"{ours}.feed_forward", theirs, "", config.intermediate_size)


def _attention(architecture: str, config: ModelConfig, ours: str, theirs: str) -> Stacks:
    hidden, width = config.hidden_size, config.head_dim
    rows = {"q": config.num_heads, "k": config.num_kv_heads, "v": config.num_kv_heads}
    table: Stacks = {}
    for kind, columns in (("weight", (hidden,)), ("bias", ())):
        if kind == "bias" and not config.qkv_bias:
            continue
        if architecture == "gpt2":
            table[f"{ours}.qkv.{kind}"] = _one(f"{theirs}.attn_qkv.{kind}", (sum(rows.values()) * width, *columns))
            continue
        turned = {} if architecture in PAIRS_APART else {name: interleaved_rows(rows[name], 0, width) for name in "qk"}
        table[f"{ours}.qkv.{kind}"] = _rows(
            [
                Part(f"{theirs}.attn_{name}.{kind}", (heads * width, *columns), turned.get(name))
                for name, heads in rows.items()
            ]
        )
    table[f"{ours}.output.weight"] = _one(f"{theirs}.attn_output.weight", (hidden, config.num_heads * width))
    if config.output_bias:
        table[f"{ours}.output.bias"] = _one(f"{theirs}.attn_output.bias", (hidden,))
    if config.qk_norm == "head":
        for name in ("q_norm", "k_norm"):
            table |= _norm(config, f"{ours}.{name}", f"{theirs}.attn_{name}", width)
    return table


def _latent(config: ModelConfig, latent: LatentAttention, ours: str, theirs: str) -> Stacks:
    hidden, heads, rank = config.hidden_size, config.num_heads, latent.kv_rank
    nope, rope, value = latent.nope_head_dim, latent.rope_head_dim, latent.value_head_dim
    turned = interleaved_rows(heads, nope, rope)
    table: Stacks = {}
    if latent.q_rank is None:
        table[f"{ours}.q.weight"] = _one(f"{theirs}.attn_q.weight", (heads * config.head_dim, hidden), turned)
    else:
        table[f"{ours}.q_down.weight"] = _one(f"{theirs}.attn_q_a.weight", (latent.q_rank, hidden))
        table[f"{ours}.q_norm.weight"] = _one(f"{theirs}.attn_q_a_norm.weight", (latent.q_rank,))
        shape = (heads * config.head_dim, latent.q_rank)
        table[f"{ours}.q_up.weight"] = _one(f"{theirs}.attn_q_b.weight", shape, turned)
    down = Part(f"{theirs}.attn_kv_a_mqa.weight", (rank + rope, hidden), interleaved_rows(1, rank, rope))
    table[f"{ours}.kv_down.weight"] = _rows([down])
    table[f"{ours}.kv_norm.weight"] = _one(f"{theirs}.attn_kv_a_norm.weight", (rank,))
    swap = Transform(lambda stored: stored.transpose(1, 2), lambda keys: keys.transpose(1, 2))
    table[f"{ours}.kv_up.weight"] = Stack(
        (
            Part(f"{theirs}.attn_k_b.weight", (heads, rank, nope), swap),
            Part(f"{theirs}.attn_v_b.weight", (heads, value, rank)),
        ),
        view=(heads, nope + value, rank),
        axis=1,
    )
    table[f"{ours}.output.weight"] = _one(f"{theirs}.attn_output.weight", (hidden, heads * value))
    return table


def _dense(config: ModelConfig, ours: str, theirs: str, suffix: str, wide: int) -> Stacks:
    """A plain feed-forward layer, or (`suffix` "_shexp") the expert that every token passes."""
    hidden = config.hidden_size
    names = ("gate", "up") if config.gated else ("up",)
    first = "gate_up" if config.gated else "up"
    parts = [Part(f"{theirs}.ffn_{name}{suffix}.weight", (wide, hidden)) for name in names]
    table = {
        f"{ours}.{first}.weight": _rows(parts),
        f"{ours}.down.weight": _one(f"{theirs}.ffn_down{suffix}.weight", (hidden, wide)),
    }
    if config.mlp_bias:
        table[f"{ours}.{first}.bias"] = _rows([Part(f"{theirs}.ffn_{name}.bias", (wide,)) for name in names])
        table[f"{ours}.down.bias"] = _one(f"{theirs}.ffn_down.bias", (hidden,))
    return table


def _experts(config: ModelConfig, ours: str, theirs: str) -> Stacks:
    experts = config.experts
    assert experts is not None
    number, wide, hidden = experts.num_experts, experts.intermediate_size, config.hidden_size
    names = ("gate", "up") if config.gated else ("up",)
    table = {
        f"{ours}.router.weight": _one(f"{theirs}.ffn_gate_inp.weight", (number, hidden)),
        f"{ours}.{'gate_up' if config.gated else 'up'}": Stack(
            tuple(Part(f"{theirs}.ffn_{name}_exps.weight", (number, wide, hidden)) for name in names),
            view=(number, len(names) * wide, hidden),
            axis=1,
        ),
        f"{ours}.down": _one(f"{theirs}.ffn_down_exps.weight", (number, hidden, wide)),
    }
    if experts.balance == "bias":
        table[f"{ours}.selection_bias"] = _one(f"{theirs}.exp_probs_b.bias", (number,))
    if experts.shared_intermediate_size:
        table |= _dense(config, f"{ours}.shared", theirs, "_shexp", experts.shared_intermediate_size)
    return table
