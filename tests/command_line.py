"""Calling the command line in this process, as a user would."""

import sys

import pytest

from gristmill import cli


def call(monkeypatch, capsys, *arguments):
    """(exit code, standard output, standard error) of one call."""
    monkeypatch.setattr(sys, "argv", ["gristmill", *map(str, arguments)])
    monkeypatch.setattr(cli, "_show_traceback", [False])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err
