"""Learning-rate schedules as a pure function of the step."""

from __future__ import annotations

import math

from .config import TrainingConfig


def learning_rate_at(step: int, config: TrainingConfig) -> float:
    """The learning rate of step `step`, from 0: a linear warm-up that reaches the peak in its last step, then

    - `cosine`: half a cosine from the peak down to `min_lr_ratio * learning_rate` (Loshchilov & Hutter 2016, equation
      5, without restarts);
    - `wsd`: the peak, then `decay_fraction` of all steps in which it falls linearly to the same (Hu et al. 2024,
      MiniCPM, section 4; Hägele et al. 2024);
    - `constant`: the peak.

    The lowest rate is that of the last step, and of `tail_steps` steps if these are more than one.
    """
    peak, low = config.learning_rate, config.learning_rate * config.min_lr_ratio
    if step < config.warmup_steps:
        return peak * (step + 1) / config.warmup_steps
    lowest = config.steps - max(1, config.tail_steps)
    if config.tail_steps and step >= lowest:
        return low
    if config.schedule == "cosine":
        progress = _share(step, config.warmup_steps, lowest)
        return low + (peak - low) * 0.5 * (1 + math.cos(math.pi * progress))
    if config.schedule == "wsd":
        decay = max(1, round(config.decay_fraction * config.steps))
        return peak - (peak - low) * _share(step, max(config.warmup_steps, lowest - decay), lowest)
    return peak


def _share(step: int, start: int, end: int) -> float:
    """How far `step` is from `start` to `end`, from 0 to 1."""
    return min(1.0, max(0, step - start) / max(1, end - start))
