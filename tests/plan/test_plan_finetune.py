"""Adapters, frozen weights and copies: the guide's figures, and what built modules really have."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plan_shapes import model_configs
from torch import nn

from gristmill.errors import GristmillError
from gristmill.model.decoder import Decoder
from gristmill.model.presets import preset
from gristmill.plan import finetune, parameters, training
from gristmill.plan.finetune import lora_matrices, lora_trainable_params

GPT_3 = preset("gpt3-175b")
P = 174_604_259_328


def test_adapters_of_gpt_3():
    """F9: rank 4 beside queries and values of 96 layers."""
    pairs = [[12_288, 12_288], [12_288, 12_288]]
    assert finetune.lora_params(96, 4, pairs) == lora_trainable_params(GPT_3, 4, ("q", "v")) == 18_874_368
    for rank, expected in ((4, 9250.866536), (8, 4625.433268)):
        trained = lora_trainable_params(GPT_3, rank)
        assert finetune.lora_reduction_factor(P, trained) == pytest.approx(expected)
    assert finetune.lora_memory_reduction_factor(P, 18_874_368, 16, 2) == pytest.approx(7.993087707)


def test_copies_of_alignment():
    """F13."""
    assert finetune.alignment_memory_ratio(2, 2, 1, 1, 16, 2) == 2
    sizes = {
        method: finetune.alignment_bytes_per_param(len(copies.trained), len(copies.frozen))
        for method, copies in finetune.ALIGNMENT.items()
    }
    assert sizes == {"full": 16, "dpo": 18, "grpo": 18, "ppo": 36}


def test_a_65b_model_in_nf4():
    """F10b: 34,458,927,104 bytes, counted two ways."""
    llama = preset("llama-2-7b").model_copy(
        update={"hidden_size": 8192, "num_layers": 80, "num_heads": 64, "num_kv_heads": 64, "intermediate_size": 22_016}
    )
    assert (llama.vocab_size, llama.head_dim, llama.tie_embeddings) == (32_000, 128, False)
    bits = parameters.bits_with_scales(4, 64, 8.125)
    assert bits == pytest.approx(finetune.FROZEN_BITS["nf4"]) == pytest.approx(4.126953125)
    inside = finetune.quantized_params(llama)
    rest = parameters.total_params(llama) - inside
    assert parameters.quantized_weight_bytes(inside, rest, bits, 2) == pytest.approx(34_458_927_104, rel=1e-9)
    assert finetune.frozen_bytes(llama, "nf4") == pytest.approx(34_458_927_104, rel=1e-9)
    assert parameters.bits_with_scales(4, 128, 16, 4) == 4.15625


def test_a_stage_that_cuts_less():
    """F7: only 8 of the optimizer's 12 bytes."""
    assert training.zero_bytes_per_process(7.5e9, 64, 1, optimizer_sharded=8) == 60.9375e9
    assert training.zero_bytes_per_process(7.5e9, 64, 2, optimizer_sharded=8) == 46.171875e9
    assert training.zero_bytes_per_process(7.5e9, 64, 2, optimizer_sharded=12) == 16.640625e9
    assert training.optimizer_to_weight_ratio(8, 4) == 2


class Adapter(nn.Module):
    """A frozen matrix and the two narrow ones beside it."""

    def __init__(self, into, out, rank):
        super().__init__()
        self.down, self.up = nn.Linear(into, rank, bias=False), nn.Linear(rank, out, bias=False)


def adapters_of(model, rank, targets):
    """An adapter for each named part of each linear layer and expert of the built decoder."""
    config, found = model.config, nn.ModuleList()
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2 or ("embedding" in name):
            continue
        *_, last = name.removesuffix(".weight").split(".")
        inner = parameter if parameter.dim() == 3 else parameter[None]
        if last == "qkv":
            width = config.head_dim
            parts = {"q": config.num_heads * width, "k": config.num_kv_heads * width, "v": config.num_kv_heads * width}
        elif last == "gate_up":
            parts = {"gate": inner.shape[1] // 2, "up": inner.shape[1] // 2}
        else:
            parts = {last: inner.shape[1]}
        for part, rows in parts.items():
            if part in targets:
                found.extend(Adapter(inner.shape[2], rows, rank) for _ in range(len(inner)))
    return found


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(model_configs(), st.integers(1, 5), st.data())
def test_adapters_of_every_shape_are_those_beside_the_built_decoder(config, rank, data):
    with torch.device("meta"):
        model = Decoder(config)
        names = [name for name in finetune.LORA_TARGETS if name in finetune._matrices(config)]
        targets = data.draw(st.lists(st.sampled_from(names), unique=True, min_size=1))
        expected = sum(p.numel() for p in adapters_of(model, rank, targets).parameters())
    assert lora_trainable_params(config, rank, targets) == expected


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(model_configs())
def test_quantized_matrices_are_those_of_the_blocks(config):
    with torch.device("meta"):
        model = Decoder(config)
    inside = [p for name, p in model.named_parameters() if name.startswith("blocks.") and p.dim() > 1
              and "router" not in name]  # fmt: skip
    assert finetune.quantized_params(config) == sum(p.numel() for p in inside)
    assert finetune.int8_rows(config) == sum(p.numel() // p.shape[-1] for p in inside)
    total = parameters.total_params(config)
    assert finetune.frozen_bytes(config, "bf16") == 2 * total
    assert finetune.frozen_bytes(config, "fp32") == 4 * total
    assert finetune.frozen_bytes(config, "nf4") < finetune.frozen_bytes(config, "bf16")


def test_names_and_ranks_that_cannot_be():
    llama = preset("llama-3-8b")
    with pytest.raises(GristmillError, match=r"no matrix 'gates'; did you mean 'gate'\?"):
        lora_matrices(llama, ["gates"])
    with pytest.raises(GristmillError, match="no matrix 'kv_up'"):
        lora_matrices(llama, ["kv_up"])
    with pytest.raises(GristmillError, match="targets names a matrix twice"):
        lora_matrices(llama, ["q", "q"])
    with pytest.raises(GristmillError, match="must name at least one matrix"):
        lora_matrices(llama, [])
    with pytest.raises(GristmillError, match="rank must be at least 1, not 0"):
        lora_trainable_params(llama, 0)
    with pytest.raises(GristmillError, match="'nf5'; did you mean 'nf4'"):
        finetune.frozen_bytes(llama, "nf5")
