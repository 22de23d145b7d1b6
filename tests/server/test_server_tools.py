"""Tools: offered to the template, and calls taken out of replies, whole and streamed."""

from __future__ import annotations

import json

import openai
import pytest
from engine_fixtures import make_model, scripted, write_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.engine.llm import LLM
from gristmill.server.tools import CallStream, message_of
from gristmill.tokenizer.tokenizer import Tokenizer

TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
QUESTION = [{"role": "user", "content": "rain?"}]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich <b>"}}\n</tool_call>'
OTHER = '<tool_call>{"name": "now"}</tool_call>'
BROKEN = "<tool_call>{not json}</tool_call>"


def merged(deltas):
    content = "".join(delta.get("content") or "" for delta in deltas)
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    return content, [(call["index"], call["function"]["name"], call["function"]["arguments"]) for call in calls]


def streamed(pieces):
    stream = CallStream()
    deltas = [delta for piece in pieces for delta in stream.push(piece)]
    return [*deltas, *stream.finish()], stream


@pytest.mark.parametrize(
    ("text", "content", "names", "reason"),
    [
        ("no call at all \n", "no call at all \n", [], "stop"),
        (CALL, None, ["weather"], "tool_calls"),
        (f"Let me see.\n{CALL}\n{OTHER}\n", "Let me see.", ["weather", "now"], "tool_calls"),
        (f"{CALL} done", " done", ["weather"], "tool_calls"),
        (f"a {BROKEN} b", f"a {BROKEN} b", [], "stop"),
        (f"{BROKEN}{OTHER}", BROKEN, ["now"], "tool_calls"),
        ('x <tool_call>{"name": "f"', 'x <tool_call>{"name": "f"', [], "stop"),
        ("1 <tool 2 </tool_call>", "1 <tool 2 </tool_call>", [], "stop"),
        *((text, text, [], "stop") for text in (
            '<tool_call>["f"]</tool_call>', '<tool_call>{"name": 1}</tool_call>', "<tool_call></tool_call>",
            '<tool_call>{"name": "f", "arguments": "x"}</tool_call>',
        )),
    ],
)  # fmt: skip
def test_calls_are_taken_out_of_a_reply(text, content, names, reason):
    message, found = message_of(text, "stop")
    assert (message["content"], found) == (content, reason)
    calls = message.get("tool_calls", [])
    assert [call["function"]["name"] for call in calls] == names
    assert len({call["id"] for call in calls}) == len(calls)
    assert ("tool_calls" in message) == bool(names)
    assert message_of(text, "length")[1] == "length"


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from([CALL, OTHER, BROKEN, "text", " ", "\n", "<", "<tool_call>", "</tool_call>", "<tool_"])),
    st.data(),
)
def test_a_stream_says_what_the_whole_says(parts, data):
    text = "".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    deltas, stream = streamed(pieces)
    message, reason = message_of(text, "stop")
    content, calls = merged(deltas)
    assert content == (message["content"] or "")
    expected = [call["function"] for call in message.get("tool_calls", [])]
    assert calls == [(i, call["name"], call["arguments"]) for i, call in enumerate(expected)]
    assert stream.reason("stop") == reason
    assert all(delta.get("content", "x") for delta in deltas), "no empty delta"


def test_text_is_given_as_soon_as_it_is_no_call():
    stream = CallStream()
    assert [stream.push(piece) for piece in ("It", " is <", "b> ", "5")] == [
        [{"content": "It"}], [{"content": " is"}], [{"content": " <b>"}], [{"content": " 5"}]
    ]  # fmt: skip


def with_marks(directory):
    """The marks of a call as special tokens, as in the tokenizers that are trained here."""
    path = write_tokenizer(directory) / "tokenizer.json"
    state = json.loads(path.read_text())
    for mark in ("<tool_call>", "</tool_call>"):
        id = len(state["model"]["vocab"])
        state["model"]["vocab"][mark] = id
        state["added_tokens"].append({**state["added_tokens"][0], "id": id, "content": mark})
    path.write_text(json.dumps(state))
    return Tokenizer.load(directory)


@pytest.fixture(scope="module", params=[False, True], ids=["letters", "special tokens"])
def tools_server(request, start_with, tmp_path_factory):
    directory = tmp_path_factory.mktemp("tools")
    tokenizer = with_marks(directory) if request.param else Tokenizer.load(write_tokenizer(directory))
    model = make_model(max_seq_len=2000, padding=tokenizer.vocab_size - 269)
    return start_with(LLM.from_model(model, tokenizer, max_num_seqs=2).engine)


@pytest.fixture
def say(tools_server, monkeypatch):
    """Let the model say a text, with the marks by their ids where they have any, and end."""

    def install(text):
        tokenizer = tools_server.service.tokenizer
        ids = []
        for part in (
            text.replace("<tool_call>", "\0<tool_call>\0").replace("</tool_call>", "\0</tool_call>\0").split("\0")
        ):
            id = tokenizer.backend.token_to_id(part)
            ids += [id] if id in tokenizer.special_ids else tokenizer.encode(part)
        scripted(monkeypatch, [*ids, tokenizer.eos_id])

    return install


def test_a_whole_reply_with_calls(tools_server, say):
    say(f"Let me see.\n{CALL}\n{OTHER}")
    asked = {"model": "tiny", "messages": QUESTION, "tools": TOOLS, "tool_choice": "auto"}
    (choice,) = tools_server.client.chat.completions.create(**asked).choices
    assert (choice.message.content, choice.finish_reason) == ("Let me see.", "tool_calls")
    assert [call.function.name for call in choice.message.tool_calls] == ["weather", "now"]
    assert json.loads(choice.message.tool_calls[0].function.arguments) == {"city": "Zürich <b>"}


def test_a_streamed_reply_with_calls(tools_server, say):
    say(f"Let me see.\n{CALL}")
    asked = {"model": "tiny", "messages": QUESTION, "tools": TOOLS, "stream": True, "logprobs": True}
    choices = [chunk.choices[0] for chunk in tools_server.client.chat.completions.create(**asked)]
    calls = [choice.delta.tool_calls for choice in choices if choice.delta.tool_calls]
    assert len(calls) == 1, "a call comes whole"
    assert json.loads(calls[0][0].function.arguments) == {"city": "Zürich <b>"}
    assert calls[0][0].index == 0
    assert "".join(choice.delta.content or "" for choice in choices) == "Let me see."
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["tool_calls"]
    listed = [entry.token for choice in choices if choice.logprobs for entry in choice.logprobs.content]
    assert "<tool_call>" in "".join(listed)


def test_the_template_sees_the_tools_and_the_history(tools_server, say, monkeypatch):
    seen = []
    chat_ids = tools_server.service.tokenizer.chat_ids
    monkeypatch.setattr(
        tools_server.service.tokenizer, "chat_ids", lambda *args, **more: seen.append(args) or chat_ids(*args, **more)
    )
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}
    history = [
        *QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]
    create = tools_server.client.chat.completions.create
    say("No rain.")
    reply = create(model="tiny", messages=history, tools=TOOLS)
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == ("No rain.", "stop")
    assert reply.choices[0].message.tool_calls is None
    text = tools_server.service.tokenizer.render_chat(*seen[0])
    for part in ('"name": "weather"', '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}', "sunny"):
        assert part in text
    say(CALL)
    plain = create(model="tiny", messages=QUESTION, tools=TOOLS, tool_choice="none")
    assert seen[1][2] is None, "none offers none"
    assert plain.choices[0].message.tool_calls is None


def test_a_template_without_tools_is_named(tools_server, say, monkeypatch):
    monkeypatch.setattr(tools_server.service.tokenizer.template, "uses_tools", False)
    with pytest.raises(openai.BadRequestError) as caught:
        tools_server.client.chat.completions.create(model="tiny", messages=QUESTION, tools=TOOLS)
    assert caught.value.param == "tools"
    assert "chat template does not use them" in caught.value.message
    say("Fine.")
    tools_server.client.chat.completions.create(model="tiny", messages=QUESTION, tools=[], tool_choice="none")
