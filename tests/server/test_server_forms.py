"""Replies held to a form and the sampling parameters beyond OpenAI's own, through its client."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import openai
import pytest

from gristmill.engine.sampling import SamplingParams
from gristmill.server.replies import CompletionReply

MESSAGES = [{"role": "user", "content": "and the thing?"}]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["king", "thing"]}, "old": {"type": "boolean"}},
    "required": ["name", "old"],
    "additionalProperties": False,
}


def asked(schema=SCHEMA, **extra):
    return {"type": "json_schema", "json_schema": {"name": "person", "schema": schema, **extra}}


def say(server, stream=False, **fields):
    """The text of a reply and why it ended."""
    known = {"model": "tiny", "messages": MESSAGES, "max_tokens": 60, "temperature": 1, "seed": 3} | fields
    if not stream:
        (choice,) = server.client.chat.completions.create(**known).choices
        return choice.message.content, choice.finish_reason
    text, reason = "", None
    for chunk in server.client.chat.completions.create(**known, stream=True):
        text += chunk.choices[0].delta.content or ""
        reason = chunk.choices[0].finish_reason or reason
    return text, reason


@pytest.fixture
def guided():
    pytest.importorskip("llguidance")


@pytest.mark.usefixtures("guided")
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("extra", [{}, {"strict": True}, {"strict": False, "description": "who"}], ids=str)
def test_a_schema_holds(shared, stream, extra):
    text, reason = say(shared, stream, response_format=asked(**extra))
    found = json.loads(text)
    assert (list(found), reason) == (["name", "old"], "stop")
    assert found["name"] in ("king", "thing")
    assert isinstance(found["old"], bool)


@pytest.mark.usefixtures("guided")
def test_the_clients_own_parser_reads_it(shared):
    from pydantic import BaseModel

    class Answer(BaseModel):
        yes: bool

    completion = shared.client.chat.completions.parse(
        model="tiny", messages=MESSAGES, max_tokens=60, seed=1, response_format=Answer
    )
    assert isinstance(completion.choices[0].message.parsed, Answer)


@pytest.mark.usefixtures("guided")
@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_object"}},
        {"extra_body": {"structured_outputs": {"json_object": True}}},
    ],
    ids=["response_format", "structured_outputs"],
)
def test_any_object(shared, fields):
    for seed in range(4):
        text, reason = say(shared, seed=seed, **fields)
        assert text.startswith("{")
        if reason == "stop":
            assert isinstance(json.loads(text), dict)


@pytest.mark.usefixtures("guided")
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        ({"regex": "[ab]{3}-[0-9]"}, "[ab]{3}-[0-9]"),
        ({"choice": ["the king", "a thing"]}, "the king|a thing"),
        ({"grammar": 'root ::= "x" [0-9] "y"'}, "x[0-9]y"),
        ({"json": SCHEMA}, r'\{"name": ?"(king|thing)", ?"old": ?(true|false)\}'),
        ({"json": json.dumps({"enum": ["a b"]})}, '"a b"'),
    ],
    ids=str,
)
def test_forms_as_vllm_takes_them(shared, form, pattern, stream):
    text, reason = say(shared, stream, extra_body={"structured_outputs": form})
    assert re.fullmatch(pattern, text)
    assert reason == "stop"


@pytest.mark.usefixtures("guided")
def test_a_completion_keeps_to_a_form_too(shared):
    reply = shared.client.completions.create(
        model="tiny", prompt="the", max_tokens=60, n=2, extra_body={"structured_outputs": {"choice": ["king", "thing"]}}
    )
    assert {choice.text for choice in reply.choices} <= {"king", "thing"}


@pytest.mark.usefixtures("guided")
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"response_format": {"type": "xml"}}, "response_format", "json_object"),
        ({"response_format": {}}, "response_format", "type must be"),
        ({"response_format": "json"}, "response_format", "dictionary"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format", "schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}, "response_format", "name"),
        ({"response_format": asked(strict="yes")}, "response_format", "strict"),
        ({"response_format": asked(shema={})}, "response_format", "shema"),
        ({"response_format": {"type": "json_object", "schema": {}}}, "response_format", "unknown field"),
        ({"response_format": asked({"type": "object", "unevaluatedItems": 3})}, "response_format", "unevaluatedItems"),
        ({"structured_outputs": {"json": {"type": "strange"}}}, "structured_outputs", "strange"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs", "regex"),
        ({"structured_outputs": {}}, "structured_outputs", "one of"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs", "one of"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs", "choice"),
        ({"structured_outputs": {"rejex": "a"}}, "structured_outputs", "rejex"),
        ({"response_format": asked(), "structured_outputs": {"regex": "a"}}, "structured_outputs", "contradict"),
    ],
    ids=str,
)
def test_forms_that_cannot_be_are_refused_before_a_stream_begins(shared, fields, param, says, stream):
    with pytest.raises(openai.BadRequestError) as caught:
        shared.client.chat.completions.create(model="tiny", messages=MESSAGES, stream=stream, extra_body=fields)
    assert caught.value.param == param
    assert says in caught.value.message
    assert shared.service.engine.wait_idle(10)
    assert say(shared, response_format={"type": "text"}, max_tokens=2)[1] == "length"


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0, "presence_penalty": 1.5},
        {"temperature": 0, "frequency_penalty": 1.5},
        {"temperature": 0, "extra_body": {"repetition_penalty": 2.0}},
        {"temperature": 1, "extra_body": {"min_p": 0.3}},
        {"temperature": 1, "extra_body": {"top_k": 3, "min_p": 0.1}},
        {"temperature": 0, "logit_bias": {"70": 100}},
        {"temperature": 1, "extra_body": {"min_tokens": 15}},
        {"temperature": 0, "extra_body": {"stop_token_ids": list(range(40, 120))}},
    ],
    ids=str,
)
def test_parameters_reach_the_engine(shared, llm, fields):
    flat = {name: value for name, value in fields.items() if name != "extra_body"} | fields.get("extra_body", {})
    if "logit_bias" in flat:
        flat["logit_bias"] = {int(token): bias for token, bias in flat["logit_bias"].items()}
    (expected,) = llm.chat([MESSAGES], SamplingParams(max_tokens=20, seed=7, **flat))
    (plain,) = llm.chat([MESSAGES], SamplingParams(max_tokens=20, seed=7, temperature=flat["temperature"]))
    text, reason = say(shared, max_tokens=20, seed=7, **fields)
    assert (text, reason) == (expected.text, expected.finish_reason)
    if "min_tokens" not in flat:
        assert expected.token_ids != plain.token_ids, "the parameter changes nothing here, so nothing is shown"


def test_log_probabilities_of_a_prompt_as_vllm_writes_them(tokenizer):
    request = SimpleNamespace(
        params=SamplingParams(prompt_logprobs=1),
        prompt_ids=[70, 71, 72],
        prompt_logprobs=[-1.5, -0.25],
        prompt_top_logprobs=[[(80, -0.5)], [(72, -0.25)]],
        text=["x"],
        output_ids=[73],
        closed=False,
        finish_reason="length",
    )
    (choice,) = CompletionReply(tokenizer, "tiny", False).whole([request], {})["choices"]
    first, second, third = choice["prompt_logprobs"]
    assert first is None
    assert second == {
        "80": {"logprob": -0.5, "decoded_token": tokenizer.decode([80])},
        "71": {"logprob": -1.5, "decoded_token": tokenizer.decode([71])},
    }
    assert third == {"72": {"logprob": -0.25, "decoded_token": tokenizer.decode([72])}}


def test_log_probabilities_of_a_prompt_are_not_streamed(shared):
    with pytest.raises(openai.BadRequestError) as caught:
        shared.client.completions.create(model="tiny", prompt="x", stream=True, extra_body={"prompt_logprobs": 1})
    assert caught.value.param == "prompt_logprobs"
