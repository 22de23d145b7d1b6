"""The one exception that users' mistakes raise; the command line prints its message as one line."""


class GristmillError(ValueError):
    """Something the user can mend. The message names the file, line or field at fault and what to do."""
