"""The one exception that users' mistakes raise; the command line prints its message as one line."""

from __future__ import annotations

import re


class GristmillError(ValueError):
    """Something the user can mend. The message names the file, line or field at fault and what to do."""


def plain_words(message: str) -> str:
    """A message of pydantic's, with which typer checks options too, without its prose: `must be an integer`."""
    message = message.replace("Value error, ", "").replace("Input should be", "must be")
    message = re.sub(r", unable to (parse string as an? \w+|interpret input)", "", message)
    return re.sub(r"\ba valid ", "a ", re.sub(r"\ba valid (?=[aeiou])", "an ", message))
