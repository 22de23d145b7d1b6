"""gristmill: raw text in, served model out.

    gristmill.run("recipes/quickstart.yaml")
    model = gristmill.load_model("runs/quickstart")
    llm = gristmill.LLM("runs/quickstart")
    llm.generate(["Once upon a time"], gristmill.SamplingParams(max_tokens=32))

The names below load on first use, so that `import gristmill` stays fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine.llm import LLM
    from .engine.sampling import SamplingParams
    from .errors import GristmillError
    from .pipeline import run
    from .weights.encoders import load_encoder, load_encoder_decoder
    from .weights.load import load_model

__all__ = ["LLM", "GristmillError", "SamplingParams", "load_encoder", "load_encoder_decoder", "load_model", "run"]

_HOMES = {
    "LLM": "engine.llm",
    "SamplingParams": "engine.sampling",
    "GristmillError": "errors",
    "load_encoder": "weights.encoders",
    "load_encoder_decoder": "weights.encoders",
    "load_model": "weights.load",
    "run": "pipeline",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
