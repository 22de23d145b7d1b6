"""The embedding table: which tokens the model has placed beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..tokenizer.tokenizer import Tokenizer


def word_tokens(tokenizer: Tokenizer, words: Sequence[str]) -> dict[str, int]:
    """Those of the words that are one token, as they stand inside a sentence (after a space)."""
    encoded = {word: tokenizer.encode(f" {word}") for word in words}
    return {word: ids[0] for word, ids in encoded.items() if len(ids) == 1}


def frequent_tokens(tokenizer: Tokenizer, count: int) -> list[int]:
    """The vocabulary's first tokens of a space and three letters or more: words, now and then the beginning of one.
    Byte-pair merges are numbered in the order in which they were learned, the most frequent pair first, so low
    numbers stand for frequent tokens."""
    found: list[int] = []
    for token in range(tokenizer.vocab_size):
        if len(found) == count:
            break
        text = tokenizer.decode([token])
        if text.startswith(" ") and text[1:].isalpha() and len(text) > 3:
            found.append(token)
    return found


def nearest_tokens(table_VC: Tensor, tokens: Sequence[int], allowed_V: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """For each of N tokens the `count` nearest others by cosine among the allowed: `(cosines [N, count],
    ids [N, count])`, nearest first. `allowed_V` is boolean."""
    unit_VC = F.normalize(table_VC.float(), dim=-1)
    rows = torch.tensor(list(tokens), dtype=torch.int64)
    cosines_NV = unit_VC[rows] @ unit_VC.T
    cosines_NV[:, ~allowed_V] = -2.0  # below any cosine
    cosines_NV[torch.arange(len(rows)), rows] = -2.0
    others = int(allowed_V.sum()) - 1
    return cosines_NV.topk(min(count, others), dim=-1)


def neighbour_table(table_VC: Tensor, tokens: Sequence[int], tokenizer: Tokenizer, count: int) -> list[dict[str, Any]]:
    """The nearest tokens of each token as JSON. Special tokens, which stand for no text, are left out."""
    allowed = torch.from_numpy(tokenizer.token_bytes > 0)
    cosines, ids = nearest_tokens(table_VC, tokens, allowed, count)
    return [
        {
            "token": tokenizer.decode([token]),
            "id": token,
            "neighbours": [
                {"token": tokenizer.decode([other]), "id": other, "cosine": cosine}
                for other, cosine in zip(ids[row].tolist(), cosines[row].tolist(), strict=True)
            ],
        }
        for row, token in enumerate(tokens)
    ]


def spread(table_VC: Tensor) -> dict[str, float]:
    """Lengths of the embeddings, and the mean cosine of two different ones: near 0 where they use all directions,
    near 1 where they crowd into a narrow cone (Ethayarajh 2019)."""
    table = table_VC.double()
    norms = table.norm(dim=-1)
    total = F.normalize(table, dim=-1).sum(0)
    count = len(table)
    return {
        "mean_norm": float(norms.mean()),
        "min_norm": float(norms.min()),
        "max_norm": float(norms.max()),
        "mean_cosine": float((total @ total - count) / (count * (count - 1))),
    }
