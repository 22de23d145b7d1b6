"""What the page's tests share: one finished run, read only, and the model server's stand-in."""

from __future__ import annotations

from pathlib import Path

import pytest
from page_run import make_run


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run. Read only: tests that change one make their own."""
    return make_run(tmp_path_factory.mktemp("runs") / "quickstart")
