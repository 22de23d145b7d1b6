"""Numbers of a LaTeX document: its sections, statements, figures and labelled equations, and who refers to them.

Sections are numbered as LaTeX does it, statements of all kinds by one counter within the section, figures and tables
through the document. Of equations only those with a label get a number, by which the text can name them.
"""

from __future__ import annotations

import re

from .latex_tables import HEADINGS

_LABEL = re.compile(r"\\label\s*\{([^{}]*)\}")
_LAST_NUMBERED_LEVEL = 4
_UNNUMBERED = ("part", "frametitle")
# Commands that show a number alone; others, such as `\\autoref`, say of what.
_NUMBER_ALONE = ("ref", "eqref", "vref", "pageref", "subref")


class Numbers:
    """`here` is what a label stands for at this place: (kind, number), such as ("Lemma", "3.2")."""

    def __init__(self, has_chapters: bool):
        self.here = ("", "")
        self._first_level = 1 if has_chapters else 2
        self._sections = [0] * 7
        self._statements = self._equations = 0
        self._captions: dict[str, int] = {}
        self._appendix = False
        self._labels: dict[str, tuple[str, str]] = {}
        self._citations: dict[str, int] = {}

    def begin_appendix(self) -> None:
        """Sections go on with letters."""
        self._appendix = True
        self._sections = [0] * 7

    def heading(self, name: str) -> str:
        """The number of a new section, or "" for one that gets none."""
        level = HEADINGS[name]
        if not self._first_level <= level <= _LAST_NUMBERED_LEVEL or name in _UNNUMBERED:
            return ""
        self._sections[level] += 1
        self._sections[level + 1 :] = [0] * (6 - level)
        if level == self._first_level:
            self._statements = 0
        shown = [self._first(), *(str(count) for count in self._sections[self._first_level + 1 : level + 1])]
        self.here = ("Appendix" if self._appendix else "Chapter" if level == 1 else "Section", ".".join(shown))
        return self.here[1]

    def statement(self, title: str) -> str:
        """`Lemma 3.2` for the next lemma."""
        self._statements += 1
        section = self._sections[self._first_level]
        self.here = (title, f"{self._first()}.{self._statements}" if section else str(self._statements))
        return " ".join(self.here)

    def caption(self, kind: str) -> str:
        """`Figure 4` for the next figure."""
        self._captions[kind] = self._captions.get(kind, 0) + 1
        self.here = (kind, str(self._captions[kind]))
        return " ".join(self.here)

    def item(self, number: int) -> str:
        """`2.` for the second item of a list."""
        self.here = ("", str(number))
        return f"{number}."

    def formula(self, source: str) -> str:
        """A displayed formula with its labels turned into the numbers by which the text refers to them."""
        return _LABEL.sub(self._tag, source) if "\\label" in source else source

    def label(self, key: str) -> None:
        """Let `key` stand for what is here."""
        self._labels.setdefault(key, self.here)

    def reference(self, command: str, keys: str) -> str:
        """What a reference shows, "" when it leads nowhere. To be asked when the whole document has been read."""
        shown = []
        for key in keys.split(","):
            kind, number = self._labels.get(key.strip(), ("", ""))
            if number and kind == "Equation" and command != "ref":
                shown.append(f"({number})")
            elif number:
                shown.append(f"{kind} {number}" if kind and command not in _NUMBER_ALONE else number)
        return ", ".join(shown)

    def citation(self, keys: str) -> str:
        """`[1, 2]`: works by the order in which they are first named."""
        numbers = [self._citations.setdefault(key.strip(), len(self._citations) + 1) for key in keys.split(",")]
        return f"[{', '.join(str(number) for number in numbers)}]"

    def _first(self) -> str:
        section = self._sections[self._first_level]
        return chr(ord("A") + (section - 1) % 26) if self._appendix else str(section)

    def _tag(self, match: re.Match[str]) -> str:
        self._equations += 1
        self._labels[match.group(1).strip()] = ("Equation", str(self._equations))
        return f"\\tag{{{self._equations}}}"
