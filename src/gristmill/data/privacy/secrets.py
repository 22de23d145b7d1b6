"""Keys and tokens: by the beginnings and lengths that their issuers document, and values given to names of secrets."""

from __future__ import annotations

import math
import re
from collections import Counter

from .text import Bytes, Found, before

_TOKENS = re.compile(
    rb"(?:"
    rb"A(?:KIA|SIA)[A-Z0-9]{16}"  # AWS access key id
    rb"|AIza[\w-]{35}"  # Google API key
    rb"|ya29\.[\w-]{20,}"  # Google OAuth access token
    rb"|gh[pousr]_[A-Za-z0-9]{36,}"  # GitHub tokens
    rb"|github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}"  # GitHub fine-grained token
    rb"|glpat-[\w-]{20,}(?:\.[\w.-]+)?"  # GitLab personal access token
    rb"|xox[bpars]-[A-Za-z0-9-]{10,}"  # Slack tokens
    rb"|xapp-\d-[A-Z0-9]+-\d+-[a-f0-9]+"  # Slack app-level token
    rb"|[sr]k_(?:live|test)_[A-Za-z0-9]{16,}"  # Stripe keys
    rb"|whsec_[A-Za-z0-9]{24,}"  # Stripe webhook secret
    rb"|sk-ant-[\w-]{20,}"  # Anthropic
    rb"|sk-(?:proj-|svcacct-|admin-)?[\w-]*[A-Za-z0-9]{20,}[\w-]*"  # OpenAI, and services that follow it
    rb"|hf_[A-Za-z0-9]{30,}"  # Hugging Face
    rb"|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"  # JSON Web Token (RFC 7519): both parts begin with {"
    rb"|npm_[A-Za-z0-9]{36}"  # npm
    rb"|pypi-[\w-]{60,}"  # PyPI
    rb"|SG\.[\w-]{16,24}\.[\w-]{32,48}"  # SendGrid
    rb"|dop_v1_[a-f0-9]{64}"  # DigitalOcean
    rb"|shpat_[a-fA-F0-9]{32}"  # Shopify
    rb"|EAACEdEose0cBA[A-Za-z0-9]+"  # Facebook
    rb")(?![\w])"
)
_BREAK = rb"(?:\s|\\[nr]){1,8}"  # between lines, also as written in a string
_PEM = re.compile(
    rb"-----BEGIN ((?:RSA |DSA |EC |OPENSSH |ENCRYPTED |PGP )?PRIVATE KEY(?: BLOCK)?)-----"
    rb"(?:" + _BREAK + rb"[A-Za-z-]{1,40}: [^\n]{0,200}){0,4}"  # Proc-Type, DEK-Info, Version
    rb"(?:" + _BREAK + rb"[A-Za-z0-9+/=]{40,128}){1,400}"
    rb"(?:(?:" + _BREAK + rb"[A-Za-z0-9+/=]{1,80}){0,2}" + _BREAK + rb"-----END \1-----)?"
)
_QUOTED = re.compile(rb"[:=]>?[ \t]{0,4}(?:[brufBRUF]?)([\"'])([^\"'\n]{6,256})\1")
_BARE = re.compile(rb"[:=]>?[ \t]{0,4}([^\s\"'<>(){}\[\],;`]{8,256})(?=$|[\s\"'<,;`)\]}])", re.MULTILINE)
_NAME = re.compile(rb"([A-Za-z][\w .-]{0,40})[\"'`\]]{0,2}[ \t]{0,2}\Z")
# Names that end like a secret's and are none: places in a list, marks of a request, parts of a resource's name.
_HARMLESS_NAME = re.compile(
    rb"(?:next|page|paging|continuation|start|sync|request|client|idempotency|import|export|lock|csrf|stop|end)"
    rb"[ _-]?token\W*\Z|:secret\Z",
    re.IGNORECASE,
)
_HEXADECIMAL = re.compile(rb"(?:[0-9a-f-]+|[0-9A-F-]+)")
_SIMPLE = re.compile(rb"\s")
# What is no secret but stands for one, names one or computes one: templates, paths, attributes, numbers.
_TEMPLATE = re.compile(
    rb"\$[{(]|\A\$\w+\Z|%[sd(]|\{\w*\}|<\w|\\|\*\*|\.\.\.|xxx|XXX|your|YOUR|example|EXAMPLE|::|->"
    rb"|\Ahttps?://|\A(?:[~.]|/[a-z0-9._/-]+\Z)|\A[\w.]+\.[a-z_]{3,}\Z|\A0x[0-9A-Fa-f]+\Z",
    re.ASCII,
)


def tokens(data: Bytes, start: int, _: int) -> Found:
    """A key or token whose documented beginning stands at `start`."""
    if before(data, start, 1) in (b"-", b"/", b"."):
        return
    match = _TOKENS.match(data, start)
    if match is None or b"EXAMPLE" in match[0]:
        return
    text = match[0]
    # sk-learn-something-long is a name: a key has digits among its letters, or capitals among small ones.
    cased = any(map(_is_small, text[4:])) and any(map(_is_capital, text[4:]))
    if text.startswith((b"sk-", b"hf_", b"sk_", b"xox", b"glpat")) and not cased and not _is_mixed(text[3:]):
        return
    yield match.span()


def private_keys(data: Bytes, start: int, _: int) -> Found:
    """A private key's PEM block (RFC 7468), whole, or as many of its lines as there are."""
    match = _PEM.match(data, start)
    if match is not None:
        yield match.span()


def assigned_secrets(data: Bytes, sign: int, _: int) -> Found:
    """The value in `password = "..."`, `secret: ...` and the like, where it looks like no word, name or expression."""
    name = _NAME.search(before(data, sign, 48))
    if name is None or _HARMLESS_NAME.search(before(data, sign, 48)):
        return
    quoted = _QUOTED.match(data, sign)
    match = quoted or _BARE.match(data, sign)
    if match is None:
        return
    group = 2 if quoted else 1
    value = match[group]
    phrase = re.search(rb"pass(?:word|wd|phrase)?\W*\Z|pwd\W*\Z", name[0], re.IGNORECASE) is not None
    if _TEMPLATE.search(value) or _SIMPLE.search(value):
        return
    if _is_password(value) if phrase else _is_key(value):
        yield match.span(group)


def entropy(value: bytes) -> float:
    """Shannon's entropy of the distribution of bytes, in bits per byte."""
    return -sum(n / len(value) * math.log2(n / len(value)) for n in Counter(value).values())


def _is_mixed(value: bytes) -> bool:
    """Digits among letters: what a key has and a name has not."""
    digits = sum(48 <= byte <= 57 for byte in value)
    return digits >= 2 and entropy(value) >= 3.0


def _is_password(value: bytes) -> bool:
    """At least 8 letters, digits and signs, of three of these kinds: small letters, capitals, digits, signs."""
    kinds = [any(test(byte) for byte in value) for test in (_is_small, _is_capital, _is_digit, _is_sign)]
    return len(value) >= 8 and sum(kinds) >= 3 and kinds[2] and entropy(value) >= 2.5


def _is_key(value: bytes) -> bool:
    """At least 16 letters and digits, used evenly; 32 where they are hexadecimal, for shorter ones are checksums."""
    letters = any(_is_small(byte) or _is_capital(byte) for byte in value)
    plain = re.fullmatch(rb"[\w+/=.-]+", value, re.ASCII) is not None
    shortest = 32 if _HEXADECIMAL.fullmatch(value) else 16
    return len(value) >= shortest and letters and plain and _is_mixed(value) and entropy(value) >= 3.2


def _is_small(byte: int) -> bool:
    return 97 <= byte <= 122


def _is_capital(byte: int) -> bool:
    return 65 <= byte <= 90


def _is_digit(byte: int) -> bool:
    return 48 <= byte <= 57


def _is_sign(byte: int) -> bool:
    return 33 <= byte <= 126 and not (_is_small(byte) or _is_capital(byte) or _is_digit(byte))
