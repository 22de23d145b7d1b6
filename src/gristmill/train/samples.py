"""Continuations of a few texts during training: what the model would write now."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ..tokenizer.tokenizer import Tokenizer
from .precision import autocast

TEMPERATURE = 0.8


@torch.no_grad()
def continuations(
    model: Any, tokenizer: Tokenizer, prompts: Sequence[str], tokens: int, precision: str, device: torch.device
) -> Iterator[tuple[str, str]]:
    """Each prompt with `tokens` tokens drawn at temperature 0.8, the same draws at every call.

    The whole text is read again for every token, at one length: a few short texts are not worth a cache.
    """
    for number, prompt in enumerate(prompts):
        ids = [tokenizer.bos_id, *tokenizer.encode(prompt)][-model.config.max_seq_len + tokens :]
        row = torch.full((1, len(ids) + tokens), tokenizer.bos_id, device=device)
        row[0, : len(ids)] = torch.tensor(ids, device=device)
        generator = torch.Generator().manual_seed(number)
        drawn: list[int] = []
        for place in range(len(ids), len(ids) + tokens):
            with autocast(precision, device):
                logits = model.logits(model.hidden_states(row)[0, place - 1])
            shares = torch.softmax(logits.float().cpu() / TEMPERATURE, dim=-1)
            drawn.append(int(torch.multinomial(shares, 1, generator=generator)))
            if drawn[-1] == tokenizer.eos_id:
                break
            row[0, place] = drawn[-1]
        yield prompt, tokenizer.decode(drawn)
