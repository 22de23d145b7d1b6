"""The live page: a run directory, read while it is being written, as eight stages in a browser."""
