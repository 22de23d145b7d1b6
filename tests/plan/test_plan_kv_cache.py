"""Bytes of the cache, against closed forms and the engine's own."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plan_shapes import model_configs

from gristmill.engine.cache import PagedCache
from gristmill.engine.config import EngineConfig
from gristmill.model.presets import preset
from gristmill.plan import kv_cache
from gristmill.plan.parameters import weight_bytes

CACHES = [  # (shape, tokens, sequences, expected bytes at 2 bytes a number)
    ("llama-3-8b", 8192, 1, 1_073_741_824),
    ("llama-3-8b", 131_072, 1, 17_179_869_184),
    ("llama-3-70b", 131_072, 1, 42_949_672_960),
    ("llama-2-7b", 4096, 1, 2_147_483_648),
    ("llama-2-7b", 4096, 100, 214_748_364_800),
]


@pytest.mark.parametrize(("name", "seq_len", "batch", "expected"), CACHES)
def test_published_shapes(name, seq_len, batch, expected):
    assert kv_cache.kv_cache_bytes(preset(name), seq_len, 2, batch) == expected


def test_bytes_per_token_and_ratios():
    llama_70b = preset("llama-3-70b")
    assert kv_cache.kv_cache_bytes_per_token(preset("llama-2-7b"), 2) == 524_288
    assert kv_cache.kv_cache_bytes_per_token(llama_70b, 2) == 327_680
    assert kv_cache.gqa_kv_reduction_factor(llama_70b) == 8
    assert kv_cache.gqa_kv_reduction_factor(preset("llama-3.1-405b")) == 16
    assert kv_cache.kv_cache_bytes(llama_70b, 131_072, 2) / 85_899_345_920 == 0.5
    weights = weight_bytes(llama_70b.num_parameters, 16)
    assert kv_cache.kv_cache_bytes(llama_70b, 131_072, 2, 8) / weights == pytest.approx(2.435005904)


def test_latent_attention_keeps_one_narrow_vector():
    """576 numbers a token and layer: 70,272 bytes in bfloat16 for the 61 layers of DeepSeek-V3."""
    deepseek = preset("deepseek-v3")
    assert kv_cache.kv_cache_bytes_per_token(deepseek, 2) == 61 * (512 + 64) * 2 == 70_272
    assert kv_cache.gqa_kv_reduction_factor(deepseek) == pytest.approx(128 * (192 + 128) / 576)


def test_sliding_layers_stop_growing():
    gemma, mistral = preset("gemma-3-270m"), preset("mistral-7b")
    per_layer = 2 * 256 * 2
    assert kv_cache.kv_cache_bytes(gemma, 512, 2) == 18 * 512 * per_layer
    assert kv_cache.kv_cache_bytes(gemma, 2048, 2) == (3 * 2048 + 15 * 512) * per_layer
    assert kv_cache.kv_cache_bytes(gemma, 2048, 2, drop_beyond_window=False) == 18 * 2048 * per_layer
    assert kv_cache.kv_cache_bytes_per_token_beyond_window(gemma, 2) == 3 * per_layer
    assert kv_cache.kv_cache_bytes_per_token_beyond_window(mistral, 2) == 0
    sinks = mistral.model_copy(update={"sink_tokens": 4})
    assert kv_cache.kv_cache_bytes(sinks, 10_000, 2) == 32 * 2 * 8 * 128 * 2 * (4096 + 4)


def test_encoders_keep_nothing():
    encoder = preset("gpt2-124m").model_copy(update={"causal": False})
    assert kv_cache.kv_cache_bytes(encoder, 100, 2) == 0


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(model_configs().filter(lambda config: config.causal), st.integers(1, 20), st.integers(1, 3))
def test_the_engine_takes_what_is_planned(config, max_len, slots):
    limits = EngineConfig(max_num_seqs=slots, max_model_len=max_len, block_size=max_len, num_blocks=slots)
    cache = PagedCache(config, limits, torch.bfloat16, torch.device("cpu"))
    parts = [part for layer in cache.layers for part in (layer.keys, layer.values)]
    held = sum(tensor.numel() * tensor.itemsize for tensor in parts)
    assert kv_cache.kv_cache_bytes(config, max_len, 2, slots, drop_beyond_window=False) == held
