"""The heuristic rules that decide whether a document is worth training on: thresholds on columns of measurements.

Each set of rules is a configuration in `config/rules.py`, where every threshold is a field; a reason is named after its
set and the field that was broken, such as `gopher_quality:min_words` or `code:max_line_characters`.

A batch may hold documents of any domains and languages: each is held to the rules of its own. A threshold comes from
the first of these that gives one: the recipe's `languages`; the recipe's rules for the domain, where they differ from
the default; the file shipped for the language (`languages/CODE.yaml`); the default.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from gristmill.errors import GristmillError

from .config import DomainRules, LanguageThresholds, NearDuplicateConfig, RuleSet
from .config.rules import DUPLICATE_NGRAMS, TOP_NGRAMS
from .step import Mask, Rule

MEASUREMENT = 1  # goes up when a column comes to mean something else
DEFAULT_LANGUAGE = "en"
LANGUAGES = Path(__file__).parent / "languages"

Threshold = Callable[[RuleSet], float | None]
Set = TypeVar("Set", bound=BaseModel)


@cache
def packaged_thresholds(language: str) -> LanguageThresholds:
    """What gristmill ships for a language (ISO 639 code); nothing where it ships nothing."""
    path = LANGUAGES / f"{language}.yaml"
    if not language.isalpha() or not path.exists():
        return LanguageThresholds()
    try:
        return LanguageThresholds.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except (yaml.YAMLError, ValidationError) as error:
        raise GristmillError(f"{path} is no file of language thresholds: {error}") from None


def effective_rules(rules: DomainRules, domain: str, language: str) -> RuleSet:
    """The rules that a document of this domain and language is held to, every threshold settled."""
    found = rules.of(domain)
    packaged = _given(packaged_thresholds(language)) if rules.packaged_languages else {}
    recipe = _given(rules.languages.get(language))
    changed = {
        name: _settled(part, packaged, recipe)
        for name in ("quality", "repetition", "fineweb")
        if (part := getattr(found, name)) is not None
    }
    if found.quality is not None and language != DEFAULT_LANGUAGE:  # English words are no measure of another language
        stop_words = recipe.get("stop_words", packaged.get("stop_words", ()))
        changed["quality"] = changed["quality"].model_copy(update={"stop_words": stop_words})
    return found.model_copy(update=changed)


def _given(thresholds: LanguageThresholds | None) -> dict[str, Any]:
    return {} if thresholds is None else {name: value for name, value in thresholds if value is not None}


def _settled(part: Set, packaged: dict[str, Any], recipe: dict[str, Any]) -> Set:
    """One set of rules with the language's thresholds. Thresholds by n are settled for each n."""
    update = {}
    for name, field in type(part).model_fields.items():
        value, default = getattr(part, name), field.default
        if isinstance(value, dict):
            shipped, own = packaged.get(name, {}), recipe.get(name, {})
            sizes = {n: shipped.get(n, v) if v == default.get(n) else v for n, v in value.items()}
            update[name] = sizes | own
        elif name in recipe:
            update[name] = recipe[name]
        elif name in packaged and value == default:
            update[name] = packaged[name]
    return part.model_copy(update=update)


def rules_for(rules: DomainRules) -> list[Rule]:
    """All rules that some domain has, in the order in which reasons are given."""
    settled = _Settled(rules)
    return [
        *_code_rules(settled),
        *_quality_rules(settled),
        *_repetition_rules(settled),
        *_page_rules(settled),
        *_limits(settled),
    ]


class _Settled:
    """The thresholds of each row of a batch."""

    def __init__(self, rules: DomainRules):
        self.rules = rules
        self._known: dict[tuple[str, str], RuleSet] = {}
        self._batch: pa.RecordBatch | None = None  # that `_pairs` and `_pair_of_row` are of
        self._pairs: list[tuple[str, str]] = []
        self._pair_of_row = np.zeros(0, np.int64)

    def __getitem__(self, pair: tuple[str, str]) -> RuleSet:
        if pair not in self._known:
            self._known[pair] = effective_rules(self.rules, *pair)
        return self._known[pair]

    def of_rows(self, batch: pa.RecordBatch, threshold: Threshold) -> NDArray[np.float64]:
        """float64 `[rows]`: the threshold of each row, NaN where it has none."""
        if batch is not self._batch:
            self._look_at(batch)
        values = [threshold(self[pair]) for pair in self._pairs]
        return np.array([np.nan if value is None else value for value in values], np.float64)[self._pair_of_row]

    def _look_at(self, batch: pa.RecordBatch) -> None:
        """Find the pairs of domain and language in the batch, about which every rule is going to ask."""
        domains = batch.column("domain").dictionary_encode()
        languages = batch.column("rule_language").dictionary_encode()
        codes = domains.indices.to_numpy() * len(languages.dictionary) + languages.indices.to_numpy()
        present, self._pair_of_row = np.unique(codes, return_inverse=True)
        places = (divmod(code, len(languages.dictionary)) for code in present.tolist())
        self._pairs = [(domains.dictionary[d].as_py(), languages.dictionary[lang].as_py()) for d, lang in places]
        self._batch = batch

    def rule(self, reason: str, columns: tuple[str, ...], breaks: Callable[..., Mask], threshold: Threshold) -> Rule:
        """A rule that `breaks(values of the columns, thresholds)` decides."""

        def broken(batch: pa.RecordBatch) -> Mask:
            thresholds = self.of_rows(batch, threshold)
            if np.isnan(thresholds).all():
                return np.zeros(batch.num_rows, np.bool_)
            return breaks(*(_values(batch, name) for name in columns), thresholds)

        return Rule(reason, ("domain", "rule_language", *columns), broken)

    def at_most(self, reason: str, column: str, threshold: Threshold) -> Rule:
        return self.rule(reason, (column,), above, threshold)

    def at_least(self, reason: str, column: str, threshold: Threshold) -> Rule:
        return self.rule(reason, (column,), below, threshold)


def above(values: NDArray, thresholds: NDArray[np.float64]) -> Mask:
    """Shares are kept in float32: compared as such, a share that is exactly the threshold does not break it."""
    return values > thresholds.astype(values.dtype)


def below(values: NDArray, thresholds: NDArray[np.float64]) -> Mask:
    return values < thresholds.astype(values.dtype)


def _values(batch: pa.RecordBatch, name: str) -> NDArray:
    """A column as float32 or, where it counts, float64; a null is NaN, which breaks nothing."""
    place = batch.schema.get_field_index(name)
    if place < 0 or not _is_number(batch.schema.field(place)):
        raise GristmillError(f"corpus.rules: there is no column of numbers {name!r} to set limits on")
    column = batch.column(place)
    width = pa.float32() if pa.types.is_float32(column.type) else pa.float64()
    return column.cast(width, safe=False).to_numpy(zero_copy_only=False)


def _of(family: str, name: str) -> Threshold:
    """The threshold `name` of a set of rules, or None where the domain does not have the set."""
    return lambda rules: getattr(getattr(rules, family), name, None)


def _switch(family: str, name: str, on: object) -> Threshold:
    """0, or no threshold where the field is not `on`: for columns that count what must not be there."""
    return lambda rules: 0 if getattr(getattr(rules, family), name, None) == on else None


def _quality_rules(settled: _Settled) -> Iterator[Rule]:
    """Gopher's quality rules."""

    def of(name: str) -> Threshold:
        return _of("quality", name)

    yield settled.at_least("gopher_quality:min_words", "plain_words", of("min_words"))
    yield settled.at_most("gopher_quality:max_words", "plain_words", of("max_words"))
    yield settled.at_least("gopher_quality:min_mean_word_length", "mean_word_length", of("min_mean_word_length"))
    yield settled.at_most("gopher_quality:max_mean_word_length", "mean_word_length", of("max_mean_word_length"))
    yield settled.rule(
        "gopher_quality:max_symbol_ratio",
        ("hash_ratio", "ellipsis_ratio"),
        lambda hashes, ellipses, thresholds: above(np.maximum(hashes, ellipses), thresholds),
        of("max_symbol_ratio"),
    )
    yield settled.at_most("gopher_quality:max_bullet_lines", "bullet_lines", of("max_bullet_lines"))
    yield settled.at_most("gopher_quality:max_ellipsis_lines", "ellipsis_lines", of("max_ellipsis_lines"))
    yield settled.at_least("gopher_quality:min_alphabetic_words", "alphabetic_words", of("min_alphabetic_words"))
    yield settled.at_least("gopher_quality:min_stop_words", "stop_words", of("min_stop_words"))


def _repetition_rules(settled: _Settled) -> Iterator[Rule]:
    """Gopher's repetition rules."""
    for unit in ("lines", "paragraphs", "line_characters", "paragraph_characters"):
        name = f"max_duplicate_{unit}"
        yield settled.at_most(f"gopher_repetition:{name}", f"duplicate_{unit}", _of("repetition", name))
    for field, column, sizes in (
        ("max_top_ngram", "top_{}gram", TOP_NGRAMS),
        ("max_duplicate_ngrams", "duplicate_{}gram", DUPLICATE_NGRAMS),
    ):
        for n in sizes:
            yield settled.at_most(f"gopher_repetition:{field}_{n}", column.format(n), _by_size(field, n))


def _by_size(field: str, n: int) -> Threshold:
    return lambda rules: None if rules.repetition is None else getattr(rules.repetition, field).get(n)


def _page_rules(settled: _Settled) -> Iterator[Rule]:
    """C4's and FineWeb's rules for web pages (the lines that C4 drops are dropped before anything is measured)."""
    yield settled.at_most("c4:forbidden_phrases", "forbidden_phrases", lambda rules: 0 if rules.c4 else None)
    yield settled.at_most("c4:curly_bracket", "curly_brackets", _switch("c4", "curly_bracket", True))
    yield settled.at_least("c4:min_sentences", "sentences", _of("c4", "min_sentences"))
    yield settled.at_most("c4:bad_words", "bad_words", lambda rules: 0 if rules.c4 else None)

    def of(name: str) -> Threshold:
        return _of("fineweb", name)

    reason, threshold = "fineweb:min_terminal_punctuation", of("min_terminal_punctuation")
    yield settled.at_least(reason, "terminal_lines", lambda rules: None if _counts_quotes(rules) else threshold(rules))
    yield settled.rule(
        reason,
        ("terminal_lines", "quoted_lines"),
        lambda terminal, quoted, thresholds: below(terminal + quoted, thresholds),
        lambda rules: threshold(rules) if _counts_quotes(rules) else None,
    )
    yield settled.at_most("fineweb:max_short_lines", "short_lines", of("max_short_lines"))
    yield settled.at_most("fineweb:max_char_duplicates", "char_duplicates", of("max_char_duplicates"))
    yield settled.at_most("fineweb:max_newlines_per_word", "newlines_per_word", of("max_newlines_per_word"))


def _counts_quotes(rules: RuleSet) -> bool:
    return rules.fineweb is not None and rules.fineweb.quotation_marks


def _code_rules(settled: _Settled) -> Iterator[Rule]:
    """Rules for source code."""

    def of(name: str) -> Threshold:
        return _of("code", name)

    for flag in ("generated", "vendored"):
        yield _flag_rule(settled, flag)
    yield settled.at_least("code:min_words", "words", of("min_words"))
    yield settled.at_most("code:max_line_characters", "longest_line", of("max_line_characters"))
    yield settled.at_most("code:max_mean_line_characters", "mean_line_length", of("max_mean_line_characters"))
    yield settled.at_least("code:min_alphabetic_characters", "alphabetic_characters", of("min_alphabetic_characters"))
    yield settled.at_most("code:max_digit_characters", "digit_characters", of("max_digit_characters"))
    yield settled.at_most("code:max_hexadecimal_lines", "hexadecimal_lines", of("max_hexadecimal_lines"))


def _flag_rule(settled: _Settled, flag: str) -> Rule:
    def broken(batch: pa.RecordBatch) -> Mask:
        held = ~np.isnan(settled.of_rows(batch, _switch("code", flag, "drop")))
        marked = pc.match_substring_regex(batch.column("flags"), f"(^|,){flag}(,|$)")
        return held & marked.to_numpy(zero_copy_only=False)

    return Rule(f"code:{flag}", ("domain", "rule_language", "flags"), broken)


def _limits(settled: _Settled) -> Iterator[Rule]:
    """The recipe's own rules on columns."""
    for column in sorted({name for rules in settled.rules.sets().values() for name in rules.limits}):
        yield settled.at_least(f"limits:{column}", column, _limit(column, "min"))
        yield settled.at_most(f"limits:{column}", column, _limit(column, "max"))


def check_limits(rules: DomainRules, schema: pa.Schema, to_come: Sequence[str] = ()) -> None:
    """GristmillError when the recipe sets limits on what is no column of numbers of `schema`, the schema of annotated
    documents, nor one of those `to_come`."""
    numeric = [*(field.name for field in schema if _is_number(field)), *to_come]
    for domain, held in rules.sets().items():
        for column in held.limits:
            if column not in numeric:
                known = ", ".join(numeric)
                raise GristmillError(
                    f"corpus.rules.{domain}.limits: {column!r} is no column of numbers; those are {known}"
                )


def _is_number(field: pa.Field) -> bool:
    return pa.types.is_integer(field.type) or pa.types.is_floating(field.type)


def _limit(column: str, side: str) -> Threshold:
    return lambda rules: getattr(rules.limits.get(column), side, None)


def measure_key(rules: DomainRules, near: NearDuplicateConfig | None) -> str:
    """16 hex digits over all that the columns of measurements depend on, the texts aside. While it stays the same,
    thresholds can change without a new pass over the texts."""
    packaged = sorted(path.stem for path in LANGUAGES.glob("*.yaml")) if rules.packaged_languages else []
    languages = sorted({DEFAULT_LANGUAGE, *packaged, *rules.languages})
    settings = {
        "measurement": MEASUREMENT,
        "domains": {domain: _measured(rules, domain, languages) for domain in rules.sets()},
        "signature": None if near is None else [near.permutations, near.ngram],
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _measured(rules: DomainRules, domain: str, languages: Iterable[str]) -> dict[str, Any]:
    found = rules.of(domain)
    settings: dict[str, Any] = {}
    if found.quality is not None:
        effective = {language: effective_rules(rules, domain, language).quality for language in languages}
        settings["stop_words"] = {language: part.stop_words for language, part in effective.items() if part is not None}
    if found.c4 is not None:
        settings["forbidden_phrases"] = found.c4.forbidden_phrases
        settings["bad_words"] = None if found.c4.bad_words is None else read_bad_words(found.c4.bad_words, domain)
    if found.fineweb is not None:
        settings["short_line_characters"] = found.fineweb.short_line_characters
    return settings


def read_bad_words(path: str, domain: str) -> list[str]:
    """The words and phrases of a file, one a line."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise GristmillError(f"corpus.rules.{domain}.c4.bad_words: cannot read {path}: {error}") from None
    return [line.strip() for line in lines if line.strip()]


def language_settings(rules: DomainRules, held: Iterable[tuple[str, str]]) -> dict[str, dict[str, Any]]:
    """The rules that held where a document's language changed them, for the report: domain, then language, for the
    given pairs of them (columns `domain` and `rule_language`)."""
    found: dict[str, dict[str, Any]] = {}
    for domain, language in sorted(set(held)):
        effective = effective_rules(rules, domain, language)
        if effective != rules.of(domain):
            found.setdefault(domain, {})[language] = effective.model_dump(mode="json")
    return found
