"""From text to what a model reads: a context, and a continuation whose likelihood is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import GristmillError
from ...tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Pair:
    """A context and what may follow it. `chat`: the context is a user's message, the continuation the reply."""

    context: str
    continuation: str
    chat: bool = False


@dataclass(frozen=True)
class Scored:
    """Token ids, of which those from `start` on are the continuation; `cut` of the context's were left out, since
    the model reads no more."""

    ids: tuple[int, ...]
    start: int
    cut: int = 0

    @property
    def continuation(self) -> int:
        """Tokens that are scored."""
        return len(self.ids) - self.start


def beginning(tokenizer: Tokenizer) -> list[int]:
    """What stands before a text: bos, but for tokenizers that have none or have their end or `<|im_start|>` there."""
    bos = tokenizer.bos_id
    return [] if bos in (tokenizer.eos_id, tokenizer.im_start_id) else [bos]


def encode_pairs(tokenizer: Tokenizer, pairs: Sequence[Pair], max_length: int) -> list[Scored]:
    """Ids of each pair, at most `max_length` + 1 (the last is only predicted), cut on the left.

    The continuation's tokens are those that the whole text has and the context alone has not; so a token that
    reaches over the border counts as the continuation's. Spaces at the end of a context are the continuation's, since
    tokenizers keep a space with the word behind it. An empty context is the tokenizer's bos, or its eos.
    """
    moved = [_move_spaces(pair) for pair in pairs]
    plain = [pair for pair in moved if not pair.chat]
    wholes = iter(tokenizer.encode_batch([pair.context + pair.continuation for pair in plain]))
    contexts = _encode_once(tokenizer, [pair.context for pair in plain])
    start_of_text = beginning(tokenizer)
    encoded = []
    for pair in moved:
        if pair.chat:
            head = tokenizer.chat_ids([{"role": "user", "content": pair.context}], add_generation_prompt=True)
            whole = tokenizer.encode(pair.continuation.strip())
            ids, start = head + whole, len(head)
        else:
            whole = next(wholes)
            shared = common_prefix([whole, contexts[pair.context]])
            begin = start_of_text or ([] if shared else [tokenizer.bos_id])
            ids, start = begin + whole, len(begin) + shared
        encoded.append(_fit(ids, start, max_length, pair))
    return encoded


def context_ids(tokenizer: Tokenizer, context: str, chat: bool) -> list[int]:
    """The prompt of a reply that is generated; a space at its end is left to the reply."""
    if chat:
        return tokenizer.chat_ids([{"role": "user", "content": context}], add_generation_prompt=True)
    return beginning(tokenizer) + tokenizer.encode(context.rstrip(" ")) or [tokenizer.bos_id]


def common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """Number of leading ids that all sequences share."""
    shortest = min(sequences, key=len)
    for place, id in enumerate(shortest):
        if any(sequence[place] != id for sequence in sequences):
            return place
    return len(shortest)


def _move_spaces(pair: Pair) -> Pair:
    context = pair.context.rstrip(" ")
    return Pair(context, pair.context[len(context) :] + pair.continuation, pair.chat)


def _encode_once(tokenizer: Tokenizer, contexts: Sequence[str]) -> dict[str, list[int]]:
    """Ids of each distinct context: the choices of a question share theirs."""
    distinct = list(dict.fromkeys(contexts))
    return dict(zip(distinct, tokenizer.encode_batch(distinct), strict=True))


def _fit(ids: list[int], start: int, max_length: int, pair: Pair) -> Scored:
    if start == len(ids):
        raise GristmillError(f"an answer to {pair.context[-60:]!r} is empty: its likelihood is that of nothing")
    over = max(0, len(ids) - max_length - 1)
    if over >= start:
        raise GristmillError(
            f"an answer of {len(ids) - start} tokens is longer than the {max_length} that the model reads: "
            f"{pair.continuation[:60]!r}"
        )
    return Scored(tuple(ids[over:]), start - over, over)
