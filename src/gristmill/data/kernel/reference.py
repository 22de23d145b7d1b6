"""What the kernel measures, one text at a time in plain Python: slow, and easy to read.

The tests hold the compiled passes to it. Texts are expected cleaned (`gristmill.data.clean`); `columns.py` says
what each name means.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection

from .characters import IDEOGRAPHIC, MARKS, TERMINAL

_MASK = (1 << 64) - 1
_SEED, _P, _MULTIPLIER = 0xCBF29CE484222325, 0x9E3779B97F4A7C15, 0xA24BAED4963EE407
_HEXADECIMAL = re.compile(r"(?:0[xX]|\\[xu])[0-9A-Fa-f]{2}")


def statistics(text: str, stop_words: Collection[str], short_line_characters: int = 30) -> dict[str, float]:
    """The columns of counts and shares, but for those that count phrases."""
    words = text.split()
    plain = [word for word in words if not MARKS.issuperset(word)]
    lines = [line for line in text.split("\n") if line]
    all_lines = text.splitlines()
    paragraphs = [paragraph for paragraph in re.split(r"\n{2,}", text.strip()) if paragraph]
    newlines = text.count("\n")
    line_characters = sum(map(len, repeated(lines)))
    return {
        "characters": len(text),
        "words": len(words),
        "plain_words": len(plain),
        "lines": len(lines),
        "newlines": newlines,
        "paragraphs": len(paragraphs),
        "stop_words": len(set(words) & set(stop_words)),
        "sentences": sum(map(sentences, lines)),
        "curly_brackets": text.count("{"),
        "longest_line": max(map(len, lines), default=0),
        "mean_word_length": share(sum(map(len, plain)), len(plain)),
        "mean_line_length": share(sum(map(len, lines)), len(lines)),
        "hash_ratio": share(text.count("#"), len(words)),
        "ellipsis_ratio": share(text.count("...") + text.count("…"), len(words)),
        "newlines_per_word": share(newlines, len(words)),
        "alphabetic_words": share(sum(any(map(str.isalpha, word)) for word in words), len(words)),
        "alphabetic_characters": share(sum(map(str.isalpha, text)), len(text)),
        "digit_characters": share(sum("0" <= c <= "9" for c in text), len(text)),
        "bullet_lines": share(sum(line.lstrip().startswith(("-", "•")) for line in all_lines), len(all_lines)),
        "ellipsis_lines": share(sum(line.endswith(("...", "…")) for line in all_lines), len(all_lines)),
        "terminal_lines": share(sum(line[-1] in TERMINAL for line in lines), len(lines)),
        "quoted_lines": share(sum(line[-1] in "\"'’”»" for line in lines), len(lines)),
        "short_lines": share(sum(len(line) <= short_line_characters for line in lines), len(lines)),
        "uppercase_lines": share(sum(2 * sum(map(str.isupper, line)) > len(line) for line in lines), len(lines)),
        "hexadecimal_lines": share(sum(_HEXADECIMAL.search(line) is not None for line in lines), len(lines)),
        "duplicate_lines": share(len(repeated(lines)), len(lines)),
        "duplicate_line_characters": share(line_characters, len(text)),
        "char_duplicates": share(line_characters, len(text) - newlines),
        "duplicate_paragraphs": share(len(repeated(paragraphs)), len(paragraphs)),
        "duplicate_paragraph_characters": share(sum(map(len, repeated(paragraphs))), len(text)),
        **{f"top_{n}gram": share(top_ngram(words, n), len(text)) for n in (2, 3, 4)},
        **{f"duplicate_{n}gram": share(duplicate_ngrams(words, n), len(text)) for n in range(5, 11)},
    }


def share(part: float, whole: int) -> float:
    return part / max(whole, 1)


def repeated(units: list[str]) -> list[str]:
    """The units that stood earlier in the list."""
    met: set[str] = set()
    found = []
    for unit in units:
        if unit in met:
            found.append(unit)
        met.add(unit)
    return found


def top_ngram(words: list[str], n: int) -> int:
    """Characters of all occurrences of the most frequent n-gram, of equally frequent ones the first."""
    counts = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    gram, count = counts.most_common(1)[0] if counts else ((), 0)
    return len(" ".join(gram)) * count


def duplicate_ngrams(words: list[str], n: int) -> int:
    """Characters of the n-grams that a scan from the left has met before; it goes on behind each of them."""
    met: set[tuple[str, ...]] = set()
    place = characters = 0
    while place + n <= len(words):
        gram = tuple(words[place : place + n])
        if gram in met:
            characters += sum(map(len, gram))
            place += n
        else:
            met.add(gram)
            place += 1
    return characters


def is_closing(character: str) -> bool:
    """Whether it may stand between the end of a sentence and the blank behind it: a closing quotation mark or
    bracket."""
    return character in "\"'" or unicodedata.category(character) in ("Pe", "Pf")


def is_token(character: str) -> bool:
    """Whether it belongs to a token: a letter, digit, number, underscore or combining mark (`\\w` of UTS #18)."""
    return character.isalnum() or character == "_" or unicodedata.category(character)[0] == "M"


def is_single(character: str) -> bool:
    """Whether it is a token by itself: ideographs and kana, whose words no blank parts."""
    return any(first <= ord(character) <= last for first, last in IDEOGRAPHIC) and is_token(character)


def sentences(line: str) -> int:
    """Sentences of a line: each ends with its marks and the closing quotation marks or brackets behind them. Behind
    marks of ASCII a blank must follow. What is left at the line's end is a sentence too."""
    count, place, start = 0, 0, 0
    while place < len(line):
        end = place
        while end < len(line) and (line[end] in TERMINAL or (end > place and is_closing(line[end]))):
            end += 1
        foreign = any(c in TERMINAL and not c.isascii() for c in line[place:end])
        if end > place and (foreign or end == len(line) or line[end] in " \t"):
            count += 1
            start = end
        place = max(end, place + 1)
    return count + (line[start:].strip() != "")


def tokens(text: str) -> list[str]:
    """Runs of letters, digits, underscores and combining marks; an ideograph or kana is one by itself. ASCII capitals
    become small letters."""
    found: list[str] = []
    inside = False
    for character in text:
        if not is_token(character):
            inside = False
        elif is_single(character) or not inside:
            found.append(character)
            inside = not is_single(character)
        else:
            found[-1] += character
    return [re.sub("[A-Z]", lambda match: match.group().lower(), token) for token in found]


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    """The n-grams of tokens in order; of a text of fewer tokens one, all of them, and of none none."""
    found = tokens(text)
    if len(found) < n:
        return [tuple(found)] if found else []
    return [tuple(found[i : i + n]) for i in range(len(found) - n + 1)]


def mixed(value: int) -> int:
    """splitmix64's finalizer (Steele, Lea, Flood 2014)."""
    value &= _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def token_hash(token: str) -> int:
    """The 64-bit hash of a token, as it is of words, lines and paragraphs."""
    data = token.encode()
    value = _SEED
    for byte in data:
        value = ((value ^ byte) * _P) & _MASK
    return mixed(value ^ len(data))


def ngram_hash(gram: tuple[str, ...]) -> int:
    """The 64-bit hash of an n-gram of tokens."""
    value = 0
    for token in gram:
        value = (value * _MULTIPLIER + token_hash(token)) & _MASK
    return mixed(value)


def signature(text: str, n: int, size: int) -> list[int]:
    """The minima of `size` permutations over the n-grams' hashes; all ones without any."""
    numbers = [mixed(i * _P) >> 32 for i in range(1, 2 * size + 1)]
    values = [ngram_hash(gram) >> 32 for gram in ngrams(text, n)]
    return [
        min((((factor | 1) * value + term) & 0xFFFFFFFF for value in values), default=0xFFFFFFFF)
        for factor, term in zip(numbers[:size], numbers[size:], strict=True)
    ]
