"""Collecting text and making a corpus of it: stages `collected` (`collect/`) and `corpus` (`process/`).

Each idea has its place: `clean/`, `language`, `kernel/` (all measurements, compiled), `rules`, `ngram/` and
`classifier/` (models that filters score by), `privacy/`, `names`, `toxicity`, `dedup/`, `mixture/`, `report/`;
`corpus` reads the result, `step` says what a step is.
"""
