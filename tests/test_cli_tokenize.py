"""The verbs of tokenizers: encode, decode, play, import, export, report; help and mistakes of each."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import pytest
from rich.console import Console
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from gristmill import cli
from gristmill.cli import main
from gristmill.cli.play import play_loop, show, visible
from gristmill.tokenizer.report import references
from gristmill.tokenizer.tokenizer import Tokenizer

SPECIALS = ["<|bos|>", "<|eos|>", "<|pad|>"]
TEXT = "the miller turns the wheel, and the wheel grinds the grain. "


@pytest.fixture
def call(monkeypatch, capsys):
    """(exit code, standard output, standard error) of one call."""

    def run(*arguments, stdin=""):
        monkeypatch.setattr(sys, "argv", ["gristmill", *map(str, arguments)])
        monkeypatch.setattr(cli, "_show_traceback", [False])
        data = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return stop.value.code, captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory):
    """A run with nothing but a small byte-level tokenizer."""
    run = tmp_path_factory.mktemp("runs") / "small"
    directory = run / "artifacts" / "tokenizer"
    directory.mkdir(parents=True)
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=290, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([TEXT] * 5, trainer)
    backend.save(str(directory / "tokenizer.json"))
    named = {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "pad_token": "<|pad|>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(named))
    return run


@pytest.fixture
def loaded(run_directory):
    return Tokenizer.load(run_directory / "artifacts" / "tokenizer")


@pytest.mark.parametrize("verb", ["train", "pack", "encode", "decode", "play", "import", "export", "report"])
def test_help_has_an_example(call, verb):
    code, out, _ = call("tokenize", verb, "--help")
    assert code == 0
    assert f"Example: gristmill tokenize {'encode' if verb == 'decode' else verb}" in out


@pytest.mark.parametrize("text", [TEXT, "naïve 東京 👩‍👩‍👧", "<|eos|>", "two\nlines"])
def test_ids_and_back(call, run_directory, loaded, text):
    for place in (run_directory, run_directory / "artifacts" / "tokenizer"):
        code, out, _ = call("tokenize", "encode", place, text)
        assert (code, [int(word) for word in out.split()]) == (0, loaded.encode(text))
    assert call("tokenize", "encode", run_directory, "-", stdin=text)[1] == out
    assert call("tokenize", "encode", run_directory, stdin=text)[1] == out
    assert call("tokenize", "decode", run_directory, *out.split())[1] == text + "\n"
    assert call("tokenize", "decode", run_directory, stdin=str(loaded.encode(text)))[1] == text + "\n"


def test_pieces_are_lines_of_ids_and_text(call, run_directory, loaded):
    _, out, _ = call("tokenize", "encode", run_directory, "the 東", "--pieces")
    lines = [line.split("\t") for line in out.splitlines()]
    assert "".join(json.loads(text) for _, text in lines) == "the 東"
    assert [int(id) for ids, _ in lines for id in ids.split()] == loaded.encode("the 東")


def test_play_shows_pieces_and_merges(call, run_directory, loaded):
    code, out, _ = call("tokenize", "play", run_directory, "miller")
    assert code == 0
    tokens = [loaded.decode([id]) for id in loaded.encode("miller")]
    assert out.splitlines()[0] == "|".join(tokens)
    table = out[out.index("merge ") :].splitlines()[1:]
    assert table[-1].split("  ")[-1].strip() == " | ".join(tokens) or " | ".join(tokens) in table[-1]
    assert len(table) == len("miller") - len(tokens)
    assert "merge" not in call("tokenize", "play", run_directory, "two words")[1]


def test_play_goes_on_line_by_line(loaded):
    shown = io.StringIO()
    lines = iter(["miller", "two words"])

    def read_line(prompt):
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    play_loop(loaded, read_line, Console(file=shown, width=100, force_terminal=True, color_system="truecolor"))
    assert shown.getvalue().count("bytes per token") == 2
    assert "\x1b[" in shown.getvalue()
    assert "|miller" not in shown.getvalue()


def test_control_characters_do_not_reach_the_terminal(loaded):
    shown = io.StringIO()
    show(loaded, "a\x1b[31mb\n\t\u202e", Console(file=shown, width=100))
    assert "\x1b" not in shown.getvalue()
    assert "\u202e" not in shown.getvalue()
    assert visible("\x1b\n\t\u202e é東") == "\\x1b⏎⇥\\u202e é東"


def test_export_and_import_keep_the_ids(call, run_directory, loaded, tmp_path):
    ranks, copy, back = tmp_path / "mine.tiktoken", tmp_path / "copy", tmp_path / "back"
    written = call("tokenize", "export", run_directory, ranks, "--format", "tiktoken")[:2]
    assert written == (0, f"{ranks} and {ranks.with_suffix('.json')}: written\n")
    assert call("tokenize", "export", run_directory, copy)[:2] == (0, f"{copy}: written\n")
    assert Tokenizer.load(copy).hash == loaded.hash
    ranks.with_suffix(".json").unlink()
    code, _, err = call("tokenize", "import", ranks, back)
    assert code == 1
    assert "pattern" in err
    specials = [part for id, token in enumerate(SPECIALS) for part in ("--special", f"{token}={id}")]
    options = ["--pattern", "gpt2", *specials, "--eos", "<|eos|>"]
    code, out, _ = call("tokenize", "import", ranks, back, *options)
    assert code == 0
    assert f"{loaded.vocab_size:,} entries" in out
    assert Tokenizer.load(back).encode(TEXT) == loaded.encode(TEXT)
    code, _, err = call("tokenize", "import", ranks, back, *options)
    assert (code, "exists already" in err) == (1, True)


def test_a_failed_import_can_be_tried_again(call, run_directory, tmp_path):
    ranks, back = tmp_path / "mine.tiktoken", tmp_path / "back"
    assert (
        call("tokenize", "export", run_directory, tmp_path / "new" / "there" / "mine.tiktoken", "--format=tiktoken")[0]
        == 0
    )
    (tmp_path / "new" / "there" / "mine.tiktoken").rename(ranks)
    for special, said in [
        ("<|x|>=5000", "--eos"),
        ("the=5000", "'the' is a token of text"),
        ("<|e|>=7", "is the rank of"),
    ]:
        code, _, err = call("tokenize", "import", ranks, back, "--pattern", "gpt2", "--special", special)
        assert (code, said in err, err.count("\n")) == (1, True, 1)
    assert not back.exists()
    code, _, err = call("tokenize", "import", ranks, back)
    assert (code, "--pattern and --special" in err) == (1, True)
    assert call("tokenize", "import", ranks, back, "--pattern=gpt2", "--special=<|x|>=5000", "--eos=<|x|>")[0] == 0


def test_bytes_that_are_no_text_become_replacement_characters(call, run_directory, loaded):
    code, out, err = call("tokenize", "play", run_directory, "b\udcffc")
    assert (code, err) == (0, "")
    assert "\ufffd" in out
    ids = loaded.encode("b\ufffdc")
    assert " ".join(map(str, ids)) in out.splitlines()
    for arguments in (["b\udcffc"], ["-"]):
        assert call("tokenize", "encode", run_directory, *arguments, stdin=b"b\xffc")[1].split() == [*map(str, ids)]
    code, out, _ = call("tokenize", "play", run_directory, stdin=b"b\xffc\n")
    assert (code, " ".join(map(str, ids)) in out.splitlines()) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["encode", "none", "x"], "none does not exist; give a run, an artifact with a tokenizer"),
        (["encode", "/tmp", "x"], "/tmp holds no tokenizer.json and is no run directory"),
        (["encode", "FILE", "x"], "is a file; make a directory of it first"),
        (["encode", "EMPTY", "x"], "is a run that has no tokenizer yet; make one: gristmill run"),
        (["decode", "RUN", "1", "x"], "'x' is no id"),
        (["decode", "RUN", "290"], "token id 290"),
        (["import", "none", "OUT"], "none does not exist"),
        (["import", "FILE", "OUT", "--special", "x"], "--special x is not TOKEN=ID"),
        (["import", "FILE", "OUT", "--special", "a=1", "--special", "a=2"], "--special gives a two ids, 1 and 2"),
        (["export", "RUN", "FILE"], "exists already"),
        (["export", "RUN", "OUT", "--format", "word"], "--format 'word' is not one of tiktoken, huggingface, sent"),
        (["export", "RUN", "OUT", "--format", "gguf"], "write one with: gristmill export MODEL --to gguf"),
        (["export", "RUN", "BESIDE", "--format", "tiktoken"], "holds no pat_str"),
        (["export", "RUN", "ranks.json", "--format", "tiktoken"], "ranks.json ends in .json"),
        (["import", "MODEL", "OUT", "--pattern", "gpt2"], "leave out --pattern and --special"),
        (["report"], "name a run, a tokenizer, or --references"),
        (["report", "--references", "none"], "name a run, a tokenizer, or --references"),
        (["report", "RUN"], "has no corpus beside it; name the text to measure on with --text"),
        (["report", "RUN", "--text", "none"], "--text none does not exist"),
        (["report", "RUN", "--text", "FILE", "--references", "gpt9"], "gpt9 is no vocabulary"),
        (["report", "RUN", "--text", "FILE", "--parallel", "none"], "none is no directory"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_1(call, run_directory, tmp_path, arguments, said):
    (tmp_path / "file.txt").write_text("words of text")
    (tmp_path / "empty" / "artifacts").mkdir(parents=True)
    places = {"EMPTY": tmp_path / "empty", "RUN": run_directory, "FILE": tmp_path / "file.txt", "OUT": tmp_path / "out"}
    model = run_directory / "artifacts" / "tokenizer"
    places |= {"MODEL": model, "BESIDE": model / "tokenizer.tiktoken"}
    code, _, err = call("tokenize", *(places.get(word, word) for word in arguments))
    assert code == 1
    assert said in err
    assert err.count("\n") == 1
    assert "defect" not in err


def test_report(call, run_directory, loaded, tmp_path, monkeypatch):
    monkeypatch.setattr(references.metadata, "distributions", lambda **_: iter(()))
    monkeypatch.setattr(references, "_TIKTOKEN_CACHE", tmp_path)
    monkeypatch.setattr(references, "_IMPORTED", tmp_path)
    for language, text in {"en": TEXT * 3, "de": "der Müller mahlt das Korn. " * 3}.items():
        (tmp_path / "texts").mkdir(exist_ok=True)
        (tmp_path / "texts" / f"{language}.txt").write_text(text)
    monkeypatch.chdir(tmp_path)
    plain = ["--text", "texts", "--parallel", "texts", "--out", "plain", "--json"]
    named = json.loads(call("tokenize", "report", run_directory, *plain, "--references", "none")[1])
    assert named == json.loads(call("tokenize", "report", run_directory, *plain)[1])
    assert list(named["overall"]) == ["small"]
    options = ["--text", "texts", "--parallel", "texts", "--references", f"cl100k,{run_directory}/artifacts/tokenizer"]
    code, out, _ = call("tokenize", "report", run_directory, *options)
    assert code == 0
    assert re.search(rf"^small +{loaded.vocab_size} ", out, re.MULTILINE)
    assert re.search(rf"^tokenizer +{loaded.vocab_size} ", out, re.MULTILINE)
    assert re.search(r"^de +\d\.\d\d", out, re.MULTILINE)
    assert "cl100k: package litellm is not installed" in out
    assert (tmp_path / "fertility" / "report.html").read_text().startswith("<!doctype html>")
    first = {path.name: path.read_bytes() for path in Path("fertility").iterdir()}
    code, out, _ = call("tokenize", "report", run_directory, *options, "--json", "--out", "again")
    assert json.loads(out) == json.loads(first["report.json"])
    assert {path.name: path.read_bytes() for path in Path("again").iterdir()} == first
    overall = json.loads(out)["overall"]
    assert overall["small"] == overall["tokenizer"]
