"""E-mail addresses: RFC 5322 as far as people use it, international ones (RFC 6531) and `name (at) host (dot) org`."""

from __future__ import annotations

import re

from .text import Bytes, Found

# Top-level domains. Generic ones are a choice of those in wide use: the root zone has 1,400, among them `dot`, `map`
# and `name`, which in programs are attributes (`a@b.dot(c)` multiplies matrices).
_COUNTRIES = (
    "ac ad ae af ag ai al am ao aq ar as at au aw ax az ba bb bd be bf bg bh bi bj bm bn bo br bs bt bv bw by bz ca cc "
    "cd cf cg ch ci ck cl cm cn co cr cu cv cw cx cy cz de dj dk dm do dz ec ee eg er es et eu fi fj fk fm fo fr ga gb "
    "gd ge gf gg gh gi gl gm gn gp gq gr gs gt gu gw gy hk hm hn hr ht hu id ie il im in io iq ir is it je jm jo jp ke "
    "kg kh ki km kn kp kr kw ky kz la lb lc li lk lr ls lt lu lv ly ma mc md me mg mh mk ml mm mn mo mp mq mr ms mt mu "
    "mv mw mx my mz na nc ne nf ng ni nl no np nr nu nz om pa pe pf pg ph pk pl pm pn pr ps pt pw py qa re ro rs ru rw "
    "sa sb sc sd se sg sh si sj sk sl sm sn so sr ss st su sv sx sy sz tc td tf tg th tj tk tl tm tn to tr tt tv tw tz "
    "ua ug uk us uy uz va vc ve vg vi vn vu wf ws ye yt za zm zw"
)
_GENERIC = (
    "com org net edu gov mil int info biz aero coop museum jobs mobi travel asia post arpa "
    "academy agency app art bank bar berlin bio blog business cafe capital care center chat church city cloud club "
    "coach community company consulting contact cool delivery design dev digital email energy engineering events "
    "expert family farm finance fund gallery games global group guide guru health help host hotel house institute "
    "insurance international investments law lawyer legal life live llc london ltd management marketing media money "
    "moscow network news ngo online partners paris party photos photography physio plus press pro productions pub "
    "recipes rocks sale school science services shop site ski social software solutions space store studio support "
    "systems team tech technology tips today tokyo tools top tours training university vacations ventures video vip "
    "vision website wien wiki win work works world wtf xyz yoga zone"
)
_TOP_LEVEL = frozenset(f"{_COUNTRIES} {_GENERIC}".split())
_RESERVED = frozenset(["example.com", "example.net", "example.org", "example.edu"])  # RFC 2606, and in wide use
_LOCAL = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._%+-'"
_LABEL = rb"[A-Za-z0-9\x80-\xff](?:[A-Za-z0-9\x80-\xff-]{0,61}[A-Za-z0-9\x80-\xff])?"
_HOST = re.compile(rb"((?:" + _LABEL + rb"\.){1,8})(xn--[A-Za-z0-9-]{2,40}|[A-Za-z]{2,24}|[\x80-\xff]{4,40})")
_SPELT_LOCAL = re.compile(rb"(?<![A-Za-z0-9._%+-])[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}[ \t]{0,2}\Z")
_SPELT_HOST = re.compile(
    rb"[(\[{] {0,2}at {0,2}[)\]}][ \t]{0,2}"
    rb"([A-Za-z0-9-]{1,63}(?:[ \t]{0,2}(?:\.|[(\[{] {0,2}dot {0,2}[)\]}])[ \t]{0,2}[A-Za-z0-9-]{1,63}){1,4})(?![\w-])",
    re.IGNORECASE,
)
_SPELT_DOT = re.compile(rb"[ \t]*[(\[{] *dot *[)\]}][ \t]*", re.IGNORECASE)


def addresses(data: Bytes, at: int, _: int) -> Found:
    """The address around the `@` at `at`."""
    host = _HOST.match(data, at + 1)
    if host is None or not _is_host(host, data):
        return
    start = _local_start(data, at)
    local = bytes(data[start:at])
    before = bytes(data[max(0, start - 1) : start])
    # git@host: is a repository's, %s@ and $user@ are templates, dist@1.2 and a path's @ are none of anybody's.
    if not local or local in (b"git", b"hg") or before in (b"$", b"%", b"@", b"/", b"\\", b"}"):
        return
    if is_reserved((host[1] + host[2]).decode("utf-8", "replace").lower()):
        return
    yield start, host.end()


def spelt_addresses(data: Bytes, bracket: int, _: int) -> Found:
    """`ann (at) mill (dot) org` around the bracket."""
    host = _SPELT_HOST.match(data, bracket)
    local = _SPELT_LOCAL.search(bytes(data[max(0, bracket - 66) : bracket]))
    if host is None or local is None:
        return
    name = _SPELT_DOT.sub(b".", host[1]).replace(b" ", b"").decode().lower()
    if name.rpartition(".")[2] in _TOP_LEVEL and not is_reserved(name):
        yield bracket - len(local[0]), host.end()


def _is_host(host: re.Match[bytes], data: Bytes) -> bool:
    top = host[2]
    following = bytes(data[host.end() : host.end() + 2])
    if (
        following[:1].isalnum()
        or following[:1] in (b"_", b"-", b"(")
        or (following[:1] == b"." and following[1:].isalnum())
    ):
        return False
    if top[0] >= 0x80 or top.startswith(b"xn--"):
        return True
    name = top.decode()
    return name.lower() in _TOP_LEVEL and (name.islower() or name.isupper() or name.istitle())


def is_reserved(host: str) -> bool:
    """Whether a host's name is kept for documentation and tests (RFC 2606), so that nobody's address can end in it."""
    return ".".join(host.split(".")[-2:]) in _RESERVED or host.endswith((".example", ".invalid", ".test", ".localhost"))


def _local_start(data: Bytes, at: int) -> int:
    """Where the part before the `@` begins. Letters of two bytes (Latin, Greek, Cyrillic, Arabic) belong to it, and
    the longer ones of Chinese or Japanese only when it has no others: they stand beside an address without a blank."""
    lowest = max(0, at - 64)
    start = at - (at - lowest - len(bytes(data[lowest:at]).rstrip(_LOCAL)))
    while start - 2 >= lowest and 0xC3 <= data[start - 2] <= 0xDF and data[start - 1] >= 0x80:
        start -= 2
        start -= (start - lowest) - len(bytes(data[lowest:start]).rstrip(_LOCAL))
    if start == at:
        while start - 3 >= lowest and 0xE0 <= data[start - 3] <= 0xEF and data[start - 1] >= 0x80:
            start -= 3
    text = bytes(data[start:at])
    return at - len(text.lstrip(b".%+-'"))
