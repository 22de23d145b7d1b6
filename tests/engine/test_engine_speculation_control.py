"""When drafts are made, by given times of steps, and the figures."""

from __future__ import annotations

import pytest
from speculation_fixtures import request, speculator

from gristmill.engine.speculation import control
from gristmill.engine.speculation.control import Control, Figures, Pace
from gristmill.engine.speculation.proposal import Draft


def drive(controller, batch, steps, plain, drafted, gain):
    """Which steps had drafts, where these take `drafted` seconds for `gain` tokens a sequence, others `plain` for 1."""
    kinds = []
    for _ in range(steps):
        wanted = controller.allows(batch)
        tokens = round(batch * gain) if wanted else batch
        controller.took(batch, drafted if wanted else plain, tokens, wanted)
        kinds.append(wanted)
    return kinds


def test_the_first_steps_are_a_baseline_and_drafts_that_pay_stay():
    kinds = drive(Control(16), 1, 200, plain=1.0, drafted=1.5, gain=2.0)
    assert kinds == [False] * control.BASELINE + [True] * 196


def test_drafts_that_lose_are_left_off_for_ever_longer():
    kinds = drive(Control(16), 4, 5000, plain=1.0, drafted=1.5, gain=1.25)
    assert kinds[: control.BASELINE + control.TRIAL] == [False] * control.BASELINE + [True] * control.TRIAL
    pauses = "".join("x" if kind else "." for kind in kinds).strip(".").split("x" * control.TRIAL)[1:]
    assert [len(pause) for pause in pauses][:7] == [32, 64, 128, 256, 512, 512, 512]
    assert sum(kinds) / len(kinds) < 0.03


def test_drafts_come_back_when_the_text_changes():
    controller = Control(16)
    drive(controller, 1, 400, plain=1.0, drafted=1.3, gain=1.0)
    kinds = drive(controller, 1, 1200, plain=1.0, drafted=1.3, gain=4.0)
    assert sum(kinds[-500:]) > 480
    kinds = drive(controller, 1, 600, plain=1.0, drafted=1.3, gain=1.0)
    assert sum(kinds[-500:]) < 50, "and go when it changes again"


def test_a_long_run_of_drafts_measures_plain_steps_anew():
    """Plain steps were slow once (a short draft pays) and are fast now."""
    controller = Control(16)
    drive(controller, 1, 20, plain=2.0, drafted=1.5, gain=1.5)
    kinds = drive(controller, 1, 1000, plain=0.5, drafted=1.5, gain=1.5)
    assert sum(kinds[:300]) > 200
    assert sum(kinds[-600:]) < 40


def test_sizes_of_batch_are_judged_apart_and_large_ones_never_draft():
    controller = Control(16)
    drive(controller, 1, 100, plain=1.0, drafted=1.1, gain=3)
    drive(controller, 12, 100, plain=1.0, drafted=6.0, gain=3)
    assert controller.allows(1)
    assert not controller.allows(12)
    assert drive(controller, 17, 50, 1.0, 1.0, 9) == [False] * 50
    assert not controller.allows(0)


def test_one_interruption_does_not_count():
    pace = Pace()
    for seconds in (1.0, 1.0, 500.0, 1.0):
        pace.add(seconds, 2.0)
    assert pace.rate == pytest.approx(2.0)


def test_figures():
    assert Figures().acceptance_length == 1
    made = speculator()
    asked = request([1, 2, 1, 2])
    made.verified(asked, 8, 3)
    made.verified(asked, 4, 0)
    assert made.figures == Figures(drafts=2, draft_tokens=12, accepted_tokens=3)
    assert made.figures.acceptance_length == 2.5


class Fixed:
    """Guesses the same token for ever; keeps what it was told."""

    def __init__(self):
        self.most, self.told = [], []

    def ready(self, request):
        return True

    def draft(self, requests, most):
        self.most.append(list(most))
        return [Draft([7] * count) for count in most]

    def verified(self, request, drafted, accepted):
        self.told.append((drafted, accepted))

    def forget(self, request):
        self.told.append("gone")


def waiting_for_drafts(**params):
    asked = request([1, 2, 3], **{"max_tokens": 100, **params})
    asked.num_computed = 2
    return asked


def test_drafts_are_about_as_long_as_what_was_accepted():
    made = speculator(proposer := Fixed(), num_tokens=8)
    asked = waiting_for_drafts()
    lengths = []
    for accepted in [0, 0, 0, 0, 1, 1, 1, 99, 99, 99, 99, 99]:
        made.propose([asked])
        lengths.append(len(asked.drafts))
        made.verified(asked, len(asked.drafts), min(accepted, len(asked.drafts)))
    assert lengths == sorted(lengths[:4], reverse=True) + lengths[4:]
    assert lengths[0] == 8
    assert lengths[4] == 2
    assert lengths[-1] == 8
    assert len(proposer.told) == 12


def test_requests_that_drafts_are_not_for():
    made = speculator(Fixed())
    reading = waiting_for_drafts()
    reading.num_computed = 1
    full = waiting_for_drafts(max_tokens=1)
    assert not made.propose([reading, full])
    assert reading.drafts == full.drafts == []


def test_tokens_in_flight_are_awaited():
    """With a step launched ahead nobody gets drafts, and the engine is told to read it first."""
    made = speculator(Fixed())
    ahead, known = waiting_for_drafts(), waiting_for_drafts()
    known.id = 1
    ahead.num_computed, ahead.in_flight = 3, 1
    assert made.propose([ahead, known])
    assert ahead.drafts == known.drafts == []
    ahead.output_ids, ahead.in_flight = [5], 0
    assert not made.propose([ahead, known])
    assert ahead.drafts
    assert known.drafts


def test_drafts_go_when_the_batch_grows_and_when_a_request_ends():
    made = speculator(proposer := Fixed(), max_batch=2)
    asked = [waiting_for_drafts() for _ in range(3)]
    for number, one in enumerate(asked):
        one.id = number
    made.propose(asked[:2])
    assert asked[0].drafts
    assert made.given(asked[0])[0].tokens == asked[0].drafts
    made.propose(asked)
    assert [one.drafts for one in asked] == [[], [], []]
    made.propose(asked[:2])
    made.verified(asked[0], 2, 1)
    made.forget(asked[0])
    assert proposer.told[-1] == "gone"
    assert asked[0].id not in made._given
    assert asked[0].id not in made._accepted
    made.propose(asked[1:2])


def test_a_request_that_is_penalized_or_searches_gets_none():
    for params in (
        {"repetition_penalty": 1.1},
        {"presence_penalty": 0.5},
        {"frequency_penalty": -0.5},
        {"beam_width": 4},
    ):
        made = speculator(Fixed())
        asked = waiting_for_drafts(**params)
        made.propose([asked])
        assert asked.drafts == []
