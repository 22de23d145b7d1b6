"""Generating and chatting in a terminal: text appears as it is made."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from .llm import LLM, Message
from .sampling import RequestError, SamplingParams
from .speculation.config import SpeculationConfig

CHAT_HELP = "/reset forgets the conversation, /quit leaves, Ctrl-C ends a reply"

ReadLine = Callable[[str], str]
Write = Callable[[str], object]


def write_stdout(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def generate_text(
    path: Path | str,
    prompt: str,
    params: SamplingParams,
    out: TextIO | None = None,
    speculation: SpeculationConfig | None = None,
    draft_model: Path | None = None,
) -> str:
    """Write the model's continuation of `prompt` to `out` (stdout) as it is made, then a newline; returns the text."""
    out = out or sys.stdout
    said = []
    llm = LLM(path, draft_model=draft_model, max_num_seqs=params.beam_width or 1, speculation=speculation)
    for piece in llm.stream(prompt, params):
        said.append(piece)
        out.write(piece)
        out.flush()
    out.write("\n")
    return "".join(said)


def chat_loop(
    path: Path | str,
    params: SamplingParams,
    read_line: ReadLine = input,
    write: Write = write_stdout,
    speculation: SpeculationConfig | None = None,
    draft_model: Path | None = None,
) -> None:
    """Talk to a model until `/quit` or the end of input. `read_line(prompt)` gives a line, raises EOFError at the end
    and KeyboardInterrupt on Ctrl-C, which ends the line being typed or the reply, never the program."""
    chat(LLM(path, draft_model=draft_model, max_num_seqs=1, speculation=speculation), params, read_line, write)


def chat(llm: LLM, params: SamplingParams, read_line: ReadLine = input, write: Write = write_stdout) -> None:
    """`chat_loop` with a model that is loaded already."""
    history: list[Message] = []
    write(CHAT_HELP + "\n")
    while True:
        try:
            line = read_line("> ").strip()
        except EOFError:
            write("\n")
            return
        except KeyboardInterrupt:
            write("\n(/quit leaves)\n")
            continue
        if line == "/quit":
            return
        if line == "/reset":
            history = []
            write("(forgotten)\n")
        elif line.startswith("/"):
            write(f"(no command {line.split()[0]}; {CHAT_HELP})\n")
        elif line:
            history = _turn(llm, [*history, {"role": "user", "content": line}], params, write)


def _turn(llm: LLM, history: list[Message], params: SamplingParams, write: Write) -> list[Message]:
    """Write the reply to the history's last message; returns the history to go on with. What was said before Ctrl-C
    counts as said."""
    history, ids = _fit(llm, history, params, write)
    said: list[str] = []
    pieces = llm.stream(ids, params)
    try:
        for piece in pieces:
            said.append(piece)
            write(piece)
    except KeyboardInterrupt:
        write(" (ended)")
    except RequestError as error:
        write(f"({error})")
        return history[:-1]
    finally:
        pieces.close()
        write("\n")
    return [*history, {"role": "assistant", "content": "".join(said)}]


def _fit(llm: LLM, history: list[Message], params: SamplingParams, write: Write) -> tuple[list[Message], list[int]]:
    """The conversation and its tokens, without the oldest exchanges where these leave no room for a reply."""
    limit = llm.engine.config.max_model_len
    room = min(params.max_tokens, limit // 2)
    while True:
        ids = llm.tokenizer.chat_ids(history, add_generation_prompt=True)
        if len(ids) + room <= limit or len(history) <= 2:
            return history, ids
        history = history[2:]
        write("(the beginning of the conversation no longer fits and is dropped)\n")
