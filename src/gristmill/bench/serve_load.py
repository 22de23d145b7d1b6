"""What `bench serve` serves: the workloads, a model of random weights, and a tokenizer that stands in for a real one.

The workloads are those of the published figures in benchmarks/RESULTS.md, and b8, for a CPU; W1 is the shape of the
small benchmark that nano-vllm and mini-sglang use. Each round draws its ids anew, so that no cache of prefixes knows
them.
"""

from __future__ import annotations

import gc
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Unpack

import numpy as np
import torch
from torch import Tensor

from gristmill.engine.engine import Engine
from gristmill.engine.limits import Limits
from gristmill.engine.llm import DTYPES, LLM, load_draft
from gristmill.engine.sampling import SamplingParams
from gristmill.errors import GristmillError
from gristmill.model.config import ModelConfig
from gristmill.model.decoder import Decoder
from gristmill.model.presets import preset
from gristmill.model.undrawn import undrawn
from gristmill.tokenizer.tokenizer import TOKENIZER_FILES, Tokenizer
from gristmill.train.device import resolve_device
from gristmill.weights.families import family_of, write_config
from gristmill.weights.load import load_model
from gristmill.weights.locate import locate_model

SHAPES = {"llama-8b": "llama-3-8b"}  # names of the published table for what the presets call otherwise
STD = 0.02  # of random weights


@dataclass(frozen=True)
class Load:
    """Requests that all come at once: `(prompt tokens, output tokens)` of each."""

    name: str
    lengths: tuple[tuple[int, int], ...]
    temperature: float

    @property
    def prompt_tokens(self) -> int:
        return sum(prompt for prompt, _ in self.lengths)

    @property
    def output_tokens(self) -> int:
        return sum(output for _, output in self.lengths)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with its output."""
        return max(prompt + output for prompt, output in self.lengths)

    @property
    def steps(self) -> int | None:
        """Tokens of each output where all are of one length above 1: what a time a step is reckoned by."""
        outputs = {output for _, output in self.lengths}
        return outputs.pop() if len(outputs) == 1 and outputs != {1} else None

    def prompts(self, vocab_size: int, turn: int) -> list[list[int]]:
        return [random_ids(vocab_size, length, turn, number) for number, (length, _) in enumerate(self.lengths)]

    def params(self) -> list[SamplingParams]:
        return [
            SamplingParams(max_tokens=output, temperature=self.temperature, ignore_eos=True)
            for _, output in self.lengths
        ]


def workload(name: str, requests: int | None = None, scale: float = 1.0) -> Load:
    """`w1`, `b1`, `b8`, `b32` or `prefill`, with another number of requests and lengths times `scale`."""
    if name == "w1":
        draw = random.Random(0)
        lengths = [(draw.randint(100, 1024), draw.randint(100, 1024)) for _ in range(requests or 256)]
        temperature = 0.6
    else:
        usual, pair = {
            "b1": (1, (128, 512)),
            "b8": (8, (128, 256)),
            "b32": (32, (512, 256)),
            "prefill": (64, (2048, 1)),
        }[name]
        lengths, temperature = [pair] * (requests or usual), 0.0
    return Load(name, tuple((scaled(prompt, scale), scaled(output, scale)) for prompt, output in lengths), temperature)


def scaled(length: int, scale: float) -> int:
    return max(1, round(length * scale))


def random_ids(vocab_size: int, length: int, *seed: int) -> list[int]:
    """Token ids, the same for the same seed."""
    ids: list[int] = np.random.default_rng(seed).integers(0, vocab_size, length).tolist()
    return ids


@dataclass(frozen=True)
class Target:
    """A model in memory with its tokenizer. `directory` has its `config.json` and tokenizer, for the peers, and its
    weights unless they are `random`. `draft` is a smaller model that guesses for it, where one is to be measured."""

    name: str
    model: Decoder
    tokenizer: Tokenizer
    directory: Path
    random: bool
    draft: Decoder | None = None

    @property
    def device(self) -> torch.device:
        return self.model.embedding.weight.device

    @property
    def dtype(self) -> str:
        return str(self.model.embedding.weight.dtype).removeprefix("torch.")

    @property
    def vocab_size(self) -> int:
        return min(self.tokenizer.vocab_size, self.model.config.vocab_size)


@contextmanager
def target(
    shape: str | None,
    model: Path | None,
    device: str,
    dtype: str | None,
    longest: int,
    draft_model: Path | None = None,
) -> Iterator[Target]:
    """A model of a preset's shape with random weights drawn on the device, or the one in a directory.

    `longest`: tokens of a sequence that it must take; a random model's context is made that long. GristmillError where
    neither or both are given, and where a real model's context is shorter.
    """
    if (shape is None) == (model is None):
        raise GristmillError("give --shape NAME for random weights or --model PATH for a model; not both, not neither")
    where = resolve_device(device)
    dtype = dtype or ("bfloat16" if where.type == "cuda" else "float32")
    if dtype not in DTYPES:
        raise GristmillError(f"--dtype {dtype}: the types are {', '.join(DTYPES)}")
    if model is not None:
        directory = locate_model(model)
        loaded = load_model(directory, DTYPES[dtype], where).requires_grad_(False)
        if loaded.config.max_seq_len < longest:
            raise GristmillError(
                f"the workload has sequences of {longest} tokens and {model} takes {loaded.config.max_seq_len}: "
                "set a smaller --scale"
            )
        tokenizer = Tokenizer.load(directory)
        draft = None if draft_model is None else load_draft(draft_model, tokenizer, DTYPES[dtype], where)
        yield Target(str(model), loaded, tokenizer, directory, random=False, draft=draft)
        return
    if draft_model is not None:
        raise GristmillError("--draft-model needs --model: random weights agree on nothing")
    assert shape is not None
    config = preset(SHAPES.get(shape, shape))
    config = config.model_copy(update={"max_seq_len": max(config.max_seq_len, longest)})
    with TemporaryDirectory(prefix="gristmill-bench-") as made:
        directory = Path(made)
        tokenizer = standin_tokenizer(directory, config.vocab_size)
        settings = write_config(family_of(config), config)
        (directory / "config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
        yield Target(shape, random_model(config, DTYPES[dtype], where), tokenizer, directory, random=True)


def engine_of(served: Target, **limits: Unpack[Limits]) -> Engine:
    """A new engine over the model. Once nothing holds it, `give_back` frees its cache for the next."""
    speculation = limits.get("speculation")
    draft = served.draft if speculation is not None and speculation.method == "draft" else None
    return LLM.from_model(served.model, served.tokenizer, draft_model=draft, **limits).engine


def give_back(device: torch.device) -> None:
    """Free what is not held any more: another process may need a GPU's memory, or the next engine."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def random_model(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Decoder:
    """Weights from Normal(0, 0.02), drawn where they are used: quick on a GPU, but not the same on every device."""
    with undrawn():
        model = Decoder(config)
    generator = torch.Generator(device).manual_seed(0)

    def draw(name: str, parameter: Tensor) -> Tensor:
        empty = torch.empty(parameter.shape, dtype=dtype, device=device)
        if parameter.dim() >= 2:
            return empty.normal_(0, STD, generator=generator)
        return empty.fill_(0.0 if name.endswith((".bias", ".sinks")) else 1.0)

    state = {name: draw(name, parameter) for name, parameter in model.named_parameters()}
    state |= {name: torch.zeros(it.shape, dtype=it.dtype, device=device) for name, it in model.named_buffers()}
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False).eval()


def standin_tokenizer(directory: Path, vocab_size: int) -> Tokenizer:
    """A byte-level tokenizer of any size in `directory`: an end, the 256 bytes, one merge, and words nobody writes."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    end = "<|end|>"
    tokens = [end, *sorted(pre_tokenizers.ByteLevel.alphabet()), "th"]
    if vocab_size < len(tokens):
        raise GristmillError(f"a model to be measured needs a vocabulary of at least {len(tokens)} tokens")
    tokens += [f"word{number}" for number in range(vocab_size - len(tokens))]
    backend = Backend(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[("t", "h")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(end, special=True, normalized=False)])
    backend.save(str(directory / TOKENIZER_FILES[0]))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": end}), encoding="utf-8")
    return Tokenizer.load(directory)
