"""What every configuration of the data stages is: a frozen model that knows no key but its own."""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Nothing changes after it was checked, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def check_language(name: str) -> None:
    """ValueError where a name is no language code as fastText and the packaged thresholds write it."""
    if re.fullmatch("[a-z]{2,3}", name) is None:
        code = re.split("[-_]", name)[0].lower()
        hint = f"name it `{code}`" if re.fullmatch("[a-z]{2,3}", code) else "name it by its code, such as `pt`"
        raise ValueError(f"{name!r} is no code of a language, which is two or three small letters; {hint}")
