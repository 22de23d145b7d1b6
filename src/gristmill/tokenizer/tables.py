"""What each id of a tokenizer stands for, in bytes: the decoder of its tokenizer.json, worked out once for every token.

Four decoders are known: ByteLevel (printable characters stand for bytes), the chain Replace, ByteFallback, Fuse, Strip
of SentencePiece's BPE ("▁" is a space, `<0xNN>` a byte), Metaspace ("▁" again, as unigram tokenizers have it) and
WordPiece ("##" joins to what stands before). All but the first treat the first token of a text in their own way, so
there are two tables.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import tokenizers
from tokenizers import AddedToken

from ..errors import GristmillError
from .encoder import byte_letters
from .kinds import SPACE, State, steps

MOST_UNUSED = 1 << 16  # more ids than tokens: tokenizers with free places for later leave hundreds or thousands
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# What WordPiece's decoder with `cleanup` makes of a token and the space before it, in this order.
_CLEANUP = {
    " .": ".", " ?": "?", " !": "!", " ,": ",", " ' ": "'", " n't": "n't", " 'm": "'m", " do not": " don't",
    " 's": "'s", " 've": "'ve", " 're": "'re",
}  # fmt: skip


@dataclass(frozen=True)
class ByteTable:
    """The bytes of each id: `later[id]`, and as the first token of a text `first[id]`."""

    later: list[bytes]
    first: list[bytes]

    def bytes_of(self, token_id: int, begins: bool) -> bytes:
        """Nothing for the unused ids by which a model's table may exceed its tokenizer's vocabulary."""
        table = self.first if begins else self.later
        return table[token_id] if 0 <= token_id < len(table) else b""

    def join(self, ids: Iterable[int], begins: bool) -> bytes:
        """The bytes of ids in a row, the first of which (that stands for anything) `begins` a text or goes on."""
        later, size = self.later, len(self.later)
        known = [token_id for token_id in ids if 0 <= token_id < size and later[token_id]]
        joined = b"".join([later[token_id] for token_id in known])
        if begins and known:
            return self.first[known[0]] + joined[len(later[known[0]]) :]
        return joined

    def without(self, ids: Iterable[int]) -> ByteTable:
        """The table in which `ids` stand for nothing."""
        blank = frozenset(ids)

        def clear(table: list[bytes]) -> list[bytes]:
            return [b"" if token_id in blank else token for token_id, token in enumerate(table)]

        later = clear(self.later)
        return ByteTable(later, later if self.first is self.later else clear(self.first))


def byte_table(backend: tokenizers.Tokenizer, added: Mapping[int, AddedToken]) -> ByteTable:
    """The tables of a tokenizer; GristmillError names a step of its decoder that is not known, or a token whose id
    leaves more than `MOST_UNUSED` ids below it without a token.

    They give what the tokenizers library decodes, but where bytes are no UTF-8: the library then writes U+FFFD for
    every byte of the whole run of `<0xNN>` tokens, here only what is broken is replaced.
    """
    vocabulary: dict[str, int] = backend.get_vocab(with_added_tokens=True)
    if not vocabulary:
        raise GristmillError("it holds an empty vocabulary")
    last = max(vocabulary, key=vocabulary.__getitem__)
    largest = len(vocabulary) + MOST_UNUSED - 1
    if vocabulary[last] > largest:
        raise GristmillError(
            f"its token {last!r} has the id {vocabulary[last]}, but it has only {len(vocabulary)} tokens, and tables "
            f"are as long as the largest id; the largest may be {largest}: give the token a smaller id"
        )
    tokens = [""] * (vocabulary[last] + 1)
    for token, token_id in vocabulary.items():
        tokens[token_id] = added[token_id].content if token_id in added else token
    decoder = steps(backend.decoder)
    if [step["type"] for step in decoder] == ["ByteLevel"]:
        later = [token.encode() if i in added else _printed_bytes(token) for i, token in enumerate(tokens)]
        return ByteTable(later, later)
    later_bytes, first_bytes = _decoding(decoder)
    return ByteTable([later_bytes(token) for token in tokens], [first_bytes(token) for token in tokens])


def _decoding(decoder: list[State]) -> tuple[Callable[[str], bytes], Callable[[str], bytes]]:
    """The function from a token to its bytes, and the one for a text's first token."""
    kinds = [step["type"] for step in decoder]
    if kinds == ["WordPiece"]:
        prefix, cleanup = decoder[0]["prefix"], decoder[0]["cleanup"]

        def word_piece(token: str, first: bool) -> bytes:
            if not first:
                token = token.removeprefix(prefix) if token.startswith(prefix) else f" {token}"
            for before, after in _CLEANUP.items() if cleanup else ():
                token = token.replace(before, after)
            return token.encode()

        return lambda token: word_piece(token, False), lambda token: word_piece(token, True)

    if kinds == ["Metaspace"]:
        mark, drops = decoder[0]["replacement"], decoder[0]["prepend_scheme"] != "never"
        return (
            lambda token: token.replace(mark, " ").encode(),
            lambda token: token.replace(mark, "" if drops else " ").encode(),
        )

    if kinds not in (["Replace", "ByteFallback", "Fuse"], ["Replace", "ByteFallback", "Fuse", "Strip"]):
        raise GristmillError(
            f"its decoder is {' + '.join(kinds)}; known are ByteLevel, WordPiece, Metaspace and "
            f"Replace + ByteFallback + Fuse, with or without Strip"
        )
    mark = decoder[0]["pattern"].get("String")
    stripped = {"content": " ", "start": 1, "stop": 0} if len(kinds) == 4 else {}
    if mark != SPACE or decoder[0]["content"] != " " or any(decoder[-1][key] != stripped[key] for key in stripped):
        raise GristmillError(f"its decoder replaces or strips something else than {SPACE} and one space before a text")

    def fallback(token: str) -> bytes:
        byte = _BYTE.fullmatch(token)
        return bytes([int(byte[1], 16)]) if byte else token.replace(SPACE, " ").encode()

    return fallback, lambda token: fallback(token).removeprefix(b" ") if stripped else fallback(token)


def _printed_bytes(token: str) -> bytes:
    """The bytes of a ByteLevel token; one that is not spelled in the 256 characters stands for its own UTF-8."""
    if all(character in CHARACTER_TO_BYTE for character in token):
        return bytes(CHARACTER_TO_BYTE[character] for character in token)
    return token.encode()


CHARACTER_TO_BYTE = {letter: byte for byte, letter in enumerate(byte_letters())}
