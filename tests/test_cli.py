"""The command line: help with examples, one clear line for each mistake, exit codes."""

import errno
import json
import socket
import subprocess
import sys

import pytest
import typer

from command_line import call
from gristmill import cli
from gristmill.cli import main

VERBS = (
    "run status verify page pretrain scaling sft dpo quantize evaluate inspect import export generate chat serve data "
    "tokenize bench plan"
).split()
TINY = """
name: tiny
collected:
  books: {enabled: false}
  web: {enabled: false}
  docs: {enabled: false}
  code: {enabled: false}
  local: [{path: %s, domain: books}]
corpus: {}
"""


def test_every_verb_is_there():
    assert set(typer.main.get_command(cli.app).commands) == set(VERBS)


@pytest.mark.parametrize(
    "verb",
    [v for v in VERBS if v not in ("data", "tokenize", "bench", "plan")]
    + ["data clean", "tokenize pack", "bench data", "plan model"],
)
def test_help_has_an_example(monkeypatch, capsys, verb):
    code, out, _ = call(monkeypatch, capsys, *verb.split(), "--help")
    assert code == 0
    assert f"Example: gristmill {verb}" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["runn"], "No such command 'runn'"),
        (["run"], "see gristmill run --help"),
        (["run", "none.yaml"], "there is no recipe none.yaml"),
        (["verify", "/tmp"], "/tmp is not an artifact"),
        (["status", "/tmp"], "/tmp is not a run directory"),
        (["generate", "none", "Hello"], "none does not exist"),
        (["serve", "none"], "none does not exist"),
        (["import", "none"], "none is neither a known package"),
        (["page", "none"], "none is no directory; give a run directory"),
        (["generate", "none", "Hello", "--temperature", "-1"], "temperature"),
        (["generate", "none", "Hello", "--length-penalty", "2"], "length_penalty needs beam_width"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_1(monkeypatch, capsys, arguments, said):
    code, _, err = call(monkeypatch, capsys, *arguments)
    assert code == 1
    assert said in err
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert "defect" not in err


def test_no_verb_shows_the_help(monkeypatch, capsys):
    code, out, _ = call(monkeypatch, capsys)
    assert code == 1
    assert "Commands:" in out
    assert out.count("\n") > 10


@pytest.fixture
def recipe(tmp_path):
    text = "It was said that the people of the land would go with the king to the hill and be there by night. "
    (tmp_path / "text.txt").write_text("\n".join(f"{i}. {text}" for i in range(40)))
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY % (tmp_path / "text.txt"))
    return path


def test_run_status_and_verify(monkeypatch, capsys, recipe, tmp_path):
    run = tmp_path / "run"
    code, _, err = call(monkeypatch, capsys, "data", "collect", recipe, "--run", run)
    assert code == 0, err
    assert "collected" in err
    code, out, _ = call(monkeypatch, capsys, "status", run, "--json")
    assert code == 0
    assert [stage["state"] for stage in json.loads(out)["stages"]] == ["fresh", "missing"]
    code, out, _ = call(monkeypatch, capsys, "verify", run / "artifacts" / "collected")
    assert code == 0
    assert "whole" in out
    shard = next((run / "artifacts" / "collected" / "documents").iterdir())
    shard.write_bytes(b"spoilt")
    code, _, err = call(monkeypatch, capsys, "verify", run / "artifacts" / "collected")
    assert code == 1
    assert f"{shard} is corrupt" in err


def test_a_local_source_that_is_not_there_is_named(monkeypatch, capsys, recipe, tmp_path):
    (tmp_path / "text.txt").unlink()
    code, _, err = call(monkeypatch, capsys, "run", recipe, "--run", tmp_path / "run")
    assert code == 1
    assert "text.txt" in err
    assert not (tmp_path / "run" / "artifacts" / "collected").exists()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        OSError("4096 requested and 100 written"),
    ],
)
def test_a_full_disk_is_named_and_finished_work_kept(monkeypatch, capsys, recipe, tmp_path, error):
    run = tmp_path / "run"
    assert call(monkeypatch, capsys, "data", "collect", recipe, "--run", run)[0] == 0

    def full(config, stage_run):
        raise error

    monkeypatch.setattr("gristmill.data.process.process", full)
    code, _, err = call(monkeypatch, capsys, "run", recipe, "--run", run)
    assert code == 1
    assert "the disk is full" in err
    assert err.splitlines()[-1].startswith("gristmill: ")
    assert [p.name for p in (run / "artifacts").iterdir() if not p.name.startswith(".")] == ["collected"]


def test_ctrl_c_says_how_to_go_on(monkeypatch, capsys, recipe, tmp_path):
    def interrupted(config, stage_run):
        raise KeyboardInterrupt

    monkeypatch.setattr("gristmill.data.collect.collect", interrupted)
    code, _, err = call(monkeypatch, capsys, "run", recipe, "--run", tmp_path / "run")
    assert code == 1
    assert "interrupted; finished work is kept" in err


def test_a_defect_names_itself_and_the_way_to_its_place(monkeypatch, capsys, recipe, tmp_path):
    def broken(config, stage_run):
        raise KeyError("oops")

    monkeypatch.setattr("gristmill.data.collect.collect", broken)
    code, _, err = call(monkeypatch, capsys, "run", recipe, "--run", tmp_path / "run")
    assert code == 1
    assert "a defect in gristmill: KeyError: 'oops'" in err
    monkeypatch.setattr(sys, "argv", ["gristmill", "--traceback", "run", str(recipe), "--run", str(tmp_path / "run")])
    with pytest.raises(KeyError):
        main()


def test_an_output_may_not_overwrite_its_input(monkeypatch, capsys, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    code, _, err = call(monkeypatch, capsys, "quantize", model, "--out", tmp_path / "q")
    assert code == 1
    assert "gristmill import" in err
    (model / "manifest.json").write_text("{}")
    for out in (model, model / "inner", tmp_path):
        code, _, err = call(monkeypatch, capsys, "quantize", model, "--out", out)
        assert code == 1
        assert "would overwrite" in err
    assert (model / "config.json").exists()


def test_a_port_in_use_is_named(monkeypatch, capsys, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text("name: x\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = call(monkeypatch, capsys, "page", run, "--port", port)
    assert code == 1
    assert f"port {port} is in use" in err
    assert "--port" in err


def test_the_installed_command_starts_without_torch():
    program = "import sys, gristmill.cli; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
