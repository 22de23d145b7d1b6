"""Model shapes by name: our own ladder from 5 million to 70 billion parameters, and published ones. Torch-free.

Published shapes are those of the models' own configuration files. Parameter counts of all of them are tested against
transformers' models or against the published figures.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import cache
from typing import Any

from ..errors import GristmillError
from .config import ModelConfig


def preset(name: str, others: Iterable[str] = ()) -> ModelConfig:
    """The shape called `name`; GristmillError with the nearest name for one that is not known. `others` are names that
    would have been taken too, where it was asked for."""
    shapes = _shapes()
    if name not in shapes:
        known = [*others, *shapes]
        near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
        raise GristmillError(f"no model shape is called {name!r}; {hint}")
    return shapes[name]


def preset_names() -> tuple[str, ...]:
    """All names, related shapes together and the smallest first."""
    return tuple(_shapes())


@cache
def _shapes() -> dict[str, ModelConfig]:
    tables = (_ladder(), _gpt(), _llama(), _qwen(), _gemma(), _deepseek())
    return {name: ModelConfig.model_validate(fields) for table in tables for name, fields in table.items()}


Shapes = dict[str, dict[str, Any]]


def _ladder() -> Shapes:
    """Ours: the shape of Qwen 3 (grouped-query attention, QK-norm, SwiGLU), which other tools load. Embeddings are tied
    below 2 billion parameters, where an own head would be a large part of the model."""

    def rung(
        size: tuple[int, int, int], heads: tuple[int, int, int], context: int, theta: float, tied: bool
    ) -> dict[str, Any]:
        hidden_size, num_layers, intermediate_size = size
        num_heads, num_kv_heads, head_dim = heads
        return {
            "vocab_size": 32_768,
            "hidden_size": hidden_size,
            "num_layers": num_layers,
            "intermediate_size": intermediate_size,
            "num_heads": num_heads,
            "num_kv_heads": num_kv_heads,
            "head_dim": head_dim,
            "qk_norm": "head",
            "max_seq_len": context,
            "rope_theta": theta,
            "norm_eps": 1e-6,
            "tie_embeddings": tied,
        }

    return {
        "gristmill-5m": rung((128, 4, 384), (2, 1, 64), 2048, 10_000.0, tied=True),
        "gristmill-15m": rung((256, 8, 768), (4, 2, 64), 2048, 10_000.0, tied=True),
        "gristmill-30m": rung((384, 10, 1152), (6, 2, 64), 2048, 10_000.0, tied=True),
        "gristmill-60m": rung((512, 14, 1536), (8, 4, 64), 2048, 10_000.0, tied=True),
        "gristmill-135m": rung((768, 18, 2048), (12, 4, 64), 4096, 100_000.0, tied=True),
        "gristmill-360m": rung((1024, 28, 2944), (16, 4, 64), 4096, 100_000.0, tied=True),
        "gristmill-0.6b": rung((1280, 32, 3584), (20, 4, 64), 8192, 500_000.0, tied=True),
        "gristmill-1.7b": rung((2048, 32, 6144), (16, 8, 128), 8192, 500_000.0, tied=True),
        "gristmill-4b": rung((3072, 36, 8704), (24, 8, 128), 8192, 500_000.0, tied=False),
        "gristmill-8b": rung((4096, 36, 14_336), (32, 8, 128), 8192, 500_000.0, tied=False),
        "gristmill-32b": rung((6144, 64, 22_016), (48, 8, 128), 8192, 500_000.0, tied=False),
        "gristmill-70b": rung((8192, 80, 28_672), (64, 8, 128), 8192, 500_000.0, tied=False),
    }


def _gpt() -> Shapes:
    """GPT-2 (Radford et al. 2019, table 2) and GPT-3 (Brown et al. 2020, table 2.1), whose sparse layers are not
    modelled: every layer sees everything."""

    def gpt(hidden_size: int, num_layers: int, num_heads: int, context: int) -> dict[str, Any]:
        return {
            "vocab_size": 50_257,
            "hidden_size": hidden_size,
            "num_layers": num_layers,
            "num_heads": num_heads,
            "num_kv_heads": num_heads,
            "head_dim": hidden_size // num_heads,
            "intermediate_size": 4 * hidden_size,
            "max_seq_len": context,
            "positions": "learned",
            "norm": "layernorm",
            "norm_bias": True,
            "qkv_bias": True,
            "output_bias": True,
            "mlp_bias": True,
            "activation": "gelu_tanh",
            "gated": False,
        }

    return {
        "gpt2-124m": gpt(768, 12, 12, 1024),
        "gpt2-medium": gpt(1024, 24, 16, 1024),
        "gpt2-large": gpt(1280, 36, 20, 1024),
        "gpt2-xl": gpt(1600, 48, 25, 1024),
        "gpt3-175b": gpt(12_288, 96, 96, 2048),
    }


def _llama_shape(size: tuple[int, int, int], heads: tuple[int, int], **changes: Any) -> dict[str, Any]:
    hidden_size, num_layers, intermediate_size = size
    num_heads, num_kv_heads = heads
    return {
        "hidden_size": hidden_size,
        "num_layers": num_layers,
        "intermediate_size": intermediate_size,
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "head_dim": hidden_size // num_heads,
        "tie_embeddings": False,
    } | changes


def _llama() -> Shapes:
    llama_3 = {"vocab_size": 128_256, "rope_theta": 500_000.0, "max_seq_len": 8192}
    longer: dict[str, Any] = {
        "max_seq_len": 131_072,
        "rope_scaling": {
            "kind": "llama3",
            "factor": 8.0,
            "original_max_seq_len": 8192,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        },
    }
    mistral = {"vocab_size": 32_000, "max_seq_len": 32_768}
    return {
        "smollm2-135m": _llama_shape(
            (576, 30, 1536), (9, 3), vocab_size=49_152, max_seq_len=8192, rope_theta=100_000.0, tie_embeddings=True
        ),
        "llama-2-7b": _llama_shape((4096, 32, 11_008), (32, 32), vocab_size=32_000, max_seq_len=4096),
        "llama-3.2-1b": _llama_shape(
            (2048, 16, 8192),
            (32, 8),
            **llama_3
            | {
                "max_seq_len": 131_072,
                "tie_embeddings": True,
                "rope_scaling": longer["rope_scaling"] | {"factor": 32.0},
            },
        ),
        "llama-3-8b": _llama_shape((4096, 32, 14_336), (32, 8), **llama_3),
        "llama-3-70b": _llama_shape((8192, 80, 28_672), (64, 8), **llama_3),
        "llama-3.1-405b": _llama_shape((16_384, 126, 53_248), (128, 8), **llama_3 | longer),
        "mistral-7b": _llama_shape(
            (4096, 32, 14_336), (32, 8), sliding_window=4096, attention_pattern=("sliding",), **mistral
        ),
        "mixtral-8x7b": _llama_shape(
            (4096, 32, 14_336),
            (32, 8),
            rope_theta=1_000_000.0,
            experts={"num_experts": 8, "top_k": 2, "intermediate_size": 14_336, "aux_loss_weight": 0.02},
            **mistral,
        ),
    }


def _qwen() -> Shapes:
    qwen_3 = {
        "vocab_size": 151_936,
        "head_dim": 128,
        "qk_norm": "head",
        "max_seq_len": 40_960,
        "rope_theta": 1_000_000.0,
        "norm_eps": 1e-6,
    }
    experts = {"num_experts": 128, "top_k": 8, "intermediate_size": 768, "aux_loss_weight": 0.001}
    return {
        "qwen3-0.6b": _llama_shape((1024, 28, 3072), (16, 8), **qwen_3 | {"tie_embeddings": True}),
        "qwen3-8b": _llama_shape((4096, 36, 12_288), (32, 8), **qwen_3),
        "qwen3-30b-a3b": _llama_shape((2048, 48, 6144), (32, 4), **qwen_3 | {"experts": experts}),
    }


def _gemma() -> Shapes:
    gemma = {
        "norm_position": "sandwich",
        "norm_unit_offset": True,
        "norm_eps": 1e-6,
        "activation": "gelu_tanh",
        "head_dim": 256,
        "tie_embeddings": True,
    }
    return {
        "gemma-3-270m": _llama_shape((640, 18, 2048), (4, 1))
        | gemma
        | {
            "vocab_size": 262_144,
            "max_seq_len": 32_768,
            "embedding_scale": 640**0.5,
            "qk_norm": "head",
            "sliding_window": 512,
            "attention_pattern": ("sliding",) * 5 + ("full",),
            "rope_theta": 1_000_000.0,
            "sliding_rope_theta": 10_000.0,
        },
        "gemma-2-2b": _llama_shape((2304, 26, 9216), (8, 4))
        | gemma
        | {
            "vocab_size": 256_000,
            "max_seq_len": 8192,
            "embedding_scale": 2304**0.5,
            "sliding_window": 4096,
            "attention_pattern": ("sliding", "full"),
            "attention_softcap": 50.0,
            "logit_softcap": 30.0,
        },
    }


def _deepseek() -> Shapes:
    latent = {"kv_rank": 512, "nope_head_dim": 128, "rope_head_dim": 64, "value_head_dim": 128}

    def yarn(mscale: float) -> dict[str, Any]:
        lengths = {"kind": "yarn", "factor": 40.0, "original_max_seq_len": 4096}
        return lengths | {"beta_fast": 32.0, "beta_slow": 1.0, "mscale": mscale, "mscale_all_dim": mscale}

    shared = {"head_dim": 192, "max_seq_len": 163_840, "norm_eps": 1e-6}
    lite_experts = {
        "num_experts": 64,
        "top_k": 6,
        "intermediate_size": 1408,
        "shared_intermediate_size": 2816,  # two experts in one
        "dense_layers": (0,),
        "normalize_top_k": False,
        "aux_loss_weight": 0.001,
    }
    v3_experts = {
        "num_experts": 256,
        "top_k": 8,
        "intermediate_size": 2048,
        "shared_intermediate_size": 2048,
        "dense_layers": (0, 1, 2),
        "router": "sigmoid",
        "num_groups": 8,
        "top_groups": 4,
        "routed_scale": 2.5,
        "balance": "bias",
    }
    return {
        "deepseek-v2-lite": _llama_shape((2048, 27, 10_944), (16, 16))
        | shared
        | {"vocab_size": 102_400, "latent": latent, "rope_scaling": yarn(0.707), "experts": lite_experts},
        "deepseek-v3": _llama_shape((7168, 61, 18_432), (128, 128))
        | shared
        | {
            "vocab_size": 129_280,
            "latent": latent | {"q_rank": 1536},
            "rope_scaling": yarn(1.0),
            "experts": v3_experts,
        },
    }
