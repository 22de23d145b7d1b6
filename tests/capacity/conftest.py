"""The simulator is held against the real engine, whose small model and tokenizer are made in tests/engine."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
