"""Escape sequences and special characters of roff, as groff_char(7) and groff(7) define them."""

from __future__ import annotations

import re
import unicodedata

_GLYPHS = {
    "aq": "'", "dq": '"', "oq": "‘", "cq": "’", "lq": "“", "rq": "”", "Bq": "„", "bq": "‚", "Fo": "«", "Fc": "»",
    "fo": "‹", "fc": "›", "em": "—", "en": "–", "hy": "-", "bu": "•", "co": "©", "rg": "®", "tm": "™", "mu": "×",
    "di": "÷", "+-": "±", "-+": "∓", "<=": "≤", ">=": "≥", "!=": "≠", "==": "≡", "=~": "≅", "~~": "≈", "->": "→",
    "<-": "←", "<>": "↔", "ua": "↑", "da": "↓", "rA": "⇒", "lA": "⇐", "hA": "⇔", "if": "∞", "ha": "^", "ti": "~",
    "rs": "\\", "ga": "`", "aa": "´", "de": "°", "sc": "§", "ps": "¶", "ul": "_", "ru": "_", "rn": "‾", "sl": "/",
    "ba": "|", "br": "│", "bv": "│", "or": "|", "sq": "□", "ci": "○", "lh": "☜", "rh": "☞", "dg": "†", "dd": "‡",
    "14": "¼", "12": "½", "34": "¾", "S1": "¹", "S2": "²", "S3": "³", "at": "@", "sh": "#", "Do": "$", "Eu": "€",
    "Po": "£", "Ye": "¥", "ct": "¢", "lB": "[", "rB": "]", "lC": "{", "rC": "}", "la": "⟨", "ra": "⟩", "ss": "ß",
    "AE": "Æ", "ae": "æ", "OE": "Œ", "oe": "œ", "/O": "Ø", "/o": "ø", "/L": "Ł", "/l": "ł", "-D": "Ð", "Sd": "ð",
    "TP": "Þ", "Tp": "þ", "oA": "Å", "oa": "å", ".i": "ı", "r!": "¡", "r?": "¿", "mc": "µ", "pd": "∂", "sr": "√",
    "is": "∫", "sum": "∑", "product": "∏", "no": "¬", "AN": "∧", "OR": "∨", "fa": "∀", "te": "∃", "mo": "∈",
    "nm": "∉", "es": "∅", "ca": "∩", "cu": "∪", "sb": "⊂", "sp": "⊃", "ib": "⊆", "ip": "⊇", "Of": "ª", "Om": "º",
    "pl": "+", "mi": "−", "eq": "=", "md": "⋅", "pc": "·", "*a": "α", "*b": "β", "*g": "γ", "*d": "δ", "*e": "ε",
    "*l": "λ", "*m": "μ", "*p": "π", "*r": "ρ", "*s": "σ", "*t": "τ", "*f": "φ", "*q": "ψ", "*w": "ω", "*W": "Ω",
    "*D": "Δ", "*S": "Σ", "Ba": "|", "CR": "↵", "OK": "✓", "nb": "⊄", "lz": "◊", "*h": "θ", "*n": "ν", "*x": "ξ",
    "*h1": "ϑ", "shc": "\u00ad",
}  # fmt: skip
_ACCENTS = {"'": "\u0301", "`": "\u0300", "^": "\u0302", ":": "\u0308", "~": "\u0303", ",": "\u0327", "v": "\u030c",
            "o": "\u030a", "-": "\u0304", "ab": "\u0306", "a.": "\u0307", "ho": "\u0328"}  # fmt: skip
# Strings that the macro packages define themselves: of man, and of mdoc.
STRINGS = {
    "R": "®", "S": "", "Tm": "™", "lq": "“", "rq": "”", "Lq": "“", "Rq": "”", "L\"": "“", "R\"": "”", "C'": "",
    "C`": "", "Aq": "'", "q": '"', "Le": "≤", "Ge": "≥", "Ne": "≠", "Lt": "<", "Gt": ">", "Pm": "±", "If": "∞",
    "Na": "NaN", "Ba": "|", "Am": "&", "lp": "(", "rp": ")", "-": "-", "--": "—", "PI": "π", "T<": "", "T>": "",
    "(C": "©", "aa": "´", "ga": "`",
}  # fmt: skip
_PLAIN = {
    "-": "-", "e": "\\", "E": "\\", "\\": "\\", " ": " ", "~": " ", "0": " ", "t": "\t", "'": "´", "`": "`", ".": ".",
    "_": "_",
}  # fmt: skip

_ESCAPE = re.compile(
    r"\\(?:[\"#].*"  # a comment to the end of the line
    r"|\((?P<two>..)|\[(?P<long>[^\]\s]{0,60})\]|C'(?P<named>[^']{1,60})'"
    r"|\*(?:\((?P<string2>..)|\[(?P<string>[^\]]{0,60})\]|(?P<string1>.))"
    r"|[fFgkmMVYz](?:\(..|\[[^\]]{0,60}\]|.)"
    r"|n[-+]?(?:\(..|\[[^\]]{0,60}\]|.)"
    r"|s(?:[-+]?(?:\(\d\d|\[[^\]]{0,20}\])|[-+]?'[^']{0,20}'|[-+]?[1-3]?\d)"
    r"|N'(?P<number>\d{1,6})'"
    r"|[ABDHLRSXZbhlovwx](?P<quote>['\"])[^'\"\n]{0,200}(?P=quote)"
    r"|O(?:\d|\[[^\]]{0,60}\])"
    r"|(?P<one>.))?"
)
_MAX_TEXT = 100_000  # of one line with its strings put in


def plain(line: str, strings: dict[str, str]) -> str:
    """A line of roff input with its escapes resolved; fonts, sizes and motions go. `strings` are those that the page
    defines itself (`.ds`)."""
    if "\\" not in line:
        return line
    return _ESCAPE.sub(lambda match: _character(match, strings), line)[:_MAX_TEXT]


def _character(match: re.Match[str], strings: dict[str, str]) -> str:
    name = match.group("two") or match.group("long") or match.group("named")
    if name is not None:
        return _glyph(name)
    name = match.group("string2") or match.group("string") or match.group("string1")
    if name is not None:
        return strings.get(name.split(" ")[0] if name.strip() else name, STRINGS.get(name, ""))
    if number := match.group("number"):
        return _code_point(int(number))
    return _PLAIN.get(match.group("one") or "", "")


def _glyph(name: str) -> str:
    if name in _GLYPHS:
        return _GLYPHS[name]
    if re.fullmatch(r"u[0-9A-F]{4,6}(?:_[0-9A-F]{4,6})*", name):
        text = "".join(_code_point(int(part, 16)) for part in name[1:].split("_"))
        return unicodedata.normalize("NFC", text)
    if len(name) == 2 and name[0] in _ACCENTS and name[1].isalpha():
        return unicodedata.normalize("NFC", name[1] + _ACCENTS[name[0]])
    if match := re.fullmatch(r"char(\d{1,3})", name):
        return _code_point(int(match.group(1)))
    return ""


def _code_point(number: int) -> str:
    return chr(number) if 32 <= number < 0xD800 or 0xE000 <= number < 0x110000 else ""
