"""A byte-level tokenizer with a handful of merges and a random decoder that fits it, also for the server's tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from gristmill.engine.sampler import Drawn, Sampler
from gristmill.engine.sampling import SamplingParams
from gristmill.engine.speculation.proposal import Draft
from gristmill.kernels.decode_tables import decode_inputs, keep_drawn
from gristmill.model.config import ModelConfig
from gristmill.model.decoder import Decoder
from gristmill.tokenizer.templates import builtin_template
from gristmill.tokenizer.tokenizer import Tokenizer

SPECIALS = ["<|bos|>", "<|eos|>", "<|pad|>", "<|im_start|>", "<|im_end|>"]
MERGES = [("t", "h"), ("th", "e"), ("i", "n"), ("in", "g"), ("a", "n"), ("an", "d"), ("Ã", "©"), ("Ġ", "the")]


def write_tokenizer(directory: Path) -> Path:
    """Ids 0-4 are special, then the 256 bytes, then the merges."""
    tokens = SPECIALS + sorted(pre_tokenizers.ByteLevel.alphabet()) + [a + b for a, b in MERGES]
    vocab = {token: i for i, token in enumerate(tokens)}
    backend = Backend(models.BPE(vocab=vocab, merges=MERGES))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    directory.mkdir(parents=True, exist_ok=True)
    backend.save(str(directory / "tokenizer.json"))
    named = {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "pad_token": "<|pad|>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(named))
    (directory / "chat_template.jinja").write_text(builtin_template("chatml"))
    return directory


def make_tokenizer(directory: Path) -> Tokenizer:
    return Tokenizer.load(write_tokenizer(directory))


def make_model(seed: int = 0, max_seq_len: int = 96, padding: int = 0, spread: float = 0.5) -> Decoder:
    """Weights far wider than an untrained model's, so that the best token is clear and replies vary."""
    config = ModelConfig(
        vocab_size=len(SPECIALS) + 256 + len(MERGES) + padding,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        intermediate_size=64,
        max_seq_len=max_seq_len,
    )
    model = Decoder(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
    return model


@torch.no_grad()
def greedy_by_full_forward(model: Decoder, prompt: list[int], stop_ids: tuple[int, ...], max_tokens: int) -> list[int]:
    """The oracle: the whole sequence through the plain model for every token."""
    ids = list(prompt)
    while len(ids) - len(prompt) < max_tokens and len(ids) < model.config.max_seq_len:
        token = int(model(torch.tensor([ids]))[0, -1].argmax())
        ids.append(token)
        if token in stop_ids:
            break
    return ids[len(prompt) :]


def scripted(monkeypatch: pytest.MonkeyPatch, ids: list[int]) -> None:
    """Let any model say these ids: one after the other, to each sequence of a step the same."""
    left = iter(ids)

    def sample(self: Sampler, logits_BV: torch.Tensor, slots_B: torch.Tensor, *_: object) -> Drawn:
        rows = len(logits_BV)
        drawn = Drawn(torch.full((rows,), next(left)), torch.ones(rows, dtype=torch.bool), slots_B)
        drawn.tops = {slot: 0 for slot, params in self._placed.items() if params.logprobs}
        if drawn.tops:
            drawn.logprob_B = torch.full((rows,), -0.5)
            drawn.top_ids_BK, drawn.top_values_BK = torch.zeros(rows, 0, dtype=torch.int64), torch.zeros(rows, 0)
        return drawn

    monkeypatch.setattr(Sampler, "sample", sample)


class Recording:
    """What CUDA does: fixed tensors in, fixed tensors out, the same work at each replay. Counts what is recorded."""

    def __init__(self):
        self.recorded: list[tuple[object, ...]] = []
        self.replays = 0

    def __call__(self, step, given, asked):
        self.recorded.append((*given.shape, *getattr(step, "args", ()), asked))
        results = step(given, asked)

        def replay():
            self.replays += 1
            again = step(given, asked)
            if isinstance(results, torch.Tensor):
                results.copy_(again)
                return
            for name, before in vars(results).items():
                if isinstance(before, torch.Tensor) and name != "slots_B":
                    before.copy_(getattr(again, name))

        return results, replay


class Knowing:
    """Guesses what a reply will be, now and then with a mistake, or nothing."""

    def __init__(self, replies, rng):
        self.replies, self.rng = replies, rng

    def ready(self, request):
        return True

    def draft(self, requests, most):
        drafts = []
        for request, room in zip(requests, most, strict=True):
            done = len(request.output_ids)
            tokens = self.replies[tuple(request.prompt_ids)][done : done + self.rng.randint(0, room)]
            if tokens and self.rng.random() < 0.4:
                tokens[self.rng.randrange(len(tokens))] = self.rng.randrange(269)
            drafts.append(Draft(tokens))
        return drafts

    def verified(self, request, drafted, accepted):
        pass

    def forget(self, request):
        pass


def params_of(rng):
    kind = rng.randrange(5)
    common = {"max_tokens": rng.randint(1, 20), "ignore_eos": True, "seed": rng.randrange(100)}
    if kind == 0:
        return SamplingParams(temperature=0, **common)
    if kind == 1:
        return SamplingParams(temperature=1.3, top_p=0.9, **common)
    if kind == 2:
        return SamplingParams(temperature=0.8, frequency_penalty=0.7, repetition_penalty=1.2, **common)
    if kind == 3:
        return SamplingParams(
            temperature=1.0, logit_bias={7: 3.0, 9: -5.0}, min_tokens=3, **{**common, "max_tokens": 9}
        )
    return SamplingParams(temperature=0, logprobs=True, top_logprobs=2, **common)


def check_tables(device):
    """The kernels of decode_tables against plain torch."""
    from gristmill.kernels.decode_tables_triton import decode_inputs_kernel, keep_drawn_kernel

    generator = torch.Generator().manual_seed(0)
    for rows in (1, 3, 40):
        tokens = torch.randint(1000, (50, 12), generator=generator)
        places = torch.randint(-1, 12, (50,), generator=generator)
        slots = torch.randperm(50, generator=generator)[:rows].int()
        drawn = torch.randint(1000, (rows,), generator=generator)
        theirs = [tensor.to(device) for tensor in (tokens.clone(), places.clone(), slots)]
        expected = decode_inputs(tokens, places, slots)
        ids, positions, lengths = (tensor.cpu() for tensor in decode_inputs_kernel(*theirs))
        assert torch.equal(positions, expected.positions_B)
        assert torch.equal(lengths, expected.lengths_B)
        assert torch.equal(ids[positions >= 0], expected.ids_B[positions >= 0])
        keep_drawn(tokens, places, slots, drawn)
        keep_drawn_kernel(*theirs, drawn.to(device))
        assert torch.equal(theirs[0].cpu(), tokens)
        assert torch.equal(theirs[1].cpu(), places)
