"""Rows of other models and other hardware than the guide's, against closed forms and published counts."""

import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gristmill.errors import GristmillError
from gristmill.model.presets import preset, preset_names
from gristmill.plan.device import device
from gristmill.plan.guide import FORMULAS, answer, scale_of, value

SIZES = st.integers(1, 200)
HEADS = st.sampled_from([(1, 1), (2, 1), (8, 2), (32, 8), (12, 12), (71, 1), (96, 8)])
RATES = st.floats(1e6, 1e18)
BYTES = st.floats(1, 1e15)


@st.composite
def shapes(draw):
    heads, kv_heads = draw(HEADS)
    return {
        "vocab_size": draw(SIZES), "d_model": draw(SIZES), "n_layers": draw(st.integers(1, 40)), "n_heads": heads,
        "n_kv_heads": kv_heads, "head_dim": draw(SIZES), "d_ff": draw(SIZES),
    }  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(shapes(), st.booleans(), st.booleans(), st.booleans(), st.booleans(), st.booleans(), st.integers(0, 4096),
       st.sampled_from([None, 1, 2, 3, 4]))  # fmt: skip
def test_parameters_of_dense_models(s, tied, gelu, layernorm, qk_norm, qkv_bias, positions, norms):
    extra = {"tied": tied, "ffn": "gelu" if gelu else "swiglu", "norm": "layernorm" if layernorm else "rmsnorm"}
    extra |= {"qk_norm": qk_norm, "qkv_bias": qkv_bias, "learned_positions": positions}
    if norms is not None:
        extra["norms_per_layer"] = norms
    d, hd, heads, kv = s["d_model"], s["head_dim"], s["n_heads"], s["n_kv_heads"]
    one_norm = 2 * d if layernorm else d
    attention, ffn = 2 * d * hd * (heads + kv), (2 if gelu else 3) * d * s["d_ff"]
    layer = attention + ffn + (2 if norms is None else norms) * one_norm
    layer += 2 * hd * qk_norm + hd * (heads + 2 * kv) * qkv_bias
    total = s["vocab_size"] * d * (1 if tied else 2) + positions * d + s["n_layers"] * layer + one_norm
    assert value("param_count", s | extra) == total
    assert value("attention_params", s | extra) == s["n_layers"] * attention
    assert value("ffn_params", s | extra) == s["n_layers"] * ffn
    assert value("ffn_params_per_layer", s | extra) == ffn
    assert value("ffn_param_fraction", s | extra) == pytest.approx(s["n_layers"] * ffn / total)
    assert value("attention_param_fraction", s | extra) == pytest.approx(s["n_layers"] * attention / total)
    inner = 2 * hd * qk_norm
    count = s["n_layers"] * ((2 if norms is None else norms) * one_norm + inner) + one_norm
    assert value("norm_params", s | extra) == count
    assert value("norm_param_fraction", s | extra) == pytest.approx(count / total)
    assert value("qkv_projection_params", s | extra) == s["n_layers"] * d * hd * (heads + 2 * kv)
    assert value("layer_d2_coefficient", s | extra) == pytest.approx((attention + ffn) / d**2)


@settings(max_examples=60, deadline=None)
@given(shapes())
def test_all_biases(s):
    extra = {"ffn": "gelu", "norm": "layernorm"}
    biases = s["head_dim"] * (s["n_heads"] + 2 * s["n_kv_heads"]) + s["d_model"] + s["d_ff"] + s["d_model"]
    plain, whole = (value("param_count", s | extra | {"all_bias": all_bias}) for all_bias in (False, True))
    assert whole - plain == s["n_layers"] * biases
    assert value("ffn_params", s | extra | {"all_bias": True}) == s["n_layers"] * 2 * s["d_model"] * s["d_ff"]


@settings(max_examples=60, deadline=None)
@given(shapes(), st.integers(2, 64), st.integers(1, 8), st.integers(0, 3), st.booleans(), SIZES, st.integers(0, 5))
def test_parameters_of_experts(s, experts, chosen, shared, bias, wide, dense):
    assume(chosen <= experts and dense < s["n_layers"])
    extra = {"n_experts": experts, "top_k": chosen, "n_shared_experts": shared, "router_bias": bias,
             "moe_d_ff": wide, "first_dense_layers": dense}  # fmt: skip
    d, routed = s["d_model"], s["n_layers"] - dense
    base = value("param_count", s) - s["n_layers"] * 3 * d * s["d_ff"] + dense * 3 * d * s["d_ff"]
    router = routed * (d * experts + experts * bias)
    assert value("param_count", s | extra) == base + router + routed * 3 * d * wide * (experts + shared)
    assert value("active_param_count", s | extra) == base + router + routed * 3 * d * wide * (chosen + shared)
    assert value("ffn_params", s | extra) == 3 * d * (dense * s["d_ff"] + routed * wide * (experts + shared))
    bare = {name: size for name, size in (s | extra).items() if name != "d_ff"}
    if dense:
        with pytest.raises(GristmillError, match="d_ff"):
            value("param_count", bare)
    else:
        assert value("param_count", bare) == value("param_count", s | extra)


@settings(max_examples=60, deadline=None)
@given(shapes(), st.integers(0, 99), SIZES, SIZES, SIZES, st.integers(1, 64))
def test_parameters_of_latent_attention(s, q_rank, kv_rank, nope, v, half):
    d, heads, rope = s["d_model"], s["n_heads"], 2 * half
    extra = {"attention": "mla", "kv_lora_rank": kv_rank, "qk_nope_head_dim": nope, "qk_rope_head_dim": rope,
             "v_head_dim": v} | ({"q_lora_rank": q_rank} if q_rank else {})  # fmt: skip
    query = d * q_rank + q_rank * heads * (nope + rope) if q_rank else d * heads * (nope + rope)
    attention = query + d * (kv_rank + rope) + kv_rank * heads * (nope + v) + heads * v * d
    layer = attention + 3 * d * s["d_ff"] + 2 * d + q_rank + kv_rank
    assert value("param_count", s | extra) == 2 * s["vocab_size"] * d + s["n_layers"] * layer + d
    per_token = s["n_layers"] * (kv_rank + rope) * 2
    assert value("kv_bytes_per_token", s | extra | {"kv_bytes_per_elem": 2}) == per_token
    own = {name: extra[name] for name in ("attention", "kv_lora_rank", "qk_rope_head_dim")}
    assert value("kv_bytes_per_token", own | {"n_layers": s["n_layers"], "kv_bytes_per_elem": 2}) == per_token


@pytest.mark.parametrize(
    ("model", "total"),
    [
        ("qwen3-0.6b", 596_049_920),
        ("mistral-7b", 7_241_732_096),
        ("deepseek-v2-lite", 15_706_484_224),
        ("gemma-2-2b", 2_614_341_888),
        ("smollm2-135m", 134_515_008),
    ],
)
def test_published_counts_of_presets(model, total):
    found = answer("param_count", {"model": model})
    assert found.value == total
    assert f"of {model}" in found.formula
    assert value("weight_bytes", {"model": model, "bits_per_param": 16}) == 2 * total
    assert value("param_count", {"model": model.upper().replace("-", " ")}) == total


def test_published_counts_of_shapes_that_are_no_presets():
    qwen2 = {"vocab_size": 152064, "d_model": 3584, "n_layers": 28, "n_heads": 28, "n_kv_heads": 4, "head_dim": 128,
             "d_ff": 18944, "qkv_bias": True}  # fmt: skip
    assert value("param_count", {"model": "qwen2-7b"} | qwen2) == 7_615_616_512
    opt = {"vocab_size": 50272, "d_model": 768, "n_layers": 12, "n_heads": 12, "n_kv_heads": 12, "head_dim": 64,
           "d_ff": 3072, "learned_positions": 2050, "ffn": "gelu", "tied": True, "norm": "layernorm",
           "all_bias": True}  # fmt: skip
    assert value("param_count", opt) == 125_239_296


def test_a_preset_fills_only_what_is_missing_and_never_silently():
    for name in preset_names():
        assert value("param_count", {"model": name}) == preset(name).num_parameters
        assert value("active_param_count", {"model": name}) == preset(name).num_active_parameters
    deeper = answer("param_count", {"model": "llama-3-8b", "n_layers": 40})
    assert deeper.value == preset("llama-3-8b").model_copy(update={"num_layers": 40}).num_parameters
    assert "n_layers" not in deeper.formula
    whole = {"n_layers": 7, "n_kv_heads": 3, "head_dim": 11, "kv_bytes_per_elem": 2}
    named = answer("kv_bytes_per_token", whole | {"model": "llama-3-8b"})
    assert named == answer("kv_bytes_per_token", whole)
    with pytest.raises(GristmillError, match=r"'n_layers' is missing, and model 'llama-3-9b' .* mean llama-3-8b"):
        value("kv_bytes_per_token", {"model": "llama-3-9b", "kv_bytes_per_elem": 2})


def test_a_device_fills_what_is_missing():
    h200, l4 = device("h200"), device("l4")
    ridge = answer("ridge_flop_per_byte", {"hardware": "H200 FP8 dense"})
    assert ridge.value == h200.peak("fp8") / h200.memory_bandwidth
    assert "of h200" in ridge.formula
    assert value("ridge_flop_per_byte", {"hardware": "l4"}) == l4.peak("bf16") / l4.memory_bandwidth
    assert (
        value("ridge_flop_per_byte", {"hardware": "l4", "precision": "int8"}) == l4.peak("int8") / l4.memory_bandwidth
    )
    assert value("min_gpus", {"hardware": "L4", "required_bytes": 24e9, "utilization": 0.5}) == 2
    assert value("ridge_flop_per_byte", {"hardware": "l4", "peak_flops": 6e11, "bandwidth_bytes_per_s": 3e11}) == 2
    a100 = {"required_bytes": 79e9, "utilization": 1}
    assert value("min_gpus", a100 | {"hardware": "NVIDIA A100 SXM 80GB"}) == 1
    with pytest.raises(GristmillError, match="'memory_bytes' is missing"):
        value("min_gpus", a100 | {"hardware": "A100"})  # 40 or 80 GB
    with pytest.raises(GristmillError, match="did you mean h200"):
        value("ridge_flop_per_byte", {"hardware": "h2000"})
    with pytest.raises(GristmillError, match="fp4"):
        value("ridge_flop_per_byte", {"hardware": "h200 fp4"})


@settings(max_examples=60, deadline=None)
@given(SIZES, SIZES, SIZES, st.sampled_from([0.5, 1, 2, 4]), st.integers(1, 10**6), st.integers(1, 10**4))
def test_cache(layers, kv_heads, width, each, length, batch):
    dims = {"n_layers": layers, "n_kv_heads": kv_heads, "head_dim": width, "kv_bytes_per_elem": each}
    per_token = 2 * layers * kv_heads * width * each
    run = {"seq_len": length, "batch": batch}
    assert value("kv_bytes_per_token", dims) == per_token
    assert value("kv_cache_bytes", dims | run) == per_token * length * batch
    assert value("kv_cache_bytes", {"kv_bytes_per_token": per_token} | run) == per_token * length * batch
    share = value("kv_memory_fraction", dims | run | {"memory_bytes": 80e9})
    assert share == pytest.approx(per_token * length * batch / 80e9)
    ratio = value("kv_to_weight_ratio", dims | run | {"params": 1e9, "bits_per_param": 16})
    assert ratio == pytest.approx(per_token * length * batch / 2e9)


@settings(max_examples=60, deadline=None)
@given(BYTES, st.floats(0.01, 1), BYTES, BYTES, st.integers(1, 10**6), st.integers(1, 10**6))
def test_what_fits(memory, share, weights, overhead, length, per_token):
    card = {"memory_bytes": memory, "utilization": share, "weight_bytes": weights, "overhead_bytes": overhead}
    left = share * memory - weights - overhead
    assert value("kv_budget_bytes", card) == left  # below 0 where the weights do not fit
    budget = max(left, 0)
    request = {"seq_len": length, "kv_bytes_per_token": per_token}
    number = value("max_concurrent_sequences", card | request)
    assert number == math.floor(budget / (length * per_token)) >= 0
    assert value("max_concurrent_sequences", request | {"kv_budget_bytes": budget}) == number
    assert value("max_concurrent_sequences", card | request | {"seq_len": 2 * length}) <= number
    needed = {"required_bytes": weights, "memory_bytes": memory, "utilization": share}
    cards = value("min_gpus", needed)
    assert cards * share * memory >= weights * (1 - 1e-9)
    assert cards == 1 or (cards - 1) * share * memory <= weights * (1 + 1e-9)
    assert value("min_nodes", needed | {"gpus_per_node": 8}) == -(-cards // 8)


@settings(max_examples=60, deadline=None)
@given(RATES, RATES, st.floats(0.5, 4), BYTES, st.integers(1, 4096), st.integers(1, 10**6), SIZES)
def test_roofline(peak, bandwidth, each, weights, batch, length, per_token):
    card = {"peak_flops": peak, "bandwidth_bytes_per_s": bandwidth}
    ridge = value("ridge_flop_per_byte", card)
    assert ridge == peak / bandwidth
    assert value("min_compute_bound_tokens", card | {"weight_bytes_per_param": each}) == pytest.approx(ridge * each / 2)
    below = ridge / 7
    assert value("roofline_gap_factor", card | {"flop_per_byte": below}) == pytest.approx(7)
    assert value("compute_idle_fraction", card | {"flop_per_byte": below}) == pytest.approx(6 / 7)
    assert value("compute_idle_fraction", card | {"flop_per_byte": 2 * ridge}) == pytest.approx(0, abs=1e-12)
    step = {"bandwidth_bytes_per_s": bandwidth, "weight_bytes": weights, "batch": batch}
    assert value("decode_ceiling_tokens_per_s", step) == pytest.approx(batch * bandwidth / weights)
    loaded = step | {"seq_len": length, "kv_bytes_per_token": per_token}
    floor = (weights + batch * length * per_token) / bandwidth
    assert value("decode_ceiling_tokens_per_s", loaded) == pytest.approx(batch / floor)
    assert value("step_floor_seconds", loaded) == pytest.approx(floor)


@settings(max_examples=60, deadline=None)
@given(shapes(), st.integers(1, 512), st.integers(1, 10**5), st.sampled_from([1, 2]), st.floats(1e6, 1e12))
def test_intensity_of_decoding(s, batch, length, each, params):
    row = s | {"params": params, "weight_bytes_per_param": each, "batch": batch, "kv_bytes_per_elem": 2}
    scores = 4 * s["n_layers"] * s["n_heads"] * s["head_dim"] * length
    cache = 4 * s["n_layers"] * s["n_kv_heads"] * s["head_dim"] * length
    expected = batch * (2 * params + scores) / (params * each + batch * cache)
    assert value("decode_flop_per_byte", row | {"seq_len": length}) == pytest.approx(expected)
    given_cache = {name: row[name] for name in row if name not in ("n_kv_heads", "kv_bytes_per_elem")}
    given_cache |= {"seq_len": length, "kv_bytes_per_token": cache / length}
    assert value("decode_flop_per_byte", given_cache) == pytest.approx(expected)
    bare = {"params": params, "weight_bytes_per_param": each, "batch": batch}
    assert value("decode_flop_per_byte", bare) == pytest.approx(2 * batch / each)


@settings(max_examples=60, deadline=None)
@given(st.floats(1, 1e13), st.integers(1, 10**5), st.floats(0, 12))
def test_states_under_zero(params, n, sharded):
    run = {"params": params, "n_gpus": n, "optimizer_bytes_sharded": sharded}
    kept = 12 - sharded
    for stage, per_param in enumerate(
        (16, 4 + kept + sharded / n, 2 + kept + (2 + sharded) / n, kept + (4 + sharded) / n)
    ):
        assert value(f"zero_stage{stage}_bytes_per_gpu", run) == pytest.approx(per_param * params)
    assert value("train_flops", {"params": params, "tokens": 20 * params}) == pytest.approx(120 * params**2)


@settings(max_examples=60, deadline=None)
@given(shapes(), st.floats(1, 8), st.integers(1, 256), st.floats(0, 32), st.floats(0, 8), st.sampled_from([1, 2, 4]))
def test_quantized_files(s, bits, group, scale, zero, other):
    row = s | {"bits": bits, "group_size": group, "scale_bits": scale, "zero_bits": zero,
               "other_bytes_per_param": other}  # fmt: skip
    inside = value("attention_params", s) + value("ffn_params", s)
    rest = value("param_count", s) - inside
    expected = inside * (bits + (scale + zero) / group) / 8 + rest * other
    assert value("quantized_file_bytes", row) == pytest.approx(expected)
    experts = {"n_experts": 3, "top_k": 2, "n_shared_experts": 1, "moe_d_ff": 7}
    inside = value("attention_params", s) + s["n_layers"] * 4 * 3 * s["d_model"] * 7
    rest = value("param_count", s | experts) - inside
    expected = inside * (bits + (scale + zero) / group) / 8 + rest * other
    assert value("quantized_file_bytes", row | experts) == pytest.approx(expected)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 100), st.integers(1, 256), st.lists(st.tuples(SIZES, SIZES), min_size=1, max_size=7))
def test_adapters(layers, rank, targets):
    row = {"n_layers": layers, "rank": rank, "targets": [list(pair) for pair in targets]}
    trained = layers * rank * sum(into + out for into, out in targets)
    assert value("lora_trainable_params", row) == trained
    assert value("lora_reduction_factor", row | {"params": 1e9}) == pytest.approx(1e9 / trained)


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 1), st.integers(0, 32), st.floats(0, 1))
def test_guessing_ahead(acceptance, guessed, cost):
    row = {"acceptance": acceptance, "draft_tokens": guessed, "draft_cost_ratio": cost}
    expected = sum(acceptance**k for k in range(guessed + 1))
    assert value("speculative_expected_tokens", row) == pytest.approx(expected)
    assert value("speculative_speedup", row) == pytest.approx(expected / (1 + guessed * cost))
    slow = value("speculative_slowdown_compute_bound", row)
    assert slow == pytest.approx((guessed + 1 + guessed * cost) / expected)
    assert slow >= 1 - 1e-9


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0.01, 1), st.lists(st.floats(0, 1), max_size=4)), min_size=1, max_size=5))
def test_savings_by_slice(parts):
    whole = math.fsum(share for share, _ in parts)
    slices = [{"share": min(share / whole, 1), "factors": factors} for share, factors in parts]
    left = sum(part["share"] * math.prod(part["factors"]) for part in slices)
    assert value("cost_stack_multiplier", {"slices": slices}) == pytest.approx(left)
    assert value("cost_reduction_fraction", {"slices": slices}) == pytest.approx(1 - left)
    with pytest.raises(GristmillError, match="shares"):
        value("cost_stack_multiplier", {"slices": [*slices, {"share": 0.5, "factors": [1]}]})


@settings(max_examples=60, deadline=None)
@given(st.floats(1, 1e6), st.floats(0.01, 1e3), st.floats(28, 31))
def test_money(monthly, price, days):
    row = {"usd_per_month": monthly, "usd_per_mtoken": price, "days_per_month": days}
    tokens = value("breakeven_tokens_per_day", row)
    assert tokens / 1e6 * price * days == pytest.approx(monthly)
    assert value("breakeven_tokens_per_day", row | {"usd_per_mtoken": 2 * price}) == pytest.approx(tokens / 2)
    route = {"cheap_share": 0.25, "cheap_price_ratio": 1}
    assert value("routing_cost_multiplier", route) == 1
    blend = {"input_usd_per_mtoken": price, "output_usd_per_mtoken": price, "input_parts": 3, "output_parts": 1}
    assert value("blended_usd_per_mtoken", blend) == pytest.approx(price)


def test_number_formats():
    """Against numpy's and torch's own figures."""
    torch = pytest.importorskip("torch")
    for exponent, mantissa, infinities, dtype in (
        (8, 23, True, torch.float32), (11, 52, True, torch.float64), (5, 10, True, torch.float16),
        (8, 7, True, torch.bfloat16), (4, 3, False, torch.float8_e4m3fn), (5, 2, True, torch.float8_e5m2),
    ):  # fmt: skip
        row = {"exp_bits": exponent, "man_bits": mantissa, "ieee_inf": infinities}
        assert value("float_max", row) == torch.finfo(dtype).max
    for bits in (8, 16, 32, 64):
        assert value("int_max", {"bits": bits}) == torch.iinfo(getattr(torch, f"int{bits}")).max
        assert value("int_min", {"bits": bits}) == torch.iinfo(getattr(torch, f"int{bits}")).min


def test_arithmetic():
    assert value("ratio", {"numerator": 3, "denominator": 4}) == 0.75
    assert value("geometric_span_orders", {"high_range": [1e4, 1e6], "low_range": [1, 1e2]}) == pytest.approx(4)
    assert value("orders_of_magnitude", {"high": 1e3, "low": 1}) == pytest.approx(3)
    assert value("sum_seconds", {"parts_s": [0.1] * 10}) == 1
    assert value("mixture_epochs", {"weight": 0.5, "total_tokens": 8, "source_tokens": 2}) == 2
    dims = {"from_dims": 1024, "to_dims": 256}
    assert value("embedding_compression_factor", dims) == 4
    assert value("embedding_compression_factor", dims | {"from_bits": 16, "to_bits": 1}) == 64
    assert value("embedding_compression_factor", dims | {"from_bits": 16}) == 4
    assert value("fleet_gpus", {"peak_tok_per_s": 1000, "margin": 1.3, "tok_per_s_at_SLO": 400}) == 4


@pytest.mark.parametrize(
    ("quantity", "inputs", "said"),
    [
        ("kv_bytes_per_token", {"n_layers": 2, "n_kv_heads": 3, "head_dim": 2.5, "kv_bytes_per_elem": 2}, "whole"),
        ("gqa_kv_reduction_factor", {"n_heads": 8, "n_kv_heads": 3}, "n_heads"),
        ("used_memory_fraction", {"waste_fraction": 1.2}, "share"),
        ("scale_to_zero_saving_fraction", {"busy_hours": 200, "total_hours": 168}, "busy_hours"),
        ("zero_comm_factor", {"stage": 4}, "stage"),
        ("lora_trainable_params", {"n_layers": 2, "rank": 8, "targets": [[3, 4, 5]]}, "targets"),
        ("param_counts", {}, "did you mean 'param_count'"),
        ("param_count", {"model": "llama-3-8b", "qk_nrom": True}, "did you mean 'qk_norm'"),
        ("param_count", {"model": "llama-3-8b", "ffn": "moe"}, "'ffn' must be one of"),
        ("norm_params", {"n_layers": 2, "d_model": 8, "qk_norm": True}, "'head_dim' is missing"),
        ("active_param_count", {"model": "mixtral-8x7b", "n_experts": 8}, "'top_k' is missing"),
    ],
)
def test_what_is_said_of_inputs_that_cannot_be(quantity, inputs, said):
    with pytest.raises(GristmillError, match=said):
        value(quantity, inputs)


def test_units():
    assert scale_of("GiB", "byte") == 2**30
    assert scale_of("GB", "byte") == 1e9
    assert scale_of("bytes", "byte") == scale_of("tokens/s", "token/s") == scale_of("x", "1") == 1
    assert scale_of("TFLOP/s", "FLOP/s") == 1e12
    assert scale_of("ms", "s") == 1e-3
    for unit, own in (("s", "byte"), ("GB", "token"), ("byte/s", "byte"), ("%", "byte")):
        with pytest.raises(GristmillError, match="column unit"):
            scale_of(unit, own)
    assert all(scale_of(formula.unit, formula.unit) == 1 for formula in FORMULAS.values())
