"""Host memory between the steps of a run on a CPU; the same bits in every run on a GPU."""

import ctypes
import platform
import re
import resource

import pytest
import torch

from gristmill.errors import GristmillError
from gristmill.train.device import MMAP_THRESHOLD, deterministic, freed_memory_kept


def pages_that_had_to_come():
    """Page faults of a step: it makes tensors of 64 MB together and frees them."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    made = [torch.ones(1 << 20) for _ in range(16)]
    del made
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_what_a_step_frees_is_there_for_the_next_one():
    ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, 1 << 20)  # each of the tensors now goes back to the system
    each_time = min(pages_that_had_to_come() for _ in range(3))
    with freed_memory_kept(torch.device("cpu")):
        kept = [pages_that_had_to_come() for _ in range(4)][1:]  # the first has none yet
    assert min(kept) < each_time / 4  # one of them may find its room in pieces and take some anew


def refuse(*_):
    raise RuntimeError(
        "Deterministic behavior was enabled, but this operation is not deterministic because it uses CuBLAS: you must "
        "set an environment variable before running: CUBLAS_WORKSPACE_CONFIG=:4096:8"
    )


@pytest.mark.parametrize(
    ("value", "said"), [(None, "something was multiplied before; set it"), (":0:0", "it is ':0:0'; set it")]
)
def test_a_product_that_cannot_be_deterministic_is_refused_at_once(monkeypatch, value, said):
    if value is None:
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    else:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", value)
    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda *shape, device: ones(*shape))
    monkeypatch.setattr(torch, "mm", refuse)
    with pytest.raises(GristmillError, match=re.escape(said)), deterministic(torch.device("cuda"), True):
        raise AssertionError("not refused")
    assert not torch.are_deterministic_algorithms_enabled()


def test_inside_torch_is_deterministic_and_fills_no_memory(monkeypatch):
    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda *shape, device: ones(*shape))
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    for device, wanted in (("cuda", True), ("cuda", False), ("cpu", True)):
        with deterministic(torch.device(device), wanted):
            here = device == "cuda" and wanted
            assert torch.are_deterministic_algorithms_enabled() is here
            assert torch.utils.deterministic.fill_uninitialized_memory is not here
        assert not torch.are_deterministic_algorithms_enabled()
        assert torch.utils.deterministic.fill_uninitialized_memory
