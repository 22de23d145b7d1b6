"""Shapes of a ladder, and what its command line refuses before anything is trained."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from gristmill.cli.scaling import _numbers, _whole, table
from gristmill.errors import GristmillError
from gristmill.model.config import ModelConfig
from gristmill.model.decoder import Decoder
from gristmill.model.init import learning_rate_scales, mup_shape
from gristmill.plan.scaling import Point
from gristmill.train.config import PretrainConfig
from gristmill.train.optimizers.adafactor import Adafactor
from gristmill.train.scaling import _foreseen, _report, ladder, scaled
from gristmill.train.scaling_figure import draw_scaling

BASE = PretrainConfig.model_validate(
    {
        "model": {"hidden_size": 64, "num_layers": 4, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16,
                  "intermediate_size": 176, "max_seq_len": 16},
        "sequence_length": 16,
        "training": {"steps": 100, "batch_size": 4, "learning_rate": 0.01, "warmup_steps": 30},
    }
)  # fmt: skip


def test_shapes_keep_their_proportions():
    small = scaled(BASE.model, 2)
    assert (small.hidden_size, small.num_layers, small.num_kv_heads, small.intermediate_size) == (32, 2, 1, 88)
    assert small.head_dim == 16
    assert scaled(BASE.model, 4) == BASE.model
    assert scaled(BASE.model, 3).num_kv_heads == 1, "the number of key heads divides that of heads"
    with pytest.raises(GristmillError, match="heads must be 1 or more"):
        scaled(BASE.model, 0)


def test_rungs_see_the_tokens_that_were_asked_for():
    rungs = ladder(BASE, 100, [1, 2], [1, 3])
    assert [rung.name for rung in rungs] == ["h1-r1", "h1-r3", "h2-r1", "h2-r3"]
    for rung, ratio in zip(rungs, [1, 3, 1, 3], strict=True):
        assert rung.tokens == rung.config.training.steps * 64
        assert rung.tokens == pytest.approx(ratio * rung.params, abs=32)
        assert rung.config.training.warmup_steps <= rung.config.training.steps // 5
        assert (rung.config.init, rung.config.mup_base_width) == ("mup", 64)
        PretrainConfig.model_validate(rung.config.model_dump())


@pytest.mark.parametrize("text", ["1.5,2", "1,1,2", "0,1", "a", "inf"])
def test_numbers_that_are_none_are_refused(text):
    with pytest.raises(GristmillError, match="--heads"):
        _whole(text, "--heads")


def test_numbers():
    assert _whole("1,2", "--heads") == [1, 2]
    assert _numbers("0.5,2", "--budgets") == [0.5, 2]


def changed(**changes):
    """The recipe's section `base` with changes in it, or in its `training`."""
    training = {key: changes.pop(key) for key in list(changes) if key in ("optimizer", "batch_size")}
    return BASE.model_copy(update=changes | {"training": BASE.training.model_copy(update=training)})


@pytest.mark.parametrize(
    ("base", "ratios", "said"),
    [
        (changed(objective="masked"), [1, 3], "measured in bits per byte, which objective: masked does not give"),
        (changed(optimizer="adafactor"), [1, 3], "muP, whose factors are not Adafactor's"),
        (changed(batch_size=10_000), [1, 3], "h1-r3 would be trained as h1-r1 is, for 1 steps"),
        (BASE, [1_000_000, 1_000_000.1], "h1-r1e.06 would be trained as h1-r1e.06 is"),
    ],
)
def test_what_no_ladder_can_be_built_from_is_refused(base, ratios, said):
    with pytest.raises(GristmillError, match=said):
        ladder(base, 100, [1, 2, 3], ratios)


def test_what_belongs_to_the_recipe_s_own_length_is_left_out():
    """Benchmarks need the pipeline's rooms, and a mixture's phases count the recipe's steps."""
    given = BASE.model_dump() | {"benchmarks": {"paths": ["items.jsonl"]}, "mixture": [{"from_step": 5, "weights": {}}]}
    base = PretrainConfig.model_validate(given)
    rungs = ladder(base, 100, [1, 2, 3], [1, 10])
    assert {(rung.config.benchmarks, rung.config.mixture) for rung in rungs} == {(None, ())}
    assert "base.mixture is left out" in _foreseen(base, rungs, 10**9)[-1]


def test_a_ladder_that_reads_its_text_over_and_over_is_warned_of():
    rungs = ladder(BASE, 100, [1, 2, 4], [1, 10])
    longest = max(rung.tokens for rung in rungs)
    assert not any("times" in warning for warning in _foreseen(BASE, rungs, longest // 4 + 1))
    (warning,) = [warning for warning in _foreseen(BASE, rungs, longest // 5) if "times" in warning]
    assert warning.startswith(f"h4-r10 reads the run's {longest // 5:,} training tokens 5.0 times")


def trained(losses_of):
    """A ladder's rungs as if they had been trained to `losses_of(params, tokens)`."""
    manifest = SimpleNamespace(seconds=1.0)
    rungs = ladder(BASE, 100, [1, 2, 4], [1, 3, 10])
    return [(rung, Point(rung.params, rung.tokens, losses_of(rung.params, rung.tokens)), manifest) for rung in rungs]


@pytest.mark.parametrize(
    ("losses_of", "said"),
    [
        (lambda n, d: 2.0 + n / 1e5 + 30 / d**0.5, "the loss does not fall with size"),
        (lambda n, d: 2.0 + 30 / n**0.5 + d / 1e7, "the loss does not fall with tokens"),
        (lambda n, d: 3.0 + n / 1e5 + d / 1e7, "the loss does not fall with size"),
        (lambda n, d: 2.0 + 1.0 * (n < 5000) + 10 / d**0.3, "These models do not settle alpha"),
        (lambda n, d: 2.0, "does not fall with tokens"),
        (lambda n, d: 1.0 + 10 / n**0.3 + 10 / d**0.3, None),
    ],
)
def test_once_the_models_are_trained_there_is_a_report(losses_of, said, tmp_path):
    report = _report(trained(losses_of), (1e12, 1.0), inference_tokens=1e6, seed=1)
    json.dumps(report, allow_nan=False)
    shown = table(report, tmp_path)
    assert "Nothing is said of 1.00e+00 FLOP: by this law" in shown
    assert "h4-r10" in shown
    if said is None:
        assert len(report["caveats"]) == 1
        assert "with 1e+06 tokens of use" in shown
    else:
        assert said in shown
    pytest.importorskip("matplotlib")
    draw_scaling(report, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_says_which_parameters_it_counts():
    report = _report(trained(lambda n, d: 1.0 + 10 / n**0.3 + 10 / d**0.3), (), 0.0, 1)
    lines = table(report, Path("x")).splitlines()
    (line,) = [line for line in lines if line.startswith("h4-r10")]
    (rung,) = ladder(BASE, 100, [4], [10])
    assert line.split()[1:3] == [f"{rung.params:,}", f"{rung.total_params:,}"]
    assert lines[1].split()[1:4] == ["parameters", "in", "all"]


def moved_by_adafactor(width, factor):
    """How far, in root mean square, six steps of Adafactor move the residual stream behind the last block."""
    shape = {"vocab_size": 64, "hidden_size": width, "num_layers": 2, "num_heads": width // 16, "head_dim": 16,
             "num_kv_heads": width // 16, "intermediate_size": 2 * width, "max_seq_len": 32}  # fmt: skip
    model = Decoder(mup_shape(ModelConfig(**shape, tie_embeddings=True), 64)).init_weights(0, "mup")
    scales = learning_rate_scales(model, 64)
    optimizer = Adafactor(
        {"params": [parameter], "lr": 0.1 * factor(scales[name]), "weight_decay": 0.0}
        for name, parameter in model.named_parameters()
    )
    ids = torch.randint(64, (2, 24), generator=torch.Generator().manual_seed(0))
    streams = [[*model.residual_stream(ids)][-1].detach()]
    for _ in range(6):
        loss = nn.functional.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    streams.append([*model.residual_stream(ids)][-1].detach())
    return float((streams[1] - streams[0]).square().mean().sqrt())


def test_mup_s_factors_are_not_adafactor_s():
    """Coordinate check (Yang et al. 2022, appendix D.1). A matrix's size falls with the root of its width, and with it
    Adafactor's step: with muP's factor wide models move too little, without it too much. The root of the factor would
    serve inside the blocks, and no constant one a head that starts at zero."""
    widths = (64, 128, 256, 512)
    with_mup = [moved_by_adafactor(width, lambda scale: scale) for width in widths]
    without = [moved_by_adafactor(width, lambda scale: 1.0) for width in widths]
    root = [moved_by_adafactor(width, lambda scale: scale**0.5) for width in widths]
    assert with_mup == sorted(with_mup, reverse=True)
    assert with_mup[0] / with_mup[-1] > 1.5
    assert without[-1] / without[0] > 3
    assert max(root) / min(root) < 1.25
    given = BASE.model_dump() | {"init": "mup", "mup_base_width": 64}
    given["training"] = given["training"] | {"optimizer": "adafactor"}
    with pytest.raises(ValidationError, match="init: mup does not go with optimizer: adafactor"):
        PretrainConfig.model_validate(given)
