"""Phone numbers: international ones by the country's plan, national ones by the forms in which people write them.

A form that other numbers share (a run of seven digits, groups without a leading zero) counts only after a word that
says what it is: `tel`, `phone`, `fax`, `mobile`, and the like in other languages.
"""

from __future__ import annotations

import re

from .text import Bytes, Found, after, before, matches

# Digits of a national number (without the trunk's 0) by country code (ITU-T E.164 and its annexes). Those not listed
# have 6 to 12.
_PLANS = dict[str, tuple[int, int]](
    (code, (int(shortest), int(longest)))
    for code, shortest, longest in re.findall(
        r"(\d+):(\d+)-(\d+)",
        "1:10-10 7:10-10 20:8-10 27:9-9 30:10-10 31:9-9 32:8-9 33:9-9 34:9-9 36:8-9 39:6-11 40:9-9 41:9-9 43:7-13 "
        "44:9-10 45:8-8 46:7-10 47:8-8 48:9-9 49:7-11 51:8-9 52:10-11 54:10-11 55:10-11 56:9-9 57:10-10 58:10-10 "
        "60:8-10 61:9-9 62:8-12 63:8-10 64:8-10 65:8-8 66:8-9 81:9-10 82:8-10 84:9-10 86:10-11 90:10-10 91:10-10 "
        "92:9-10 94:9-9 98:10-10 212:9-9 234:8-10 254:9-9 351:9-9 352:6-9 353:7-9 354:7-9 358:6-11 359:7-9 370:8-8 "
        "371:8-8 372:7-8 375:9-9 380:9-9 381:8-9 385:8-9 386:8-8 420:9-9 421:9-9 852:8-8 880:8-10 886:8-9 966:8-9 "
        "971:8-9 972:8-9",
    )
)
_TWO_DIGIT_CODES = frozenset(
    "20 27 30 31 32 33 34 36 39 40 41 43 44 45 46 47 48 49 51 52 53 54 55 56 57 58 60 61 62 63 64 65 66 81 82 84 86 90 "
    "91 92 93 94 95 98".split()
)
_THREE_DIGIT_CODES = re.compile(
    r"21[12368]|2[2346]\d|25[0-8]|29[01789]|35\d|37[0-8]|38[0-35-79]|42[013]|50\d|59\d|67[02-9]|68[0-35-9]|69[0-2]|"
    r"80[08]|85[02356]|8[78]0|88[1236]|96[0-8]|97[0-7]|99[2-68]"
)

_INTERNATIONAL = re.compile(
    rb"(?:(?<![\w+])(?:\((?=\+\d{1,3}\)))?\+"  # +44, (+44)
    rb"|(?<![\w.,+/-])(?<!\d )00(?:[ ./-](?=[1-9])|(?=[1-9]\d{0,2}[ ./-]))"  # 00 44, 0044 20
    rb") ?\(?(?=[1-9])\d{1,15}(?:(?:[ ./-]|\)[ -]?|[ -]\(|\(|\) ?\(| - )\d{1,12}){0,7}"
)
_EXTENSION = re.compile(rb",? ?(?:x|ext\.?|extension) ?\d{1,6}(?!\w)", re.IGNORECASE)
_NATIONAL = re.compile(
    rb"(?<![\w.,+/)\]-])(?:"
    # North America, with an area code and an exchange that begin with 2 to 9
    rb"(?:(?:1[ .-]?)?\([2-9]\d\d\)[ .-]?[2-9]\d\d[ .-]\d{4}"
    rb"|(?<!\d )(?:1[.-])?[2-9]\d\d([.-])[2-9]\d\d\1\d{4}"
    rb"|(?<!\d )1[ -][2-9]\d\d[ -][2-9]\d\d-\d{4}"
    rb")(?:(?=x\d)|(?![\w-]|\.\d))"
    rb"|(?:"
    rb"\(0[1-9]\d{0,4}\) ?\d{3,8}(?:[ -]\d{2,8}){0,3}"  # (089) 123456, (02) 9876 5432
    rb"|\([1-9]\d\) ?9?\d{4}-\d{4}"  # (11) 91234-5678: Brazil
    rb"|(?<!\d )(?:"
    rb"0[1-9]([ .-])\d\d(?:\2\d\d){3}"  # 01 23 45 67 89: France
    rb"|0[1-9]\d{1,3} \d{3,4} \d{3,4}"  # 020 7946 0958, 0412 345 678: United Kingdom, Ireland, Australia
    rb"|0[1-9]\d{3} \d{5,6}"  # 01632 960123
    rb"|0[1-9]\d{2} (?!00)\d{7,8}"  # 0151 23456789: Germany
    rb"|0[1-9]\d{1,2} \d{3} \d\d \d\d"  # 0212 123 45 67: Turkey, Switzerland
    rb"|0[1-9]\d{1,4} ?/ ?\d{4,9}(?:[ -]\d{1,4}){0,2}"  # 030/12345678, 040 / 1234-56
    rb"|0[1-9]\d{0,4}-\d{5,8}"  # 06-12345678, 0221-123456
    rb"|0[1-9]\d{0,3}-\d{2,4}-\d{4}"  # 03-1234-5678: Japan, Korea
    rb"|0[1-9]\d{0,2}-\d{2,3} \d{2,3}(?: \d{2,3})?"  # 08-123 456 78: Sweden
    rb"|8[ -]?\(?[3489]\d\d\)?[ -]\d{3}[ -]\d\d[ -]?\d\d"  # 8 (495) 123-45-67: Russia
    rb"))(?![\w-]|[ .,/]\d)"
    rb")"
)
_NAMED = re.compile(
    rb"(?:\b(?:(?:tele)?phones?|tel|t\xc3\xa9l|tlf|fax|mobiles?|mob|cell|cellular|cellphone|sms|whatsapp|viber|hotline|helpline|"
    rb"t[e\xc3\xa9]+l[e\xc3\xa9]+(?:phone|fono|fone)|telefon\w*|handy|mobil|m\xc3\xb3vil|movil|celular|portable|cellulare|gsm|puhelin)\b|\bph[.:]"
    rb"|\b(?:call|dial|text|phone|ring|reach)(?: (?:us|me|him|her|them|now|at|on|toll[ -]free))+"
    rb"|\xd1\x82\xd0\xb5\xd0\xbb|\xd0\xa2\xd0\xb5\xd0\xbb|\xd0\xbc\xd0\xbe\xd0\xb1|\xd0\xa4\xd0\xb0\xd0\xba\xd1\x81|\xd1\x84\xd0\xb0\xd0\xba\xd1\x81"
    rb"|\xe7\x94\xb5\xe8\xaf\x9d|\xe6\x89\x8b\xe6\x9c\xba|\xe9\x9b\xbb\xe8\xa9\xb1|\xe6\x90\xba\xe5\xb8\xaf|\xec\xa0\x84\xed\x99\x94|\xed\x9c\xb4\xeb\x8c\x80"
    rb")[^\d\n]{0,20}\Z",
    re.IGNORECASE,
)
_AFTER_NAME = re.compile(
    rb"(?<![\w.])\(?\d{1,13}(?:(?:\)[ ./-]{0,3}|[ ./-]{1,3})\(?\d{1,9}){0,6}(?:(?=x\d)|(?!\w|\.\d))"
)
_NORTH_AMERICAN = re.compile(r"1[2-9]\d\d[2-9]\d{6}")
_PAIR_BEFORE = re.compile(rb"(?<![\w])[<]?[0-9A-Fa-f]{2}[>]? {1,2}\Z")
_PAIR_AFTER = re.compile(rb" {1,2}<?[0-9A-Fa-f]{2}>?(?!\w)")
_DECIMAL = re.compile(rb"\+\d{4,}\.\d+(?![ -])")
# Dates, IP addresses and decimal numbers after a word that says phone.
_NO_PHONE = re.compile(
    rb"(?:19|20)\d\d[-./]\d\d?[-./]\d\d?(?!\d)|\d\d?[-./]\d\d?[-./](?:19|20)\d\d(?!\d)|(?:\d{1,3}\.){3}\d{1,3}\Z|\d{1,3}\.\d{4,}\Z"
)
_CHINESE_MOBILE = re.compile(rb"(?<=[\x80-\xff])1[3-9]\d{9}(?!\w)")


def phones(data: Bytes, start: int, end: int) -> Found:
    """The phone numbers in a run of digits, blanks and signs."""
    done = start
    for match in matches(_INTERNATIONAL, data, start, end):
        stop = match.start() + _international_end(match[0])
        if stop == match.start() or _in_bytes(data, match):
            continue
        whole = _with_extension(data, stop)
        if whole > stop or not _goes_on(data, stop):
            done = whole
            yield match.start(), done
    for match in matches(_NATIONAL, data, done, end):
        if 9 <= _digits(match[0]) <= 12 and not _in_bytes(data, match):
            done = _with_extension(data, match.end())
            yield match.start(), done
    for match in matches(_CHINESE_MOBILE, data, done, end):
        yield match.span()
        done = match.end()
    if done == start and _NAMED.search(before(data, start, 64)):
        named = _AFTER_NAME.match(data, start, min(len(data), end + 4))
        if named is not None and 7 <= _digits(named[0]) <= 13 and not _NO_PHONE.match(named[0]):
            yield start, _with_extension(data, named.end())


def _international_end(text: bytes) -> int:
    """How much of `text`, which begins with + or 00, is a number of its country's plan; 0 when none of it is.

    It is the longest beginning that ends with a group of digits: `+44 20 7946 0958` of `+44 20 7946 0958 12`."""
    if _DECIMAL.match(text):
        return 0
    zeros = text.startswith(b"00")
    number, best = "", 0
    for group in re.finditer(rb"\d+", text[2:] if zeros else text):
        digits = group[0].decode()
        if digits == "0" and number and group.string[group.start() - 1 : group.start()] == b"(":
            continue  # +44 (0)20: the zero is dialled at home only
        number += digits
        code = _country(number)
        if code is None:
            if len(number) >= 3:
                return 0
            continue
        shortest, longest = _PLANS.get(code, (6, 12))
        national = len(number) - len(code)
        if national > longest:
            break
        if national >= shortest and (code != "1" or _NORTH_AMERICAN.fullmatch(number)):
            best = group.end()
    return best + 2 if best and zeros else best


def _goes_on(data: Bytes, end: int) -> bool:
    """Whether a number that ends here is a part of a longer word or of a decimal number."""
    following = after(data, end, 2)
    return (
        following[:1].isalnum() or following[:1] == b"_" or (following[:1] in (b".", b",") and following[1:].isdigit())
    )


def _in_bytes(data: Bytes, match: re.Match[bytes]) -> bool:
    """Whether pairs of digits are a part of a dump: `64 01 8e 0b` before or after, or nothing but pairs after 00."""
    if re.fullmatch(rb"0\d(?: \d\d)+", match[0]) is None:
        return False
    start, end = match.span()
    beside = _PAIR_BEFORE.search(before(data, start, 4)) or _PAIR_AFTER.match(after(data, end, 5))
    return beside is not None or match[0].startswith(b"00")


def _country(number: str) -> str | None:
    """The country code that a number begins with, or None while there is none."""
    if number[:1] in ("1", "7"):
        return number[:1]
    if number[:2] in _TWO_DIGIT_CODES:
        return number[:2]
    return number[:3] if len(number) >= 3 and _THREE_DIGIT_CODES.fullmatch(number[:3]) else None


def _digits(text: bytes) -> int:
    return sum(48 <= byte <= 57 for byte in text)


def _with_extension(data: Bytes, end: int) -> int:
    match = _EXTENSION.match(after(data, end, 20))
    return end + (match.end() if match else 0)
