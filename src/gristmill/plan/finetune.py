"""What fine-tuning takes beside the model: adapters of low rank, frozen weights in few bits, copies for alignment.

Pure formulas; symbols as in plan/parameters.py, r the rank of an adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import GristmillError
from ..model.config import ModelConfig
from .names import nearest
from .parameters import bits_with_scales, total_params

LORA_TARGETS = ("q", "k", "v", "output", "q_down", "q_up", "kv_down", "kv_up", "gate", "up", "down", "head")
"""Matrices that adapters can stand beside. `gate`, `up` and `down` are those of the dense layers, of every routed
expert and of shared ones; `q_down` ... `kv_up` are latent attention's."""

# Bits of a frozen weight with its scales: NF4 in groups of 64 whose 8-bit scales have a float32 scale for 256 of them
# (Dettmers et al. 2023, section 3: 8/64 + 32/(64 * 256) = 0.127 bit); 8-bit codes with a float32 scale for each row.
FROZEN_BITS = {"fp32": 32.0, "bf16": 16.0, "fp16": 16.0, "int8": 8.0, "nf4": bits_with_scales(4, 64, 8 + 32 / 256)}


@dataclass(frozen=True)
class Copies:
    """Models that a method of alignment holds at once, in multiples of the policy (reward model and critic of its
    size), and whether it writes answers itself while it trains."""

    trained: tuple[str, ...]
    frozen: tuple[str, ...]
    generates: bool


ALIGNMENT: dict[str, Copies] = {
    "full": Copies(("policy",), (), False),
    "dpo": Copies(("policy",), ("reference",), False),  # Rafailov et al. 2023, equation 7
    "grpo": Copies(("policy",), ("reference",), True),  # Shao et al. 2024, section 4.1: no critic; rewards by rules
    "ppo": Copies(("policy", "critic"), ("reference", "reward"), True),  # Ouyang et al. 2022, section 3.5
}


def adapter_params(rank: int, in_features: int, out_features: int) -> int:
    """r (in + out): the two narrow matrices beside one (Hu et al. 2021, section 4.1)."""
    return rank * (in_features + out_features)


def lora_params(num_layers: int, rank: int, targets: Sequence[Sequence[int]]) -> int:
    """L * sum of r (in + out) over `targets`, pairs of (in, out) features that every layer has."""
    return num_layers * sum(adapter_params(rank, into, out) for into, out in targets)


def lora_trainable_params(config: ModelConfig, rank: int, targets: Sequence[str] = ("q", "v")) -> int:
    """Parameters of adapters of rank r beside the named matrices of all blocks (`LORA_TARGETS`), each projection having
    its own pair, as PEFT has them. GristmillError for a name or a rank that cannot be."""
    if rank < 1:
        raise GristmillError(f"rank must be at least 1, not {rank}")
    return sum(adapter_params(rank, into, out) * count for into, out, count in lora_matrices(config, targets))


def lora_matrices(config: ModelConfig, targets: Sequence[str]) -> list[tuple[int, int, int]]:
    """(in features, out features, how many there are) of the matrices that `targets` name."""
    known = _matrices(config)
    if not targets:
        raise GristmillError(f"targets must name at least one matrix; this model has {', '.join(known)}")
    if len(set(targets)) < len(targets):
        raise GristmillError("targets names a matrix twice")
    for name in targets:
        if name not in known and name in LORA_TARGETS:
            raise GristmillError(f"targets: this model has no matrix {name!r}; it has {', '.join(known)}")
        if name not in known:
            raise GristmillError(f"targets: this model has no matrix {name!r}; {nearest(name, known)}")
    return [matrix for name in targets for matrix in known[name]]


def lora_reduction_factor(params: float, trainable_params: float) -> float:
    """How many times fewer numbers are trained: P / trainable."""
    return params / trainable_params


def lora_memory_reduction_factor(
    params: float, trainable_params: float, full_bytes_per_param: float = 16, frozen_bytes_per_param: float = 2
) -> float:
    """States of full training over those with adapters: 16 P / (2 P + 16 trainable). Activations, which adapters spare
    little of, pull it towards 1 (Hu et al. 2021, section 4.2, report 3 for GPT-3)."""
    frozen = params * frozen_bytes_per_param
    return params * full_bytes_per_param / (frozen + trainable_params * full_bytes_per_param)


def frozen_bytes(config: ModelConfig, kind: str) -> float:
    """Bytes of a frozen model of which the blocks' matrices are kept as `kind` (`FROZEN_BITS`); embedding, head, norms,
    biases and routers stay in 16 bits (32 for fp32), as QLoRA's do."""
    if kind not in FROZEN_BITS:
        raise GristmillError(f"the frozen model cannot be kept as {kind!r}; {nearest(kind, FROZEN_BITS)}")
    inside = quantized_params(config)
    rows = int8_rows(config) if kind == "int8" else 0
    rest = 4 if kind == "fp32" else 2
    return inside * FROZEN_BITS[kind] / 8 + 4 * rows + (total_params(config) - inside) * rest


def quantized_params(config: ModelConfig) -> int:
    """Numbers in the matrices of attention and feed-forward of all blocks: what quantized formats cut down."""
    return sum(
        into * out * count for name, found in _matrices(config).items() if name != "head"
        for into, out, count in found
    )  # fmt: skip


def int8_rows(config: ModelConfig) -> int:
    """Rows of those matrices, each of which has a scale of its own in 8 bits."""
    return sum(
        out * count for name, found in _matrices(config).items() if name != "head"
        for _, out, count in found
    )  # fmt: skip


def alignment_bytes_per_param(
    trainable: float, frozen: float, trainable_bytes_per_param: float = 16, frozen_bytes_per_param: float = 2
) -> float:
    """Bytes of states per parameter of the policy, of so many trained and frozen copies: 16 a + 2 b."""
    return trainable * trainable_bytes_per_param + frozen * frozen_bytes_per_param


def alignment_memory_ratio(
    trainable_a: float,
    frozen_a: float,
    trainable_b: float,
    frozen_b: float,
    trainable_bytes_per_param: float = 16,
    frozen_bytes_per_param: float = 2,
) -> float:
    """States of one method of alignment over those of another: PPO's 2 + 2 copies over DPO's or GRPO's 1 + 1."""
    both = trainable_bytes_per_param, frozen_bytes_per_param
    return alignment_bytes_per_param(trainable_a, frozen_a, *both) / alignment_bytes_per_param(
        trainable_b, frozen_b, *both
    )


def _matrices(config: ModelConfig) -> dict[str, list[tuple[int, int, int]]]:
    """(in, out, how many) of every matrix of the model by its name in `LORA_TARGETS`; names it lacks are left out."""
    width, heads, layers = config.hidden_size, config.num_heads, config.num_layers
    found: dict[str, list[tuple[int, int, int]]] = {}
    if (latent := config.latent) is not None:
        q_width = heads * config.head_dim
        if latent.q_rank is None:
            found["q"] = [(width, q_width, layers)]
        else:
            found |= {"q_down": [(width, latent.q_rank, layers)], "q_up": [(latent.q_rank, q_width, layers)]}
        found["kv_down"] = [(width, latent.kv_rank + latent.rope_head_dim, layers)]
        found["kv_up"] = [(latent.kv_rank, heads * (latent.nope_head_dim + latent.value_head_dim), layers)]
    else:
        kv_width = config.num_kv_heads * config.head_dim
        found["q"] = [(width, heads * config.head_dim, layers)]
        found |= {name: [(width, kv_width, layers)] for name in ("k", "v")}
    found["output"] = [(heads * config.value_dim, width, layers)]
    wide = _feed_forwards(config)
    if config.gated:
        found["gate"] = [(width, size, count) for size, count in wide]
    found["up"] = [(width, size, count) for size, count in wide]
    found["down"] = [(size, width, count) for size, count in wide]
    if not config.tie_embeddings:
        found["head"] = [(width, config.vocab_size, 1)]
    return found


def _feed_forwards(config: ModelConfig) -> list[tuple[int, int]]:
    """(width, how many) of the feed-forward layers: dense ones, routed experts, shared ones."""
    routed = sum(config.has_experts(layer) for layer in range(config.num_layers))
    found = [(config.intermediate_size, config.num_layers - routed)]
    if (experts := config.experts) is not None:
        found += [(experts.intermediate_size, routed * experts.num_experts), (experts.shared_intermediate_size, routed)]
    return [(size, count) for size, count in found if size and count]
