"""What torchrun told this process about itself, and how a command ends under it.

torch is imported only where torchrun started several processes: every command asks.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from ...errors import GristmillError

if TYPE_CHECKING:
    from .team import Team


@dataclass(frozen=True)
class Launch:
    """One process out of `count`. `rank` counts over all machines, `local_rank` on this one, which runs `local_count`.
    `attempt` counts the times torchrun has started the processes again."""

    rank: int
    count: int
    local_rank: int
    local_count: int
    attempt: int = 0

    @property
    def main(self) -> bool:
        """Whether this is the process that leads: it alone reads the command, writes events and artifacts."""
        return self.rank == 0


def launched() -> Launch | None:
    """This process among those that torchrun (or another launcher that sets its variables) started; None where there
    is one process only. GristmillError where the variables contradict each other."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return None
    rank, count = _number("RANK"), _number("WORLD_SIZE")
    if count == 1:
        return None
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            raise GristmillError(f"WORLD_SIZE says {count} processes, but {name} is not set: start them with torchrun")
    if not 0 <= rank < count:
        raise GristmillError(f"RANK is {rank}, but WORLD_SIZE says {count} processes: start them with torchrun")
    local_rank = _number("LOCAL_RANK", rank)
    local_count = _number("LOCAL_WORLD_SIZE", count)
    return Launch(rank, count, local_rank, local_count, _number("TORCHELASTIC_RESTART_COUNT", 0))


def check_share(batch_size: int, name: str) -> None:
    """GristmillError where the batch, the value of key `name`, cannot be shared evenly by the processes."""
    launch = launched()
    if launch is None or batch_size % launch.count == 0:
        return
    fewer = batch_size // launch.count * launch.count
    near = f"{fewer} or {fewer + launch.count}" if fewer else str(launch.count)
    raise GristmillError(
        f"{name} ({batch_size}) is not a multiple of the {launch.count} processes that torchrun started: set it to "
        f"{near}, or start another number of them"
    )


def dismiss_others() -> None:
    """Main process: let the others go once they have done what they were called to. Nothing where there are none."""
    try:
        own = _team()
    except GristmillError:  # which has been said
        return
    if own is not None and own.launch.main:
        own.dismiss()


def say_once(message: str, say: Callable[[str], None]) -> None:
    """`say(message)`, with which this process ends, in one process out of all that fail."""
    try:
        own = _team()
    except GristmillError:
        own = None
    if own is None:
        say(message)
    else:
        own.fail(message, say)


def end_failed() -> NoReturn:
    """End this process, which failed and has said so, with exit code 1. One of several ends at once: threads of gloo
    may still hold tensors of sums that were under way, and one that lets go of its tensor while Python is taken down
    ends the process with SIGABRT."""
    if _one_of_several():
        dismiss_others()
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(1)
    sys.exit(1)


def _one_of_several() -> bool:
    try:
        return launched() is not None
    except GristmillError:  # which has been said
        return False


def _team() -> Team | None:
    if launched() is None:
        return None
    from .team import team

    return team()


def _number(name: str, default: int | None = None) -> int:
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    try:
        return int(text or "")
    except ValueError:
        raise GristmillError(f"{name} is {text!r}, not a number: start the processes with torchrun") from None
