"""Log-likelihoods of continuations, batched by length.

Shape suffixes: B rows, T tokens, C hidden_size, N predictions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...model.attention import causal_attention
from ...model.config import ModelConfig
from ...model.decoder import Decoder
from .rows import BranchAttention, Row, make_batches, make_rows, pad
from .sequences import Scored

BATCH_TOKENS = {"cpu": 1024, "cuda": 16_384}  # on a CPU more fall out of its caches: 4096 took half as long again
LOGITS_BYTES = 1 << 27  # of the fp32 logits that exist at once


@dataclass(frozen=True)
class Likelihood:
    """What a model gives a continuation: the natural logarithm of its probability, whether greedy decoding writes
    exactly it, and its number of tokens."""

    log_likelihood: float
    greedy: bool
    tokens: int


@torch.no_grad()
def log_likelihoods(
    model: Decoder,
    groups: Sequence[Sequence[Scored]],
    *,
    batch_tokens: int | None = None,
    share: bool = True,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[list[Likelihood]]:
    """The likelihood of every sequence, in the order given; those of a group (the choices of a question) that begin
    alike share that beginning if `share`. Equal sequences of a group are read once and get the same number to the last
    bit: which of them is taken is not left to rounding.

    At most `batch_tokens` tokens with their padding are read at a time; the device decides where that is None.
    `on_progress(sequences, all)` is called after each batch. Probabilities are taken in float32 from the model's
    logits, sums in float64.
    """
    distinct = [list(dict.fromkeys(group)) for group in groups]
    rows = make_rows(distinct, share and _can_share(model.config))
    results: dict[tuple[int, int], Likelihood] = {}
    total = sum(len(group) for group in distinct)
    if batch_tokens is None:
        batch_tokens = BATCH_TOKENS.get(next(model.parameters()).device.type, BATCH_TOKENS["cpu"])
    for batch in make_batches(rows, batch_tokens):
        results.update(_read(model, batch))
        if on_progress is not None:
            on_progress(len(results), total)
    return [
        [results[number, distinct[number].index(sequence)] for sequence in group] for number, group in enumerate(groups)
    ]


def _can_share(config: ModelConfig) -> bool:
    """Whether a token's hidden state depends on nothing behind it: with dynamic scaling it does, on the length."""
    return config.rope_scaling is None or config.rope_scaling.kind != "dynamic"


def _read(model: Decoder, batch: Sequence[Row]) -> dict[tuple[int, int], Likelihood]:
    """One forward pass. Each place that predicts something is taken through the head once, however many sequences
    it serves."""
    hidden_BTC = _hidden(model, batch)
    length = hidden_BTC.shape[1]
    number_of: dict[int, int] = {}  # a place of the flattened batch -> its row of logits
    keys, counts = [], []
    rows: list[int] = []
    targets: list[int] = []
    for at, row in enumerate(batch):
        for key, places, continuation in row.predictions():
            keys.append(key)
            counts.append(len(continuation))
            rows += [number_of.setdefault(at * length + place, len(number_of)) for place in places]
            targets += continuation
    hidden_NC = hidden_BTC.flatten(0, 1)[torch.tensor(list(number_of), device=hidden_BTC.device)]
    log_probabilities, greedy = _predict(model, hidden_NC, torch.tensor(rows), torch.tensor(targets))
    found = {}
    pieces = zip(keys, counts, log_probabilities.split(counts), greedy.split(counts), strict=True)
    for key, count, values, hits in pieces:
        found[key] = Likelihood(float(values.sum()), bool(hits.all()), count)
    return found


def _hidden(model: Decoder, batch: Sequence[Row]) -> Tensor:
    """The last hidden states of a batch, `[B, T, C]`. Rows without branches need no mask: padding stands behind."""
    ids_BT, positions_BT, segments_BT = pad(batch, next(model.parameters()).device)
    if batch[0].branches:
        return model.hidden_states(ids_BT, positions_BT, BranchAttention(segments_BT, positions_BT))
    lengths_B1 = torch.tensor([[row.length] for row in batch], device=ids_BT.device)
    return model.hidden_states(ids_BT, None, causal_attention, context_length=lengths_B1)


def _predict(model: Decoder, hidden_NC: Tensor, rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities (float64) of `targets`, each after hidden state `rows`, and whether it is the likeliest; both
    on the CPU, like what they are asked for."""
    values, hits = torch.empty(len(targets), dtype=torch.float64), torch.empty(len(targets), dtype=torch.bool)
    size = max(1, LOGITS_BYTES // (4 * model.config.vocab_size))
    for first in range(0, len(hidden_NC), size):
        asked = ((rows >= first) & (rows < first + size)).nonzero().squeeze(1)
        logits_NV = model.logits(hidden_NC[first : first + size]).float()
        row, target = (rows[asked] - first).to(logits_NV.device), targets[asked].to(logits_NV.device)
        values[asked] = (logits_NV[row, target].double() - logits_NV.logsumexp(-1).double()[row]).cpu()
        hits[asked] = (logits_NV.argmax(-1)[row] == target).cpu()
    return values, hits
