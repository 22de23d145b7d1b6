"""`gristmill plan roofline` and `plan serve`: one page for people, one object for programs, one line for mistakes."""

import json
import math

import pytest
from typer.testing import CliRunner

from gristmill.cli import app
from gristmill.cli.text_plot import plot_lines, short
from gristmill.plan.plot import Curve, Plot


def run(*words):
    return CliRunner().invoke(app, ["plan", *words])


def test_roofline_says_where_decoding_stands():
    done = run("roofline", "llama-3-8b", "--device", "h100-sxm", "--batch", "32", "--seq-len", "8192")
    assert done.exit_code == 0, done.output
    text = " ".join(done.output.split())
    assert "never reaches the ridge (295 FLOP/byte)" in text
    assert "Beyond 393 tokens of context no batch is large enough." in text
    assert "Roofline of NVIDIA H100" in text
    assert "Intensity of decoding" not in text
    assert "Intensity of decoding" in run("roofline", "llama-3-8b", "--plots").output


def test_roofline_as_json_has_figures_sentences_and_plots():
    answer = json.loads(run("roofline", "deepseek-v3", "--device", "h200", "--dtype", "fp8", "--json").stdout)
    found = {one["id"]: one for one in answer["quantities"]}
    assert found["ridge.bf16"]["value"] == pytest.approx(989.4e12 / 4.8e12)
    assert found["decode.intensity"]["unit"] == "FLOP/byte"
    assert all(math.isfinite(one["value"]) for one in found.values())
    assert [plot["id"] for plot in answer["plots"]] == ["roofline", "decode_intensity"]
    assert answer["sentences"]
    assert answer["settings"] == {"device": "h200", "dtype": "fp8", "kv": "bf16", "batch": 32, "seq_len": 2048}


def test_serve_answers_with_and_without_a_concurrency():
    asked = ("serve", "llama-3-8b", "--weights", "int4", "--kv", "fp8", "--prompt-tokens", "800", "--json")
    free = {one["id"]: one["value"] for one in json.loads(run(*asked).stdout)["quantities"]}
    assert free["at.concurrency"] == free["best.concurrency"]
    many = {one["id"]: one["value"] for one in json.loads(run(*asked, "--concurrency", "700").stdout)["quantities"]}
    assert many["at.concurrency"] == 700
    assert many["at.tpot"] > free["at.tpot"]
    slow = json.loads(run(*asked, "--tpot", "1e-4").stdout)
    assert "best.ttft" not in {one["id"] for one in slow["quantities"]}
    assert "Not even one request at once keeps the targets." in slow["sentences"]
    assert slow["settings"]["ttft_seconds"] is None


def test_serve_fits_a_terminal():
    done = run("serve", "llama-3-8b", "--concurrency", "64")
    assert done.exit_code == 0, done.output
    assert max(len(line) for line in done.output.splitlines()) <= 80
    assert "Throughput" not in done.output
    assert "Throughput" in run("serve", "llama-3-8b", "--plots").output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("roofline", "llama-3-8b", "--device", "h100"), "did you mean h100-"),
        (("serve", "llama3-8b"), "did you mean 'llama-3-8b'"),
        (("roofline", "llama-3-8b", "--batch", "0"), "--batch must be at least 1"),
        (("roofline", "llama-3-8b", "--seq-len", "-4"), "--seq-len must be at least 1"),
        (("roofline", "llama-3-8b", "--dtype", "int3"), "use one of"),
        (("serve", "llama-3-8b", "--prompt-tokens", "0"), "--prompt-tokens must be at least 1"),
        (("serve", "llama-3-8b", "--concurrency", "-1"), "--concurrency must be at least 1"),
        (("serve", "llama-3-8b", "--tensor", "3"), "does not divide 32 attention heads"),
        (("serve", "llama-3-8b", "--tensor", "0"), "tensor parallelism must be at least 1"),
        (("serve", "llama-3-8b", "--pipeline", "99"), "longer than the model's 32 layers"),
        (("serve", "llama-3-8b", "--expert", "2"), "needs a model with experts"),
        (("serve", "llama-3-8b", "--acceptance", "nan"), "--acceptance must be from 0 to 1"),
        (("serve", "llama-3-8b", "--tpot", "-1"), "--tpot must be above 0"),
        (("serve", "llama-3-8b", "--read", "inf"), "--read"),
        (("serve", "llama-3-8b", "--memory-utilization", "1.5"), "--memory-utilization"),
        (("serve", "llama-3-8b", "--output-tokens", "9000"), "this model takes 8192"),
        (
            (
                "serve",
                "llama-3-70b",
            ),
            "or fewer bits",
        ),
    ],
)
def test_a_mistake_is_one_line(words, message):
    done = run(*words)
    assert done.exit_code == 1
    assert message in str(done.exception) + done.output
    assert "Traceback" not in done.output


def test_a_text_plot_puts_points_where_they_belong():
    straight = Curve("one", (1.0, 10.0, 100.0), (1.0, 10.0, 100.0))
    level = Curve("two", (1.0, 100.0), (10.0, 10.0), "points")
    plot = Plot("p", "Title", "x", "s", "y", "byte", (straight, level), log_x=True, log_y=True)
    lines = [line.plain for line in plot_lines(plot, width=21, height=11)]
    drawing = [line[11:] for line in lines[1:12]]
    assert drawing[0].strip(" ") == "··"
    assert drawing[0][20] == "·"
    assert drawing[10].startswith("·")
    assert drawing[5][10] == "·"
    assert drawing[5][0] == drawing[5][20] == "+"
    assert lines[-1].split() == ["·", "one", "+", "two"]
    assert lines[1].split()[0] == "100"


def test_short_numbers():
    assert [short(value) for value in (0.01, 25, 4000, 3.35e12)] == ["0.01", "25", "4k", "3.35T"]
