"""What keeps experts evenly used: losses, the bias, the counted load, and what the training loop does with them."""

import copy
import os
import tempfile

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.utils.checkpoint import checkpoint

from gristmill.model.config import Experts, ModelConfig
from gristmill.model.decoder import Decoder
from gristmill.model.experts import (
    MixtureOfExperts,
    balance_loss,
    counting_load,
    expert_load,
    experts_of,
    mark_padding,
    router_losses,
    update_selection_bias,
    z_loss,
)


def config(experts: dict, **changes) -> ModelConfig:
    base = {"vocab_size": 24, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2, "head_dim": 8}
    sizes = {"intermediate_size": 20, "max_seq_len": 64}
    chosen = {"num_experts": 4, "top_k": 2, "intermediate_size": 8} | experts
    return ModelConfig(**base | sizes | changes, experts=Experts(**chosen))


def decoder(experts: dict, **changes) -> Decoder:
    return Decoder(config(experts, **changes)).init_weights(0)


def ids(rows=3, time=11, seed=0):
    return torch.randint(24, (rows, time), generator=torch.Generator().manual_seed(seed))


def counted(chosen, number):
    return torch.bincount(chosen.flatten(), minlength=number)


@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_the_balance_loss_is_that_of_transformers(top_k, masked):
    mixtral = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    logits = torch.randn(24, 6, generator=torch.Generator().manual_seed(top_k))
    mask = torch.arange(24).view(3, 8) % 8 < 5 if masked else None
    mine, other = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    scores = mine.softmax(-1)
    chosen = scores.topk(top_k).indices
    real = None if mask is None else mask.flatten()
    got = balance_loss(scores, counted(chosen if real is None else chosen[real], 6), real)
    expected = mixtral.load_balancing_loss_func((other,), 6, top_k, None if mask is None else mask.long())
    assert torch.allclose(got, expected, atol=1e-6)
    got.backward()
    expected.backward()
    assert torch.allclose(mine.grad, other.grad, atol=1e-7)
    assert other.grad.abs().max() > 0


def test_the_balance_loss_is_top_k_when_even_and_num_experts_when_one_takes_all():
    even = torch.full((8, 4), 0.25)
    assert balance_loss(even, torch.tensor([4, 4, 4, 4])) == pytest.approx(2.0)
    one = torch.eye(4)[torch.zeros(8, dtype=torch.long)]
    assert balance_loss(one, torch.tensor([8, 0, 0, 0])) == pytest.approx(4.0)
    sigmoid = 0.3 * even  # scores that do not sum to one are divided by their sum first
    assert balance_loss(sigmoid, torch.tensor([4, 4, 4, 4])) == pytest.approx(2.0)


def test_the_z_loss_is_the_squared_log_sum_exp():
    logits = torch.tensor([[0.0, 0.0], [1.0, 3.0]])
    first, second = torch.tensor(2.0).log(), (torch.tensor(1.0).exp() + torch.tensor(3.0).exp()).log()
    assert z_loss(logits) == pytest.approx(float((first**2 + second**2) / 2))
    assert z_loss(logits, torch.tensor([True, False])) == pytest.approx(float(first**2))


def test_router_losses_are_summed_over_layers_and_taken_once():
    model = decoder({"balance": "aux_loss", "aux_loss_weight": 0.5, "z_loss_weight": 0.1})
    seen = []
    for layer in experts_of(model):
        layer.register_forward_hook(lambda layer, args, _: seen.append((layer, args[0].flatten(0, 1))))
    model(ids())
    expected = torch.zeros(())
    for layer, x in seen:
        logits, scores, chosen, _ = layer._route(x)
        expected = expected + 0.5 * balance_loss(scores, counted(chosen, 4)) + 0.1 * z_loss(logits)
    loss = router_losses(model)
    assert len(seen) == 2
    assert torch.allclose(loss, expected, atol=1e-6)
    loss.backward()
    assert all(layer.router.weight.grad.abs().max() > 0 for layer in experts_of(model))
    assert model.embedding.weight.grad.abs().max() > 0
    assert router_losses(model) is None
    assert router_losses(nn.Linear(2, 2)) is None
    model.eval()(ids())
    assert router_losses(model) is None


def test_the_bias_moves_by_the_rate_towards_the_mean_load_of_all_micro_batches():
    model = decoder({"balance": "bias", "bias_rate": 0.01, "num_experts": 4}, num_layers=1)
    (layer,) = experts_of(model)
    total = torch.zeros(4, dtype=torch.long)
    for seed in range(3):
        model(ids(seed=seed))
        total += layer.routed.counts[:4]
        assert router_losses(model) == 0
    assert total.sum() == 3 * 33 * 2
    update_selection_bias(model)
    assert torch.allclose(layer.selection_bias, 0.01 * torch.sign(total.float().mean() - total))
    assert layer.selection_bias.abs().max() > 0
    before = layer.selection_bias.clone()
    update_selection_bias(model)  # nothing was counted since
    assert torch.equal(layer.selection_bias, before)


def test_the_bias_changes_the_choice_and_not_the_weights():
    torch.manual_seed(0)
    layer = MixtureOfExperts(config({"balance": "bias", "normalize_top_k": False, "router": "sigmoid"}), 0)
    x = torch.randn(9, 16)
    _, scores, before, _ = layer._route(x)
    layer.selection_bias[3] = 10.0
    _, same, chosen, weights = layer._route(x)
    assert torch.equal(scores, same)
    assert (chosen == 3).any(dim=1).all()
    assert not (before == 3).any(dim=1).all()
    assert torch.equal(weights, scores.gather(1, chosen))


def test_expert_load_names_collapsed_experts():
    model = decoder({"num_experts": 4, "top_k": 1}, num_layers=1)
    (layer,) = experts_of(model)
    assert expert_load(model) == []
    layer.load = torch.tensor([60, 38, 2, 0, 25])
    (load,) = expert_load(model)
    assert load["layer"] == 0
    assert load["load"] == [0.6, 0.38, 0.02, 0.0]
    assert load["max_over_mean"] == pytest.approx(2.4)
    assert load["collapsed"] == [2, 3]
    assert load["dropped"] == pytest.approx(0.25)


def test_expert_load_counts_dense_layers_out_and_padding_too():
    model = decoder({"dense_layers": (0,)})
    tokens = ids()
    padding = torch.arange(11)[None].expand(3, 11) >= 8
    mark_padding(model, padding)
    model(tokens)
    router_losses(model)
    (load,) = expert_load(model)
    assert load["layer"] == 1
    assert sum(load["load"]) == pytest.approx(1)
    assert int(experts_of(model)[0].load.sum()) == 24 * 2


def test_a_model_can_be_copied_between_forward_and_backward():
    model = decoder({})
    model(ids())
    copied = copy.deepcopy(model)
    assert router_losses(copied) is None
    assert router_losses(model).requires_grad


def test_evaluation_is_counted_only_where_asked():
    model = decoder({})
    model(ids())
    router_losses(model)
    trained = expert_load(model)
    model.eval()
    model(ids(seed=5))
    assert expert_load(model) == trained
    with counting_load(model):
        assert expert_load(model) == []
        model(ids(seed=6))
        model(ids(seed=6))
        assert int(experts_of(model)[0].load.sum()) == 2 * 33 * 2
    assert expert_load(model) == trained


@pytest.mark.parametrize("experts", [{}, {"capacity_factor": 0.8}, {"balance": "bias", "z_loss_weight": 0.1}])
def test_activation_checkpointing_changes_neither_gradients_nor_counts(experts):
    plain = decoder({"aux_loss_weight": 0.5, "shared_intermediate_size": 8} | experts)
    wrapped = copy.deepcopy(plain)
    for block in wrapped.blocks:
        inner = block.forward
        block.forward = lambda *args, inner=inner: checkpoint(inner, *args, use_reentrant=False)
    results = []
    for model in (plain, wrapped):
        for seed in range(2):
            mark_padding(model, torch.arange(11)[None].expand(3, 11) >= 8 + seed)
            logits = model(ids(seed=seed))
            (logits.square().mean() + router_losses(model)).backward()
        results.append((expert_load(model), {name: p.grad for name, p in model.named_parameters()}))
        update_selection_bias(model)
        copy.deepcopy(model)
    assert results[0][0] == results[1][0]
    for name, gradient in results[0][1].items():
        assert torch.allclose(gradient, results[1][1][name], atol=1e-7), name
    for one, other in zip(experts_of(plain), experts_of(wrapped), strict=True):
        assert one.selection_bias is None or torch.equal(one.selection_bias, other.selection_bias)


@pytest.mark.slow
def test_a_compiled_model_is_the_same_and_counts_the_same():
    plain = decoder({"shared_intermediate_size": 8, "balance": "bias", "z_loss_weight": 0.1}, num_layers=1)
    compiled = torch.compile(copy.deepcopy(plain), backend="eager")
    results = []
    for model in (plain, compiled):
        loss = model(ids()).square().mean() + router_losses(model)
        loss.backward()
        results.append((loss.detach(), expert_load(model), [p.grad for p in model.parameters()]))
    assert torch.allclose(results[0][0], results[1][0], atol=1e-6)
    assert results[0][1] == results[1][1]
    for one, other in zip(results[0][2], results[1][2], strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_in_bfloat16_the_layer_compiles_to_one_graph():
    torch.manual_seed(0)
    layer = MixtureOfExperts(config({"capacity_factor": 1.0, "z_loss_weight": 0.1}), 0).bfloat16()
    x = torch.randn(2, 9, 16).bfloat16()
    expected = layer(x)
    loss, counts = layer.routed
    got = torch.compile(layer, backend="aot_eager", fullgraph=True)(x)
    assert torch.allclose(got, expected, atol=1e-2)
    assert torch.equal(layer.routed.counts, counts)
    assert torch.allclose(layer.routed.loss, loss)


def _rank(rank: int, rendezvous: str, out: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    model = decoder({"balance": "bias", "bias_rate": 0.01})
    model(ids(seed=rank))
    router_losses(model)
    update_selection_bias(model)
    torch.save([layer.selection_bias for layer in experts_of(model)], f"{out}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.distributed
def test_ranks_move_the_bias_by_the_load_of_all():
    with tempfile.TemporaryDirectory() as directory:
        mp.spawn(_rank, (os.path.join(directory, "rendezvous"), directory), nprocs=2)
        ranks = [torch.load(f"{directory}/{rank}.pt") for rank in range(2)]
    alone = decoder({"balance": "bias", "bias_rate": 0.01})
    for seed in range(2):
        alone(ids(seed=seed))
        router_losses(alone)
    update_selection_bias(alone)
    for layer, one, other in zip(experts_of(alone), *ranks, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, layer.selection_bias)
