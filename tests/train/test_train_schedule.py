import math

import pytest

from gristmill.train.config import TrainingConfig
from gristmill.train.schedule import learning_rate_at


def rates(**changes):
    config = TrainingConfig(**{"steps": 20, "batch_size": 1, "learning_rate": 0.5, "min_lr_ratio": 0.2} | changes)
    return [learning_rate_at(step, config) for step in range(config.steps)]


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
def test_the_warm_up_is_linear_and_ends_at_the_peak(schedule):
    assert rates(schedule=schedule, warmup_steps=4)[:5] == pytest.approx([0.125, 0.25, 0.375, 0.5, 0.5])


def test_cosine_is_halfway_down_halfway_and_lowest_in_the_last_step():
    falling = rates(warmup_steps=3)[3:]
    assert falling[0] == 0.5
    assert falling[8] == pytest.approx(0.3)
    assert falling[-1] == pytest.approx(0.1)
    assert falling[4] == pytest.approx(0.1 + 0.4 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert falling == sorted(falling, reverse=True)


def test_wsd_stays_at_the_peak_and_falls_linearly_in_its_last_share():
    steady = rates(schedule="wsd", decay_fraction=0.25, warmup_steps=2)
    assert steady[2:15] == [0.5] * 13
    assert steady[15:] == pytest.approx([0.42, 0.34, 0.26, 0.18, 0.1])


def test_wsd_falls_from_the_end_of_the_warm_up_where_its_share_reaches_into_it():
    assert rates(schedule="wsd", decay_fraction=1.0, warmup_steps=14)[14:] == pytest.approx(
        [0.5, 0.42, 0.34, 0.26, 0.18, 0.1]
    )


def test_constant_never_falls():
    assert rates(schedule="constant", warmup_steps=2)[2:] == [0.5] * 18


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_the_tail_is_flat_at_the_lowest_rate(schedule):
    tailed = rates(schedule=schedule, tail_steps=6)
    assert tailed[14:] == pytest.approx([0.1] * 6)
    assert tailed[13] > 0.101
    assert rates(schedule=schedule, tail_steps=1) == pytest.approx(rates(schedule=schedule))


def test_a_run_of_one_step_learns_at_the_peak():
    assert rates(steps=1) == rates(steps=1, schedule="wsd") == [0.5]


def test_a_tail_right_behind_the_warm_up_is_all_at_the_lowest_rate():
    assert rates(schedule="wsd", warmup_steps=14, tail_steps=6)[13:] == pytest.approx([0.5] + [0.1] * 6)
