"""The fertility report: a tokenizer beside well-known vocabularies, by domain and language, and what the same content
costs in other languages.

Every text is the same for all tokenizers. Counts are of samples, so domains and languages weigh in the overall figures
by what was sampled of them (at most a megabyte of each), not by the mixture.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from gristmill.artifact import rounded, write_json, write_text
from gristmill.data.rules import LANGUAGES
from gristmill.data.training_text import read_paths
from gristmill.errors import GristmillError

from ..fertility import SAMPLE_BYTES, Fertility, Group, TextSample, corpus_samples, measure, token_counts
from ..tokenizer import Tokenizer
from .page import page
from .parallel import ParallelText
from .references import Reference, load_reference

Report = dict[str, Any]
ENGLISH = "en"


@dataclass(frozen=True)
class Entry:
    """A tokenizer of the report: its name, where it comes from, and how it is loaded (once, when its turn comes)."""

    name: str
    source: str
    licence: str
    load: Callable[[], Tokenizer]


def own_entry(directory: Path, name: str) -> Entry:
    """The tokenizer of a directory."""
    return Entry(name, "", "", lambda: Tokenizer.load(directory))


def reference_entry(reference: Reference) -> Entry:
    def load() -> Tokenizer:
        with tempfile.TemporaryDirectory(prefix="gristmill-vocabulary-") as scratch:
            return load_reference(reference, Path(scratch))

    return Entry(reference.name, reference.source, reference.licence, load)


def make_report(
    entries: Sequence[Entry],
    samples: Mapping[Group, TextSample],
    said: str,
    parallel: ParallelText | None,
    absent: Mapping[str, str] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Measure every tokenizer on every sample and on the parallel text. `said` says what the samples are.

    The first entry is the one that others are compared with. GristmillError where there is no text.
    """
    if not any(len(sample.texts) for sample in samples.values()):
        raise GristmillError(f"there is no text to measure on ({said}); name some with --text PATH")
    names = [entry.name for entry in entries]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise GristmillError(f"two tokenizers of the report are called {doubled[0]}; rename one's directory")
    tokenizers, counts, costs = [], {}, {}
    for done, entry in enumerate(entries):
        progress(done, len(entries))
        tokenizer = entry.load()
        about = {"kind": tokenizer.kind, "vocab_size": tokenizer.vocab_size}
        tokenizers.append({"name": entry.name, **about, "source": entry.source, "licence": entry.licence})
        counts[entry.name] = {group: measure(tokenizer, sample) for group, sample in samples.items()}
        costs[entry.name] = _cost(tokenizer, parallel) if parallel is not None else {}
    progress(len(entries), len(entries))
    return rounded(
        {
            "text": {"said": said, "groups": _sizes(counts[names[0]])},
            "tokenizers": tokenizers,
            "absent": dict(absent or {}),
            "overall": {name: _figures(counts[name].values()) for name in names},
            "domains": _by(0, counts),
            "languages": _by(1, counts),
            "cost": _parallel_cost(parallel, costs) if parallel is not None else _text_cost(_by(1, counts)),
        }
    )


def write_report(report: Report, out: Path) -> None:
    """`report.json` and `report.html` in the directory `out`."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "report.json", report)
    write_text(out / "report.html", page(report))


def corpus_text(corpus: Path) -> tuple[dict[Group, TextSample], str]:
    """The validation text of an artifact `corpus`, and what it is; training text where there is no other."""
    for split, said in (("validation", "validation text"), ("train", "training text")):
        samples = corpus_samples(corpus, split)
        if any(len(sample.texts) for sample in samples.values()):
            return samples, f"{said} of the corpus"
    raise GristmillError(f"{corpus} holds no text; name some with --text PATH")


def files_text(paths: Sequence[Path]) -> tuple[dict[Group, TextSample], str]:
    """The text of files and directories, at most `SAMPLE_BYTES` of each domain and language, in the order of their
    names. The domain is the name of the path, the language stands in a file's name: `de.txt`, `licence.de.txt`."""
    codes = {path.stem for path in LANGUAGES.glob("*.yaml")}
    texts: dict[Group, list[str]] = {}
    left: dict[Group, int] = {}
    for path in paths:
        if not path.exists():
            raise GristmillError(f"--text {path} does not exist; name a file or a directory of text")
        for file in sorted(filter(Path.is_file, path.rglob("*"))) if path.is_dir() else [path]:
            if any(part.startswith(".") for part in file.relative_to(path).parts):
                continue
            parts = file.name.split(".")
            language = next((part for part in parts[-3:-1] if part in codes), "")
            group = (path.resolve().name if path.is_dir() else parts[0] if parts[0] != language else "text", language)
            for text in chain.from_iterable(batch["text"].to_pylist() for batch in read_paths([file])):
                room = left.setdefault(group, SAMPLE_BYTES)
                if room == 0:
                    break
                taken = text.encode()[:room]
                left[group] -= len(taken)
                texts.setdefault(group, []).append(taken.decode("utf-8", "ignore"))
    return {group: TextSample.of(filter(None, texts[group])) for group in sorted(texts)}, "the files named"


# ---- figures


def _figures(counts: Iterable[Fertility]) -> dict[str, float | int | None]:
    """What is told of counts; None for what has no meaning where no words were counted."""
    total = sum(counts, Fertility())
    return {
        "tokens": total.tokens,
        "bytes_per_token": total.bytes_per_token,
        "tokens_per_word": total.tokens_per_word if total.words else None,
        "tokens_per_character": total.tokens_per_character,
        "whole_words": total.whole_word_share if total.letter_words else None,
    }


def _by(key: int, counts: Mapping[str, Mapping[Group, Fertility]]) -> Report:
    """domain (key 0) or language (key 1) -> tokenizer -> figures."""
    values = sorted({group[key] for groups in counts.values() for group in groups})
    return {
        value: {
            name: _figures(found for group, found in groups.items() if group[key] == value)
            for name, groups in counts.items()
        }
        for value in values
    }


def _sizes(counts: Mapping[Group, Fertility]) -> list[Report]:
    """What was measured on, which is the same for every tokenizer."""
    return [
        {
            "domain": domain,
            "language": language,
            "documents": found.documents,
            "bytes": found.bytes,
            "characters": found.characters,
            "words": found.words,
        }
        for (domain, language), found in counts.items()
    ]


# ---- what other languages cost


def _cost(tokenizer: Tokenizer, parallel: ParallelText) -> dict[str, float]:
    """Tokens of each language's texts for one token of the same texts in English."""
    return {
        language: int(token_counts(tokenizer, texts.translated).sum())
        / max(int(token_counts(tokenizer, texts.english).sum()), 1)
        for language, texts in parallel.languages.items()
    }


def _parallel_cost(parallel: ParallelText, costs: Mapping[str, Mapping[str, float]]) -> Report:
    return {
        "basis": parallel.basis,
        "meaning": "tokens for one token of the same content in English",
        "languages": {
            language: {
                "texts": len(texts.english),
                "bytes": pc.sum(pc.binary_length(texts.translated)).as_py(),
                "english_bytes": pc.sum(pc.binary_length(texts.english)).as_py(),
                "ratios": {name: ratios[language] for name, ratios in costs.items()},
            }
            for language, texts in parallel.languages.items()
        },
    }


def _text_cost(languages: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Report | None:
    """Without parallel text: tokens per character beside English, of different texts. None without a second language.

    It is a weaker measure: a character of Chinese says more than a letter."""
    others = [language for language in languages if language not in (ENGLISH, "")]
    key = "tokens_per_character"
    if not others or not all(found[key] for found in languages.get(ENGLISH, {"": {key: None}}).values()):
        return None
    return {
        "basis": "different texts, by characters: there is no parallel text",
        "meaning": "tokens per character for one token per character in English",
        "languages": {
            language: {
                "ratios": {
                    name: found[key] / languages[ENGLISH][name][key] for name, found in languages[language].items()
                }
            }
            for language in others
        },
    }
