"""One reply under a constraint: which tokens may come next, and how far it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import GristmillError
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    from llguidance import LLMatcher


class Constraint:
    """What replies must be; made by `Compiler`. Any thread may `start` one."""

    def __init__(self, vocabulary: Vocabulary, automaton: LLMatcher):
        self.vocabulary = vocabulary
        self.automaton = automaton  # before any token; it stays there

    def start(self, continues: bool = False) -> Matcher:
        """A matcher for a new reply. `continues`: its text goes on with the prompt's, as in `TextStream`."""
        return Matcher(self, begins=not continues)


class Matcher:
    """Follows one reply, token by token. One thread at a time may use it.

    An end of text (`Vocabulary.stop_ids`) may come exactly where the reply is complete.
    """

    def __init__(self, constraint: Constraint, begins: bool = True):
        self._constraint = constraint
        self._vocabulary = constraint.vocabulary
        self._automaton = constraint.automaton.deep_copy()
        self._first_ids = self._vocabulary.first_ids if begins else {}
        self._taken: list[int] = []  # in the ids of the automaton
        self._ended = False
        self._buffer = np.zeros(self._vocabulary.backend_words, dtype=np.int32)

    @property
    def complete(self) -> bool:
        """Whether what has come is a whole reply; more may come all the same."""
        return self._ended or self._automaton.is_accepting()

    @property
    def possible(self) -> bool:
        """Whether any token may come next."""
        try:
            return bool(self._allowed().any())
        except GristmillError:
            return False

    @property
    def finished(self) -> bool:
        """Whether the end has come, or nothing but the end can."""
        return self._ended or (self._automaton.is_stopped() and self._automaton.is_accepting())

    def fork(self) -> Matcher:
        """Another matcher for a reply that has begun like this one."""
        other = Matcher(self._constraint)
        other._automaton = self._automaton.deep_copy()
        other._first_ids, other._taken, other._ended = self._first_ids, list(self._taken), self._ended
        return other

    def mask_into(self, row: Any) -> None:
        """Write what may come next into `row`, int32 `[at least ceil(vocab_size / 32)]` (numpy, or a CPU tensor): bit
        i % 32 of word i // 32 is token i.

        GristmillError where no token of this vocabulary can go on, or the automaton grew too large.
        """
        allowed = self._allowed()
        if not allowed.any():
            raise GristmillError(
                f"the structured output stands still after {len(self._taken)} tokens: no token of the vocabulary can "
                f"go on with it"
            )
        target = np.asarray(row)
        target[: len(allowed)] = allowed
        target[len(allowed) :] = 0

    def accept(self, token: int) -> bool:
        """Take the next token. False, and nothing changes, where it may not come.

        GristmillError where the automaton grew too large.
        """
        if self._ended:
            return False
        if token in self._vocabulary.stop_ids:
            self._ended = self._automaton.is_accepting()
            return self._ended
        known = self._first_ids.get(token, token) if not self._taken else token
        if known is None or not 0 <= token < self._vocabulary.size or self._automaton.is_stopped():
            return False
        if self._automaton.try_consume_tokens([known]) != 1:
            self._check()
            return False
        self._taken.append(known)
        return True

    def rollback(self, count: int) -> None:
        """Take back the last `count` tokens, the end too."""
        assert 0 <= count <= len(self._taken) + self._ended, f"{count} tokens are more than were taken"
        if count and self._ended:
            self._ended = False
            count -= 1
        if not count:
            return
        del self._taken[-count:]
        if not self._automaton.rollback(count):  # it cannot, of some grammars and after an error; it can begin again
            self._automaton = self._constraint.automaton.deep_copy()
            taken = self._automaton.try_consume_tokens(self._taken)
            assert taken == len(self._taken), f"{taken} of {len(self._taken)} tokens were taken a second time"

    def forced_tokens(self) -> list[int]:
        """Tokens that spell out what must come next in any case; none where the automaton cannot tell.

        They are as the tokenizer cuts that text. The last one is left out, as what follows may become one with it.
        Other cuts of the same text may come too: the tokens are to be checked as a draft where the output is to be
        distributed as without them. Only for byte-level tokenizers.
        """
        tokenizer = self._vocabulary.tokenizer
        if tokenizer.kind != "bpe" or self.finished:
            return []
        forced = self._automaton.compute_ff_bytes()
        ids = tokenizer.encode(forced.decode("utf-8", "ignore"))[:-1]
        return ids[: self._automaton.validate_tokens(ids)] if ids else []

    def _check(self) -> None:
        error = self._automaton.get_error()
        if error and not error.startswith("NoExtension"):
            raise GristmillError(f"the structured output cannot go on: {brief(error)}")

    def _allowed(self) -> NDArray[np.int32]:
        """int32 `[ceil(vocab_size / 32)]`"""
        vocabulary = self._vocabulary
        if self.finished:
            return vocabulary.ends
        self._automaton.unsafe_compute_mask_ptr(self._buffer.ctypes.data, self._buffer.nbytes)
        self._check()
        if self._automaton.is_stopped() and not self._automaton.is_accepting():  # no token goes on, and this is no end
            return np.zeros_like(vocabulary.text)
        allowed = self._buffer
        if self._first_ids and not self._taken:
            allowed = vocabulary.at_first(allowed)
        allowed = allowed[: vocabulary.num_words] & vocabulary.text
        return allowed | vocabulary.ends if self._automaton.is_accepting() else allowed


def brief(message: str) -> str:
    """A message of llguidance on one line, without the state of its parser."""
    return " ".join(message.partition("<state>")[0].split())[:400]
