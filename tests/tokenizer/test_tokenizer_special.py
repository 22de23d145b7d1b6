"""Special tokens: their ids, and the configurations that are refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from chat_rooms import TEMPLATES, train
from tokenizer_rooms import turn

from gristmill.errors import GristmillError
from gristmill.tokenizer.config import TokenizerConfig
from gristmill.tokenizer.pretokenize import build_pretokenizer
from gristmill.tokenizer.special import Specials, reserved_token, specials_of
from gristmill.tokenizer.templates import builtin_template
from gristmill.tokenizer.tokenizer import Tokenizer

FIRST = ("<|bos|>", "<|eos|>", "<|pad|>")


def specials(**options: object) -> Specials:
    return specials_of(TokenizerConfig.model_validate(options))


@pytest.mark.parametrize(
    ("template", "marks"),
    [
        ("chatml", ("<|im_start|>", "<|im_end|>")),
        ("llama3", ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
        ("zephyr", ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")),
    ],
)
def test_ids_are_places(template: str, marks: tuple[str, ...]) -> None:
    found = specials(chat_template=template)
    assert found.tokens[: 3 + len(marks)] == FIRST + marks
    assert (found.unk, found.mask) == (None, None)
    assert found.named == {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "pad_token": "<|pad|>"}
    assert found.unnamed == found.tokens[3:]


def test_the_order_of_all_of_them() -> None:
    found = specials(fill_in_the_middle=True, special_tokens=["<|mask|>", "[NAME]"], reserved=2, kind="unigram")
    tools = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
    assert found.tokens == (
        *(*FIRST, "<|im_start|>", "<|im_end|>", *tools, "<|unk|>"),
        *("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|mask|>", "[NAME]"),
        *("<|reserved_0|>", "<|reserved_1|>"),
    )
    assert (found.unk, found.mask) == ("<|unk|>", "<|mask|>")
    assert found.named["unk_token"] == "<|unk|>"
    assert found.named["mask_token"] == "<|mask|>"
    assert set(found.named.values()).isdisjoint(found.unnamed)
    assert [specials(kind=kind).unk for kind in ("bpe", "wordpiece", "sentencepiece")] == [None, "<|unk|>", "<|unk|>"]
    assert reserved_token(7) == "<|reserved_7|>"


@pytest.mark.parametrize(("template", "stops"), [("chatml", (1, 4)), ("llama3", (1, 5)), ("zephyr", (1,))])
def test_each_is_one_token_and_only_by_its_id(template: str, stops: tuple[int, ...], tmp_path: Path) -> None:
    options = {"fill_in_the_middle": True, "special_tokens": ["<think>"], "reserved": 3}
    found = specials(chat_template=template, **options)
    tokenizer = Tokenizer.load(train(tmp_path, chat_template=template, **options))
    assert [tokenizer.backend.token_to_id(token) for token in found.tokens] == list(range(len(found.tokens)))
    assert tokenizer.special_ids == set(range(len(found.tokens)))
    assert tokenizer.special_ids.isdisjoint(tokenizer.encode("".join(found.tokens)))
    assert tokenizer.stop_ids == stops


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("pretokenizer", ["gpt2", "gpt4", "llama3", "qwen2"])
def test_no_special_token_can_be_learned_from_text(template: str, pretokenizer: str) -> None:
    cutter = build_pretokenizer(pretokenizer)
    options = {
        "fill_in_the_middle": True,
        "special_tokens": ["<a>", "[b]", "<|mask|>", "</s>", "<_1_>", "[_é]"],
        "reserved": 1,
    }
    for token in specials(chat_template=template, kind="unigram", **options).tokens:
        assert len(cutter.pre_tokenize_str(token)) > 1


@pytest.mark.parametrize(
    ("added", "complaint"),
    [
        ([""], r"special_tokens[0] is empty"),
        (["<a>", "<b>", "<a>"], r"special_tokens[2] '<a>' stands there twice"),
        (["<|bos|>"], r"special_tokens[0] '<|bos|>' is there already"),
        (["</tool_call>"], r"'</tool_call>' is there already"),
        (["<|fim_suffix|>"], r"'<|fim_suffix|>' is there already"),
        (["<|reserved_12|>"], r"is the name of a reserved token; set tokenizer.reserved"),
        (["<0xA1>"], r"'<0xA1>' is the name of a byte's token"),
        (["<\ud800>"], r"half a surrogate pair"),
        (["the"], r"'the' could be a piece of plain text"),
        (["<>"], r"'<>' could be a piece of plain text"),
        (["<->"], r"'<->' could be a piece of plain text"),
        (["<_>"], r"'<_>' could be a piece of plain text"),
        (["[__]"], r"'[__]' could be a piece of plain text"),
        (["[x>"], r"'[x>' could be a piece of plain text"),
        ([" <a>"], r"' <a>' could be a piece of plain text"),
    ],
)
def test_added_tokens_that_are_refused(added: list[str], complaint: str) -> None:
    with pytest.raises(GristmillError, match=re.escape(complaint)):
        specials(special_tokens=added, fill_in_the_middle=True)


def test_names_that_only_options_bring_are_free_without_them() -> None:
    assert "<|fim_suffix|>" in specials(special_tokens=["<|fim_suffix|>"]).tokens
    assert "<|im_end|>" in specials(chat_template="zephyr", special_tokens=["<|im_end|>"]).tokens


OWN = (
    "{# like <|other|> #}{% for m in messages %}<|turn|>{{ m.role }}: {% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content ~ '<|done|>' }}{% endgeneration %}{% else %}{{ m.content }}<|done|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant: {% endif %}"
)


def test_a_template_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "own.jinja"
    path.write_text(OWN)
    assert builtin_template(str(path)) == OWN
    with pytest.raises(GristmillError, match=r"own\.jinja writes <\|done\|>, <\|turn\|>, which would be plain letters"):
        specials(chat_template=str(path))
    found = specials(chat_template=str(path), special_tokens=["<|turn|>", "<|done|>"])
    assert found.tokens == (*FIRST, "<|turn|>", "<|done|>")
    directory = train(tmp_path / "t", chat_template=str(path), special_tokens=["<|turn|>", "<|done|>"])
    tokenizer = Tokenizer.load(directory)
    assert tokenizer.stop_ids == (1, 4)
    ids, mask = tokenizer.chat_ids_with_mask([turn("user", "<|done|>"), turn("assistant", "b")])
    assert ids.count(4) == 2
    assert [id for id, mine in zip(ids, mask, strict=True) if mine] == [*tokenizer.encode(" b")[-1:], 4]


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("{% for %}", "is not a valid chat template"),
        ("{{ raise_exception('never') }}", "cannot render these messages: never"),
        (
            "{{ messages | map(attribute='content') | join }}{{ 'A:' if add_generation_prompt }}",
            "asks for a reply by 'QA:'",
        ),
    ],
)
def test_templates_that_are_refused(tmp_path: Path, source: str, complaint: str) -> None:
    path = tmp_path / "own.jinja"
    path.write_text(source)
    with pytest.raises(GristmillError, match=rf"tokenizer\.chat_template .*own\.jinja.* {complaint}"):
        specials(chat_template=str(path))


def test_a_model_that_will_be_fine_tuned_needs_a_template_that_marks_replies(tmp_path: Path) -> None:
    path = tmp_path / "own.jinja"
    path.write_text(OWN.replace("{% generation %}", "").replace("{% endgeneration %}", ""))
    config = TokenizerConfig(chat_template=str(path), special_tokens=("<|turn|>", "<|done|>"))
    assert specials_of(config).tokens[3:] == ("<|turn|>", "<|done|>")
    with pytest.raises(
        GristmillError, match=r"own\.jinja does not mark what the assistant writes, .* \{% generation %\}"
    ):
        specials_of(config, tuned=True)
    path.write_text(OWN)
    assert specials_of(config, tuned=True) == specials_of(config)


@pytest.mark.parametrize(("kind", "room"), [("bpe", 265), ("unigram", 266), ("sentencepiece", 266), ("wordpiece", 256)])
def test_room_for_special_tokens_and_bytes(kind: str, room: int) -> None:
    specials(kind=kind, vocab_size=room)
    if room > 256:
        with pytest.raises(
            GristmillError, match=rf"vocab_size is {room - 1}, but \d+ special .* are {room} tokens; raise"
        ):
            specials(kind=kind, vocab_size=room - 1)
    with pytest.raises(GristmillError, match=r"vocab_size is 300, but 4\d\d special tokens"):
        specials(kind=kind, vocab_size=300, reserved=400)


def test_a_template_that_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(GristmillError, match=r"'alpaca', which is none of chatml, llama3, zephyr and cannot be read"):
        specials(chat_template="alpaca")
    (tmp_path / "latin").write_bytes(b"\xe9\xff")
    with pytest.raises(GristmillError, match="cannot be read as a file"):
        specials(chat_template=str(tmp_path / "latin"))


def test_a_pretokenizer_that_cuts_prompts_otherwise_than_chats() -> None:
    """GPT-2's regex gives the last of two line breaks to what follows, and Llama 3's prompts end in two."""
    cutter = build_pretokenizer("gpt2")
    prompt, chat = (cutter.pre_tokenize_str(text) for text in ("\n\n", "\n\nHello"))
    assert chat[: len(prompt)] != prompt
    with pytest.raises(
        GristmillError, match=r"llama3 ends a prompt in two .* tokenizer.pretokenizer gpt2 .* take gpt4"
    ):
        specials(chat_template="llama3", pretokenizer="gpt2")
    for pretokenizer in ("gpt4", "llama3", "qwen2"):
        specials(chat_template="llama3", pretokenizer=pretokenizer)
