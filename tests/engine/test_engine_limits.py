"""What memory allows, and what is said where it is too little."""

from __future__ import annotations

import pytest
import torch

from gristmill.engine import limits as module
from gristmill.engine.limits import engine_config
from gristmill.errors import GristmillError
from gristmill.model.presets import preset
from gristmill.plan.parameters import total_params
from gristmill.plan.recorded_steps import recorded_tokens
from gristmill.plan.serve_memory import step_bytes

GPU = torch.device("cuda")
LLAMA = preset("llama-3-8b")


def config_with(free, monkeypatch, **limits):
    monkeypatch.setattr(module, "free_memory", lambda device: free)
    return engine_config(LLAMA, torch.bfloat16, GPU, limits)


def test_a_step_of_a_large_model_has_its_room(monkeypatch):
    """8,192 tokens through layers of 14,336, and logits of 256 sequences over 128,256 tokens; graphs have room of their
    own for the largest steps that are recorded, of 1,058 tokens."""
    each = 2 * (4 * 4096 + 3 * 14336)
    logits = 256 * 128256 * (2 + 16)
    assert step_bytes(LLAMA, 8192, 256) == 8192 * each + logits
    free, recorded = 8e9, recorded_tokens(LLAMA)
    assert recorded == int(1.7e13 / (2 * total_params(LLAMA))) == 1058
    for graphs, taken in ((False, 8192 * each + logits), (True, (8192 + recorded) * each + 3 * logits)):
        config = config_with(int(free), monkeypatch, graphs=graphs)
        cache = config.num_blocks * config.block_size * 131072  # 32 layers, 8 heads of 128, keys and values in 2 bytes
        assert free - taken - 64 * 131072 < cache <= free - taken


def test_a_share_is_a_share_where_it_is_less(monkeypatch):
    config = config_with(int(60e9), monkeypatch, max_num_seqs=4096, memory_utilization=0.5)
    assert config.num_blocks == int(30e9) // (64 * 131072)


def test_too_little_is_said_with_what_fits(monkeypatch):
    with pytest.raises(
        GristmillError,
        match=r"max_model_len = 8192 tokens needs 1\.1 GB of cache beside 2\.9 GB that a step of "
        r"max_num_batched_tokens = 8192 takes, and 2\.9 GB are free: what is left holds \d+ tokens; "
        r"set max_model_len to at most \d+, or lower max_num_batched_tokens, or raise memory_utilization",
    ):
        config_with(int(2.9e9), monkeypatch)
    assert config_with(int(1.7e9), monkeypatch, max_num_batched_tokens=1024, max_num_seqs=16).num_blocks >= 128


def test_blocks_that_leave_no_room_for_a_step_are_refused(monkeypatch):
    with pytest.raises(GristmillError, match=r"num_blocks = 900 need 7\.5 GB of cache, a step 2\.9 GB; 8\.0 GB are"):
        config_with(int(8e9), monkeypatch, num_blocks=900)


def test_what_is_no_kind_is_named(monkeypatch):
    with pytest.raises(GristmillError, match="kv_dtype is 'fp4'; it is one of auto, fp8, int8"):
        config_with(int(60e9), monkeypatch, kv_dtype="fp4")
    with pytest.raises(GristmillError, match="batching is 'often'; it is one of continuous, static, naive"):
        config_with(int(60e9), monkeypatch, batching="often")
