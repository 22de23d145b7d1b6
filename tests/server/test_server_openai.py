"""The real server through OpenAI's own client, against the engine used directly."""

from __future__ import annotations

import asyncio
import random

import openai
import pytest

from gristmill.engine.sampling import SamplingParams

MESSAGES = [{"role": "system", "content": "be the king"}, {"role": "user", "content": "and the thing?"}]


def expected_chat(llm, **params):
    return llm.chat([MESSAGES], SamplingParams(**params))[0]


def test_models(shared):
    (card,) = shared.client.models.list().data
    assert (card.id, card.max_model_len) == ("tiny", 96)
    assert shared.client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        shared.client.models.retrieve("gpt")


def test_chat_whole_and_streamed(shared, llm):
    expected = expected_chat(llm, max_tokens=12, temperature=0.0)
    asked = {"model": "tiny", "messages": MESSAGES, "max_tokens": 12, "temperature": 0}
    whole = shared.client.chat.completions.create(**asked)
    assert whole.choices[0].message.content == expected.text
    assert whole.choices[0].message.role == "assistant"
    assert whole.choices[0].finish_reason == expected.finish_reason
    prompt = len(llm.tokenizer.chat_ids(MESSAGES, add_generation_prompt=True))
    usage = (whole.usage.prompt_tokens, whole.usage.completion_tokens, whole.usage.total_tokens)
    assert usage == (prompt, len(expected.token_ids), prompt + len(expected.token_ids))

    chunks = list(shared.client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == expected.text
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + [
        expected.finish_reason
    ]
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert chunks[0].id != whole.id
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_stream_helper_of_the_client(shared, llm):
    """The client's own accumulation of events ends in the whole reply."""
    text = expected_chat(llm, max_tokens=12, temperature=0.0).text
    asked = {"model": "tiny", "messages": MESSAGES, "max_tokens": 12, "temperature": 0, "stop": text[4:6]}
    with shared.client.chat.completions.stream(**asked) as stream:
        completion = stream.get_final_completion()
    assert completion.choices[0].message.content == text[: text.find(text[4:6])]


def test_content_parts_developer_and_the_newer_limit(shared, llm):
    parts = [
        {"role": "developer", "content": [{"type": "text", "text": "be "}, {"type": "text", "text": "the king"}]},
        MESSAGES[1],
    ]
    reply = shared.client.chat.completions.create(
        model="tiny",
        messages=parts,
        max_completion_tokens=7,
        temperature=0,
        user="me",
        metadata={"a": "b"},
        store=False,
    )
    assert reply.choices[0].message.content == expected_chat(llm, max_tokens=7, temperature=0.0).text


def test_a_chat_may_fill_the_context(shared, llm):
    reply = shared.client.chat.completions.create(
        model="tiny", messages=MESSAGES, temperature=0, extra_body={"ignore_eos": True}
    )
    assert (reply.usage.total_tokens, reply.choices[0].finish_reason) == (96, "length")


@pytest.mark.parametrize("stream", [False, True])
def test_chat_logprobs(shared, llm, stream):
    expected = expected_chat(llm, max_tokens=6, temperature=0.0, logprobs=True, top_logprobs=2, ignore_eos=True)
    reply = shared.client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=6, temperature=0, logprobs=True, top_logprobs=2, stream=stream,
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    parts = list(reply) if stream else [reply]
    content = [t for part in parts if part.choices[0].logprobs for t in part.choices[0].logprobs.content]
    decode = llm.tokenizer.decode
    assert [t.token for t in content] == [decode([i], skip_special_tokens=False) for i in expected.token_ids]
    assert [t.logprob for t in content] == pytest.approx(expected.logprobs, abs=1e-5)
    assert [t.top_logprobs[0].logprob for t in content] == [t.logprob for t in content], "greedy takes the likeliest"
    assert all(len(t.top_logprobs) == 2 for t in content)
    for t in content:
        assert t.bytes == (None if "\ufffd" in t.token else list(t.token.encode()))


def test_the_closing_token_counts_but_is_not_shown(start, llm):
    """A reply that the model ends by itself: usage counts the end token, logprobs and text leave it out."""
    server = start()
    free = expected_chat(llm, max_tokens=10, temperature=0.0, ignore_eos=True)
    server.service.engine.engine.stop_ids = frozenset([free.token_ids[4]])
    first = free.token_ids.index(free.token_ids[4])
    asked = {"model": "tiny", "messages": MESSAGES, "max_tokens": 10, "temperature": 0, "logprobs": True}
    whole = server.client.chat.completions.create(**asked)
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage.completion_tokens == first + 1
    assert len(whole.choices[0].logprobs.content) == first
    streamed = list(server.client.chat.completions.create(**asked, stream=True))
    content = [t for chunk in streamed if chunk.choices[0].logprobs for t in chunk.choices[0].logprobs.content]
    expected = whole.choices[0].logprobs.content
    assert [token.token for token in content] == [token.token for token in expected]
    # The second time the prompt's beginning came from the cache, so its products had other shapes.
    assert [token.logprob for token in content] == pytest.approx([token.logprob for token in expected], abs=1e-5)


def test_completion_prompts_of_every_kind(shared, llm):
    texts = ["the king", "and"]
    ids = [[0, *llm.tokenizer.encode(text)] for text in texts]
    expected = [c.text for c in llm.generate(texts, SamplingParams(max_tokens=16, temperature=0.0))]
    for prompt, wanted in ((texts[0], expected[:1]), (texts, expected), (ids[0], expected[:1]), (ids, expected)):
        reply = shared.client.completions.create(model="tiny", prompt=prompt, temperature=0)
        assert [choice.text for choice in reply.choices] == wanted
        assert [choice.index for choice in reply.choices] == list(range(len(wanted)))
        streamed = [""] * len(wanted)
        for chunk in shared.client.completions.create(model="tiny", prompt=prompt, temperature=0, stream=True):
            for choice in chunk.choices:
                streamed[choice.index] += choice.text
        assert streamed == wanted


@pytest.mark.parametrize("stream", [False, True])
def test_completion_logprobs(shared, llm, stream):
    params = SamplingParams(max_tokens=8, temperature=0.9, seed=3, logprobs=True, top_logprobs=2, ignore_eos=True)
    expected = llm.generate(["the king"], params)[0]
    reply = shared.client.completions.create(
        model="tiny", prompt="the king", max_tokens=8, temperature=0.9, seed=3, logprobs=2, stream=stream,
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    parts = [part.choices[0].logprobs for part in (list(reply) if stream else [reply]) if part.choices[0].logprobs]
    tokens = [token for part in parts for token in part.tokens]
    assert tokens == [llm.tokenizer.decode([i], skip_special_tokens=False) for i in expected.token_ids]
    assert [v for part in parts for v in part.token_logprobs] == pytest.approx(expected.logprobs, abs=1e-5)
    offsets = [offset for part in parts for offset in part.text_offset]
    assert offsets == [sum(map(len, tokens[:i])) for i in range(len(tokens))]
    top = [entry for part in parts for entry in part.top_logprobs]
    for token, logprob, entry in zip(tokens, expected.logprobs, top, strict=True):
        assert token in entry
        assert max(entry.values()) >= logprob - 1e-5


def test_choices_and_seeds(shared):
    asked = {"model": "tiny", "messages": MESSAGES, "max_tokens": 10, "temperature": 1.2}
    four = shared.client.chat.completions.create(**asked, n=4, seed=5)
    texts = [choice.message.content for choice in four.choices]
    assert len(set(texts)) > 1
    assert [choice.index for choice in four.choices] == [0, 1, 2, 3]
    alone = shared.client.chat.completions.create(**asked, seed=7)
    assert alone.choices[0].message.content == texts[2], "choice i draws with seed + i"
    assert four.usage.prompt_tokens == alone.usage.prompt_tokens, "a prompt counts once"
    streamed = [""] * 4
    for chunk in shared.client.chat.completions.create(**asked, n=4, seed=5, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == texts


def test_stop_strings(shared, llm):
    whole = llm.generate(["the"], SamplingParams(max_tokens=30, temperature=0.0, ignore_eos=True))[0].text
    stop = whole[6:8]
    asked = {"model": "tiny", "prompt": "the", "max_tokens": 30, "temperature": 0, "extra_body": {"ignore_eos": True}}
    for value in (stop, ["never said", stop]):
        reply = shared.client.completions.create(**asked, stop=value)
        assert reply.choices[0].text == whole[: whole.find(stop)]
        assert reply.choices[0].finish_reason == "stop"


def test_streams_are_what_whole_replies_are(shared):
    """Random parameters, each asked twice, many at a time."""
    client = openai.AsyncOpenAI(base_url=f"{shared.url}/v1", api_key="none", max_retries=5, timeout=60)
    rng = random.Random(2)

    def parameters(seed):
        return {
            "model": "tiny",
            "prompt": [rng.randrange(5, 260) for _ in range(rng.randrange(1, 30))],
            "max_tokens": rng.randrange(1, 25),
            "temperature": rng.choice([0, 0.7, 1.5]),
            "top_p": rng.choice([1, 0.8]),
            "seed": seed,
            "stop": rng.choice([None, ["e", "\n"], ["th", "a"]]),
            "extra_body": {"ignore_eos": True, "top_k": rng.choice([0, 20])},
        }

    async def both(asked):
        whole = await client.completions.create(**asked)
        text, reason = "", None
        async for chunk in await client.completions.create(**asked, stream=True):
            text += chunk.choices[0].text
            reason = reason or chunk.choices[0].finish_reason
        assert (text, reason) == (whole.choices[0].text, whole.choices[0].finish_reason)
        assert not any(stop in text for stop in asked["stop"] or [])

    async def main():
        await asyncio.gather(*(both(parameters(seed)) for seed in range(16)))
        await client.close()

    asyncio.run(main())
    assert shared.service.engine.wait_idle(10)


@pytest.mark.parametrize(
    ("extra", "param", "says"),
    [
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0]", "function"),
        ({"tools": [{"type": "retrieval"}]}, "tools[0]", "function"),
        ({"tool_choice": "required"}, "tool_choice", "none or auto"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice", "none or auto"),
        ({"functions": [{"name": "f"}]}, "functions", "not supported"),
        ({"best_of": 2}, "best_of", "not supported"),
        ({"presence_penalty": 3}, "presence_penalty", "from -2 to 2"),
        ({"repetition_penalty": 0}, "repetition_penalty", "above 0"),
        ({"min_p": 2}, "min_p", "from 0 to 1"),
        ({"logit_bias": {"5": 101}}, "logit_bias", "from -100 to 100"),
        ({"logit_bias": {"five": 1}}, "logit_bias", "token ids"),
        ({"logit_bias": {"99999": 1}}, "logit_bias", "ids go from 0"),
        ({"stop_token_ids": [-1]}, "stop_token_ids", "at least 0"),
        ({"min_tokens": 4, "max_tokens": 3}, "min_tokens", "more than max_tokens"),
        ({"temprature": 1}, "temprature", "did you mean temperature"),
        ({"temperature": -1}, "temperature", "temperature is -1"),
        ({"temperature": "hot"}, "temperature", "number"),
        ({"top_p": 0}, "top_p", "top_p is 0"),
        ({"n": 0}, "n", "1 to 128"),
        ({"max_tokens": 0}, "max_tokens", "at least 1"),
        ({"max_tokens": 2, "max_completion_tokens": 2}, "max_tokens", "not both"),
        ({"stop": list("abcde")}, "stop", "at most 4"),
        ({"stop": [""]}, "stop", "none empty"),
        ({"stop": ["a", 5]}, "stop[1]", "string"),
        ({"top_logprobs": 3}, "top_logprobs", "needs logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "at most 20"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "needs stream"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "user", "content": "x" * 99}]}, "messages", "context"),
        ({"messages": [{"role": "user", "content": "x" * 10**6}]}, "messages", "characters"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role", "user"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "string"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0].type",
            "text",
        ),
        (
            {"messages": [{"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}]},
            "messages",
            "messages[0].tool_calls[0] must be",
        ),
        (
            {"messages": [{"role": "user", "content": "x", "tool_calls": [{"id": "1"}]}]},
            "messages[0].tool_calls",
            "only an assistant",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_refusals_name_the_field(shared, extra, param, says):
    with pytest.raises(openai.BadRequestError) as caught:
        shared.client.chat.completions.create(
            model="tiny",
            messages=MESSAGES,
            extra_body=extra,
        )
    assert caught.value.param == param
    assert says in caught.value.message
    assert caught.value.type == "invalid_request_error"
    assert shared.service.engine.wait_idle(0)


@pytest.mark.parametrize(
    ("prompt", "param", "code"),
    [
        ("", "prompt", None),  # a beginning-of-text token is still a prompt
        ([], "prompt", "invalid_value"),
        ([[]], "prompt", "invalid_value"),
        ([5, 269], "prompt", "invalid_value"),
        ([[5], [-1]], "prompt[1]", "invalid_value"),
        ([5] * 96, "prompt", "context_length_exceeded"),
        (["ok", "x" * 99], "prompt[1]", "context_length_exceeded"),
        ({"text": "x"}, "prompt", "invalid_type"),
        ([True], "prompt[0]", "invalid_type"),
        (["a"] * 30, "prompt", "invalid_value"),
    ],
)
def test_prompts_that_cannot_be(shared, prompt, param, code):
    asked = {"model": "tiny", "prompt": "x", "extra_body": {"prompt": prompt, "max_tokens": 1}}
    if code is None:
        shared.client.completions.create(**asked)
        return
    with pytest.raises(openai.BadRequestError) as caught:
        shared.client.completions.create(**asked)
    assert (caught.value.param, caught.value.code) == (param, code)


@pytest.mark.parametrize(
    "extra",
    [
        {"tools": None, "tool_choice": "none", "response_format": {"type": "text"}, "logit_bias": {}, "n": None},
        {"presence_penalty": 0, "frequency_penalty": 0.0, "seed": None, "stop": None, "stream": None},
        {"user": "u", "store": True, "service_tier": "auto", "parallel_tool_calls": True, "safety_identifier": "s"},
        {"best_of": 1, "min_tokens": 0, "min_p": 0, "repetition_penalty": 1, "stop_token_ids": [], "top_k": 0},
    ],
)
def test_fields_that_ask_for_nothing_are_taken(shared, extra):
    shared.client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=3, extra_body=extra)


def test_another_model_is_not_found(shared):
    with pytest.raises(openai.NotFoundError) as caught:
        shared.client.chat.completions.create(model="gpt-4o", messages=MESSAGES)
    assert caught.value.code == "model_not_found"
