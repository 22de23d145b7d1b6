"""Hugging Face's names for our tensors.

The decoder keeps q, k and v in one matrix and gate and up in another, because two large products are faster than five.
On disk they stand apart, as every other tool expects. Both directions read the one table in `layout`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..model.config import ModelConfig
from ..model.decoder import Decoder

Shape = tuple[int, ...]


def layout(config: ModelConfig) -> dict[str, dict[str, Shape]]:
    """Our parameter's name -> the tensors it is stored as, `{name in the file: shape}`, stacked in this order."""
    hidden, wide, vocab = config.hidden_size, config.intermediate_size, config.vocab_size
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    table: dict[str, dict[str, Shape]] = {"embedding.weight": {"model.embed_tokens.weight": (vocab, hidden)}}
    for layer in range(config.num_layers):
        ours, theirs = f"blocks.{layer}", f"model.layers.{layer}"
        attention, mlp = f"{theirs}.self_attn", f"{theirs}.mlp"
        table[f"{ours}.attention_norm.weight"] = {f"{theirs}.input_layernorm.weight": (hidden,)}
        table[f"{ours}.attention.qkv.weight"] = {
            f"{attention}.q_proj.weight": (q, hidden),
            f"{attention}.k_proj.weight": (kv, hidden),
            f"{attention}.v_proj.weight": (kv, hidden),
        }
        table[f"{ours}.attention.output.weight"] = {f"{attention}.o_proj.weight": (hidden, q)}
        table[f"{ours}.feed_forward_norm.weight"] = {f"{theirs}.post_attention_layernorm.weight": (hidden,)}
        table[f"{ours}.feed_forward.gate_up.weight"] = {
            f"{mlp}.gate_proj.weight": (wide, hidden),
            f"{mlp}.up_proj.weight": (wide, hidden),
        }
        table[f"{ours}.feed_forward.down.weight"] = {f"{mlp}.down_proj.weight": (hidden, wide)}
    table["norm.weight"] = {"model.norm.weight": (hidden,)}
    if not config.tie_embeddings:
        table["head.weight"] = {"lm_head.weight": (vocab, hidden)}
    return table


def stored_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Every tensor of a model file and its shape."""
    return {name: shape for parts in layout(config).values() for name, shape in parts.items()}


def block_matrices(config: ModelConfig) -> dict[str, Shape]:
    """The matrices inside the blocks, which are what is quantized: module name (without `.weight`) -> `(out, in)`."""
    shapes = stored_shapes(config)
    return {name.removesuffix(".weight"): shape for name, shape in shapes.items() if name.endswith("_proj.weight")}


def split_tensors(model: Decoder) -> Iterator[tuple[str, Tensor]]:
    """The model's tensors under their names in a file, as views of its parameters, in the order of the layers."""
    parameters = dict(model.named_parameters())
    for ours, parts in layout(model.config).items():
        rows = [shape[0] for shape in parts.values()]
        yield from zip(parts, parameters[ours].detach().split(rows), strict=True)


def build_decoder(
    config: ModelConfig, read: Callable[[str], Tensor], dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Decoder:
    """A decoder whose tensors come from `read(name in the file)`, one parameter at a time, as memory of its own."""
    with torch.device("meta"):
        model = Decoder(config)
    state = {}
    for ours, parts in layout(config).items():
        pieces = [read(name).to(device, dtype) for name in parts]
        # A single piece may be a view into a mapped file, which must not change under the model.
        state[ours] = torch.cat(pieces) if len(pieces) > 1 else pieces[0].clone()
    model.load_state_dict(state, assign=True)
    return model
