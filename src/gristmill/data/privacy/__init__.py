"""Personal data that a pattern can find, counted and taken out of texts.

    find("Write to ann@mill.org", KINDS)      -> [Span(kind='email', start=9, end=21)]
    redact("Write to ann@mill.org", KINDS)    -> "Write to <email>"

| kind | what |
|---|---|
| `email` | e-mail addresses, also `ann (at) mill (dot) org` |
| `phone` | phone and fax numbers, international and in national forms |
| `ip` | public IPv4 and IPv6 addresses |
| `card` | payment cards: issuer's range, length and Luhn's checksum |
| `ssn` | US social security numbers |
| `iban` | bank accounts: country's length and checksum |
| `key` | keys and tokens of known forms, private keys, values of `password =`, `secret:` and the like |
| `credentials` | `name:password` inside a URL |

Names, streets, dates of birth and anything else that needs understanding are not found; `names.py` finds names of
people. A pattern is never sure: `docs/privacy.md` has the measured recall and precision.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..config.privacy import PersonalData, PrivacyConfig
from ..step import Mask, Rule, Step, set_columns

if TYPE_CHECKING:
    from .spans import Span

I32 = NDArray[np.int32]
KINDS: tuple[PersonalData, ...] = get_args(PersonalData)

__all__ = ["KINDS", "find", "privacy_rules", "privacy_step", "redact"]


def find(text: str, kinds: Iterable[str] = KINDS) -> list[Span]:
    """The personal data in a text, in order and without overlaps; `start` and `end` count characters."""
    from .spans import find as find_spans

    return find_spans(text, kinds)


def redact(text: str, kinds: Iterable[str] = KINDS) -> str:
    """The text with every find replaced by `<email>`, `<phone>` and so on."""
    from .spans import replaced

    return replaced(text, ((start, end, f"<{kind}>") for kind, start, end in find(text, kinds)))


def privacy_step(config: PrivacyConfig) -> Step:
    """Rewrites the texts and writes the number of finds as `pii_KIND`, for every kind that is looked for.

    Texts are redacted whether their documents are dropped or not: no file shall hold what the corpus must not."""
    from .spans import find_in_column, redacted

    kinds = tuple(kind for kind in KINDS if kind in config.kinds)
    counts = tuple(pa.field(f"pii_{kind}", pa.int32()) for kind in kinds)
    fields = (pa.field("text", pa.string(), nullable=False), pa.field("bytes", pa.int64()), *counts)

    def apply(batch: pa.RecordBatch) -> pa.RecordBatch:
        column = batch.column("text")
        finds = find_in_column(column, kinds)
        found: dict[str, I32] = {kind: np.zeros(batch.num_rows, np.int32) for kind in kinds}
        for row, spans in finds.items():
            for span in spans:
                found[span.kind][row] += 1
        texts = redacted(column, finds)
        columns = {f"pii_{kind}": pa.array(values) for kind, values in found.items()}
        return set_columns(batch, {"text": texts, "bytes": pc.binary_length(texts), **columns}, fields)

    return Step("privacy", ("text",), fields, apply)


def privacy_rules(config: PrivacyConfig) -> list[Rule]:
    """One rule for each kind whose documents are dropped."""

    def holds(column: str) -> Rule:
        def broken(batch: pa.RecordBatch) -> Mask:
            return pc.greater(batch.column(column), 0).to_numpy(zero_copy_only=False)

        return Rule(column.replace("pii_", "privacy:"), (column,), broken)

    return [holds(f"pii_{kind}") for kind in config.drop]
