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
            self._text(f"{' '.join(words)}(")
        elif name == "Fc":
            self._text(")")
        elif name == "Ex":
            page.add(f"The {self._name or 'command'} utility exits 0 on success, and >0 if an error occurs.")
        elif name == "Rv":
            page.add("On success the value 0 is returned; otherwise -1 is returned and errno is set.")
        elif name == "Nm" and words and not self._name:
            self._name = words[0]
            page.add(self._inline(["Nm", *words]))
        elif name in _MACROS:
            self._text(self._inline([name, *words]))

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
        out: list[str] = []
        closers: list[str] = []  # of enclosures that end with the line
        joined = False  # whether the next word is set without a space
        font = ""
        fresh = False  # whether a macro has had no argument yet

        def put(text: str) -> None:
            nonlocal joined
            if joined and out:
                out[-1] += text
            else:
                out.append(text)
            joined = False

        for word in words:
            if word in _MACROS:
                if fresh and font == "Fl":
                    put("-")
                elif fresh and font == "Ar":
                    put("file ...")
                elif fresh and font == "Nm" and self._name:
                    put(self._name)
                font, fresh = word, True
                if word in _ENCLOSE:
                    put(_ENCLOSE[word][0])
                    closers.append(_ENCLOSE[word][1])
                    joined, font, fresh = True, "", False
                elif word in _OPEN:
                    put(_OPEN[word])
                    joined, font, fresh = True, "", False
                elif word in _CLOSE:
                    joined = True
                    put(_CLOSE[word])
                    font, fresh = "", False
                elif word == "Ns":
                    joined, font, fresh = True, "", False
                elif word == "Ap":
                    joined = True
                    put("'")
                    joined, font, fresh = True, "", False
                elif word in _SYSTEMS:
                    put(_SYSTEMS[word])
                elif word == "Ta":
                    put("|")
                continue
            if word in _PUNCTUATION_AFTER:
                if fresh and font == "Nm" and self._name:
                    put(self._name)
                elif fresh and font == "Ar":
                    put("file ...")
                joined = True
                put(word)
            elif word in _PUNCTUATION_BEFORE:
                put(word)
                joined = True
                continue
            elif font == "Pf":
                put(word)
                joined, font = True, ""
            elif font == "Xr":
                joined = joined or not fresh
                put(word if fresh else f"({word})")
                font = "Xr" if fresh else ""
            elif font == "Fl":
                put(f"-{word}")
            elif font == "Fn":
                put(f"{word}(" if fresh else f"{word},")
                joined = fresh
            elif font == "In":
                put(f"<{word}>" if fresh else word)
            elif font == "St":
                put(word.lstrip("-").upper())
            elif font in _SYSTEMS:
                put(word)
            else:
                put(word)
            if font == "Fn" and fresh:
                closers.append(")")
            fresh = False
        if fresh and font == "Fl":
            put("-")
        elif fresh and font == "Ar":
            put("file ...")
        elif fresh and font == "Nm" and self._name:
            put(self._name)
        text = (" " if self._spaced else "").join(out)
        tail = ""
        while text and closers and text[-1] in ".,;:" and (len(text) < 2 or text[-2] not in ".,"):
            tail = text[-1] + tail  # what ends the sentence stands behind the enclosure
            text = text[:-1].rstrip(",")
        return text.rstrip(",") + "".join(reversed(closers)) + tail if closers else text
