"""Personal data that a pattern can find: e-mail addresses, public IP addresses, phone and card numbers.

Patterns are slow and texts mostly hold nothing for them, so a whole column is first asked, in compiled code, for what
every match must contain; only the documents that have it are searched. What a pattern finds is then checked: addresses
must be routable (127.0.0.1 and 192.168.0.0/16 name nobody), card numbers must pass Luhn's test.

Names, streets and anything else that needs understanding are not found; see docs/data.md.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

KINDS = ("email", "ip", "phone", "card")

_EMAIL = re.compile(
    r"(?<![\w.+%-])[A-Za-z0-9_][\w.+%-]{0,63}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24}(?![\w-])"
)
_IP = re.compile(
    r"(?<![\w.@])(?<![<>=!~]=)(?<![A-Za-z_]-)(?:\d{1,3}\.){3}\d{1,3}(?!\.?\w)"
    r"|(?<![\w:.])(?:"
    r"(?:[0-9A-Fa-f]{1,4}:){2,7}:?[0-9A-Fa-f]{1,4}(?::[0-9A-Fa-f]{1,4})*(?![\w:])"
    r"|(?:[0-9A-Fa-f]{1,4}:)+:(?![\w:])"
    r")"
)
_PHONE = re.compile(
    r"(?<![\w.+\-/)\]])(?<!\d )(?:"
    r"\+[1-9]\d{0,2}(?:[ -]\(?\d{1,4}\)?){2,5}"  # +44 20 7946 0958
    r"|\+[1-9]\d{9,14}"  # E.164 without blanks
    r"|(?:1[ .-])?\(\d{3}\) ?\d{3}[ .-]\d{4}"  # (415) 555-2671
    r"|(?:1[ .-])?\d{3}([.-])\d{3}\1\d{4}"  # 415-555-2671
    r")(?![\w-]|[ .]\d)"
)
_CARD = re.compile(
    r"(?<![\w.+-])(?:"
    r"\d{4}([ -])\d{4}\1\d{4}\1\d{4}"
    r"|3[47]\d{2}([ -])\d{6}\2\d{5}"
    r"|(?:4\d{15}|5[1-5]\d{14}|2[2-7]\d{14}|3[47]\d{13}|6(?:011|5\d\d)\d{12})"
    r")(?![\w-]|\.\d)"
)
# What a text must contain for its kind to be searched at all, in RE2's syntax.
_GATES = {
    "email": r"\w@\w",
    "ip": r"\d\.\d{1,3}\.\d{1,3}\.\d|[0-9A-Fa-f]:[0-9A-Fa-f:]*:",
    "phone": r"\+[1-9]\d{0,2}[ -]?\(?\d|\d{3}\)? ?\d{3}[ .-]\d{4}|\d{3}[.-]\d{3}[.-]\d{4}",
    "card": r"\d{4}[ -]?\d{4,6}[ -]?\d{4}",
}
# 1.2.3.4 after one of these words is a version or a section, not an address.
_NUMBERED = re.compile(r"(?:version|release|revision|section|chapter|rfc|ver|sec|rev|v|§)s?[.:]?[ \t]*$", re.IGNORECASE)
_EXAMPLES = ("example.com", "example.net", "example.org")
_ROUTABLE_IPV6 = ipaddress.ip_network("2000::/3")


def luhn(digits: str) -> bool:
    """Whether a string of digits passes the checksum of ISO/IEC 7812-1, annex B."""
    doubled = [int(digit) * (1 + i % 2) for i, digit in enumerate(reversed(digits))]
    return sum(value - 9 * (value > 9) for value in doubled) % 10 == 0


def redact_batch(texts: list[str], kinds: tuple[str, ...]) -> tuple[list[str], dict[str, list[int]]]:
    """The texts with every find replaced by `<email>`, `<ip>`, `<phone>` or `<card>`, and the number of finds of each
    kind in each text."""
    redacted = list(texts)
    counts = {kind: [0] * len(texts) for kind in kinds}
    column = pa.array(texts, pa.large_string())
    for kind in (kind for kind in ("email", "card", "phone", "ip") if kind in kinds):
        for i in pc.indices_nonzero(pc.match_substring_regex(column, _GATES[kind])).to_pylist():
            redacted[i], counts[kind][i] = redact(redacted[i], kind)
    return redacted, counts


def redact(text: str, kind: str) -> tuple[str, int]:
    """The text with every find of one kind replaced, and how many there were."""
    pattern, accept = _FINDERS[kind]
    found = 0

    def replace(match: re.Match[str]) -> str:
        nonlocal found
        if not accept(match):
            return match.group()
        found += 1
        return f"<{kind}>"

    return pattern.sub(replace, text), found


def _is_email(match: re.Match[str]) -> bool:
    """Not the user name of a repository's address (git@github.com:...), nor a name reserved for examples."""
    user, _, host = match.group().lower().rpartition("@")
    reserved = host.endswith((".example", ".invalid", ".test", ".localhost")) or host in _EXAMPLES
    return user != "git" and not reserved


def _is_ip(match: re.Match[str]) -> bool:
    try:
        address = ipaddress.ip_address(match.group())
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        return address in _ROUTABLE_IPV6 and address.is_global
    before = match.string[max(0, match.start() - 16) : match.start()]
    return address.is_global and not address.is_multicast and not _NUMBERED.search(before)


def _is_phone(match: re.Match[str]) -> bool:
    return 10 <= sum(map(str.isdigit, match.group())) <= 15


def _is_card(match: re.Match[str]) -> bool:
    digits = re.sub(r"\D", "", match.group())
    return len(set(digits)) > 1 and luhn(digits)


_FINDERS: dict[str, tuple[re.Pattern[str], Callable[[re.Match[str]], bool]]] = {
    "email": (_EMAIL, _is_email),
    "ip": (_IP, _is_ip),
    "phone": (_PHONE, _is_phone),
    "card": (_CARD, _is_card),
}
