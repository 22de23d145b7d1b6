"""How the kernel's functions are compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile on the first call, without the interpreter's lock, and keep the machine code on disk; see
    `gristmill.data.kernel.jit`, whose rule holds here too: a compiled function calls none of another file, nor uses a
    constant from there.

    The functions do not count references to arrays (`_nrt`), so they cannot make any; the caller holds what they are
    given. Counting takes an atomic operation for each array at each call of a function that is not inlined, which took
    two thirds of the time of `pretokens.scan`.
    """
    options: dict[str, Any] = {"nogil": True, "_nrt": False}
    try:
        made = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no place to keep it: a read-only file system
        made = numba.njit(**options)(function)
    return cast(Function, made)
