"""The estimate against the bytes that tensors really take, and what is said when it does not fit."""

import pytest
import torch
from live_bytes import LiveBytes, autocast_of, saved_bytes, step_bytes
from torch._subclasses.fake_tensor import FakeTensorMode

from gristmill.align.dpo import PairBatch
from gristmill.align.dpo import _loss as dpo_loss
from gristmill.errors import GristmillError
from gristmill.model import norms
from gristmill.model.config import ModelConfig
from gristmill.model.decoder import Decoder
from gristmill.plan.activations import Arithmetic, kept_bytes
from gristmill.plan.memory import TrainingRun, peak_memory
from gristmill.train import memory
from gristmill.train.config import TrainingConfig
from gristmill.train.data import TokenBatch
from gristmill.train.memory import PeakMeter, Rows, check_fits, compare, estimate_memory, say, smaller_settings
from gristmill.train.objectives import next_token_loss

SHAPE = {"vocab_size": 2048, "hidden_size": 192, "num_layers": 4, "num_heads": 6, "num_kv_heads": 2, "head_dim": 32,
         "intermediate_size": 512, "max_seq_len": 256}  # fmt: skip
GELU = {"gated": False, "activation": "gelu_tanh", "mlp_bias": True, "qkv_bias": True, "output_bias": True}
VARIANTS = {
    "swiglu-gqa": {},
    "swiglu-mha": {"num_kv_heads": 6},
    "gelu-layernorm": GELU | {"norm": "layernorm", "norm_bias": True, "num_kv_heads": 6},
    "gpt2": GELU | {"norm": "layernorm", "norm_bias": True, "num_kv_heads": 6, "positions": "learned"},
    "untied": {"tie_embeddings": False},
    "qk-norm": {"qk_norm": "head"},
    "relu2": {"gated": False, "activation": "relu2"},
    "sandwich": {"norm_position": "sandwich"},
    "parallel": {"parallel_block": "separate"},
    "latent": {"num_kv_heads": 6, "latent": {"kv_rank": 64, "q_rank": 48, "nope_head_dim": 24, "rope_head_dim": 8,
                                             "value_head_dim": 32}},
    "experts": {"num_layers": 3, "experts": {"num_experts": 4, "top_k": 2, "intermediate_size": 256,
                                             "shared_intermediate_size": 128, "dense_layers": (0,)}},
}  # fmt: skip
CASES = [
    *((variant, "none", precision) for variant in VARIANTS for precision in ("fp32", "bf16")),
    *((variant, mode, "bf16") for variant in ("swiglu-gqa", "gpt2", "experts") for mode in ("block", "selective")),
    ("swiglu-gqa", "sqrt", "bf16"), ("untied", "sqrt", "fp32"), ("swiglu-gqa", "none", "fp16"),
]  # fmt: skip


def config_of(variant):
    return ModelConfig.model_validate(SHAPE | VARIANTS[variant])


@pytest.mark.parametrize(("variant", "mode", "precision"), CASES)
def test_the_estimate_is_within_a_tenth_of_the_measured_peak(variant, mode, precision):
    config = config_of(variant)
    measured = step_bytes(config, 8, 128, mode, precision)
    arithmetic = Arithmetic(precision, device="cpu", compiled=False)
    run = TrainingRun(8, 128, checkpointing=mode)
    # AdamW itself takes nothing more, so the peak is in forward or backward.
    estimate = peak_memory(config, arithmetic, run)
    assert estimate.moment != "step"
    assert estimate.total == pytest.approx(measured, rel=0.1)


def test_small_batches_accumulated_gradients_and_many_tokens():
    config = config_of("swiglu-gqa")
    arithmetic = Arithmetic("bf16", device="cpu", compiled=False)
    for rows, columns, parts in ((1, 16, 1), (2, 64, 3), (64, 128, 2)):
        measured = step_bytes(config, rows, columns, "none", "bf16", parts)
        run = TrainingRun(rows, columns, accumulates=parts > 1)
        assert peak_memory(config, arithmetic, run).total == pytest.approx(measured, rel=0.1), (rows, columns, parts)


def flash(spec, q_BTHD, k_BTKD, v_BTKE):
    """A GPU's kernel, without running it: it shares key heads and takes 16 bits under autocast."""
    kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else q_BTHD.dtype
    q, k, v = (x.transpose(1, 2).to(kind) for x in (q_BTHD, k_BTKD, v_BTKE))
    out = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, spec.causal, scale=spec.scale)[0]
    return out.transpose(1, 2)


class FusedRMSNorm(torch.autograd.Function):
    """What a GPU's kernel keeps: its input and the inverse root of the mean square."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, x.new_empty((*x.shape[:-1], 1), dtype=torch.float32), weight)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx, grad):
        return torch.empty_like(grad), torch.empty_like(ctx.saved_tensors[2])


@pytest.fixture
def gpu_norms(monkeypatch):
    """Norms by one kernel, as a GPU has them."""
    monkeypatch.setattr(norms.RMSNorm, "forward", lambda self, x: FusedRMSNorm.apply(x, self.weight.to(x.dtype)))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("variant", [variant for variant in VARIANTS if variant != "experts"])
def test_what_a_gpu_keeps_as_written(gpu_norms, variant, precision):
    """Bytes that one more block keeps, on tensors without numbers, so at the size of a real batch."""
    found = []
    for layers in (2, 3):
        config = config_of(variant).model_copy(update={"num_layers": layers})
        with FakeTensorMode():
            ids = torch.zeros(32, 256, dtype=torch.long)
            found.append(saved_bytes(Decoder(config), ids, precision, flash))
    one = config.model_copy(update={"num_layers": 1})
    arithmetic = Arithmetic(precision, device="cuda", compiled=False)
    matrices = sum(p.numel() for p in Decoder(one).blocks.parameters() if p.dim() >= 2)
    casts = matrices * (2 if precision == "bf16" else 0)
    expected = kept_bytes(one, arithmetic, "none") * 32 * 256 + casts
    assert expected == pytest.approx(found[1] - found[0], rel=0.03)


def training(**changes):
    fields = {"steps": 10, "batch_size": 64, "learning_rate": 1e-3, "device": "cpu"} | changes
    return TrainingConfig.model_validate(fields)


def test_settings_reach_the_estimate():
    config = config_of("swiglu-gqa")

    def total(processes=1, kind="cuda", **changes):
        return estimate_memory(config, training(**changes), [Rows(64, 128)], processes, "bf16", kind).total

    assert total(micro_batch_size=8) < total(micro_batch_size=16) < total()
    assert total(memory={"activation_checkpointing": "block"}) < total()
    assert total(memory={"offload": "cpu"}) < total()
    assert total(processes=2, parallel={"data": "zero3"}) < total(processes=2) < total()
    assert total(kind="cuda") < total(kind="cpu"), "a CPU does not compile by itself"


def test_too_large_a_batch_is_refused_with_settings_that_fit(monkeypatch):
    config = config_of("swiglu-gqa")
    device = torch.device("cpu")
    whole = estimate_memory(config, training(), [Rows(64, 128)], 1, "fp32", "cpu").total
    monkeypatch.setattr(memory, "memory_of", lambda _: whole * 1.1)
    assert check_fits(config, training(), [Rows(64, 128)], 1, "fp32", device).total == whole
    monkeypatch.setattr(memory, "memory_of", lambda _: whole * 0.6)
    with pytest.raises(GristmillError, match=r"^training needs about .* but cpu has .* fit with micro_batch_size: 32$"):
        check_fits(config, training(), [Rows(64, 128)], 1, "fp32", device)
    monkeypatch.setattr(memory, "memory_of", lambda _: 1000)
    with pytest.raises(GristmillError, match="no setting makes it fit: take a smaller model"):
        check_fits(config, training(), [Rows(64, 128)], 1, "fp32", device)


def test_each_setting_is_the_first_that_fits(monkeypatch):
    """Whatever the room, what is named fits, and what is cheaper does not."""
    config, device = config_of("swiglu-gqa"), torch.device("cpu")
    wanted, rows = training(batch_size=8), [Rows(8, 128)]
    options = list(smaller_settings(wanted, 2, "cpu"))
    totals = [estimate_memory(config, changed, rows, 2, "fp32", "cpu").total for _, changed in options]
    for room in sorted(set(totals)):
        monkeypatch.setattr(memory, "memory_of", lambda _, room=room: room / (1 - memory.SPARE))
        first = next(number for number, total in enumerate(totals) if total <= room)
        with pytest.raises(GristmillError) as refused:
            check_fits(config, wanted, rows, 2, "fp32", device)
        assert str(refused.value).endswith("it would fit with " + " and ".join(options[first][0]))
        if first > 20:
            break


def test_on_a_cpu_only_files_are_another_place_for_state():
    config = config_of("swiglu-gqa")

    def state(kind, offload):
        return estimate_memory(config, training(memory={"offload": offload}), [Rows(64, 16)], 1, "fp32", kind).optimizer

    assert state("cpu", "cpu") == state("cpu", "none") > state("cpu", "disk") == state("cuda", "cpu") == 0
    said = {line for lines, _ in smaller_settings(training(), 1, "cpu") for line in lines}
    assert "memory.offload: disk" in said
    assert "memory.offload: cpu" not in said


def test_on_a_cpu_a_run_may_have_the_machines_memory(monkeypatch):
    monkeypatch.setattr(memory.hardware, "memory_bytes", lambda: 2**20)
    assert memory.memory_of(torch.device("cpu")) == 2**20


def test_what_is_named_can_be_written_in_a_recipe():
    for said, changed in smaller_settings(training(batch_size=4), 2):
        written = {"memory": {}, "parallel": {}}
        for change in said:
            key, value = change.split(": ")
            *outer, last = key.split(".")
            (written[outer[0]] if outer else written)[last] = int(value) if value.isdigit() else value
        assert training(batch_size=4, **written) == changed or "micro_batch_size" not in written


def test_on_a_cpu_nothing_is_measured():
    """How a process grows says nothing: what it had and gave back to itself is used again."""
    estimate = estimate_memory(config_of("swiglu-gqa"), training(), [Rows(64, 128)], 1, "bf16", "cpu")
    assert compare(estimate, PeakMeter(torch.device("cpu")).peak()) == {"memory_expected_bytes": estimate.total}


def test_the_rows_of_a_step_make_the_estimate():
    config = config_of("swiglu-gqa")

    def total(*rows, processes=1, **changes):
        return estimate_memory(config, training(**changes), rows, processes, "bf16", "cpu")

    assert total(Rows(64, 64, rows_per_item=2)) == total(Rows(128, 64))
    assert total(Rows(64, 64, 2), micro_batch_size=8) == total(Rows(128, 64), micro_batch_size=16)
    together = total(Rows(32, 40), Rows(4, 256))
    assert together.total == total(Rows(64, 40), micro_batch_size=32).total, "one after the other, gradients summed"
    assert total(Rows(32, 40), Rows(8, 256)).total == total(Rows(16, 256), micro_batch_size=8).total
    assert total(Rows(64, 64), processes=2).total < total(Rows(64, 64)).total


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("learned", [1.0, 0.5, 0.1])
def test_of_fine_tuning_it_is_a_bound_and_near_where_all_is_learned_from(learned, precision):
    """SFT's and DPO's own losses, on rows of which a share is learned from."""
    config, count, length = config_of("swiglu-gqa"), 8, 128
    ids = torch.randint(2048, (count, length + 1), generator=torch.Generator().manual_seed(0))
    weights = (torch.arange(length) >= length * (1 - learned)).float().expand(count, length)
    rows = TokenBatch(ids[:, :-1], ids[:, 1:], weights)
    pairs = PairBatch(rows, torch.zeros(count))
    changes = {"batch_size": count // 2, "micro_batch_size": None, "precision": precision}
    estimate = estimate_memory(config, training(**changes), [Rows(count // 2, length, 2)], 1, precision, "cpu").total
    for loss in (lambda model: next_token_loss(model, rows), lambda model: dpo_loss(model, pairs, 0.1)):
        with LiveBytes() as meter:
            model = Decoder(config)
            state = [torch.zeros_like(p) for p in model.parameters() for _ in range(2)]
            with autocast_of(precision):
                total = loss(model)[0]
            total.backward()
            del state
        assert estimate >= 0.99 * meter.peak
        if learned == 1:
            assert estimate == pytest.approx(meter.peak, rel=0.1)


def test_lines_and_figures():
    estimate = estimate_memory(config_of("swiglu-gqa"), training(), [Rows(64, 128)], 1, "bf16", "cuda")
    lines = []

    class Log:
        def note(self, message):
            lines.append(message)

    say(Log(), estimate)
    (line,) = lines
    assert line.startswith("expected memory: ")
    assert "activations" in line
    figures = compare(estimate, int(estimate.total / 2))
    assert figures["memory_expected_over_peak"] == pytest.approx(2)
