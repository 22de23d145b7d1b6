"""The guide's table: every row within its tolerance and verdict, and nothing of it copied."""

import csv
import json
import math
import re
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gristmill.cli import main
from gristmill.cli.plan import plan_app
from gristmill.errors import GristmillError
from gristmill.model.presets import preset_names
from gristmill.plan import guide
from gristmill.plan.guide_facts import FACTS
from gristmill.plan.guide_page import page
from gristmill.plan.guide_table import guide_path, read_table
from gristmill.plan.guide_verdict import Claim, bound_of, judge, rounds_to

ROOT = Path(__file__).parents[2]
ROWS = {row.id: row for row in read_table(guide_path())}


@pytest.fixture(scope="module")
def checks():
    return guide.check_table()


def without(path, *columns, **blanked):
    """The guide's table at `path`, some columns taken out and others given another text."""
    with guide_path().open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name not in columns]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(row | blanked for row in rows)
    return path


def test_every_row_is_within_its_tolerance_and_verdict(checks):
    assert len(checks) == 213
    assert [(one.row.id, one.value, one.verdict, one.error) for one in checks if not one.passed] == []
    assert all(one.within_tolerance and one.verdict and one.formula for one in checks)
    verdicts = [one.row.verdict for one in checks]
    assert [one.verdict for one in checks] == verdicts


def evaluated(formula):
    """What a printed formula comes to, read as arithmetic: words and what stands behind a semicolon explain."""
    functions = {"ceil": math.ceil, "floor": math.floor, "log10": math.log10, "sqrt": math.sqrt, "exp": math.exp,
                 "ln": math.log, "min": min}  # fmt: skip
    text = re.sub(r"(?<=\d),(?=\d{3})", "", formula.partition(";")[0]).replace("^", "**")
    text = re.sub(rf"\b(?!(?:{'|'.join(functions)})\()[a-zA-Z][a-zA-Z-]*\b", "", text)
    return eval(text, {"__builtins__": {}}, functions)


def test_every_printed_formula_comes_to_its_value(checks):
    for one in checks:
        assert evaluated(one.formula) == pytest.approx(one.value, rel=1e-8), one.row.id
    for name in preset_names():
        for quantity in ("param_count", "active_param_count", "attention_params", "ffn_params", "norm_params"):
            found = guide.answer(quantity, {"model": name})
            assert evaluated(found.formula) == found.value, (name, quantity)


def test_values_do_not_come_from_what_was_expected_or_printed(checks, tmp_path):
    bare = guide.check_table(without(tmp_path / "bare.csv", "expected", "guide_says", "verdict", "note"))
    assert [one.value for one in bare] == [one.value for one in checks]
    assert {(one.within_tolerance, one.verdict) for one in bare} == {(None, None)}
    other = guide.check_table(without(tmp_path / "other.csv", expected="7", guide_says="7", verdict="agrees"))
    assert [one.value for one in other] == [one.value for one in checks]
    assert [one.row.id for one in other if one.within_tolerance] == ["F17m"]  # 2^3 - 1


def test_verdicts_do_not_come_from_the_verdict_column(checks, tmp_path):
    for told in ("agrees", "wrong", ""):
        again = guide.check_table(without(tmp_path / "told.csv", verdict=told))
        assert [one.verdict for one in again] == [one.verdict for one in checks]
        assert [one.verdict_holds for one in again] == [not told or one.verdict == told for one in checks]


def test_verdicts_follow_the_printed_number():
    rows = [row for row in ROWS.values() if not bound_of(row.note)]
    exact = [replace(row, printed=repr(guide.value(row.quantity, row.inputs)), verdict="") for row in rows]
    assert {one.verdict for one in guide.check(exact)} == {"agrees"}
    far = [replace(row, printed=repr(17.3 * float(row.expected or 1)), verdict="") for row in rows]
    # Other rows may tell the right number of the same inputs: then the far one contradicts them.
    own = {row.id for row, fact in ((row, FACTS.get(row.id)) for row in rows) if fact and fact.kind == "own"}
    assert {one.verdict for one in guide.check(far) if one.row.id not in own} == {"wrong"}


def test_conditions_are_computed_and_hold():
    for id, fact in FACTS.items():
        row = ROWS[id]
        if fact.kind in ("needs", "reading"):
            meant = fact.value(row.quantity, row.inputs, guide.value)
            printed = float(row.printed)
            assert meant >= printed if fact.at_least else rounds_to(meant, row.printed), id
        elif fact.kind == "own":
            assert not rounds_to(guide.value(row.quantity, row.inputs), row.printed), id


def test_a_condition_that_does_not_lead_to_the_printed_number_excuses_nothing():
    row = ROWS["C8a"]
    claim = Claim("1", "GPU")
    fact = replace(FACTS["C8a"], inputs={"required_bytes": 200e9})
    assert judge(2, claim, FACTS["C8a"], row.quantity, row.inputs, guide.value) == "off"
    assert judge(2, claim, fact, row.quantity, row.inputs, guide.value) == "wrong"


def test_no_fact_is_idle():
    for id, fact in FACTS.items():
        row = ROWS[id]
        claim = Claim(row.printed, guide.FORMULAS[row.quantity].unit, bound_of(row.note))
        assert judge(guide.value(row.quantity, row.inputs), claim) != row.verdict, (id, fact.kind)


def test_own_numbers_are_those_that_other_rows_print():
    def printed(id):
        return float(ROWS[id].printed)

    assert ROWS["C4b"].inputs["sequences"] == printed("C3a")
    assert ROWS["F7b"].inputs["optimizer_bytes_sharded"] == printed("F7a")
    assert ROWS["F7c"].inputs["optimizer_bytes_sharded"] == printed("F7a")
    states = ROWS["F12c"].inputs
    assert states["optimizer_bytes_per_param"] / states["weight_bytes_per_param"] == printed("F12b") / printed("F12a")
    assert ROWS["H2b"].inputs["cheap_price_ratio"] == 1 / printed("H3c")
    assert all(id in ROWS for fact in FACTS.values() for id in fact.rows)


def test_facts_are_of_one_claim_alone():
    other_number = replace(ROWS["C8a"], printed="9", verdict="")
    other_card = replace(ROWS["C8a"], inputs={**ROWS["C8a"].inputs, "memory_bytes": 96e9}, verdict="")
    assert [one.verdict for one in guide.check([other_number, other_card])] == ["wrong", "wrong"]


def test_a_number_that_the_table_has_right_elsewhere_makes_another_contradict():
    row = ROWS["D3a"]
    other = replace(row, id="x1", printed="8", verdict="")
    assert guide.check([other])[0].verdict == "wrong"
    assert guide.check([other, replace(row, id="x2")])[0].verdict == "contradicts"


@pytest.mark.parametrize(
    ("value", "printed", "unit", "verdict"),
    [
        (295.2, "295", "1", "agrees"),
        (295.2, "300", "1", "agrees"),
        (295.6, "295", "1", "agrees"),  # within half a percent
        (299.2, "295", "1", "off"),
        (2.95, "100", "1", "wrong"),
        (290, "100", "1", "off"),
        (350, "100", "1", "wrong"),
        (1.208, "1", "1", "wrong"),  # rounding does not excuse a fifth
        (1.208e9, "1000000000", "param", "off"),  # as an order of magnitude
        (2**30, "1000000000", "byte", "unit: right only in GiB"),
        (2**30, "1.07e9", "byte", "agrees"),
        (2**30, "1e9", "1", "agrees"),
        (39.77e9, "37e9", "byte", "unit: right only in GiB"),
        (131_072, "128000", "token", "unit: right only in GiB"),
        (3.33, "10", "1", "wrong"),
        (0, "5", "sequence", "wrong"),
        (0, "0", "sequence", "agrees"),
        (-128, "-128", "1", "agrees"),
        (3.0, "-3", "1", "wrong"),
    ],
)
def test_judging_by_the_number_alone(value, printed, unit, verdict):
    assert judge(value, Claim(printed, unit)) == verdict


def test_bounds():
    assert bound_of("bound <= expected: true") == "<="
    assert bound_of("bound >= expected") == ">="
    assert bound_of("the bound <= expected") == ""
    assert judge(10, Claim("1", "1", "<=")) == "agrees"
    assert judge(10, Claim("17", "1", "<=")) == "wrong"
    assert judge(10, Claim("17", "1", ">=")) == "agrees"


def test_the_page_is_current(checks):
    assert (ROOT / "docs" / "planner-guide.md").read_text() == page(checks)
    assert "planner-guide.md" in (ROOT / "docs" / "planner.md").read_text()


def test_the_table_is_in_the_package():
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["gristmill"]
    assert any(guide_path().match(f"gristmill/{pattern}") for pattern in data)


# The command.


def run(*arguments):
    return CliRunner().invoke(plan_app, ["guide", *map(str, arguments)])


def test_command_prints_rows_with_formulas():
    result = run("--id", "C2a")
    assert result.exit_code == 0
    assert "2 * 80 * 8 * 128 * 2" in result.output
    assert "1.342 GB" in result.output
    assert "1.25 GiB" in result.output
    assert "wrong" in result.output
    assert "1 rows: 1 wrong" in result.output
    everything = run()
    assert everything.exit_code == 0
    assert "213 rows: 137 agrees, 4 unit, 33 off, 11 contradicts, 28 wrong" in everything.output


def test_ids_are_printed_as_they_are(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([{"id": "[red]a[/]", "quantity": "tokens_per_s", "inputs": {"seconds_per_token": 1}}]))
    assert "[red]a[/]" in run("--table", path).output


def test_command_prints_json():
    result = run("--json", "--only", "contradicts")
    rows = json.loads(result.output)
    assert len(rows) == 11
    for row in rows:
        assert list(row) == ["id", "value", "unit", "expected", "within_tolerance", "verdict", "formula"]
        assert row["verdict"] == "contradicts"


def test_command_refuses_what_it_does_not_know():
    for arguments, said in ((("--only", "right"), "wrong"), (("--id", "Z9"), "no such row"), (("--id", "C2"), "C2a")):
        result = run(*arguments)
        assert isinstance(result.exception, GristmillError)
        assert said in str(result.exception)


def test_nothing_is_lost(tmp_path):
    """A bad row is told in its place, the others are computed, and the exit code says so."""
    path = tmp_path / "mine.csv"
    lines = [
        "id,quantity,inputs,expected",
        'ok,tokens_per_s,"{""seconds_per_token"":0.5}",2',
        'name,token_per_s,"{""seconds_per_token"":0.5}",2',
        'json,tokens_per_s,"{""seconds_per_token"":}",2',
        "missing,tokens_per_s,{},2",
        'zero,tokens_per_s,"{""seconds_per_token"":0}",2',
        'nan,tokens_per_s,"{""seconds_per_token"":NaN}",2',
        'typo,model_load_seconds,"{""weight_bytes"":1,""read_byte_per_s"":5}",2',
        'cells,tokens_per_s,"{""seconds_per_token"":0.5}",2,3,4',
        'number,tokens_per_s,"{""seconds_per_token"":0.5}",two',
        'far,tokens_per_s,"{""seconds_per_token"":0.5}",2.1',
        'last,tokens_per_s,"{""seconds_per_token"":0.25}",4',
    ]
    path.write_text("\n".join(lines))
    result = run("--table", path, "--json")
    assert result.exit_code == 1
    assert "9 of 11 rows: 8 cannot be computed (name, json, missing, zero, nan, ...)" in str(result.exception)
    rows = {row["id"]: row for row in json.loads(result.output)}
    assert list(rows) == [line.split(",")[0] for line in lines[1:]]
    assert (rows["ok"]["value"], rows["last"]["value"]) == (2, 4)
    for id, said in {
        "name": "did you mean 'tokens_per_s'",
        "json": "inputs is not JSON",
        "missing": "'seconds_per_token' is missing",
        "zero": "above 0",
        "nan": "finite",
        "typo": "'read_bytes_per_s' is missing; the row gives 'read_byte_per_s'",
        "cells": "more cells",
        "number": "expected must be",
    }.items():
        assert rows[id]["value"] is None
        assert said in rows[id]["error"], id
        line = next(number for number, line in enumerate(lines, 1) if line.startswith(id))
        assert f"mine.csv line {line} ({id})" in rows[id]["error"]
    assert rows["far"]["within_tolerance"] is False
    assert "error" not in rows["far"]
    assert run("--table", path).exit_code == 1
    assert run("--table", path, "--id", "ok").exit_code == 0


def test_the_exit_code_of_the_whole_command(tmp_path, monkeypatch, capsys):
    path = tmp_path / "mine.csv"
    path.write_text('quantity,inputs,expected\ntokens_per_s,"{""seconds_per_token"":0.5}",3\n')
    codes = {}
    for arguments in (("--id", "A1a"), ("--table", str(path)), ("--table", str(path), "--json")):
        monkeypatch.setattr(sys, "argv", ["gristmill", "plan", "guide", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        codes[arguments] = ended.value.code
    assert list(codes.values()) == [0, 1, 1]
    said = capsys.readouterr()
    assert "1 of 1 rows: 1 outside of their tolerance (row 1)" in said.err
    assert json.loads(said.out[said.out.index("[\n") :])[0]["value"] == 2


def test_tolerance_is_relative_to_what_was_expected():
    row = replace(ROWS["A9b"], printed="", verdict="")  # 1 / 0.025 = 40
    for expected, tolerance, within in ((39.81, 0.005, True), (39.79, 0.005, False), (40, 0, True), (40.1, 0, False)):
        one = guide.check([replace(row, expected=expected, rel_tol=tolerance)])[0]
        assert (one.within_tolerance, one.passed) == (within, within)
    unable = guide.check([replace(row, expected=None, inputs={})])[0]
    assert (unable.within_tolerance, unable.verdict, unable.passed) == (None, None, False)


def test_tables_in_json_and_with_few_columns(tmp_path):
    path = tmp_path / "mine.json"
    rows = [
        {"quantity": "tokens_per_s", "inputs": {"seconds_per_token": 0.5}},
        {"id": "b", "quantity": "tokens_per_s", "inputs": '{"seconds_per_token": 0.5}', "guide_says": 2, "unit": None},
        {"id": "c", "quantity": "kv_cache_bytes", "inputs": {"kv_bytes_per_token": 2**17, "seq_len": 2**17},
         "expected": 16, "unit": "GiB", "rel_tol": 0, "guide_says": 16},
        {"id": "d", "quantity": "tokens_per_s", "inputs": {"seconds_per_token": 0.5}, "unit": "byte"},
        7,
    ]  # fmt: skip
    for text in (json.dumps(rows), json.dumps({"rows": rows})):
        path.write_text(text)
        found = guide.check_table(path)
        assert [one.row.id for one in found] == ["row 1", "b", "c", "d", "row 5"]
        assert [one.value for one in found] == [2, 2, 16, None, None]
        assert [one.verdict for one in found] == [None, "agrees", "agrees", None, None]
        assert "column unit says 'byte'" in found[3].error
        assert found[2].within_tolerance is True


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "id,inputs\n1,{}\n", "no column 'quantity'"),
        ("a.csv", "", "no column 'quantity'"),
        ("a.csv", "quantity,inputs\n", "holds no rows"),
        ("a.json", "[", "is not JSON"),
        ("a.json", "3", "must hold a list"),
        ("a.json", "[]", "holds no rows"),
    ],
)
def test_files_that_are_no_tables(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(GristmillError, match=said):
        guide.check_table(tmp_path / name)
    with pytest.raises(GristmillError, match="does not exist"):
        guide.check_table(tmp_path / "none.csv")


BAD = [0, -1, math.nan, math.inf, 10**400, True, "7", None, [], {}, [[]], 1e308, 1e-308, 0.5, 10**17]


def test_no_input_ends_in_a_traceback():
    for row in ROWS.values():
        for name in row.inputs:
            for bad in BAD:
                found = computed(row.quantity, {**row.inputs, name: bad})
                assert "\n" not in found if isinstance(found, str) else math.isfinite(found), (row.id, name, bad)


def computed(quantity, inputs):
    """The value, or what was said instead."""
    try:
        return guide.value(quantity, inputs)
    except GristmillError as error:
        return str(error)


def test_negative_and_unnumbered_inputs_are_refused_by_name():
    shape = {"vocab_size", "d_model", "n_layers", "n_heads", "n_kv_heads", "head_dim", "d_ff"}
    for row in ROWS.values():
        for name, given in row.inputs.items():
            if isinstance(given, bool | str | list):
                continue
            if name in shape and name not in needed(row):
                continue  # a row may give more of its model's shape than its formula reads
            for bad in (-given if given else -1, math.nan, math.inf):
                with pytest.raises(GristmillError, match=name):
                    guide.value(row.quantity, {**row.inputs, name: bad})


def needed(row):
    """Inputs without which the row cannot be computed, its labels taken away; what is then said names each."""
    bare = {name: given for name, given in row.inputs.items() if name not in ("model", "hardware")}
    said = {name: computed(row.quantity, {other: bare[other] for other in bare if other != name}) for name in bare}
    found = {name: text for name, text in said.items() if isinstance(text, str)}
    assert all(repr(name) in text for name, text in found.items()), found
    return set(found)
