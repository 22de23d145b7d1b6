"""Wikitext to plain text: templates, tables, references and files out; links, lists and headings as a reader sees them.

One pass over the brackets with a stack, so nothing here is recursive; a handful of templates whose content is prose
(languages, units, dates) give it, all others give nothing. Source: MediaWiki's Help:Formatting, Help:Links and
Help:Templates.
"""

from __future__ import annotations

import html
import re

_STORED = re.compile("\x00(\\d{1,9})\x00")
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f]")
# Elements whose content is no wikitext: kept as it stands, or left out.
_RAW = re.compile(r"<(nowiki|pre|syntaxhighlight|source|math|chem|ce|code|tt)\b([^<>]{0,300})(?<!/)>", re.IGNORECASE)
_DROPPED = re.compile(
    r"<(ref|gallery|timeline|score|imagemap|graph|mapframe|maplink|hiero|templatedata|inputbox|categorytree|"
    r"noinclude|section|poll|quiz|rss|dynamicpagelist)\b([^<>]{0,2000}?)(/?)>",
    re.IGNORECASE,
)
_SIMPLE_LINK = re.compile(r"\[\[([^\[\]|{}<>\n:#]+)\]\]")
_LABELLED_LINK = re.compile(r"\[\[[^\[\]|{}<>\n:]+\|([^\[\]|{}<>\n]+)\]\]")
_BRACKET = re.compile(r"\{\{|\}\}|\[\[|\]\]|^[ \t:]*\{\||^[ \t]*\|\}", re.MULTILINE)
_MAX_DEPTH = 60  # of brackets in brackets; deeper ones stand as text
_EXTERNAL = re.compile(r"\[(?:https?:|ftp:)?//[^\s\[\]<>]*[ \t]*([^\[\]\n]{0,500})\]")
_TAG = re.compile(r"</?[a-zA-Z][^<>]{0,1000}>")
_BREAK = re.compile(r"<br\b[^<>]{0,50}>|</(?:p|div|li|tr|blockquote|h[1-6])>", re.IGNORECASE)
_SCRIPT = re.compile(r"<(su[pb])>([^<>\n]{1,40})</\1>", re.IGNORECASE)
_QUOTES = re.compile(r"'{2,}")
_HEADING = re.compile(r"^(={1,6})[ \t]*([^=\n](?:[^\n]*[^=\n])?)[ \t]*\1[ \t]*$", re.MULTILINE)
_NUMBERED = re.compile(r"(?:^#[^\n]*(?:\n|\Z))+", re.MULTILINE)
_LIST_LINE = re.compile(r"^([*:;#]+)[ \t]*", re.MULTILINE)
_MAGIC = re.compile(r"__[A-Z]{3,30}__")
_PARENTHESIS_END = re.compile(r"(?<![ \xa0,;:])[ \xa0,;:]{1,20}\)")
_EMPTY_PARENTHESES = re.compile(r"[ \xa0]?\([ \xa0,;:–-]*\)")
_PARENTHESIS_START = re.compile(r"\([ \xa0,;:]{0,20}[ \xa0]")
_COMMAS = re.compile(r",(?: ?,)+")
_SPACE_BEFORE = re.compile(r"[ \xa0]+([,.;:)])(?=\s|$)", re.MULTILINE)
_BLANKS = re.compile(r"[ \t\xa0]+")
_LINE_ENDS = re.compile(r" ?\n ?")
_BLANK_LINES = re.compile(r"\n{3,}")
# A list's item begins with one of these, and has two more for each level; nothing else in a page does.
_INDENT = "\x01"
_INDENTED = re.compile(f"{_INDENT}+")
_ITEM_START = re.compile(f"^({_INDENT}*-) *[,;:.]+ *", re.MULTILINE)
_EMPTY_ITEM = re.compile(rf"^{_INDENT}*(?:-|\d+\.) *$\n?", re.MULTILINE)
_SUPERSCRIPTS = str.maketrans("0123456789+-−n", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻ⁿ")
_SUBSCRIPTS = str.maketrans("0123456789+-−", "₀₁₂₃₄₅₆₇₈₉₊₋₋")
# Namespaces of links that are no text; a dump names those of its own language.
LEFT_OUT = frozenset({"file", "image", "category", "media", "template", "module", "special", "help", "portal", "user"})
_INTERWIKI = re.compile(r"^:?[a-z]{2,3}(?:-[a-z]+)*:")

# Templates whose arguments are prose: which one (from 1; negative from the end) is what a reader sees.
_SHOWN_ARGUMENT = {
    "lang": 2, "langx": 2, "lang-la": 1, "lang-de": 1, "lang-fr": 1, "lang-el": 1, "lang-ru": 1, "lang-es": 1,
    "lang-it": 1, "lang-ar": 1, "lang-grc": 1, "lang-he": 1, "lang-ja": 1, "langue": 2, "lingua": 2, "transl": -1,
    "transliteration": -1, "nowrap": 1, "nobr": 1, "nobreak": 1, "nobold": 1, "noitalic": 1, "small": 1, "smaller": 1,
    "large": 1, "big": 1, "em": 1, "strong": 1, "abbr": 1, "abbrlink": 1, "quote": 1, "blockquote": 1, "cquote": 1,
    "quotation": 1, "centered": 1, "center": 1, "vanchor": 1, "visible anchor": 1, "sic": 1, "ill": 1,
    "interlanguage link": 1, "unicode": 1, "script": 2, "polytonic": 1, "math": 1, "mvar": 1, "var": 1, "code": 1,
    "tt": 1, "mono": 1, "kbd": 1, "samp": 1, "smallcaps": 1, "sc": 1, "underline": 1, "u": 1, "sup": 1, "su": 1,
    "sub": 1, "chem": 1, "formatnum": 1, "text": 1, "okina": 0, "not a typo": 1, "as written": 1, "proper name": 1,
    "linktext": 1, "wikt-lang": 2, "ship": 2, "sclass": 1, "nihongo": 1, "bibleverse": 1, "nom": 1,
    "citation bloc": 1, "val": 1, "gaps": 1, "num": 1, "zh": 0, "music": 0,
}  # fmt: skip
_CHARACTERS = {
    "ndash": "–", "mdash": "—", "snd": " – ", "spnd": " – ", "spaced ndash": " – ", "spaced en dash": " – ",
    "dash": " – ", "emdash": "—", "endash": "–", "nbsp": " ", "spaces": " ", "'": "'", "'s": "'s", "=": "=", "!": "|",
    "pipe": "|", "·": " · ", "dot": " · ", "•": " • ", "bull": " • ", "zwj": "", "pi": "π", "minus": "−",
    "times": "×", "hyphen": "-", "shy": "", "ellipsis": "…", "okina": "ʻ", "ayin": "ʿ", "hamza": "ʾ", "clear": "",
    "-": "", "\\": " / ", "degree": "°", "prime": "′", "pprime": "″", "sfrac": "", "ibid": "", "(": "{", ")": "}",
}  # fmt: skip
_UNITS = {"convert", "cvt", "unit", "unité", "unite"}
_RANGES = {"-", "–", "to", "and", "or", "x", "by", "to(-)", "and(-)"}


def wikitext_to_text(source: str, left_out: frozenset[str] = LEFT_OUT) -> str:
    """The readable text of one page. `left_out` are the namespaces, in lower case, of links that are dropped."""
    if "\x00" in source or _CONTROLS.search(source):
        source = _CONTROLS.sub("", source)
    stored: list[str] = []
    text = _without_comments(source)
    if "<" in text:
        text = _store_raw(text, stored)
        text = _drop_elements(text)
    text = _LABELLED_LINK.sub(r"\1", _SIMPLE_LINK.sub(r"\1", text))
    text = _resolve_brackets(text, left_out)
    text = _EXTERNAL.sub(r"\1", text)
    if "<" in text:
        text = _TAG.sub("", _SCRIPT.sub(_script, _BREAK.sub("\n", text)))
    text = _lines(_QUOTES.sub("", _MAGIC.sub("", text)))
    if "&" in text:
        text = html.unescape(html.unescape(text)).replace("\x00", "")
    text = _tidy(text)
    return _STORED.sub(lambda match: _fetch(stored, match), text).strip("\n ") if stored else text


def _fetch(stored: list[str], match: re.Match[str]) -> str:
    number = int(match.group(1))
    return stored[number] if number < len(stored) else ""


def _without_comments(text: str) -> str:
    pieces: list[str] = []
    position = 0
    while (start := text.find("<!--", position)) >= 0:
        pieces.append(text[position:start])
        end = text.find("-->", start + 4)
        position = len(text) if end < 0 else end + 3
    return "".join(pieces) + text[position:] if pieces else text


def _store_raw(text: str, stored: list[str]) -> str:
    """Code, formulas and `<nowiki>` replaced by numbers, so that nothing in them is taken for wikitext."""
    pieces: list[str] = []
    position = 0
    lower = text.lower()
    unclosed: set[str] = set()
    for match in _RAW.finditer(text):
        name = match.group(1).lower()
        if match.start() < position or name in unclosed:
            continue
        end = lower.find(f"</{name}", match.end())
        if end < 0:
            unclosed.add(name)
            continue
        inside = text[match.end() : end]
        if name in ("math", "chem", "ce"):
            shown = f"${inside.strip()}$"
        elif name in ("pre", "syntaxhighlight", "source") and "\n" in inside:
            shown = f"\n```\n{inside.strip(chr(10)).rstrip()}\n```\n"
        else:
            shown = _TAG.sub("", inside)
        pieces += (text[position : match.start()], f"\x00{len(stored)}\x00")
        stored.append(html.unescape(shown).replace("\x00", ""))
        close = text.find(">", end)
        position = close + 1 if close >= 0 else len(text)
    pieces.append(text[position:])
    return "".join(pieces)


def _drop_elements(text: str) -> str:
    """Without references, galleries and the like, with all that is in them."""
    pieces: list[str] = []
    position = 0
    lower = text.lower()
    unclosed: set[str] = set()
    for match in _DROPPED.finditer(text):
        if match.start() < position:
            continue
        pieces.append(text[position : match.start()])
        position = match.end()
        name = match.group(1).lower()
        if match.group(3) or name in unclosed:
            continue
        end = lower.find(f"</{name}", match.end())
        close = text.find(">", end) if end >= 0 else -1
        if close < 0:
            unclosed.add(name)
        else:
            position = close + 1
    pieces.append(text[position:])
    return "".join(pieces)


def _resolve_brackets(text: str, left_out: frozenset[str]) -> str:
    """The text with its templates, tables and remaining links replaced by what they show, from the inside out."""
    stack: list[tuple[str, list[str]]] = []
    pieces: list[str] = []
    position = 0
    for match in _BRACKET.finditer(text):
        start, token = match.start(), match.group()
        if start < position:
            continue
        pieces.append(text[position:start])
        position = match.end()
        if token.endswith("{|") or token in ("{{", "[["):
            if len(stack) < _MAX_DEPTH:
                stack.append((token[-2:], pieces))
                pieces = []
            continue
        closes = {"}}": "{{", "]]": "[["}.get(token, "{|")
        if not stack or stack[-1][0] != closes:
            if token.endswith("|}"):  # in a template, `|}}` at a line's start is an empty argument and its end
                pieces.append("|")
                position = match.end() - 1
                if text.startswith("}}", position) and stack and stack[-1][0] == "{{":
                    position += 2
                    pieces = _close(stack, pieces, left_out)
            elif any(opened == closes for opened, _ in stack):  # what is open inside was never closed
                while stack[-1][0] != closes:
                    _, outer = stack.pop()
                    outer += pieces
                    pieces = outer
                pieces = _close(stack, pieces, left_out)
            continue
        pieces = _close(stack, pieces, left_out)
    pieces.append(text[position:])
    while stack:
        opened, outer = stack.pop()
        if opened != "{|":  # a table may end with the page
            outer += pieces
        pieces = outer
    return "".join(pieces)


def _close(stack: list[tuple[str, list[str]]], pieces: list[str], left_out: frozenset[str]) -> list[str]:
    opened, outer = stack.pop()
    content = "".join(pieces)
    if opened == "{{":
        outer.append(_template(content))
    elif opened == "[[":
        outer.append(_link(content, left_out))
    return outer


def _link(content: str, left_out: frozenset[str]) -> str:
    target, bar, label = content.partition("|")
    target = target.strip()
    namespace, colon, _ = target.partition(":")
    if colon and namespace.strip().lower() in left_out:
        return ""
    if bar:
        return label.rpartition("|")[2] or re.sub(r"^[^:]*:|\s*\([^()]*\)$|,.*$", "", target)
    if _INTERWIKI.match(target):
        return ""
    return target.lstrip(":").replace("#", " § ") if "#" in target else target.lstrip(":")


def _template(content: str) -> str:
    if len(content) > 20_000:
        return ""
    name, *arguments = content.split("|")
    name = name.strip().lower().replace("_", " ")
    if name in _CHARACTERS and (not arguments or name not in _SHOWN_ARGUMENT):
        return _CHARACTERS[name]
    if name in _SHOWN_ARGUMENT:
        return _shown(_SHOWN_ARGUMENT[name], arguments)
    if name.startswith("lang-") and len(name) <= 8:
        return _shown(1, arguments)
    if name.startswith("formatnum:"):
        return name[10:].strip()
    if name in _UNITS:
        return _measure(arguments)
    if name in ("circa", "c.", "ca") or name == "floruit":
        years = " – ".join(argument.strip() for argument in arguments if "=" not in argument)
        return f"{'fl.' if name == 'floruit' else 'c.'} {years}".strip()
    if name in ("frac", "sfrac") and arguments:
        return "/".join(argument.strip() for argument in arguments[-2:])
    if name == "as of" and arguments:
        start = "as of " if any(argument.replace(" ", "") == "lc=y" for argument in arguments) else "As of "
        return start + "-".join(argument.strip() for argument in arguments if "=" not in argument)
    return ""


def _shown(which: int, arguments: list[str]) -> str:
    plain = [argument for argument in arguments if "=" not in argument.partition(" ")[0][:20]]
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and key.strip() in ("text", "quote", "content", str(which)):
            return value.strip()
    if not which or not plain:
        return ""
    return plain[-1].strip() if which < 0 else plain[which - 1].strip() if which <= len(plain) else ""


def _measure(arguments: list[str]) -> str:
    """`{{convert|5|to|6|km|mi}}` shows the quantity in the first unit."""
    plain = [argument.strip() for argument in arguments if "=" not in argument]
    shown: list[str] = []
    for argument in plain:
        shown.append(argument)
        if argument not in _RANGES and not re.match(r"[-−+]?[\d.,/⁄ ]+$", argument):
            break
    return " ".join(shown)


def _script(match: re.Match[str]) -> str:
    kind, inside = match.group(1).lower(), match.group(2)
    if re.fullmatch(r"[0-9+\-−]{1,6}", inside):
        return inside.translate(_SUPERSCRIPTS if kind == "sup" else _SUBSCRIPTS)
    return f"^{inside}" if kind == "sup" and inside.isalnum() and len(inside) < 4 else inside


def _lines(text: str) -> str:
    """Headings and lists in the form of Markdown."""
    text = _NUMBERED.sub(_numbered, text)
    text = _LIST_LINE.sub(_list_line, text)
    return _HEADING.sub(lambda match: f"\n{'#' * max(len(match.group(1)), 2)} {match.group(2).strip()}\n", text)


def _numbered(match: re.Match[str]) -> str:
    lines, counts = [], [0] * 8
    for line in match.group().splitlines():
        rest = line.lstrip("#")
        depth = min(len(line) - len(rest), 8)
        if rest[:1] in ("*", ":", ";"):
            lines.append(f"{_indent(depth)}{'- ' if rest[0] == '*' else ''}{rest.lstrip('*:; ')}")
            continue
        counts[depth - 1] += 1
        counts[depth:] = [0] * (8 - depth)
        lines.append(f"{_indent(depth - 1)}{counts[depth - 1]}. {rest.strip()}")
    return "\n".join(lines) + "\n"


def _list_line(match: re.Match[str]) -> str:
    prefix = match.group(1)
    depth = min(len(prefix) - 1, 8)
    return f"{_indent(depth)}- " if prefix[-1] in "*#" else ""


def _indent(depth: int) -> str:
    return _INDENT * (2 * depth + 1)


def _tidy(text: str) -> str:
    """Spaces, empty parentheses and items that the removals left; indents of lists become spaces."""
    text = _LINE_ENDS.sub("\n", _BLANKS.sub(" ", text))
    text = _PARENTHESIS_END.sub(")", _PARENTHESIS_START.sub("(", _EMPTY_PARENTHESES.sub("", text)))
    text = _COMMAS.sub(",", _SPACE_BEFORE.sub(r"\1", text))
    text = _EMPTY_ITEM.sub("", _ITEM_START.sub(r"\1 ", text))
    text = _INDENTED.sub(lambda match: " " * (len(match.group()) - 1), text)
    text = _BLANK_LINES.sub("\n\n", text)
    return _without_empty_sections(text).strip("\n ")


def _without_empty_sections(text: str) -> str:
    """Headings under which nothing is left are dropped: references, galleries, links to other sites."""
    lines = text.split("\n")
    kept: list[str] = []
    following = 0  # the level of the next heading below, when nothing but blank lines is between
    for line in reversed(lines):
        level = len(line) - len(line.lstrip("#")) if line.startswith("##") and " " in line[:8] else 0
        if level:
            if following >= 0 and (following == 0 or following <= level):
                continue
            following = level
        elif line.strip():
            following = -1
        kept.append(line)
    kept.reverse()
    return _BLANK_LINES.sub("\n\n", "\n".join(kept))
