"""HTML fragments to text: chapters of books, bodies of posts. Nothing but navigation is left out as boilerplate."""

from __future__ import annotations

import re

_BLANK_LINES = re.compile(r"\n{3,}")
_TRAILING = re.compile(r"[ \t\xa0]+$", re.MULTILINE)
_LINK = re.compile(r"<a\s[^<>]*?href=[^<>]*>([^<]*(?:<(?!/?a\b)[^<]*)*)</a>", re.IGNORECASE)
_TAG = re.compile(r"<[^<>]*>|\s+")
_NAVIGATION = ["nav", "[role=navigation]", "div.related", "div.navheader", "div.navfooter"]
# A table of contents or an index: at least so many links, which hold at least such a share of its characters.
_LIST_LINKS, _LIST_SHARE = 8, 0.7


def html_text(markup: str) -> str:
    """The text of an HTML document or fragment: paragraphs apart, lists with bullets, `<pre>` kept as it stands."""
    from resiliparse.extract.html2text import extract_plain_text

    text = str(extract_plain_text(markup, alt_texts=False, skip_elements=_NAVIGATION))
    return _BLANK_LINES.sub("\n\n", _TRAILING.sub("", text)).strip("\n")


def is_link_list(markup: str) -> bool:
    """Whether a page is little but links: a table of contents, an index."""
    links = _LINK.findall(markup)
    if len(links) < _LIST_LINKS:
        return False
    inside = sum(len(_TAG.sub("", link)) for link in links)
    body = markup[max(markup.lower().find("</head>"), 0) :]
    return inside >= _LIST_SHARE * len(_TAG.sub("", body))
