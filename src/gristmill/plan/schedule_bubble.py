"""Pipelines: how long their devices idle, and how evenly a model's layers can be shared out among stages.

p stages, m micro-batches of a step, v chunks of layers that each device holds (1 unless the schedule is interleaved).
"""

from __future__ import annotations

import math


def bubble_share(stages: int, micro_batches: int, interleaved: int = 1) -> float:
    """(p - 1) / (v m + p - 1): the share of a step in which a device waits, for GPipe and 1F1B with v = 1 (Huang et al.
    2019, section 2.3), and interleaved (Narayanan et al. 2021, section 2.2)."""
    return (stages - 1) / (interleaved * micro_batches + stages - 1)


def in_flight_micro_batches(stages: int, micro_batches: int, interleaved: int = 1) -> float:
    """Micro-batches whose activations the first stage keeps at once in 1F1B: p, but no more than there are; interleaved
    p (1 + (p - 1) / (p v)) of them (Korthikanti et al. 2022, section 4.2.3)."""
    kept = stages + ((stages - 1) / interleaved if interleaved > 1 else 0)
    return min(kept, micro_batches)


def slowest_stage(layers: int, stages: int, head: float = 0.0) -> float:
    """Work of the slowest stage, in layers, where layers are shared out as evenly as whole ones can be. The last stage
    also has the head, which is as much work as `head` layers."""
    if stages == 1:
        return layers + head
    return min(max(math.ceil((layers - last) / (stages - 1)), last + head) for last in range(layers // stages + 1))
