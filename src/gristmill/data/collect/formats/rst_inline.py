"""Inline markup of reStructuredText: roles, references, substitutions, emphasis, escapes."""

from __future__ import annotations

import re

_SUBSTITUTION = re.compile(r"\.\.[ \t]+\|([^|\n]{1,100})\|[ \t]+(replace|unicode)::[ \t]*(.*)")
_LITERAL = re.compile(r"``((?:[^`\n]|`(?!`))+)``")
_ROLE = re.compile(r":((?:[a-zA-Z][\w+-]*:)*[a-zA-Z][\w+.-]*):`((?:[^`\\\n]|\\.)*)`")
_REFERENCE = re.compile(r"`((?:[^`<\\\n]|\\.)*?)[ \t]*(?:<([^<>`\n]*)>)?`__?(?!\w)")
_INTERPRETED = re.compile(r"(?<![\w`:])`([^`\n<>]+)`(?!`)")
_WORD_REFERENCE = re.compile(r"(?<![\w`.+-])([A-Za-z](?:[\w.+-]{0,100}[A-Za-z0-9])?)__?(?=[\s.,:;!?)\]}'\"/-]|$)")
_FOOTNOTE = re.compile(r"[ \t]?(\[[#*\w][\w-]*\])_(?!\w)")
_STRONG = re.compile(r"(?<![\w*])\*\*(?=\S)((?:[^*\n]|\*(?!\*))+?)(?<=\S)\*\*(?![\w*])")
_EMPHASIS = re.compile(r"(?<![\w*\\])\*(?=[^\s*])([^*\n]+?)(?<=[^\s*\\])\*(?![\w*])")
_SUBSTITUTED = re.compile(r"\|([^|\s](?:[^|\n]{0,98}[^|\s])?)\|(?:__?)?")
_ESCAPE = re.compile(r"\\(.)")
_TITLED = re.compile(r"(.*?)\s*<[^<>]*>\Z", re.DOTALL)
_MATH, _CODE = {"math"}, {"code", "samp", "kbd", "file", "command", "program", "option", "envvar", "makevar", "regexp"}
_HIDDEN = {"index", "raw", "sub-ref"}
_STORED = re.compile("\x00(\\d{1,9})\x00")


class Inline:
    """Resolves inline markup with the substitutions that a document defines."""

    def __init__(self, lines: list[str]):
        self._substitutions: dict[str, str] = {}
        for line in lines:
            if line.startswith(".. |") and (match := _SUBSTITUTION.match(line)):
                name, kind, text = match.groups()
                self._substitutions[" ".join(name.lower().split())] = _unicode(text) if kind == "unicode" else text

    def text(self, source: str) -> str:
        """One paragraph without its markup; literals keep a back quote on each side."""
        if not any(mark in source for mark in "`*|_\\"):
            return source
        stored: list[str] = []

        def store(shown: str) -> str:
            stored.append(shown)
            return f"\x00{len(stored) - 1}\x00"

        text = source.replace("\x00", "")
        text = _LITERAL.sub(lambda match: store(f"`{match.group(1)}`"), text)
        text = _ROLE.sub(lambda match: store(_role(match.group(1), match.group(2))), text)
        if "|" in text and self._substitutions:
            text = _SUBSTITUTED.sub(self._substituted, text)
        text = _REFERENCE.sub(lambda match: match.group(1) or match.group(2) or "", text)
        text = _FOOTNOTE.sub(r" \1", text)
        text = _INTERPRETED.sub(r"\1", text)
        text = _EMPHASIS.sub(r"\1", _STRONG.sub(r"\1", text))
        text = _WORD_REFERENCE.sub(r"\1", text)
        text = _ESCAPE.sub(lambda match: "" if match.group(1).isspace() else match.group(1), text)
        for _ in range(3):  # a role may hold a literal
            text = _STORED.sub(lambda match: stored[int(match.group(1)) % len(stored)], text) if stored else text
        return text.replace("\x00", "")

    def _substituted(self, match: re.Match[str]) -> str:
        return self._substitutions.get(" ".join(match.group(1).lower().split()), match.group())


def _role(role: str, content: str) -> str:
    """What a role shows: the title of `title <target>`, the last part of `~a.b`, a formula between dollars."""
    kind = role.rpartition(":")[2].lower()
    if kind in _HIDDEN:
        return ""
    if kind in _MATH:
        return f"${content}$"
    if titled := _TITLED.match(content):
        return titled.group(1).lstrip("!~") or content.strip("<>")
    content = content.lstrip("!")
    if content.startswith("~"):
        content = content[1:].rpartition(".")[2]
    content = _ESCAPE.sub(r"\1", content)
    if kind in ("func", "meth") and not content.endswith(")"):
        return f"{content}()"
    if kind == "pep":
        return f"PEP {content}"
    if kind == "rfc":
        return f"RFC {content}"
    return f"`{content}`" if kind in _CODE else content


def _unicode(text: str) -> str:
    """`.. |copy| unicode:: U+000A9 .. comment` stands for the characters that the codes name."""
    characters = []
    for word in text.partition(" .. ")[0].split():
        match = re.fullmatch(r"(?:U\+|0x|\\u|\\x|x|&#x)([0-9A-Fa-f]{1,6});?", word)
        number = int(match.group(1), 16) if match else -1
        valid = 32 <= number < 0xD800 or 0xE000 <= number < 0x110000
        characters.append(chr(number) if valid else word if not match else "")
    return "".join(characters)
