"""The roofline model (Williams, Waterman and Patterson 2009): no operation runs faster than the device's arithmetic
allows, nor faster than its memory hands it the bytes.

Pure formulas in SI units: FLOP, FLOP/s, byte, byte/s, s. A multiply-add is two FLOP.
"""

from __future__ import annotations


def ridge_flop_per_byte(peak_flops: float, bandwidth_bytes_per_s: float) -> float:
    """peak / bandwidth: the arithmetic intensity from which on arithmetic is the limit."""
    return peak_flops / bandwidth_bytes_per_s


def attainable_flops(flop_per_byte: float, peak_flops: float, bandwidth_bytes_per_s: float) -> float:
    """min(peak, intensity * bandwidth), FLOP/s."""
    return min(peak_flops, flop_per_byte * bandwidth_bytes_per_s)


def roofline_gap_factor(flop_per_byte: float, peak_flops: float, bandwidth_bytes_per_s: float) -> float:
    """peak / attainable: by what factor an operation of this intensity stays under the peak; 1 from the ridge on."""
    return peak_flops / attainable_flops(flop_per_byte, peak_flops, bandwidth_bytes_per_s)


def compute_idle_fraction(flop_per_byte: float, peak_flops: float, bandwidth_bytes_per_s: float) -> float:
    """1 - attainable / peak: the share of the arithmetic that waits for memory."""
    return 1 - attainable_flops(flop_per_byte, peak_flops, bandwidth_bytes_per_s) / peak_flops


def min_compute_bound_tokens(peak_flops: float, bandwidth_bytes_per_s: float, weight_bytes_per_param: float) -> float:
    """ridge * bytes / 2: tokens that have to share one read of the weights before arithmetic is the limit, as each
    token is 2 FLOP a parameter."""
    return ridge_flop_per_byte(peak_flops, bandwidth_bytes_per_s) * weight_bytes_per_param / 2


def decode_flop_per_byte(
    matrix_params: float,
    weight_bytes: float,
    batch: float,
    kv_bytes_per_sequence: float = 0.0,
    attention_flops_per_token: float = 0.0,
) -> float:
    """B (2 N + A) / (W + B KV): arithmetic intensity of one decoding step of B sequences, which reads all weights once
    and each sequence's keys and values once. However large the batch, it stays under (2 N + A) / KV."""
    flops = batch * (2 * matrix_params + attention_flops_per_token)
    return flops / (weight_bytes + batch * kv_bytes_per_sequence)


def decode_flop_per_byte_limit(
    matrix_params: float, kv_bytes_per_sequence: float, attention_flops_per_token: float
) -> float:
    """(2 N + A) / KV: what the intensity of decoding comes to as the batch grows without end."""
    return (2 * matrix_params + attention_flops_per_token) / kv_bytes_per_sequence


def step_floor_seconds(weight_bytes: float, kv_bytes: float, bandwidth_bytes_per_s: float) -> float:
    """(weights + keys and values) / bandwidth: the least time of a decoding step, in which each byte is read once."""
    return (weight_bytes + kv_bytes) / bandwidth_bytes_per_s


def decode_ceiling_tokens_per_s(
    weight_bytes: float, kv_bytes_per_sequence: float, batch: float, bandwidth_bytes_per_s: float
) -> float:
    """B / floor: the most tokens that B sequences together get."""
    return batch / step_floor_seconds(weight_bytes, batch * kv_bytes_per_sequence, bandwidth_bytes_per_s)


def prefill_floor_seconds(flops: float, moved_bytes: float, peak_flops: float, bandwidth_bytes_per_s: float) -> float:
    """max(FLOP / peak, bytes / bandwidth): the least time of a prompt's pass, and so of its first token."""
    return max(flops / peak_flops, moved_bytes / bandwidth_bytes_per_s)


def compute_utilization(achieved_flops: float, peak_flops: float) -> float:
    """achieved / peak."""
    return achieved_flops / peak_flops


def peak_flops_from_units(num_units: float, flop_per_clock_per_unit: float, clock_hz: float) -> float:
    """multiprocessors * FLOP per clock of each * clock: the peak that a datasheet states, dense."""
    return num_units * flop_per_clock_per_unit * clock_hz


def onchip_bandwidth_bytes_per_s(num_units: float, bytes_per_clock_per_unit: float, clock_hz: float) -> float:
    """multiprocessors * bytes per clock of each one's shared memory * clock."""
    return num_units * bytes_per_clock_per_unit * clock_hz
