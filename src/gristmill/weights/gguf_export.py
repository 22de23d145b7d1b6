"""Writing a model as a GGUF file that llama.cpp runs, with its tokenizer and chat template.

What a file says is read back before it is written: a model whose configuration would not come back whole is refused by
the fields that llama.cpp has no home for.
Specification: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import GristmillError
from ..model.config import ModelConfig
from ..model.decoder import Decoder
from ..model.positions import attention_factor
from ..tokenizer.formats.gguf import add_tokenizer
from .families.family import Shape
from .gguf_config import DEFAULT_WINDOW, SLIDING_PERIOD, Keys, lost, read_config
from .gguf_file import gguf_package
from .gguf_layout import ROPE_FACTORS, Stacks, stacks
from .gguf_rope import llama3_factors
from .hf import cast

GGUFDtype = Literal["f32", "f16", "bf16", "q8_0"]
_DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "q8_0": torch.float32}
_FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
_Q8_BLOCK = 32
# llama.cpp takes these in float32 only, beside all tensors of one dimension.
_ALWAYS_F32 = (".ffn_gate_inp.weight", "position_embd.weight")
_WITHOUT_Q_RANK = (26, 27)  # numbers of layers by which llama.cpp knows DeepSeek-V2-Lite and its like


def export_gguf(
    model: Decoder,
    tokenizer_dir: Path,
    path: Path,
    dtype: GGUFDtype = "f16",
    name: str = "gristmill",
    licence: str | None = None,
) -> None:
    """Write `model` and the tokenizer in `tokenizer_dir` as one GGUF file, whose bytes depend on nothing else.

    Matrices are stored as `dtype` (of "q8_0", those whose rows are no multiple of 32 weights as f16), the rest in
    float32. The file appears under `path` when it is whole. GristmillError names what of the model or the tokenizer
    llama.cpp has no home for, or the tensor that holds NaN or infinity as `dtype`. Needs the `gguf` package.
    """
    gguf = gguf_package()
    if dtype not in _DTYPES:
        raise GristmillError(f"dtype {dtype!r} is not one that GGUF files are written in; use {', '.join(_DTYPES)}")
    architecture, metadata, table = describe(model.config)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.writing")
    writer = gguf.GGUFWriter(unfinished, architecture)
    writer.add_name(name)
    if licence is not None:
        writer.add_license(licence)
    for key, value in metadata.items():
        _add(writer, f"{architecture}.{key}", value)
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[dtype]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_tokenizer(writer, tokenizer_dir, model.config.vocab_size)
    try:
        _write(writer, gguf, model, table, dtype)
        writer.close()  # what is left in its buffers must be in the file before it appears
        os.replace(unfinished, path)
    finally:
        writer.close()
        unfinished.unlink(missing_ok=True)


def describe(config: ModelConfig) -> tuple[str, dict[str, Any], Stacks]:
    """llama.cpp's architecture for `config`, its metadata without the architecture's prefix, and its tensors.

    GristmillError names the fields that llama.cpp has no home for.
    """
    architecture = _nearest(config)
    metadata, table = _metadata(architecture, config), stacks(architecture, config)
    names = [part.name for stack in table.values() for part in stack.parts]
    factors = rope_factors(config) if architecture == "llama" else None
    known = {f"{architecture}.{key}": value for key, value in metadata.items()}
    back = read_config(Keys(known.get, known, architecture, architecture), architecture, names, config.vocab_size,
                       factors)  # fmt: skip
    missing = lost(config, back) + _limits(architecture, config)
    if missing:
        raise GristmillError(
            f"llama.cpp has no home for this model; the nearest is {architecture}, which has no "
            f"{' and no '.join(missing)}"
        )
    return architecture, metadata, table


def rope_factors(config: ModelConfig) -> Tensor | None:
    """The tensor `rope_freqs.weight` of Llama 3's scaling."""
    scaling = config.rope_scaling
    if scaling is None or scaling.kind != "llama3" or config.positions != "rope":
        return None
    return llama3_factors(scaling, config.rotary_dim, config.rope_theta)


def _nearest(config: ModelConfig) -> str:
    """The architecture that a model most looks like."""
    if config.latent is not None:
        return "deepseek2"
    if config.positions == "learned" or config.norm == "layernorm":
        return "gpt2"
    normed = config.qk_norm == "head"
    if config.norm_position == "sandwich":
        return "gemma3" if normed else "gemma2"
    if normed:
        return "qwen3moe" if config.experts is not None else "qwen3"
    square = config.num_heads * config.head_dim == config.hidden_size
    if config.experts is None and square and (config.head_bias or (config.qkv_bias and not config.output_bias)):
        return "qwen2"
    return "llama"


def _limits(architecture: str, config: ModelConfig) -> list[str]:
    """What the metadata could say and llama.cpp does not load."""
    experts, latent = config.experts, config.latent
    found = []
    if architecture in ("qwen2", "gpt2") and config.num_heads * config.head_dim != config.hidden_size:
        found.append(f"head_dim = {config.head_dim} beside num_heads = {config.num_heads}")
    if latent is not None and latent.q_rank is not None and config.num_layers in _WITHOUT_Q_RANK:
        found.append(f"latent.q_rank = {latent.q_rank} in a model of {config.num_layers} layers")
    if architecture == "deepseek2" and experts is not None:
        if experts.shared_intermediate_size == 0:
            found.append("experts.shared_intermediate_size = 0")
        if experts.num_groups > 1 and experts.num_groups == experts.num_experts:
            found.append(f"experts.num_groups = {experts.num_groups}")
    return found


def _metadata(architecture: str, config: ModelConfig) -> dict[str, Any]:
    """Whole numbers, floats, flags and lists by key. What cannot be said is left out; `describe` finds it missing."""
    epsilon = "attention.layer_norm_epsilon" if architecture == "gpt2" else "attention.layer_norm_rms_epsilon"
    experts = config.experts
    dense_everywhere = experts is None or all(not config.has_experts(layer) for layer in range(config.num_layers))
    wide = config.intermediate_size
    if architecture == "llama" and experts is not None:
        wide = experts.intermediate_size
    metadata: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_seq_len,
        "embedding_length": config.hidden_size,
        "block_count": config.num_layers,
        "feed_forward_length": wide,
        "attention.head_count": config.num_heads,
        epsilon: config.norm_eps,
    }
    if architecture == "deepseek2":
        metadata |= _latent(config)
    else:
        metadata["attention.head_count_kv"] = config.num_kv_heads
        if architecture != "gpt2":
            metadata["attention.key_length"] = metadata["attention.value_length"] = config.head_dim
            metadata["rope.dimension_count"] = config.head_dim
    if architecture != "gpt2":
        metadata |= _rope(architecture, config)
    if architecture in SLIDING_PERIOD:
        metadata |= _gemma(architecture, config)
    if not dense_everywhere:
        metadata |= _mixture(architecture, config)
    return metadata


def _latent(config: ModelConfig) -> dict[str, Any]:
    latent = config.latent
    assert latent is not None
    experts = config.experts
    return {
        "attention.head_count_kv": 1,
        "attention.key_length": latent.kv_rank + latent.rope_head_dim,
        "attention.value_length": latent.kv_rank,
        "attention.key_length_mla": config.head_dim,
        "attention.value_length_mla": latent.value_head_dim,
        "attention.kv_lora_rank": latent.kv_rank,
        "attention.q_lora_rank": latent.q_rank or 0,
        "rope.dimension_count": latent.rope_head_dim,
        # llama.cpp wants the next three whether or not there are experts.
        "leading_dense_block_count": config.num_layers if experts is None else len(experts.dense_layers),
        "expert_feed_forward_length": config.intermediate_size if experts is None else experts.intermediate_size,
        "expert_shared_count": 0 if experts is None else experts.shared_intermediate_size // experts.intermediate_size,
    }


def _rope(architecture: str, config: ModelConfig) -> dict[str, Any]:
    metadata: dict[str, Any] = {"rope.freq_base": config.rope_theta}
    scaling = config.rope_scaling
    if scaling is None or scaling.kind == "dynamic":
        return metadata
    metadata["rope.scaling.original_context_length"] = scaling.original_max_seq_len
    if scaling.kind == "llama3":
        return metadata
    metadata |= {"rope.scaling.type": scaling.kind, "rope.scaling.factor": scaling.factor}
    if scaling.kind == "yarn" and architecture == "deepseek2":
        metadata["rope.scaling.yarn_log_multiplier"] = 0.1 * (scaling.mscale_all_dim or 0.0)
    elif scaling.kind == "yarn" and not math.isclose(attention_factor(scaling), scaling.yarn_mscale(1.0)):
        metadata["rope.scaling.attn_factor"] = attention_factor(scaling) / scaling.yarn_mscale(1.0)
    return metadata


def _gemma(architecture: str, config: ModelConfig) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    kinds, period = config.layer_kinds, SLIDING_PERIOD[architecture]
    if config.sliding_window is not None:
        metadata["attention.sliding_window"] = config.sliding_window
        metadata["rope.freq_base_swa"] = config.sliding_rope_theta or config.rope_theta
        if kinds != tuple("full" if layer % period == period - 1 else "sliding" for layer in range(config.num_layers)):
            metadata["attention.sliding_window_pattern"] = [kind == "sliding" for kind in kinds]
    elif DEFAULT_WINDOW[architecture]:
        metadata["attention.sliding_window_pattern"] = 1
    if config.attention_softcap is not None:
        metadata["attn_logit_softcapping"] = config.attention_softcap
    if config.logit_softcap is not None:
        metadata["final_logit_softcapping"] = config.logit_softcap
    return metadata


def _mixture(architecture: str, config: ModelConfig) -> dict[str, Any]:
    experts = config.experts
    assert experts is not None
    metadata: dict[str, Any] = {"expert_count": experts.num_experts, "expert_used_count": experts.top_k}
    if architecture == "qwen3moe":
        metadata["expert_feed_forward_length"] = experts.intermediate_size
    if architecture == "deepseek2":
        metadata |= {
            "expert_weights_scale": experts.routed_scale,
            "expert_weights_norm": experts.normalize_top_k,
            "expert_gating_func": 1 if experts.router == "softmax" else 2,
        }
        if experts.top_groups < experts.num_groups:
            metadata |= {"expert_group_count": experts.num_groups, "expert_group_used_count": experts.top_groups}
    return metadata


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _tensors(model: Decoder, table: Stacks) -> Iterator[Tensor]:
    """Every tensor of the file, as a view of the model's parameter where nothing is rearranged."""
    factors = rope_factors(model.config)
    if factors is not None:
        yield factors
    state = model.state_dict()
    for ours, stack in table.items():
        yield from stack.save(state[ours].detach())


def _write(writer: Any, gguf: Any, model: Decoder, table: Stacks, dtype: GGUFDtype) -> None:
    """The directory of tensors first, then each tensor, one at a time in memory."""
    shapes = {part.name: part.shape for stack in table.values() for part in stack.parts}
    if (factors := rope_factors(model.config)) is not None:
        shapes = {ROPE_FACTORS: tuple(factors.shape), **shapes}
    kinds = {name: _kind(name, shape, dtype) for name, shape in shapes.items()}
    for name, shape in shapes.items():
        stored = gguf.GGMLQuantizationType[kinds[name].upper()]
        block, block_bytes = gguf.GGML_QUANT_SIZES[stored]
        row_bytes = shape[-1] // block * block_bytes
        size = math.prod(shape[:-1]) * row_bytes
        writer.add_tensor_info(name, (*shape[:-1], row_bytes), np.dtype(np.uint8), size, stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for (name, kind), tensor in zip(kinds.items(), _tensors(model, table), strict=True):
        writer.write_tensor_data(_encode(gguf, cast(tensor, _DTYPES[kind], name), kind))


def _kind(name: str, shape: Shape, dtype: GGUFDtype) -> GGUFDtype:
    if len(shape) == 1 or name.endswith(_ALWAYS_F32):
        return "f32"
    return "f16" if dtype == "q8_0" and shape[-1] % _Q8_BLOCK else dtype


def _encode(gguf: Any, tensor: Tensor, kind: GGUFDtype) -> np.ndarray:
    if kind == "q8_0":
        return np.ascontiguousarray(gguf.quants.quantize(tensor.numpy(), gguf.GGMLQuantizationType.Q8_0))
    return tensor.view(torch.uint8).numpy()
