"""The same content in many languages, to compare what it costs in tokens.

Two forms are read. Message catalogues of installed programs (GNU gettext's `LANG/LC_MESSAGES/NAME.mo`, which lie in
/usr/share/locale on Linux): each message is a pair of English and its translation. Or one file a language, `en.txt`
beside `de.txt` and so on, whose whole texts say the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from gristmill.errors import GristmillError

CATALOGUES = Path("/usr/share/locale")
MIN_CHARACTERS = 60  # of a message: sentences, not labels
MIN_MESSAGES = 100  # of a language that is shown
MAX_MESSAGES = 300  # of a language that are counted
_ENGLISH = "en"
_MAGIC = {b"\xde\x12\x04\x95": "<", b"\x95\x04\x12\xde": ">"}  # the byte order of a catalogue by its first four bytes


@dataclass(frozen=True)
class Translation:
    """Texts in English and, at the same places, in another language."""

    english: pa.LargeStringArray
    translated: pa.LargeStringArray


@dataclass(frozen=True)
class ParallelText:
    """`languages`: code -> its texts; `basis`: what they are, in words."""

    basis: str
    languages: dict[str, Translation]


def installed_text(directory: Path = CATALOGUES) -> ParallelText | None:
    """The catalogues of this machine's programs; None where too few are installed for a single language."""
    found = _catalogues(directory)
    return found if found.languages else None


def parallel_text(directory: Path) -> ParallelText:
    """Read a directory of either form. GristmillError where it is neither."""
    if not directory.is_dir():
        raise GristmillError(
            f"{directory} is no directory; name one with LANG/LC_MESSAGES/*.mo or with en.txt, de.txt ..."
        )
    if next(directory.glob("*/LC_MESSAGES/*.mo"), None) is not None:
        found = _catalogues(directory)
        if not found.languages:
            raise GristmillError(
                f"{directory}: no language has {MIN_MESSAGES} translated messages of {MIN_CHARACTERS} characters"
            )
        return found
    files = {path.stem: path for path in sorted(directory.glob("*.txt"))}
    if _ENGLISH not in files or len(files) < 2:
        raise GristmillError(
            f"{directory} holds no parallel text: neither message catalogues (LANG/LC_MESSAGES/*.mo) nor en.txt "
            f"beside a file of another language"
        )
    texts = {language: pa.array([_read(path)], pa.large_string()) for language, path in files.items()}
    english = texts.pop(_ENGLISH)
    return ParallelText("files of the same content", {name: Translation(english, text) for name, text in texts.items()})


def _catalogues(directory: Path) -> ParallelText:
    """Of each language the messages whose hashes are lowest, so that languages share as many as they can. Of a
    language's regions the one with most messages speaks for it."""
    best: dict[str, dict[str, str]] = {}
    for locale in sorted(path.parent for path in directory.glob("*/LC_MESSAGES")):
        language = locale.name.split("_")[0]
        if "@" in locale.name or language == _ENGLISH:
            continue
        messages: dict[str, str] = {}
        for path in sorted(locale.glob("LC_MESSAGES/*.mo")):
            for english, translated in read_messages(path):
                messages.setdefault(english, translated)
        if len(messages) > max(len(best.get(language, {})), MIN_MESSAGES - 1):
            best[language] = messages
    return ParallelText(
        "messages of installed programs (gettext catalogues)", {name: _lowest(best[name]) for name in sorted(best)}
    )


def _lowest(messages: dict[str, str]) -> Translation:
    order = sorted(messages, key=lambda english: hashlib.blake2b(english.encode(), digest_size=8).digest())
    chosen = order[:MAX_MESSAGES]
    translated = [messages[english] for english in chosen]
    return Translation(pa.array(chosen, pa.large_string()), pa.array(translated, pa.large_string()))


def read_messages(path: Path) -> Iterator[tuple[str, str]]:
    """(English, translation) of a catalogue's messages of at least `MIN_CHARACTERS` bytes that are translated, those
    with plurals or a context left out. A file that is no catalogue in UTF-8 gives nothing.

    The format: GNU gettext manual, "The Format of GNU MO Files".
    """
    data = path.read_bytes()
    order = _MAGIC.get(data[:4])
    if order is None or len(data) < 20:
        return
    count, originals, translations = np.frombuffer(data, order + "u4", 3, 8).tolist()
    if max(originals, translations) + 8 * count > len(data):
        return
    pairs = np.frombuffer(data, order + "u4", 2 * count, originals).reshape(-1, 2)
    others = np.frombuffer(data, order + "u4", 2 * count, translations).reshape(-1, 2)
    for row in np.flatnonzero(pairs[:, 0] >= MIN_CHARACTERS).tolist():
        (length, start), (other_length, other_start) = pairs[row].tolist(), others[row].tolist()
        english, translated = data[start : start + length], data[other_start : other_start + other_length]
        if not translated or english == translated or b"\0" in english or b"\x04" in english:
            continue
        try:
            yield english.decode(), translated.decode()
        except UnicodeDecodeError:
            return


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise GristmillError(f"{path} is not UTF-8 text") from None
