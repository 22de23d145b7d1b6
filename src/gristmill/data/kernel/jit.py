"""How the kernel's functions are compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile on the first call, without the interpreter's lock, and keep the machine code on disk: beside the source
    file, or in the user's cache directory where that cannot be written to.

    Numba keeps the code as long as the file that holds `function` is unchanged, and does not look at other files. So a
    compiled function must not call one of another file, nor use a constant from there.
    """
    try:
        made = numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # no place to keep it: a read-only file system
        made = numba.njit(nogil=True)(function)
    return cast(Function, made)
