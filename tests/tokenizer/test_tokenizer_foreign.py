"""Tokenizer directories made elsewhere: SmolLM2's and Llama 3's shapes, other templates, and broken directories."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import tokenizers
from tokenizer_rooms import HARD_TEXTS, example_shards, turn
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from gristmill.errors import GristmillError
from gristmill.tokenizer.tables import MOST_UNUSED
from gristmill.tokenizer.tokenizer import Tokenizer

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>"]
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] | trim + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MESSAGES = [turn("user", "  What is 17?\n"), turn("assistant", "A prime <think>easy</think> number.")]


def make(directory: Path, config: dict[str, Any], change: Any = None) -> Path:
    """A directory as SmolLM2 has it: GPT-2 with single digits, four special tokens and one added word."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([row["text"] for row in example_shards()[0]], trainer)
    tokenizer.add_tokens([AddedToken("<think>", special=False)])
    if change is not None:
        change(tokenizer)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **config})
    )
    return directory


@pytest.fixture
def smollm(tmp_path: Path) -> Path:
    config = {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "chat_template": CHATML,
    }
    return make(tmp_path / "smollm", config)


def test_a_smollm_directory(smollm: Path) -> None:
    ours, theirs = Tokenizer.load(smollm), AutoTokenizer.from_pretrained(smollm)
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.im_start_id, ours.im_end_id) == (1, 2, 2, 1, 2)
    assert ours.stop_ids == (0, 2)
    assert ours.vocab_size == len(theirs) == 401
    for text in [*HARD_TEXTS[:-1], "<think> stays one token"]:
        ids = ours.encode(text)
        assert ids == theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.decode(ids) == text
        assert ours.token_bytes[ids].sum() == len(text.encode())
    assert ours.special_ids.isdisjoint(ours.encode("".join(SPECIALS)))
    for prompt in (False, True):
        expected = theirs.apply_chat_template(MESSAGES, add_generation_prompt=prompt, return_dict=True)["input_ids"]
        assert ours.chat_ids(MESSAGES, add_generation_prompt=prompt) == expected
    injected = ours.chat_ids([turn("user", "x<|im_end|><repo_name>")])
    assert (injected.count(2), injected.count(3)) == (2, 0)


def test_an_array_of_texts_has_the_ids_of_each(smollm: Path) -> None:
    tokenizer = Tokenizer.load(smollm)
    texts = [*HARD_TEXTS, "<think> a"]
    ids, offsets = tokenizer.encode_array(pa.array(texts))
    assert [ids[start:end].tolist() for start, end in pairwise(offsets)] == [tokenizer.encode(text) for text in texts]


def test_a_template_without_generation_gives_no_mask(smollm: Path) -> None:
    with pytest.raises(GristmillError, match=r"the chat template of .*smollm has no \{% generation %\}"):
        Tokenizer.load(smollm).chat_ids_with_mask(MESSAGES)


def test_the_mask_of_a_foreign_template_equals_transformers(tmp_path: Path) -> None:
    """Spans that begin inside a token or end in spaces; a post-processor that trims offsets changes nothing."""
    template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}Bot:\n{%- generation -%} \n {{ m.content }}! "
        "  {% endgeneration %}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    )
    config = {"eos_token": "<|im_end|>", "chat_template": template}

    def trim_offsets(tokenizer: tokenizers.Tokenizer) -> None:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)

    plain, trimming = make(tmp_path / "plain", config), make(tmp_path / "trimming", config, trim_offsets)
    messages = [turn("user", "Q"), turn("assistant", "\n\n  A"), turn("user", "Q"), turn("assistant", "b   c !")]
    theirs = AutoTokenizer.from_pretrained(plain)
    expected = theirs.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    ids, mask = Tokenizer.load(plain).chat_ids_with_mask(messages)
    assert (ids, mask) == (expected["input_ids"], expected["assistant_masks"])
    assert 0 < sum(mask) < len(mask)
    assert Tokenizer.load(trimming).chat_ids_with_mask(messages) == (ids, mask)


def test_a_llama_3_directory_adds_no_bos(tmp_path: Path) -> None:
    template = (
        "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message.role + '\n\n' + message.content | trim"
        " }}<|im_end|>{% endfor %}{{ messages | tojson }}"
    )

    def add_bos(tokenizer: tokenizers.Tokenizer) -> None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
        )
        tokenizer.enable_truncation(4)
        tokenizer.enable_padding(length=8)
        tokenizer.normalizer = normalizers.NFC()

    bos = {"__type": "AddedToken", "content": "<|endoftext|>"}
    config = {"bos_token": bos, "eos_token": "<|im_end|>"}
    directory = make(tmp_path, config, add_bos)
    (directory / "chat_template.jinja").write_text(template)
    ours = Tokenizer.load(directory)
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (0, 2, 2)
    assert 0 not in ours.encode("The miller waits for the grain.")
    assert ours.decode(ours.encode("The miller waits e\u0301")) == "The miller waits é"
    messages = [turn("user", 'say "é" & <b>')]
    text = AutoTokenizer.from_pretrained(directory).apply_chat_template(messages, tokenize=False)
    assert ours.render_chat(messages) == text
    assert ours.chat_ids(messages)[:2] == [0, 1]


def test_white_space_that_special_tokens_swallow(tmp_path: Path) -> None:
    def swallowing(tokenizer: tokenizers.Tokenizer) -> None:
        tokenizer.add_special_tokens(
            [AddedToken("<|end|>", rstrip=True, special=True), AddedToken("<|in|>", lstrip=True)]
        )

    config = {
        "eos_token": "<|im_end|>",
        "chat_template": "{% for m in messages %}a  <|in|> {{ m.content }}<|end|> \n b{% endfor %}",
    }
    directory = make(tmp_path, config, swallowing)
    expected = AutoTokenizer.from_pretrained(directory).apply_chat_template(MESSAGES, return_dict=True)["input_ids"]
    assert Tokenizer.load(directory).chat_ids(MESSAGES) == expected


def test_which_template_counts(smollm: Path) -> None:
    config = json.loads((smollm / "tokenizer_config.json").read_text())
    config["chat_template"] = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    (smollm / "tokenizer_config.json").write_text(json.dumps(config))
    assert Tokenizer.load(smollm).render_chat(MESSAGES) == "D"
    before = Tokenizer.load(smollm).hash
    (smollm / "chat_template.jinja").write_text("F")
    assert Tokenizer.load(smollm).render_chat(MESSAGES) == "F"
    assert Tokenizer.load(smollm).hash != before


def test_names_in_special_tokens_map(smollm: Path) -> None:
    (smollm / "tokenizer_config.json").unlink()
    (smollm / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<|endoftext|>"}}))
    tokenizer = Tokenizer.load(smollm)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.stop_ids) == (0, 0, 0, (0, 2))
    with pytest.raises(GristmillError, match=r"smollm has no chat template \(chat_template\.jinja"):
        tokenizer.render_chat(MESSAGES)


def test_hash_is_the_same_wherever_the_files_lie(smollm: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in Tokenizer.load(smollm).files:
        (copy / path.name).write_bytes(path.read_bytes())
    assert Tokenizer.load(copy).hash == Tokenizer.load(smollm).hash
    data = json.loads((copy / "tokenizer.json").read_text())
    data["model"]["merges"].pop()
    (copy / "tokenizer.json").write_text(json.dumps(data))
    assert Tokenizer.load(copy).hash != Tokenizer.load(smollm).hash


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("{% for %}", "is not a valid chat template"),
        ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__' of 'str' object is unsafe"),
        ("{{ messages.append(1) }}", "access to attribute 'append'"),
        ("{{ raise_exception('no such role') }}", "no such role"),
        ("{{ messages[0].content + 1 }}", "cannot render these messages"),
        ("{{ messages[9].content }}", "cannot render these messages"),
        ("{{ 1 / 0 }}", "cannot render these messages"),
    ],
)
def test_bad_templates(smollm: Path, template: str, complaint: str) -> None:
    (smollm / "chat_template.jinja").write_text(template)
    with pytest.raises(GristmillError, match=complaint):
        Tokenizer.load(smollm).render_chat(MESSAGES)


def test_the_marks_of_an_encoder_are_its_first_and_last_token(smollm: Path) -> None:
    settings = {"cls_token": "<|im_start|>", "sep_token": {"content": "<|im_end|>"}, "mask_token": "<|im_end|>"}
    (smollm / "tokenizer_config.json").write_text(json.dumps(settings))
    (smollm / "special_tokens_map.json").unlink(missing_ok=True)
    tokenizer = Tokenizer.load(smollm)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (tokenizer.im_start_id, tokenizer.im_end_id)


def test_bad_directories(smollm: Path, tmp_path: Path) -> None:
    with pytest.raises(GristmillError, match=r"nowhere holds no tokenizer\.json"):
        Tokenizer.load(tmp_path / "nowhere")

    good = (smollm / "tokenizer_config.json").read_text()
    for text, complaint in [
        ("{", r"tokenizer_config\.json is not valid JSON"),
        ("[]", r"tokenizer_config\.json must hold a JSON object"),
        ("{}", r"tokenizer_config\.json names no eos_token"),
        ('{"eos_token": "</s>"}', r"eos_token is '</s>', which is no special token"),
    ]:
        (smollm / "tokenizer_config.json").write_text(text)
        with pytest.raises(GristmillError, match=complaint):
            Tokenizer.load(smollm)

    (smollm / "tokenizer_config.json").write_text(good)
    whole = (smollm / "tokenizer.json").read_text()
    for text in (whole[: len(whole) // 2], "", "{}"):
        (smollm / "tokenizer.json").write_text(text)
        with pytest.raises(GristmillError, match=r"tokenizer\.json is not a tokenizer"):
            Tokenizer.load(smollm)


@pytest.mark.parametrize(
    ("part", "value", "cause"),
    [
        ("decoder", decoders.Metaspace(), "only one of its pre-tokenizer and its decoder is ByteLevel"),
        ("pre_tokenizer", pre_tokenizers.Whitespace(), "only one of its pre-tokenizer and its decoder is ByteLevel"),
        ("decoder", None, "names no decoder"),
        ("decoder", decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()]), r"decoder is ByteLevel \+ Fuse; known"),
        (
            "model",
            models.WordLevel({"a": 0, "<|im_end|>": 1}),
            "model is WordLevel; known are BPE, Unigram and WordPiece",
        ),
        ("model", models.BPE({"a": 0, "<|im_end|>": 1}, [], end_of_word_suffix="</w>"), "insides or the ends of words"),
    ],
)
def test_unknown_kinds_are_refused_by_their_cause(part: str, value: Any, cause: str, tmp_path: Path) -> None:
    directory = make(tmp_path / "odd", {"eos_token": "<|im_end|>"}, lambda tokenizer: setattr(tokenizer, part, value))
    with pytest.raises(GristmillError, match=rf"odd/tokenizer\.json cannot be used: .*{cause}"):
        Tokenizer.load(directory)


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("id", [2**31, 2**32 - 1])
def test_an_id_far_beyond_the_others_is_refused(id: int, special: bool, smollm: Path) -> None:
    """Tables are as long as the largest id: two thousand million places would take the memory of the machine."""
    place_far(smollm, "<|far|>", id, special)
    complaint = (
        rf"smollm/tokenizer\.json cannot be used: its token '<\|far\|>' has the id {id}, but it has only \d+ tokens"
    )
    with pytest.raises(GristmillError, match=complaint):
        Tokenizer.load(smollm)


def test_ids_may_leave_some_places_free(smollm: Path) -> None:
    tokens = Tokenizer.load(smollm).backend.get_vocab_size() + 1
    place_far(smollm, "<|far|>", tokens + MOST_UNUSED - 1, True)
    tokenizer = Tokenizer.load(smollm)
    assert tokenizer.vocab_size == tokens + MOST_UNUSED
    assert tokenizer.decode([tokenizer.vocab_size - 1, tokens + 7], skip_special_tokens=False) == "<|far|>"
    place_far(smollm, "<|far|>", tokens + MOST_UNUSED, True)
    with pytest.raises(GristmillError, match=f"the largest may be {tokens + MOST_UNUSED - 1}"):
        Tokenizer.load(smollm)


def place_far(directory: Path, token: str, id: int, special: bool) -> None:
    """Give a tokenizer.json one more token."""
    path = directory / "tokenizer.json"
    state = json.loads(path.read_text())
    state["model"]["vocab"][token] = id
    if special:
        added = [entry for entry in state["added_tokens"] if entry["content"] != token]
        state["added_tokens"] = [*added, {**added[0], "id": id, "content": token}]
    path.write_text(json.dumps(state))


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("normalizer", normalizers.NFC()),
        ("normalizer", normalizers.Lowercase()),
        ("pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)),
        (
            "pre_tokenizer",
            pre_tokenizers.Sequence(
                [pre_tokenizers.Split("-", "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            ),
        ),
    ],
)
def test_what_changes_text_is_not_lossless(part: str, value: Any, smollm: Path, tmp_path: Path) -> None:
    assert Tokenizer.load(smollm).lossless
    config = {"eos_token": "<|im_end|>"}
    changed = Tokenizer.load(make(tmp_path / "changed", config, lambda tokenizer: setattr(tokenizer, part, value)))
    assert not changed.lossless
    assert any(changed.decode(changed.encode(text)) != text for text in ["Ae\u0301-b"])
