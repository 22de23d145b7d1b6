"""Where in a column of texts personal data might stand: one compiled pass over the bytes.

Each place is a candidate for one group of kinds, such as an `@` between two letters or a run of at least seven digits;
only there do the slower finders look. Ordinary text has a few candidates per ten thousand bytes, so what all kinds cost
together is about what this pass costs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..kernel.jit import compiled
from ..kernel.layout import I64, U8, Texts

# What a candidate is a candidate for; `spans.py` has the finders of each.
AT, BRACKETED_AT, NUMBER, DOTTED, COLONS, ACCOUNT, TOKEN, ASSIGNMENT, URL, PEM = range(10)
CODES = 10

# Beginnings of words that are the documented beginnings of keys and tokens (`secrets.py`).
TOKEN_PREFIXES = (
    "AKIA ASIA AIza ghp_ gho_ ghu_ ghs_ ghr_ github_pat_ glpat- xoxb- xoxp- xoxa- xoxr- xoxs- xapp- sk_live_ rk_live_ "
    "sk_test_ rk_test_ whsec_ sk- hf_ eyJ npm_ pypi- SG. dop_v1_ shpat_ EAACEdEose0cBA ya29."
).split()
# Ends of names whose value is a secret.
SECRET_NAMES = (
    "password passwd passphrase pwd pass secret token apikey api_key api-key access_key access-key secret_key "
    "private_key auth_key account_key accesskey secretkey accountkey"
).split()

_DIGITS, _LETTERS = b"0123456789", b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def _table(characters: bytes) -> NDArray[np.bool_]:
    """Which of the 256 bytes are among the characters."""
    return np.isin(np.arange(256), list(characters))


_DIGIT = _table(_DIGITS)
_WORD = _table(_DIGITS + _LETTERS + b"_")
_HEX = _table(_DIGITS + b"ABCDEFabcdef")
_SEPARATOR = _table(b" .-()/")
_URL_END = _table(b"/?#\"'<>`\\ \t\n|")

# What the scanner does at a byte.
_AT_SIGN, _A_DIGIT, _A_LETTER, _COLON, _EQUALS, _BRACKET, _DASH = range(1, 8)
_CLASS = np.zeros(256, np.uint8)
for _code, _characters in (
    *((_AT_SIGN, b"@"), (_A_DIGIT, _DIGITS), (_A_LETTER, _LETTERS), (_COLON, b":"), (_EQUALS, b"=")),
    *((_BRACKET, b"([{"), (_DASH, b"-")),
):
    _CLASS[list(_characters)] = _code


class Candidates(NamedTuple):
    """Candidates in the order of the text: row, place in the row (bytes, start and end) and group."""

    rows: I64
    starts: I64
    ends: I64
    codes: I64


def scan(texts: Texts, codes: tuple[int, ...]) -> Candidates:
    """The candidates of the groups `codes`."""
    wanted = np.zeros(CODES, np.bool_)
    wanted[list(codes)] = True
    size = len(texts.data) // 64 + 1024
    while True:
        out = np.empty((4, size), np.int64)
        found = _scan(texts.data, texts.offsets, wanted, out)
        if found <= size:
            return Candidates(*out[:, :found])
        size = found


def _packed(words: Iterable[str]) -> tuple[U8, I64]:
    """Words sorted and zero-padded, [words, longest + 1], and where those of each first byte begin, [257]."""
    ordered = sorted(word.encode() for word in words)
    packed = np.zeros((len(ordered), max(map(len, ordered)) + 1), np.uint8)
    for row, word in zip(packed, ordered, strict=True):
        row[: len(word)] = list(word)
    return packed, np.searchsorted(packed[:, 0], np.arange(257)).astype(np.int64)


_PREFIXES, _PREFIXES_OF = _packed(TOKEN_PREFIXES)
_NAMES, _NAMES_OF = _packed(name[::-1] for name in SECRET_NAMES)


@compiled
def _emit(out, found, row, start, end, code):  # type: ignore[no-untyped-def]
    if found < out.shape[1]:
        out[0, found], out[1, found], out[2, found], out[3, found] = row, start, end, code
    return found + 1


@compiled
def _scan(data, offsets, wanted, out):  # type: ignore[no-untyped-def]
    """Write candidates into `out` [4, size] and return how many there are, be they more than fit."""
    found = 0
    for row in range(len(offsets) - 1):
        s, e = offsets[row], offsets[row + 1]
        i = s
        while i < e:
            kind = _CLASS[data[i]]
            if kind == 0:
                i += 1
            elif kind == _A_LETTER:
                # A word is passed over in one go, so a digit or letter met below always begins one.
                start = i
                while i < e and _WORD[data[i]]:
                    i += 1
                if wanted[TOKEN] and _begins_token(data, start, e):
                    found = _emit(out, found, row, start - s, i - s, TOKEN)
                if i - start >= 4 and wanted[ACCOUNT] and _begins_account(data, start, e):
                    found = _emit(out, found, row, start - s, i - s, ACCOUNT)
            elif kind == _A_DIGIT:
                start, i, digits, dotted = _number(data, s, i, e)
                if dotted and wanted[DOTTED]:
                    found = _emit(out, found, row, start - s, i - s, DOTTED)
                if digits >= 7 and wanted[NUMBER]:
                    found = _emit(out, found, row, start - s, i - s, NUMBER)
                while i < e and _WORD[data[i]]:
                    i += 1
            elif kind == _AT_SIGN:
                if wanted[AT] and i > s and i + 1 < e and _mail(data[i - 1]) and _mail(data[i + 1]):
                    found = _emit(out, found, row, i - s, i + 1 - s, AT)
                i += 1
            elif kind == _COLON:
                if i + 3 < e and data[i + 1] == 47 and data[i + 2] == 47:  # ://
                    if wanted[URL] and _has_credentials(data, i + 3, e):
                        found = _emit(out, found, row, i - s, i + 3 - s, URL)
                    i += 3
                    continue
                left, right, colons = _hexadecimal_run(data, s, i, e)
                if colons >= 2 and wanted[COLONS]:
                    found = _emit(out, found, row, left - s, right - s, COLONS)
                if wanted[ASSIGNMENT] and _names_secret(data, s, i):
                    found = _emit(out, found, row, i - s, i + 1 - s, ASSIGNMENT)
                i = max(i + 1, right) if colons >= 2 else i + 1
            elif kind == _EQUALS:
                if wanted[ASSIGNMENT] and _names_secret(data, s, i):
                    found = _emit(out, found, row, i - s, i + 1 - s, ASSIGNMENT)
                i += 1
            elif kind == _BRACKET:
                if wanted[BRACKETED_AT] and _is_bracketed_at(data, i, e):
                    found = _emit(out, found, row, i - s, i + 1 - s, BRACKETED_AT)
                i += 1
            else:
                start = i
                while i < e and data[i] == 45:
                    i += 1
                if i - start == 5 and wanted[PEM] and i + 5 < e and data[i] == 66 and data[i + 1] == 69:  # -----BE(GIN)
                    found = _emit(out, found, row, start - s, i - s, PEM)
    return found


@compiled
def _mail(byte):  # type: ignore[no-untyped-def]
    return _WORD[byte] or byte >= 0x80


@compiled
def _number(data, s, i, e):  # type: ignore[no-untyped-def]
    """(start, end, digits, whether four numbers are joined by dots) of the run of digits and separators at `i`."""
    start = i
    while start > s and i - start < 2 and (data[start - 1] == 40 or data[start - 1] == 43):  # ( and +, in either order
        start -= 1
    digits, joined, length, dotted = 0, 1, 0, False
    end = i
    while i < e:
        byte = data[i]
        if _DIGIT[byte]:
            digits += 1
            length += 1
            i += 1
            end = i
        elif _SEPARATOR[byte]:
            step = 1
            while step < 3 and i + step < e and _SEPARATOR[data[i + step]]:
                step += 1
            near = step == 1
            # One sign between digits, or two such as `) `, or three: ` / ` and ` - `.
            if i + step >= e or not _DIGIT[data[i + step]] or (step == 3 and (byte != 32 or data[i + 2] != 32)):
                break
            joined = joined + 1 if byte == 46 and near and length <= 3 else 1
            length = 0
            i += step
            if joined == 4:
                dotted = True
        else:
            break
    return start, end, digits, dotted


@compiled
def _hexadecimal_run(data, s, i, e):  # type: ignore[no-untyped-def]
    """(start, end, colons) of the run of hexadecimal digits, colons and dots around a colon; no colons where the run
    is a part of a word."""
    left = i
    while left > s and i - left < 5 and _HEX[data[left - 1]]:
        left -= 1
    if i - left == 5 or (left > s and (_WORD[data[left - 1]] or data[left - 1] == 58)):
        return i, i, 0
    colons = 0
    right = i
    while right < e and (_HEX[data[right]] or data[right] == 58 or (data[right] == 46 and colons >= 2)):
        colons += data[right] == 58
        right += 1
    if right < e and _WORD[data[right]]:
        return i, i, 0
    return left, right, colons


@compiled
def _begins_token(data, i, e):  # type: ignore[no-untyped-def]
    for p in range(_PREFIXES_OF[data[i]], _PREFIXES_OF[data[i] + 1]):
        k = 1
        while _PREFIXES[p, k] != 0 and i + k < e and data[i + k] == _PREFIXES[p, k]:
            k += 1
        if _PREFIXES[p, k] == 0:
            return True
    return False


@compiled
def _begins_account(data, i, e):  # type: ignore[no-untyped-def]
    """Two capitals and two digits, and not a lower-case letter after them: an IBAN's country and check digits."""
    if not (65 <= data[i] <= 90 and 65 <= data[i + 1] <= 90 and _DIGIT[data[i + 2]] and _DIGIT[data[i + 3]]):
        return False
    return i + 14 < e and (_WORD[data[i + 4]] or data[i + 4] == 32 or data[i + 4] == 45)


@compiled
def _has_credentials(data, i, e):  # type: ignore[no-untyped-def]
    """Whether `name:word@` stands at `i`."""
    colon = False
    for k in range(i, min(e, i + 256)):
        if _URL_END[data[k]]:
            return False
        if data[k] == 58 and k > i:
            colon = True
        if data[k] == 64:
            return colon
    return False


@compiled
def _names_secret(data, s, i):  # type: ignore[no-untyped-def]
    """Whether what stands before the colon or equals sign at `i` ends in the name of a secret."""
    k = i - 1
    while k >= s and i - k <= 4 and (data[k] == 32 or data[k] == 34 or data[k] == 39 or data[k] == 93 or data[k] == 96):
        k -= 1
    if k < s:
        return False
    last = data[k] | 32
    for n in range(_NAMES_OF[last], _NAMES_OF[last + 1]):
        j = 1
        while _NAMES[n, j] != 0 and k - j >= s and _small_letter(data[k - j]) == _NAMES[n, j]:
            j += 1
        if _NAMES[n, j] == 0:
            return True
    return False


@compiled
def _small_letter(byte):  # type: ignore[no-untyped-def]
    return byte + 32 if 65 <= byte <= 90 else byte


@compiled
def _is_bracketed_at(data, i, e):  # type: ignore[no-untyped-def]
    """`(at)`, `[at]`, `{at}`, with or without blanks inside."""
    k = i + 1
    while k < e and data[k] == 32 and k < i + 3:
        k += 1
    if k + 2 >= e or data[k] | 32 != 97 or data[k + 1] | 32 != 116:
        return False
    k += 2
    while k < e and data[k] == 32 and k < i + 6:
        k += 1
    return k < e and (data[k] == 41 or data[k] == 93 or data[k] == 125)
