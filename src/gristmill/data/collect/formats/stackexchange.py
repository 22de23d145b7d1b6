"""Stack Exchange dumps (`Posts.xml`): a document per post, or per question with its best answers.

Source: the data dump's readme; the licence of a post follows from its date where the row does not state it
(stackoverflow.com/help/licensing).
"""

from __future__ import annotations

import re
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import BinaryIO, NamedTuple

from .base import BadInput, Extracted
from .markup import html_text
from .xml import stream_events

_QUESTION, _ANSWER = "1", "2"
# (first day, licence), the latest first.
_LICENSES = (("2018-05-02", "CC-BY-SA-4.0"), ("2011-04-08", "CC-BY-SA-3.0"), ("", "CC-BY-SA-2.5"))
_CODE_START = re.compile(r"<pre[^<>]*>\s*<code[^<>]*>")
_CODE_END = re.compile(r"\s*</code>\s*</pre>")


class _Post(NamedTuple):
    question: int
    id: int
    accepted: int
    score: int
    license: str
    text: str

    @property
    def is_question(self) -> bool:
        return self.id == self.question


def read(stream: BinaryIO, name: str, answers: int | None = None) -> Iterator[Extracted]:
    """The posts of a site in the dump's order; `part` is `QUESTION` or `QUESTION#ANSWER`, by their numbers.

    With `answers`, a document is a question with at most so many answers, the accepted one first, then by score; one
    that has none is left out. For that the posts are sorted in a temporary file about as large as their texts, so
    memory stays bounded here too.
    """
    posts = _Posts()
    events = stream_events(stream, posts.start, _ignore, _ignore, posts.finished)
    if answers is None:
        for post in events:
            part = str(post.id) if post.is_question else f"{post.question}#{post.id}"
            yield Extracted(post.text, part, post.license)
    else:
        yield from _threads(events, answers)
    if not posts.seen:
        raise BadInput("holds no post of a Stack Exchange dump")


class _Posts:
    """Handlers of the parser; `finished` collects questions and answers, not what else a dump calls a post."""

    def __init__(self) -> None:
        self.finished: list[_Post] = []
        self.seen = False

    def start(self, tag: str, row: dict[str, str]) -> None:
        if tag != "row" or row.get("PostTypeId") not in (_QUESTION, _ANSWER):
            return
        self.seen = True
        try:
            number, score = int(row["Id"]), int(row.get("Score") or 0)
            question = number if row["PostTypeId"] == _QUESTION else int(row["ParentId"])
            accepted = int(row.get("AcceptedAnswerId") or 0)
        except (KeyError, ValueError):
            return  # a row without its numbers belongs to no question
        if max(map(abs, (number, question, score, accepted))) >> 62:
            return
        text = _body(row.get("Body", ""))
        if question == number:
            title = " ".join(row.get("Title", "").split())
            text = f"# {title}\n\n{text}" if title else text
        if text:
            self.finished.append(_Post(question, number, accepted, score, _license(row), text))


def _ignore(_: str) -> None:
    pass


def _body(markup: str) -> str:
    if "<pre" in markup:
        markup = _CODE_END.sub("\n```\n</pre>", _CODE_START.sub("<pre>\n```\n", markup))
    return html_text(markup) if "<" in markup or "&" in markup else markup.strip()


def _license(row: dict[str, str]) -> str:
    stated = row.get("ContentLicense", "")
    if stated.startswith("CC BY-SA "):
        return stated.replace(" ", "-")
    date = row.get("CreationDate", "")[:10]
    return next(license for first, license in _LICENSES if date >= first)


def _threads(posts: Iterable[_Post], answers: int) -> Iterator[Extracted]:
    """Questions with their answers; posts of one question lie far apart in a dump, so a database sorts them."""
    with tempfile.NamedTemporaryFile(prefix="gristmill-posts-", suffix=".sqlite") as file:
        database = sqlite3.connect(file.name, isolation_level=None)
        try:
            database.execute("PRAGMA journal_mode=OFF")
            database.execute("PRAGMA synchronous=OFF")
            database.execute("PRAGMA temp_store=FILE")
            database.execute(
                "CREATE TABLE post (question INT, id INT, accepted INT, score INT, license TEXT, text TEXT)"
            )
            database.execute("BEGIN")
            database.executemany("INSERT INTO post VALUES (?, ?, ?, ?, ?, ?)", posts)
            database.execute("COMMIT")
            rows = database.execute("SELECT * FROM post ORDER BY question, id <> question, score DESC, id")
            for _, thread in groupby((_Post(*row) for row in rows), key=lambda post: post.question):
                if document := _thread(thread, answers):
                    yield document
        finally:
            database.close()


def _thread(posts: Iterator[_Post], answers: int) -> Extracted | None:
    question = next(posts)
    if not question.is_question:
        return None
    chosen: list[_Post] = []
    for post in posts:
        if post.id == question.accepted:
            chosen.insert(0, post)
        elif len(chosen) <= answers:
            chosen.append(post)
    chosen = chosen[:answers]
    if not chosen:
        return None
    text = "\n\n## Answer\n\n".join(post.text for post in (question, *chosen))
    license = " AND ".join(sorted({post.license for post in (question, *chosen)}))
    return Extracted(text, str(question.id), license)
