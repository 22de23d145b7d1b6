"""IP addresses, and the user names and passwords that stand in URLs."""

from __future__ import annotations

import ipaddress
import re

from .mail import is_reserved
from .text import Bytes, Found, after, before, matches

_QUAD = re.compile(rb"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w~+])(?!\.\w)(?!-[A-Za-z])")
_RANGE = re.compile(rb"-\d{1,3}\.\d{1,3}\.")
# 1.2.3.4 after one of these is a version or a section. A name and a sign before it (pkg-1.2.3.4, Tool/1.2.3.4,
# x==1.2.3.4) say the same.
_NUMBERED = re.compile(
    rb"(?<![a-z])(?:version|release|revision|section|chapter|clause|figure|table|appendix|rfc|ver|sec|rev|v|\xc2\xa7)"
    rb"s?[.:]?[ \t\"'=]*\Z"
    rb"|(?:[A-Za-z_]\w*|\))[-/]\Z|\w@\Z",
    re.IGNORECASE,
)
# What makes an address of mostly small numbers, which is otherwise taken for a version or a section. Of the public
# addresses one in 150 has three numbers or more below 32.
_ADDRESSED = re.compile(
    rb"(?:\b(?:ip(?:v4)?|\w*addr(?:ess)?(?:es)?|hosts?|servers?|client|ping|traceroute|route|gateway|dns|nameserver|ssh|peer|src|"
    rb"dst|source|destination|remote)\b[^\n]{0,12}|://)\Z",
    re.IGNORECASE,
)
_COMPARED = re.compile(rb"[<>=!~]=[ \t]*\Z")
_SMALL = 32
# What IANA has given to the registries (ipv6-unicast-address-assignments); 2002::/16 embeds an IPv4 address (RFC 3056).
_ALLOCATED_IPV6 = tuple(
    ipaddress.IPv6Network(block)
    for block in (
        "2001:200::/23 2001:400::/22 2001:800::/21 2001:1000::/20 2001:2000::/19 2001:4000::/18 2001:8000::/17 "
        "2003::/18 2400::/12 2410::/12 2600::/12 2610::/23 2620::/23 2630::/12 2800::/12 2a00::/11 2c00::/12"
    ).split()
)
# Public resolvers: the addresses of a service that everybody names.
_RESOLVERS = frozenset(
    "8.8.8.8 8.8.4.4 1.1.1.1 1.0.0.1 9.9.9.9 149.112.112.112 208.67.222.222 208.67.220.220 2001:4860:4860::8888 "
    "2001:4860:4860::8844 2606:4700:4700::1111 2606:4700:4700::1001 2620:fe::fe".split()
)
_PREFIX = re.compile(rb"/(\d{1,3})(?!\d)")
_PASSWORD = re.compile(rb"://([^\s:@/\"'<>`|]{1,64}):([^\s@\"'<>`|]{1,128})@([A-Za-z0-9\[\x80-\xff][\w.-]*)")
_PLACEHOLDERS = frozenset(
    "pass passwd password passphrase pwd pw secret token xxx xxxx xxxxx pat key apikey api_key word mypass mypassword "
    "yourpassword your_password your-password changeme user_password userpass mysecret passwort kennwort wachtwoord "
    "contraseña senha motdepasse mdp katasandi lösenord hasło heslo пароль 密码".split()
)


def ipv4(data: Bytes, start: int, end: int) -> Found:
    """Public IPv4 addresses in a run of digits and dots."""
    for match in matches(_QUAD, data, start, end):
        numbers = [int(part) for part in match[0].split(b".")]
        # A leading zero (01.02.03.04) is a date or a code; inet_aton would read it as octal.
        if max(numbers) > 255 or any(len(part) > 1 and part.startswith(b"0") for part in match[0].split(b".")):
            continue
        address = ipaddress.IPv4Address(match[0].decode())
        if not address.is_global or address.is_multicast or str(address) in _RESOLVERS or numbers[2:] == [0, 0]:
            continue
        if after(data, match.end(), 1) == b"-" and _RANGE.match(data, match.end()) is None:
            continue  # 1.2.3.4-5: a package's version
        left = before(data, match.start(), 40)
        small = sum(number < _SMALL for number in numbers)
        if small >= 1 and _NUMBERED.search(left[-16:]) and not left.endswith(b"//"):
            continue
        if small >= 2 and _COMPARED.search(left):
            continue
        if small >= 3 and not _ADDRESSED.search(left):
            continue
        if not left.strip() and after(data, match.end(), 2) in (b". ", b".\n"):
            continue  # a section's number
        if not _is_network(address, data, match.end()):
            yield match.span()


def ipv6(data: Bytes, start: int, end: int) -> Found:
    """A public IPv6 address that is the whole run of hexadecimal digits, colons and dots."""
    text = bytes(data[start:end]).rstrip(b".").decode()
    while text.endswith(":") and not text.endswith("::"):  # 2a00::1: what follows
        text = text[:-1]
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError:
        return
    if _is_public(address) and not _is_network(address, data, start + len(text)):
        yield start, start + len(text)


def credentials(data: Bytes, start: int, _: int) -> Found:
    """`name:password` of a URL that has one, unless the password says itself that it stands for one."""
    match = _PASSWORD.match(data, start)
    if match is None:
        return
    password = match[2].decode("utf-8", "replace").lower()
    template = any(sign in match[0] for sign in (b"$", b"{", b"}", b"*", b"%s", b"..."))
    reserved = is_reserved(match[3].decode("utf-8", "replace").lower())
    if not template and not reserved and password.strip("-_[]()") not in _PLACEHOLDERS and match[1] != match[2]:
        yield match.start(1), match.end(2)


def _is_public(address: ipaddress.IPv6Address) -> bool:
    if address.sixtofour is not None:
        return address.sixtofour.is_global and not address.sixtofour.is_multicast
    allocated = any(address in block for block in _ALLOCATED_IPV6)
    return allocated and address.is_global and str(address) not in _RESOLVERS


def _is_network(address: ipaddress.IPv4Address | ipaddress.IPv6Address, data: Bytes, end: int) -> bool:
    """Whether a prefix follows that leaves the address no bits of its own: 13.32.0.0/15 is a network, and nobody's."""
    prefix = _PREFIX.match(data, end)
    if prefix is None or int(prefix[1]) > address.max_prefixlen:
        return False
    bits = address.max_prefixlen - int(prefix[1])
    return bits > 0 and int(address) % (1 << bits) == 0
