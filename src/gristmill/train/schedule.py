"""Learning-rate schedules as pure functions of the step."""

from __future__ import annotations

import math


def cosine_with_warmup(step: int, *, steps: int, warmup_steps: int, peak: float, min_ratio: float) -> float:
    """The learning rate of step `step` (0-based): linear to `peak` over the warm-up, then half a cosine down to
    `min_ratio * peak`, reached at the last step."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    rest = max(1, steps - 1 - warmup_steps)
    progress = min(1.0, (step - warmup_steps) / rest)
    return peak * (min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * progress)))
