"""What every configuration of the data stages is: a frozen model that knows no key but its own."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Nothing changes after it was checked, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
