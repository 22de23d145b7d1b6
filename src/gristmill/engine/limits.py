"""What an engine gets: what the caller asks for, else what the memory holds."""

from __future__ import annotations

from typing import TypedDict, TypeVar, get_args

import torch

from .. import hardware
from ..errors import GristmillError
from ..model.config import ModelConfig
from ..plan.recorded_steps import is_recorded, recorded_tokens
from ..plan.serve_memory import step_bytes
from .cache import PagedCache
from .config import Batching, CacheType, EngineConfig
from .speculation.config import SpeculationConfig

T = TypeVar("T")
CPU_SHARE, GPU_SHARE = 0.5, 0.9  # of the free memory, for a cache whose size nobody chose
CPU_SEQS, GPU_SEQS = 64, 256
MOST_SEQS = 2**14
CPU_TOKENS, GPU_TOKENS = 2048, 8192
CPU_BLOCK, GPU_BLOCK = 16, 64


class Limits(TypedDict, total=False):
    """What a caller may ask for; each is a field of `EngineConfig` or says how one is found."""

    max_num_seqs: int | None
    max_model_len: int | None
    max_num_batched_tokens: int | None
    memory_utilization: float | None  # share of the free memory that the cache may take
    num_blocks: int | None  # of the cache, instead of a share
    block_size: int | None
    kv_dtype: CacheType
    prefix_caching: bool
    chunked_prefill: bool
    batching: Batching
    run_ahead: int | None
    graphs: bool
    batch_invariant: bool
    speculation: SpeculationConfig | None


def engine_config(model: ModelConfig, dtype: torch.dtype, device: torch.device, limits: Limits) -> EngineConfig:
    """The engine's configuration; GristmillError where the model or the memory does not allow what was asked for, with
    what was needed, what there is and what would fit.

    `max_model_len` defaults to the model's own; the cache to as many blocks as `memory_utilization` of the free memory
    holds, but no more than `max_num_seqs` sequences of that length can fill.
    """
    if not model.causal:
        raise GristmillError("this model reads in both directions (causal: false): it writes no text, nothing to serve")
    on_gpu = device.type == "cuda"
    longest = _given(limits.get("max_model_len"), model.max_seq_len)
    if not 0 < longest <= model.max_seq_len:
        raise GristmillError(f"max_model_len is {longest}; this model takes 1 to {model.max_seq_len} tokens")
    seqs = _at_least_one("max_num_seqs", _given(limits.get("max_num_seqs"), GPU_SEQS if on_gpu else CPU_SEQS))
    if seqs > MOST_SEQS:
        raise GristmillError(f"max_num_seqs is {seqs}; at most {MOST_SEQS}")
    budget = _given(limits.get("max_num_batched_tokens"), max(GPU_TOKENS if on_gpu else CPU_TOKENS, seqs))
    if budget < seqs:
        raise GristmillError(f"max_num_batched_tokens is {budget}; it must be at least max_num_seqs ({seqs})")
    if limits.get("chunked_prefill") is False and budget < longest:
        raise GristmillError(
            f"without chunked_prefill a prompt is read in one step: max_num_batched_tokens ({budget}) must be at least "
            f"max_model_len ({longest})"
        )
    for name, values in (("kv_dtype", get_args(CacheType)), ("batching", get_args(Batching))):
        if limits.get(name, values[0]) not in values:
            raise GristmillError(f"{name} is {limits.get(name)!r}; it is one of {', '.join(values)}")
    size = _at_least_one("block_size", _given(limits.get("block_size"), GPU_BLOCK if on_gpu else CPU_BLOCK))
    return EngineConfig(
        max_num_seqs=seqs,
        max_model_len=longest,
        max_num_batched_tokens=budget,
        block_size=size,
        num_blocks=_num_blocks(model, dtype, device, limits, seqs * -(-longest // size), size, longest, budget, seqs),
        kv_dtype=limits.get("kv_dtype", "auto"),
        prefix_caching=limits.get("prefix_caching", True),
        chunked_prefill=limits.get("chunked_prefill", True),
        batching=limits.get("batching", "continuous"),
        run_ahead=_given(limits.get("run_ahead"), int(on_gpu)),
        graphs=limits.get("graphs", True),
        batch_invariant=limits.get("batch_invariant", False),
        speculation=limits.get("speculation"),
    )


def _num_blocks(
    model: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    limits: Limits,
    useful: int,
    size: int,
    longest: int,
    tokens: int,
    seqs: int,
) -> int:
    """Blocks of the cache; `useful` are the most that can ever be filled, a step has at most `tokens` tokens of `seqs`
    sequences."""
    rows = seqs  # of logits
    if (guessing := limits.get("speculation")) is not None:
        rows = max(rows, min(seqs, guessing.max_batch) * (1 + guessing.num_tokens))
    working = step_bytes(model, tokens, rows, dtype.itemsize)
    if device.type == "cuda" and limits.get("graphs", True) and is_recorded(model):
        # Graphs keep a step's memory to themselves. One that reads prompts beside decoding has twice the rows at most.
        recorded = rows if limits.get("batch_invariant") else max(recorded_tokens(model, tokens), rows)
        working += step_bytes(model, recorded, 2 * rows, dtype.itemsize)
    share = _given(limits.get("memory_utilization"), GPU_SHARE if device.type == "cuda" else CPU_SHARE)
    if not 0 < share <= 1:
        raise GristmillError(f"memory_utilization is {share}; it must be above 0 and at most 1")
    each = PagedCache.bytes_per_block(model, size, dtype, limits.get("kv_dtype", "auto"))
    free = free_memory(device)
    room = max(int(min(free * share, free - working)), 0) // each
    asked = limits.get("num_blocks")
    blocks = min(useful, room) if asked is None else _at_least_one("num_blocks", asked)
    needed = -(-longest // size)
    if blocks < needed:
        holds = f"num_blocks = {asked} of {size} tokens hold" if asked is not None else f"{share:.0%} of it holds"
        there = "" if asked is not None else f", and {in_gb(free)} are free"
        fits = f"set max_model_len to at most {blocks * size}" if blocks else "free some memory"
        step = ""
        if asked is None and free - working < free * share:
            step = f" beside {in_gb(working)} that a step of max_num_batched_tokens = {tokens} takes"
            holds = "what is left holds"
            fits += ", or lower max_num_batched_tokens"
        raise GristmillError(
            f"one sequence of max_model_len = {longest} tokens needs {in_gb(needed * each)} of cache{step}{there}: "
            f"{holds} {blocks * size} tokens; {fits}, or raise "
            f"{'num_blocks' if asked is not None else 'memory_utilization'}"
        )
    if blocks * each + working > free:
        raise GristmillError(
            f"num_blocks = {blocks} need {in_gb(blocks * each)} of cache, a step {in_gb(working)}; {in_gb(free)} are "
            f"free: set at most {max(int(free - working), 0) // each}"
        )
    return blocks


def in_gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


def _given(value: T | None, default: T) -> T:
    return default if value is None else value


def _at_least_one(name: str, value: int) -> int:
    if value < 1:
        raise GristmillError(f"{name} is {value}; it must be at least 1")
    return value


def free_memory(device: torch.device) -> int:
    """Bytes that a new allocation on the device may take."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # an engine that is no more has left its cache to torch
        return torch.cuda.mem_get_info(device)[0]
    available = hardware.available_memory_bytes()
    return hardware.memory_bytes() // 2 if available is None else available
