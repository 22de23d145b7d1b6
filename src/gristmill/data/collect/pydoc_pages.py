"""Renders HTML pages about modules from their docstrings. Run as a script, in a process of its own:

    python -s -S -P -B pydoc_pages.py OUTPUT < names

Importing a module may do anything, so it never happens in gristmill's own process. One JSON object a line goes to
OUTPUT: `{"module": name, "html": page}` or `{"module": name, "error": why}`. Standard library only: -S hides all else.

A page tells what holds for this version of Python on any machine: names, signatures and docstrings, never a value, an
address or a path.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import json
import os
import pydoc
import re
import sys
import warnings
from html import escape
from typing import Any

FLOWING_CHARACTERS = 40  # a paragraph with a shorter line before its last is a list or a table: its breaks are kept
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


class PageDoc(pydoc.HTMLDoc):
    """pydoc's walk over a module, rendered as a plain article with navigation and footer around it.

    pydoc's own pages print the values of data and repeat every inherited and every special method; these do not, and
    where several names share one docstring, only the first is told.
    """

    def __init__(self) -> None:
        super().__init__()
        self._told: set[str] = set()

    def page(self, title: str, contents: str) -> str:
        return (
            f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title></head>\n'
            '<body>\n<nav><ul><li><a href="index.html">All modules</a></li>'
            '<li><a href="classes.html">All classes</a></li><li><a href="search.html">Search</a></li></ul></nav>\n'
            f"<main><article>\n{contents}\n</article></main>\n"
            "<footer><p>Made from the docstrings of the Python standard library.</p></footer>\n</body></html>\n"
        )

    def docmodule(self, object: Any, name: str | None = None, mod: Any = None, *ignored: Any) -> str:
        public = getattr(object, "__all__", None)
        members = [
            (key, value)
            for key, value in inspect.getmembers(object)
            if pydoc.visiblename(key, public, object)
            and not inspect.ismodule(value)
            and (public is not None or getattr(value, "__module__", None) == object.__name__)
        ]
        classes = [(key, value) for key, value in members if inspect.isclass(value)]
        routines = [(key, value) for key, value in members if inspect.isroutine(value)]
        parts = [f"<h1>{escape(object.__name__)}</h1>", self.prose(object)]
        parts += [self.docclass(value, key) for key, value in classes]
        if routines:
            parts.append("<h2>Functions</h2>")
            parts += [self.docroutine(value, key) for key, value in routines]
        return "\n".join(filter(None, parts))

    def docclass(self, object: Any, name: str | None = None, *ignored: Any, **also_ignored: Any) -> str:
        bases = ", ".join(escape(base.__name__) for base in object.__bases__)
        heading = f"<h2>class {escape(name or object.__name__)}({bases})</h2>"
        parts = [self.prose(object)]
        for attribute in inspect.classify_class_attrs(object):
            if attribute.defining_class is not object or attribute.name.startswith("_"):
                continue
            value = attribute.object
            if attribute.kind in ("method", "class method", "static method"):
                parts.append(self.docroutine(getattr(object, attribute.name, value), attribute.name))
            elif attribute.kind == "property" and getattr(value, "__doc__", None):
                parts += [f"<h3>{escape(attribute.name)}</h3>", self.prose(value)]
        return "\n".join([heading, *filter(None, parts)]) if any(parts) else ""

    def docroutine(self, object: Any, name: str | None = None, *ignored: Any, **also_ignored: Any) -> str:
        doc = self.prose(object)
        if not doc:
            return ""
        try:
            signature = str(_without_values(inspect.signature(object)))
        except Exception:  # not only where there is none: it evaluates defaults, which may fail in any way
            signature = "(...)"
        return f"<h3>{escape(name or object.__name__)}{escape(signature)}</h3>\n{doc}"

    def prose(self, object: Any) -> str:
        """The object's own docstring as paragraphs; indented or ragged ones keep their line breaks."""
        doc = getattr(object, "__doc__", None)
        if not isinstance(doc, str) or doc in self._told:
            return ""
        self._told.add(doc)
        blocks = re.split(r"\n[ \t]*\n", inspect.cleandoc(doc).strip("\n"))
        return "\n".join(_block(block) for block in blocks if block.strip())


class _Omitted:
    """Stands for a default that is not a plain constant: its repr would show this process, even its environment."""

    def __repr__(self) -> str:
        return "..."


def _without_values(signature: inspect.Signature) -> inspect.Signature:
    parameters = [
        p if p.default is p.empty or _is_constant(p.default) else p.replace(default=_Omitted())
        for p in signature.parameters.values()
    ]
    return signature.replace(parameters=parameters)


def _is_constant(value: Any) -> bool:
    if type(value) is str:
        return not any(place in value for place in (sys.prefix, sys.base_prefix, os.path.dirname(sys.executable)))
    return type(value) in (type(None), bool, int, float, bytes)


def _block(block: str) -> str:
    lines = block.splitlines()
    ragged = any(line[0] in " \t" or line.startswith(">>>") for line in lines if line)
    if ragged or any(len(line) < FLOWING_CHARACTERS for line in lines[:-1]):
        return f"<pre>{escape(block)}</pre>"
    return f"<p>{escape(' '.join(lines))}</p>"


def scrub(page: str) -> str:
    """Take memory addresses and the directory of this library out of a page."""
    return _ADDRESS.sub("", page.replace(escape(os.path.dirname(os.__file__)), ""))


def render(name: str) -> dict[str, str]:
    """The record of one module's page; whatever goes wrong in it becomes its `error`."""
    docs = PageDoc()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            module = importlib.import_module(name)
            page = docs.page(name, docs.docmodule(module))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a module may even call sys.exit
        return {"module": name, "error": type(error).__name__}
    return {"module": name, "html": scrub(page)}


def main() -> None:
    warnings.simplefilter("ignore")
    with open(sys.argv[1], "a", encoding="utf-8", errors="replace") as output:
        for name in sys.stdin.read().split():
            output.write(json.dumps(render(name)) + "\n")
            output.flush()


if __name__ == "__main__":
    main()
