"""Constraints from what requests ask for, remembered by their text and made on threads of their own."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from threading import Lock
from typing import Any

from ...tokenizer.tokenizer import Tokenizer
from ..sampling import RequestError, SamplingParams
from .grammar import grammar_of, wanted
from .matcher import Constraint, brief
from .vocabulary import Vocabulary

REMEMBERED = 256  # constraints; one takes tens of kilobytes, and more as its replies meet new states
THREADS = 2


class Compiler:
    """Makes constraints for one model. Any thread may call it; equal requests share one constraint.

    `submit` returns at once, so that a slow schema keeps nobody but its own request waiting. `stop_ids`: the ids that
    end a text besides the tokenizer's own.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, stop_ids: Iterable[int] = ()):
        self._source = (tokenizer, vocab_size, tuple(stop_ids))
        self._made: OrderedDict[tuple[str, str], Future[Constraint]] = OrderedDict()
        self._lock = Lock()
        self._vocabulary_lock = Lock()
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="constraints")

    def submit(self, params: SamplingParams) -> Future[Constraint] | None:
        """The constraint that `params` ask for, when it is made; None where they ask for none.

        RequestError, by the field at fault, where it cannot be used: from the result, or at once where other parameters
        contradict it.
        """
        asked = wanted(params)
        if asked is None:
            return None
        key = (asked[0], _text_of(*asked))
        with self._lock:
            made = self._made.get(key)
            if made is not None:
                self._made.move_to_end(key)
                return made
            made = self._made[key] = self._pool.submit(self._make, *key)
            while len(self._made) > REMEMBERED:
                self._made.popitem(last=False)
        made.add_done_callback(lambda future: self._forget_failed(key, future))
        return made

    def compile(self, params: SamplingParams) -> Constraint | None:
        """`submit`, and wait. RequestError as there."""
        made = self.submit(params)
        return None if made is None else made.result()

    def close(self) -> None:
        """Give the threads back; what is under way is finished, what waits is cancelled."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _make(self, kind: str, text: str) -> Constraint:
        try:
            from llguidance import LLMatcher
        except ImportError:
            raise RequestError(
                kind, f"{kind} needs the package llguidance; install it: pip install 'gristmill[structured]'"
            ) from None
        grammar = grammar_of(kind, text)
        with self._vocabulary_lock:
            vocabulary = self._vocabulary
        automaton = LLMatcher(vocabulary.backend, grammar, log_level=0)
        if automaton.is_error():
            raise RequestError(kind, f"{kind} cannot be used: {brief(automaton.get_error())}")
        constraint = Constraint(vocabulary, automaton)
        if not constraint.start().possible:
            raise RequestError(kind, f"{kind} cannot be used: no reply in tokens of this model satisfies it")
        return constraint

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(*self._source)

    def _forget_failed(self, key: tuple[str, str], future: Future[Constraint]) -> None:
        if future.cancelled() or future.exception() is not None:
            with self._lock:
                self._made.pop(key, None)


def compile_constraint(
    params: SamplingParams, tokenizer: Tokenizer, vocab_size: int, stop_ids: Iterable[int] = ()
) -> Constraint | None:
    """One constraint by itself, None where `params` ask for none. An engine keeps a `Compiler`, which remembers."""
    compiler = Compiler(tokenizer, vocab_size, stop_ids)
    try:
        return compiler.compile(params)
    finally:
        compiler.close()


def _text_of(kind: str, value: Any) -> str:
    if isinstance(value, str) and kind != "choice":
        return value
    try:
        return json.dumps(dict(value) if kind == "json_schema" else list(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(kind, f"{kind} cannot be written as JSON: {error}") from None
