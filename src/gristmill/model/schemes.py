"""The names of the ways to draw random weights (model/init.py); torch-free, so that recipes can be checked without."""

from __future__ import annotations

from typing import Literal

InitScheme = Literal["gpt2", "depth_scaled", "mup"]
