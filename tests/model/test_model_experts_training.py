"""Mixtures of experts in the training loop: what it reports and saves, and that the bias evens out a skewed load."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from gristmill.artifact import StageRun
from gristmill.events import EventLog, StageLog
from gristmill.model.config import Experts, ModelConfig
from gristmill.model.decoder import Decoder
from gristmill.model.experts import counting_load, expert_load, experts_of, mark_padding, router_losses
from gristmill.train.config import TrainingConfig
from gristmill.train.data import TokenBatch
from gristmill.train.loop import train
from gristmill.train.objectives import behind_last_target, next_token_loss

VOCAB, TIME = 64, 32
TABLE = torch.softmax(2.5 * torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(99)), dim=-1)


def language(rows: int, seed: int) -> torch.Tensor:
    """Rows of a Markov chain: what follows a token depends on that token alone, `[rows, TIME + 1]`."""
    generator = torch.Generator().manual_seed(seed)
    tokens = [torch.randint(VOCAB, (rows, 1), generator=generator)]
    for _ in range(TIME):
        tokens.append(torch.multinomial(TABLE[tokens[-1][:, 0]], 1, generator=generator))
    return torch.cat(tokens, dim=1)


def batch_at(step: int, shard: object, seed: int, rows: int) -> TokenBatch:
    tokens = language(rows, 1000 * seed + step)
    return TokenBatch(tokens[:, :-1], tokens[:, 1:], torch.ones(rows, TIME))


def decoder(seed: int, num_layers: int = 1, **experts) -> Decoder:
    chosen = {"num_experts": 8, "top_k": 2, "intermediate_size": 16, "router": "sigmoid"} | experts
    shape = {"hidden_size": 32, "num_layers": num_layers, "num_heads": 2, "num_kv_heads": 2, "head_dim": 16}
    sizes = {"vocab_size": VOCAB, "intermediate_size": 64, "max_seq_len": 64}
    return Decoder(ModelConfig(**shape, **sizes, experts=Experts(**chosen))).init_weights(seed)


def skewed(seed: int, **experts) -> Decoder:
    """A model whose router sends all tokens to the experts 0 and 1: it favours what all embeddings have in common."""
    model = decoder(seed, **experts)
    common = F.normalize(torch.randn(32, generator=torch.Generator().manual_seed(7)), dim=0)
    with torch.no_grad():
        model.embedding.weight.add_(0.1 * common)
        for layer in experts_of(model):
            layer.router.weight[:2].add_(common / 32**0.5)
    return model


def learn(model, path, seed=0, rows=32, split=None, on_event=None, **training):
    (path / "scratch").mkdir(parents=True, exist_ok=True)
    log = EventLog(None)
    if on_event is not None:
        log.subscribers.append(on_event)
    settings = {"steps": 300, "batch_size": rows, "learning_rate": 0.003, "weight_decay": 0.0, "precision": "fp32"}
    often = {"device": "cpu", "checkpoint_every": 10_000, "log_every": 1}
    run = StageRun(path, path / "scratch", {}, 1, StageLog(log, "base"))
    chosen = TrainingConfig(**settings | often | {"micro_batch_size": split} | training)
    return train(model, partial(batch_at, seed=seed, rows=rows), next_token_loss, chosen, run)


def outcome(path, seed, balance, steps=300, **experts) -> dict[str, float]:
    """What a skewed model becomes: load at the start and at the end, held-out language-model loss and load."""
    model = skewed(seed, balance=balance, **experts)
    history = learn(model, path / f"{balance}-{seed}", seed, steps=steps).history
    held = language(256, 10**6 + seed)
    with torch.no_grad(), counting_load(model):
        loss = F.cross_entropy(model(held[:, :-1]).flatten(0, 1), held[:, 1:].flatten())
        (load,) = expert_load(model)
    last = [entry["expert_load_max_over_mean"] for entry in history[-20:]]
    first = history[0]["expert_load_max_over_mean"]
    return {"first": first, "last": sum(last) / 20, "held": load["max_over_mean"], "loss": float(loss)}


def test_the_bias_evens_out_a_skewed_load_at_no_worse_a_loss(tmp_path):
    bias = outcome(tmp_path, 0, "bias", steps=200, bias_rate=0.005)
    aux_loss = outcome(tmp_path, 0, "aux_loss", steps=200)
    assert bias["first"] > 3
    assert aux_loss["first"] > 3
    assert bias["last"] < 1.3
    assert bias["held"] < 1.3
    assert bias["loss"] <= aux_loss["loss"] + 0.01  # by which runs of one seed may differ; the slow test takes means


@pytest.mark.slow
@pytest.mark.single
def test_so_it_does_over_several_seeds_where_an_unbalanced_router_stays_skewed(tmp_path):
    seeds = range(4)
    bias = [outcome(tmp_path, seed, "bias", bias_rate=0.005) for seed in seeds]
    aux_loss = [outcome(tmp_path, seed, "aux_loss") for seed in seeds]
    nothing = [outcome(tmp_path, seed, "none") for seed in seeds]
    for run in bias:
        assert run["first"] > 3
        assert run["last"] < 1.3
        assert run["held"] < 1.3
    assert min(run["held"] for run in nothing) > 1.6
    losses = [sum(run["loss"] for run in runs) / 4 for runs in (bias, aux_loss)]
    assert losses[0] <= losses[1]


def test_the_loss_reported_is_the_language_models_and_the_routers_stands_apart(tmp_path):
    events = []
    model = skewed(0, aux_loss_weight=0.5, z_loss_weight=0.1, capacity_factor=1.0)
    fresh = skewed(0, aux_loss_weight=0.5, z_loss_weight=0.1, capacity_factor=1.0)
    history = learn(model, tmp_path, rows=4, steps=2, on_event=events.append).history
    batch = batch_at(0, None, 0, 4)
    total, _ = next_token_loss(fresh, batch)
    router = router_losses(fresh)
    first = history[0]
    assert first["loss"] == pytest.approx(total.item() / batch.weight, abs=1e-4)
    assert first["router_loss"] == pytest.approx(router.item(), abs=1e-4)
    assert router.item() > 1
    (load,) = expert_load(fresh)
    assert first["expert_load_max_over_mean"] == pytest.approx(load["max_over_mean"], abs=1e-4)
    assert first["collapsed_experts"] == len(load["collapsed"]) >= 1
    assert first["dropped_assignments"] == pytest.approx(load["dropped"], abs=1e-4)
    assert load["dropped"] > 0.3
    assert next(event["router_loss"] for event in events if event["type"] == "metric") == first["router_loss"]
    assert expert_load(model) == []  # nothing is left over for another run

    (total + batch.weight * router).backward()
    gradient = torch.cat([p.grad.flatten() for p in fresh.parameters()]).norm() / batch.weight
    assert first["grad_norm"] == pytest.approx(gradient.item(), rel=1e-3)


def test_accumulated_micro_batches_move_the_bias_once_by_their_sum(tmp_path):
    whole, parts = decoder(0, balance="bias"), decoder(0, balance="bias")
    one = learn(whole, tmp_path / "whole", rows=8, steps=1).history[0]
    other = learn(parts, tmp_path / "parts", rows=8, steps=1, split=2).history[0]
    assert one["expert_load_max_over_mean"] == other["expert_load_max_over_mean"]
    (whole,), (parts,) = experts_of(whole), experts_of(parts)
    assert torch.equal(whole.selection_bias, parts.selection_bias)
    assert whole.selection_bias.abs().max() == pytest.approx(0.001)


def test_a_run_cut_off_goes_on_with_its_bias(tmp_path):
    settings = {"rows": 4, "steps": 8, "checkpoint_every": 3}
    undisturbed = decoder(0, 2, balance="bias")
    learn(undisturbed, tmp_path / "undisturbed", **settings)

    class Cut(Exception):
        pass

    def cut(event):
        if event["type"] == "metric" and event["step"] == 5:
            raise Cut

    with pytest.raises(Cut):
        learn(decoder(0, 2, balance="bias"), tmp_path / "cut", on_event=cut, **settings)
    resumed = decoder(1, 2, balance="bias")
    assert learn(resumed, tmp_path / "cut", **settings).steps_run == 5
    for name, tensor in undisturbed.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    assert all(layer.selection_bias.abs().max() > 0.002 for layer in experts_of(resumed))


def test_a_model_without_experts_logs_nothing_of_them(tmp_path):
    model = Decoder(ModelConfig(**decoder(0).config.model_dump(exclude={"experts"}))).init_weights(0)
    (entry,) = learn(model, tmp_path, rows=2, steps=1).history
    assert set(entry) == {"step", "loss", "grad_norm", "learning_rate", "skipped"}


def test_padding_behind_the_last_target_is_not_counted():
    weights = torch.tensor([[0, 1, 0, 1, 0, 0], [1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1.0], [0, 0, 0, 0, 0, 0]])
    padding = behind_last_target(weights, torch.device("cpu"))
    assert padding.tolist() == [[False] * 4 + [True] * 2, [False] * 2 + [True] * 4, [False] * 6, [True] * 6]
    assert behind_last_target(torch.ones(2, 3), torch.device("cpu")) is None

    model = decoder(0)
    tokens = torch.randint(VOCAB, (4, 6), generator=torch.Generator().manual_seed(0))
    batch = TokenBatch(tokens, tokens, weights)
    loss, _ = next_token_loss(model, batch)
    router_losses(model)
    assert int(experts_of(model)[0].load.sum()) == (4 + 2 + 6) * 2
    mark_padding(model, None)
    model.eval()
    assert next_token_loss(model, batch)[0].item() == pytest.approx(loss.item(), rel=1e-5)
