"""One step on the device: the scheduled tokens through the model, logits of the sequences that sample next."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..model.decoder import Decoder
from .cache import CacheAttention, SlotCache
from .scheduler import Chunk


class Runner:
    """Holds the model and its cache."""

    def __init__(self, model: Decoder, slots: int, max_len: int, vocab_size: int):
        weight = model.embedding.weight
        self.model = model.eval()
        self.device = weight.device
        scaling = model.config.rope_scaling
        self.dynamic = scaling is not None and scaling.kind == "dynamic"
        self.vocab_size = vocab_size  # rows of the head beyond it are padding that no tokenizer knows
        self.cache = SlotCache(model.config, slots, max_len, weight.dtype, weight.device)

    @torch.inference_mode()
    def step(self, chunks: Sequence[Chunk]) -> Tensor:
        """Logits `[B, vocab]` in float32, one row per chunk with `last`, in the order of `chunks`.

        `chunks` must have those of one token first.
        """
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        lengths: list[int] = []
        sampled: list[int] = []
        for chunk in chunks:
            ids += chunk.request.pending_ids(chunk.num_tokens)
            positions += range(chunk.start, chunk.start + chunk.num_tokens)
            slots += [chunk.request.slot] * chunk.num_tokens  # type: ignore[list-item]  # running requests have one
            if self.dynamic:
                lengths += context_lengths(chunk)
            if chunk.last:
                sampled.append(len(ids) - 1)
        ids_N, positions_N, slots_N = torch.tensor([ids, positions, slots], device=self.device)
        attend = CacheAttention(self.cache, chunks, slots_N, positions_N)
        length_1N = torch.tensor([lengths], device=self.device) if self.dynamic else None
        hidden_NC = self.model.hidden_states(ids_N[None], positions_N[None], attend, length_1N)[0]
        hidden_BC = hidden_NC[torch.tensor(sampled, dtype=torch.long, device=self.device)]
        return self.model.logits(hidden_BC)[:, : self.vocab_size].float()


def context_lengths(chunk: Chunk) -> list[int]:
    """The context that each token of a chunk reckons with, where rotary scaling is "dynamic": tokens of the prompt its
    whole length, later ones what stands up to them, as in transformers. Keys stay as they were when they were cached.
    """
    prompt = len(chunk.request.prompt_ids)
    return [max(prompt, position + 1) for position in range(chunk.start, chunk.start + chunk.num_tokens)]
