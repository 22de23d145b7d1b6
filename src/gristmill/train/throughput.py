"""How much arithmetic a training step is, and what share of the hardware's peak that makes (MFU).

The one convention, wherever gristmill says MFU: model FLOPs over the time that training took and over the peak of all
devices that took part.
- Model FLOPs are those of plan/flops.py: 6 for every parameter of a matrix that a token meets (the head counts, tied or
  not; lookups, norms and biases do not), and attention's scores and weighted sums with the keys that a token may see,
  which halves them in a causal layer (PaLM's appendix B counts them whole, so figures by it are higher). What
  activation checkpointing computes again is not counted: it is no progress.
- The peak is the datasheet's for dense products of 16 bits, for fp8 too: so its gain shows. fp32 stands beside tf32.
- Time is the loop's: making and waiting for batches, communication and the optimizer are in it; evaluation, samples,
  checkpoints and the first step, which compiles, are not.
"""

from __future__ import annotations

from .. import hardware
from ..model.config import ModelConfig
from ..plan.flops import flops_per_token_training

PEAK_OF_PRECISION = {"bf16": "bf16", "fp16": "fp16", "fp8": "bf16", "fp32": "tf32"}


def flops_per_token(config: ModelConfig, sequence_length: int) -> float:
    """FLOPs of forward and backward for each token of a sequence of this length."""
    return flops_per_token_training(config, sequence_length)


def peak_flops(device_name: str, precision: str) -> float | None:
    """FLOP/s of the device called so by its driver, at a precision of the loop (fp32, bf16, fp16, fp8) and by the
    convention above; None where hardware.toml does not know the device, and so for every CPU."""
    key = hardware.accelerator_named(device_name)
    if key is None:
        return None
    peak: float | None = hardware.known_accelerators()[key]["peak_flops"].get(PEAK_OF_PRECISION[precision])
    return peak


def mfu(tokens_per_second: float, flops_per_token: float, peak: float, processes: int = 1) -> float:
    """Model FLOPs utilization, 0 to 1: `tokens_per_second` of all processes, `peak` FLOP/s of the device of each."""
    return tokens_per_second * flops_per_token / (peak * processes)
