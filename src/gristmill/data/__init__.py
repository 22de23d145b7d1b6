"""Collecting text and making a corpus of it: stages `collected` (`collect.py`) and `corpus` (`process.py`).

Each idea has its file: `clean`, `textbatch` (many documents as one array), `rules` and `repetition` (heuristics),
`minhash` (near-duplicates), `privacy`, `mixture` (validation split and domain weights); `corpus` reads the result.
"""
