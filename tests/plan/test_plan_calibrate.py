"""Measured ceilings: rates of what was timed, kept whole, taken as a device; the failure of one leaves the others."""

import contextlib
import json
import types
from dataclasses import asdict, replace

import pytest
import torch
from typer.testing import CliRunner

from gristmill import hardware
from gristmill.cli import app
from gristmill.errors import GristmillError
from gristmill.plan import calibrate as module
from gristmill.plan.calibrate import calibrate, rate, shares
from gristmill.plan.ceilings import Calibration, Ceiling, EngineFit, keep, kept, known_efficiency, store
from gristmill.plan.device import device, devices
from gristmill.plan.step_time import Efficiency, usual_efficiency


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def quick(monkeypatch):
    smaller = {"REPEATS": 2, "SECONDS_EACH": 0.002, "CPU_ARRAY": 4_000_000, "CPU_SIZE": 128}
    for name, value in (smaller | {"DISK_BYTES": 2**21, "DISK_PIECE": 2**20}).items():
        monkeypatch.setattr(module, name, value)


@pytest.fixture
def ticking(monkeypatch):
    """A clock that a run moves on by itself."""
    clock = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr(module, "perf_counter", lambda: clock.now)
    return clock


def ceiling(id, value, unit="byte/s"):
    return Ceiling(id, value, unit, 0.01, 7, "as it was")


def calibration(kind="cpu", **values):
    given = {"memory.copy": 40e9, "memory.read": 50e9, "flops.fp32": 1e12} | values
    rows = tuple(ceiling(id, value) for id, value in given.items())
    return Calibration(kind, hardware.cpu_name(), 8e9, "2026-11-23T00:00:00+00:00", {"torch": "2"}, rows)


def test_a_rate_is_the_amount_over_the_median_run(ticking, monkeypatch):
    monkeypatch.setattr(module, "LONGEST", 100.0)
    lasts = iter([0.5] * 2 + [1.0, 2.0, 1.0, 1.0, 9.0, 1.0, 1.0])

    def prepare():
        def run():
            ticking.now += next(lasts)

        return run, lambda: None

    found = rate("memory.copy", "byte/s", 100.0, "how", prepare)
    assert found.value == 100.0
    assert found.repeats == 7
    assert found.spread == pytest.approx(0.25)  # (1.5 - 1) / 2


def test_short_runs_are_timed_many_in_a_row(ticking):
    calls = []

    def prepare():
        def run():
            calls.append(1)
            ticking.now += 1e-3

        return run, lambda: None

    found = rate("memory.copy", "byte/s", 1.0, "how", prepare)
    assert found.value == pytest.approx(1000.0)
    assert len(calls) > 7 * 100


def test_slow_runs_are_few(ticking):
    def prepare():
        def run():
            ticking.now += 2.0

        return run, lambda: None

    assert rate("flops.bf16", "FLOP/s", 1.0, "how", prepare).repeats == 3
    assert ticking.now == 10.0


def test_what_fails_has_no_value_and_says_why():
    def prepare():
        raise RuntimeError("no such type here\nand a trace")

    found = rate("flops.fp8", "FLOP/s", 1.0, "how", prepare)
    assert found.value is None
    assert found.how == "RuntimeError: no such type here"


def test_this_processor_is_measured_and_then_a_device(quick, tmp_path):
    said = []
    found = calibrate("cpu", tmp_path, say=said.append)
    ids = [one.id for one in found.ceilings]
    assert ids[:4] == ["memory.copy", "memory.read", "memory.cache_copy", "flops.fp32"]
    assert ids[-2:] == ["disk.write", "disk.read"]
    assert len(said) == len(ids)
    assert all(one.value is None or one.value > 1e6 for one in found.ceilings)
    assert not list(tmp_path.glob(".calibrate*"))
    keep([found])
    here = device("cpu")
    assert here.label == "measured"
    assert here.memory_bytes == hardware.memory_bytes()
    assert here.peak("fp32") == found.value("flops.fp32")


def test_a_directory_that_cannot_be_written_costs_the_disks_figures_alone(quick, tmp_path):
    (tmp_path / "file").write_text("")
    found = calibrate("cpu", tmp_path / "file" / "below")
    assert found.value("disk.write") is None
    assert "Not a directory" in found.ceilings[-1].how
    assert found.value("memory.copy") > 0


def test_products_are_those_of_the_types(quick):
    for precision in ("fp32", "bf16"):
        run, _ = module._products(torch, precision, "cpu", 16)
        assert run().shape == (16, 16)
    run, _ = module._products(torch, "int8", "cpu", 32)
    assert run().dtype == torch.int32


def test_kinds_are_kept_beside_each_other(own_cache):
    keep([calibration("cpu")])
    keep([calibration("cuda", **{"flops.bf16": 5e14})])
    keep([calibration("cpu", **{"memory.read": 60e9})])
    assert [(one.kind, one.value("memory.read")) for one in kept()] == [("cpu", 60e9), ("cuda", 50e9)]
    assert store() == own_cache / "gristmill" / "ceilings.json"
    assert not list(store().parent.glob("*.partial"))


def test_here_is_the_accelerator_where_there_is_one(monkeypatch):
    keep([calibration("cpu"), calibration("cuda", **{"flops.bf16": 5e14})])
    monkeypatch.setattr(hardware, "may_have_gpu", lambda: True)
    assert device("here").peak("bf16") == 5e14
    monkeypatch.setattr(hardware, "may_have_gpu", lambda: False)
    assert "bf16" not in device("here").peak_flops
    assert device("cpu").memory_bandwidth == 50e9


def test_a_measured_card_stands_beside_its_datasheet():
    card = replace(calibration("cuda", **{"flops.bf16": 494.7e12}), name="NVIDIA H100 80GB HBM3")
    found = {name: value / peak for name, value, peak in shares(card)}
    assert found["flops.bf16"] == pytest.approx(0.5)
    assert found["memory.copy"] == pytest.approx(40e9 / 3.35e12)
    assert shares(calibration()) == []


def test_what_cannot_be_measured_of_a_known_card_is_its_datasheets():
    card = replace(calibration("cuda", **{"link.host_to_device": 55e9}), name="NVIDIA H100 80GB HBM3")
    here, cited = card.device("here"), device("h100-sxm")
    assert here.usd_per_hour == cited.usd_per_hour
    assert here.price_source == cited.price_source
    assert here.link_bandwidth == 450e9
    assert here.host_link_bandwidth == 55e9
    assert here.memory_bandwidth == 50e9
    assert set(here.peak_flops) == {"fp32"}
    assert (here.label, here.id) == ("measured", "here")
    unknown = calibration("cuda").device("here")
    assert unknown.usd_per_hour is None
    assert unknown.link_bandwidth is None


def test_another_machines_processor_is_not_this_one():
    keep([replace(calibration(), name="Another processor")])
    with pytest.raises(GristmillError, match=r"was measured on Another processor.*calibrate again"):
        device("here")


def test_reading_says_what_was_done_about_the_systems_cache(quick, tmp_path, monkeypatch):
    path = tmp_path / "file"
    assert module._read(path)[1] in (
        ", past the system's cache",
        ", once the system was asked to drop it from its cache",
    )
    monkeypatch.delattr(module.os, "O_DIRECT", raising=False)
    assert "asked to drop" in module._read(path)[1]
    monkeypatch.delattr(module.os, "posix_fadvise", raising=False)
    assert "perhaps from" in module._read(path)[1]


def test_products_leave_the_precision_of_fp32_as_it_was():
    before = torch.get_float32_matmul_precision()
    run, _ = module._products(torch, "tf32", "cpu", 16)
    run()
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is damaged: run gristmill plan calibrate again"),
        ('{"version": 1}', "is damaged"),
        ('{"version": 99, "devices": []}', "of another version"),
        ('{"version": 1, "devices": [{"kind": "cpu"}]}', "is damaged"),
    ],
)
def test_a_file_that_is_none_of_ours_is_refused(text, says):
    store().parent.mkdir(parents=True)
    store().write_text(text)
    with pytest.raises(GristmillError, match=says):
        device("here")


@pytest.mark.parametrize("text", ["{", '{"version": 99, "devices": []}'])
def test_measuring_again_replaces_a_file_that_is_none_of_ours(text):
    store().parent.mkdir(parents=True)
    store().write_text(text)
    keep([calibration()])
    assert device("cpu").memory_bandwidth == 50e9


def test_what_was_not_measured_is_said_to_be_missing():
    with pytest.raises(GristmillError, match="run gristmill plan calibrate first"):
        device("here")
    keep([calibration(**{"flops.fp32": None})])
    with pytest.raises(GristmillError, match="no rate of products"):
        device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(GristmillError, match="no CUDA device here"):
        calibrate("cuda")
    with pytest.raises(GristmillError, match="'tpu' cannot be measured"):
        calibrate("tpu")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("h100", "did you mean h100-sxm or h100-pcie[?]"),
        ("H200x", "did you mean h200[?]"),
        ("zz", "is not known; known are h100-sxm"),
    ],
)
def test_unknown_devices_name_the_nearest(name, says):
    with pytest.raises(GristmillError, match=says):
        device(name)


def test_datasheets_are_taken_as_they_mean():
    h100, card = device("h100-sxm"), devices()["rtx-4090"]
    assert h100.link_bandwidth == 450e9  # one of two directions
    assert h100.on_chip_bandwidth == pytest.approx(132 * 128 * 1.83e9)
    assert h100.usd_per_hour is not None
    assert "mercatus" in h100.price_source
    assert card.link_bandwidth is None
    assert card.host_link_bandwidth == 31.5e9
    with pytest.raises(GristmillError, match="fp4; known are bf16"):
        h100.peak("fp4")


def test_the_command_measures_shows_and_is_planned_with(quick, tmp_path, monkeypatch):
    runner = CliRunner()
    monkeypatch.setattr(module, "busy_cores", lambda: 0.1)
    nothing = runner.invoke(app, ["plan", "calibrate", "--show"])
    assert nothing.exit_code != 0
    assert "measure first" in str(nothing.exception)
    other = runner.invoke(app, ["plan", "calibrate", "--device", "h100-sxm"])
    assert "only cpu and cuda can be measured" in str(other.exception)
    measured = runner.invoke(app, ["plan", "calibrate", "--device", "cpu", "--directory", str(tmp_path)])
    assert measured.exit_code == 0, measured.output
    assert "memory.copy" in measured.output
    assert f"kept in {store()}" in measured.output
    monkeypatch.setattr(module, "busy_cores", lambda: 1.5)
    again = runner.invoke(app, ["plan", "calibrate", "--device", "cpu", "--directory", str(tmp_path)])
    assert "about 1.5 cores are busy" in again.stderr
    shown = json.loads(runner.invoke(app, ["plan", "calibrate", "--show", "--json"]).output)
    assert shown["devices"][0]["kind"] == "cpu"
    planned = runner.invoke(
        app,
        ["plan", "roofline", "gristmill-5m", "--device", "cpu", "--dtype", "fp32", "--batch", "2", "--seq-len", "64"],
    )
    assert planned.exit_code == 0, planned.output
    assert "measured" in planned.output


def test_a_fitted_engine_is_what_this_machine_is_planned_with():
    reached = Efficiency(compute=0.5, step_seconds=1e-3)
    fit = EngineFit("gristmill-5m", "float32", asdict(reached) | {"of_a_later_version": 1.0}, 0.07, 100, "2026-11-23")
    keep([replace(calibration(), engine=fit)])
    assert kept()[0].engine == fit
    assert known_efficiency(device("cpu")) == reached
    assert known_efficiency(device("h100-sxm")) == Efficiency.default
    earlier = {name: value for name, value in asdict(reached).items() if name != "alone_seconds"}
    keep([replace(calibration(), engine=replace(fit, efficiency=earlier))])
    assert known_efficiency(device("cpu")) == usual_efficiency(device("cpu"))
    keep([calibration()])
    assert known_efficiency(device("here")) == usual_efficiency(device("here")) != Efficiency.default


class OnTheProcessor:
    """torch, whose arrays on a card are the processor's."""

    def __init__(self, cards):
        properties = types.SimpleNamespace(L2_cache_size=2**22, multi_processor_count=4)
        graph = types.SimpleNamespace(replay=lambda: None)
        self.cuda = types.SimpleNamespace(
            synchronize=lambda: None, device_count=lambda: cards, get_device_properties=lambda number: properties,
            Stream=lambda: None, stream=lambda stream: contextlib.nullcontext(),
            CUDAGraph=lambda: graph, graph=lambda graph: contextlib.nullcontext(),
        )  # fmt: skip

    def __getattr__(self, name):
        function = getattr(torch, name)
        if name not in ("ones", "zeros", "randn", "randint"):
            return function
        return lambda *sizes, device="cpu", **named: function(*sizes, **named)


@pytest.mark.parametrize("cards", [1, 2])
def test_a_cards_measurements_are_all_made_though_some_fail(quick, monkeypatch, cards):
    for name, value in {"GPU_ARRAY": 4_000_000, "GPU_SIZE": 64, "LINK_BYTES": 1_000_000, "GRAPH_KERNELS": 3}.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)

    def failing(out):
        raise RuntimeError("no compiler")

    monkeypatch.setattr("gristmill.kernels.cached_read.cached_read", failing)
    found = {one.id: one for one in (measure() for measure in module._of_cuda(OnTheProcessor(cards)))}
    assert found.pop("memory.on_chip").how == "RuntimeError: no compiler"
    assert ("link.device_to_device" in found) == (cards > 1)
    assert {f"flops.{precision}" for precision in module.GPU_PRECISIONS} < set(found)
    assert {"link.host_to_device", "link.device_to_host", "link.both_ways", "latency.launch"} < set(found)
    assert all(one.value > 0 for one in found.values()), [one.how for one in found.values() if not one.value]
    assert "1 MiB copied within" in found["memory.cache_copy"].how


@pytest.mark.gpu
def test_a_card_reaches_a_fair_share_of_its_datasheet(tmp_path):
    found = calibrate("cuda", tmp_path)
    assert {one.id for one in found.ceilings if one.value is None} <= {"flops.fp8", "flops.int8"}
    reached = {name: value / peak for name, value, peak in shares(found)}
    for name in ("memory.copy", "memory.read", "flops.bf16", "link.host_to_device"):
        assert 0.4 < reached[name] < 1.05, name
    assert 0.5 < reached["memory.on_chip"] < 1.2
    assert found.value("memory.cache_copy") > found.value("memory.copy")
