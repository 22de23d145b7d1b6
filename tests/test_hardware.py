"""hardware.toml: units and proportions that a wrong figure (sparse, GiB, bits) would break."""

import math
import subprocess
import sys
from pathlib import Path

import pytest

from gristmill import hardware
from gristmill.hardware import known_accelerators

ACCELERATORS = known_accelerators()
DOCUMENT = (Path(__file__).parents[1] / "docs" / "planner.md").read_text()
ALLOWED = {
    "name": str,
    "driver_name": str,
    "memory_bytes": int,
    "reported_memory_bytes": int,
    "memory_bandwidth": float,
    "nvlink_bandwidth": float,
    "infinity_fabric_bandwidth": float,
    "tdp_watts": int,
    "peak_flops": dict,
    "cache_bytes": int,
    "num_units": int,
    "clock_hz": float,
    "pcie_bandwidth": float,
    "network_bandwidth": float,
    "usd_per_hour": list,
    "price_date": str,
    "sources": dict,
}
REQUIRED = {
    "name", "driver_name", "memory_bytes", "reported_memory_bytes", "memory_bandwidth", "pcie_bandwidth", "tdp_watts",
    "peak_flops", "sources",
}  # fmt: skip
MAY_BE_ABSENT = {"cache_bytes", "num_units", "clock_hz", "usd_per_hour", "network_bandwidth"}
LINKS = {"nvlink_bandwidth", "infinity_fabric_bandwidth"}  # absent from cards that have none
# What nobody states: the B200's clock, a price of the smaller A100, networks of cards without a server of their own.
ABSENT = {"b200": {"clock_hz"}, "a100-40gb-sxm": {"usd_per_hour"}} | {
    "mi300x": {"network_bandwidth"}, "h100-pcie": {"network_bandwidth"}, "a100-80gb-pcie": {"network_bandwidth"},
    **{key: {"network_bandwidth"} for key in ("l40s", "l4", "a10g", "rtx-4090", "rtx-5090")},
}  # fmt: skip
WITHOUT_LINKS = {"l40s", "l4", "a10g", "rtx-4090", "rtx-5090"}
WITHOUT_FP8, WITH_FP4 = {"a100-80gb-sxm", "a100-40gb-sxm", "a100-80gb-pcie", "a10g"}, {"b200", "rtx-5090"}
# FLOP of a unit's fp32 lanes in a clock, and their clock, which some parts keep above their matrix units'.
FP32 = {
    "h100-sxm": (256, 1.98e9), "h100-pcie": (256, 1.755e9), "h200": (256, 1.98e9), "a100-80gb-sxm": (128, 1.41e9),
    "a100-40gb-sxm": (128, 1.41e9), "a100-80gb-pcie": (128, 1.41e9), "b200": (256, 1.98e9), "l40s": (256, 2.52e9),
    "l4": (256, 2.04e9), "a10g": (256, 1.71e9), "rtx-4090": (256, 2.52e9), "rtx-5090": (256, 2.407e9),
    "mi300x": (256, 2.1e9),
}  # fmt: skip
# Multiply-adds of a multiprocessor's or compute unit's matrix units in a clock, times two, in 16 bits.
FLOP_PER_CLOCK = {
    "h100-sxm": 4096, "h100-pcie": 4096, "h200": 4096, "a100-80gb-sxm": 2048, "a100-40gb-sxm": 2048,
    "a100-80gb-pcie": 2048, "l40s": 1024, "l4": 1024, "a10g": 512, "rtx-4090": 512, "rtx-5090": 512, "mi300x": 2048,
}  # fmt: skip


def test_the_expected_accelerators_are_there():
    assert set(ACCELERATORS) == {
        "h100-sxm",
        "h100-pcie",
        "h200",
        "a100-80gb-sxm",
        "a100-40gb-sxm",
        "l40s",
        "l4",
        "a100-80gb-pcie",
        "a10g",
        "rtx-4090",
        "rtx-5090",
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
    figures = set(row) - {"name", "driver_name", "price_date", "sources"}
    assert set(row["sources"]) == figures, "a source for each figure, and no others"
    printed = {name: text for name, text in row["sources"].items() if name not in ("usd_per_hour", "pcie_bandwidth")}
    assert all(
        any(word in text for word in ("datasheet", "data sheet", "hitepaper", "-smi", "driver"))
        for text in printed.values()
    )
    assert ("usd_per_hour" in row) == ("price_date" in row)
    assert hardware.accelerator_named(row["driver_name"]) == key


@pytest.mark.parametrize("key", ACCELERATORS)
def test_a_card_is_complete_or_known_to_lack_a_figure(key):
    row = ACCELERATORS[key]
    assert MAY_BE_ABSENT - set(row) == ABSENT.get(key, set())
    assert len(LINKS & set(row)) == (key not in WITHOUT_LINKS)
    peaks = {"bf16", "fp16", "tf32", "fp32", "int8"}
    peaks |= set() if key in WITHOUT_FP8 else {"fp8"}
    peaks |= {"fp4"} if key in WITH_FP4 else set()
    assert set(row["peak_flops"]) == peaks


@pytest.mark.parametrize("key", ACCELERATORS)
def test_fp32_is_what_its_units_do_in_a_clock(key):
    row = ACCELERATORS[key]
    each, clock_hz = FP32[key]
    assert row["peak_flops"]["fp32"] == pytest.approx(row["num_units"] * each * clock_hz, rel=0.01)


@pytest.mark.parametrize("key", ACCELERATORS)
def test_units_have_the_right_order_of_magnitude(key):
    row = ACCELERATORS[key]
    low, high = row.get("usd_per_hour", (1, 2))
    assert 0.1 < low < high < 20
    assert 30e9 < row["pcie_bandwidth"] < 70e9
    assert 20e9 <= row.get("network_bandwidth", 20e9) <= 100e9
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
    assert set(peaks) <= {"bf16", "fp16", "tf32", "fp32", "fp8", "int8", "fp4"}
    assert all(type(value) is float and 10e12 <= value < 1e16 for value in peaks.values())
    assert peaks["bf16"] == peaks["fp16"]
    # Halving the width doubles the rate on every one of these parts; a sparse figure among dense ones shows here.
    if "tf32" in peaks:
        assert math.isclose(peaks["bf16"] / peaks["tf32"], 2, rel_tol=0.03)
    if "fp8" in peaks:
        assert math.isclose(peaks["fp8"] / peaks["bf16"], 2, rel_tol=0.03)
    if "fp4" in peaks:
        assert peaks["fp4"] / peaks["fp8"] in (2, 4)
    if key in FLOP_PER_CLOCK:
        row = ACCELERATORS[key]
        assert peaks["bf16"] == pytest.approx(row["num_units"] * row["clock_hz"] * FLOP_PER_CLOCK[key], rel=0.01)
    # The ridge of a part with dense figures lies between 100 and 420 FLOP/byte.
    assert 95 < peaks["bf16"] / ACCELERATORS[key]["memory_bandwidth"] < 420


def test_the_documents_table_is_that_of_hardware_toml():
    def shown(value, unit, form):
        return "" if value is None else f"{value / unit:{form}}"

    for id, row in ACCELERATORS.items():
        link = row.get("nvlink_bandwidth", row.get("infinity_fabric_bandwidth"))
        cells = [
            f"`{id}`",
            shown(row["reported_memory_bytes"], 1e9, ".1f"),
            shown(row["memory_bandwidth"], 1e12, ".4g"),
            *(shown(row["peak_flops"].get(precision), 1e12, ",.0f") for precision in ("bf16", "fp8", "fp4")),
            shown(link, 2e9, ".0f"),  # one of two directions
            shown(row["pcie_bandwidth"], 1e9, ".4g"),
            "{:.2f}-{:.2f}".format(*row["usd_per_hour"]) if "usd_per_hour" in row else "",
        ]
        assert f"| {' | '.join(cells)} |" in DOCUMENT, id


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


@pytest.fixture
def container(monkeypatch, tmp_path):
    """A container whose files a test writes; beside it one of another version that is not there."""

    def write(limit, used=0, statistics="inactive_file 0\n"):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        (tmp_path / "memory.current").write_text(f"{used}\n")
        (tmp_path / "memory.stat").write_text(statistics)

    files = [str(tmp_path / "memory.max"), str(tmp_path / "memory.current"), "inactive_file"]
    absent = [str(tmp_path / "absent" / name) for name in ("limit", "used")]
    monkeypatch.setattr(hardware, "CONTAINERS", ((*absent, "total_inactive_file"), tuple(files)))
    return write


def test_a_containers_limit_is_the_memory_there_is(container):
    whole, available = hardware.memory_bytes(), hardware.available_memory_bytes()
    assert 2**27 < available < whole
    container("max", 2**20)
    assert hardware.memory_bytes() == whole
    assert hardware.available_memory_bytes() == pytest.approx(available, rel=0.2)
    container(2**20, 2**19)
    assert hardware.memory_bytes() == 2**20
    assert hardware.available_memory_bytes() == 2**19


def test_pages_of_files_that_a_container_holds_are_free(container):
    container(2**20, 2**20, f"anon 5\nactive_file 7\ninactive_file {2**18}\n")
    assert hardware.available_memory_bytes() == 2**18
    container(2**20, 2**21)  # for a moment it may use more
    assert hardware.available_memory_bytes() == 0


def test_where_the_system_tells_nothing_nothing_is_made_up(monkeypatch):
    monkeypatch.setattr(hardware, "_read", lambda path: "")
    assert hardware.available_memory_bytes() is None
    assert hardware.memory_bytes() > 2**27
