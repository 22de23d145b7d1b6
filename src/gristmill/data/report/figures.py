"""Numbers as people read them, the same in the table on the terminal and on the page."""

from __future__ import annotations


def count(value: float) -> str:
    return f"{value:,.0f}"


def counted(value: float, thing: str) -> str:
    """1 document, 2 documents."""
    return f"{count(value)} {thing}{'' if value == 1 else 's'}"


def size(value: float) -> str:
    """Decimal units: 1 MB is a million bytes."""
    return _scaled(value, ("bytes", "kB", "MB", "GB", "TB"), " ")


def short(value: float) -> str:
    """1.23M: for tokens, which are estimates anyway."""
    return _scaled(value, ("", "k", "M", "B", "T"), "")


def share(value: float) -> str:
    return f"{100 * value:.1f} %"


def plain(value: float) -> str:
    """About three significant digits, without an exponent where that can be read."""
    if abs(value) >= 1e5:
        return short(value)
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def _scaled(value: float, units: tuple[str, ...], gap: str) -> str:
    unit = 0
    while abs(value) >= 999.5 and unit < len(units) - 1:
        value /= 1000
        unit += 1
    return f"{value:.0f}{gap}{units[0]}" if unit == 0 else f"{value:.3g}{gap}{units[unit]}"
