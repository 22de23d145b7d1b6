"""Reading a GGUF file of the `llama` architecture into a Hugging Face directory.

Two traps, both measured on SmolLM2 (perplexity 320 instead of 26 without the first): llama.cpp stores the rows of q and
k with each head's rotary pairs interleaved, where Hugging Face's Llama keeps a head's first and second halves apart;
and a file without `output.weight` uses its embedding table as the head. Quantized tensors are multiplied out.
Specification: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from ..errors import GristmillError
from ..model.config import ModelConfig
from ..tokenizer.formats.gguf import write_tokenizer
from .hf import save_model
from .layout import build_decoder, stored_shapes

_BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_OUTSIDE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


class GGUFFile:
    """Metadata and tensors of one GGUF file; every error names the file and the key or tensor."""

    def __init__(self, path: Path):
        self.path = path
        self._gguf = gguf_package()
        if not path.is_file():
            raise GristmillError(f"{path} does not exist")
        try:
            reader = self._gguf.GGUFReader(path)
            self.tensors = {tensor.name: tensor for tensor in reader.tensors}
        except Exception as error:  # what the parser raises depends on where the bytes are broken
            raise GristmillError(f"{path} is not a whole GGUF file ({error}); get it again") from None
        self.fields = reader.fields

    def get(self, key: str, default: Any = None) -> Any:
        """A metadata value as Python's own type, or `default` where the file lacks the key."""
        field = self.fields.get(key)
        if field is None:
            return default
        try:
            return field.contents()
        except UnicodeDecodeError as error:
            raise GristmillError(f"{self.path}: metadata key {key} is damaged ({error.reason})") from None

    def require(self, key: str) -> Any:
        if key not in self.fields:
            raise GristmillError(f"{self.path}: metadata key {key} is missing")
        return self.get(key)

    def shape(self, name: str) -> tuple[int, ...]:
        """In torch's order; GGUF lists the fastest-running dimension first."""
        if name not in self.tensors:
            raise GristmillError(f"{self.path}: tensor {name} is missing")
        return tuple(int(size) for size in reversed(self.tensors[name].shape))

    def read(self, name: str) -> Tensor:
        """One tensor in float32, multiplied out if it is quantized."""
        tensor = self.tensors[name]
        try:
            values = self._gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError:
            kind = tensor.tensor_type.name
            raise GristmillError(f"{self.path}: tensor {name} is {kind}, which the gguf package cannot read") from None
        return torch.from_numpy(values.astype("float32"))


def import_gguf(file: Path, out_dir: Path, dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    """Write the model in a GGUF file as a Hugging Face directory with weights of `dtype`; return what the file says
    of itself (name, license, parameters, quantization). Needs the `gguf` package."""
    source = GGUFFile(Path(file))
    config = gguf_config(source)
    names = {name: _stored_name(name) for name in stored_shapes(config)}
    _check_tensors(source, config, names)
    out_dir.mkdir(parents=True, exist_ok=True)
    write_tokenizer(source.get, source.path, config.vocab_size, out_dir)

    def read(name: str) -> Tensor:
        weight = source.read(names[name])
        if name.endswith("q_proj.weight"):
            return unpermute(weight, config.num_heads)
        if name.endswith("k_proj.weight"):
            return unpermute(weight, config.num_kv_heads)
        return weight

    save_model(build_decoder(config, read, dtype), out_dir, out_dir, dtype)
    return {
        "model": source.get("general.name", source.path.name),
        "license": source.get("general.license", "not stated"),
        "parameters": config.num_parameters,
        "stored_as": ", ".join(sorted({tensor.tensor_type.name for tensor in source.tensors.values()})),
    }


def unpermute(weight: Tensor, num_heads: int) -> Tensor:
    """Rows of q or k `[heads * D, C]` from llama.cpp's order (pairs side by side) to Hugging Face's (halves apart)."""
    return weight.unflatten(0, (num_heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def gguf_config(source: GGUFFile) -> ModelConfig:
    """The shape that the metadata describes; GristmillError names what this decoder does not compute."""
    architecture = source.require("general.architecture")
    if architecture != "llama":
        raise GristmillError(f"{source.path}: architecture {architecture!r} is not supported, only 'llama'")
    if source.get("llama.expert_count", 0):
        raise GristmillError(f"{source.path}: llama.expert_count: mixtures of experts are not supported")
    scaling = source.get("llama.rope.scaling.type", "none")
    if scaling != "none":
        raise GristmillError(f"{source.path}: llama.rope.scaling.type {scaling!r} is not supported, only 'none'")
    hidden, heads = source.require("llama.embedding_length"), source.require("llama.attention.head_count")
    if not isinstance(heads, int) or heads < 1:
        raise GristmillError(f"{source.path}: llama.attention.head_count must be one number above 0, not {heads!r}")
    blocks = source.require("llama.block_count")
    if blocks > len(source.tensors):
        raise GristmillError(
            f"{source.path}: llama.block_count {blocks} is more than the {len(source.tensors)} tensors"
        )
    head_dim = source.get("llama.attention.key_length", hidden // heads)
    for key in ("llama.rope.dimension_count", "llama.attention.value_length"):
        if source.get(key, head_dim) != head_dim:
            raise GristmillError(f"{source.path}: {key} = {source.get(key)} differs from the head width {head_dim}")
    try:
        return ModelConfig(
            vocab_size=source.shape("token_embd.weight")[0],
            hidden_size=hidden,
            num_layers=blocks,
            num_heads=heads,
            num_kv_heads=source.get("llama.attention.head_count_kv", heads),
            head_dim=head_dim,
            intermediate_size=source.require("llama.feed_forward_length"),
            max_seq_len=source.require("llama.context_length"),
            rope_theta=source.get("llama.rope.freq_base", 10_000.0),
            norm_eps=_shortest_float(source.require("llama.attention.layer_norm_rms_epsilon")),
            tie_embeddings="output.weight" not in source.tensors,
        )
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise GristmillError(f"{source.path}: {field + ': ' if field else ''}{first['msg']}") from None


def _check_tensors(source: GGUFFile, config: ModelConfig, names: dict[str, str]) -> None:
    for name, shape in stored_shapes(config).items():
        if source.shape(names[name]) != shape:
            raise GristmillError(
                f"{source.path}: tensor {names[name]} has shape {list(source.shape(names[name]))}, "
                f"the metadata asks for {list(shape)}"
            )
    for extra in sorted(set(source.tensors) - set(names.values())):
        raise GristmillError(f"{source.path}: tensor {extra} has no place in a plain llama model")


def _stored_name(name: str) -> str:
    """`model.layers.3.self_attn.q_proj.weight` -> `blk.3.attn_q.weight`."""
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    layer, module = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
    return f"blk.{layer}.{_BLOCK[module]}.weight"


def _shortest_float(value: float) -> float:
    """The shortest decimal that is the same float32: 1e-05 rather than 9.999999747378752e-06."""
    for digits in range(1, 10):
        short = float(f"{value:.{digits}g}")
        if torch.tensor(short, dtype=torch.float32).item() == value:
            return short
    return value


def gguf_package() -> Any:
    """The `gguf` package; GristmillError names the extra that brings it."""
    try:
        import gguf
        import gguf.quants
    except ImportError:
        raise GristmillError("reading GGUF files needs the gguf package: pip install 'gristmill[smollm]'") from None
    return gguf
