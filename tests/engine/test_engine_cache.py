"""Tokens cut into chunks in every possible way give the logits of the whole sequence at once."""

from __future__ import annotations

import random

import pytest
import torch

from gristmill.engine.request import Request
from gristmill.engine.runner import Runner
from gristmill.engine.sampling import SamplingParams
from gristmill.engine.scheduler import Chunk


@pytest.mark.parametrize("seed", range(12))
def test_chunks_in_any_company_are_the_plain_model(model, tokenizer, seed):
    """Few lengths, so that prompts, parts of prompts and replies of equal size meet in a step; slots in no order."""
    rng = random.Random(seed)
    runner = Runner(model, slots=12, max_len=96, vocab_size=tokenizer.vocab_size)
    slots = rng.sample(range(12), 9)
    requests = []
    for number, slot in enumerate(slots):
        ids = [rng.randrange(269) for _ in range(rng.choice([1, 2, 4, 8, 12]))]
        requests.append(Request(number, ids, SamplingParams(), slot=slot))
    with torch.no_grad():
        expected = {r.id: model(torch.tensor([r.prompt_ids]))[0] for r in requests}
    compared = 0
    while unfinished := [r for r in requests if r.num_pending]:
        chosen = rng.sample(unfinished, rng.randint(1, len(unfinished)))
        chunks = []
        for request in chosen:
            count = min(rng.choice([1, 2, 4]), request.num_pending)
            chunks.append(Chunk(request, request.num_computed, count, last=rng.random() < 0.7))
        chunks.sort(key=lambda chunk: (chunk.num_tokens, chunk.request.slot))
        logits = iter(runner.step(chunks))
        for chunk in chunks:
            chunk.request.num_computed += chunk.num_tokens
            if chunk.last:
                wanted = expected[chunk.request.id][chunk.request.num_computed - 1]
                assert torch.allclose(next(logits), wanted, atol=1e-3), chunk
                compared += 1
    assert compared > 5
