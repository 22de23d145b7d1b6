"""The settings of an import, as its manifest keeps them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

ImportDtype = Literal["float32", "bfloat16", "float16"]


class ImportConfig(BaseModel):
    """Where a model came from. `sha256` rather than a path says which file it was."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = Field(description="Name of the package, the file or the directory.")
    sha256: str = Field(description="Hash of the GGUF file, or over the hashes of the directory's files.")
    dtype: ImportDtype = Field(default="bfloat16", description="Type in which the weights are saved.")
