"""Host memory between the steps of a run on a CPU."""

import ctypes
import platform
import resource

import pytest
import torch

from gristmill.train.device import MMAP_THRESHOLD, freed_memory_kept


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
