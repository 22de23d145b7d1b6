"""The kernel that reads what a multiprocessor holds reads as often as it is said to."""

import pytest
import torch

from gristmill.kernels.available import has_triton

pytestmark = pytest.mark.skipif(not has_triton(), reason="no Triton here")


def test_every_tile_is_read_every_round():
    from gristmill.kernels.cached_read import TILE, cached_read

    device = "cuda" if torch.cuda.is_available() else "cpu"
    sums = cached_read(torch.zeros(1, device=device), programs=2, rounds=5)
    assert sums.tolist() == [5.0 * TILE] * 2
