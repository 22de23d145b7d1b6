"""The thresholds of the heuristic rules."""

from __future__ import annotations

from pydantic import Field

from .base import Frozen


class QualityRules(Frozen):
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


class RepetitionRules(Frozen):
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


class PageRules(Frozen):
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


class RuleSet(Frozen):
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


class DomainRules(Frozen):
    """Which rules hold in which domain."""

    books: RuleSet = Field(default=RuleSet(), description="Rules for books.")
    web: WebRuleSet = Field(default=WebRuleSet(), description="Rules for web pages.")
    docs: RuleSet = Field(default=RuleSet(), description="Rules for documentation.")
    code: CodeRuleSet = Field(default=CodeRuleSet(), description="Rules for source code.")
    other: RuleSet = Field(default=RuleSet(), description="Rules for every other domain.")

    def of(self, domain: str) -> RuleSet:
        named: dict[str, RuleSet] = {"books": self.books, "web": self.web, "docs": self.docs, "code": self.code}
        return named.get(domain, self.other)
