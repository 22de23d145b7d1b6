"""How many slots of the cache an engine gets: what the caller asks for, or what fits in memory."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from ..errors import GristmillError
from ..model.config import ModelConfig
from .cache import SlotCache
from .config import EngineConfig

DEFAULT_SLOTS = 64
DEFAULT_SHARE = 0.5  # of the free memory, for a cache whose size nobody chose


def engine_config(
    model: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    max_num_seqs: int | None = None,
    max_model_len: int | None = None,
    max_num_batched_tokens: int = 2048,
) -> EngineConfig:
    """The engine's limits; GristmillError where the model or the memory does not allow what was asked for.

    `max_model_len` defaults to the model's own, `max_num_seqs` to 64 or as many as half of the free memory holds.
    """
    if not model.causal:
        raise GristmillError("this model reads in both directions (causal: false): it writes no text, nothing to serve")
    if max_model_len is None:
        max_model_len = model.max_seq_len
    if not 0 < max_model_len <= model.max_seq_len:
        raise GristmillError(f"max_model_len is {max_model_len}; this model takes 1 to {model.max_seq_len} tokens")
    slot_bytes = SlotCache.bytes_per_slot(model, max_model_len, dtype)
    free = free_memory(device)
    if max_num_seqs is None:
        max_num_seqs = min(DEFAULT_SLOTS, max_num_batched_tokens, int(free * DEFAULT_SHARE) // slot_bytes)
        if max_num_seqs < 1:
            raise GristmillError(
                f"one sequence of {max_model_len} tokens needs {slot_bytes / 1e9:.1f} GB of cache, more than half of "
                f"the {free / 1e9:.1f} GB that are free; set a smaller max_model_len"
            )
    if max_num_seqs < 1:
        raise GristmillError(f"max_num_seqs is {max_num_seqs}; it must be at least 1")
    if max_num_seqs * slot_bytes > free:
        raise GristmillError(
            f"max_num_seqs = {max_num_seqs} sequences of max_model_len = {max_model_len} tokens need "
            f"{max_num_seqs * slot_bytes / 1e9:.1f} GB of cache; {free / 1e9:.1f} GB are free: lower one of the two"
        )
    if max_num_batched_tokens < max_num_seqs:
        raise GristmillError(
            f"max_num_batched_tokens is {max_num_batched_tokens}; it must be at least max_num_seqs ({max_num_seqs})"
        )
    return EngineConfig(
        max_num_seqs=max_num_seqs, max_model_len=max_model_len, max_num_batched_tokens=max_num_batched_tokens
    )


def free_memory(device: torch.device) -> int:
    """Bytes that a new allocation on the device may take."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
