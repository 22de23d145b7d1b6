"""Personal data in texts as spans, and the texts with every span replaced by the name of its kind."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Iterable
from itertools import groupby
from typing import AnyStr, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ..kernel.layout import texts_of
from . import scan
from .mail import addresses, spelt_addresses
from .network import credentials, ipv4, ipv6
from .numbers import cards, ibans, social_security
from .phone import phones
from .secrets import assigned_secrets, private_keys, tokens
from .text import Bytes, Found

# In this order kinds claim their places, and a later kind gets none that is taken: what looks like an e-mail address in
# https://user:word@host is a part of the credentials, and 16 digits are a card before they are a phone.
_FINDERS: tuple[tuple[str, int, Callable[[Bytes, int, int], Found]], ...] = (
    ("key", scan.PEM, private_keys),
    ("key", scan.TOKEN, tokens),
    ("credentials", scan.URL, credentials),
    ("key", scan.ASSIGNMENT, assigned_secrets),
    ("email", scan.AT, addresses),
    ("email", scan.BRACKETED_AT, spelt_addresses),
    ("iban", scan.ACCOUNT, ibans),
    ("card", scan.NUMBER, cards),
    ("ssn", scan.NUMBER, social_security),
    ("ip", scan.DOTTED, ipv4),
    ("ip", scan.COLONS, ipv6),
    ("phone", scan.NUMBER, phones),
)


class Span(NamedTuple):
    """A find: its kind and where it stands."""

    kind: str
    start: int
    end: int


def find(text: str, kinds: Iterable[str]) -> list[Span]:
    """The personal data of these kinds in a text, in order and without overlaps; places are in characters."""
    data = text.encode("utf-8", "ignore")
    spans = find_in_column(pa.array([data.decode()], pa.large_string()), kinds).get(0, [])
    if text.isascii():
        return spans
    return [Span(kind, len(data[:start].decode()), len(data[:end].decode())) for kind, start, end in spans]


def find_in_column(column: pa.Array, kinds: Iterable[str]) -> dict[int, list[Span]]:
    """The personal data of these kinds in each row that has any; places are in bytes of the row's UTF-8."""
    wanted = frozenset(kinds)
    finders: dict[int, list[tuple[int, str, Callable[[Bytes, int, int], Found]]]] = {}
    for rank, (kind, code, finder) in enumerate(_FINDERS):
        if kind in wanted:
            finders.setdefault(code, []).append((rank, kind, finder))
    texts = texts_of(column)
    candidates = scan.scan(texts, tuple(finders))
    places = zip(*(values.tolist() for values in candidates), strict=True)
    found: dict[int, list[Span]] = {}
    for row, group in groupby(places, key=lambda place: place[0]):
        text = texts.data[texts.offsets[row] : texts.offsets[row + 1]].data
        ranked = [
            (rank, start, end, kind)
            for _, first, last, code in group
            for rank, kind, finder in finders[code]
            for start, end in finder(text, first, last)
        ]
        if ranked:
            found[row] = _claim(ranked)
    return found


def redacted(column: pa.Array, finds: dict[int, list[Span]]) -> pa.Array:
    """The column with every find replaced by `<kind>`."""
    if not finds:
        return column
    data, offsets = texts_of(column)
    texts: list[bytes | None] = [None] * len(column)
    for row, spans in finds.items():
        text = data[offsets[row] : offsets[row + 1]].tobytes()
        texts[row] = replaced(text, ((start, end, f"<{kind}>".encode()) for kind, start, end in spans))
    changed = pa.array(texts, pa.binary() if column.type == pa.string() else pa.large_binary()).cast(column.type)
    return pc.coalesce(changed, column)


def replaced(text: AnyStr, spans: Iterable[tuple[int, int, AnyStr]]) -> AnyStr:
    """The text with every span replaced, given in order as (start, end, what stands there now)."""
    parts: list[AnyStr] = []
    done = 0
    for start, end, new in spans:
        parts += [text[done:start], new]
        done = end
    parts.append(text[done:])
    return text[:0].join(parts)


def _claim(ranked: list[tuple[int, int, int, str]]) -> list[Span]:
    """The spans in order, each place given to the finder of the lowest rank that found something there."""
    taken: list[tuple[int, int, str]] = []
    for _, start, end, kind in sorted(set(ranked)):
        place = bisect(taken, (start,))
        after_previous = place == 0 or taken[place - 1][1] <= start
        if after_previous and (place == len(taken) or end <= taken[place][0]):
            taken.insert(place, (start, end, kind))
    return [Span(kind, start, end) for start, end, kind in taken]
