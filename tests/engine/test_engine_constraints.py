"""Regexes, grammars and choices that cannot be used, the compiler's memory and threads, and text that is forced."""

from __future__ import annotations

import json
import sys
import threading
from typing import Any

import pytest
from constraint_rooms import allowed_by, byte_level, constrained, word_piece

import gristmill.engine.constraints.compiler as compiler_module
from gristmill.engine.constraints import Compiler, Constraint, compile_constraint
from gristmill.engine.sampling import RequestError
from gristmill.errors import GristmillError
from gristmill.tokenizer.tokenizer import Tokenizer

pytest.importorskip("llguidance")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return byte_level(tmp_path_factory.mktemp("bpe"))


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> Compiler:
    return Compiler(tokenizer, tokenizer.vocab_size)


def made(compiler: Compiler, **asked: Any) -> Constraint:
    constraint = compiler.compile(constrained(**asked))
    assert constraint is not None
    return constraint


def takes(constraint: Constraint, text: str) -> bool:
    """Whether a reply may be `text`, a byte's token after the other."""
    matcher = constraint.start()
    table = constraint.vocabulary.tokenizer._table(True).later
    return all(matcher.accept(table.index(bytes([byte]))) for byte in text.encode()) and matcher.complete


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"regex": "["}, 'regex cannot be used: invalid regex "["'),
        ({"regex": "(?=a)b"}, "look-around"),
        ({"regex": r"(a)\1"}, "backreferences are not supported"),
        ({"regex": r"\bfoo"}, "lookarounds not supported"),
        ({"regex": ""}, "regex is empty"),
        ({"regex": "[a&&b]"}, "no reply in tokens of this model satisfies it"),
        ({"grammar": "root ::= foo"}, "grammar cannot be used: Rule 'foo' not found"),
        ({"grammar": 'root ::= ("a"'}, "Expected ')' at line 1"),
        ({"grammar": 'x ::= "a"'}, "No 'root' rule found"),
        ({"grammar": "start: foo"}, 'grammar cannot be used: at 1(8): unknown name: "foo"'),
        ({"grammar": 'start: x\nx: "a'}, "grammar cannot be used: 2(6): lexer error"),
        ({"grammar": 'start: "a" <[5]>'}, "it asks for special tokens"),
        ({"grammar": "start: <|im_end|>"}, "it asks for special tokens"),
        ({"grammar": " "}, "grammar is empty"),
        ({"grammar": 'root ::= root "a"'}, "no reply in tokens of this model satisfies it"),
        ({"grammar": "root ::= " + "(" * 5000}, "it is nested too deeply"),
        ({"choice": ["a", "\ud800"]}, "choice[1] holds half a surrogate pair"),
    ],
)
def test_what_cannot_be_used_is_said(compiler: Compiler, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(GristmillError) as error:
        compiler.compile(constrained(**asked))
    assert said in str(error.value)
    assert isinstance(error.value, RequestError)
    assert [error.value.field] == list(asked)
    assert "\n" not in str(error.value)


def test_a_regex_is_of_the_whole_reply_and_every_sign_in_it_counts(compiler: Compiler) -> None:
    assert takes(made(compiler, regex=r"^a/b\$"), "a/b$")
    assert takes(made(compiler, regex='"x y" & [/]'), '"x y" & /')
    assert not takes(made(compiler, regex="ab"), "abc")
    assert not takes(made(compiler, regex="ab"), "a")
    assert takes(made(compiler, regex="(?s)a.c|d$"), "a\nc")
    assert takes(made(compiler, choice=["a|b", "c.d\n"]), "c.d\n")
    assert not takes(made(compiler, choice=["a|b", "c.d"]), "c-d")


@pytest.mark.parametrize("other", [{"ignore_eos": True}, {"min_tokens": 2}])
def test_what_forbids_the_end_contradicts_a_structure(compiler: Compiler, other: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="and regex contradict each other") as error:
        compiler.compile(constrained(regex="a", **other))
    assert [error.value.field] == list(other)
    assert compiler.compile(constrained(**other)) is None


def test_a_fork_goes_its_own_way(compiler: Compiler, tokenizer: Tokenizer) -> None:
    table = tokenizer._table(True).later
    matcher = made(compiler, choice=["ab", "ano"]).start()
    assert matcher.accept(table.index(b"a"))
    fork = matcher.fork()
    assert matcher.accept(table.index(b"b"))
    assert matcher.finished
    assert fork.accept(table.index(b"no"))
    fork.rollback(2)
    assert {table[token] for token in allowed_by(fork, tokenizer.vocab_size)} == {b"a", b"ab"}
    matcher.rollback(1)
    assert {table[token] for token in allowed_by(matcher, tokenizer.vocab_size)} == {b"b", b"n", b"no"}


def test_equal_requests_share_a_constraint_and_mistakes_are_not_kept(compiler: Compiler) -> None:
    assert made(compiler, regex="a+") is made(compiler, regex="a+")
    assert made(compiler, choice=["a+"]) is not made(compiler, regex="a+")
    assert compiler.compile(constrained()) is None
    for _ in range(2):
        with pytest.raises(RequestError, match="invalid regex"):
            compiler.compile(constrained(regex="["))
    assert ("regex", "[") not in compiler._made


def test_what_was_used_long_ago_is_forgotten(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler_module, "REMEMBERED", 3)
    compiler = Compiler(tokenizer, tokenizer.vocab_size)
    first = made(compiler, regex="a0")
    for number in range(1, 3):
        made(compiler, regex=f"a{number}")
    assert made(compiler, regex="a0") is first
    made(compiler, regex="a3")
    assert [key[1] for key in compiler._made] == ["a2", "a0", "a3"]


def test_a_slow_schema_keeps_others_from_nothing(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = Compiler(tokenizer, tokenizer.vocab_size)
    go_on = threading.Event()
    plain = compiler_module.grammar_of

    def slow(field: str, text: str) -> str:
        if text == "slow":
            assert go_on.wait(60)
        return plain(field, text)

    monkeypatch.setattr(compiler_module, "grammar_of", slow)
    waiting = compiler.submit(constrained(regex="slow"))
    assert waiting is not None
    assert takes(made(compiler, regex="quick"), "quick")
    assert not waiting.done()
    go_on.set()
    assert takes(waiting.result(60), "slow")


def test_many_threads_ask_for_the_same_at_once(tokenizer: Tokenizer) -> None:
    compiler = Compiler(tokenizer, tokenizer.vocab_size)
    found: list[Constraint] = []
    threads = [threading.Thread(target=lambda: found.append(made(compiler, regex="(ab)+"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len({id(constraint) for constraint in found}) == 1


def test_replies_of_one_constraint_know_nothing_of_each_other(compiler: Compiler, tokenizer: Tokenizer) -> None:
    constraint = made(compiler, choice=["ab", "no"])
    one, other = constraint.start(), constraint.start()
    table = tokenizer._table(True).later
    assert one.accept(table.index(b"n"))
    assert allowed_by(one, tokenizer.vocab_size) == {table.index(b"o")}
    assert {table[token] for token in allowed_by(other, tokenizer.vocab_size)} == {b"a", b"ab", b"n", b"no"}


def test_ends_are_the_tokenizers_and_the_models(tokenizer: Tokenizer) -> None:
    other = tokenizer.backend.token_to_id("<s>")
    constraint = compile_constraint(constrained(choice=["a"]), tokenizer, tokenizer.vocab_size, stop_ids=[other])
    assert constraint is not None
    matcher = constraint.start()
    assert not matcher.accept(other)
    assert matcher.accept(tokenizer._table(True).later.index(b"a"))
    assert matcher.finished
    assert allowed_by(matcher, tokenizer.vocab_size) == {other, *tokenizer.stop_ids}
    assert matcher.accept(other)
    assert not matcher.accept(other)
    matcher.rollback(1)
    assert matcher.accept(tokenizer.eos_id)


def test_forced_text_is_what_the_only_way_on_begins_with(tokenizer: Tokenizer) -> None:
    schema = {"type": "object", "properties": {"name": {"type": "null"}, "color": {"type": "null"}}}
    schema["required"] = ["name", "color"]
    constraint = compile_constraint(constrained(json_schema=schema), tokenizer, tokenizer.vocab_size)
    assert constraint is not None
    matcher = constraint.start()
    forced = matcher.forced_tokens()
    assert tokenizer.decode(forced) == '{"name"'
    assert all(matcher.accept(token) for token in forced)
    assert json.loads('{"name": null, "color": null}')
    free = compile_constraint(constrained(regex=".*"), tokenizer, tokenizer.vocab_size)
    assert free is not None
    assert free.start().forced_tokens() == []


def test_a_text_that_the_vocabulary_cannot_spell_is_said_at_the_token(tmp_path: Any) -> None:
    tokenizer = word_piece(tmp_path)
    constraint = compile_constraint(constrained(choice=["aÿ"]), tokenizer, tokenizer.vocab_size)
    assert constraint is not None
    matcher = constraint.start()
    assert matcher.accept(tokenizer._table(True).first.index(b"a"))
    with pytest.raises(GristmillError, match="stands still after 1 tokens"):
        allowed_by(matcher, tokenizer.vocab_size)
    matcher.rollback(1)
    assert matcher.accept(tokenizer._table(True).first.index(b"a"))
    with pytest.raises(RequestError, match="no reply in tokens of this model satisfies it"):
        compile_constraint(constrained(choice=["ÿ"]), tokenizer, tokenizer.vocab_size)


def test_without_the_library_it_is_named(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(RequestError, match=r"regex needs the package llguidance; install it: pip install 'gristmill\["):
        compile_constraint(constrained(regex="a"), tokenizer, tokenizer.vocab_size)
