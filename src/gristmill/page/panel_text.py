"""The panels of the text: data and tokenization (processing: panel_corpus.py)."""

from __future__ import annotations

from typing import Any

from .documents import count_by, samples_by
from .files import Run, as_dict, as_number, total
from .play import run_tokenizer, vocabulary_entries
from .sections import Section, documents, figures, lines, missing, table

PLAY_TEXT = "The quick brown fox can't count to 12345, but it can say naïve 東京 and <|im_end|>."
SHOWN_SOURCES = 12
SHOWN_MERGES = 40
SHOWN_LONGEST = 40


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
    return figures(
        "tokenizer",
        "Tokenizer",
        [
            ("entries", as_number(found.get("vocab_size")), "count"),
            ("pre-tokenizer", config.get("pretokenizer"), "text"),
            ("text sampled", total(found.get("sampled_bytes")), "bytes"),
            ("trained at, bytes/s", as_number(found.get("train_bytes_per_second")), "count"),
        ],
    )


def play(run: Run) -> Section | None:
    if run.artifact("tokenizer") is None:
        return None
    note = "Special tokens are never read out of a text: their letters are tokens like any others."
    return {"id": "play", "kind": "play", "title": "Try it", "text": PLAY_TEXT, "note": note}


def fertility(run: Run) -> Section | None:
    """Tokens per word and bytes per token by domain, measured by the tokenizer stage on validation text."""
    found = run.figures("tokenizer")
    per_word, per_token = as_dict(found.get("tokens_per_word")), as_dict(found.get("bytes_per_token"))
    if not per_word and not per_token:
        return None
    rows = [(domain, per_word.get(domain), per_token.get(domain)) for domain in sorted({*per_word, *per_token})]
    columns = [("domain", "text"), ("tokens per word", "number"), ("bytes per token", "number+bar")]
    return table("fertility", "Fertility", columns, rows, "On validation text, which the tokenizer was not trained on.")


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
    tokenizer = run_tokenizer(run)
    if tokenizer is None:
        return None
    roles = {
        tokenizer.bos_id: "begins a document",
        tokenizer.eos_id: "ends a document",
        tokenizer.pad_id: "fills a row",
        tokenizer.im_start_id: "begins a turn",
        tokenizer.im_end_id: "ends a turn",
    }
    rows = [
        (tokenizer.decode([i], skip_special_tokens=False), i, roles.get(i, "")) for i in sorted(tokenizer.special_ids)
    ]
    return table("special-tokens", "Special tokens", [("token", "code"), ("id", "number"), ("use", "text")], rows)


def merges(run: Run) -> Section | None:
    """The first merges learned, in order: the most frequent pairs of the corpus."""
    tokenizer = run_tokenizer(run)
    if tokenizer is None:
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
TOKENIZATION = (vocabulary_figures, play, fertility, special_tokens, packed_tokens, merges, longest_tokens)
