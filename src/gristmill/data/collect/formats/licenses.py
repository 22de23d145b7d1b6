"""Licences as SPDX identifiers: from the text of a licence file, a notice, a web address, a package's manifest.

Identifiers are those of the SPDX licence list. A text of the GNU licences alone does not say whether later versions may
be chosen; it is taken as `-only`, the narrower reading, and a notice that grants later versions as `-or-later`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping

_SPACE = re.compile(r"[\s*#;/|>-]+")
# (identifier, phrases that all stand in the licence, phrases of which none does). Of several that fit, the one whose
# first phrase comes first in the text counts, then the one that is first here. All phrases are in lower case; what
# `_SPACE` matches counts as one space in them and in the text.
_TEXTS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("AGPL-3.0", ("gnu affero general public license", "version 3, 19 november 2007"), ()),
    ("LGPL-3.0", ("gnu lesser general public license", "version 3, 29 june 2007", "additional definitions"), ()),
    ("LGPL-2.1", ("gnu lesser general public license", "version 2.1, february 1999"), ()),
    ("LGPL-2.0", ("gnu library general public license", "version 2, june 1991"), ()),
    ("GPL-3.0", ("gnu general public license", "version 3, 29 june 2007"), ()),
    ("GPL-2.0", ("gnu general public license", "version 2, june 1991"), ()),
    ("GFDL-1.3", ("gnu free documentation license", "version 1.3, 3 november 2008"), ()),
    ("GFDL-1.2", ("gnu free documentation license", "version 1.2, november 2002"), ()),
    ("Apache-2.0", ("apache license", "version 2.0", "terms and conditions for use, reproduction"), ()),
    ("Apache-2.0", ("terms and conditions for use, reproduction, and distribution", "derivative works", "apache"), ()),
    ("MPL-2.0", ("mozilla public license", "version 2.0", "covered software"), ()),
    ("MPL-1.1", ("mozilla public license", "version 1.1"), ()),
    ("EPL-2.0", ("eclipse public license", "v 2.0"), ()),
    ("EPL-1.0", ("eclipse public license", "v 1.0"), ()),
    ("BSL-1.0", ("boost software license", "version 1.0"), ()),
    ("Artistic-2.0", ("the artistic license 2.0",), ()),
    ("PSF-2.0", ("python software foundation license version 2",), ()),
    ("Unlicense", ("this is free and unencumbered software released into the public domain",), ()),
    ("WTFPL", ("do what the fuck you want to public license",), ()),
    ("CC0-1.0", ("cc0 1.0 universal",), ()),
    ("CC-BY-NC-SA-4.0", ("attribution noncommercial sharealike 4.0 international",), ()),
    ("CC-BY-NC-ND-4.0", ("attribution noncommercial noderivatives 4.0 international",), ()),
    ("CC-BY-NC-4.0", ("attribution noncommercial 4.0 international",), ()),
    ("CC-BY-ND-4.0", ("attribution noderivatives 4.0 international",), ()),
    ("CC-BY-SA-4.0", ("attribution sharealike 4.0 international",), ()),
    ("CC-BY-4.0", ("attribution 4.0 international", "creative commons"), ()),
    ("CC-BY-SA-3.0", ("attribution sharealike 3.0", "creative commons"), ()),
    ("CC-BY-3.0", ("attribution 3.0", "creative commons"), ()),
    ("Zlib", ("provided 'as is', without any express or implied warranty", "must not be misrepresented"), ()),
    ("NCSA", ("permission is hereby granted, free of charge", "deal with the software", "redistributions of"), ()),
    ("BSD-4-Clause", ("redistribution and use in source and binary forms", "all advertising materials"), ()),
    ("BSD-3-Clause", ("redistribution and use in source and binary forms", "endorse or promote products"), ()),
    ("BSD-2-Clause", ("redistribution and use in source and binary forms", "without modification"), ()),
    (
        "MIT",
        ("permission is hereby granted, free of charge, to any person obtaining a copy", "permission notice shall be"),
        (),
    ),
    ("MIT-0", ("permission is hereby granted, free of charge, to any person obtaining a copy", "as is"), ()),
    ("PostgreSQL", ("permission to use, copy, modify, and distribute this software and its documentation",
                    "without a written agreement"), ()),
    ("HPND", ("permission to use, copy, modify and distribute this software and its documentation",
              "without fee is hereby granted"), ()),
    ("ISC", ("permission to use, copy, modify, and", "distribute this software", "the above copyright notice"),
     ("and its documentation",)),
    ("0BSD", ("permission to use, copy, modify, and", "distribute this software", "with or without fee"),
     ("and its documentation",)),
)  # fmt: skip
_GNU = ("AGPL-3.0", "LGPL-3.0", "LGPL-2.1", "LGPL-2.0", "GPL-3.0", "GPL-2.0", "GFDL-1.3", "GFDL-1.2")

_IDENTIFIER = re.compile(r"SPDX-License-Identifier:[ \t]*([\w.+() -]+?)[ \t]*(?:\*/|-->|#|$|[^\w.+() -])", re.M)
_CC = re.compile(r"creativecommons\.org/(?:licenses/(by(?:-nc)?(?:-sa|-nd)?)/(\d\.\d)|publicdomain/(zero|mark)/1\.0)")
_CC_WORDS = re.compile(r"\bcc[ -]by((?:[ -](?:nc|sa|nd))*)[ -]?(\d\.\d)\b")
# (identifier, pattern of a short statement); for notices of a few lines, metadata fields and names of licences.
_STATEMENTS = tuple(
    (identifier, re.compile(pattern))
    for identifier, pattern in (
        ("public-domain", r"\bpublic domain\b"),
        ("CC-BY-SA-4.0", r"attribution share ?alike 4\.0"),
        ("CC-BY-SA-3.0", r"attribution share ?alike 3\.0"),
        ("CC-BY-4.0", r"attribution 4\.0"),
        ("CC0-1.0", r"\bcc0\b"),
        ("AGPL-3.0", r"\bagpl ?v?3|affero general public license"),
        ("LGPL-3.0", r"\blgpl ?v?3|lesser general public license\W+(?:as .{0,60})?(?:version |v)3"),
        ("LGPL-2.1", r"\blgpl ?v?2|(?:lesser|library) general public license"),
        ("GPL-3.0", r"\bgpl ?v?3|general public license.{0,80}?(?:version |v)3"),
        ("GPL-2.0", r"\bgpl ?v?2|general public license.{0,80}?(?:version |v)2"),
        ("GFDL-1.3", r"\bgfdl|free documentation license"),
        ("Apache-2.0", r"\bapache(?: software)?(?: license)?,?(?: version| v)? ?2"),
        ("MPL-2.0", r"\bmpl ?2|mozilla public license,? (?:version |v\. ?)?2"),
        ("BSD-3-Clause", r"\b(?:3 clause|modified|new|revised) bsd|\bbsd 3 clause"),
        ("BSD-2-Clause", r"\b(?:2 clause|simplified) bsd|\bbsd 2 clause"),
        ("MIT", r"\bmit(?: license|$)|\bmit licen[cs]e"),
        ("PSF-2.0", r"\bpsf\b|python software foundation license"),
    )
)
_LICENSE_FILE = re.compile(
    r"^(?:un)?licen[cs]es?(?:[-_.].*)?$|^copying(?:[-_.].*)?$|^.+[-_.]licen[cs]e(?:\.(?:txt|md|rst))?$", re.I
)
_NOT_LICENSE = (
    ".py",
    ".js",
    ".ts",
    ".go",
    ".c",
    ".h",
    ".cpp",
    ".java",
    ".rb",
    ".rs",
    ".json",
    ".html",
    ".xml",
    ".toml",
)
_MANIFESTS = ("cargo.toml", "package.json", "pkg-info", "pyproject.toml")
_EXPRESSION = re.compile(r"^[A-Za-z0-9.+-]+(?:(?: (?:OR|AND|WITH) |/)[A-Za-z0-9.+-]+)*$")
_NOTICE_CHARACTERS = 4000
_HEADING_WITHIN = 4000  # characters; a licence that begins further down is that of a part, or only mentioned


def license_of_text(text: str) -> str | None:
    """The licence that `text` is the whole text of; None for an unknown one."""
    plain = _SPACE.sub(" ", text[:60_000].lower().replace('"', "'").replace("“", "'").replace("”", "'"))
    best, earliest = None, _HEADING_WITHIN
    for identifier, all_of, none_of in _TEXTS:
        place = plain.find(all_of[0])
        if 0 <= place < earliest and all(p in plain for p in all_of) and not any(p in plain for p in none_of):
            best, earliest = identifier, place
    return f"{best}-only" if best in _GNU else best


def license_of_notice(text: str) -> str | None:
    """The licence that the head of a file states: an SPDX line, or a short notice that names a well-known licence."""
    head = text[:_NOTICE_CHARACTERS]
    if match := _IDENTIFIER.search(head):
        return " ".join(match.group(1).split()) or None
    return license_of_text(head) if "ermission" in head or "edistribution" in head else None


def license_of_statement(text: str) -> str | None:
    """The licence that a metadata field states in a few words or by a web address; None where it names none that is
    known. `public-domain` is the one answer that is not of the SPDX list."""
    lower = text[:_NOTICE_CHARACTERS].lower()
    if match := _CC.search(lower):
        kind, version, domain = match.groups()
        if domain:
            return "CC0-1.0" if domain == "zero" else "public-domain"
        return f"CC-{kind.upper()}-{version}"
    plain = _SPACE.sub(" ", lower).strip()
    if match := _CC_WORDS.search(plain):
        return f"CC-BY{match.group(1).replace(' ', '-').upper()}-{match.group(2)}"
    for identifier, pattern in _STATEMENTS:
        if pattern.search(plain):
            later = "any later version" in plain or "or later" in plain or re.search(r"gpl ?v?\d(?:\.\d)?\+", plain)
            return f"{identifier}-{'or-later' if later else 'only'}" if identifier in _GNU else identifier
    return None


def tree_licenses(names: Iterable[str], read: Callable[[str], bytes | None]) -> dict[str, str]:
    """Directory -> licence, for every directory of a source tree whose licence files or manifest tell it.

    `names` are the paths of the tree's files with `/`; `read` gives the bytes of one, or None where it cannot be read;
    it is asked for licence files and manifests only. A manifest's SPDX expression counts before the texts. Several
    licence texts side by side are joined by OR when their names tell them apart (LICENSE-MIT), else by AND."""
    files: dict[str, list[str]] = {}
    for name in names:
        directory, _, base = name.rpartition("/")
        manifest = base.lower() in _MANIFESTS
        if manifest or (_LICENSE_FILE.match(base) and not base.lower().endswith(_NOT_LICENSE)):
            files.setdefault(directory, []).append(base)
        elif directory.rpartition("/")[2].upper() == "LICENSES":  # as the REUSE specification lays them out
            files.setdefault(directory.rpartition("/")[0], []).append(f"{directory.rpartition('/')[2]}/{base}")
    return {
        directory: license
        for directory, bases in sorted(files.items())
        if (license := _directory_license(directory, sorted(bases), read))
    }


def nearest_license(name: str, tree: Mapping[str, str]) -> str | None:
    """The licence of the file `name`: that of the nearest directory above it that `tree_licenses` knows."""
    while name:
        name = name.rpartition("/")[0]
        if name in tree:
            return tree[name]
    return tree.get("")


def _directory_license(directory: str, bases: list[str], read: Callable[[str], bytes | None]) -> str | None:
    texts: dict[str, str] = {}
    for base in bases:
        data = read(f"{directory}/{base}" if directory else base)
        if data is None:
            continue
        text = data[:200_000].decode("utf-8", "replace")
        if base.lower() in _MANIFESTS:
            if stated := _manifest_license(base.lower(), text):
                return stated
        elif found := license_of_text(text) or (license_of_statement(text) if len(text) < 2000 else None):
            texts[base] = found
    found_all = sorted(set(texts.values()))
    if any(name.startswith("LGPL") for name in found_all):  # comes with the text of the GPL, which it builds on
        found_all = [name for name in found_all if not name.startswith("GPL")]
    choice = all(re.search(r"[-_.](?!txt$|md$|rst$)\w", base) for base in texts)
    return (" OR " if choice else " AND ").join(found_all) or None


def _manifest_license(name: str, text: str) -> str | None:
    """The SPDX expression of a package's manifest."""
    stated: object = None
    if name == "package.json":
        try:
            manifest = json.loads(text)
        except (ValueError, RecursionError):
            return None
        stated = manifest.get("license") if isinstance(manifest, dict) else None
    elif match := re.search(r"^license(?:-expression)?\s*[=:]\s*[\"']?([^\"'\n]+?)[\"']?\s*$", text, re.M | re.I):
        stated = match.group(1)
    if not isinstance(stated, str) or not _EXPRESSION.match(stated.strip()):
        return license_of_statement(stated) if isinstance(stated, str) else None
    return stated.strip().replace("/", " OR ")
