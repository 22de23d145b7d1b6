"""Tools: offered to the template, and calls taken out of replies, whole and streamed."""

from __future__ import annotations

import json

import openai
import pytest
from engine_fixtures import make_model, scripted, write_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.engine.llm import LLM
from gristmill.server.tools import LineCalls, TaggedCalls, form_of, message_of
from gristmill.tokenizer.templates import builtin_template
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


def streamed(pieces, stream):
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
            '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
            '<tool_call>{"name": "f", "arguments": {"x": NaN}}</tool_call>',
            '<tool_call>{"name": "f", "arguments": {"x": 1e999}}</tool_call>',
            '<tool_call>{"name": "f", "arguments": {"x": "\\ud800"}}</tool_call>',
            '<tool_call>{"name": "\\ud800"}</tool_call>',
            '<tool_call>{"name": "never ended</tool_call> and so on',
        )),
        ('<tool_call>{"name": "f</tool_call>' + OTHER, '<tool_call>{"name": "f</tool_call>', ["now"], "tool_calls"),
    ],
)  # fmt: skip
def test_calls_are_taken_out_of_a_reply(text, content, names, reason):
    message, found = message_of(text, "stop", TaggedCalls())
    assert (message["content"], found) == (content, reason)
    calls = message.get("tool_calls", [])
    assert [call["function"]["name"] for call in calls] == names
    assert len({call["id"] for call in calls}) == len(calls)
    assert ("tool_calls" in message) == bool(names)
    assert message_of(text, "length", TaggedCalls())[1] == "length"


@pytest.mark.parametrize(
    ("body", "arguments"),
    [
        ('{"name": "f"}', {}),
        ('{"name": "f", "arguments": null}', {}),
        ('{"name": "f", "arguments": ""}', {}),
        ('{"name": "f", "parameters": {"a": 1}}', {"a": 1}),
        ('{"name": "f", "arguments": {"a": 1}, "parameters": {"b": 1}}', {"a": 1}),
        ('{"name": "f", "arguments": "{\\"a\\": \\"é\\"}"}', {"a": "é"}),
        ('{"name": "f", "arguments": {"a": "</tool_call>, <tool_call> and \\"</tool_call>"}}',
         {"a": '</tool_call>, <tool_call> and "</tool_call>'}),
    ],
)  # fmt: skip
def test_arguments_as_models_write_them(body, arguments):
    message, reason = message_of(f"<tool_call>{body}</tool_call>", "stop", TaggedCalls())
    (call,) = message["tool_calls"]
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("f", arguments)
    assert (message["content"], reason) == (None, "tool_calls")


LINE = '{"name": "add", "parameters": {"a": 3}}'
NOT_A_CALL = '{"name": "add"}'


@pytest.mark.parametrize(
    ("text", "content", "count"),
    [
        (LINE, None, 1),
        (f"\n {LINE}\n", None, 1),
        (f"I add.\n{LINE}\n{LINE}", "I add.", 2),
        (f"{LINE}\nDone.", "\nDone.", 1),
        (f"{NOT_A_CALL}\n{LINE}", NOT_A_CALL, 1),
        *((text, text, 0) for text in (
            NOT_A_CALL, f"a {LINE}", f"{LINE} b", "{", "{\n\n", "[1]", LINE[:-1], f"{{}}{LINE}", OTHER,
        )),
    ],
)  # fmt: skip
def test_calls_that_are_lines(text, content, count):
    message, reason = message_of(text, "stop", LineCalls())
    assert message["content"] == content
    calls = [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", [])]
    assert calls == [("add", '{"a": 3}')] * count
    assert reason == ("tool_calls" if count else "stop")


PARTS = [CALL, OTHER, BROKEN, LINE, NOT_A_CALL, "text", " ", "\n", "\x0b", "<", "{", '"', '{"name": "', "}",
         "<tool_call>", "</tool_call>", "<tool_"]  # fmt: skip


def test_a_line_that_names_no_offered_tool_is_text():
    text = 'I list people:\n{"name": "Bob", "parameters": {"age": 3}}\nDone'
    assert message_of(text, "stop", LineCalls(names=["add"])) == ({"content": text}, "stop")
    message, reason = message_of(text, "stop", LineCalls(names=["Bob"]))
    assert message["tool_calls"][0]["function"]["name"] == "Bob"
    assert reason == "tool_calls"


def test_a_line_break_in_a_string_is_kept():
    text = '<tool_call>{"name": "say", "arguments": {"text": "one\ntwo"}}</tool_call>'
    message, _ = message_of(text, "stop", TaggedCalls())
    assert json.loads(message["tool_calls"][0]["function"]["arguments"]) == {"text": "one\ntwo"}


@pytest.mark.parametrize("form", [TaggedCalls, LineCalls])
@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PARTS)), st.booleans(), st.data())
def test_a_stream_says_what_the_whole_says(form, parts, parallel, data):
    text = "".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    deltas, stream = streamed(pieces, form(parallel))
    message, reason = message_of(text, "stop", form(parallel))
    content, calls = merged(deltas)
    assert content == (message["content"] or "")
    expected = [call["function"] for call in message.get("tool_calls", [])]
    assert calls == [(i, call["name"], call["arguments"]) for i, call in enumerate(expected)]
    assert stream.reason("stop") == reason
    assert all(delta.get("content", "x") for delta in deltas), "no empty delta"
    assert parallel or len(calls) <= 1
    if not calls:
        assert content == text


def test_one_call_where_the_request_wants_no_more():
    message, reason = message_of(f"Both.\n{CALL}\n{OTHER}", "stop", TaggedCalls(parallel=False))
    assert ([call["function"]["name"] for call in message["tool_calls"]], reason) == (["weather"], "tool_calls")
    assert message["content"] == "Both."


def test_a_line_of_text_is_given_before_it_ends():
    stream = LineCalls()
    assert [stream.push(piece) for piece in ("It", " is {", "5}\n", "{", "} ", "\n")] == [
        [{"content": "It"}], [{"content": " is {"}], [{"content": "5}"}], [], [], [{"content": "\n{}"}]
    ]  # fmt: skip


def test_text_is_given_as_soon_as_it_is_no_call():
    stream = TaggedCalls()
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
    for more in ({"tools": []}, {"tools": TOOLS, "tool_choice": "none"}):
        say("Fine.")
        tools_server.client.chat.completions.create(**{"model": "tiny", "messages": QUESTION} | more)


def templated(directory, template):
    write_tokenizer(directory)
    (directory / "chat_template.jinja").write_text(template)
    return Tokenizer.load(directory)


QWEN = """{{- "an object:\\n<tool_call>\\n{\\"name\\": <function-name>, \\"arguments\\": <args>}" }}{{ tools }}"""
LLAMA = """{{- 'Respond in the format {"name": function name, "parameters": dictionary of argument names}' }}"""
OTHERS = {
    "qwen3-coder": "{{ tools }}{{- '<tool_call>\\n<function=' + tools[0].function.name }}",
    "mistral": "{{ tools }}{{- '[TOOL_CALLS][' }}{{- '\"name\": ' }}",
    "deepseek": "{{ tools }}{{ '<｜tool▁call▁begin｜>' + tools[0].type }}",
}


def test_the_form_of_calls_is_the_one_that_the_template_teaches(tmp_path):
    for name, template, form in (
        ("chatml", builtin_template("chatml"), TaggedCalls),
        ("zephyr", builtin_template("zephyr"), TaggedCalls),
        ("llama3", builtin_template("llama3"), LineCalls),
        ("qwen", QWEN, TaggedCalls),
        ("llama", LLAMA, LineCalls),
        *((name, template, None) for name, template in OTHERS.items()),
    ):
        assert form_of(templated(tmp_path / name, template)) is form, name


@pytest.fixture(scope="module")
def line_server(start_with, tmp_path_factory):
    tokenizer = templated(tmp_path_factory.mktemp("llama3"), builtin_template("llama3"))
    return start_with(LLM.from_model(make_model(max_seq_len=2000), tokenizer, max_num_seqs=2).engine)


ADD = [{"type": "function", "function": {"name": "add"}}]


@pytest.mark.parametrize("stream", [False, True])
def test_calls_of_llama_3(line_server, monkeypatch, stream):
    tokenizer = line_server.service.tokenizer
    scripted(monkeypatch, [*tokenizer.encode(f"I add.\n{LINE}"), tokenizer.eos_id])
    reply = line_server.client.chat.completions.create(
        model="tiny", messages=QUESTION, tools=ADD, stream=stream, parallel_tool_calls=False
    )
    choices = [part.choices[0] for part in reply] if stream else reply.choices
    said = [choice.delta if stream else choice.message for choice in choices]
    assert "".join(each.content or "" for each in said) == "I add."
    (call,) = [call for each in said for call in each.tool_calls or ()]
    assert (call.function.name, json.loads(call.function.arguments)) == ("add", {"a": 3})
    assert choices[-1].finish_reason == "tool_calls"


@pytest.mark.parametrize("stream", [False, True])
def test_parallel_calls_are_left_out_where_they_are_not_wanted(tools_server, say, stream):
    for parallel, names in ((None, ["weather", "now"]), (True, ["weather", "now"]), (False, ["weather"])):
        say(f"{CALL}\n{OTHER}")
        reply = tools_server.client.chat.completions.create(
            model="tiny", messages=QUESTION, tools=TOOLS, stream=stream, extra_body={"parallel_tool_calls": parallel}
        )
        choices = [part.choices[0] for part in reply] if stream else reply.choices
        calls = [call for choice in choices for call in (choice.delta if stream else choice.message).tool_calls or ()]
        assert [call.function.name for call in calls] == names
        assert choices[-1].finish_reason == "tool_calls"


def test_a_form_that_is_not_read_is_refused(line_server, tmp_path, monkeypatch):
    for name, template in OTHERS.items():
        monkeypatch.setattr(line_server.service.tokenizer, "template", templated(tmp_path / name, template).template)
        with pytest.raises(openai.BadRequestError, match="a form that is not read here") as caught:
            line_server.client.chat.completions.create(model="tiny", messages=QUESTION, tools=TOOLS)
        assert (caught.value.param, caught.value.code) == ("tools", "unsupported_parameter")


DEEP = {}
for _ in range(63):
    DEEP = {"properties": DEEP}
CALLED = {"role": "assistant", "tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": "{}"}}]}


def tool(**changes):
    return {"type": "function", "function": {"name": "f", **changes}}


@pytest.mark.parametrize(
    ("extra", "param", "code", "says"),
    [
        ({"tools": [tool(parameters="zzz")]}, "tools[0].function.parameters", "invalid_type", "must be an object"),
        ({"tools": [tool(), tool(name="g"), tool()]}, "tools[2].function.name", "invalid_value",
         "tools[0] is called 'f' too"),
        ({"tools": [tool(parameters=DEEP)]}, "tools[0]", "invalid_value", "tools[0] is nested more than 64 deep"),
        ({"tool_choice": "foo"}, "tool_choice", "invalid_value", "none or auto, not 'foo'"),
        ({"tool_choice": {"name": "f"}}, "tool_choice", "invalid_value", "none or auto, not {'name'"),
        ({"tool_choice": "required"}, "tool_choice", "unsupported_parameter", "cannot force a call"),
        ({"parallel_tool_calls": "banana"}, "parallel_tool_calls", "invalid_type", "boolean"),
        ({"messages": [*QUESTION, {"role": "tool", "content": "5"}]}, "messages[1].tool_call_id", "invalid_value",
         "which call"),
        ({"messages": [*QUESTION, {"role": "tool", "tool_call_id": "c1", "content": "5"}]},
         "messages[1].tool_call_id", "invalid_value", "'c1' is no call"),
        ({"messages": [CALLED, {"role": "tool", "tool_call_id": "c2", "content": "5"}]},
         "messages[1].tool_call_id", "invalid_value", "'c2' is no call"),
        ({"messages": [CALLED, *QUESTION, {"role": "tool", "tool_call_id": "c1", "content": "5"}]},
         "messages[2].tool_call_id", "invalid_value", "'c1' is no call"),
        ({"messages": [{**CALLED, "tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": {"a": DEEP}}}]}]},
         "messages[0].tool_calls", "invalid_value", "messages[0].tool_calls is nested more than 64 deep"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)  # fmt: skip
def test_refusals_name_the_field(line_server, extra, param, code, says):
    with pytest.raises(openai.BadRequestError) as caught:
        line_server.client.chat.completions.create(model="tiny", messages=QUESTION, extra_body=extra)
    assert (caught.value.param, caught.value.code) == (param, code)
    assert says in caught.value.message
    assert len(caught.value.message) < 300


def test_a_schema_may_be_as_deep_as_chats_take_it(line_server, monkeypatch):
    scripted(monkeypatch, [line_server.service.tokenizer.eos_id])
    deepest = tool(parameters=DEEP["properties"])
    again = {**CALLED, "tool_calls": [CALLED["tool_calls"][0], {**CALLED["tool_calls"][0], "id": "c2"}]}
    results = [{"role": "tool", "tool_call_id": id, "content": "5"} for id in ("c2", "c1")]
    line_server.client.chat.completions.create(
        model="tiny",
        messages=[*QUESTION, again, *results, *QUESTION, CALLED, results[1]],
        tools=[deepest],
        max_tokens=1,
    )
