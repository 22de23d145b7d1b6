"""The thresholds of the heuristic rules, by domain and by language.

A reason in `removed/` is named after the set and the field that was broken: `gopher_quality:min_words`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field, field_validator, model_validator

from .base import Frozen, check_language

TOP_NGRAMS = (2, 3, 4)
DUPLICATE_NGRAMS = (5, 6, 7, 8, 9, 10)


def _of_sizes(known: tuple[int, ...]) -> AfterValidator:
    def check(values: dict[int, float]) -> dict[int, float]:
        for n in sorted(set(values) - set(known)):
            raise ValueError(f"n-grams of {n} words are not measured; n is one of {', '.join(map(str, known))}")
        return values

    return AfterValidator(check)


TopNgrams = Annotated[dict[int, float], _of_sizes(TOP_NGRAMS)]
DuplicateNgrams = Annotated[dict[int, float], _of_sizes(DUPLICATE_NGRAMS)]


class QualityRules(Frozen):
    """Gopher's quality rules (arXiv 2112.11446, table A1) on words between blanks."""

    min_words: int = Field(default=50, ge=0, description="Fewest words that are not punctuation alone.")
    max_words: int = Field(default=100_000, gt=0, description="Most words that are not punctuation alone.")
    min_mean_word_length: float = Field(default=3.0, ge=0, description="Smallest mean length of those in characters.")
    max_mean_word_length: float = Field(default=10.0, gt=0, description="Largest mean length of those in characters.")
    max_symbol_ratio: float = Field(default=0.1, ge=0, description="Most # per word, and most ellipses per word.")
    max_bullet_lines: float = Field(default=0.9, ge=0, le=1, description="Largest share of lines beginning - or •.")
    max_ellipsis_lines: float = Field(
        default=0.3, ge=0, le=1, description="Largest share of lines ending in an ellipsis."
    )
    min_alphabetic_words: float = Field(default=0.8, ge=0, le=1, description="Smallest share of words with a letter.")
    min_stop_words: int = Field(
        default=2, ge=0, description="Fewest distinct stop words of the document's language; no list, no such rule."
    )
    stop_words: tuple[str, ...] = Field(
        default=("the", "be", "to", "of", "and", "that", "have", "with"),
        description="Stop words of English, and of documents of unknown language.",
    )


class RepetitionRules(Frozen):
    """Gopher's repetition rules (arXiv 2112.11446, table A1): largest shares of lines, paragraphs or characters."""

    max_duplicate_lines: float = Field(
        default=0.30, ge=0, le=1, description="Lines that occurred before, of all lines."
    )
    max_duplicate_paragraphs: float = Field(default=0.30, ge=0, le=1, description="The same of paragraphs.")
    max_duplicate_line_characters: float = Field(default=0.20, ge=0, le=1, description="Characters in repeated lines.")
    max_duplicate_paragraph_characters: float = Field(default=0.20, ge=0, le=1, description="The same of paragraphs.")
    max_top_ngram: TopNgrams = Field(
        default={2: 0.20, 3: 0.18, 4: 0.16}, description="Characters in the most frequent n-gram of words, by n."
    )
    max_duplicate_ngrams: DuplicateNgrams = Field(
        default={5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10},
        description="Characters in n-grams of words that occurred before, by n.",
    )


class C4Rules(Frozen):
    """C4's rules for web pages (JMLR 21:140). The first five take lines or marks out of the text before anything is
    measured; the others remove the page. Words are those between blanks, and phrases are found in any case."""

    min_words_per_line: int = Field(default=3, ge=0, description="Lines of fewer words are taken out; 0 keeps all.")
    max_word_length: int = Field(default=1000, gt=0, description="Lines with a longer word are taken out.")
    terminal_punctuation: bool = Field(
        default=False, description="Take out lines that do not end in . ? ! \" or ', or that end in an ellipsis."
    )
    dropped_lines: tuple[str, ...] = Field(
        default=(
            "javascript",
            "terms of use",
            "privacy policy",
            "cookie policy",
            "uses cookies",
            "use of cookies",
            "use cookies",
        ),
        description="Lines holding one of these phrases are taken out.",
    )
    remove_citations: bool = Field(default=True, description="Take out [1], [edit] and [citation needed].")
    forbidden_phrases: tuple[str, ...] = Field(
        default=("lorem ipsum",), description="A page holding one of these is removed."
    )
    curly_bracket: bool = Field(default=True, description="A page holding a { is removed.")
    min_sentences: int = Field(default=5, ge=0, description="Fewest sentences.")
    bad_words: str | None = Field(
        default=None, description="A file of words and phrases, one a line; a page holding one is removed."
    )


class FineWebRules(Frozen):
    """FineWeb's own rules for web pages (arXiv 2406.17557, section 3.6)."""

    min_terminal_punctuation: float = Field(
        default=0.12, ge=0, le=1, description="Smallest share of lines that end a sentence (. ? ! in any script)."
    )
    quotation_marks: bool = Field(
        default=False, description="Count lines that end in a quotation mark as ending a sentence."
    )
    short_line_characters: int = Field(default=30, gt=0, description="A line of at most so many characters is short.")
    max_short_lines: float = Field(default=0.67, ge=0, le=1, description="Largest share of short lines.")
    max_char_duplicates: float = Field(
        default=0.1, ge=0, le=1, description="Characters in repeated lines, of all but newlines (0.01 in its code)."
    )
    max_newlines_per_word: float = Field(default=0.3, ge=0, description="Most newlines per word.")


class CodeRules(Frozen):
    """Rules for source code, after The Stack (arXiv 2211.15533) and StarCoder (arXiv 2305.06161)."""

    min_words: int = Field(default=20, ge=0, description="Fewest whitespace-separated words.")
    max_line_characters: int = Field(default=1000, gt=0, description="Longest line.")
    max_mean_line_characters: float = Field(default=100, gt=0, description="Largest mean line length.")
    min_alphabetic_characters: float = Field(default=0.25, ge=0, le=1, description="Smallest share of letters.")
    max_digit_characters: float = Field(default=0.2, ge=0, le=1, description="Largest share of digits: tables of data.")
    max_hexadecimal_lines: float = Field(
        default=0.5, ge=0, le=1, description="Largest share of lines with a number such as 0x1f, \\x1f or \\u001f."
    )
    generated: Literal["keep", "drop"] = Field(default="drop", description="Files marked as written by a program.")
    vendored: Literal["keep", "drop"] = Field(
        default="keep", description="Files marked as copies of somebody else's project; duplicates go anyway."
    )


class Limit(Frozen):
    """The values that a column of measurements may have."""

    min: float | None = Field(default=None, description="Smallest value that stays.")
    max: float | None = Field(default=None, description="Largest value that stays.")


class RuleSet(Frozen):
    """The rules for one domain; null switches a set off."""

    quality: QualityRules | None = Field(default=QualityRules(), description="Gopher's quality rules.")
    repetition: RepetitionRules | None = Field(default=RepetitionRules(), description="Gopher's repetition rules.")
    c4: C4Rules | None = Field(default=None, description="C4's rules for web pages.")
    fineweb: FineWebRules | None = Field(default=None, description="FineWeb's rules for web pages.")
    code: CodeRules | None = Field(default=None, description="Rules for source code.")
    limits: dict[str, Limit] = Field(
        default={}, description="Rules of your own on any column of measurements, e.g. {uppercase_lines: {max: 0.5}}."
    )


class WebRuleSet(RuleSet):
    """Web pages are held to the page rules too."""

    c4: C4Rules | None = Field(default=C4Rules(), description="C4's rules for web pages.")
    fineweb: FineWebRules | None = Field(default=FineWebRules(), description="FineWeb's rules for web pages.")


class CodeRuleSet(RuleSet):
    """Source code has its own few rules: prose's would remove nearly all of it."""

    quality: QualityRules | None = Field(default=None, description="Gopher's quality rules.")
    repetition: RepetitionRules | None = Field(default=None, description="Gopher's repetition rules.")
    code: CodeRules | None = Field(default=CodeRules(), description="Rules for source code.")


class LanguageThresholds(Frozen):
    """What differs for one language: its stop words, and thresholds that take the place of the domain's. A field is
    named as in QualityRules, RepetitionRules or FineWebRules and means the same; null leaves the domain's."""

    stop_words: tuple[str, ...] | None = Field(
        default=None, description="Stop words as they stand in text; a document's distinct ones are counted."
    )
    min_language_score: float | None = Field(
        default=None, ge=0, le=1, description="Smallest score of the language identification."
    )
    min_words: int | None = Field(default=None, ge=0, description="Gopher quality.")
    max_words: int | None = Field(default=None, gt=0, description="Gopher quality.")
    min_mean_word_length: float | None = Field(default=None, ge=0, description="Gopher quality.")
    max_mean_word_length: float | None = Field(default=None, gt=0, description="Gopher quality.")
    max_symbol_ratio: float | None = Field(default=None, ge=0, description="Gopher quality.")
    max_bullet_lines: float | None = Field(default=None, ge=0, le=1, description="Gopher quality.")
    max_ellipsis_lines: float | None = Field(default=None, ge=0, le=1, description="Gopher quality.")
    min_alphabetic_words: float | None = Field(default=None, ge=0, le=1, description="Gopher quality.")
    min_stop_words: int | None = Field(default=None, ge=0, description="Gopher quality.")
    max_duplicate_lines: float | None = Field(default=None, ge=0, le=1, description="Gopher repetition.")
    max_duplicate_paragraphs: float | None = Field(default=None, ge=0, le=1, description="Gopher repetition.")
    max_duplicate_line_characters: float | None = Field(default=None, ge=0, le=1, description="Gopher repetition.")
    max_duplicate_paragraph_characters: float | None = Field(default=None, ge=0, le=1, description="Gopher repetition.")
    max_top_ngram: TopNgrams | None = Field(default=None, description="Gopher repetition, by n.")
    max_duplicate_ngrams: DuplicateNgrams | None = Field(default=None, description="Gopher repetition, by n.")
    min_terminal_punctuation: float | None = Field(default=None, ge=0, le=1, description="FineWeb.")
    max_short_lines: float | None = Field(default=None, ge=0, le=1, description="FineWeb.")
    max_char_duplicates: float | None = Field(default=None, ge=0, le=1, description="FineWeb.")
    max_newlines_per_word: float | None = Field(default=None, ge=0, description="FineWeb.")

    @model_validator(mode="before")
    @classmethod
    def _read_file(cls, value: Any) -> Any:
        """A path stands for what the YAML file says, so that a resolved recipe holds the values themselves."""
        if not isinstance(value, str):
            return value
        try:
            content = yaml.safe_load(Path(value).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ValueError(f"cannot read the thresholds in {value}: {error}") from None
        if not isinstance(content, dict):
            raise ValueError(f"{value} must be a YAML mapping of thresholds, such as `max_mean_word_length: 11`")
        return content


class DomainRules(Frozen):
    """Which rules hold in which domain, and what differs by language."""

    books: RuleSet = Field(default=RuleSet(), description="Rules for books.")
    web: WebRuleSet = Field(default=WebRuleSet(), description="Rules for web pages.")
    docs: RuleSet = Field(default=RuleSet(), description="Rules for documentation.")
    code: CodeRuleSet = Field(default=CodeRuleSet(), description="Rules for source code.")
    other: RuleSet = Field(default=RuleSet(), description="Rules for every other domain.")
    packaged_languages: bool = Field(
        default=True, description="Use the stop words and thresholds that gristmill ships for many languages."
    )
    languages: dict[str, LanguageThresholds] = Field(
        default={},
        description="Thresholds of a language (by ISO 639 code), over the packaged ones: a mapping, or a YAML file.",
    )

    @field_validator("languages")
    @classmethod
    def _are_codes(cls, languages: dict[str, LanguageThresholds]) -> dict[str, LanguageThresholds]:
        for name in languages:
            check_language(name)
        return languages

    def sets(self) -> dict[str, RuleSet]:
        """The rules by domain; `other` are those of all that have no name here."""
        return {"books": self.books, "web": self.web, "docs": self.docs, "code": self.code, "other": self.other}

    def of(self, domain: str) -> RuleSet:
        return self.sets().get(domain, self.other)
