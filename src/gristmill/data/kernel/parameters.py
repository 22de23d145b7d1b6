"""What the rules ask to be measured: stop words, the length of a short line, phrases and bad words, by domain."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gristmill.data.config import DomainRules
from gristmill.data.rules import effective_rules, read_bad_words

from . import hashes, scan
from .layout import I64, U64, texts_of

DEFAULT_SHORT_LINE = 30
Mask = NDArray[np.bool_]
DomainRows = dict[str, Mask]


def domain_rows(domains: pa.Array) -> DomainRows:
    """Which rows belong to each domain."""
    found = domains.dictionary_encode()
    codes = found.indices.to_numpy()
    return {domain: codes == code for code, domain in enumerate(found.dictionary.to_pylist())}


class Parameters:
    """The parameters of the measurement, for the rows of a batch. `domains` is what `domain_rows` gives."""

    def __init__(self, rules: DomainRules):
        self._rules = rules
        self._stop_words: dict[tuple[str, str], tuple[str, ...]] = {}
        self._bad_words: dict[str, BadWords] = {}
        for domain, held in rules.sets().items():
            c4 = held.c4
            if c4 is not None and c4.bad_words is not None:
                self._bad_words[c4.bad_words] = BadWords(read_bad_words(c4.bad_words, domain))

    def short_lines(self, domains: DomainRows, rows: int) -> I64:
        """int64 `[rows]`: a line of at most so many characters is short."""
        found = np.full(rows, DEFAULT_SHORT_LINE, np.int64)
        for domain, here in domains.items():
            fineweb = self._rules.of(domain).fineweb
            if fineweb is not None:
                found[here] = fineweb.short_line_characters
        return found

    def stop_words(self, domains: DomainRows, languages: pa.Array) -> tuple[U64, I64]:
        """(tables, row of the tables for each row of the batch, -1 where it has no stop words), as `scan.words`
        takes."""
        found = languages.dictionary_encode()
        codes, names = found.indices.to_numpy(), found.dictionary.to_pylist()
        lists: dict[tuple[str, ...], int] = {}
        which = np.full(len(languages), -1, np.int64)
        for domain, here in domains.items():
            for code in np.unique(codes[here]):
                words = self._stop_words_of(domain, names[code])
                if words:
                    which[here & (codes == code)] = lists.setdefault(words, len(lists))
        slots = _slots(max(map(len, lists), default=0))
        tables = [_stop_word_table(words, slots) for words in lists]
        return np.stack(tables) if tables else np.zeros((1, slots), np.uint64), which

    def _stop_words_of(self, domain: str, language: str) -> tuple[str, ...]:
        pair = domain, language
        if pair not in self._stop_words:
            quality = effective_rules(self._rules, domain, language).quality
            self._stop_words[pair] = () if quality is None else quality.stop_words
        return self._stop_words[pair]

    def phrases(self, texts: pa.Array, domains: DomainRows) -> dict[str, pa.Array]:
        """The columns `forbidden_phrases` and `bad_words`."""
        counts = {name: np.zeros(len(texts), np.int64) for name in ("forbidden_phrases", "bad_words")}
        asked = {name: np.zeros(len(texts), np.bool_) for name in counts}
        for domain, here in domains.items():
            c4 = self._rules.of(domain).c4
            if c4 is None:
                continue
            there = texts if here.all() else texts.filter(pa.array(here))
            if c4.forbidden_phrases:
                asked["forbidden_phrases"] |= here
                for phrase in c4.forbidden_phrases:
                    holds = pc.match_substring(there, phrase, ignore_case=True)
                    counts["forbidden_phrases"][here] += holds.to_numpy(zero_copy_only=False)
            if c4.bad_words is not None:
                asked["bad_words"] |= here
                counts["bad_words"][here] = self._bad_words[c4.bad_words].count(there)
        return {name: pa.array(values, mask=~asked[name]) for name, values in counts.items()}


class BadWords:
    """Words and phrases to look for. They are compared as tokens: in any case (of ASCII letters), and not inside
    words."""

    def __init__(self, phrases: list[str]):
        sizes = np.diff(hashes.tokens_of(texts_of(pa.array(phrases, pa.string())))[1])
        self._by_size: dict[int, U64] = {}
        for n in np.unique(sizes[sizes > 0]).tolist():
            of_size = [phrase for phrase, size in zip(phrases, sizes, strict=True) if size == n]
            self._by_size[n] = hashes.ngrams_of(texts_of(pa.array(of_size, pa.string())), n, short=False)[0]

    def count(self, texts: pa.Array) -> I64:
        """int64 `[texts]`: how often any of them occurs."""
        laid_out = texts_of(texts)
        total = np.zeros(len(laid_out), np.int64)
        for n, wanted in self._by_size.items():
            for place, part in laid_out.parts(hashes.PART_BYTES):
                found, offsets = hashes.ngrams_of(part, n, short=False)
                before = np.concatenate([[0], np.cumsum(np.isin(found, wanted))])
                total[place] += np.diff(before[offsets])
        return total


def _slots(words: int) -> int:
    """A power of two that leaves a table of so many words mostly empty."""
    return 1 << max(4 * words, 16).bit_length()


@lru_cache(maxsize=256)
def _stop_word_table(words: tuple[str, ...], slots: int) -> U64:
    """A hash table of the words' hashes: each stands at its lowest bits, or behind; 0 is a free slot."""
    table = np.zeros(slots, np.uint64)
    text = texts_of(pa.array(words, pa.string()))
    for start, end in zip(text.offsets, text.offsets[1:], strict=False):
        h = int(scan.hash_bytes(text.data, start, end))
        slot = h % slots
        while table[slot] not in (0, h):
            slot = (slot + 1) % slots
        table[slot] = h
    return table
