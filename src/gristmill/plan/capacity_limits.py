"""How much fits: the memory left for keys and values, the sequences it holds, the devices a model needs.

Pure formulas; bytes are bytes, shares are fractions.
"""

from __future__ import annotations

import math


def kv_budget_bytes(memory_bytes: float, utilization: float, weight_bytes: float, overhead_bytes: float = 0.0) -> float:
    """utilization * memory - weights - overhead: what is left for keys and values; 0 where the weights do not fit."""
    return max(utilization * memory_bytes - weight_bytes - overhead_bytes, 0.0)


def max_concurrent_sequences(budget_bytes: float, bytes_per_sequence: float) -> int:
    """floor(budget / bytes of a sequence's keys and values), never below 0."""
    return max(math.floor(budget_bytes / bytes_per_sequence), 0)


def min_devices(required_bytes: float, memory_bytes: float, utilization: float = 1.0) -> int:
    """ceil(bytes / (utilization * memory of a device)), at least 1."""
    return max(math.ceil(required_bytes / (utilization * memory_bytes)), 1)


def min_nodes(required_bytes: float, memory_bytes: float, devices_per_node: int, utilization: float = 1.0) -> int:
    """ceil(devices / devices of a node)."""
    return math.ceil(min_devices(required_bytes, memory_bytes, utilization) / devices_per_node)


def model_load_seconds(weight_bytes: float, read_bytes_per_s: float) -> float:
    """weights / rate of reading them."""
    return weight_bytes / read_bytes_per_s


def kv_memory_fraction(kv_bytes: float, memory_bytes: float) -> float:
    """keys and values / memory."""
    return kv_bytes / memory_bytes
