"""`gristmill plan memory`: layouts, adapters, methods, serving and devices on the command line."""

import json

import pytest

import command_line
from gristmill.model.presets import preset
from gristmill.plan.finetune import lora_trainable_params


def call(monkeypatch, capsys, *arguments):
    return command_line.call(monkeypatch, capsys, "plan", "memory", *arguments)


@pytest.fixture
def asked(monkeypatch, capsys):
    """What is printed as JSON, and its values by id."""

    def found(*arguments):
        code, out, err = call(monkeypatch, capsys, *arguments, "--json")
        assert code == 0, err
        printed = json.loads(out)
        return printed, {quantity["id"]: quantity["value"] for quantity in printed["quantities"]}

    return found


def test_a_layout_of_all_kinds(asked, monkeypatch, capsys):
    arguments = ["deepseek-v3", "--seq-len", 4096, "--tensor", 8, "--pipeline", 4, "--data", 16, "--expert", 16,
                 "--zero", 1, "--micro-batches", 16, "--activation-checkpointing", "selective",
                 "--device", "h200"]  # fmt: skip
    printed, values = asked(*arguments)
    settings = printed["settings"]
    assert settings["layout"] == {"tensor": 8, "pipeline": 4, "data": 16, "expert": 16, "zero": 1}
    assert (settings["data"], settings["processes"], settings["micro_batches"]) == ("zero1", 16, 16)
    assert values["layout.devices"] == 512
    assert max(values[f"stages.{stage}"] for stage in range(4)) == values["memory.total"]
    assert printed["sentences"]
    assert ("device.free" in values) == printed["sentences"][0].startswith("It fits")
    code, out, _ = call(monkeypatch, capsys, *arguments)
    assert code == 0
    assert "tensor 8, pipeline 4, expert 16, 16 processes, zero1" in out
    assert "It " in out


def test_data_and_zero_are_processes_and_parallel(asked):
    words = asked("llama-3-8b", "--seq-len", 1024, "--processes", 8, "--parallel", "zero3")
    numbers = asked("llama-3-8b", "--seq-len", 1024, "--data", 8, "--zero", 3)
    assert words[1] == numbers[1]
    assert words[0]["settings"] == numbers[0]["settings"]


def test_adapters_and_methods(asked):
    config = preset("llama-3-8b")
    _, values = asked("llama-3-8b", "--seq-len", 1024, "--lora-rank", 8, "--targets", "q, v", "--base", "nf4")
    assert values["adapters.parameters"] == lora_trainable_params(config, 8, ("q", "v"))
    assert values["memory.frozen"] < config.num_parameters
    _, values = asked("llama-3-8b", "--seq-len", 1024, "--method", "ppo", "--rollouts", 64)
    assert (values["copies.trained"], values["copies.frozen"]) == (2, 2)
    assert values["moments.generation"] > 0


def test_serving(asked):
    printed, values = asked("llama-3-8b", "--inference", "--sequences", 32, "--seq-len", 4096, "--weights", "int4",
                            "--kv", "fp8", "--tensor", 2, "--device", "l4")  # fmt: skip
    assert printed["settings"]["tensor"] == 2
    assert values["memory.total"] == pytest.approx(
        values["memory.weights"] + values["memory.cache"] + values["memory.working"]
    )
    assert printed["sentences"][0].startswith("It fits NVIDIA L4")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device", "h100"], "device 'h100' is not known; did you mean h100-sxm or h100-pcie?"),
        (["--inference", "--seq-len", "0"], "sequence_length must be at least 1, not 0"),
        (["--inference", "--data", "0"], "data parallelism must be at least 1, not 0"),
        (["--device", "cdua"], "device 'cdua' is not known"),
        (["--tensor", "0"], "tensor parallelism must be at least 1, not 0"),
        (["--tensor", "-8"], "tensor parallelism must be at least 1, not -8"),
        (["--tensor", "7"], "tensor parallelism 7 does not divide 32 attention heads"),
        (["--pipeline", "33"], "pipeline of 33 stages is longer than the model's 32 layers"),
        (["--expert", "2"], "expert parallelism needs a model with experts"),
        (["--zero", "4"], "--zero must be a stage, 0 to 3, not 4"),
        (["--data", "0"], "processes must be at least 1, not 0"),
        (["--zero", "1", "--parallel", "zero2"], "--parallel zero2 and --zero 1 say different things"),
        (["--data", "2", "--processes", "4"], "--processes 4 and --data 2 say different things"),
        (["--micro-batches", "0"], "micro_batches must be at least 1, not 0"),
        (["--lora-rank", "0"], "rank must be at least 1, not 0"),
        (["--lora-rank", "8", "--targets", "query"], "this model has no matrix 'query'"),
        (["--lora-rank", "8", "--base", "nf5"], "cannot be kept as 'nf5'; did you mean 'nf4'"),
        (["--targets", "q"], "--targets needs --lora-rank"),
        (["--method", "dpp"], "method 'dpp' is not known; did you mean"),
        (["--rollouts", "-1", "--method", "ppo"], "--rollouts must be at least 1, not -1"),
        (["--rollouts", "0", "--method", "ppo"], "--rollouts must be at least 1, not 0"),
        (["--rollouts", "8"], "--rollouts is for --method grpo and ppo"),
        (["--disk-bandwidth", "1e9"], "--disk-bandwidth needs --offload disk"),
        (["--inference", "--parallel", "zero3"], "--parallel is not for --inference"),
        (["--inference", "--method", "full"], "--method is not for --inference"),
        (["--sequences", "4"], "--sequences needs --inference"),
        (["--inference", "--sequences", "0"], "sequences must be at least 1, not 0"),
        (["--inference", "--weights", "int3"], "weights 'int3' are not known"),
        (["--inference", "--kv", "int3"], "kv 'int3' is not known"),
        (["--inference", "--lora-rank", "8"], "--lora-rank is not for --inference"),
        (["--offload", "disk", "--disk-bandwidth", "nan"], "--disk-bandwidth must be above 0 and finite, not nan"),
        (["--offload", "disk", "--disk-bandwidth", "inf"], "--disk-bandwidth must be above 0 and finite, not inf"),
        (["--seq-len", "0"], "sequence_length must be at least 1, not 0"),
    ],
)
def test_a_mistake_is_one_line(monkeypatch, capsys, arguments, said):
    code, _, err = call(monkeypatch, capsys, "llama-3-8b", *arguments)
    assert code == 1
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert "defect" not in err
