"""The chat templates that come with gristmill, and those of users' files."""

from __future__ import annotations

import hashlib
from pathlib import Path

from gristmill.errors import GristmillError

from ..config import TokenizerConfig

BUILTIN_TEMPLATES = ("chatml", "llama3", "zephyr")


def builtin_template(name_or_path: str) -> str:
    """The Jinja source of `chatml`, `llama3` or `zephyr`, or that of a file."""
    if name_or_path in BUILTIN_TEMPLATES:
        path = Path(__file__).with_name(f"{name_or_path}.jinja")
    else:
        path = Path(name_or_path)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise GristmillError(
            f"tokenizer.chat_template is {name_or_path!r}, which is none of {', '.join(BUILTIN_TEMPLATES)} and cannot "
            f"be read as a file: {error}"
        ) from None


def identity(config: TokenizerConfig) -> str:
    """What a tokenizer depends on beside its configuration and the corpus: the text of its template. Part of the
    stage's fingerprint."""
    return hashlib.sha256(builtin_template(config.chat_template).encode()).hexdigest()
