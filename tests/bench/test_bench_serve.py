"""`bench serve`: the published workloads, honest clocks and shares, peers in their own process, each idea's trial."""

import json
import random
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from gristmill.bench import serve, serve_load, serve_trials, serve_watch
from gristmill.bench.serve import bench_serve, table
from gristmill.bench.serve_load import Target, random_ids, random_model, standin_tokenizer, target, workload
from gristmill.bench.serve_peers import PEERS, PeerFailed
from gristmill.bench.serve_trials import TRIALS, copy_prompts
from gristmill.bench.serve_watch import Watch, percentile
from gristmill.cli import app
from gristmill.engine.sampling import SamplingParams
from gristmill.errors import GristmillError
from gristmill.model.config import ModelConfig

VOCAB = 320
TINY = ModelConfig(
    vocab_size=VOCAB, hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, intermediate_size=24,
    max_seq_len=16, tie_embeddings=True,
)  # fmt: skip
CPU = {"shape": "tiny", "device": "cpu", "scale": 0.02}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    known = serve_load.preset
    monkeypatch.setattr(serve_load, "preset", lambda name: TINY if name == "tiny" else known(name))


def figures_of(report):
    return {(row["workload"], row["side"]): row["figures"] for row in report["rows"]}


def test_the_workloads_are_the_published_ones():
    w1 = workload("w1")
    draw = random.Random(0)
    assert w1.lengths == tuple((draw.randint(100, 1024), draw.randint(100, 1024)) for _ in range(256))
    assert (w1.temperature, w1.steps) == (0.6, None)
    assert workload("b1").lengths == ((128, 512),)
    assert workload("b8").lengths == ((128, 256),) * 8
    assert workload("b32").lengths == ((512, 256),) * 32
    assert workload("prefill").lengths == ((2048, 1),) * 64
    assert {workload(name).temperature for name in ("b1", "b32", "prefill")} == {0.0}
    assert (workload("b32").steps, workload("prefill").steps) == (256, None)


def test_a_workload_shrinks_in_requests_and_in_lengths():
    small = workload("b32", requests=3, scale=0.1)
    assert small.lengths == ((51, 26),) * 3
    assert (small.prompt_tokens, small.output_tokens, small.longest) == (153, 78, 77)
    assert workload("b1", scale=0.0001).lengths == ((1, 1),)
    assert workload("w1", requests=4).lengths == workload("w1").lengths[:4]


def test_each_round_has_ids_of_its_own():
    load = workload("b32", requests=2, scale=0.1)
    first, again, second = load.prompts(VOCAB, 0), load.prompts(VOCAB, 0), load.prompts(VOCAB, 1)
    assert first == again
    assert first != second
    assert first[0] != first[1]
    assert [len(ids) for ids in second] == [51, 51]
    assert max(map(max, first)) < VOCAB
    assert all(params.ignore_eos and params.max_tokens == 26 for params in load.params())


def test_the_standin_tokenizer_has_every_id_and_reads_bytes(tmp_path):
    tokenizer = standin_tokenizer(tmp_path, VOCAB)
    assert tokenizer.vocab_size == VOCAB
    assert tokenizer.decode(tokenizer.encode("the café")) == "the café"
    assert tokenizer.decode([VOCAB - 1]).startswith("word")
    with pytest.raises(GristmillError, match="vocabulary of at least 258"):
        standin_tokenizer(tmp_path, 100)


def test_random_weights_are_whole_and_the_same_every_time():
    model = random_model(TINY, torch.float32, torch.device("cpu"))
    again = random_model(TINY, torch.float32, torch.device("cpu"))
    for (name, weight), other in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(weight, other), name
        if weight.dim() == 1:
            assert bool((weight == 1).all()), name
        else:
            assert float(weight.std()) == pytest.approx(serve_load.STD, rel=0.2), name


def test_a_random_models_context_is_as_long_as_the_work_needs():
    with target("tiny", None, "cpu", None, 500) as served:
        assert served.model.config.max_seq_len == 500
        assert json.loads((served.directory / "config.json").read_text())["vocab_size"] == VOCAB
    assert not served.directory.exists()


class Clock:
    """A time that a test sets."""

    now = 0.0

    def __call__(self):
        return self.now


class ScriptedEngine:
    """Gives each request the tokens that a script says, one entry a step: {request: tokens}; a step takes 1 s."""

    def __init__(self, clock, script):
        self.clock, self.script = clock, iter(script)
        self.num_steps = 0
        self.config = SimpleNamespace(block_size=4)
        self.blocks = SimpleNamespace(hit_tokens=10, query_tokens=10)
        self.scheduler = SimpleNamespace(running={})
        self.made = []

    def make_request(self, ids, params):
        request = SimpleNamespace(id=len(self.made), blocks=[], num_computed=0, num_preemptions=0, output_ids=[])
        self.made.append(request)
        return request

    def add(self, request):
        self.scheduler.running[request.id] = request

    def step(self):
        self.clock.now += 1
        self.num_steps += 1
        outputs = []
        for number, tokens in next(self.script).items():
            self.made[number].output_ids += tokens
            outputs.append(SimpleNamespace(request=self.made[number], new_token_ids=tokens, error=None))
        return outputs


def watched(monkeypatch, script):
    clock = Clock()
    monkeypatch.setattr(serve_watch, "perf_counter", clock)
    return Watch(ScriptedEngine(clock, script)), clock


def test_times_between_tokens_are_each_requests_own(monkeypatch):
    watch, clock = watched(monkeypatch, [{0: [1]}, {}, {0: [2], 1: [7]}, {0: [3, 4, 5], 1: [8]}])
    watch.add([1], SamplingParams())
    clock.now = 0.5
    watch.add([1], SamplingParams())
    for _ in range(4):
        watch.step()
    assert watch.first == {0: 1.5, 1: 3.0}
    assert watch.between == {0: [2.0, 1 / 3, 1 / 3, 1 / 3], 1: [1.0]}
    assert watch.tokens_a_step == pytest.approx(5 / 3)  # three times somebody past the first token got some
    assert (watch.steps, watch.output_tokens) == (4, 7)


def test_waste_is_the_average_over_time_of_room_not_used(monkeypatch):
    monkeypatch.setattr(serve_watch, "LOOK_EVERY", 1)
    watch, _ = watched(monkeypatch, [{}, {}, {}])
    request = watch.add([1], SamplingParams())
    assert watch.waste is None
    request.blocks, request.num_computed = [0, 1], 6
    watch.step()  # 2 of 8 places are empty
    watch.step()
    request.blocks, request.num_computed = [0, 1], 8
    watch.step()
    assert watch.waste == pytest.approx((2 / 8 + 2 / 8 + 0) / 3)


def test_the_hit_rate_counts_what_was_asked_since_the_watch_began(monkeypatch):
    watch, _ = watched(monkeypatch, [])
    assert watch.hit_rate is None
    watch.engine.blocks.hit_tokens += 30
    watch.engine.blocks.query_tokens += 40
    assert watch.hit_rate == 0.75


def test_percentiles_are_numpys():
    values = random.Random(1).choices(range(1000), k=77)
    for percent in (1, 50, 99):
        assert percentile(values, percent) == pytest.approx(np.percentile(values, percent))
    assert (percentile([], 50), percentile([3.0], 99)) == (None, 3.0)


def test_every_way_of_batching_serves_all_and_is_said_at_once():
    said = []
    report = bench_serve(
        ["w1"], requests=3, batching=["naive", "continuous", "static"], rounds=1, say=said.append, **CPU
    )
    found = figures_of(report)
    assert list(found) == [("w1", side) for side in ("gristmill", "gristmill static", "gristmill naive")]
    assert [line.split(", round 1")[0] for line in said] == [
        "w1, gristmill",
        "w1, gristmill static",
        "w1, gristmill naive",
    ]
    wanted = workload("w1", 3, CPU["scale"])
    for figures in found.values():
        assert figures["output tok/s"] * figures["seconds"] == pytest.approx(wanted.output_tokens)
        assert figures["peak memory GB"] > 0
    # One request at a time takes a step for each token; together they take as many as the longest has, or few more.
    assert found["w1", "gristmill naive"]["steps"] == wanted.output_tokens
    assert found["w1", "gristmill"]["steps"] < wanted.output_tokens


def test_the_best_round_counts():
    row = serve.Row("b1", "gristmill")
    row.add(2.0, {"steps": 1})
    row.add(1.0, {"steps": 2, "KV waste": None})
    row.add(3.0, {"steps": 3})
    assert (row.figures, row.rounds) == ({"steps": 2}, [2.0, 1.0, 3.0])


def test_the_table_has_a_column_a_side_and_the_ratio():
    rows = [
        {"workload": "b1", "side": "gristmill", "figures": {"seconds": 2.0, "KV waste": 0.031}, "rounds": [2.0, 3.0]},
        {"workload": "b1", "side": "vllm", "figures": {"seconds": 5.0}, "rounds": [5.0, 6.0]},
    ]
    report = {
        "rows": rows,
        "model": "m",
        "parameters": 7,
        "dtype": "float32",
        "device": "cpu",
        "absent": ["llama.cpp"],
        "precision": {"transformers": "float32"},
    }
    shown = table(report)
    assert "2.50x" in shown
    assert "3.1 %" in shown
    assert shown.endswith("llama.cpp is not installed")


FAKE_VLLM = """
import json, os
from types import SimpleNamespace as N

class SamplingParams(N): pass

class LLM:
    def __init__(self, **settings):
        assert settings["load_format"] == "dummy" and settings["skip_tokenizer_init"], settings
        assert os.path.exists(os.path.join(settings["model"], "config.json"))
        print("noise on standard output")

    def generate(self, prompts, params, use_tqdm):
        with open(os.environ["SEEN"], "a") as file:
            asked = [[p["prompt_token_ids"], q.max_tokens, q.temperature] for p, q in zip(prompts, params)]
            file.write(json.dumps(asked) + "\\n")
        {fault}
        return [N(outputs=[N(token_ids=[0] * (q.max_tokens - {short}))]) for q in params]
"""


@pytest.fixture
def fake_vllm(tmp_path, monkeypatch):
    def write(fault="", short="0"):
        (tmp_path / "vllm.py").write_text(FAKE_VLLM.replace("{fault}", fault).replace("{short}", short))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
        return tmp_path / "seen"

    return write


def test_a_peer_gets_the_same_ids_and_lengths(fake_vllm):
    seen = fake_vllm()
    report = bench_serve(["w1"], requests=2, rounds=2, peers=["vllm"], **CPU)
    found = figures_of(report)
    assert found["w1", "vllm"]["ready after s"] > 0
    assert found["w1", "vllm"]["output tok/s"] > 0
    _, *rounds = [json.loads(line) for line in seen.read_text().splitlines()]  # the first is its warm-up of one token
    load = workload("w1", 2, CPU["scale"])
    for turn, asked in enumerate(rounds):
        outputs = [output for _, output in load.lengths]
        assert asked == [[ids, n, 0.6] for ids, n in zip(load.prompts(VOCAB, turn), outputs, strict=True)]
    assert len(rounds) == 2


def test_on_a_gpu_a_peer_is_started_once_for_all_workloads(fake_vllm, monkeypatch):
    def as_on_a_gpu(loads, names, on_cpu):
        return together(loads, names, on_cpu=False)

    together = serve._together
    monkeypatch.setattr(serve, "_together", as_on_a_gpu)
    seen = fake_vllm()
    report = bench_serve(["b1", "b32"], requests=2, rounds=2, peers=["vllm"], **CPU)
    asked = [json.loads(line) for line in seen.read_text().splitlines()]
    assert [len(requests) for requests in asked] == [1, 2, 2, 2, 2]  # its one warm-up; then two rounds of each
    assert list(figures_of(report)) == [(load, side) for load in ("b1", "b32") for side in ("gristmill", "vllm")]
    lengths = {load.name: load.lengths for load in (workload("b1", 2, CPU["scale"]), workload("b32", 2, CPU["scale"]))}
    assert [len(asked[1][0][0]), len(asked[3][0][0])] == [lengths["b1"][0][0], lengths["b32"][0][0]]


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ({"fault": "raise MemoryError('no room')"}, "vllm failed: .*no room"),
        ({"fault": "if params[0].max_tokens > 1: raise OSError('gone')"}, "vllm failed: .*gone"),
        (
            {"fault": "if params[0].max_tokens == 1: short = 0", "short": "(q.max_tokens > 1)"},
            "8 tokens, 10 were asked",
        ),
    ],
    ids=["at its start", "in a round", "too few tokens"],
)
def test_a_peer_that_fails_says_why_and_ours_goes_on(broken, says, fake_vllm):
    fake_vllm(**broken)
    said = []
    report = bench_serve(["b32"], requests=2, rounds=2, peers=["vllm"], say=said.append, **CPU)
    assert list(figures_of(report)) == [("b32", "gristmill")]
    assert len(report["rows"][0]["rounds"]) == 2
    (told,) = [line for line in said if "vllm" in line]
    assert re.search(says, told, re.DOTALL), told


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(serve, "installed", lambda side, python: False)
    report = bench_serve(["b1"], rounds=1, peers=["llama.cpp", "transformers"], **CPU)
    assert report["absent"] == ["llama.cpp", "transformers", "transformers continuous"]


def test_each_peer_runs_where_it_is(monkeypatch):
    where = {("llama.cpp", "/with/llama"), ("transformers", sys.executable)}
    monkeypatch.setattr(serve, "installed", lambda side, python: (side, python) in where)
    started = []

    def start(name, python, *rest):
        started.append((name, python))
        raise PeerFailed(f"{name} was started")

    monkeypatch.setattr(serve, "Peer", start)
    report = bench_serve(["b8"], rounds=1, peers=["llama.cpp", "transformers"], peer_python="/with/llama", **CPU)
    assert set(started) == where
    assert report["absent"] == ["transformers continuous"]
    assert report["precision"]["llama.cpp"].endswith("keys and values in float16")


@pytest.mark.slow
@pytest.mark.parametrize("peer", ["transformers", "llama.cpp"])
def test_real_peers_give_every_token(peer):
    pytest.importorskip("gguf")
    report = bench_serve(["w1"], requests=2, rounds=1, peers=[peer], **CPU)
    expected = [side for side in PEERS[peer] if side not in report["absent"]]
    if not expected:
        pytest.skip(f"{peer} is not installed")
    assert [row["side"] for row in report["rows"]] == ["gristmill", *expected]


def test_a_shared_prefix_is_computed_once():
    report = bench_serve(["prefix"], shape="tiny", device="cpu", requests=8, scale=0.1)
    warm = figures_of(report)["prefix", "prefix shared"]
    # 100 shared tokens are 6 blocks of 16; a prompt has 102, and 7 of 8 find them.
    assert warm["block hit rate"] == pytest.approx(7 / 8 * 96 / 102, abs=0.01)


def test_a_long_prompt_is_read_at_once_or_in_parts():
    found = figures_of(bench_serve(["interleave"], shape="tiny", device="cpu", requests=2, scale=0.02))
    at_once, parts = found["interleave", "read at once"], found["interleave", "in parts"]
    assert at_once["tokens a step at most"] > 160 > parts["tokens a step at most"]
    assert set(at_once) == set(parts)
    assert all(value > 0 for value in parts.values())


def test_copying_is_measured_plain_and_with_drafts():
    found = figures_of(bench_serve(["copy"], shape="tiny", device="cpu", requests=2, scale=0.1))
    assert list(found) == [("copy", side) for side in ("plain, 1", "drafts, 1", "plain, 2", "drafts, 2")]
    assert found["copy", "plain, 1"]["tokens a step"] == 1
    assert found["copy", "drafts, 1"]["tokens a step"] >= 1
    assert "times the plain one" in found["copy", "drafts, 2"]


def test_text_to_copy_is_random_patterns_or_a_list_of_orders():
    served = Target("m", SimpleNamespace(config=TINY), SimpleNamespace(vocab_size=VOCAB), None, random=True)
    one, other = copy_prompts(served, 2, 0.5, 0)
    assert one == (one[:32] * 8)
    assert one != other
    asked = []
    real = SimpleNamespace(chat_ids=lambda messages, add_generation_prompt: asked.append(messages[0]["content"]) or [1])
    copy_prompts(Target("m", None, real, None, random=False), 2, 1.0, 0)
    assert asked[0] != asked[1]
    assert "21. " in asked[0]


def test_an_idle_engine_sleeps(monkeypatch):
    monkeypatch.setattr(serve_trials, "IDLE_SECONDS", 0.5)
    share = figures_of(bench_serve(["idle"], shape="tiny", device="cpu"))["idle", "gristmill"]["share of a core"]
    assert share < 0.5  # one that spins takes all of it


@pytest.mark.slow
def test_ready_is_the_time_of_a_process_to_its_first_token():
    found = figures_of(bench_serve(["ready"], shape="gristmill-5m", device="cpu"))
    assert [side for _, side in found] == ["cold kernels", "warm kernels"]
    assert all(0.1 < figures["first token after s"] < 600 for figures in found.values())


def test_splits_are_measured_on_a_gpu_alone():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(GristmillError, match="long compares kernels of a GPU"):
        bench_serve(["long"], shape="tiny", device="cpu", scale=0.001)


@pytest.mark.gpu
def test_on_a_gpu_launches_are_counted_and_splits_compared():
    report = bench_serve(["b1", "long"], shape="smollm2-135m", device="cuda", scale=0.1)
    found = figures_of(report)
    assert found["b1", "gristmill"]["kernels a step"] >= 30
    assert found["long", "parts"]["GB/s"] > found["long", "one part"]["GB/s"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"workloads": ["w2"]}, "--workload w2: known are w1, b1, b8, b32, prefill, prefix"),
        ({"batching": ["dynamic"]}, "--batching dynamic: known are continuous, static, naive"),
        ({"peers": ["sglang"]}, "--peer sglang: known are vllm, transformers, llama.cpp"),
        ({"shape": None}, "--shape NAME"),
        ({"shape": "smolm2-135m"}, "did you mean 'smollm2-135m'"),
        ({"dtype": "fp8"}, "--dtype fp8"),
        ({"workloads": []}, "--workload is missing"),
    ],
)
def test_what_is_not_there_is_refused(options, says):
    with pytest.raises(GristmillError, match=says):
        bench_serve(**{"workloads": ["b1"], "shape": "tiny", "device": "cpu"} | options)


def test_the_command_writes_what_it_prints(tmp_path):
    out = tmp_path / "report.json"
    command = ["bench", "serve", "--shape", "tiny", "--workload", "b1", "--workload", "prefill", "--requests", "2"]
    result = CliRunner().invoke(app, [*command, "--scale", "0.02", "--device", "cpu", "--json", "--out", str(out)])
    assert result.exit_code == 0, result.output
    report = json.loads(out.read_text())
    assert json.loads(result.stdout) == report
    assert [row["workload"] for row in report["rows"]] == ["b1", "prefill"]
    assert "prompt tok/s" in report["rows"][1]["figures"]
    assert set(TRIALS) >= {"prefix", "interleave", "copy", "long", "idle", "ready"}


def test_ids_are_of_the_vocabulary_and_of_the_seed():
    assert random_ids(10, 5, 1, 2) == random_ids(10, 5, 1, 2) != random_ids(10, 5, 1, 3)
    assert set(random_ids(3, 100, 0)) == {0, 1, 2}
