"""The logit lens (nostalgebraist 2020): what the model would predict if it stopped after each block."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.decoder import Decoder
from ..tokenizer.tokenizer import Tokenizer


@torch.inference_mode()
def lens_logits(model: Decoder, token_ids: list[int]) -> Tensor:
    """Logits `[layers + 1, T, V]` read off the residual stream after the embedding and after every block, through
    the model's own final norm and head. The last entry is the model's prediction."""
    ids_BT = torch.tensor([token_ids], device=next(model.parameters()).device)
    stream = list(model.residual_stream(ids_BT))
    return model.logits(model.norm(torch.cat(stream))).float().cpu()


def logit_lens(logits_LTV: Tensor, token_ids: list[int], tokenizer: Tokenizer, top: int) -> list[dict[str, Any]]:
    """One entry per layer, the embedding first: the `top` predictions at every position with their probabilities,
    how often the first of them is the model's final one, and the bits the layer spends on the prompt's own tokens."""
    final = logits_LTV[-1].argmax(-1)
    targets = torch.tensor(token_ids[1:])
    layers = []
    for number, logits_TV in enumerate(logits_LTV):
        probability, ids = logits_TV.softmax(-1).topk(min(top, logits_TV.shape[-1]))
        positions = [
            {
                "token": tokenizer.decode([token], skip_special_tokens=False),
                "predictions": [
                    {"token": tokenizer.decode([guess], skip_special_tokens=False), "id": guess, "probability": value}
                    for guess, value in zip(ids[t].tolist(), probability[t].tolist(), strict=True)
                ],
            }
            for t, token in enumerate(token_ids)
        ]
        layers.append(
            {
                "after": "embedding" if number == 0 else f"layer {number - 1}",
                "agrees_with_last": float((logits_TV.argmax(-1) == final).float().mean()),
                "bits_per_token": float(F.cross_entropy(logits_TV[:-1].double(), targets)) / math.log(2),
                "positions": positions,
            }
        )
    return layers
