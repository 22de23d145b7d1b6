"""The fold of events: states, progress and curves, through resumes, failures and new runs in the same log."""

import pytest

from gristmill.page.state import RunState


def fold(*events) -> RunState:
    state = RunState()
    for seq, (time, stage, type, fields) in enumerate(events, start=1):
        state.apply({"seq": seq, "time": time, "stage": stage, "type": type, **fields})
    return state


def started(time=0.0, stage="base", resumed=False):
    return (time, stage, "stage_started", {"fingerprint": "f", "resumed": resumed})


def progress(time, done, total=100, unit="steps", stage="base"):
    return (time, stage, "progress", {"done": done, "total": total, "unit": unit})


def metric(time, step, stage="base", **values):
    return (time, stage, "metric", {"step": step, **values})


RUN = (0.0, None, "run_started", {"recipe": "quickstart", "stages": ["base"]})


def test_rate_is_taken_over_the_last_progress_events():
    state = fold(RUN, started(), *[progress(t, 10 * t) for t in range(1, 6)])
    assert state.stage("base").rate() == pytest.approx(10.0)
    slower = fold(
        RUN,
        started(),
        *[progress(t, 100 * t, 1e9) for t in range(100)],
        *[progress(100 + 10 * t, 9900 + t, 1e9) for t in range(1, 70)],
    )
    assert slower.stage("base").rate() == pytest.approx(0.1, rel=0.05)


def test_rate_is_unknown_from_one_event_or_without_movement():
    assert fold(RUN, started(), progress(1, 5)).stage("base").rate() is None
    assert fold(RUN, started(), progress(1, 5), progress(2, 5)).stage("base").rate() is None
    assert fold(RUN, started(), progress(1, 5), progress(1, 6)).stage("base").rate() is None


def test_each_part_of_a_stage_counts_anew():
    state = fold(
        RUN, started(), progress(1, 50), progress(2, 100), progress(3, 1, 8, "files"), progress(4, 2, 8, "files")
    )
    stage = state.stage("base")
    assert (stage.unit, stage.total, stage.rate()) == ("files", 8, 1.0)
    again = fold(RUN, started(), progress(1, 90), progress(2, 100), progress(3, 10), progress(4, 30))
    assert again.stage("base").rate() == pytest.approx(20.0)


def test_a_total_that_moves_is_no_total():
    state = fold(RUN, started(), *[progress(t, t, t + 1, "documents") for t in range(1, 5)])
    assert state.stage("base").open_ended
    assert state.stage("base").rate() == pytest.approx(1.0)


def test_a_resumed_stage_keeps_its_curve_and_overwrites_what_it_computes_again():
    state = fold(
        RUN, started(), metric(1, 5, loss=5.0), metric(2, 10, loss=4.0),
        (9.0, None, "run_started", {"recipe": "quickstart", "stages": []}),
        started(10.0, resumed=True), metric(11, 10, loss=4.5), metric(12, 15, loss=3.0),
    )  # fmt: skip
    losses = {step: values["loss"] for step, values in state.stage("base").metrics.items()}
    assert losses == {5: 5.0, 10: 4.5, 15: 3.0}


def sample(time, step, text):
    return (time, "base", "sample", {"prompt": "p", "text": text, "step": step})


def test_what_lies_ahead_of_a_run_that_went_back_is_no_part_of_it():
    """After a rollback, or a kill between two checkpoints: else its last entries would be those of the lost future."""
    state = fold(
        RUN, started(), metric(1, 5, loss=5.0), sample(2, 10, "old"), metric(2, 10, loss=4.0), sample(3, 20, "lost"),
        metric(3, 20, loss=9.0), metric(4, 25, loss=9.5),
        metric(5, 10, loss=4.1), sample(6, 15, "new"), metric(6, 15, loss=3.9),
    )  # fmt: skip
    stage = state.stage("base")
    assert {step: values["loss"] for step, values in stage.metrics.items()} == {5: 5.0, 10: 4.1, 15: 3.9}
    assert [found["text"] for found in stage.samples] == ["old", "new"]


def test_a_sample_that_is_made_again_takes_the_old_ones_place():
    state = fold(RUN, started(), sample(1, 10, "old"), metric(1, 10, loss=4.0), started(2, resumed=True),
                 sample(3, 10, "new"), metric(3, 10, loss=4.0))  # fmt: skip
    assert [found["text"] for found in state.stage("base").samples] == ["new"]


def test_a_stage_begun_anew_forgets_its_curve():
    state = fold(
        RUN, started(), metric(1, 5, loss=5.0), (2.0, "base", "sample", {"prompt": "p", "text": "t"}), started(3.0)
    )
    assert state.stage("base").metrics == {}
    assert not state.stage("base").samples


def test_a_new_run_ends_what_a_killed_one_left_running():
    state = fold(RUN, started(), progress(1, 5), (2.0, None, "run_started", {"recipe": "quickstart", "stages": []}))
    assert state.stage("base").state == "waiting"
    assert state.state == "running"


def test_failure_names_its_error_and_a_new_run_forgets_it():
    failed = (
        RUN,
        started(),
        (1.0, "base", "stage_failed", {"error": "no memory"}),
        (1.0, None, "run_failed", {"error": "no memory"}),
    )
    state = fold(*failed)
    assert (state.state, state.error, state.stage("base").state, state.stage("base").error) == (
        "failed",
        "no memory",
        "failed",
        "no memory",
    )
    state = fold(*failed, RUN)
    assert (state.state, state.error, state.stage("base").state, state.stage("base").error) == (
        "running",
        None,
        "waiting",
        None,
    )


def test_a_run_that_fails_takes_its_running_stage_with_it():
    state = fold(RUN, started(), (1.0, None, "run_failed", {"error": "interrupted"}))
    assert state.stage("base").state == "failed"


def test_skipped_and_finished_stages():
    state = fold(
        RUN,
        (1.0, "corpus", "stage_skipped", {"hash": "h"}),
        started(),
        (5.0, "base", "stage_finished", {"hash": "h", "seconds": 4.5, "figures": {}}),
        (6.0, None, "run_finished", {"seconds": 6.0}),
    )
    assert state.stage("corpus").state == "fresh"
    assert (state.stage("base").state, state.stage("base").seconds) == ("done", 4.5)
    assert (state.state, state.seconds, state.seq, state.last_event) == ("finished", 6.0, 5, 6.0)


@pytest.mark.parametrize(
    "type", ["progress", "metric", "sample", "note", "stage_started", "stage_finished", "stage_failed", "unheard_of"]
)
def test_events_that_lack_their_fields_break_nothing(type):
    for stage in ("base", None, 7):
        RunState().apply({"seq": 1, "type": type, "stage": stage})
    wrong = {"done": "a", "total": None, "unit": 3, "step": "x", "loss": None, "seconds": "s", "time": "yesterday"}
    RunState().apply({"seq": 1, "type": type, "stage": "base", **wrong})


def test_a_copy_is_left_alone_by_later_events():
    state = fold(RUN, started(), metric(1, 5, loss=5.0), progress(1, 1))
    copy = state.copy()
    state.apply({"seq": 9, "time": 2.0, "stage": "base", "type": "metric", "step": 10, "loss": 4.0})
    state.apply({"seq": 10, "time": 3.0, "stage": "base", "type": "stage_finished", "seconds": 1.0})
    assert list(copy.stage("base").metrics) == [5]
    assert (copy.stage("base").state, copy.seq) == ("running", 4)
