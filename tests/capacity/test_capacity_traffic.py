"""Traffic: rates and lengths as asked for, files read whole or refused with their line."""

import json
import math

import numpy as np
import pytest

from gristmill.capacity.traffic import Arrival, Lengths, Traffic, drawn, mean_rate, read_trace
from gristmill.errors import GristmillError


def traffic(**changes):
    return Traffic(
        **({"rate": 4.0, "requests": 20_000, "prompt": Lengths(300, 1.0), "output": Lengths(50, 0.5)} | changes)
    )


@pytest.mark.parametrize(("process", "variation"), [("poisson", 1.0), ("constant", 0.0), ("bursts", 2.0)])
def test_rates_and_gaps_are_as_asked_for(process, variation):
    arrivals = drawn(traffic(process=process))
    assert mean_rate(arrivals) == pytest.approx(4, rel=0.05)
    gaps = np.diff([arrival.seconds for arrival in arrivals])
    assert gaps.std() / gaps.mean() == pytest.approx(variation, abs=0.06)


def test_lengths_have_their_mean_and_variation():
    arrivals = drawn(traffic())
    for name, mean, variation in (("prompt_tokens", 300, 1.0), ("output_tokens", 50, 0.5)):
        lengths = np.array([getattr(arrival, name) for arrival in arrivals])
        assert lengths.mean() == pytest.approx(mean, rel=0.03)
        assert lengths.std() / lengths.mean() == pytest.approx(variation, rel=0.08)
    assert {arrival.prompt_tokens for arrival in drawn(traffic(prompt=Lengths(7), requests=9))} == {7}
    assert max(arrival.prompt_tokens for arrival in drawn(traffic(prompt=Lengths(300, 1.0, most=400)))) == 400


def test_a_day_has_its_night():
    arrivals = drawn(traffic(process="diurnal", day_seconds=100.0, rate=20.0))
    hours = np.histogram([arrival.seconds % 100 for arrival in arrivals], bins=20, range=(0, 100))[0]
    assert mean_rate(arrivals) == pytest.approx(20, rel=0.05)
    assert hours.argmax() in (8, 9, 10, 11)
    assert hours.min() / hours.max() == pytest.approx(0.2, abs=0.06)


def test_common_beginnings_come_in_their_share():
    arrivals = drawn(traffic(prefix_share=0.25, prefix_tokens=100, prefix_groups=4, prompt=Lengths(10)))
    common = [arrival for arrival in arrivals if arrival.prefix_group is not None]
    assert len(common) / len(arrivals) == pytest.approx(0.25, abs=0.02)
    assert {arrival.prefix_group for arrival in common} == {0, 1, 2, 3}
    assert {arrival.prompt_tokens for arrival in common} == {110}


def test_the_same_seed_draws_the_same():
    assert drawn(traffic(requests=50), seed=5) == drawn(traffic(requests=50), seed=5)
    assert drawn(traffic(requests=50), seed=5) != drawn(traffic(requests=50), seed=6)


HEAD = "arrival_seconds,prompt_tokens,output_tokens\n"
PLAIN = '{"arrival_seconds": 0, "prompt_tokens": 2, "output_tokens": 1'
ROWS = [
    {"arrival_seconds": 7.5, "prompt_tokens": 10, "output_tokens": 4, "prefix_group": 2, "prefix_tokens": 8},
    {"arrival_seconds": 5, "prompt_tokens": 3, "output_tokens": 1},
]
EXPECTED = [Arrival(0.0, 3, 1), Arrival(2.5, 10, 4, 2, 8)]


def test_both_kinds_of_files_hold_the_same(tmp_path):
    lines = tmp_path / "trace.jsonl"
    lines.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n")
    assert read_trace(lines) == EXPECTED
    table = tmp_path / "trace.csv"
    table.write_text(
        "arrival_seconds,prompt_tokens,output_tokens,prefix_group,prefix_tokens,note\n7.5,10,4,2,8,hello\n5,3,1,,,\n"
    )
    assert read_trace(table) == EXPECTED


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", "arrival_seconds,prompt\n1,2\n", "no column prompt_tokens, output_tokens"),
        ("a.csv", f"{HEAD}1,2,3\n1,x,3\n", "line 3: prompt_tokens is 'x', no number"),
        ("a.csv", f"{HEAD}1,2\n", "line 2: output_tokens is missing"),
        ("a.jsonl", '{"arrival_seconds": 0, "prompt_tokens": 2.5, "output_tokens": 1}', "whole number of 1 or more"),
        ("a.jsonl", '{"arrival_seconds": -1, "prompt_tokens": 2, "output_tokens": 1}', "arrival_seconds is -1"),
        ("a.jsonl", '{"arrival_seconds": NaN, "prompt_tokens": 2, "output_tokens": 1}', "arrival_seconds is nan"),
        ("a.jsonl", PLAIN + '}\n{', "line 2: no JSON"),
        ("a.jsonl", "[1]", "line 1: no JSON object"),
        ("a.jsonl", PLAIN + ', "prefix_tokens": 1}', "without prefix_group"),
        ("a.jsonl", PLAIN + ', "prefix_group": 0, "prefix_tokens": 3}', "prefix_tokens [(]3[)] is more"),
        ("a.jsonl", "", "holds no request"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_refused_with_its_line(tmp_path, name, text, says):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(GristmillError, match=says):
        read_trace(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(GristmillError, match=r"absent\.csv: No such file"):
        read_trace(tmp_path / "absent.csv")
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(GristmillError, match="UTF-8"):
        read_trace(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rate": 0.0}, "rate"),
        ({"rate": math.nan}, "rate"),
        ({"requests": 0}, "requests"),
        ({"process": "even"}, "known are poisson, constant, bursts, diurnal"),
        ({"prompt": Lengths(0)}, "prompt must be a mean length of at least 1"),
        ({"output": Lengths(5, -1)}, "variation of output"),
        ({"output": Lengths(5, 0, 0)}, "most of output"),
        ({"prefix_share": 1.5}, "prefix_share"),
        ({"prefix_groups": 0}, "prefix_groups"),
        ({"day_seconds": 0.0}, "day_seconds"),
    ],
)
def test_traffic_that_cannot_be_is_refused(change, says):
    with pytest.raises(GristmillError, match=says):
        drawn(traffic(**change))
