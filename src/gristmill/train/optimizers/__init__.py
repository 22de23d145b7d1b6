"""Optimizers: AdamW, Muon, AdamW in 8 bits and Adafactor, with state where it fits, behind one contract."""

from ..schedule import learning_rate_at
from .build import build_optimizer
from .state import export_state, import_state, init_state

__all__ = ["build_optimizer", "export_state", "import_state", "init_state", "learning_rate_at"]
