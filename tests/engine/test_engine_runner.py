"""Tokens cut into chunks in every way, in blocks in any order, give what the plain model gives for the whole."""

from __future__ import annotations

import random

import pytest
import torch

from gristmill.engine.config import EngineConfig
from gristmill.engine.request import Request
from gristmill.engine.runner import Runner
from gristmill.engine.sampling import SamplingParams
from gristmill.engine.scheduler import Chunk, Step


def runner_of(model, tokenizer, block_size, **changes):
    config = EngineConfig(
        max_num_seqs=12, max_model_len=96, max_num_batched_tokens=256, block_size=block_size,
        num_blocks=12 * 96 // block_size, **changes,
    )  # fmt: skip
    return Runner(model, config, tokenizer.vocab_size)


@pytest.mark.parametrize("kv_dtype", ["auto", "int8", "fp8"])
@pytest.mark.parametrize("seed", range(8))
def test_chunks_in_any_company_are_the_plain_model(model, tokenizer, seed, kv_dtype):
    """Few lengths, so that prompts, parts of prompts and replies of equal size meet in a step; slots in no order."""
    rng = random.Random(seed)
    size = rng.choice([2, 4, 16])
    runner = runner_of(model, tokenizer, size, kv_dtype=kv_dtype)
    free = list(range(runner.config.num_blocks))
    if seed % 2:
        rng.shuffle(free)
    requests = []
    for number, slot in enumerate(rng.sample(range(12), 9)):
        ids = [rng.randrange(269) for _ in range(rng.choice([1, 2, 4, 8, 12]))]
        requests.append(Request(number, ids, SamplingParams(temperature=0), slot=slot))
    with torch.no_grad():
        expected = {r.id: model.hidden_states(torch.tensor([r.prompt_ids]))[0] for r in requests}
    tolerance = {"auto": 1e-4, "int8": 0.1, "fp8": 0.5}[kv_dtype]  # of the norm; the weights of this model are wide
    while unfinished := [r for r in requests if r.num_pending]:
        chunks = []
        for request in rng.sample(unfinished, rng.randint(1, len(unfinished))):
            count = min(rng.choice([1, 2, 4]), request.num_pending)
            while len(request.blocks) * size < request.num_computed + count:
                request.blocks.append(free.pop(0))
            chunks.append(Chunk(request, request.num_computed, count, samples=False))
        chunks.sort(key=lambda chunk: (chunk.num_tokens, chunk.request.slot))
        hidden = runner.hidden_states(Step(1, chunks, [], False))
        for chunk, got in zip(chunks, hidden.split([chunk.num_tokens for chunk in chunks]), strict=True):
            end = chunk.start + chunk.num_tokens
            wanted = expected[chunk.request.id][chunk.start : end]
            assert (got - wanted).norm() <= tolerance * wanted.norm(), chunk
            chunk.request.num_computed = end


def test_a_copied_block_is_its_source(model, tokenizer):
    runner = runner_of(model, tokenizer, 4)
    request = Request(0, [7, 8, 9], SamplingParams(temperature=0), slot=0, blocks=[3])
    runner.hidden_states(Step(1, [Chunk(request, 0, 3, samples=False)], [], False))
    runner.cache.copy([(3, 5), (5, 3)])  # all are read before any is written
    layer = runner.cache.layers[1]
    assert layer.keys[5, :3].abs().sum() > 0
    assert layer.keys[3].abs().sum() == 0
