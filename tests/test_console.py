import io

from rich.console import Console

from gristmill import console as module
from gristmill.console import RunConsole
from gristmill.events import EventLog


def shown(monkeypatch, dones):
    """What a run without a terminal prints while one stage reports `dones` of 100 steps, a second apart each."""
    clock = iter(range(100_000))
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(module, "PLAIN_SECONDS", 0.0)
    out = io.StringIO()
    log = EventLog(None)
    with RunConsole(Console(file=out, force_terminal=False, width=200)) as run_console:
        log.subscribers.append(run_console)
        log.emit("stage_started", "base", fingerprint="f", resumed=True)
        for done in dones:
            log.emit("progress", "base", done=done, total=100, unit="steps")
        log.emit("stage_finished", "base", hash="0" * 64, seconds=1.5, figures={"loss": 2.0, "tokens": 1234567})
    return out.getvalue()


def test_the_rate_of_a_resumed_stage_counts_from_where_it_was_taken_up(monkeypatch):
    text = shown(monkeypatch, [90, 92, 94])
    assert "90/100 steps\n" in text
    assert "94/100 steps" in text
    assert "inf" not in text
    rates = [float(line.split(", ")[1].removesuffix("/s")) for line in text.splitlines() if "/s, " in line]
    assert rates
    assert max(rates) < 4, "two steps a second or so, not ninety"


def test_a_finished_stage_shows_its_first_figures(monkeypatch):
    assert "loss 2, tokens 1,234,567" in shown(monkeypatch, [100])
