"""Everything that compares documents with each other or with other texts.

`exact.py` equal texts; `repeated.py` lines and paragraphs that other documents hold too; `near.py` near-duplicates, by
way of `lsh.py` (candidates), `components.py` (who may have to do with whom) and `verify.py` (the exact comparison);
`against.py` the documents of corpora that exist already; `contamination.py` text of evaluation sets.

What needs every document at once works on files sorted by hash (`runs.py`), one range of hashes at a time, so memory
does not grow with the corpus but for a few numbers per document.
"""
