"""Readers of document formats: one file per format, each `read(stream, name, ...)` yielding `Extracted`."""
