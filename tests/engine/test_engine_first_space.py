"""The first space of what a model says, with tokenizers that put one before every text (Llama 2, Mistral): a text is
gone on with, a reply begins one."""

from __future__ import annotations

import pytest
from engine_fixtures import make_model, scripted
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, normalizers

from gristmill.engine.llm import LLM
from gristmill.engine.sampling import SamplingParams
from gristmill.tokenizer.config import TokenizerConfig
from gristmill.tokenizer.tokenizer import Tokenizer
from gristmill.tokenizer.train import train_on_texts

TEXT = "the miller waits at the mill and the mill waits for the wind"
PARAMS = SamplingParams(max_tokens=40, temperature=0.0)


@pytest.fixture(scope="module")
def prefixed(tmp_path_factory):
    directory = tmp_path_factory.mktemp("prefixed")
    train_on_texts(TokenizerConfig(kind="sentencepiece", vocab_size=372), [TEXT] * 9, directory)
    backend = Backend.from_file(str(directory / "tokenizer.json"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.save(str(directory / "tokenizer.json"))
    tokenizer = Tokenizer.load(directory)
    assert tokenizer.dummy_prefix
    return LLM.from_model(make_model(padding=tokenizer.vocab_size - 269), tokenizer, max_num_seqs=4)


@pytest.fixture
def say(prefixed, monkeypatch):
    """Let the model say what `text` is in the middle of a text, a word that begins with a space first."""

    def install(text):
        tokenizer = prefixed.tokenizer
        ids = tokenizer.encode(text)  # the space that encoding puts in front is the one before the word
        assert tokenizer.decode(ids, continues=True) == f" {text}"
        scripted(monkeypatch, [*ids, tokenizer.eos_id])

    return install


def test_a_text_is_gone_on_with(prefixed, say):
    say("waits here")
    assert prefixed.generate(["the miller"], PARAMS)[0].text == " waits here"
    say("waits here")
    assert "".join(prefixed.stream("the miller", PARAMS)) == " waits here"


def test_a_reply_begins_a_text(prefixed, say):
    chat = [{"role": "user", "content": "who?"}]
    say("the miller")
    assert prefixed.chat([chat], PARAMS)[0].text == "the miller"
    say("the miller")
    ids = prefixed.tokenizer.chat_ids(chat, add_generation_prompt=True)
    assert "".join(prefixed.stream(ids, PARAMS)) == "the miller"


def test_nothing_but_the_beginning_is_no_text(prefixed, say):
    say("the miller")
    assert prefixed.generate([""], PARAMS)[0].text == "the miller"


def test_a_stop_string_may_begin_with_the_space(prefixed, say):
    say("waits here")
    params = SamplingParams(max_tokens=40, temperature=0.0, stop=[" waits"])
    assert prefixed.generate(["the miller"], params)[0].text == ""
