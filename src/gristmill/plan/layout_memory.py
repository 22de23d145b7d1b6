"""A quick estimate of what a device holds in a layout, for looking through thousands of them.

States as plan/training.py has them, the fullest stage's share; activations of 1F1B's micro-batches in flight, cut by
sequence parallelism; the logits of a chunk. Mostly within a tenth of what plan/parallel_memory.py reckons in detail,
up to a third under it (experts, no checkpointing): what this lets through is reckoned with care before it counts.
"""

from __future__ import annotations

import math

from .activations import Checkpointing, kept_bytes, recomputed_bytes
from .layouts import Layout
from .memory import BATCH_BYTES, LIBRARY_BYTES, logits_chunk
from .schedule_bubble import in_flight_micro_batches
from .training import optimizer_bytes
from .training_step import Schedule, Work

MODES: tuple[Checkpointing, ...] = ("none", "selective", "block")


class LayoutMemory:
    """Bytes a device for one model and optimizer, whatever the layout."""

    def __init__(self, work: Work, optimizer: str = "adamw"):
        config, arithmetic = work.config, work.arithmetic
        self.work = work
        params = work.dense_params + work.expert_params
        params += work.table_params * (1 if config.tie_embeddings else 2)
        self.state = optimizer_bytes(config, optimizer, arithmetic.weight) / params  # bytes a parameter
        self.kept = {mode: kept_bytes(config, arithmetic, mode) / work.layers for mode in MODES}
        self.again = {mode: recomputed_bytes(config, arithmetic, mode) for mode in MODES}
        self.working = float(LIBRARY_BYTES[arithmetic.device])
        self._logits: dict[int, float] = {}

    def states(self, layout: Layout) -> float:
        """Weights, gradients and the optimizer's: stage 1 cuts the optimizer's over data-parallel devices, 2 and 3 all
        of them; what is gathered, in the products' type, is all weights in stage 2, the table and three blocks in 3."""
        g, e = self.work.arithmetic.weight, self.work.arithmetic.operand
        dense, experts = self.work.device_params(layout)
        whole, total = 2 * g + self.state, 0.0
        for params, members in ((dense, layout.data), (experts, layout.data // layout.expert)):
            cut = {0: 0.0, 1: self.state}.get(layout.zero, whole)
            total += params * (whole - cut + cut / members)
        if layout.zero == 2:
            total += (dense + experts) * e
        elif layout.zero == 3:
            table = self.work.table_params / layout.tensor
            total += e * (table + 3 * (dense + experts - table) / math.ceil(self.work.layers / layout.pipeline))
        return total

    def activations(self, layout: Layout, schedule: Schedule) -> float:
        """Of the fullest stage: the first, with most micro-batches in flight, or the one with the logits."""
        layers = math.ceil(self.work.layers / layout.pipeline)
        mode = schedule.checkpointing
        flying = in_flight_micro_batches(layout.pipeline, schedule.micro_batches, schedule.interleaved)
        each = schedule.tokens / layout.tensor
        first = each * (self.kept[mode] * layers * flying + self.again[mode])
        last = each * (self.kept[mode] * layers + self.again[mode]) + self._chunk(schedule.tokens) / layout.tensor
        return max(first if layout.pipeline > 1 else last, last) + schedule.tokens * BATCH_BYTES

    def total(self, layout: Layout, schedule: Schedule) -> float:
        return self.states(layout) + self.activations(layout, schedule) + self.working

    def _chunk(self, tokens: int) -> float:
        """Logits, the hidden states' gradients, and the head's gradient in float32."""
        if tokens not in self._logits:
            config, e = self.work.config, self.work.arithmetic.operand
            chunk = logits_chunk(tokens, config.vocab_size, e, self.work.arithmetic.device)
            self._logits[tokens] = chunk * config.vocab_size * e + 2.0 * tokens * e * config.hidden_size
            self._logits[tokens] += 4.0 * self.work.table_params
        return self._logits[tokens]
