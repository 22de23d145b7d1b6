"""The panels of the text: data and tokenization (processing: panel_corpus.py)."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from ..errors import GristmillError
from ..tokenizer.fertility import Fertility, Group
from ..tokenizer.tokenizer import Tokenizer
from .documents import count_by, samples_by
from .files import Run, as_dict, as_number, total
from .play import needed_tokenizer, run_fertility, run_tokenizer, vocabulary_entries
from .sections import Section, documents, figures, lines, missing, table

PLAY_TEXT = "The quick brown fox can't count to 12345, but it can say naïve 東京 and <|im_end|>."
SHOWN_SOURCES = 12
SHOWN_MERGES = 40
SHOWN_LONGEST = 40


RESERVED = "kept free"
USES = {
    "<|unk|>": "stands for what is not in the vocabulary",
    "<|mask|>": "hides a token",
    "<|fim_prefix|>": "before the text that stands before a gap",
    "<|fim_suffix|>": "before the text that stands behind a gap",
    "<|fim_middle|>": "before what fills the gap",
    "<|start_header_id|>": "begins the name of a role",
    "<|end_header_id|>": "ends the name of a role",
    "<|system|>": "begins a system turn",
    "<|user|>": "begins a user's turn",
    "<|assistant|>": "begins an assistant's turn",
    "<|tool|>": "begins a tool's turn",
    "<tool_call>": "begins the call of a tool",
    "</tool_call>": "ends the call of a tool",
    "<tool_response>": "begins what a tool answers",
    "</tool_response>": "ends what a tool answers",
}


# ---- data


def collected_domains(run: Run) -> Section:
    """Documents and bytes of each domain, counted in the tables themselves."""
    directory = run.artifact("collected")
    if directory is None:
        return missing(run, "collected", "Collected text")
    counted = count_by(directory / "documents", _hash(run, "collected"), ("domain",))
    rows = [(row["domain"], row["documents"], row["bytes"]) for row in counted]
    return table("domains", "By domain", [("domain", "text"), ("documents", "count"), ("text", "bytes+bar")], rows)


def collected_languages(run: Run) -> Section | None:
    directory = run.artifact("collected")
    if directory is None:
        return None
    counted = count_by(directory / "documents", _hash(run, "collected"), ("language",))
    rows = [(row["language"], row["documents"], row["bytes"]) for row in counted]
    columns = [("language", "text"), ("documents", "count"), ("text", "bytes+bar")]
    return table("languages", "By language", columns, rows)


def sources(run: Run) -> Section | None:
    """Every source with its licence, the largest first."""
    rows = [(row["source"], row["domain"], row["documents"], row["bytes"], row["license"]) for row in _sources(run)]
    columns = [
        ("source", "text"),
        ("domain", "text"),
        ("documents", "count"),
        ("text", "bytes+bar"),
        ("license", "text"),
    ]
    return table("sources", "By source", columns, rows, wide=True) if rows else None


def _sources(run: Run) -> list[dict[str, Any]]:
    directory = run.artifact("collected")
    if directory is None:
        return []
    counted = count_by(directory / "documents", _hash(run, "collected"), ("source", "domain", "license"))
    return sorted(counted, key=lambda row: (-(row["bytes"] or row["documents"]), row["source"]))


def collected_samples(run: Run) -> Section | None:
    """The first document of each of the largest sources."""
    directory = run.artifact("collected")
    if directory is None:
        return None
    firsts = {row["source"]: row for row in samples_by(directory / "documents", _hash(run, "collected"), "source", 1)}
    largest = dict.fromkeys(row["source"] for row in _sources(run))
    items = [_document(firsts[source]) for source in list(largest)[:SHOWN_SOURCES]]
    return documents("collected-samples", "Documents as they were collected", items)


def _document(row: dict[str, Any]) -> dict[str, Any]:
    meta = ", ".join(str(row[key]) for key in ("domain", "language", "license", "origin") if row.get(key))
    return {"label": str(row.get("source", "")), "meta": meta, "text": row["text"], "characters": row["characters"]}


def _hash(run: Run, stage: str) -> str:
    manifest = run.manifest(stage)
    return manifest.hash if manifest else ""


# ---- tokenization


def vocabulary_figures(run: Run) -> Section:
    found = run.figures("tokenizer")
    if run.artifact("tokenizer") is None:
        return missing(run, "tokenizer", "Tokenizer")
    config = run.stage_config("tokenizer")
    seconds = [as_number(found.get(f"{part}_seconds")) for part in ("count", "learn")]
    return figures(
        "tokenizer",
        "Tokenizer",
        [
            ("kind", config.get("kind"), "text"),
            ("entries", as_number(found.get("vocab_size")), "count"),
            ("pre-tokenizer", config.get("pretokenizer") if config.get("kind", "bpe") == "bpe" else None, "text"),
            ("text sampled", total(found.get("sampled_bytes")), "bytes"),
            ("trained in", sum(filter(None, seconds)) or None, "seconds"),
        ],
    )


def play(run: Run) -> Section | None:
    if run.artifact("tokenizer") is None:
        return None
    note = "Special tokens are never read out of a text: their letters are tokens like any others."
    try:
        tokenizer = needed_tokenizer(run)
    except GristmillError as error:
        return {"id": "play", "kind": "play", "title": "Try it", "text": PLAY_TEXT, "note": str(error)}
    if tokenizer.kind == "bpe":
        note = f"Choose a piece to see how its word was built. {note}"
    return {"id": "play", "kind": "play", "title": "Try it", "text": PLAY_TEXT, "note": note}


FERTILITY_COLUMNS = [
    ("text", "bytes"),
    ("bytes per token", "number+bar"),
    ("tokens per word", "number"),
    ("tokens per character", "number"),
    ("words of one token", "percent"),
]
FERTILITY_NOTE = "On validation text, which the tokenizer was not trained on. A word is a stretch without white space."


def fertility(run: Run) -> Section | None:
    """Fertility by domain, measured on the corpus' validation text; where that is gone, what the stage has noted."""
    measured = run_fertility(run)
    if measured:
        return _fertility_table("fertility", "domain", 0, measured)
    found = run.figures("tokenizer")
    per_word, per_token = as_dict(found.get("tokens_per_word")), as_dict(found.get("bytes_per_token"))
    if not per_word and not per_token:
        return None
    rows = [(domain, per_token.get(domain), per_word.get(domain)) for domain in sorted({*per_word, *per_token})]
    columns = [("domain", "text"), FERTILITY_COLUMNS[1], FERTILITY_COLUMNS[2]]
    return table("fertility", "Fertility by domain", columns, rows, FERTILITY_NOTE)


def fertility_languages(run: Run) -> Section | None:
    measured = run_fertility(run)
    return {**_fertility_table("fertility-languages", "language", 1, measured), "note": None} if measured else None


def _fertility_table(id: str, title: str, key: int, measured: dict[Group, Fertility]) -> Section:
    rows = []
    for value in sorted({group[key] for group in measured}):
        of = sum((found for group, found in measured.items() if group[key] == value), Fertility())
        words = (of.tokens_per_word, of.whole_word_share) if of.words else (None, None)
        rows.append((value or "not told", of.bytes, of.bytes_per_token, words[0], of.tokens_per_character, words[1]))
    columns = [(title, "text"), *FERTILITY_COLUMNS]
    return table(id, f"Fertility by {title}", columns, rows, FERTILITY_NOTE, wide=True)


def packed_tokens(run: Run) -> Section:
    """The token files by split and domain."""
    meta = as_dict(run.json("tokens", "meta.json"))
    if not meta:
        return missing(run, "tokens", "Packed tokens")
    rows = []
    for domain, entry in as_dict(meta.get("domains")).items():
        train, validation = as_dict(entry.get("train")), as_dict(entry.get("validation"))
        rows.append(
            (domain, train.get("tokens"), validation.get("tokens"), train.get("documents"), entry.get("weight"))
        )
    columns = [
        ("domain", "text"),
        ("training tokens", "count+bar"),
        ("validation tokens", "count"),
        ("training documents", "count"),
        ("mixture weight", "percent"),
    ]
    return table("packed", "Packed tokens", columns, rows, f"Stored as {meta.get('dtype', 'integers')}.", wide=True)


def special_tokens(run: Run) -> Section | None:
    """Special tokens with their ids; reserved ones, which may be many, as one row for each run of them."""
    tokenizer = run_tokenizer(run)
    if tokenizer is None:
        return None
    rows: list[tuple[str, str, str]] = []
    for use, group in groupby(sorted(tokenizer.special_ids), lambda id: _use(tokenizer, id)):
        ids = list(group)
        shown = [(tokenizer.decode([id], skip_special_tokens=False), str(id), use) for id in ids]
        if use == RESERVED and len(ids) > 1:
            shown = [(f"{shown[0][0]} … {shown[-1][0]}", f"{ids[0]}–{ids[-1]}", use)]
        rows += shown
    return table("special-tokens", "Special tokens", [("token", "code"), ("id", "number"), ("use", "text")], rows)


def _use(tokenizer: Tokenizer, id: int) -> str:
    """What a special token is for, as far as that is known."""
    roles = {
        tokenizer.im_end_id: "ends a turn",
        tokenizer.im_start_id: "begins a turn",
        tokenizer.pad_id: "fills a row",
        tokenizer.eos_id: "ends a document",
        tokenizer.bos_id: "begins a document",
    }
    text = tokenizer.decode([id], skip_special_tokens=False)
    if id in roles:
        return roles[id]
    if text.startswith("<|reserved_"):
        return RESERVED
    return USES.get(text, "ends a turn" if id in tokenizer.stop_ids else "")


def merges(run: Run) -> Section | None:
    """The first merges learned, in order: the most frequent pairs of the corpus."""
    tokenizer = run_tokenizer(run)
    if tokenizer is None or tokenizer.kind != "bpe":
        return None
    learned = [e for e in vocabulary_entries(tokenizer) if e["bytes"] > 1][:SHOWN_MERGES]
    return lines("merges", f"The first {len(learned)} merges, in order", [_quoted(e["text"]) for e in learned])


def longest_tokens(run: Run) -> Section | None:
    """The longest entries with a letter in them: whole words that the corpus is full of."""
    tokenizer = run_tokenizer(run)
    if tokenizer is None:
        return None
    words = [e for e in vocabulary_entries(tokenizer) if e["bytes"] and any(c.isalpha() for c in e["text"])]
    words.sort(key=lambda e: (-e["bytes"], e["id"]))
    return lines("longest", "The longest words", [_quoted(e["text"]) for e in words[:SHOWN_LONGEST]])


def _quoted(text: str) -> str:
    return repr(text)[1:-1].replace(" ", "·")


DATA = (collected_domains, collected_languages, sources, collected_samples)
TOKENIZATION = (
    vocabulary_figures,
    play,
    fertility,
    fertility_languages,
    special_tokens,
    packed_tokens,
    merges,
    longest_tokens,
)
