"""INT8 directories against the compressed-tensors library and transformers."""

import json

import pytest
import torch
import transformers
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from compressed_tensors.quantization import QuantizationConfig
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from gristmill.errors import GristmillError
from gristmill.quantize.int8 import quantize_rows
from gristmill.weights.compressed import SETTINGS, dequantize, pack, save_int8, unpack
from gristmill.weights.families import home_of
from gristmill.weights.layout import block_matrices, split_tensors
from gristmill.weights.load import load_model

TOLERANCE = 1e-4
SHAPES = {
    "grouped": {},
    "multi-query-untied": {"num_kv_heads": 1, "tie_embeddings": False},
    "columns-not-in-fours": {
        "hidden_size": 28,
        "head_dim": 6,
        "num_heads": 2,
        "num_kv_heads": 1,
        "intermediate_size": 37,
    },
}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def save(model, directory, tokenizer_dir, dtype=torch.float32):
    quantized = {
        name.removesuffix(".weight"): quantize_rows(weight, name, dtype)
        for name, weight in split_tensors(model)
        if name.removesuffix(".weight") in block_matrices(model.config)
    }
    save_int8(model, quantized, directory, tokenizer_dir, dtype)
    return quantized


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 5), columns=st.integers(1, 70), seed=st.integers(0, 1000))
def test_packing_is_byte_equal_to_the_library(rows, columns, seed):
    values = torch.randint(-128, 128, (rows, columns), dtype=torch.int8, generator=torch.Generator().manual_seed(seed))
    packed = pack(values)
    assert packed.dtype == torch.int32
    assert torch.equal(packed, pack_to_int32(values, 8))
    assert torch.equal(unpack(packed, columns), values)
    assert torch.equal(unpack(packed, columns), unpack_from_int32(packed, 8, torch.Size((rows, columns))))


def test_the_first_value_is_in_the_lowest_byte():
    assert pack(torch.tensor([[-128, -127, 0, 1]], dtype=torch.int8)).item() & 0xFFFFFFFF == 0x81800100


def test_the_settings_are_a_valid_quantization_config():
    config = QuantizationConfig.model_validate(SETTINGS)
    scheme = config.config_groups["group_0"]
    assert (config.format, config.ignore, scheme.targets) == ("pack-quantized", ["lm_head"], ["Linear"])
    weights = scheme.weights
    assert (weights.num_bits, weights.type, weights.symmetric, weights.strategy) == (8, "int", True, "channel")
    assert scheme.input_activations is None


PLAIN = {"norm": "layernorm", "norm_bias": True, "gated": False, "qkv_bias": True, "output_bias": True} | {
    "mlp_bias": True,
    "num_kv_heads": 4,
}
EXPERTS = {"num_experts": 4, "top_k": 2, "intermediate_size": 12}  # a multiple of 4, or transformers cannot run it
FAMILIES = {
    "gemma3_text": {"norm_position": "sandwich", "norm_unit_offset": True, "embedding_scale": 32**0.5}
    | {"qk_norm": "head"},
    "gpt_neox": PLAIN | {"parallel_block": "separate", "rope_fraction": 0.5, "tie_embeddings": False},
    "mixtral": {"experts": EXPERTS},
    "deepseek_v2": {
        "latent": {"kv_rank": 10, "nope_head_dim": 8, "rope_head_dim": 4, "value_head_dim": 6},
        "head_dim": 12,
        "num_kv_heads": 4,
        "experts": EXPERTS | {"shared_intermediate_size": 12, "normalize_top_k": False, "dense_layers": (0,)},
    },
}


@pytest.mark.parametrize("name", FAMILIES)
def test_other_families_are_quantized_too(name, random_model, tokenizer_dir, tmp_path):
    """Experts and rows that are stored in another order included."""
    model = random_model(**FAMILIES[name])
    quantized = save(model, tmp_path, tokenizer_dir)
    assert home_of(model.config).model_type == name
    assert not any("norm" in module or module.endswith(("gate", "embed_out", "lm_head")) for module in quantized)
    matrices = sum(values.values.numel() for values in quantized.values())
    assert matrices > 0.6 * model.config.num_parameters
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids = torch.randint(40, (2, 15), generator=torch.Generator().manual_seed(1))
    ours = load_model(tmp_path)
    with torch.no_grad():
        assert (theirs(ids).logits - ours(ids)).abs().max() <= TOLERANCE
    for name, weight in split_tensors(ours):
        if (module := name.removesuffix(".weight")) in quantized:
            assert torch.equal(weight, dequantize(quantized[module])), name


def test_our_own_format_is_quantized_too(random_model, tokenizer_dir, tmp_path):
    model = random_model(positions="alibi", experts=EXPERTS)
    quantized = save(model, tmp_path, tokenizer_dir)
    assert set(quantized) == {f"blocks.{layer}.attention.{part}" for layer in range(2) for part in ("qkv", "output")}
    for name, weight in split_tensors(load_model(tmp_path)):
        if (module := name.removesuffix(".weight")) in quantized:
            assert torch.equal(weight, dequantize(quantized[module])), name


def test_gpt2_has_no_linear_layers_to_quantize(random_model):
    with pytest.raises(GristmillError, match="'gpt2' has no linear layers"):
        block_matrices(random_model(**PLAIN | {"positions": "learned", "activation": "gelu_tanh"}).config)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SHAPES)
def test_transformers_loads_the_same_model(name, dtype, random_model, tokenizer_dir, tmp_path):
    model = random_model(**SHAPES[name])
    save(model, tmp_path, tokenizer_dir, dtype)
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True, dtype=torch.float32
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    ids = torch.randint(40, (2, 15), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs.eval()(ids).logits
        ours = load_model(tmp_path)(ids)
        assert (expected - ours).abs().max() <= TOLERANCE
        distance = (ours - model(ids)).abs().max()
    assert 0 < distance < 0.1 * expected.abs().max()


def test_load_model_multiplies_out(random_model, tokenizer_dir, tmp_path):
    model = random_model()
    quantized = save(model, tmp_path, tokenizer_dir)
    for name, weight in split_tensors(load_model(tmp_path)):
        module = name.removesuffix(".weight")
        expected = dequantize(quantized[module]) if module in quantized else dict(split_tensors(model))[name]
        assert torch.equal(weight, expected), name
    assert load_model(tmp_path, dtype=torch.bfloat16).norm.weight.dtype == torch.bfloat16


def test_the_same_model_gives_the_same_bytes(random_model, tokenizer_dir, tmp_path):
    for name in ("first", "second"):
        save(random_model(), tmp_path / name, tokenizer_dir)
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "second"))
    assert first == second
    assert len(first) < sum(p.numel() for p in random_model().parameters()) * 4


@pytest.mark.parametrize(
    ("where", "value", "word"),
    [
        (("quant_method",), "gptq", "quant_method"),
        (("quantization_status",), "frozen", "quantization_status"),
        (("format",), "int-quantized", "format"),
        (("ignore",), [], "ignore"),
        (("config_groups",), {}, "config_groups"),
        (("config_groups", "group_0", "targets"), ["re:.*q_proj"], "targets"),
        (("config_groups", "group_0", "input_activations"), {"num_bits": 8}, "input_activations"),
        (("config_groups", "group_0", "weights", "num_bits"), 4, "num_bits"),
        (("config_groups", "group_0", "weights", "symmetric"), False, "symmetric"),
        (("config_groups", "group_0", "weights", "strategy"), "group", "strategy"),
        (("config_groups", "group_0", "weights"), None, "num_bits"),
    ],
)
def test_other_schemes_are_refused_by_field(where, value, word, random_model, tokenizer_dir, tmp_path):
    save(random_model(), tmp_path, tokenizer_dir)
    config = json.loads((tmp_path / "config.json").read_text())
    section = config["quantization_config"]
    for key in where[:-1]:
        section = section[key]
    section[where[-1]] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(GristmillError, match=rf"config\.json: quantization_config\.\S*{word}"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("suffix", "replacement"),
    [
        ("weight_packed", None),
        ("weight_scale", torch.ones(32)),
        ("weight_shape", torch.tensor([32, 31])),
        ("weight_packed", torch.ones(32, 8)),
    ],
)
def test_damaged_quantized_tensors_are_named(suffix, replacement, random_model, tokenizer_dir, tmp_path):
    save(random_model(), tmp_path, tokenizer_dir)
    tensors = load_file(tmp_path / "model.safetensors")
    name = f"model.layers.0.self_attn.o_proj.{suffix}"
    del tensors[name]
    if replacement is not None:
        tensors[name] = replacement
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(GristmillError, match=name):
        load_model(tmp_path)
