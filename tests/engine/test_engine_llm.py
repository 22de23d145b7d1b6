"""Generation against a plain loop over the whole model, and what a batch must not change."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys

import pytest
import torch
from engine_fixtures import greedy_by_full_forward, make_model
from pydantic import BaseModel

from gristmill.artifact import build
from gristmill.engine.llm import LLM
from gristmill.engine.sampling import RequestError, SamplingParams
from gristmill.errors import GristmillError
from gristmill.events import EventLog
from gristmill.weights.hf import save_model

GREEDY = SamplingParams(max_tokens=20, temperature=0.0)


def prompts_of(lengths, seed=0):
    rng = random.Random(seed)
    return [[0, *(rng.randrange(5, 269) for _ in range(length - 1))] for length in lengths]


def llm_of(model, tokenizer, **limits):
    return LLM.from_model(model, tokenizer, **{"max_num_seqs": 8, **limits})


@pytest.mark.parametrize(
    "limits",
    [
        {"max_num_seqs": 1},
        {"max_num_seqs": 3, "max_num_batched_tokens": 5},  # prompts are cut into chunks and wait for each other
        {"max_num_seqs": 8},
        {"max_num_seqs": 32},
    ],
)
def test_greedy_is_the_plain_model_token_for_token(model, tokenizer, limits):
    prompts = prompts_of([1, 1, 2, 2, 2, 5, 7, 7, 7, 13, 30, 31, 60, 90, 95, 3, 1])
    expected = [greedy_by_full_forward(model, prompt, tokenizer.stop_ids, 20) for prompt in prompts]
    found = llm_of(model, tokenizer, **limits).generate(prompts, GREEDY)
    assert [completion.token_ids for completion in found] == expected
    assert len({tuple(ids) for ids in expected}) > 10, "the model is too dull to test anything"


def test_wide_batch_equals_batch_of_one(model, tokenizer):
    prompts = prompts_of([random.Random(1).randrange(1, 40) for _ in range(80)], seed=1)
    together = llm_of(model, tokenizer, max_num_seqs=64).generate(prompts, GREEDY)
    alone = llm_of(model, tokenizer, max_num_seqs=1)
    assert [c.token_ids for c in together] == [alone.generate([prompt], GREEDY)[0].token_ids for prompt in prompts]


def test_all_head_shapes(tokenizer):
    """One key head for all query heads, and one each."""
    for num_kv_heads in (1, 4):
        config = make_model().config.model_copy(update={"num_kv_heads": num_kv_heads})
        model = type(make_model())(config).init_weights(seed=3)
        prompts = prompts_of([4, 9, 2])
        expected = [greedy_by_full_forward(model, prompt, tokenizer.stop_ids, 8) for prompt in prompts]
        params = SamplingParams(max_tokens=8, temperature=0.0)
        assert [c.token_ids for c in llm_of(model, tokenizer).generate(prompts, params)] == expected


def test_seed_decides_whatever_else_is_in_the_batch(model, tokenizer):
    seeded = SamplingParams(max_tokens=15, temperature=1.3, top_p=0.9, seed=11)
    others = [
        SamplingParams(max_tokens=n, temperature=t, top_k=k) for n, t, k in [(3, 1.0, 0), (9, 0.0, 0), (20, 2.0, 5)]
    ]
    prompt, *rest = prompts_of([6, 4, 17, 2])
    alone = llm_of(model, tokenizer).generate([prompt], seeded)[0]
    for place in range(4):
        prompts, params = list(rest), list(others)
        prompts.insert(place, prompt)
        params.insert(place, seeded)
        assert llm_of(model, tokenizer).generate(prompts, params)[place] == alone
    assert llm_of(model, tokenizer).generate([prompt], SamplingParams(max_tokens=15, seed=12))[0] != alone


def test_order_length_and_reasons(model, tokenizer):
    prompts = prompts_of([3, 40, 5, 20])
    params = [SamplingParams(max_tokens=n, temperature=0.0, ignore_eos=True) for n in (1, 2, 3, 4)]
    progress = []
    found = llm_of(model, tokenizer, max_num_seqs=2).generate(prompts, params, lambda d, t: progress.append((d, t)))
    assert [len(c.token_ids) for c in found] == [1, 2, 3, 4]
    assert {c.finish_reason for c in found} == {"length"}
    assert progress[-1] == (4, 4)
    assert progress == sorted(progress)


def test_the_models_own_end(model, tokenizer):
    """The stop token closes the sequence, is listed and has no text; ignore_eos goes past it."""
    prompt = prompts_of([4])[0]
    free = llm_of(model, tokenizer).generate([prompt], SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True))[
        0
    ]
    llm = llm_of(model, tokenizer)
    llm.engine.stop_ids = frozenset([free.token_ids[5]])
    first = free.token_ids.index(free.token_ids[5])
    ended = llm.generate([prompt], SamplingParams(max_tokens=12, temperature=0.0))[0]
    assert (ended.token_ids, ended.finish_reason) == (free.token_ids[: first + 1], "stop")
    unbound = llm.generate([prompt], SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True))[0]
    assert unbound == free


def test_context_end_is_a_length_stop(model, tokenizer):
    params = SamplingParams(max_tokens=50, temperature=0.0, ignore_eos=True)
    found = llm_of(model, tokenizer, max_model_len=24).generate(prompts_of([20, 23]), params)
    assert [(len(c.token_ids), c.finish_reason) for c in found] == [(4, "length"), (1, "length")]


def test_logprobs_are_of_the_unscaled_distribution(model, tokenizer):
    prompt = prompts_of([5])[0]
    params = SamplingParams(
        max_tokens=6, temperature=0.7, top_k=4, seed=1, logprobs=True, top_logprobs=3, ignore_eos=True
    )
    found = llm_of(model, tokenizer).generate([prompt, *prompts_of([8, 2])], [params, GREEDY, GREEDY])[0]
    with torch.no_grad():
        reference = model(torch.tensor([prompt + found.token_ids]))[0].log_softmax(-1)
    assert len(found.logprobs) == len(found.top_logprobs) == 6
    for i, token in enumerate(found.token_ids):
        row = reference[len(prompt) - 1 + i]
        assert found.logprobs[i] == pytest.approx(row[token].item(), abs=1e-4)
        assert [t for t, _ in found.top_logprobs[i]] == row.topk(3).indices.tolist()
        assert [v for _, v in found.top_logprobs[i]] == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)


def test_text_prompts_begin_a_document(model, tokenizer):
    llm = llm_of(model, tokenizer)
    text = "the <|im_end|> thing"
    ids = [tokenizer.bos_id, *tokenizer.encode(text)]
    assert tokenizer.im_end_id not in ids
    assert llm.generate([text], GREEDY) == llm.generate([ids], GREEDY)


def test_chat_renders_the_template(model, tokenizer):
    messages = [{"role": "user", "content": "and then?"}]
    ids = tokenizer.chat_ids(messages, add_generation_prompt=True)
    llm = llm_of(model, tokenizer)
    assert llm.chat([messages], GREEDY) == llm.generate([ids], GREEDY)


def test_padding_rows_of_the_head_are_never_drawn(tokenizer):
    model = make_model(padding=700, spread=0.02)
    params = SamplingParams(max_tokens=40, temperature=50.0, ignore_eos=True, logprobs=True)
    found = llm_of(model, tokenizer).generate(prompts_of([3] * 8), params)
    assert max(max(c.token_ids) for c in found) < tokenizer.vocab_size


@pytest.mark.parametrize(
    ("prompts", "params", "named"),
    [
        ("text", None, "prompts is one string"),
        ([[1], []], None, r"prompts\[1\] is empty"),
        ([[1] * 96], None, r"prompts\[0\] has 96 tokens; the context is 96 tokens"),
        ([[1], [269]], None, r"prompts\[1\] holds token id 269"),
        ([[-1]], None, r"prompts\[0\] holds token id -1"),
        ([[1.5]], None, r"prompts\[0\] must be token ids"),
        ([[1], [1]], [GREEDY], "params has 1 entries for 2 prompts"),
    ],
)
def test_mistakes_are_named_before_any_work(model, tokenizer, prompts, params, named):
    llm = llm_of(model, tokenizer)
    with pytest.raises(GristmillError, match=named):
        llm.generate(prompts, params)
    assert llm.engine.num_steps == 0
    assert not llm.engine.has_work


@pytest.mark.parametrize(
    ("limits", "named"),
    [
        ({"max_model_len": 97}, "max_model_len is 97; this model takes 1 to 96"),
        ({"max_num_seqs": 0}, "max_num_seqs is 0"),
        ({"num_blocks": 5}, "num_blocks = 5 of 16 tokens hold 80 tokens; set max_model_len to at most 80"),
        ({"num_blocks": 10**10}, "GB are free: set at most"),
        ({"max_num_seqs": 10**9}, "max_num_seqs is 1000000000; at most"),
        ({"memory_utilization": 1.5}, "memory_utilization is 1.5; it must be above 0 and at most 1"),
        ({"max_num_seqs": 9, "max_num_batched_tokens": 8}, "max_num_batched_tokens is 8"),
    ],
)
def test_limits_that_cannot_be(model, tokenizer, limits, named):
    with pytest.raises(GristmillError, match=named):
        LLM.from_model(model, tokenizer, **limits)


class _NoConfig(BaseModel):
    pass


def artifact(model, tokenizer, directory, log):
    """A model artifact, as a stage leaves it."""

    def save(config, run):
        save_model(model, run.out, tokenizer.directory)
        return {}

    build(
        directory,
        kind="model",
        stage="sft",
        function=save,
        config=_NoConfig(),
        inputs={},
        seed=0,
        fingerprint="f",
        log=log.stage("sft"),
    )


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("chat_template.jinja", "{{ messages }}", "was changed"),
        ("chat_template.jinja", None, "is missing"),
        ("tokenizer_config.json", "{}", "was changed"),
        ("tokenizer.json", "{}", "was changed"),
        ("vocab.txt", "a", "was added"),
    ],
)
def test_a_tokenizer_that_is_not_the_models(model, tokenizer, tmp_path, name, change, said):
    """Whoever changes a template beside trained weights hears of it, before anything is loaded."""
    directory = tmp_path / "artifacts" / "sft"
    artifact(model, tokenizer, directory, EventLog(tmp_path / "events.jsonl"))
    expected = LLM(tmp_path, torch.float32, device="cpu").generate([[0, 7]], GREEDY)
    path = directory / name
    path.write_text(change) if change is not None else path.unlink()
    with pytest.raises(GristmillError, match=rf"{re.escape(str(path))} {said} since .*gristmill import .* --out DIR"):
        LLM(directory, torch.float32, device="cpu")
    if name == "vocab.txt":  # no artifact, so nothing to compare with
        (directory / "manifest.json").unlink()
        assert LLM(directory, torch.float32, device="cpu").generate([[0, 7]], GREEDY) == expected


def test_a_model_directory(model, tokenizer, tmp_path):
    """Weights, tokenizer and end tokens all come from the directory; a run directory leads to it."""
    directory = tmp_path / "artifacts" / "sft"
    save_model(model, directory, tokenizer.directory)
    prompts = prompts_of([4, 9])
    expected = llm_of(model, tokenizer).generate(prompts, GREEDY)
    assert LLM(directory, "float32", device="cpu", max_num_seqs=2).generate(prompts, GREEDY) == expected
    assert LLM(tmp_path, torch.float32, device="cpu").generate(prompts, GREEDY) == expected
    low = LLM(directory, "bfloat16", device="cpu")
    assert low.engine.runner.cache.layers[0].keys.dtype == torch.bfloat16
    assert len(low.generate(prompts, GREEDY)) == 2
    end = expected[0].token_ids[3]
    settings = json.loads((directory / "generation_config.json").read_text())
    (directory / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": [1, end]}))
    (stopped,) = LLM(directory, device="cpu").generate(prompts[:1], GREEDY)
    assert stopped.token_ids == expected[0].token_ids[: expected[0].token_ids.index(end) + 1]
    with pytest.raises(GristmillError, match="dtype is 'float8'"):
        LLM(directory, "float8")


def test_stream_joins_to_the_whole_and_closing_frees_the_slot(model, tokenizer):
    llm = llm_of(model, tokenizer, max_num_seqs=1)
    (whole,) = llm.generate(["the thing"], GREEDY)
    assert "".join(llm.stream("the thing", GREEDY)) == whole.text
    pieces = llm.stream("the thing", GREEDY)
    next(pieces)
    assert llm.engine.scheduler.running
    pieces.close()
    assert not llm.engine.has_work
    llm.engine.scheduler.check()


def test_interrupt_leaves_nothing_behind(model, tokenizer):
    llm = llm_of(model, tokenizer, max_num_seqs=2)

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        llm.generate(prompts_of([3, 4, 5, 6]), SamplingParams(max_tokens=2), interrupt)
    assert not llm.engine.has_work
    llm.engine.scheduler.check()
    assert llm.generate(prompts_of([3]), GREEDY)[0].token_ids


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", "hot"),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_k", -1),
        ("seed", 0.5),
        ("stop", ""),
        ("stop", ["a", ""]),
        ("stop", 7),
        ("top_logprobs", 21),
        ("top_logprobs", 2),
    ],
)
def test_params_name_the_field(field, value):
    with pytest.raises(RequestError, match=field) as caught:
        SamplingParams(**{field: value})
    assert caught.value.field == field


def test_a_model_is_loaded_and_answers_without_torchs_compiler():
    """Importing it takes longer than all the rest of a small model's first token."""
    shape = "bench.serve_ready import main; main('gristmill-5m', 'cpu', 'float32', '--random')"
    script = f"import sys; from gristmill.{shape}; print('torch._dynamo' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.split("\n")[:2] == ["first token", "False"]
