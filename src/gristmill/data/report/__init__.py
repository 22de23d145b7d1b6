"""What happened to the documents, and why: counts, samples, histograms and clusters, as JSON, as a table, as a page.

`partial` counts one chunk of documents, where it is written, and puts counts together; `summary` makes `report.json` of
them; `present` writes the report of a finished corpus, with `tokens` (real token counts) and `html` (one page).
"""

from .partial import count, largest_clusters, merge
from .summary import make_report

__all__ = ["count", "largest_clusters", "make_report", "merge"]
