"""gzip beside the models: the real gzip is the oracle."""

from __future__ import annotations

import gzip
import shutil
import subprocess

import pytest

from gristmill.evaluate.compression import gzip_bits_per_byte

TEXT = b"In the beginning was the word, and the word was in the beginning.\n" * 300


def test_counts_the_whole_container() -> None:
    empty = len(gzip.compress(b"", 9, mtime=0))
    assert empty == 20
    assert gzip_bits_per_byte(b"a") == 8 * len(gzip.compress(b"a", 9, mtime=0))
    assert gzip_bits_per_byte(TEXT) < 0.2 < gzip_bits_per_byte(bytes(range(256)))


@pytest.mark.skipif(shutil.which("gzip") is None, reason="gzip is not installed")
def test_agrees_with_the_gzip_program() -> None:
    packed = subprocess.run(["gzip", "-9", "-n", "-c"], input=TEXT, capture_output=True, check=True).stdout
    # Both are Deflate at level 9; the program's own implementation may choose a few other codes than zlib.
    assert gzip_bits_per_byte(TEXT) == pytest.approx(8 * len(packed) / len(TEXT), rel=0.03)
