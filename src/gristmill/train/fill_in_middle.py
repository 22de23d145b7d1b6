"""What else a text can teach than its next token: what stands in a gap, between what is before and behind it.

A decoder learns it by turned documents (fill-in-the-middle, Bavarian et al. 2022), an encoder by hidden tokens (masked
language modelling, Devlin et al. 2019).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import GristmillError
from ..tokenizer.special import FILL_IN_THE_MIDDLE
from ..tokenizer.tokenizer import Tokenizer

I64 = NDArray[np.int64]
BITS, GOLDEN = 2**64 - 1, 0x9E3779B97F4A7C15  # SplitMix64's step from state to state
HALF = 2**31 - 1


class GapTokens(NamedTuple):
    """Ids of the marks of the three parts, and of those that begin and end a document."""

    prefix: int
    middle: int
    suffix: int
    bos: int
    eos: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> GapTokens:
        """GristmillError where the tokenizer lacks one."""
        prefix, middle, suffix = (_special_id(tokenizer, token) for token in FILL_IN_THE_MIDDLE)
        return cls(prefix, middle, suffix, tokenizer.bos_id, tokenizer.eos_id)


def _special_id(tokenizer: Tokenizer, token: str) -> int:
    number: int | None = tokenizer.backend.token_to_id(token)
    if number is None or number not in tokenizer.special_ids:
        raise GristmillError(
            f"base.fim_rate is above 0, but the tokenizer has no {token}: set tokenizer.fill_in_the_middle: true, or "
            "base.fim_rate: 0"
        )
    return number


class FillInMiddle:
    """Turns documents so that their middle comes last, where a decoder predicts it from both sides.

    Cut into three at two places drawn evenly, between tokens, a document becomes one of these, by a coin:

        <prefix> PREFIX <suffix> SUFFIX <middle> MIDDLE     PSM
        <prefix> <suffix> SUFFIX <middle> PREFIX MIDDLE     SPM

    (the second in the form that the paper trains together with the first). Its bos and eos stay where they are. It is
    three tokens longer. What happens depends on the seed, the document's number and the epoch alone.
    """

    def __init__(self, tokens: GapTokens, rate: float, seed: int):
        self.tokens, self.rate, self.seed = tokens, rate, seed
        self._streams: dict[int, int] = {}  # where each epoch's begins

    def coins(self, count: int) -> NDArray[np.bool_]:
        """Which of the first `count` documents are turned: a share of about `rate`, the same in every epoch."""
        return np.random.default_rng([self.seed, 3]).random(count) < self.rate

    def __call__(self, tokens: I64, document_number: int, epoch: int) -> I64:
        """A document turned, whatever its coin."""
        if not len(tokens):
            raise GristmillError(f"document {document_number} has no tokens: nothing can be turned")
        marks = self.tokens
        first = int(tokens[0] == marks.bos)
        behind = len(tokens) - int(tokens[-1] == marks.eos and len(tokens) > first)
        drawn = self._drawn(document_number, epoch)
        places = behind + 1 - first
        one, other = (drawn >> 33) * places >> 31, (drawn >> 2 & HALF) * places >> 31
        left, right = (first + one, first + other) if one < other else (first + other, first + one)
        size, rest = right - left, behind - right
        turned = np.empty(len(tokens) + 3, np.int64)
        turned[:first], turned[first], turned[behind + 3 :] = tokens[:first], marks.prefix, tokens[behind:]
        if drawn & 1:  # PSM
            turned[first + 1 : left + 1] = tokens[first:left]
            turned[left + 1], turned[left + 2 : left + 2 + rest] = marks.suffix, tokens[right:behind]
            turned[left + 2 + rest], turned[behind + 3 - size : behind + 3] = marks.middle, tokens[left:right]
        else:
            turned[first + 1], turned[first + 2 : first + 2 + rest] = marks.suffix, tokens[right:behind]
            turned[first + 2 + rest], turned[first + 3 + rest : behind + 3] = marks.middle, tokens[first:right]
        return turned

    def _drawn(self, document_number: int, epoch: int) -> int:
        """A number below 2^64: the document's of the epoch's stream of SplitMix64 (Steele, Lea and Flood 2014), where
        numpy would take longer to make a generator than to turn a document. Two cuts take 31 bits each, the coin 1."""
        if epoch not in self._streams:
            seeds = np.random.SeedSequence([self.seed, 4, epoch])
            self._streams[epoch] = int(seeds.generate_state(1, np.uint64)[0])
        return _mixed(self._streams[epoch] + document_number * GOLDEN)


def _mixed(state: int) -> int:
    """SplitMix64's number at a state, which is taken modulo 2^64."""
    state &= BITS
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & BITS
    state = (state ^ state >> 27) * 0x94D049BB133111EB & BITS
    return state ^ state >> 31


def mask_tokens(
    row: I64, mask_id: int, vocab_size: int, rate: float, rng: np.random.Generator
) -> tuple[I64, NDArray[np.float32]]:
    """`row` with tokens hidden, and weights that are 1 where one is to be guessed, else 0 (Devlin et al. 2019, section
    3.1): each place is chosen with probability `rate`; of those 80 % become `mask_id`, 10 % a token drawn evenly from
    the vocabulary, 10 % stay. `row` is not changed."""
    chosen, fate = rng.random(len(row)) < rate, rng.random(len(row))
    inputs = np.where(chosen & (fate < 0.8), mask_id, row)
    drawn = rng.integers(vocab_size, size=len(row))
    return np.where(chosen & (fate >= 0.9), drawn, inputs), chosen.astype(np.float32)
