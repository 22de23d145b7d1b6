"""Token ids to text as they come, holding back what later tokens could still change.

Two things are not final when they arrive: the bytes of an unfinished character, which the tokenizer's stream keeps, and
an end of the text that may be the beginning of a stop string, which is kept here. So what was handed out is never
wrong, and the pieces put together are the text of the whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..tokenizer.tokenizer import Tokenizer


class TextStream:
    """The text of one growing sequence. `stopped` says whether a stop string came; nothing is given from it on.

    `continues`: the sequence goes on with the prompt's text, so a space that its first token begins with is kept; what
    begins a text (a reply in a chat) loses the one that some tokenizers put there. `shown` are special tokens by id
    that are text here.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        continues: bool = False,
        shown: Mapping[int, str] | None = None,
    ):
        self.stopped = False
        self._decoder = tokenizer.stream(continues=continues)
        self._shown = shown or {}
        self._stop = tuple(stop)
        self._held = ""

    def push(self, token_id: int) -> str:
        """The text that this token made final."""
        text = self._decoder.push(token_id) + self._shown.get(token_id, "")
        return self._until_stop(text, final=False) if self._stop else text

    def finish(self) -> str:
        """The rest, when no more tokens come."""
        return self._until_stop(self._decoder.finish(), final=True)

    def _until_stop(self, new: str, final: bool) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        found = [position for stop in self._stop if (position := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            return text[: min(found)]
        keep = 0 if final else max(overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, but not all of it."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
