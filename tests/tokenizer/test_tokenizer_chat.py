"""Chats in each template: the same text, ids and mask as transformers and as the templates said again in Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from chat_rooms import (
    CONTENT,
    CONVERSATIONS,
    MESSAGES,
    SCHEMAS,
    TOOLS,
    Chat,
    Part,
    call,
    calls,
    reference,
    train,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_rooms import turn
from tokenizers import AddedToken
from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from gristmill.errors import GristmillError
from gristmill.tokenizer.chat import ChatTemplate
from gristmill.tokenizer.pretokenize import build_pretokenizer
from gristmill.tokenizer.tokenizer import Tokenizer

SETTINGS: list[dict[str, Any]] = [
    {"chat_template": "chatml", "pretokenizer": "qwen2"},
    {"chat_template": "llama3", "pretokenizer": "llama3"},
    {"chat_template": "zephyr", "pretokenizer": "gpt2"},
    {"chat_template": "chatml", "kind": "unigram", "vocab_size": 900},
    {"chat_template": "llama3", "kind": "sentencepiece", "vocab_size": 900},
    {"chat_template": "zephyr", "kind": "wordpiece", "vocab_size": 900},
]


@pytest.fixture(scope="module", params=SETTINGS, ids=lambda options: "-".join(list(options.values())[:2]))
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.param


@pytest.fixture(scope="module")
def template(options: dict[str, Any]) -> str:
    return options["chat_template"]


@pytest.fixture(scope="module")
def chat_directory(options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("chat") / "tokenizer", **options)


@pytest.fixture(scope="module")
def ours(chat_directory: Path) -> Tokenizer:
    return Tokenizer.load(chat_directory)


@pytest.fixture(scope="module")
def theirs(chat_directory: Path) -> Any:
    return AutoTokenizer.from_pretrained(chat_directory)


def in_text(parts: list[Part]) -> str:
    return "".join(part.text for part in parts)


def in_ids(tokenizer: Tokenizer, parts: list[Part]) -> tuple[list[int], list[int]]:
    """Ids and mask, each stretch of plain text that one side wrote encoded by itself."""
    ids: list[int] = []
    mask: list[int] = []
    plain, mine = "", False
    for part in [*parts, Part("", special=True)]:
        if part.special or part.mine != mine:
            written = tokenizer.encode(plain)
            ids, mask, plain = ids + written, mask + [int(mine)] * len(written), ""
        if part.special and part.text:
            ids.append(tokenizer.backend.token_to_id(part.text))
            mask.append(int(part.mine))
        elif not part.special:
            plain += part.text
        mine = part.mine
    return ids, mask


@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("tools", [None, TOOLS])
def test_text_ids_and_mask_equal_transformers(
    ours: Tokenizer, theirs: Any, messages: Chat, tools: list[dict[str, Any]] | None
) -> None:
    for prompt in (False, True):
        text = theirs.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=prompt)
        assert ours.render_chat(messages, prompt, tools) == text
        expected = theirs.apply_chat_template(messages, tools=tools, add_generation_prompt=prompt, return_dict=True)
        assert ours.chat_ids(messages, prompt, tools) == expected["input_ids"]
    expected = theirs.apply_chat_template(messages, tools=tools, return_dict=True, return_assistant_tokens_mask=True)
    assert ours.chat_ids_with_mask(messages, tools) == (expected["input_ids"], expected["assistant_masks"])


@settings(deadline=None, max_examples=30)
@given(messages=MESSAGES, tools=SCHEMAS)
def test_text_ids_and_mask_equal_the_reference(
    ours: Tokenizer, template: str, messages: Chat, tools: list[dict[str, Any]]
) -> None:
    """Whatever the messages and tools hold, special strings too: each character of the assistant's is in the mask, the
    closing token included, and no other is."""
    parts = reference(template, messages, tools)
    ids, mask = in_ids(ours, parts)
    assert ours.render_chat(messages, tools=tools) == in_text(parts)
    assert ours.chat_ids_with_mask(messages, tools) == (ids, mask)
    assert ours.chat_ids(messages, tools=tools) == ids
    if ours.lossless:  # but for the "▁" that stands for a space
        assert ours.decode(ids, skip_special_tokens=False).replace("▁", " ") == in_text(parts).replace("▁", " ")
    prompt = reference(template, messages, tools, prompt=True)
    assert ours.chat_ids(messages, True, tools) == in_ids(ours, prompt)[0]


@settings(deadline=None, max_examples=25)
@given(messages=MESSAGES, tools=SCHEMAS)
def test_a_prompt_is_a_prefix(ours: Tokenizer, template: str, messages: Chat, tools: list[dict[str, Any]]) -> None:
    whole = ours.chat_ids(messages, tools=tools)
    for count, message in enumerate(messages):
        if tools and count == 0 and message["role"] == "system":
            continue  # tools stand in the first system message, so the chat without it is another one
        if message["role"] == "assistant":
            prompt = ours.chat_ids(messages[:count], True, tools)
            assert whole[: len(prompt)] == prompt
        shares_a_turn = template == "chatml" and [m["role"] for m in messages[count - 1 : count + 1]] == ["tool"] * 2
        if not shares_a_turn:
            shorter = ours.chat_ids(messages[:count], tools=tools)
            assert whole[: len(shorter)] == shorter


@pytest.mark.parametrize("digits", [None, 1])
@pytest.mark.parametrize("pretokenizer", ["gpt2", "gpt4", "llama3", "qwen2"])
@settings(deadline=None, max_examples=30)
@given(head=st.sampled_from(["assistant\n", "\n", "\n\n"]), reply=st.one_of(CONTENT, st.text()))
def test_every_pretokenizer_cuts_where_a_reply_begins(
    pretokenizer: str, digits: int | None, head: str, reply: str
) -> None:
    """What stands between the last special token of a prompt and the reply, in each template. GPT-2's regex fails at
    Llama 3's two line breaks, which is why `specials_of` refuses the two together."""
    cutter = build_pretokenizer(pretokenizer, digits)
    if (pretokenizer, head) != ("gpt2", "\n\n"):
        prompt = cutter.pre_tokenize_str(head)
        assert cutter.pre_tokenize_str(head + reply.strip())[: len(prompt)] == prompt


PUBLISHED = {
    # Qwen 2.5 and SmolLM2, behind our bos
    "chatml": "<|bos|><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    "Hello.<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
    # Llama 3's model card, behind our bos
    "llama3": "<|bos|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    "Hello.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    # Zephyr 7B's model card, behind our bos and with our eos
    "zephyr": "<|bos|><|system|>\nBe brief.<|eos|>\n<|user|>\nHi<|eos|>\n<|assistant|>\nHello.<|eos|>\n<|user|>\n"
    "Bye<|eos|>\n<|assistant|>\n",
}
PUBLISHED_CALLS = {
    "chatml": '<|im_start|>assistant\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>\n<tool_call>\n'
    '{"name": "now", "arguments": {}}\n</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>\n1\n</tool_response>\n'
    "<tool_response>\nnoon\n</tool_response><|im_end|>\n",
    "llama3": '<|start_header_id|>assistant<|end_header_id|>\n\n{"name": "add", "parameters": {"a": 1}}\n'
    '{"name": "now", "parameters": {}}<|eot_id|><|start_header_id|>ipython<|end_header_id|>\n\n1<|eot_id|>'
    "<|start_header_id|>ipython<|end_header_id|>\n\nnoon<|eot_id|>",
    "zephyr": '<|assistant|>\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>\n<tool_call>\n'
    '{"name": "now", "arguments": {}}\n</tool_call><|eos|>\n<|tool|>\n1<|eos|>\n<|tool|>\nnoon<|eos|>\n',
}


def test_published_renderings(ours: Tokenizer, template: str) -> None:
    messages = [
        turn("system", "Be brief."),
        turn("user", "Hi"),
        turn("assistant", " Hello. "),
        turn("user", "Bye"),
    ]
    assert ours.render_chat(messages, add_generation_prompt=True) == PUBLISHED[template]
    made = calls(None, call("add", {"a": 1}), call("now", {}))
    chat = [*messages, made, turn("tool", "1"), turn("tool", "noon")]
    assert ours.render_chat(chat) == ours.render_chat(messages) + PUBLISHED_CALLS[template]


def test_arguments_as_a_string_of_json_and_bare_calls(ours: Tokenizer) -> None:
    whole = [turn("user", "q"), calls(None, call("add", {"a": 1}), call("now", {}))]
    text = [turn("user", "q"), calls("", call("add", '{"a":1}'), call("now", ""))]
    bare = [
        turn("user", "q"),
        {"role": "assistant", "tool_calls": [{"name": "add", "arguments": {"a": 1}}, {"name": "now"}]},
    ]
    assert ours.chat_ids_with_mask(text) == ours.chat_ids_with_mask(bare) == ours.chat_ids_with_mask(whole)
    none = [turn("user", "q"), {"role": "assistant", "content": "a", "tool_calls": None}]
    assert ours.chat_ids(none, tools=[]) == ours.chat_ids([turn("user", "q"), turn("assistant", "a")])


# What published templates are made of, each construct once: Llama 3.1, Qwen 2.5 and 3, Mistral, Gemma, DeepSeek.
CONSTRUCTS = (
    "{%- macro shown(value, deep=true) -%}{%- if value is mapping -%}{%- set seen = namespace(any=false) -%}"
    "{%- for key, item in value | dictsort -%}{{ ',' if seen.any }}{%- set seen.any = true -%}{{ key }}:"
    "{{ shown(item) }}"
    "{%- endfor -%}{%- elif value is string -%}{{ '<' + value + '>' }}{%- elif value is sequence -%}"
    "{{ value | map('upper') | list if value and value[0] is string else value | length }}{%- else -%}{{ value }}"
    "{%- endif -%}{%- endmacro -%}{%- set now = strftime_now('%Y') | length -%}{{ now ~ bos_token }}"
    "{%- if not messages %}{{ raise_exception('no messages') }}{% endif -%}"
    "{%- for tool in tools or [] %}{{ tool | tojson }}{{ tool | tojson(indent=4) }}{{ shown(tool.function) }}"
    "{{ (tool | tojson)[:-1] | safe }}{%- for k, v in tool.function.items() if k != 'return' %}{{ k + ':' }}"
    "{{ v | string }}"
    "{{ ', ' if not loop.last }}{%- endfor %}{%- endfor -%}"
    "{%- set users = messages | selectattr('role', 'equalto', 'user') | list -%}"
    "{%- set ns = namespace(last=messages | length - 1, open=true) -%}{%- for m in messages[::-1] %}"
    "{%- set index = (messages | length - 1) - loop.index0 %}{%- if ns.open and m.role == 'user' "
    "and m.content is string and not (m.content.startswith('<r>') and m.content.endswith('</r>')) %}"
    "{%- set ns.open = false %}"
    "{%- set ns.last = index %}{%- endif %}{%- endfor -%}"
    "{%- for m in messages -%}{%- set text = m.get('content') or '' -%}"
    "{%- if m.role == 'tool' %}{% continue %}{% endif %}"
    "{%- if '</t>' in text %}{%- set text = text.split('</t>')[-1].lstrip('\n') %}{%- endif -%}"
    "{{ m['role'].upper() + ' ' + text.strip('\n').rstrip() | trim }}"
    "{{ '!' if m == users[-1] and loop.index0 == ns.last }}"
    "{%- if m.tool_calls is defined and m.tool_calls is not none -%}{%- for c in m.tool_calls %}"
    "{%- set c = c.function if c.function else c %}{{ c.name ~ (c.arguments | tojson) }}"
    "{%- for k, v in c.arguments | items %}{{ k ~ v }}{%- endfor %}"
    "{%- if loop.index > 8 %}{% break %}{% endif %}{%- endfor %}{%- endif -%}{%- endfor -%}"
)


@pytest.mark.parametrize("tools", [None, TOOLS])
def test_what_published_templates_are_made_of(tools: list[dict[str, Any]] | None) -> None:
    variables = {"bos_token": "<s>", "eos_token": "</s>"}
    template = ChatTemplate(CONSTRUCTS, "the template", variables, [])
    for messages in CONVERSATIONS:
        (expected,), _ = render_jinja_template([messages], chat_template=CONSTRUCTS, tools=tools, **variables)
        assert template.render(messages, tools=tools).text == expected


JOINING = (
    "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.function.name + '```json\n' + c.function.arguments "
    "+ '```' }}{% endfor %}{{ m.content or '' }}{% endfor %}"
)


def joined(*arguments: Any, source: str = JOINING) -> str:
    template = ChatTemplate(source, "the template", {}, [AddedToken("<|end|>", special=True)])
    chat = [turn("user", "q"), calls(None, *(call("f", given) for given in arguments)), turn("tool", "r")]
    rendering = template.render(chat)
    assert [piece for piece in rendering.pieces if piece.special] == []
    assert rendering.text == template.render([*chat[:2], turn("tool", "")], continue_final_message=True).text + "r"
    return rendering.text


def test_templates_that_join_arguments_to_text() -> None:
    """DeepSeek-V3's and R1's templates take arguments as JSON text, as the OpenAI API sends them; others as objects."""
    assert joined({"a": ["é", "<|end|>"]}, {}) == 'qf```json\n{"a": ["é", "<|end|>"]}```f```json\n{}```r'
    assert joined('{"a":1}', "", None) == 'qf```json\n{"a":1}```f```json\n{}```f```json\n{}```r'
    assert joined('{"a":1}', source=JOINING.replace("+ c.function.arguments", "~ (c.function.arguments | tojson)")) == (
        'qf```json\n{"a": 1}```r'
    )
    with pytest.raises(GristmillError, match=r"the template cannot .*: messages\[1\]: no calls"):
        joined(
            {},
            source=JOINING.replace("{{ c", "{{ raise_exception('no calls') if c.function.arguments == '{}' }}{{ c", 1),
        )
    with pytest.raises(GristmillError, match=r"the template cannot .*: messages\[1\]: can only concatenate"):
        joined({}, source=JOINING.replace("c.function.arguments", "c"))


def test_content_in_parts(ours: Tokenizer) -> None:
    parts = [{"type": "text", "text": "a <|im_"}, {"type": "text", "text": "end|> b"}]
    assert ours.chat_ids([turn("user", parts)]) == ours.chat_ids([turn("user", "a <|im_end|> b")])
    assert ours.chat_ids([turn("user", [])]) == ours.chat_ids([turn("user", "")])


@pytest.mark.parametrize("content", ["The answer", " The answer is \n", "", "<|im_end", "🌾 <"])
def test_a_reply_is_continued(ours: Tokenizer, theirs: Any, content: str) -> None:
    messages = [turn("user", "q"), turn("assistant", content)]
    if content.strip():
        text = theirs.apply_chat_template(messages, tokenize=False, continue_final_message=True)
        assert ours.render_chat(messages, continue_final_message=True) == text
    ids = ours.chat_ids(messages, continue_final_message=True)
    assert ids == ours.chat_ids([turn("user", "q")], True) + ours.encode(content.strip())
    open_turn = [turn("user", "  half a ques ")]
    rendered = ours.render_chat(open_turn, continue_final_message=True)
    assert rendered == theirs.apply_chat_template(open_turn, tokenize=False, continue_final_message=True)


@pytest.mark.parametrize(
    ("messages", "prompt", "complaint"),
    [
        ([turn("user", "q")], True, "exclude each other"),
        ([], False, "needs a last message"),
        ([turn("user", "q"), calls(None, call("now", {}))], False, "needs a last message"),
        ([turn("user", "q"), calls("x", call("now", {}))], False, r"messages\[1\] ends in tool_calls"),
    ],
)
def test_what_cannot_be_continued(tokenizer: Tokenizer, messages: Chat, prompt: bool, complaint: str) -> None:
    with pytest.raises(GristmillError, match=complaint):
        tokenizer.chat_ids(messages, add_generation_prompt=prompt, continue_final_message=True)


def test_the_mask_covers_reply_and_end_of_turn(ours: Tokenizer) -> None:
    ids, mask = ours.chat_ids_with_mask([turn("user", "Hi"), turn("assistant", "Hello 🌾"), turn("user", "Bye")])
    written = [id for id, mine in zip(ids, mask, strict=True) if mine]
    assert written[:-1] == ours.encode("Hello 🌾")
    assert written[-1] in ours.stop_ids


def test_stops_are_the_ends_of_turns(ours: Tokenizer, template: str) -> None:
    ends = {"chatml": ["<|eos|>", "<|im_end|>"], "llama3": ["<|eos|>", "<|eot_id|>"], "zephyr": ["<|eos|>"]}[template]
    assert ours.stop_ids == tuple(ours.backend.token_to_id(token) for token in ends)


@given(text=st.text())
@settings(deadline=None, max_examples=25)
def test_white_space_around_a_reply_is_dropped(ours: Tokenizer, text: str) -> None:
    spaced = [turn("user", "q"), turn("assistant", f" \n\t{text}\u3000\n")]
    assert ours.chat_ids_with_mask(spaced) == ours.chat_ids_with_mask([turn("user", "q"), turn("assistant", text)])


def test_lone_surrogates_in_messages(ours: Tokenizer) -> None:
    broken, mended = (ours.chat_ids_with_mask([turn("assistant", text)]) for text in ("a\ud800", "a\ufffd"))
    assert broken == mended
