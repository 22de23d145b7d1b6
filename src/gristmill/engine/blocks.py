"""Who holds which block of the cache, and which blocks hold what. Pure Python: no torch, and no block is ever touched.

A sequence holds its blocks in order; block i is for tokens i * block_size and on. A full block whose tokens are known
is registered under what it holds, so that a later sequence that begins the same takes it instead of computing it again.
Keys and values of a token depend on all tokens before it, so a block is named by its own tokens and by the block before
it: the key is (content number of the parent, ids), and every registered content gets a number that is never given
again. Keys are compared whole: two contents are never taken for one another.

A block is in use (one or more sequences hold it), or idle (registered, nobody holds it: it is kept until its room is
needed, the least recently held first), or blank. Blocks are given out so that those of a sequence mostly lie side by
side: a CPU reads such a sequence without gathering it first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import islice

from .request import Request

Key = tuple[int, tuple[int, ...]]
# Content numbers: the root is the parent of every first block; a block not yet full, or not yet seen to be, has none.
ROOT = NONE = 0
RUNS_SEEN = 64  # runs of blank blocks among which the longest is chosen
STALE = -1  # holds keys and values of weights that are gone: neither it nor what follows it is ever registered


class BlockPool:
    """`num_blocks` blocks of `block_size` tokens. `hit_tokens` of `query_tokens` admitted ones were found here."""

    def __init__(self, num_blocks: int, block_size: int, caching: bool = True):
        assert num_blocks > 0
        assert block_size > 0
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.caching = caching
        self.hit_tokens = 0
        self.query_tokens = 0
        self.forked: set[int] = (
            set()
        )  # partly filled blocks that were shared: to be made `writable` before the next use
        self._blank = _Runs(num_blocks)
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._references = [0] * num_blocks
        self._content = [NONE] * num_blocks
        self._keys: list[Key | None] = [None] * num_blocks
        self._registered: dict[Key, int] = {}
        self._last_content = ROOT

    @property
    def num_free(self) -> int:
        """Blocks that can be had, idle ones included."""
        return self._blank.count + len(self._idle)

    @property
    def usage(self) -> float:
        """Share of the blocks that sequences hold."""
        return 1 - self.num_free / self.num_blocks

    def reuse(self, request: Request) -> int:
        """Let a request without blocks hold the longest chain of registered blocks that its tokens begin with.

        At least one token is left out, since the next is drawn from what the model says after it. Returns the number of
        tokens covered; the caller sets `num_computed`, and counts hits.
        """
        assert not request.blocks
        if not self.caching:
            return 0
        size = self.block_size
        blocks = request.blocks
        parent = ROOT
        for start in range(0, (request.num_tokens - 1) // size * size, size):
            block = self._registered.get((parent, tuple(request.ids(start, start + size))))
            if block is None:
                break
            if not self._references[block]:
                del self._idle[block]
            self._references[block] += 1
            blocks.append(block)
            parent = self._content[block]
        return len(blocks) * size

    def grow(self, request: Request, num_tokens: int, keep: int = 0) -> bool:
        """Give a request blocks for `num_tokens` tokens; False, and nothing changed, where they are too few.

        `keep` blocks must be left free, and one for the copy where `writable` will make one.
        """
        missing = -(-num_tokens // self.block_size) - len(request.blocks)
        copied = bool(self.forked) and self._next_block_is_shared(request)
        if missing <= 0 and not copied:
            return True
        if max(missing, 0) + copied + keep > self.num_free:
            return False
        while self._blank.count < missing:
            self._evict()
        for left in range(missing, 0, -1):
            block = self._blank.take(request.blocks[-1] + 1 if request.blocks else None, left)
            self._references[block] = 1
            request.blocks.append(block)
        return True

    def computed(self, request: Request) -> None:
        """Register the blocks that `num_computed` has filled, as far as their tokens are known.

        Where another block is registered for the same content already (two requests computed it at once), the request
        keeps its own, unregistered.
        """
        if not self.caching:
            return
        size, blocks, content = self.block_size, request.blocks, self._content
        full = min(request.num_computed, request.num_tokens) // size
        first = full
        while first and content[blocks[first - 1]] == NONE:
            first -= 1
        parent = content[blocks[first - 1]] if first else ROOT
        for index in range(first, full):
            if parent != STALE:
                parent = self._register(blocks[index], (parent, tuple(request.ids(index * size, (index + 1) * size))))
            content[blocks[index]] = parent

    def release(self, request: Request) -> None:
        """Let go of all blocks of a request."""
        blocks, request.blocks = request.blocks, []
        self.drop(blocks)

    def drop(self, blocks: Sequence[int]) -> None:
        """Let go of the blocks of one sequence, the last first: the end of a chain is of use to fewer sequences than
        its beginning, and to none without it, so its room is taken sooner."""
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block]:
                continue
            self.forked.discard(block)
            if self._keys[block] is not None:
                self._idle[block] = None
            else:
                self._content[block] = NONE
                self._blank.add(block)

    def fork(self, parent: Request, child: Request) -> None:
        """Let `child`, whose known tokens begin like its parent's, share what is computed of them.

        Its last token is left out, as in `reuse`. Sets the child's `blocks` and `num_computed`. No step under way may
        still write the parent's blocks.
        """
        assert not child.blocks
        assert not parent.in_flight
        child.num_computed = min(parent.num_computed, child.num_tokens - 1)
        child.blocks = parent.blocks[: -(-child.num_computed // self.block_size)]
        for block in child.blocks:
            self._references[block] += 1
        if child.num_computed % self.block_size:
            self.forked.add(child.blocks[-1])

    def writable(self, request: Request) -> tuple[int, int] | None:
        """Make sure that the block which the request's next token goes into is its own.

        Where others hold it too, the request gets another in its place, and the pair is returned: copy the first to the
        second before the step writes. `grow` has seen to it that there is one.
        """
        index = request.num_computed // self.block_size
        if index >= len(request.blocks) or request.blocks[index] not in self.forked:
            return None
        source = request.blocks[index]
        stale = self._content[source] == STALE
        if self._references[source] == 1:  # the others are gone; what it is known for is about to be overwritten
            self.forked.discard(source)
            self._unregister(source)
            copy = source
        else:
            if not self._blank.count:
                self._evict()
            copy = request.blocks[index] = self._blank.take(None, 1)
            self._references[copy] = 1
            self._references[source] -= 1
        if stale:
            self._content[copy] = STALE
        return None if copy == source else (source, copy)

    def forget(self) -> None:
        """Nothing computed so far is reused again, as when the weights have changed or a step has failed."""
        for block in self._idle:
            self._blank.add(block)
        self._idle.clear()
        self._registered.clear()
        for block, references in enumerate(self._references):
            self._keys[block] = None
            self._content[block] = STALE if references else NONE

    def check(self, requests: Iterable[Request], dropped: Iterable[Sequence[int]] = ()) -> None:
        """Every block is held as often as counted, by `requests` and in lists that are yet to be `drop`ped;
        AssertionError says which is not."""
        held = [0] * self.num_blocks
        for blocks in [*(request.blocks for request in requests), *dropped]:
            assert len(set(blocks)) == len(blocks), f"a sequence holds a block twice: {blocks}"
            for block in blocks:
                held[block] += 1
        if held != self._references:
            block = next(block for block, count in enumerate(held) if count != self._references[block])
            counted = self._references[block]
            raise AssertionError(
                f"block {block} leaked: {held[block]} sequences hold it, {counted} references are counted"
            )
        blank = self._blank.blocks()
        unused = sorted([*blank, *self._idle])
        free = [block for block, count in enumerate(held) if not count]
        assert unused == free, f"blocks that nobody holds are {free}, those on the free lists {unused}"
        assert all(self._keys[block] is not None for block in self._idle), "an idle block is not registered"
        assert all(self._content[block] == NONE and self._keys[block] is None for block in blank)
        keys = {key: block for block, key in enumerate(self._keys) if key is not None}
        assert keys == self._registered, "blocks are registered under other keys than their own"
        assert all(held[block] for block in self.forked), "a free block counts as shared"

    def _next_block_is_shared(self, request: Request) -> bool:
        index = request.num_computed // self.block_size
        if index >= len(request.blocks):
            return False
        block = request.blocks[index]
        return block in self.forked and self._references[block] > 1

    def _evict(self) -> None:
        """Make the idle block that was held least recently blank."""
        block, _ = self._idle.popitem(last=False)
        self._unregister(block)
        self._blank.add(block)

    def _register(self, block: int, key: Key) -> int:
        """The content number of what the block holds."""
        same = self._registered.get(key)
        if same is not None:
            return self._content[same]
        self._registered[key] = block
        self._keys[block] = key
        self._last_content += 1
        return self._last_content

    def _unregister(self, block: int) -> None:
        key = self._keys[block]
        if key is not None:
            del self._registered[key]
            self._keys[block] = None
        self._content[block] = NONE


class _Runs:
    """Blank blocks, as runs of neighbours."""

    def __init__(self, num_blocks: int):
        self.count = num_blocks
        self._ends = {0: num_blocks}  # behind the run, by its start
        self._starts = {num_blocks: 0}  # and the other way round

    def add(self, block: int) -> None:
        self.count += 1
        start = self._starts.pop(block, block)
        end = self._ends.pop(block + 1, block + 1)
        self._ends[start] = end
        self._starts[end] = start

    def take(self, wanted: int | None, room: int) -> int:
        """The block `wanted` where it is blank, else one that `room` blank ones begin with, if there are so many."""
        self.count -= 1
        if wanted is not None and wanted in self._ends:  # the block before it is held: a run can only begin with it
            end = self._ends.pop(wanted)
            if wanted + 1 == end:
                del self._starts[end]
            else:
                self._ends[wanted + 1] = end
                self._starts[end] = wanted + 1
            return wanted
        # A sequence that ends where the run begins will want to grow, and so will this one: it starts in the middle.
        start, end = max(islice(self._ends.items(), RUNS_SEEN), key=lambda run: run[1] - run[0])
        block = start + max(0, end - start - room) // 2 if start else 0
        del self._ends[start], self._starts[end]
        if start < block:
            self._ends[start] = block
            self._starts[block] = start
        if block + 1 < end:
            self._ends[block + 1] = end
            self._starts[end] = block + 1
        return block

    def blocks(self) -> list[int]:
        return [block for start, end in self._ends.items() for block in range(start, end)]
