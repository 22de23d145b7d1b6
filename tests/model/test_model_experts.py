"""Mixtures of experts: outputs and gradients against transformers' modules and against a loop over single tokens."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.model import experts as room
from gristmill.model.config import Experts, ModelConfig
from gristmill.model.experts import MixtureOfExperts, grouped_linear, grouped_mm_runs, loop_linear

TOLERANCE = 1e-5


def config(experts: dict, **changes) -> ModelConfig:
    base = {"vocab_size": 11, "hidden_size": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "head_dim": 8}
    sizes = {"intermediate_size": 20, "max_seq_len": 64}
    return ModelConfig(**base | sizes | changes, experts=Experts(**{"intermediate_size": 12} | experts))


def mixture(shape: ModelConfig, seed: int = 0, scale: float = 0.4) -> MixtureOfExperts:
    torch.manual_seed(seed)
    layer = MixtureOfExperts(shape, 0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0, scale)
        if layer.selection_bias is not None:
            layer.selection_bias.normal_(0, 0.2)
    return layer


def mixtral():
    from transformers.models.mixtral.modeling_mixtral import MixtralConfig, MixtralSparseMoeBlock

    settings = MixtralConfig(hidden_size=16, intermediate_size=12, num_local_experts=6, num_experts_per_tok=2)
    return MixtralSparseMoeBlock(settings), {"num_experts": 6, "top_k": 2}


def qwen3(normalize: bool):
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeConfig, Qwen3MoeSparseMoeBlock

    sizes = {"hidden_size": 16, "moe_intermediate_size": 12, "num_experts": 8, "num_experts_per_tok": 3}
    theirs = Qwen3MoeSparseMoeBlock(Qwen3MoeConfig(**sizes, norm_topk_prob=normalize))
    return theirs, {"num_experts": 8, "top_k": 3, "normalize_top_k": normalize}


def deepseek_v3():
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Config, DeepseekV3MoE

    sizes = {"hidden_size": 16, "moe_intermediate_size": 12, "n_routed_experts": 8, "num_experts_per_tok": 3}
    groups = {"n_group": 4, "topk_group": 2, "n_shared_experts": 2, "routed_scaling_factor": 2.5}
    theirs = DeepseekV3MoE(DeepseekV3Config(**sizes, **groups, norm_topk_prob=True))
    ours = {"num_experts": 8, "top_k": 3, "router": "sigmoid", "routed_scale": 2.5, "balance": "bias"}
    return theirs, ours | {"num_groups": 4, "top_groups": 2, "shared_intermediate_size": 24}


def deepseek_v2(method: str):
    from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Config, DeepseekV2Moe

    sizes = {"hidden_size": 16, "moe_intermediate_size": 12, "n_routed_experts": 8, "num_experts_per_tok": 3}
    groups = {"n_group": 4, "topk_group": 2, "n_shared_experts": 1, "routed_scaling_factor": 1.5}
    theirs = DeepseekV2Moe(DeepseekV2Config(**sizes, **groups, topk_method=method, num_attention_heads=2))
    ours = {"num_experts": 8, "top_k": 3, "routed_scale": 1.5, "normalize_top_k": False}
    if method == "group_limited_greedy":
        ours |= {"num_groups": 4, "top_groups": 2, "group_score": "max"}
    return theirs, ours | {"shared_intermediate_size": 12}


FAMILIES = {
    "mixtral": mixtral,
    "qwen3": lambda: qwen3(True),
    "qwen3-not-normalized": lambda: qwen3(False),
    "deepseek-v3": deepseek_v3,
    "deepseek-v2": lambda: deepseek_v2("group_limited_greedy"),
    "deepseek-v2-greedy": lambda: deepseek_v2("greedy"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_and_gradients_are_those_of_transformers(family):
    pytest.importorskip("transformers")
    theirs, experts = FAMILIES[family]()
    ours = mixture(config(experts))
    pairs = {
        "gate.weight": "router.weight",
        "experts.gate_up_proj": "gate_up",
        "experts.down_proj": "down",
        "gate.e_score_correction_bias": "selection_bias",
        "shared_experts.down_proj.weight": "shared.down.weight",
    }
    state = {name: ours.state_dict()[own] for name, own in pairs.items() if own in ours.state_dict()}
    if ours.shared is not None:
        gate, up = ours.shared.gate_up.weight.detach().chunk(2)
        state |= {"shared_experts.gate_proj.weight": gate, "shared_experts.up_proj.weight": up}
    theirs.load_state_dict(state)

    x = torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(1))
    mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    got, expected = ours(mine), theirs(other)
    assert expected.abs().max() > 0.1
    assert (got - expected).abs().max() <= TOLERANCE

    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    for out in (got, expected):
        (out * weights).sum().backward()
    assert (mine.grad - other.grad).abs().max() <= TOLERANCE
    gradients = dict(theirs.named_parameters())
    for name, own in pairs.items():
        if name in gradients:
            expected = gradients[name].grad
            assert expected.abs().max() > 0, name
            assert (ours.get_parameter(own).grad - expected).abs().max() <= TOLERANCE, name


def token_by_token(layer: MixtureOfExperts, x_BTC):
    """The same mixture, one token after another, in plain words."""
    experts, activation = layer.config, layer.activation
    out = []
    for x in x_BTC.flatten(0, 1):
        logits = layer.router.weight @ x
        scores = logits.softmax(0) if experts.router == "softmax" else logits.sigmoid()
        choice = scores if layer.selection_bias is None else scores + layer.selection_bias
        size = experts.num_experts // experts.num_groups
        best = []
        for group in range(experts.num_groups):
            members = sorted(choice[group * size : (group + 1) * size].tolist(), reverse=True)
            best.append(members[0] if experts.group_score == "max" else sum(members[:2]))
        groups = sorted(range(experts.num_groups), key=lambda g: -best[g])[: experts.top_groups]
        allowed = [e for e in range(experts.num_experts) if e // size in groups]
        chosen = sorted(allowed, key=lambda e: -choice[e].item())[: experts.top_k]
        weights = scores[chosen] / scores[chosen].sum() if experts.normalize_top_k else scores[chosen]
        total = torch.zeros_like(x)
        for expert, weight in zip(chosen, weights, strict=True):
            if layer.gated:
                gate, up = (layer.gate_up[expert] @ x).chunk(2)
                hidden = activation(gate) * up
            else:
                hidden = activation(layer.up[expert] @ x)
            total = total + experts.routed_scale * weight * (layer.down[expert] @ hidden)
        out.append(total if layer.shared is None else total + layer.shared(x))
    return torch.stack(out).view_as(x_BTC)


@st.composite
def shapes(draw):
    groups = draw(st.sampled_from([1, 2, 3]))
    number = groups * draw(st.integers(2, 3))
    top_groups = draw(st.integers(1, groups))
    top_k = draw(st.integers(1, top_groups * number // groups))
    experts = {
        "num_experts": number,
        "top_k": top_k,
        "num_groups": groups,
        "top_groups": top_groups,
        "intermediate_size": draw(st.sampled_from([3, 4, 8])),
        "shared_intermediate_size": draw(st.sampled_from([0, 5])),
        "group_score": draw(st.sampled_from(["max", "top2"])),
        "router": draw(st.sampled_from(["softmax", "sigmoid"])),
        "normalize_top_k": draw(st.booleans()),
        "routed_scale": draw(st.sampled_from([1.0, 2.5])),
        "balance": draw(st.sampled_from(["none", "aux_loss", "bias"])),
    }
    activation = draw(st.sampled_from(["silu", "gelu", "gelu_tanh", "relu", "relu2"]))
    shape = config(experts, activation=activation, gated=draw(st.booleans()), hidden_size=draw(st.sampled_from([4, 7])))
    return shape, draw(st.integers(1, 2)), draw(st.integers(1, 5)), draw(st.integers(0, 99))


@settings(max_examples=60, deadline=None)
@given(shapes())
def test_any_shape_is_the_sum_over_single_tokens(case):
    shape, rows, time, seed = case
    layer = mixture(shape, seed, scale=0.7)
    x = torch.randn(rows, time, shape.hidden_size, generator=torch.Generator().manual_seed(seed))
    got, expected = layer(x), token_by_token(layer, x)
    assert torch.allclose(got, expected, rtol=1e-4, atol=TOLERANCE)
    ours = torch.autograd.grad(got.square().sum(), list(layer.parameters()), allow_unused=True)
    theirs = torch.autograd.grad(expected.square().sum(), list(layer.parameters()), allow_unused=True)
    theirs = [torch.zeros_like(mine) if other is None else other for mine, other in zip(ours, theirs, strict=True)]
    largest = max(float(other.abs().max()) for other in theirs)  # where terms cancel, what is left is rounding
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, other, rtol=1e-4, atol=1e-5 * max(1.0, largest))


ENDS = {
    "spread": [3, 8, 12, 17],
    "some-empty": [0, 9, 9, 17],
    "all-to-one": [0, 0, 17, 17],
    "rows-left-over": [2, 2, 7, 11],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("ends", ENDS)
def test_grouped_products_are_those_of_the_loop(ends, dtype):
    ends_E = torch.tensor(ENDS[ends], dtype=torch.int32)
    x = torch.randn(17, 16).to(dtype).requires_grad_()
    weight = torch.randn(4, 24, 16).to(dtype).requires_grad_()
    assert grouped_mm_runs(x, weight)
    last = int(ends_E[-1])
    upstream = torch.randn(17, 24).to(dtype)
    upstream[last:] = 0
    results = []
    for product in (grouped_linear, loop_linear):
        y = product(x, weight, ends_E)
        dx, dw = torch.autograd.grad(y, (x, weight), upstream)
        results.append((y[:last], dx[:last], dw))
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for grouped, loop in zip(*results, strict=True):
        assert torch.allclose(grouped.float(), loop.float(), rtol=tolerance, atol=10 * tolerance)
    start = 0
    for expert, end in enumerate(ENDS[ends]):
        expected = F.linear(x[start:end], weight[expert])
        assert torch.allclose(results[1][0][start:end].float(), expected.float(), rtol=tolerance, atol=10 * tolerance)
        start = end


@pytest.mark.parametrize(("wide", "dtype"), [(6, torch.float32), (12, torch.bfloat16), (8, torch.float64)])
def test_what_the_grouped_product_cannot_take_goes_through_the_loop(wide, dtype):
    x, weight = torch.randn(5, 8).to(dtype), torch.randn(2, wide, 8).to(dtype)
    assert not grouped_mm_runs(x, weight)
    y = grouped_linear(x, weight, torch.tensor([2, 5], dtype=torch.int32))
    assert torch.equal(y, torch.cat((x[:2] @ weight[0].T, x[2:] @ weight[1].T)))


@pytest.mark.parametrize("experts", [{}, {"capacity_factor": 1.0}])
def test_the_layer_is_the_same_on_both_paths(experts, monkeypatch):
    layer = mixture(config({"num_experts": 6, "top_k": 2, "shared_intermediate_size": 8} | experts))
    x = torch.randn(2, 9, 16)
    results = []
    for runs in (True, False):
        if not runs:
            monkeypatch.setattr(room, "grouped_mm_runs", lambda *_: False)
        out = layer(x)
        results.append([out, *torch.autograd.grad(out.square().sum(), list(layer.parameters()))])
    for grouped, loop in zip(*results, strict=True):
        assert torch.allclose(grouped, loop, rtol=1e-5, atol=1e-5)


def test_all_tokens_may_go_to_one_expert():
    layer = mixture(config({"num_experts": 4, "top_k": 1}))
    with torch.no_grad():
        layer.router.weight.zero_()
        layer.router.weight[2] = 5.0
    x = torch.rand(2, 8, 16)
    layer(x).sum().backward()
    assert torch.allclose(layer(x), token_by_token(layer, x), atol=TOLERANCE)
    assert layer.down.grad[2].abs().max() > 0
    assert layer.down.grad[[0, 1, 3]].abs().max() == 0
    assert layer.gate_up.grad[[0, 1, 3]].abs().max() == 0


def test_autocast_casts_the_experts_and_not_the_router():
    layer = mixture(config({"num_experts": 6, "top_k": 2, "router": "sigmoid"}))
    x = torch.randn(2, 9, 16)
    exact = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        _, scores, chosen, weights = layer._route(x.flatten(0, 1))
        out = layer(x)
    assert scores.dtype == weights.dtype == torch.float32
    assert out.dtype == torch.bfloat16
    plain = layer._route(x.flatten(0, 1))
    assert torch.equal(chosen, plain[2])
    assert torch.equal(weights, plain[3])
    assert 0 < (out.float() - exact).abs().max() < 0.05 * exact.abs().max()
    out.float().sum().backward()
    assert layer.gate_up.grad.dtype == torch.float32
    assert layer.gate_up.grad.abs().max() > 0


@pytest.mark.parametrize("padded", [(), (0, 5, 6, 7, 13, 14, 15)])
def test_over_capacity_the_later_tokens_skip_the_expert(padded):
    """The capacity is a multiple of the mean load of the tokens that are no padding."""
    layer = mixture(config({"num_experts": 4, "top_k": 2, "capacity_factor": 0.75}))
    x = torch.randn(2, 8, 16)
    flat = x.flatten(0, 1)
    chosen, weights = layer._route(flat)[2:]
    real = [token for token in range(16) if token not in padded]
    room.mark_padding(layer, torch.tensor([token in padded for token in range(16)]).view(2, 8) if padded else None)
    capacity = math.ceil(0.75 * 2 * len(real) / 4)
    taken, expected, dropped = [0] * 4, torch.zeros_like(flat), 0
    for token in real:
        for expert, weight in zip(chosen[token].tolist(), weights[token], strict=True):
            if taken[expert] == capacity:
                dropped += 1
                continue
            taken[expert] += 1
            gate, up = (layer.gate_up[expert] @ flat[token]).chunk(2)
            expected[token] += (weight * (layer.down[expert] @ (F.silu(gate) * up))).detach()
    assert dropped > 0
    assert torch.allclose(layer(x).flatten(0, 1), expected, atol=TOLERANCE)
    assert layer.routed.counts[-1] == dropped
    assert layer.routed.counts[:-1].sum() == 2 * len(real)
    room.mark_padding(layer, None)
    with room.dropless(layer):
        assert torch.allclose(layer(x), token_by_token(layer, x), atol=TOLERANCE)
        assert layer.routed.counts[-1] == 0
    layer(x)
    assert layer.routed.counts[-1] > 0
    layer.eval()
    assert torch.allclose(layer(x), token_by_token(layer, x), atol=TOLERANCE)


@pytest.mark.parametrize("grouped", [True, False])
def test_nothing_but_padding_and_no_token_at_all(grouped, monkeypatch):
    if not grouped:
        monkeypatch.setattr(room, "grouped_mm_runs", lambda *_: False)
    layer = mixture(config({"num_experts": 4, "top_k": 2, "z_loss_weight": 0.1}))
    room.mark_padding(layer, torch.ones(2, 3, dtype=torch.bool))
    out = layer(torch.randn(2, 3, 16))
    (out.sum() + room.router_losses(layer)).backward()
    assert out.abs().max() == 0
    assert layer.router.weight.grad.abs().max() == 0
    assert room.expert_load(layer) == []
    room.mark_padding(layer, None)
    assert layer.eval()(torch.randn(2, 0, 16)).shape == (2, 0, 16)


def test_padding_reaches_only_the_shared_expert_and_fills_no_place():
    layer = mixture(config({"num_experts": 4, "top_k": 2, "shared_intermediate_size": 8, "capacity_factor": 1.0}))
    x = torch.randn(1, 12, 16)
    alone = layer(x[:, 4:]).detach()
    counts = layer.routed.counts
    room.mark_padding(layer, torch.arange(12)[None] < 4)
    padded = x.clone().requires_grad_()
    out = layer(padded)
    assert torch.equal(layer.routed.counts, counts)
    assert torch.allclose(out[:, 4:], alone, atol=TOLERANCE)
    assert torch.allclose(out[:, :4], layer.shared(x[:, :4]), atol=TOLERANCE)
    out.sum().backward()
    assert padded.grad.isfinite().all()
    assert layer.gate_up.grad.isfinite().all()
    with pytest.raises(room.GristmillError, match="mark_padding was given 12 tokens, but 5"):
        layer(x[:, :5])
    layer.eval()
    assert torch.allclose(layer(x), token_by_token(layer, x), atol=TOLERANCE)


def test_the_bias_stays_float32_when_the_model_is_cast():
    layer = mixture(config({"num_experts": 6, "top_k": 2, "balance": "bias"}))
    bias = layer.selection_bias.clone()
    layer.to(torch.bfloat16)
    assert layer.gate_up.dtype == torch.bfloat16
    assert torch.equal(layer.selection_bias, bias)
    assert layer(torch.randn(1, 3, 16).bfloat16()).dtype == torch.bfloat16
    with torch.device("meta"):
        empty = MixtureOfExperts(config({"num_experts": 6, "top_k": 2, "balance": "bias"}), 0).bfloat16()
    assert empty.selection_bias.is_meta
    assert empty.selection_bias.dtype == torch.float32
    assert set(empty.state_dict()) == {"router.weight", "selection_bias", "gate_up", "down"}
