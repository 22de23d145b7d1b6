"""What a mask allows is exactly what trying every token says, for each kind of tokenizer."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from constraint_rooms import KINDS, allowed_by, bytes_from, constrained

from gristmill.engine.constraints import Compiler
from gristmill.tokenizer.tokenizer import Tokenizer

pytest.importorskip("llguidance")

Oracle = Callable[[bytes], tuple[bool, bool]]  # text so far -> (may it become a whole one, is it one)


def one_of(*texts: str) -> Oracle:
    whole = [text.encode() for text in texts]
    return lambda text: (any(one.startswith(text) for one in whole), text in whole)


def brackets(text: bytes) -> tuple[bool, bool]:
    """One pair of brackets, in which any number of pairs."""
    depth = 0
    for place, byte in enumerate(text):
        depth += {40: 1, 41: -1}.get(byte, -1000)
        if depth < 0 or (depth == 0 and place + 1 < len(text)):
            return False, False
    return True, bool(text) and depth == 0


def number_and_words(text: bytes) -> tuple[bool, bool]:
    """1 to 3 digits, then words of a and b, a space before each."""
    whole = re.fullmatch(rb"[0-9]{1,3}( [ab]+)*", text)
    return re.fullmatch(rb"([0-9]{1,3}(( [ab]+)*|( [ab]+)* ))?", text) is not None, whole is not None


def _spaced(template: str) -> list[str]:
    """Every text in which each ~ is one space or none."""
    parts = template.split("~")
    fills = itertools.product(["", " "], repeat=len(parts) - 1)
    return ["".join(itertools.chain(*zip(parts, [*fill, ""], strict=True))) for fill in fills]


CHOICES = ["né", "no", "yes", "yes, 日本", "日"]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["a", "né"]}, "b": {"type": "array", "items": {"type": "null"}, "maxItems": 2}},
    "required": ["name"],
}
DOCUMENTS = [
    text
    for name in ('"a"', '"né"')
    for rest in ("", ',~"b":~[]', ',~"b":~[null]', ',~"b":~[null,~null]')
    for text in _spaced('{"name":~' + name + rest + "}")
]
CASES: dict[str, tuple[dict[str, object], Oracle]] = {
    "choice": ({"choice": CHOICES}, one_of(*CHOICES)),
    "regex": ({"regex": "[0-9]{1,3}( [ab]+)*"}, number_and_words),
    "anchored regex": ({"regex": "^yes|no$"}, one_of("yes", "no")),
    "gbnf": ({"grammar": 'root ::= "(" root* ")"'}, brackets),
    "lark": ({"grammar": 'start: "(" start* ")"'}, brackets),
    "schema": ({"json_schema": SCHEMA}, one_of(*DOCUMENTS)),
}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return KINDS[request.param](tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("continues", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_a_mask_allows_what_trying_every_token_does(tokenizer: Tokenizer, case: str, continues: bool) -> None:
    asked, oracle = CASES[case]
    rng = random.Random(f"{tokenizer.kind} {case} {continues}")
    size = tokenizer.vocab_size
    constraint = Compiler(tokenizer, size).compile(constrained(**asked))
    assert constraint is not None
    whole = 0
    for _walk in range(12):
        matcher = constraint.start(continues=continues)
        ids: list[int] = []
        while len(ids) < 24:
            text = bytes_from(tokenizer, ids, continues)
            tries = {token: bytes_from(tokenizer, [*ids, token], continues) for token in range(size)}
            expected = {token for token, tried in tries.items() if tried != text and oracle(tried)[0]}
            if oracle(text)[1]:
                whole += 1
                expected |= set(tokenizer.stop_ids)
            assert matcher.complete == oracle(text)[1]
            if not expected:  # some texts cannot be spelled to their end in this vocabulary
                assert not matcher.possible
                break
            allowed = allowed_by(matcher, size)
            assert allowed == expected, (text, {tries[token] for token in allowed ^ expected})
            refused = rng.choice([token for token in range(size) if token not in expected])
            assert not matcher.accept(refused)
            token = rng.choice(sorted(expected))
            assert matcher.accept(token)
            if token in tokenizer.stop_ids:
                assert matcher.finished
                assert allowed_by(matcher, size) == set(tokenizer.stop_ids)
                break
            ids.append(token)
    assert whole, "no walk came to a whole text"


def test_going_back_is_as_never_having_gone(tokenizer: Tokenizer) -> None:
    rng = random.Random(1)
    size = tokenizer.vocab_size
    constraint = Compiler(tokenizer, size).compile(constrained(json_schema=SCHEMA))
    assert constraint is not None
    ended = 0
    for _walk in range(20):
        matcher = constraint.start()
        ids: list[int] = []
        masks = [allowed_by(matcher, size)]
        for _ in range(40):
            if rng.random() < 0.3:
                count = rng.randint(0, len(ids))
                matcher.rollback(count)
                ids, masks = ids[: len(ids) - count], masks[: len(masks) - count]
                assert allowed_by(matcher, size) == masks[-1]
            if ids and ids[-1] in tokenizer.stop_ids:
                ended += 1
                continue
            if not matcher.possible:
                break
            ids.append(rng.choice(sorted(masks[-1])))
            assert matcher.accept(ids[-1])
            masks.append(allowed_by(matcher, size) if matcher.possible else set())
    assert ended


def test_a_row_may_be_a_tensor_and_wider_than_the_vocabulary(tokenizer: Tokenizer) -> None:
    constraint = Compiler(tokenizer, tokenizer.vocab_size).compile(constrained(regex="[0-9]+"))
    assert constraint is not None
    rows = torch.full((2, 40), -1, dtype=torch.int32)
    constraint.start().mask_into(rows[1])
    assert (rows[0] == -1).all()
    row = np.unpackbits(rows[1].numpy().view(np.uint8), bitorder="little")
    assert set(np.flatnonzero(row)) == allowed_by(constraint.start(), tokenizer.vocab_size)


def test_a_model_of_fewer_or_more_ids_than_the_tokenizer_has(tokenizer: Tokenizer) -> None:
    small = tokenizer.vocab_size - 30
    full = Compiler(tokenizer, tokenizer.vocab_size).compile(constrained(regex=".+"))
    cut = Compiler(tokenizer, small).compile(constrained(regex=".+"))
    wide = Compiler(tokenizer, tokenizer.vocab_size + 70).compile(constrained(regex=".+"))
    assert full is not None
    assert cut is not None
    assert wide is not None
    allowed = allowed_by(full.start(), tokenizer.vocab_size)
    assert allowed_by(cut.start(), small) == {token for token in allowed if token < small}
    assert allowed_by(wide.start(), tokenizer.vocab_size + 70) == allowed
