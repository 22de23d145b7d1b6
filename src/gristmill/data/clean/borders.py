"""Where to cut a long text: the compiled search for the borders between its pieces."""

from __future__ import annotations

from ..kernel.jit import compiled


@compiled
def _grade(data, p, e):  # type: ignore[no-untyped-def]
    """How good a border begins at `p`: 0 a blank line before a line that is not indented (a heading, a definition),
    1 a blank line, 2 a line's end, 3 a word's end, 4 none."""
    byte = data[p]
    if byte == 32 or byte == 9:
        return 4 if data[p - 1] == 32 or data[p - 1] == 9 or data[p - 1] == 10 else 3
    if byte != 10 or data[p - 1] == 10:
        return 4
    if p + 1 >= e or data[p + 1] != 10:
        return 2
    while p < e and data[p] == 10:
        p += 1
    return 1 if p < e and (data[p] == 32 or data[p] == 9) else 0


@compiled
def _border(data, lowest, wanted, highest, e):  # type: ignore[no-untyped-def]
    """(end of a piece, start of the next): the best border above `lowest` and up to `highest`, of equal ones the
    nearest to `wanted`."""
    best, grade = -1, 4
    for distance in range(max(wanted - lowest, highest - wanted + 1)):
        for p in (wanted - distance, wanted + distance):
            if lowest < p <= highest:
                found = _grade(data, p, e)
                if found < grade:
                    best, grade = p, found
        if grade == 0:
            break
    if best < 0:
        best = wanted
        while best > lowest and data[best] & 0xC0 == 0x80:  # inside a character
            best -= 1
        return best, best
    following = best
    while following < e and (data[following] == 10 or (grade == 3 and (data[following] == 32 or data[following] == 9))):
        following += 1
    return best, following


@compiled
def find_borders(data, offsets, max_bytes, out):  # type: ignore[no-untyped-def]
    """Write (row, start, end) of every piece into `out` [3, n], and return how many there are.

    The rest of a text is divided into equal shares, none above `max_bytes`, so that no last piece is a snippet."""
    found = 0
    for row in range(len(offsets) - 1):
        start, e = offsets[row], offsets[row + 1]
        while e - start > max_bytes:
            rest = e - start
            shares = (rest + max_bytes - 1) // max_bytes
            even = (rest + shares - 1) // shares
            end, following = _border(data, start + even // 2, start + even, start + max_bytes, e)
            while end > start and (data[end - 1] == 32 or data[end - 1] == 9 or data[end - 1] == 10):
                end -= 1
            if end > start:
                out[0, found], out[1, found], out[2, found] = row, start, end
                found += 1
            start = following
        if e > start or start == offsets[row]:
            out[0, found], out[1, found], out[2, found] = row, start, e
            found += 1
    return found
