"""Chat and generation in a terminal, with the keyboard played by a list."""

from __future__ import annotations

import io

import pytest
import torch

from gristmill.engine import llm as llm_module
from gristmill.engine import terminal
from gristmill.engine.llm import LLM
from gristmill.engine.sampling import SamplingParams
from gristmill.engine.speculation.config import SpeculationConfig
from gristmill.engine.terminal import chat, chat_loop, generate_text
from gristmill.weights.hf import save_model

PARAMS = SamplingParams(max_tokens=8, temperature=0.0)


@pytest.fixture
def llm(model, tokenizer):
    return LLM.from_model(model, tokenizer, max_num_seqs=1)


def converse(llm, lines, params=PARAMS, write=None):
    """Type lines (an exception among them is raised) and return the screen and the prompts the model got."""
    screen, prompts, keyboard = [], [], iter([*lines, EOFError()])
    stream = llm.stream

    def read_line(prompt):
        line = next(keyboard)
        if isinstance(line, BaseException):
            raise line
        return line

    def record(ids, params):
        prompts.append(llm.tokenizer.decode(ids, skip_special_tokens=False))
        return stream(ids, params)

    llm.stream = record
    chat(llm, params, read_line, write or screen.append)
    return "".join(screen), prompts


def test_history_is_kept_and_reset(llm):
    tokenizer = llm.tokenizer
    screen, prompts = converse(llm, ["hi", "", "so", "/reset", "new"])
    reply = llm.chat([[{"role": "user", "content": "hi"}]], PARAMS)[0].text
    assert reply in screen
    history = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": reply},
        {"role": "user", "content": "so"},
    ]
    assert prompts[1] == tokenizer.render_chat(history, add_generation_prompt=True)
    assert prompts[2] == tokenizer.render_chat([{"role": "user", "content": "new"}], add_generation_prompt=True)


def test_quit_help_and_end_of_input(llm):
    screen, prompts = converse(llm, ["/what now", KeyboardInterrupt(), "/quit", "never read"])
    assert "no command /what" in screen
    assert "(/quit leaves)" in screen
    assert prompts == []


def test_ctrl_c_ends_the_reply_and_what_was_said_stays(llm):
    whole = llm.chat([[{"role": "user", "content": "hi"}]], PARAMS)[0].text
    screen = []

    def write(text):
        screen.append(text)
        if len(screen) == 3:  # the help line, then two pieces of the reply
            raise KeyboardInterrupt

    _, prompts = converse(llm, ["hi", "go on"], write=write)
    said = "".join(screen[1:3])
    assert whole.startswith(said)
    assert f"{said}<|im_end|>" in prompts[1]
    assert not llm.engine.has_work


def test_the_oldest_exchanges_are_dropped_when_the_context_is_full(llm):
    screen, prompts = converse(llm, ["a" * 10, "b" * 10, "c" * 10, "d" * 200, "e"])
    assert "no longer fits" in screen
    assert "d has" not in screen
    assert "prompt has" in screen, "a message that is too long by itself is refused by name"
    assert "ddd" not in prompts[-1], "and forgotten"
    assert all("<|im_start|>user" in prompt for prompt in prompts)


def test_generate_and_chat_from_a_path(model, tokenizer, monkeypatch, tmp_path):
    """From a directory, with everything found by its path."""
    asked = []

    def load(path, dtype, device):
        asked.append((path, dtype, device))
        return model

    monkeypatch.setattr(llm_module, "locate_model", lambda path: tokenizer.directory)
    monkeypatch.setattr(llm_module, "load_model", load)
    out = io.StringIO()
    text = generate_text(tmp_path, "the", PARAMS, out)
    assert out.getvalue() == text + "\n"
    assert text == LLM.from_model(model, tokenizer).generate(["the"], PARAMS)[0].text
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert asked == [(tokenizer.directory, torch.bfloat16 if device == "cuda" else torch.float32, device)]
    screen = []
    chat_loop(tmp_path, PARAMS, read_line=lambda prompt: "/quit", write=screen.append)
    assert screen == [terminal.CHAT_HELP + "\n"]


def test_what_is_guessed_or_searched_is_said_as_well(tmp_path, tokenizer, model):
    save_model(model, tmp_path, tokenizer.directory)
    plain = generate_text(tmp_path, "the the the", PARAMS, io.StringIO())
    for options in ({"speculation": SpeculationConfig(min_ngram=1)}, {"draft_model": tmp_path}):
        assert generate_text(tmp_path, "the the the", PARAMS, io.StringIO(), **options) == plain
    beams = SamplingParams(max_tokens=8, beam_width=2)
    (found,) = LLM.from_model(model, tokenizer).generate(["the the the"], beams)
    assert generate_text(tmp_path, "the the the", beams, io.StringIO()) == found.text
