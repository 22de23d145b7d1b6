"""Decoder, encoder-decoder and encoder on the same small tasks, with the same number of parameters.

    python benchmarks/families.py                # all tasks, about two minutes of one core
    python benchmarks/families.py --tasks sort --steps 600

Strings of letters are to be reversed, sorted, or classified by their most frequent letter (of equals the first in the
alphabet). The decoder reads `string | answer` as one sequence and is trained on the answer; the encoder-decoder reads
the string and writes the answer; the encoder fills as many masks as the answer has letters, all at once, and classifies
by a head on the mean of its states. Every family sees the same strings. Printed: parameters, mean loss of the last 20
steps, share of answers that are right to the last letter among 512 new strings, CPU seconds of training.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gristmill.model.config import ModelConfig
from gristmill.model.decoder import Decoder
from gristmill.model.encoder import Encoder, EncoderConfig
from gristmill.model.encoder_decoder import EncoderDecoder, EncoderDecoderConfig

LETTERS, START, MASK = 10, 10, 11
LENGTHS = range(5, 10)
WIDTH, BATCH, WARMUP, PEAK_RATE = 64, 64, 20, 3e-3
# Cross-attention costs an encoder-decoder as much as a feed-forward layer narrower by one WIDTH saves.
SHAPE = {
    "vocab_size": 12,
    "hidden_size": WIDTH,
    "num_heads": 4,
    "num_kv_heads": 4,
    "head_dim": 16,
    "max_seq_len": 32,
    "activation": "gelu",
    "gated": False,
}


def reverse(strings: Tensor) -> Tensor:
    return strings.flip(1)


def sort(strings: Tensor) -> Tensor:
    return strings.sort(dim=1).values


def classify(strings: Tensor) -> Tensor:
    return F.one_hot(strings, LETTERS).sum(1).argmax(1, keepdim=True)


TASKS: dict[str, Callable[[Tensor], Tensor]] = {"reverse": reverse, "sort": sort, "classify": classify}


@dataclass(frozen=True)
class Contestant:
    """A model, the logits of an answer's letters given those before (training), and the answer it gives itself."""

    name: str
    model: nn.Module
    logits: Callable[[Tensor, Tensor], Tensor]
    answer: Callable[[Tensor, int], Tensor]


def decoder() -> Contestant:
    model = Decoder(ModelConfig(**SHAPE, num_layers=4, intermediate_size=4 * WIDTH)).init_weights(0)

    def logits(strings: Tensor, answers: Tensor) -> Tensor:
        whole = torch.cat((strings, torch.full_like(strings[:, :1], START), answers[:, :-1]), dim=1)
        return model(whole)[:, strings.shape[1] :]

    def answer(strings: Tensor, length: int) -> Tensor:
        written = strings[:, :0]
        for _ in range(length):
            shifted = torch.cat((written, strings[:, :1]), dim=1)  # its last letter is not looked at
            written = torch.cat((written, logits(strings, shifted)[:, -1:].argmax(-1)), dim=1)
        return written

    return Contestant("decoder", model, logits, answer)


def encoder_decoder() -> Contestant:
    config = EncoderDecoderConfig(
        **SHAPE, num_layers=2, num_decoder_layers=2, intermediate_size=3 * WIDTH, start_id=START
    )
    model = EncoderDecoder(config).init_weights(0)

    def logits(strings: Tensor, answers: Tensor) -> Tensor:
        return model(strings, torch.cat((torch.full_like(strings[:, :1], START), answers[:, :-1]), dim=1))

    def answer(strings: Tensor, length: int) -> Tensor:
        return torch.tensor(model.generate(strings, length))

    return Contestant("encoder-decoder", model, logits, answer)


def encoder(task: str) -> Contestant:
    classifies = task == "classify"
    head = {"num_labels": LETTERS} if classifies else {"masked_lm": True}
    model = Encoder(EncoderConfig(**SHAPE, **head, num_layers=4, intermediate_size=4 * WIDTH)).init_weights(0)

    def logits(strings: Tensor, answers: Tensor) -> Tensor:
        if classifies:
            return model.classify(strings)[:, None]
        masks = torch.full_like(answers, MASK)
        return model.masked_lm_logits(torch.cat((strings, masks), dim=1))[:, strings.shape[1] :]

    def answer(strings: Tensor, length: int) -> Tensor:
        return logits(strings, strings[:, :1].expand(-1, length)).argmax(-1)

    return Contestant("encoder", model, logits, answer)


def strings_of(generator: torch.Generator, number: int) -> Tensor:
    """Strings of one length, drawn from LENGTHS."""
    length = LENGTHS[int(torch.randint(len(LENGTHS), (), generator=generator))]
    return torch.randint(LETTERS, (number, length), generator=generator)


def train(contestant: Contestant, task: Callable[[Tensor], Tensor], steps: int) -> float:
    """Mean loss of the last 20 steps."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(contestant.model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP, (steps - step) / max(1, steps - WARMUP))
    )
    losses = []
    for _ in range(steps):
        strings = strings_of(generator, BATCH)
        answers = task(strings)
        loss = F.cross_entropy(contestant.logits(strings, answers).flatten(0, 1), answers.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(contestant.model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return sum(losses[-20:]) / len(losses[-20:])


@torch.no_grad()
def exact_match(contestant: Contestant, task: Callable[[Tensor], Tensor]) -> float:
    generator = torch.Generator().manual_seed(2)
    right = []
    for _ in range(16):
        strings = strings_of(generator, 32)
        answers = task(strings)
        right.append((contestant.answer(strings, answers.shape[1]) == answers).all(dim=1))
    return float(torch.cat(right).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--steps", type=int, default=400)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # CPU seconds are then seconds of a free core
    print(f"{'task':10} {'family':16} {'parameters':>10} {'loss':>8} {'exact':>7} {'CPU s':>8}")
    for name in arguments.tasks:
        for contestant in (decoder(), encoder_decoder(), encoder(name)):
            started = time.process_time()
            loss = train(contestant, TASKS[name], arguments.steps)
            seconds = time.process_time() - started
            parameters = sum(parameter.numel() for parameter in contestant.model.parameters())
            exact = exact_match(contestant, TASKS[name])
            print(
                f"{name:10} {contestant.name:16} {parameters:10,} {loss:8.4f} {exact:7.1%} {seconds:8.1f}", flush=True
            )


if __name__ == "__main__":
    main()
