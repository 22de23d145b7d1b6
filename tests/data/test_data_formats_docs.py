"""Notebooks, reStructuredText and manual pages."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from gristmill.data.collect.formats import man, notebook, rst
from gristmill.data.collect.formats.base import BadInput, Extracted


def read_notebook(content: Any, **options: bool) -> Extracted:
    (document,) = notebook.read(io.BytesIO(json.dumps(content).encode()), "n.ipynb", **options)
    return document


CODE = {
    "cell_type": "code",
    "source": ["%matplotlib inline\n", "import numpy as np\n", "!pip install x\n", "np.array?\n", "a = 5 % 3 != 0\n"],
    "outputs": [
        {"output_type": "stream", "name": "stdout", "text": ["\x1b[1mone\x1b[0m\n"]},
        {"output_type": "stream", "name": "stderr", "text": "warning"},
        {"output_type": "execute_result", "data": {"text/plain": "2", "image/png": "AAAA"}},
        {"output_type": "display_data", "data": {"text/plain": "<Figure size 1x1>"}},
        {"output_type": "error", "traceback": ["x"]},
    ],
}
CELLS = [
    {"cell_type": "markdown", "source": "# Title\n![x](data:image/png;base64,AAAA) and <img src='data:x'/> text"},
    CODE,
    {"cell_type": "code", "source": "%%bash\nls -l", "outputs": []},
    {"cell_type": "code", "source": "%%time\nf()", "outputs": []},
    {"cell_type": "code", "source": "", "outputs": []},
]
FENCED = "```python\nimport numpy as np\na = 5 % 3 != 0\n```"


def test_notebook() -> None:
    document = read_notebook({"nbformat": 4, "cells": CELLS, "metadata": {"language_info": {"name": "python"}}})
    assert document.flags == "code-python"
    expected = ["# Title\n and  text", FENCED, "```bash\nls -l\n```", "```python\nf()\n```"]
    assert document.text == "\n\n".join(expected)


def test_notebook_outputs_and_the_old_format() -> None:
    cells = [
        {"cell_type": "heading", "level": 2, "source": "Part"},
        {**CODE, "input": CODE["source"], "source": CODE["source"]},
    ]
    document = read_notebook({"nbformat": 3, "worksheets": [{"cells": cells}]}, outputs=True)
    assert document.text == f"## Part\n\n{FENCED}\n\n```\none\n2\n```"


@pytest.mark.parametrize("content", [[], {}, {"cells": []}, {"cells": [3, {"cell_type": "code"}]}, {"worksheets": 1}])
def test_notebook_without_cells_is_refused(content: Any) -> None:
    with pytest.raises(BadInput):
        read_notebook(content)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("Title\n=====\n\nA\nparagraph.\n\nPart\n----\n\n=====\nOver\n=====\n\nx",
         "# Title\n\nA paragraph.\n\n## Part\n\n### Over\n\nx"),
        ("*a* **b** ``c`` `d`_ `e <http://x>`_ f_ [1]_ :func:`~m.g` :ref:`T <t>` :class:`!K` :math:`x^2` \\*h",
         "a b `c` d e f [1] g() T K $x^2$ *h"),
        ("Code::\n\n   a = 1\n\n     b\n\nafter", "Code:\n\n```\na = 1\n\n  b\n```\n\nafter"),
        (".. code-block:: c\n   :linenos:\n\n   int a;\n\n.. math::\n   :label: e\n\n   x = 1\n",
         "```c\nint a;\n```\n\n$$\nx = 1\n$$"),
        (".. note:: Mind\n   this.\n\n.. versionadded:: 3.2\n   New.\n\n.. seealso::\n\n   That.",
         "Note: Mind this.\n\nNew in version 3.2: New.\n\nSee also: That."),
        (".. a comment\n   over lines\n\n.. _target: http://x\n.. |name| replace:: gristmill\n\nUse |name|.\n\n"
         ".. toctree::\n   :maxdepth: 2\n\n   a\n   b\n\n.. image:: x.png\n   :alt: y", "Use gristmill."),
        ("- a\n  b\n- c\n\n  * d\n\n1. e\n#. f", "- a b\n- c\n  - d\n\n1. e\n2. f"),
        ("====  ====\na     b\n====  ====\n1     2\n\n3     4\n====  ====\n\nend",
         "====  ====\na     b\n====  ====\n1     2\n3     4\n====  ====\n\nend"),
        ("+---+\n| a |\n+---+\n\nend", "+---+\n| a |\n+---+\n\nend"),
        ("term\n  What it means.\n\n:param x: The number.\n:type x: int\n\n| verse\n| lines",
         "term\nWhat it means.\n\nparam x: The number.\n\ntype x: int\n\nverse\nlines"),
        (".. py:function:: f(x)\n   :module: m\n\n   Does it.\n\n.. figure:: a.png\n\n   A caption.\n\n"
         ".. unknown:: Words\n\n   More.", "`f(x)`\n\nDoes it.\n\nA caption.\n\nWords\n\nMore."),
        (">>> 1 + 1\n2\n\n.. [1] A footnote.", "```\n>>> 1 + 1\n2\n```\n\n[1] A footnote."),
    ],
)  # fmt: skip
def test_rst(source: str, text: str) -> None:
    assert rst.rst_to_text(source) == text


def test_rst_without_text_is_refused() -> None:
    with pytest.raises(BadInput, match="no text"):
        list(rst.read(io.BytesIO(b".. include:: x.rst\n"), "x.rst"))


def page(source: str, name: str = "x.1") -> str:
    (document,) = man.read(io.BytesIO(source.encode()), name)
    return document.text


def test_man_page() -> None:
    source = r""".\" A comment
.TH LS 1 "2020" "GNU" "User"
.de XX
never shown
..
.SH NAME
ls \- list
.I directory
contents
.SH "SEE ALSO"
.PP
Text in \fBbold\fP\|, \(lqquoted\(rq \*(Tm and \[u00E9]t\('e.
.TP
.BR \-a ", " \-\-all
do not ignore
.IP \(bu 2
an item
.nf
  kept
    lines
.fi
.if t .B printed
.ie n shown
.el hidden
.if t \{\
not this
.\}
.UR http://x.org
the page
.UE .
"""
    assert page(source) == (
        "# LS(1)\n\n## NAME\n\nls - list directory contents\n\n## SEE ALSO\n\nText in bold, “quoted” ™ and été.\n\n"
        "-a, --all\ndo not ignore\n\n- an item\n\n```\n  kept\n    lines\n```\n\nshown the page <http://x.org>."
    )


def test_mdoc_page() -> None:
    source = r""".Dd May 1, 2020
.Dt CAT 1
.Os
.Sh NAME
.Nm cat
.Nd concatenate
.Sh SYNOPSIS
.Nm
.Op Fl benu
.Op Fl D Oo Ar host : Oc Ns Ar port
.Op Ar
.Sh DESCRIPTION
The
.Nm
utility, see
.Xr ls 1 ,
.Dq quoted ,
.Fn open "path" "flags" .
.Bl -tag -width x
.It Fl b
Number
.Pq all .
.It Fl e Ar name
.Sm off
.Ar user @ host
.Sm on
end
.El
.Bd -literal
$ cat  x
.Ed
"""
    assert page(source) == (
        "# CAT(1)\n\n## NAME\n\ncat – concatenate\n\n## SYNOPSIS\n\ncat [-benu] [-D [host:]port] [file ...]\n\n"
        "## DESCRIPTION\n\nThe cat utility, see ls(1), “quoted”, open(path, flags).\n\n"
        "-b\nNumber (all).\n\n-e name\nuser@host end\n\n```\n$ cat  x\n```"
    )


def test_man_tables_and_languages() -> None:
    table = ".TH A 1\n.TS\nallbox tab(:);\nl l\nl l.\nName:Value\n_\na:T{\nlong\ntext\nT}\n.TE\nafter"
    assert page(table) == "# A(1)\n\nName | Value\na | long text\n\nafter"
    (document,) = man.read(io.BytesIO(".TH A 1\nGrüße".encode("latin-1")), "usr/share/man/de/man1/a.1")
    assert (document.text, document.language) == ("# A(1)\n\nGrüße", "de")


def test_man_page_that_points_to_another_is_refused() -> None:
    with pytest.raises(BadInput, match="man3/open"):
        page('.\\" c\n.so man3/open.3\n')
    with pytest.raises(BadInput, match="no text"):
        page(".TH\n")
