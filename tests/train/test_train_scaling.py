"""Shapes of a ladder, and what its command line refuses before anything is trained."""

from pathlib import Path

import pytest

from gristmill.cli.scaling import _numbers, _whole, table
from gristmill.errors import GristmillError
from gristmill.train.config import PretrainConfig
from gristmill.train.scaling import ladder, scaled

BASE = PretrainConfig.model_validate(
    {
        "model": {"hidden_size": 64, "num_layers": 4, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16,
                  "intermediate_size": 176, "max_seq_len": 16},
        "sequence_length": 16,
        "training": {"steps": 100, "batch_size": 4, "learning_rate": 0.01, "warmup_steps": 30},
    }
)  # fmt: skip


def test_shapes_keep_their_proportions():
    small = scaled(BASE.model, 2)
    assert (small.hidden_size, small.num_layers, small.num_kv_heads, small.intermediate_size) == (32, 2, 1, 88)
    assert small.head_dim == 16
    assert scaled(BASE.model, 4) == BASE.model
    assert scaled(BASE.model, 3).num_kv_heads == 1, "the number of key heads divides that of heads"
    with pytest.raises(GristmillError, match="heads must be 1 or more"):
        scaled(BASE.model, 0)


def test_rungs_see_the_tokens_that_were_asked_for():
    rungs = ladder(BASE, 100, [1, 2], [1, 3])
    assert [rung.name for rung in rungs] == ["h1-r1", "h1-r3", "h2-r1", "h2-r3"]
    for rung, ratio in zip(rungs, [1, 3, 1, 3], strict=True):
        assert rung.tokens == rung.config.training.steps * 64
        assert rung.tokens == pytest.approx(ratio * rung.params, abs=32)
        assert rung.config.training.warmup_steps <= rung.config.training.steps // 5
        assert (rung.config.init, rung.config.mup_base_width) == ("mup", 64)
        PretrainConfig.model_validate(rung.config.model_dump())


@pytest.mark.parametrize("text", ["1.5,2", "1,1,2", "0,1", "a", "inf"])
def test_numbers_that_are_none_are_refused(text):
    with pytest.raises(GristmillError, match="--heads"):
        _whole(text, "--heads")


def test_numbers():
    assert _whole("1,2", "--heads") == [1, 2]
    assert _numbers("0.5,2", "--budgets") == [0.5, 2]


@pytest.mark.parametrize(("alpha", "warned"), [((0.3, 0.4), False), ((0.02, 0.4), True), ((0.3, 1.5), True)])
def test_the_table_says_where_an_exponent_is_not_settled(alpha, warned):
    report = {
        "law": {"floor": 1.0, "alpha": 0.35, "beta": 0.3},
        "intervals": {"floor": (0.9, 1.1), "alpha": alpha, "beta": (0.2, 0.4)},
        "confidence": 0.9, "models": [], "budgets": [], "published": [],
    }  # fmt: skip
    assert ("do not settle alpha: sizes below are guesses" in table(report, Path("x"))) == warned
