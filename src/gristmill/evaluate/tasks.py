"""Small instruction tasks with checkable answers, made here: what SFT teaches, DPO sharpens and evaluation counts.

Every task is drawn by a seeded generator from a family (copying, order, comparison, arithmetic, ...). The words and
sentences are this project's own. A prompt belongs to the held-out split by a hash of its text, so that no prompt can
be in both splits, nor the same words in another order, whatever the seeds are.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ..errors import GristmillError

Split = Literal["train", "heldout"]
HELDOUT_SHARE = 4  # one prompt in four is held out
DRAWS = 200  # without a new prompt in so many draws, a family counts as used up

# fmt: off
WORDS = (
    "river", "stone", "lamp", "bread", "garden", "window", "silver", "winter", "candle", "forest", "market",
    "bridge", "island", "letter", "mirror", "needle", "ocean", "paper", "rabbit", "saddle", "table", "valley",
    "wagon", "anchor", "barrel", "castle", "dragon", "engine", "feather", "guitar", "hammer", "iron", "jacket",
    "kettle", "ladder", "meadow", "night", "orange", "pepper", "queen", "rocket", "summer", "tiger", "uncle",
    "velvet", "whale", "yellow", "apple", "button", "copper", "desert", "eagle", "flower", "ghost", "honey", "ink",
    "jungle", "king", "lion", "money", "nest", "oil", "pearl", "rain", "salt", "tower", "voice", "water", "bell",
    "cloud", "door", "earth", "fire", "glass", "horse", "key", "leaf", "moon", "nail", "owl", "pen", "road", "ship",
    "tree", "wall", "wind", "wolf",
)
# fmt: on


@dataclass(frozen=True)
class Task:
    """One question and the one reply that counts as right."""

    id: str
    family: str
    prompt: str
    answer: str


def make_tasks(count: int, seed: int, split: Split) -> list[Task]:
    """`count` tasks with distinct prompts, families in turn; the same for the same arguments.

    A family that yields no new prompt any more drops out of the turn; GristmillError when none is left.
    """
    rng = random.Random(seed)
    families = sorted(FAMILIES)
    tasks: list[Task] = []
    seen: set[str] = set()
    turn = 0
    while len(tasks) < count:
        if not families:
            raise GristmillError(f"there are only {len(tasks)} distinct {split} tasks, not {count}: ask for fewer")
        family = families[turn % len(families)]
        drawn = _new_prompt(family, rng, seen, split)
        if drawn is None:
            families.remove(family)
            continue
        prompt, answer = drawn
        seen.add(prompt)
        tasks.append(Task(f"{family}-{len(tasks):06d}", family, prompt, answer))
        turn += 1
    return tasks


def _new_prompt(family: str, rng: random.Random, seen: set[str], split: Split) -> tuple[str, str] | None:
    """A prompt of the split that was not drawn before, with its answer; None when many draws bring none."""
    for _ in range(DRAWS):
        prompt, answer = FAMILIES[family](rng)
        if prompt not in seen and is_heldout(prompt) == (split == "heldout"):
            return prompt, answer
    return None


def is_heldout(prompt: str) -> bool:
    """Whether a prompt belongs to the held-out split: a hash of its words in alphabetical order decides, so that the
    same words in another order (2 + 3 and 3 + 2) are in the same split."""
    words = " ".join(sorted(re.findall(r"\w+", prompt)))
    return hashlib.sha256(words.encode()).digest()[0] % HELDOUT_SHARE == 0


def is_correct(task: Task, reply: str) -> bool:
    """Whether a reply is the task's answer, but for surrounding space, case and a closing full stop."""
    return reply.strip().rstrip(".").strip().lower() == task.answer.lower()


def _words(rng: random.Random, low: int, high: int) -> list[str]:
    return rng.sample(WORDS, rng.randint(low, high))


def _repeat(rng: random.Random) -> tuple[str, str]:
    words = _words(rng, 1, 3)
    return f"Repeat these words: {' '.join(words)}", " ".join(words)


def _first(rng: random.Random) -> tuple[str, str]:
    words = _words(rng, 3, 5)
    return f"What is the first word here? {' '.join(words)}", words[0]


def _last(rng: random.Random) -> tuple[str, str]:
    words = _words(rng, 3, 5)
    return f"What is the last word here? {' '.join(words)}", words[-1]


def _larger(rng: random.Random) -> tuple[str, str]:
    a, b = rng.sample(range(100), 2)
    return f"Which number is larger, {a} or {b}?", str(max(a, b))


def _smaller(rng: random.Random) -> tuple[str, str]:
    a, b = rng.sample(range(100), 2)
    return f"Which number is smaller, {a} or {b}?", str(min(a, b))


def _parity(rng: random.Random) -> tuple[str, str]:
    number = rng.randrange(10_000)
    return f"Is {number} even or odd?", "even" if number % 2 == 0 else "odd"


def _contains(rng: random.Random) -> tuple[str, str]:
    words = _words(rng, 3, 5)
    asked = rng.choice(words) if rng.random() < 0.5 else rng.choice([word for word in WORDS if word not in words])
    return f"Is the word {asked} in this list? {' '.join(words)}", "yes" if asked in words else "no"


def _count(rng: random.Random) -> tuple[str, str]:
    words = _words(rng, 1, 6)
    return f"How many words are here? {' '.join(words)}", str(len(words))


def _swap(rng: random.Random) -> tuple[str, str]:
    first, second = rng.sample(WORDS, 2)
    return f"Swap these two words: {first} {second}", f"{second} {first}"


def _add(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randrange(50), rng.randrange(50)
    return f"What is {a} + {b}?", str(a + b)


FAMILIES: dict[str, Callable[[random.Random], tuple[str, str]]] = {
    "add": _add,
    "contains": _contains,
    "count": _count,
    "first": _first,
    "larger": _larger,
    "last": _last,
    "parity": _parity,
    "repeat": _repeat,
    "smaller": _smaller,
    "swap": _swap,
}
