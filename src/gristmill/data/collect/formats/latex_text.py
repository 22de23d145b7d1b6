"""The body of a LaTeX document as readable text: headings, paragraphs, lists, statements; formulas as they stand.

One pass over tokens. Braces keep a stack of what happens where they close, so nothing here is recursive and commands
may nest to any depth. Sections, statements, figures and labelled equations are numbered in the usual way, so that
"Lemma 3.2" means something in the text; what refers to another document is dropped together with the space before it.
"""

from __future__ import annotations

import re
import unicodedata

from .latex_macros import Braces
from .latex_numbers import Numbers
from .latex_tables import (
    ACCENTS,
    ENVIRONMENT_ARGUMENTS,
    HEADINGS,
    MATH,
    PUNCTUATION,
    SKIPPED_ARGUMENTS,
    SWALLOWED,
    SYMBOLS,
    TABLES,
    THEOREMS,
)

# Inside this module: a break that is not the source's, a space that is not, and a reference that leads nowhere.
BREAK, INDENT, NOWHERE = "\x02", "\x03", "\x01"
CONTROLS = re.compile("[\x01-\x08\x0b-\x1f\x7f]")

_TOKEN = re.compile(
    r"\\([a-zA-Z@]+)(\*?)"
    r"|\$\$[^$\\]*(?:(?:\\.|\$(?!\$))[^$\\]*)*\$\$"
    r"|\$[^$\\\n]*(?:(?:\\.|\n(?![ \t]*\n))[^$\\\n]*)*\$"
    r"|\\\([^\\]*(?:\\(?![()]).[^\\]*)*\\\)"
    r"|\\\[[^\\]*(?:\\(?![\[\]]).[^\\]*)*\\\]"
    r"|\\.|[{}~&\]]|-{2,3}|``|''|\x00\d+\x00",
    re.DOTALL,
)
_ENVIRONMENT = re.compile(r"\s*\{\s*([a-zA-Z@]+)(\*?)\s*\}")
_OPTIONAL = re.compile(r"[ \t]*\n?[ \t]*\[((?:[^\[\]{}\n]|\n(?!\s*\n)|\{[^{}]*\}){0,400})\]")
_SPACES = re.compile(r"[ \t]*(?:\n(?![ \t]*\n)[ \t]*)?")
_LINE_END = re.compile(r"[ \t]*\n")
_LINE_BREAK_OPTION = re.compile(r"\*?[ \t]*\[[^\]\n]{0,30}\]|\*")
_KEY = re.compile(r"\s*\{([^{}]*)\}")
_CITE = re.compile(
    r"^(?:no)?(?:[pP]aren|[tT]ext|[fF]oot|[aA]uto|[sS]mart|super|full)?[cC]ite"
    r"(?:t|p|alt|alp|author|year|yearpar|s|title|num|text)?$"
)
_TEXTUAL = re.compile(
    r"\b(?:in|by|of|see|from|to|with|also|and|or|than|follow(?:s|ing)?|on|for|at|via|us(?:e|es|ing)|cf\.|perhaps|is|are|"
    r"e\.g\.,?|papers?|books?|articles?|works?|references?)[\s~]*$",
    re.I,
)
_ACCENTED = re.compile(r"[ \t]*(?:\{[ \t]*(\\[ij]|[^\W\d_])?[ \t]*\}|(\\[ij])(?![a-zA-Z])[ \t]*|([^\W\d_]))")
_THEOREM = re.compile(r"\\(?:sp)?newtheorem(\*?)\s*\{(\w+)\*?\}\s*(?:\[\w*\])?\s*\{([^{}]*)\}")
_DIMENSION = re.compile(
    r"[ \t]*=?[ \t]*-?[\d.]*[ \t]*(?:\\?[a-z]{2,20}\b)?(?:[ \t]+(?:plus|minus)[ \t]*[\d.]+[ \t]*[a-z]{2,4})*"
)
_DIMENSIONED = frozenset("vskip hskip kern vglue hglue baselineskip parindent parskip textwidth textheight".split())
_BLANKS = re.compile(r"[ \t]+")
_PARAGRAPH = re.compile(r" ?\n ?\n\s*")
_LINE = re.compile(r" ?\n ?")
_AROUND_BREAK = re.compile(f" ?{BREAK} ?")
_BREAKS = re.compile(f"{BREAK}{{3,}}")
_NOWHERES = re.compile(f"{NOWHERE}(?:[,;]? ?(?:and|or|to|–|-)? ?{NOWHERE})+")
_EMPTY = re.compile(rf" ?\( ?(?:see |cf\. )?{NOWHERE} ?\)| ?\[ ?{NOWHERE} ?\]| ?{NOWHERE}")
_NOT_REFERENCES = {"href", "hyperref", "pdfref"}
_MAX_OPEN = 200  # environments in environments


def latex_text(body: str, swallowed: frozenset[str] = frozenset(), declarations: str = "") -> str:
    """The text of a document's body, its macros expanded already. `declarations` may define statements
    (`\\newtheorem`); environments named in `swallowed` are left out with their content."""
    titles = dict(THEOREMS)
    unnumbered = {"proof"}
    for star, name, title in _THEOREM.findall(declarations):
        titles[name] = title.strip() or name
        if star:
            unnumbered.add(name)
    return _finish(_Renderer(body, titles, unnumbered, SWALLOWED | swallowed).run())


class _Renderer:
    def __init__(self, text: str, titles: dict[str, str], unnumbered: set[str], swallowed: frozenset[str]):
        self.text, self.titles, self.unnumbered, self.swallowed = text, titles, unnumbered, swallowed
        self.out: list[str] = []
        self.position = 0
        self.open: list[tuple[bool, str]] = []  # (whether a bracket closes it, what to write there)
        self.environments: list[str] = []
        self.lists: list[list[int]] = []
        self.tables = 0
        self.missing_ends: set[str] = set()
        self._braces: Braces | None = None
        self.numbers = Numbers("\\chapter" in text)
        self.references: list[tuple[int, str, str]] = []  # (place in `out`, command, keys)

    @property
    def braces(self) -> Braces:
        if self._braces is None:
            self._braces = Braces(self.text)
        return self._braces

    def run(self) -> str:
        text, out = self.text, self.out
        for match in _TOKEN.finditer(text):
            start = match.start()
            if start < self.position:
                continue
            if start > self.position:
                out.append(text[self.position : start])
            self.position = match.end()
            token = match.group()
            first = token[0]
            if first == "$" or (first == "\\" and token[1] in "([" and len(token) > 2):
                self._math(token)
            elif first == "\\":
                name = match.group(1)
                if name:
                    self._command(name, match.group(2) or "")
                else:
                    self._punctuation(token[1])
            elif first == "{":
                self.open.append((False, ""))
            elif first == "}":
                self._close_brace()
            elif first == "]":
                out.append(self.open.pop()[1] if self.open and self.open[-1][0] else "]")
            elif first == "&":
                out.append(" | " if self.tables else " ")
            else:
                out.append(_CHARACTERS.get(token, token))
        out.append(text[self.position :])
        for place, command, keys in self.references:
            out[place] = self.numbers.reference(command, keys) or NOWHERE
        return "".join(out)

    def _math(self, token: str) -> None:
        if token[:2] in ("$$", "\\["):
            self.out += (BREAK, self.numbers.formula(token).replace("\n", BREAK), BREAK)
        elif token[0] == "\\":
            self.out.append(f"${token[2:-2]}$")
        else:
            self.out.append(token)

    def _punctuation(self, character: str) -> None:
        if character in ACCENTS:
            self._accent(character)
        elif character == "\\":
            if optional := _LINE_BREAK_OPTION.match(self.text, self.position):
                self.position = optional.end()
            self.out.append(BREAK)
        else:
            self.out.append(PUNCTUATION.get(character, character))

    def _accent(self, name: str) -> bool:
        match = _ACCENTED.match(self.text, self.position)
        if not match:
            return False
        letter = match.group(1) or match.group(2) or match.group(3) or " "
        letter = {"\\i": "i", "\\j": "j"}.get(letter, letter)
        self.out.append(unicodedata.normalize("NFC", letter + ACCENTS[name]))
        self.position = match.end()
        return True

    def _command(self, name: str, star: str) -> None:
        if name == "begin" or name == "end":
            match = _ENVIRONMENT.match(self.text, self.position)
            if match:
                self.position = match.end()
                (self._begin if name == "begin" else self._end)(match.group(1), match.group(2))
        elif name == "label":
            if key := self._key():
                self.numbers.label(key)
            self._drop_line()
        elif name.endswith("ref") and name not in _NOT_REFERENCES:
            self._skip_options()
            if key := self._key():
                self.references.append((len(self.out), name, key))
                self.out.append("")
        elif name == "item":
            self._item()
        elif name in HEADINGS:
            self._heading(name, star)
        elif name in ("caption", "captionof"):
            self._caption()
        elif name in _GROUPS:
            self._group(*_GROUPS[name])
        elif _CITE.match(name):
            self._cite(name)
        elif name in SKIPPED_ARGUMENTS:
            self._skip_options()
            self._skip_groups(SKIPPED_ARGUMENTS[name])
            self._drop_line()
        elif name in SYMBOLS:
            symbol = SYMBOLS[name]
            self.out.append(symbol)
            if self.text.startswith("{}", self.position):
                self.position += 2
            elif len(symbol) == 1 and symbol.isalpha():  # inside a word, as in `Bj\o rn`
                self.position = self._after_spaces()
        elif name in ACCENTS and self.text.startswith(("{", " ", "\\"), self.position):
            if not self._accent(name):
                self._unknown()
        elif name == "ensuremath":
            self._ensure_math()
        elif name == "appendix":
            self.numbers.begin_appendix()
        elif name in _DIMENSIONED:
            if dimension := _DIMENSION.match(self.text, self.position):
                self.position = dimension.end()
            self.out.append("\n\n" if name[0] == "v" else " ")
        else:
            self._unknown()

    def _unknown(self) -> None:
        """Any other command: it goes, what stands in its braces stays."""
        if self.text.startswith("[", self.position):
            self._skip_options()
        elif not self.out or not self.out[-1][-1:].isalnum():
            self.position = self._after_spaces()

    def _drop_line(self) -> None:
        """A line that held nothing but a command is no empty line: its end goes with it."""
        if not self.out or self.out[-1][-1:] in ("\n", BREAK) or not self.out[-1].strip(" "):
            line_end = _LINE_END.match(self.text, self.position)
            self.position = line_end.end() if line_end else self.position

    def _after_spaces(self) -> int:
        match = _SPACES.match(self.text, self.position)
        return match.end() if match else self.position

    def _key(self) -> str | None:
        match = _KEY.match(self.text, self.position)
        if not match:
            return None
        self.position = match.end()
        return match.group(1).strip()

    def _skip_options(self) -> None:
        while optional := _OPTIONAL.match(self.text, self.position):
            self.position = optional.end()

    def _skip_groups(self, count: int) -> None:
        for _ in range(count):
            start = self._after_spaces()
            if not self.text.startswith("{", start):
                return
            end = self.braces.end(start)
            if end is None:
                return
            self.position = end + 1
            self._skip_options()

    def _group(self, before: str, after: str) -> None:
        """Write `before`, open the group that follows, and write `after` where it closes."""
        self._skip_options()
        start = self._after_spaces()
        if self.text.startswith("{", start):
            self.position = start + 1
            self.out.append(before)
            self.open.append((False, after))

    def _bracket(self, start: int, before: str, after: str) -> None:
        """The same for an optional argument that is prose; its text begins at `start`."""
        self.position = start
        self.out.append(before)
        self.open.append((True, after))

    def _close_brace(self) -> None:
        while self.open:
            bracket, after = self.open.pop()
            self.out.append(after)
            if not bracket:
                return

    def _heading(self, name: str, star: str) -> None:
        number = "" if star else self.numbers.heading(name)
        self._group(f"{BREAK}{BREAK}{'#' * HEADINGS[name]}{INDENT}{number}{INDENT if number else ''}", BREAK + BREAK)

    def _caption(self) -> None:
        around = next((name for name in reversed(self.environments) if "fig" in name or "tab" in name), "figure")
        shown = self.numbers.caption("Table" if "tab" in around else "Figure")
        self._group(f"{BREAK}{BREAK}{shown}: ", BREAK + BREAK)

    def _begin(self, name: str, star: str) -> None:
        if name in MATH:
            self._math_environment(name + star)
            return
        if name in self.swallowed:
            self._swallow(name + star)
            return
        if len(self.environments) < _MAX_OPEN:
            self.environments.append(name)
        self.out.append("\n\n")
        if name in self.titles:
            self._statement(name, star)
            return
        if name in ("itemize", "enumerate", "description", "compactitem", "compactenum", "inparaenum", "enumeratea"):
            self._skip_options()
            self.lists.append([0, 1 if "enum" in name else 0])
        elif name in TABLES:
            self.tables += 1
        elif name == "abstract":
            self.out += (f"{BREAK}{BREAK}##{INDENT}Abstract{BREAK}{BREAK}",)
        elif name == "frame" and self.text.startswith("{", self.position):
            self._heading("frametitle", star)
        self._skip_options()
        self._skip_groups(ENVIRONMENT_ARGUMENTS.get(name, 0))

    def _statement(self, name: str, star: str) -> None:
        title = self.titles[name]
        if name not in self.unnumbered and not star:
            title = self.numbers.statement(title)
        optional = _OPTIONAL.match(self.text, self.position)
        if not optional:
            self.out.append(f"{BREAK}{BREAK}{title}. ")
            return
        if name == "proof":
            self._bracket(optional.start(1), BREAK + BREAK, ". ")
        else:
            self._bracket(optional.start(1), f"{BREAK}{BREAK}{title} (", "). ")

    def _end(self, name: str, star: str) -> None:
        if name in self.environments:  # what was left open inside it ends here too
            while self.environments.pop() != name:
                pass
            if name in TABLES:
                self.tables = max(0, self.tables - 1)
            elif self.lists and name.startswith(("item", "enum", "desc", "compact", "inpara")):
                self.lists.pop()
        self.out.append("\n\n")

    def _math_environment(self, name: str) -> None:
        end = self._find_end(name)
        if end is None:
            return
        formula = self.text[self.position : end]
        formula = f"\\begin{{{name}}}{formula}\\end{{{name}}}"
        self.out += (BREAK, self.numbers.formula(formula).replace("\n", BREAK), BREAK)
        self.position = end + len(f"\\end{{{name}}}")

    def _swallow(self, name: str) -> None:
        end = self._find_end(name)
        if end is not None:
            self.position = end + len(f"\\end{{{name}}}")

    def _find_end(self, name: str) -> int | None:
        if name in self.missing_ends:
            return None
        end = self.text.find(f"\\end{{{name}}}", self.position)
        if end < 0:
            self.missing_ends.add(name)
            return None
        return end

    def _item(self) -> None:
        depth = max(len(self.lists) - 1, 0)
        self.out.append(f"{BREAK}{2 * INDENT * min(depth, 10)}")
        optional = _OPTIONAL.match(self.text, self.position)
        numbered = bool(self.lists and self.lists[-1][1])
        if optional:
            self._bracket(optional.start(1), "" if numbered else f"-{INDENT}", " ")
        elif numbered:
            self.lists[-1][0] += 1
            self.out.append(f"{self.numbers.item(self.lists[-1][0])}{INDENT}")
        else:
            self.out.append(f"-{INDENT}")

    def _cite(self, name: str) -> None:
        """A citation is dropped with the bibliography; where it is a part of the sentence, a number stands for it."""
        self._skip_options()
        key = self._key()
        if key is None or name.startswith("no"):
            return
        before = "".join(piece[-40:] for piece in self.out[-3:])
        if name.lower() in ("citet", "textcite", "citeauthor") or _TEXTUAL.search(before):
            self.out.append(self.numbers.citation(key))
        else:
            self.out.append(NOWHERE)

    def _ensure_math(self) -> None:
        end = self.braces.end(self.position) if self.text.startswith("{", self.position) else None
        if end is not None:
            self.out.append(f"${self.text[self.position + 1 : end].strip('$')}$")
            self.position = end + 1


_CHARACTERS = {"~": " ", "--": "–", "---": "—", "``": "“", "''": "”"}
_GROUPS = {
    "title": (f"{BREAK}{BREAK}#{INDENT}", BREAK + BREAK),
    "footnote": (" (", ")"),
    "abstract": (f"{BREAK}{BREAK}##{INDENT}Abstract{BREAK}{BREAK}", BREAK + BREAK),
}


def _finish(text: str) -> str:
    """Lines of the source joined to paragraphs, and what leads nowhere taken out."""
    text = _BLANKS.sub(" ", text)
    text = _PARAGRAPH.sub(BREAK + BREAK, text)
    text = _LINE.sub(" ", text)
    text = _BLANKS.sub(" ", text)
    if NOWHERE in text:
        text = _EMPTY.sub("", _NOWHERES.sub(NOWHERE, text))
    text = _BREAKS.sub(BREAK + BREAK, _AROUND_BREAK.sub(BREAK, text.replace(f"{INDENT} ", INDENT)))
    return text.replace(BREAK, "\n").replace(INDENT, " ").strip()
