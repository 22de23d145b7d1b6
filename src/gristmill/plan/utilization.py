"""Which share of a device's peak training reaches: what gristmill's own runs measured."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..model.config import ModelConfig
from .device import Device


@dataclass(frozen=True)
class MeasuredShare:
    """MFU of one device: attention counted causally, by the dense 16-bit peak, for fp8 too."""

    shape: str
    hidden_size: int
    share: float
    precision: str = "bf16"


# benchmarks/RESULTS.md, "Training on a GPU, 2026-11-22": one H100 SXM, sequences of 2,048, bf16 weights, AdamW. The fp8
# figure is that of the same shape in bf16, times the 78,783 over 67,894 tokens/s measured on the same code.
MEASURED_ON = "h100-sxm"
MEASURED = (
    MeasuredShare("135m (30 x 576)", 576, 0.367),
    MeasuredShare("d12 (12 x 768)", 768, 0.439),
    MeasuredShare("1.2b (16 x 2,048)", 2048, 0.548),
    MeasuredShare("1.2b (16 x 2,048) in fp8", 2048, 0.548 * 78_783 / 67_894, "fp8"),
)


def measured_share(config: ModelConfig, precision: str = "bf16") -> MeasuredShare:
    """The measured run whose width is nearest, by its ratio; in fp8 the one there is, in all else those in bf16."""
    kind = "fp8" if precision == "fp8" else "bf16"
    return min(
        (run for run in MEASURED if run.precision == kind),
        key=lambda run: abs(math.log(config.hidden_size / run.hidden_size)),
    )


def narrowing(width: float, parts: int) -> float:
    """By what factor the share falls when products of this width are cut into `parts` (tensor parallelism): as it does
    between the widths measured, by straight lines between their logarithms, continued below, level above."""
    return _at(width / parts) / _at(width) if parts > 1 else 1.0


def _at(width: float) -> float:
    runs = [run for run in MEASURED if run.precision == "bf16"]
    if width >= runs[-1].hidden_size:
        return runs[-1].share
    above = next(i for i in range(1, len(runs)) if width < runs[i].hidden_size)
    low, high = runs[above - 1], runs[above]
    slope = math.log(high.share / low.share) / math.log(high.hidden_size / low.hidden_size)
    return low.share * (width / low.hidden_size) ** slope


def product_width(config: ModelConfig) -> float:
    """The width that says how efficient a model's products are: hidden_size, or where its experts are narrower than the
    8/3 of it that the measured shapes have, 3/8 of theirs."""
    if config.experts is None:
        return config.hidden_size
    return min(config.hidden_size, config.experts.intermediate_size * 3 / 8)


def peak_of(card: Device, precision: str) -> float:
    """Of dense products; fp8 is counted beside the 16-bit peak, as train/throughput.py has it, fp32 beside tf32."""
    kind = "tf32" if precision == "fp32" else "bf16"
    if kind not in card.peak_flops and precision in card.peak_flops:
        kind = precision
    return card.peak(kind)
