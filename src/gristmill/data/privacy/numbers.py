"""Numbers that carry a checksum or a form of their own: payment cards, US social security numbers, IBANs."""

from __future__ import annotations

import re

from .text import Bytes, Found, before, matches

_CARD = re.compile(
    rb"(?<![\w.,+/-])(?:(?<!\d )(?:"
    rb"\d{4}([ -])\d{4}\1\d{4}\1\d{4}(?:\1\d{1,3})?"
    rb"|3[47]\d{2}([ -])\d{6}\2\d{5}"
    rb"|3[068]\d{2}([ -])\d{6}\3\d{4})"
    rb"|\d{13,19}"
    rb")(?![\w-]|[ .,]\d)"
)
# First digits and lengths by network (ISO/IEC 7812; the networks' own tables).
_ISSUERS = re.compile(
    rb"4(?:\d{12}|\d{15}|\d{18})"  # Visa
    rb"|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}"  # Mastercard
    rb"|3[47]\d{13}"  # American Express
    rb"|6(?:011|4[4-9]\d|5\d\d)\d{12}"  # Discover
    rb"|35(?:2[89]|[3-8]\d)\d{12}"  # JCB
    rb"|3(?:0[0-5]|[68]\d)\d{11}"  # Diners Club
    rb"|62\d{14}(?:\d{3})?"  # UnionPay
    rb"|220[0-4]\d{12}"  # Mir
    rb"|(?:5018|5020|5038|5893|6304|6759|676[1-3])\d{9,15}"  # Maestro
)
_SSN = re.compile(rb"(?<![\w.,+/-])(\d{3})([- ]?)(\d{2})\2(\d{4})(?![\w-]|[.,]\d)")
_SSN_NAMED = re.compile(rb"(?:\bssn|social[ -]?security|\btax(?:payer)?[ -]id|\bitin)\b[^\d\n]{0,24}\Z", re.IGNORECASE)
_SSN_ADVERTISED = (b"078051120", b"219099999", b"457555462")  # printed on cards in wallets, in advertisements: void
# Length of an IBAN by country (SWIFT, IBAN registry, release 99).
_IBAN_LENGTHS = {
    code: int(length)
    for length, codes in re.findall(
        r"(\d+)((?: [A-Z]{2})+)",
        "15 NO 16 BE 18 DK FO FI GL NL SD FK 19 MK SI 20 AT BA EE KZ LT LU XK MN 21 HR LV LI CH 22 BH BG CR GE DE "
        "IE ME RS GB VA 23 TL GI IQ IL AE OM SO 24 AD CZ MD PK RO SA SK ES SE TN VG 25 LY PT ST 26 IS TR 27 BI DJ FR "
        "GR IT MR MC SM 28 AL AZ BY CY DO SV GT HU LB PL HN NI 29 BR EG PS QA UA 30 JO KW MU YE 31 MT SC 32 LC 33 RU",
    )
    for code in codes.split()
}
_IBAN_REST = re.compile(rb"[A-Z0-9]{2}(?:[ -]?[A-Z0-9]){9,29}")


def luhn(digits: bytes) -> bool:
    """Whether a string of digits passes the checksum of ISO/IEC 7812-1, annex B."""
    doubled = [(digit - 48) * (1 + i % 2) for i, digit in enumerate(reversed(digits))]
    return sum(value - 9 * (value > 9) for value in doubled) % 10 == 0


def cards(data: Bytes, start: int, end: int) -> Found:
    """Card numbers by the networks' ranges and the checksum, written in groups or in one."""
    for match in matches(_CARD, data, start, end):
        digits = match[0].replace(b" ", b"").replace(b"-", b"")
        if _ISSUERS.fullmatch(digits) and len(set(digits)) > 1 and luhn(digits):
            yield match.span()


def social_security(data: Bytes, start: int, end: int) -> Found:
    """US social security numbers: 123-45-6789 where the ranges were ever given out; without dashes only where the
    text calls the number one."""
    for match in matches(_SSN, data, start, end):
        area, separator, group, serial = match.groups()
        issued = area not in (b"000", b"666") and area < b"900" and group != b"00" and serial != b"0000"
        if not issued or area + group + serial in _SSN_ADVERTISED:
            continue
        if separator == b"-" or _SSN_NAMED.search(before(data, match.start(), 48)):
            yield match.span()


def ibans(data: Bytes, start: int, _: int) -> Found:
    """An IBAN (ISO 13616) of its country's length and with a checksum of 1, in one piece or in groups."""
    length = _IBAN_LENGTHS.get(bytes(data[start : start + 2]).decode())
    rest = _IBAN_REST.match(data, start + 2)
    if length is None or rest is None:
        return
    characters, end = 2, start + 2
    while end < rest.end() and characters < length:
        characters += data[end] not in b" -"
        end += 1
    following = bytes(data[end : end + 1])
    if characters < length or following.isalnum() or following == b"_":
        return
    text = bytes(data[start:end]).replace(b" ", b"").replace(b"-", b"").decode()
    if int("".join(str(int(character, 36)) for character in text[4:] + text[:4])) % 97 == 1:
        yield start, end
