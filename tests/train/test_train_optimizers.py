import pytest
import torch
from optimizer_cases import (
    EXPERTS,
    OPTIMIZERS,
    NoHostReads,
    config,
    give_gradients,
    names_of,
    optimizer_of,
    tiny,
    weights_of,
)

from gristmill.errors import GristmillError
from gristmill.model.config import ModelConfig
from gristmill.model.decoder import Decoder
from gristmill.train.groups import parameter_groups
from gristmill.train.optimizers import build_optimizer, export_state, import_state, init_state


def assert_same_weights(one, other):
    for name, weight in weights_of(one).items():
        assert torch.equal(weight, dict(other.named_parameters())[name]), name


def snapshot(optimizer, model):
    return {key: value.clone() for key, value in export_state(optimizer, names_of(model)).items()}


def take_steps(model, optimizer, count, start=0):
    for step in range(start, start + count):
        give_gradients(model, step)
        optimizer.step()


def test_adamw_is_torchs_with_decay_of_matrices_only():
    ours, theirs = tiny(), tiny()
    optimizer = optimizer_of(ours, beta1=0.8, beta2=0.9, eps=1e-6, weight_decay=0.3)
    oracle = torch.optim.AdamW(
        [
            {"params": [p for p in theirs.parameters() if p.dim() >= 2], "weight_decay": 0.3},
            {"params": [p for p in theirs.parameters() if p.dim() < 2], "weight_decay": 0.0},
        ],
        lr=0.01,
        betas=(0.8, 0.9),
        eps=1e-6,
        fused=True,
    )
    take_steps(ours, optimizer, 5)
    take_steps(theirs, oracle, 5)
    assert_same_weights(ours, theirs)


def test_mup_groups_learn_at_their_own_rate_and_shrink_alike():
    model = tiny()
    optimizer = optimizer_of(model, mup_base_width=16, weight_decay=0.1)
    by_parameter = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    table, matrix = by_parameter[id(model.embedding.weight)], by_parameter[id(model.blocks[0].attention.qkv.weight)]
    assert (table["lr"], matrix["lr"]) == pytest.approx((0.01, 0.01 / 4))
    assert table["lr"] * table["weight_decay"] == pytest.approx(matrix["lr"] * matrix["weight_decay"])


def test_frozen_parameters_are_left_out_and_a_frozen_model_is_refused():
    model = tiny()
    model.embedding.weight.requires_grad_(False)
    held = [id(p) for group in parameter_groups(model, 0.1) for p in group["params"]]
    assert id(model.embedding.weight) not in held
    assert len(held) == len(list(model.parameters())) - 1
    with pytest.raises(GristmillError, match="no parameter that learns"):
        build_optimizer(model.requires_grad_(False), config())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_dividing_by_grad_scale_is_having_had_smaller_gradients(name):
    scaled, plain = tiny(**EXPERTS), tiny(**EXPERTS)
    one, other = optimizer_of(scaled, name), optimizer_of(plain, name)
    for step in range(3):
        give_gradients(scaled, step, scale=64.0)  # a power of two: divided out exactly
        one.grad_scale = torch.tensor(64.0)
        one.step()
        give_gradients(plain, step)
        other.step()
    assert_same_weights(scaled, plain)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("poison", [1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("before", [0, 3])
def test_a_skipped_step_changes_neither_weights_nor_state(name, poison, before):
    model = tiny(**EXPERTS)
    optimizer = optimizer_of(model, name)
    init_state(optimizer)
    take_steps(model, optimizer, before)
    weights, state = weights_of(model), snapshot(optimizer, model)
    give_gradients(model, 9, scale=poison)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0), torch.tensor(1.0)
    optimizer.step()
    for key, value in weights_of(model).items():
        assert torch.equal(value, weights[key]), key
    for key, value in snapshot(optimizer, model).items():
        assert torch.equal(value, state[key]), key
    optimizer.found_inf = torch.tensor(0.0)
    give_gradients(model, 9)
    optimizer.step()
    assert all(not torch.equal(value, weights[key]) for key, value in weights_of(model).items())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_step_waits_for_the_device(name):
    """On the meta device there is nothing to read: whatever asked for a number would fail."""
    with torch.device("meta"):
        absent = Decoder(ModelConfig(**{"vocab_size": 96} | tiny(**EXPERTS).config.model_dump(exclude={"vocab_size"})))
    for model, device in ((absent, "meta"), (tiny(**EXPERTS), "cpu")):
        optimizer = optimizer_of(model, name)
        optimizer.grad_scale = torch.ones((), device=device)
        optimizer.found_inf = torch.zeros((), device=device)
        with NoHostReads():
            for _ in range(2):
                for parameter in model.parameters():
                    parameter.grad = torch.ones_like(parameter)
                optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_goes_out_and_comes_back_bit_for_bit(name):
    model = tiny(**EXPERTS)
    optimizer = optimizer_of(model, name)
    take_steps(model, optimizer, 3)
    state = snapshot(optimizer, model)
    resumed = tiny(**EXPERTS)
    resumed.load_state_dict(model.state_dict())
    again = optimizer_of(resumed, name)
    import_state(again, names_of(resumed), state)
    for key, value in snapshot(again, resumed).items():
        assert torch.equal(value, state[key]), key
        assert value.dtype == state[key].dtype
    take_steps(model, optimizer, 2, start=3)
    take_steps(resumed, again, 2, start=3)
    assert_same_weights(model, resumed)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_making_state_ahead_changes_nothing(name):
    ahead, plain = tiny(), tiny()
    prepared, other = optimizer_of(ahead, name), optimizer_of(plain, name)
    init_state(prepared)
    assert len(export_state(prepared, names_of(ahead))) > 0
    assert_same_weights(ahead, plain)
    take_steps(ahead, prepared, 2)
    take_steps(plain, other, 2)
    assert_same_weights(ahead, plain)
    assert set(export_state(prepared, names_of(ahead))) == set(export_state(other, names_of(plain)))


def test_state_of_another_optimizer_or_shape_is_refused_by_name():
    model = tiny()
    optimizer = optimizer_of(model)
    init_state(optimizer)
    state = snapshot(optimizer, model)
    with pytest.raises(GristmillError, match=r"no .*exp_avg_codes: it was written by another optimizer"):
        import_state(optimizer_of(model, "adam8bit"), names_of(model), state)
    wider = tiny(intermediate_size=192)
    with pytest.raises(GristmillError, match=r"feed_forward.*is \[320, 64\] here, not \[384, 64\]"):
        import_state(optimizer_of(wider), names_of(wider), state)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weights_in_bf16_learn(name):
    model = tiny().to(torch.bfloat16)
    rate = 0.2 if name == "adafactor" else 0.01
    optimizer = optimizer_of(model, name, learning_rate=rate)
    tokens = torch.randint(0, 96, (4, 13), generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(12):
        logits = model(tokens[:, :-1]).float()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.7
    assert all(parameter.dtype == torch.bfloat16 for parameter in model.parameters())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_parameters_without_gradients_stay_as_they_are(name):
    model = tiny()
    optimizer = optimizer_of(model, name)
    give_gradients(model)
    model.embedding.weight.grad = None
    before = weights_of(model)
    optimizer.step()
    still = [key for key, value in weights_of(model).items() if torch.equal(value, before[key])]
    assert still == ["embedding.weight"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_decay_reaches_weights_of_16_bits(name):
    """A decay of 0.002 a step is less than half a bfloat16's last place: rounded by itself it would do nothing."""
    sizes = []
    for decay in (0.0, 0.2):
        model = tiny().to(torch.bfloat16)
        muon = {"learning_rate": 0.01, "weight_decay": decay}
        optimizer = optimizer_of(model, name, weight_decay=decay, learning_rate=0.01, muon=muon)
        take_steps(model, optimizer, 8)
        sizes.append(model.embedding.weight.float().norm() + model.blocks[0].feed_forward.gate_up.weight.float().norm())
    assert sizes[1] < 0.998 * sizes[0]
