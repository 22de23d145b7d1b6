"""hardware.toml: units and proportions that a wrong figure (sparse, GiB, bits) would break."""

import math
import subprocess
import sys
from pathlib import Path

import pytest

from gristmill.hardware import known_accelerators

ACCELERATORS = known_accelerators()
ALLOWED = {
    "name": str,
    "source": str,
    "memory_bytes": int,
    "reported_memory_bytes": int,
    "memory_bandwidth": float,
    "nvlink_bandwidth": float,
    "infinity_fabric_bandwidth": float,
    "tdp_watts": int,
    "peak_flops": dict,
}
REQUIRED = {"name", "source", "memory_bytes", "memory_bandwidth", "tdp_watts", "peak_flops"}


def test_the_expected_accelerators_are_there():
    assert set(ACCELERATORS) == {
        "h100-sxm",
        "h100-pcie",
        "h200",
        "a100-80gb-sxm",
        "a100-40gb-sxm",
        "l40s",
        "l4",
        "rtx-4090",
        "b200",
        "mi300x",
    }


@pytest.mark.parametrize("key", ACCELERATORS)
def test_fields_and_types(key):
    row = ACCELERATORS[key]
    assert set(row) >= REQUIRED
    for field, value in row.items():
        assert type(value) is ALLOWED[field], f"{key}.{field}"
    assert row["name"].startswith(("NVIDIA ", "AMD "))
    assert any(word in row["source"] for word in ("datasheet", "data sheet", "whitepaper"))


@pytest.mark.parametrize("key", ACCELERATORS)
def test_units_have_the_right_order_of_magnitude(key):
    row = ACCELERATORS[key]
    assert 20e9 < row["memory_bytes"] < 300e9
    assert row["memory_bytes"] % 10**9 == 0, "the label is decimal; binary figures are reported_memory_bytes"
    assert 200e9 < row["memory_bandwidth"] < 10e12
    assert 50 < row["tdp_watts"] <= 1200
    for link in ("nvlink_bandwidth", "infinity_fabric_bandwidth"):
        assert 300e9 <= row.get(link, 600e9) <= 2e12
    if "reported_memory_bytes" in row:
        assert 1.0 < row["reported_memory_bytes"] / row["memory_bytes"] < 1.08
        assert row["reported_memory_bytes"] % 2**20 == 0


@pytest.mark.parametrize("key", ACCELERATORS)
def test_peaks_are_dense_and_in_proportion(key):
    peaks = ACCELERATORS[key]["peak_flops"]
    assert set(peaks) <= {"bf16", "fp16", "tf32", "fp8", "int8"}
    assert all(type(value) is float and 50e12 <= value < 1e16 for value in peaks.values())
    assert peaks["bf16"] == peaks["fp16"]
    # Halving the width doubles the rate on every one of these parts; a sparse figure among dense ones shows here.
    if "tf32" in peaks:
        assert math.isclose(peaks["bf16"] / peaks["tf32"], 2, rel_tol=0.03)
    if "fp8" in peaks:
        assert math.isclose(peaks["fp8"] / peaks["bf16"], 2, rel_tol=0.03)
    # The ridge of a part with dense figures lies between 100 and 420 FLOP/byte.
    assert 100 < peaks["bf16"] / ACCELERATORS[key]["memory_bandwidth"] < 420


def test_the_h100_is_the_one_that_roofline_examples_use():
    h100 = ACCELERATORS["h100-sxm"]
    assert h100["peak_flops"]["bf16"] == pytest.approx(132 * 4096 * 1.83e9, rel=1e-3)  # SMs * FLOP/clock * boost clock
    assert h100["peak_flops"]["tf32"] == pytest.approx(132 * 2048 * 1.83e9, rel=1e-3)
    assert h100["peak_flops"]["bf16"] / h100["memory_bandwidth"] == pytest.approx(295.3, abs=0.1)
    assert ACCELERATORS["a100-80gb-sxm"]["peak_flops"]["bf16"] == pytest.approx(108 * 2048 * 1.41e9, rel=2e-3)


@pytest.mark.skipif(
    sys.platform != "linux" or any(Path("/dev").glob("nvidia[0-9]*")), reason="torch is asked where there may be a GPU"
)
def test_a_machine_without_a_gpu_is_described_without_loading_torch():
    code = "import sys; from gristmill import hardware; print(hardware.describe()['gpus'], 'torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[] False\n"
