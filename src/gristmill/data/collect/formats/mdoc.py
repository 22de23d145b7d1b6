"""The macros of mdoc(7), the language of BSD manual pages: every word of a macro line may be another macro."""

from __future__ import annotations

from typing import Protocol

_FONT = {
    "Ad", "An", "Ar", "Cd", "Cm", "Dv", "Em", "Er", "Ev", "Fa", "Fr", "Ft", "Ic", "Li", "Ms", "No", "Pa", "Sx", "Sy",
    "Tn", "Va", "Vt", "Mt", "Ot", "Ux", "Bx", "Fx", "Nx", "Ox", "Dx", "Bsx", "Lk", "In", "Fd", "At", "St", "Lb", "Xr",
    "Fl", "Nm", "Nd", "Fn", "Ns", "Ap", "Pf", "Ta", "Op", "Tg",
}  # fmt: skip
_ENCLOSE = {
    "Aq": "<>", "Bq": "[]", "Brq": "{}", "Dq": "“”", "Op": "[]", "Pq": "()", "Ql": "‘’", "Qq": '""', "Sq": "‘’",
}  # fmt: skip
_OPEN = {"Ao": "<", "Bo": "[", "Bro": "{", "Do": "“", "Oo": "[", "Po": "(", "Qo": '"', "So": "‘", "Xo": ""}
_CLOSE = {"Ac": ">", "Bc": "]", "Brc": "}", "Dc": "”", "Oc": "]", "Pc": ")", "Qc": '"', "Sc": "’", "Xc": ""}
_SYSTEMS = {
    "Ux": "UNIX", "Bx": "BSD", "Fx": "FreeBSD", "Nx": "NetBSD", "Ox": "OpenBSD", "Dx": "DragonFly", "Bsx": "BSD/OS",
    "At": "AT&T UNIX",
}  # fmt: skip
_PUNCTUATION_BEFORE = {"(", "["}
_PUNCTUATION_AFTER = {".", ",", ":", ";", ")", "]", "?", "!"}
_MACROS = _FONT | _ENCLOSE.keys() | _OPEN.keys() | _CLOSE.keys()
_MAX_WORDS = 2000


class Page(Protocol):
    """What mdoc writes to: see `man.py`."""

    filled: list[str]

    def add(self, text: str) -> None: ...
    def break_line(self) -> None: ...
    def end_paragraph(self) -> None: ...
    def heading(self, level: int, text: str) -> None: ...
    def begin_verbatim(self) -> None: ...
    def end_verbatim(self) -> None: ...


class Mdoc:
    """Formats macro lines; `active` from the page's first `.Dd` on."""

    def __init__(self, page: Page):
        self.active = False
        self._page = page
        self._name = ""
        self._lists: list[tuple[str, int]] = []
        self._displays: list[bool] = []
        self._reference: list[str] | None = None
        self._function: list[str] = []  # of `.Fo`: its name, and its arguments so far
        self._synopsis = False
        self._spaced = True  # `.Sm off` sets words without spaces
        self._glue = False  # whether the next line goes on without one too

    def macro(self, name: str, words: list[str]) -> None:
        """One macro line; unknown macros are left out with their arguments."""
        page = self._page
        words = words[:_MAX_WORDS]
        if name == "Dd":
            self.active = True
        elif name == "Dt":
            if words:
                page.heading(1, words[0] + (f"({words[1]})" if len(words) > 1 else ""))
        elif name in ("Sh", "Ss"):
            self._synopsis = words == ["SYNOPSIS"]
            page.heading(2 if name == "Sh" else 3, self._inline(words))
        elif name in ("Pp", "Lp"):
            page.end_paragraph()
        elif name in ("br", "sp"):
            page.break_line()
        elif name == "Nd":
            page.add(f"– {self._inline(words)}")
        elif name in ("Bl", "El", "It"):
            self._list(name, words)
        elif name in ("Bd", "D1", "Dl", "Ed"):
            self._display(name, words)
        elif name == "Rs":
            self._reference = []
        elif name == "Re" and self._reference is not None:
            page.add(", ".join(self._reference) + ".")
            self._reference = None
        elif name.startswith("%") and self._reference is not None:
            self._reference.append(self._inline(words))
        elif name == "Sm":
            self._spaced = words[:1] == ["on"] or (not words and not self._spaced)
            self._glue = False
        elif name == "Fo":
            self._function = [" ".join(words)]
        elif name == "Fa" and self._function:
            self._function.append(" ".join(words))
        elif name == "Fc":
            if self._function:
                self._text(f"{self._function[0]}({', '.join(self._function[1:])})")
            self._function = []
            if self._synopsis:
                page.break_line()
        elif name == "Ex":
            page.add(f"The {self._name or 'command'} utility exits 0 on success, and >0 if an error occurs.")
        elif name == "Rv":
            page.add("On success the value 0 is returned; otherwise -1 is returned and errno is set.")
        elif name == "Nm" and words and not self._name:
            self._name = words[0]
            page.add(self._inline(["Nm", *words]))
        elif name in _MACROS:
            if self._synopsis and name in ("Fd", "Ft", "In", "Vt"):
                page.break_line()
            text = self._inline([name, *words])
            self._text(f"#include {text}" if self._synopsis and name == "In" else text)
            if self._synopsis and name in ("Fn", "In"):
                page.break_line()

    def _text(self, text: str) -> None:
        """Add text; closing punctuation is set to the word before it."""
        filled = self._page.filled
        opened = bool(filled) and len(filled[-1]) <= 2 and filled[-1].endswith(("(", "[", "“", "‘"))
        closing = text[:1] in _PUNCTUATION_AFTER or (self._glue and not self._spaced)
        if filled and filled[-1] != "\n" and (opened or closing):
            filled[-1] += text
        else:
            self._page.add(text)
        self._glue = not self._spaced

    def _list(self, name: str, words: list[str]) -> None:
        page = self._page
        if name == "Bl":
            kind = next((word[1:] for word in words if word.startswith("-")), "item")
            page.end_paragraph()
            self._lists.append((kind, 0))
        elif name == "El":
            page.end_paragraph()
            if self._lists:
                self._lists.pop()
        else:
            kind, count = self._lists[-1] if self._lists else ("item", 0)
            page.end_paragraph()
            if kind in ("bullet", "dash", "hyphen"):
                page.filled.append("-")
            elif kind == "enum":
                self._lists[-1] = (kind, count + 1)
                page.filled.append(f"{count + 1}.")
            elif kind == "column":
                page.add(self._inline(words).replace("\t", " | "))
                page.break_line()
            elif words:
                page.add(self._inline(words))
                page.break_line()

    def _display(self, name: str, words: list[str]) -> None:
        page = self._page
        if name == "Bd":
            literal = any(word in ("-literal", "-unfilled") for word in words)
            self._displays.append(literal)
            page.begin_verbatim() if literal else page.end_paragraph()
        elif name == "Ed":
            if self._displays and self._displays.pop():
                page.end_verbatim()
            else:
                page.end_paragraph()
        else:
            page.break_line()
            page.add(self._inline(words))
            page.break_line()

    def _inline(self, words: list[str]) -> str:
        """The text of a line of macros and their arguments."""
        return _Line(words, self._name, " " if self._spaced else "").text()


class _Line:
    """One macro line: `words` are macros, their arguments, and punctuation."""

    def __init__(self, words: list[str], name: str, space: str):
        self._words, self._name, self._space = words, name, space
        self._out: list[str] = []
        self._closers: list[str] = []  # of enclosures that end with the line
        self._joined = False  # whether the next word is set without a space
        self._macro = ""  # the macro whose arguments follow
        self._fresh = False  # whether it has had none yet

    def text(self) -> str:
        """The formatted line; what ends the sentence stands behind the enclosures that end with the line."""
        place = 0
        while place < len(self._words):
            word = self._words[place]
            place += 1
            if word in _MACROS:
                self._default()
                self._begin(word)
                if word in ("Fn", "Xr"):
                    place = self._call(word, place)
            elif word in _PUNCTUATION_AFTER:
                self._default()
                self._put(word, joined=True)
            elif word in _PUNCTUATION_BEFORE:
                self._put(word)
                self._joined = True
            else:
                self._argument(word)
        self._default()
        text = self._space.join(self._out)
        body = text.rstrip(".,;:") if self._closers and not text.endswith("...") else text
        return body + "".join(reversed(self._closers)) + text[len(body) :]

    def _put(self, text: str, joined: bool = False) -> None:
        if (self._joined or joined) and self._out:
            self._out[-1] += text
        else:
            self._out.append(text)
        self._joined = False

    def _default(self) -> None:
        """What a macro without arguments shows."""
        if self._fresh:
            shown = {"Fl": "-", "Ar": "file ...", "Nm": self._name}.get(self._macro, "")
            if shown:
                self._put(shown)
        self._fresh = False

    def _begin(self, macro: str) -> None:
        self._macro, self._fresh = macro, True
        if macro in _ENCLOSE:
            self._put(_ENCLOSE[macro][0])
            self._closers.append(_ENCLOSE[macro][1])
            self._joined = True
        elif macro in _OPEN:
            self._put(_OPEN[macro])
            self._joined = True
        elif macro in _CLOSE:
            self._put(_CLOSE[macro], joined=True)
        elif macro == "Ns":
            self._joined = True
        elif macro == "Ap":
            self._put("'", joined=True)
            self._joined = True
        elif macro in _SYSTEMS:
            self._put(_SYSTEMS[macro])
        elif macro == "Ta":
            self._put("|")

    def _argument(self, word: str) -> None:
        macro = self._macro
        if macro == "Fl":
            word = f"-{word}"
        elif macro == "In" and self._fresh:
            word = f"<{word}>"
        elif macro == "St":
            word = word.lstrip("-").upper()
        self._put(word)
        self._fresh = False
        if macro == "Pf":
            self._joined, self._macro = True, ""

    def _call(self, macro: str, place: int) -> int:
        """`open(path, flags)` of `Fn open path flags`, `ls(1)` of `Xr ls 1`; the place behind their arguments."""
        end = place
        while end < len(self._words) and self._words[end] not in _MACROS | _PUNCTUATION_AFTER:
            end += 1
        if name := self._words[place:end]:
            shown = ", ".join(name[1:])
            self._put(name[0] if macro == "Xr" and not shown else f"{name[0]}({shown})")
        self._macro, self._fresh = "", False
        return end
