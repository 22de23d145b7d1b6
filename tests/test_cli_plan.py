"""`gristmill plan model`: what it takes, what it prints, how it says that something is wrong."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from command_line import call
from gristmill.cli.shapes import shape_of
from gristmill.model.presets import preset
from gristmill.plan.model import plan_model
from gristmill.recipe import load_recipe
from gristmill.train.memory import Rows, estimate_memory
from gristmill.train.precision import resolve_precision

RECIPES = Path(__file__).parent.parent / "recipes"


@pytest.fixture
def plan(monkeypatch, capsys):
    """The values that `gristmill plan model ... --json` prints, by id."""

    def values(*arguments):
        code, out, err = call(monkeypatch, capsys, "plan", "model", *arguments, "--json")
        assert code == 0, err
        return {quantity["id"]: quantity["value"] for quantity in json.loads(out)["quantities"]}

    return values


def test_json_of_a_preset(monkeypatch, capsys):
    code, out, _ = call(monkeypatch, capsys, "plan", "model", "llama-3-8b", "--json")
    assert code == 0
    found = json.loads(out)
    assert {key: found[key] for key in ("model", "seq_len", "dtype")} == {
        "model": "llama-3-8b", "seq_len": 8192, "dtype": "bf16"}  # fmt: skip
    assert found["config"] == preset("llama-3-8b").model_dump(mode="json")
    for quantity in found["quantities"]:
        assert list(quantity) == ["id", "value", "unit", "formula", "label"]
        assert quantity["label"] == "computed"
    values = {quantity["id"]: quantity["value"] for quantity in found["quantities"]}
    assert values["parameters.total"] == 8_030_261_248
    assert values["kv_cache.per_token"] == 131_072
    assert values["kv_cache.sequence"] == 1_073_741_824


def test_the_table_has_every_figure_with_its_formula(monkeypatch, capsys):
    code, out, _ = call(monkeypatch, capsys, "plan", "model", "llama-3-8b")
    assert code == 0
    assert "8,030,261,248" in out
    assert "16.06 GB = 14.96 GiB" in out
    assert "L (3 C F)" in out
    assert "128 KiB/token" in out


def test_a_narrow_terminal_gets_formulas_in_whole_words(monkeypatch, capsys):
    printed = {}
    for columns in (80, 200):
        monkeypatch.setenv("COLUMNS", str(columns))
        _, printed[columns], _ = call(monkeypatch, capsys, "plan", "model", "deepseek-v3")
        lines = printed[columns].splitlines()
        assert max(map(len, lines)) <= columns
        assert all(line == line.rstrip() for line in lines)
    assert printed[80].split() == printed[200].split(), "only the lines differ"
    for quantity in plan_model(preset("deepseek-v3"), preset("deepseek-v3").max_seq_len, "bf16"):
        figure = f"{quantity.id.partition('.')[2]} {quantity.shown()} {quantity.formula}".split()
        assert " ".join(figure) in " ".join(printed[80].split())
        assert any(line.split() == figure for line in printed[200].splitlines()), "one line where there is room"


def test_length_type_and_fields_change_the_answer(plan):
    plain = plan("mixtral-8x7b", "--seq-len", 4096)
    assert plan("mixtral-8x7b", "--seq-len", 4096, "--dtype", "fp8")["kv_cache.sequence"] * 2 == (
        plain["kv_cache.sequence"])  # fmt: skip
    changed = plan("mixtral-8x7b", "--seq-len", 4096, "--set", "experts.top_k=4", "--set", "num_kv_heads=32")
    assert changed["kv_cache.sequence"] == 4 * plain["kv_cache.sequence"]
    assert changed["parameters.active_feed_forward"] == 2 * plain["parameters.active_feed_forward"]
    assert plan("mixtral-8x7b", "--seq-len", 8192)["flops.attention"] > 1.9 * plain["flops.attention"]


def test_recipes_runs_models_and_config_files(plan, tmp_path):
    recipe = plan(RECIPES / "quickstart.yaml")
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text((RECIPES / "quickstart.yaml").read_text())
    assert plan(run) == recipe
    settings = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128, "hidden_size": 64,
                "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
                "max_position_embeddings": 256, "tie_word_embeddings": True}  # fmt: skip
    model = run / "artifacts" / "base"
    model.mkdir(parents=True)
    (model / "config.json").write_text(json.dumps(settings))
    (tmp_path / "other.json").write_text(json.dumps(settings))
    expected = 128 * 64 + 2 * (64 * 8 * 16 + 64 * 64 + 3 * 64 * 96 + 2 * 64) + 64
    for target in (model, model / "config.json", tmp_path / "other.json", run):
        assert plan(target)["parameters.total"] == expected


def test_what_was_read_of_a_run_is_said(monkeypatch, capsys, tmp_path):
    (tmp_path / "recipe.yaml").write_text((RECIPES / "quickstart.yaml").read_text())
    assert call(monkeypatch, capsys, "plan", "model", tmp_path)[1].startswith(f"{tmp_path / 'recipe.yaml'}: ")
    model = tmp_path / "artifacts" / "sft"
    model.mkdir(parents=True)
    settings = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128, "hidden_size": 64,
                "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}  # fmt: skip
    (model / "config.json").write_text(json.dumps(settings))
    assert call(monkeypatch, capsys, "plan", "model", tmp_path)[1].startswith(f"{model}: ")
    found = json.loads(call(monkeypatch, capsys, "plan", "model", tmp_path, "--json")[1])
    assert (found["model"], found["source"]) == (str(tmp_path), str(model))


def test_a_vocabulary_that_is_padded_counts_whole(plan, tmp_path):
    text = (RECIPES / "quickstart.yaml").read_text()
    (tmp_path / "recipe.yaml").write_text(text.replace("vocab_size: 4096", "vocab_size: 4097\n  pad_to_multiple: 64"))
    assert plan(tmp_path / "recipe.yaml")["parameters.embedding"] == 4160 * 128


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["lama-3-8b"], "no model shape is called 'lama-3-8b'; did you mean 'llama-3-8b'?"),
        (["none.yaml"], "none.yaml does not exist"),
        (["runs/none"], "runs/none does not exist"),
        (["llama-3-8b", "--set", "num_kvheads=4"], "no field 'num_kvheads'; did you mean 'num_kv_heads'?"),
        (["mixtral-8x7b", "--set", "experts.topk=4"], "no field 'topk'; did you mean 'top_k'?"),
        (["mixtral-8x7b", "--set", "top_k.more=4"], "there is no field 'top_k'"),
        (["llama-3-8b", "--set", "hidden_size.more=4"], "there is no field 'more'"),
        (["llama-3-8b", "--set", "num_kv_heads=5"], "num_heads (32) is not a multiple of num_kv_heads (5)"),
        (["llama-3-8b", "--set", "hidden_size=0"], "hidden_size: must be greater than 0, not 0"),
        (["llama-3-8b", "--set", "experts.top_k=2"], "experts.num_experts: is required"),
        (["llama-3-8b", "--set", "num_kv_heads=abc"], "--set: num_kv_heads: must be an integer, not 'abc'\n"),
        (["llama-3-8b", "--seq-len", "abc"], "Invalid value for '--seq-len': must be an integer (see"),
        (["llama-3-8b", "--set", "num_kv_heads"], "expected field=value"),
        (["llama-3-8b", "--dtype", "bf17"], "dtype 'bf17' is not known"),
        (["llama-3-8b", "--seq-len", "0"], "seq_len must be at least 1 token, not 0"),
        (["gpt2-xl", "--seq-len", "4096"], "more than the model's 1024 learned positions"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_1(monkeypatch, capsys, arguments, said):
    code, _, err = call(monkeypatch, capsys, "plan", "model", *arguments)
    assert code == 1
    assert said in err
    assert err.count("\n") == 1
    assert "defect" not in err


def test_a_recipe_without_a_model_and_a_directory_without_anything(monkeypatch, capsys, tmp_path):
    (tmp_path / "recipe.yaml").write_text("name: a\n")
    code, _, err = call(monkeypatch, capsys, "plan", "model", tmp_path / "recipe.yaml")
    assert code == 1
    assert "has no section 'base'" in err
    (tmp_path / "empty").mkdir()
    code, _, err = call(monkeypatch, capsys, "plan", "model", tmp_path / "empty")
    assert code == 1
    assert "neither a model directory" in err
    (tmp_path / "broken.json").write_text("{")
    code, _, err = call(monkeypatch, capsys, "plan", "model", tmp_path / "broken.json")
    assert code == 1
    assert "is not JSON" in err


def test_planning_a_preset_needs_no_torch():
    script = (
        "import sys; from gristmill.cli.plan import any_shape_of; from gristmill.plan.model import plan_model;"
        "plan_model(any_shape_of('deepseek-v3'), 4096); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.fixture
def planned(monkeypatch, capsys):
    """What `gristmill plan VERB ... --json` prints, and its values by id."""

    def found(verb, *arguments):
        code, out, err = call(monkeypatch, capsys, "plan", verb, *arguments, "--json")
        assert code == 0, err
        printed = json.loads(out)
        return printed, {quantity["id"]: quantity["value"] for quantity in printed["quantities"]}

    return found


def test_memory_of_training(planned, monkeypatch, capsys):
    printed, values = planned("memory", "gristmill-135m", "--seq-len", 2048, "--micro-batch-size", 32)
    assert printed["settings"]["micro_batch_size"] == 32
    assert printed["settings"]["compiled"] is True
    params = preset("gristmill-135m").num_parameters
    assert values["memory.weights"] == 4 * params
    assert values["memory.optimizer"] == 8 * params
    assert values["memory.total"] == max(value for name, value in values.items() if name.startswith("moments."))
    _, less = planned("memory", "gristmill-135m", "--seq-len", 2048, "--micro-batch-size", 32,
                      "--activation-checkpointing", "block", "--optimizer", "adam8bit")  # fmt: skip
    assert less["memory.total"] < values["memory.total"] / 4
    code, out, _ = call(monkeypatch, capsys, "plan", "memory", "gristmill-135m", "--set", "num_layers=2")
    assert code == 0
    assert "sum, at its highest moment" in out
    assert "L=2" in out


def test_a_training_run(planned, monkeypatch, capsys):
    _, values = planned("train", "llama-3-8b", "--seq-len", 2048, "--processes", 8, "--tokens", 160e9, "--mfu", 0.5)
    assert values["time.tokens_per_second"] == pytest.approx(8 * 989.4e12 * 0.5 / values["flops.per_token"])
    assert values["memory.zero3"] < values["memory.zero2"] < values["memory.zero1"] < values["memory.ddp"]
    assert values["tokens.steps"] == pytest.approx(160e9 / (8 * 2048))
    _, by_default = planned("train", "gristmill-135m")
    assert by_default["tokens.per_parameter"] == pytest.approx(20)
    code, out, _ = call(monkeypatch, capsys, "plan", "train", "llama-3-8b", "--tokens", 160e9)
    assert code == 0
    assert " days" in out


TRAINING = """
    steps: 1800
    batch_size: 16
    micro_batch_size: 4
    precision: fp16
    optimizer: muon
    compile: "off"
    device: cpu
    memory: {activation_checkpointing: block, offload: disk}
    parallel: {data: zero2}
"""


def test_a_recipe_is_planned_with_its_own_settings_and_flags_go_before_them(planned, tmp_path):
    """The estimate that training itself makes of the recipe."""
    path = tmp_path / "recipe.yaml"
    text = (RECIPES / "quickstart.yaml").read_text()
    path.write_text(text.replace("\n    steps: 1800\n    batch_size: 16\n", TRAINING, 1))
    base = load_recipe(path).base
    printed, values = planned("memory", path)
    expected = {"micro_batch_size": 4, "sequence_length": 128, "accumulates": True, "precision": "fp16",
                "optimizer": "muon", "compiled": False, "device": "cpu", "checkpointing": "block", "offload": "disk",
                "data": "zero2", "processes": 1, "weights": "fp32"}  # fmt: skip
    assert printed["settings"] == expected
    config = shape_of(str(path))
    assert values["memory.total"] == estimate_memory(config, base.training, [Rows(16, 128)], 1, "fp16", "cpu").total
    printed, _ = planned("memory", path, "--processes", 4, "--precision", "bf16", "--seq-len", 64, "--device", "cuda",
                         "--optimizer", "adamw", "--compile")  # fmt: skip
    expected |= {"processes": 4, "accumulates": False, "precision": "bf16", "sequence_length": 64, "device": "cuda",
                 "optimizer": "adamw", "compiled": True}  # fmt: skip
    assert printed["settings"] == expected
    assert planned("memory", path, "--micro-batch-size", 16)[0]["settings"]["accumulates"] is False
    printed, values = planned("train", path, "--precision", "fp32")
    assert (printed["settings"]["tokens"], printed["settings"]["batch_tokens"]) == (1800 * 16 * 128, 16 * 128)
    assert values["tokens.steps"] == 1800
    # Without a word about it: the whole batch at once, compiled on a GPU, not on a CPU.
    plain, _ = planned("memory", RECIPES / "quickstart.yaml")
    assert {key: plain["settings"][key] for key in ("micro_batch_size", "accumulates", "compiled", "precision")} == {
        "micro_batch_size": 16, "accumulates": False, "compiled": True, "precision": "bf16"}  # fmt: skip
    on_cpu, values = planned("memory", RECIPES / "quickstart.yaml", "--device", "cpu")
    base = load_recipe(RECIPES / "quickstart.yaml").base
    precision = resolve_precision("auto", torch.device("cpu"))
    config = shape_of(str(RECIPES / "quickstart.yaml"))
    assert on_cpu["settings"]["precision"] == precision
    assert values["memory.total"] == estimate_memory(config, base.training, [Rows(16, 128)], 1, precision, "cpu").total


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["memory", "llama-3-8b", "--precision", "bf17"], "--precision bf17: use one of fp32, bf16, fp16, fp8"),
        (
            ["memory", "llama-3-8b", "--optimizer", "sgd"],
            "--optimizer sgd: use one of adamw, muon, adam8bit, adafactor",
        ),
        (["memory", "llama-3-8b", "--weights", "bf16", "--precision", "fp32"], "cannot be multiplied in fp32"),
        (["memory", "llama-3-8b", "--micro-batch-size", "0"], "micro_batch_size must be at least 1, not 0"),
        (["memory", "gpt2-xl", "--seq-len", "4096"], "more than the model's 1024 learned positions"),
        (["memory", "gristmill-135m", "--seq-len", "99999"], "seq_len (99999) is more than the model's max_seq_len ("),
        (["train", "gristmill-135m", "--seq-len", "99999"], "seq_len (99999) is more than the model's max_seq_len ("),
        (["memory", RECIPES / "quickstart.yaml", "--processes", "3"], "batch_size (16) cannot be shared equally by 3"),
        (["train", "llama-3-8b", "--mfu", "0"], "mfu must be above 0 and at most 1, not 0"),
        (["train", "llama-3-8b", "--accelerator", "h1000"], "'h1000' is not known"),
        (["train", "llama-3-8b", "--batch-tokens", "100"], "a step of 100 tokens is less than the 8,192"),
    ],
)
def test_a_mistake_about_training_is_one_line(monkeypatch, capsys, arguments, said):
    code, _, err = call(monkeypatch, capsys, "plan", *arguments)
    assert code == 1
    assert said in err
    assert len(err.strip().splitlines()) == 1


BERT = {
    "model_type": "bert", "architectures": ["BertModel"], "vocab_size": 100, "hidden_size": 24,
    "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 32,
    "type_vocab_size": 2,
}  # fmt: skip
T5 = {
    "model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "vocab_size": 100, "d_model": 24, "d_kv": 6,
    "d_ff": 48, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4, "is_encoder_decoder": True,
}  # fmt: skip


def test_encoders_and_encoder_decoders_by_their_config_files(plan, monkeypatch, capsys, tmp_path):
    """Parameters as transformers builds them."""
    transformers = pytest.importorskip("transformers")
    for name, settings, kind in (("bert", BERT, "BertModel"), ("t5", T5, "T5ForConditionalGeneration")):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(settings))
        config = transformers.AutoConfig.for_model(**settings)
        expected = sum(p.numel() for p in getattr(transformers, kind)(config).parameters())
        values = plan(path)
        assert values["parameters.total"] == expected
    assert plan(tmp_path / "bert.json", "--set", "num_labels=3")["parameters.classifier"] == 3 * 25
    values = plan(tmp_path / "t5.json", "--set", "num_decoder_layers=6")
    assert values["flops.written"] > values["flops.read"]
    code, out, _ = call(monkeypatch, capsys, "plan", "model", tmp_path / "t5.json")
    assert code == 0
    assert "Ld=3" in out
    (tmp_path / "broken.json").write_text(json.dumps(BERT | {"num_attention_heads": 5}))
    code, _, err = call(monkeypatch, capsys, "plan", "model", tmp_path / "broken.json")
    assert code == 1
    assert "num_attention_heads" in err


def test_planning_a_preset_loads_no_torch():
    """It takes longer to load than any answer to find."""
    code = (
        "import sys; from gristmill.cli import main\n"
        "sys.argv = ['gristmill', 'plan', 'serve', 'llama-3-8b', '--json']\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.stderr == "False\n"
