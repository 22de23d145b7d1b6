"""GGUF files of every architecture: what is exported comes back whole, and what has no home is refused by its field."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from gristmill.errors import GristmillError
from gristmill.model.config import ModelConfig, RopeScaling
from gristmill.model.decoder import Decoder
from gristmill.weights.gguf import import_gguf, load_gguf
from gristmill.weights.gguf_export import describe, export_gguf
from gristmill.weights.gguf_file import GGUFFile
from gristmill.weights.gguf_rope import llama3_factors, llama3_scaling
from gristmill.weights.load import load_model

VOCAB = 300
SPECIAL = ["<|bos|>", "<|eos|>", "<|pad|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
)
BASE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_seq_len": 64,
}
EXPERTS = {"num_experts": 4, "top_k": 2, "intermediate_size": 24}
YARN = {"kind": "yarn", "factor": 4.0, "original_max_seq_len": 16}
GEMMA = {
    "norm_position": "sandwich",
    "norm_unit_offset": True,
    "activation": "gelu_tanh",
    "embedding_scale": 32**0.5,
    "norm_eps": 1e-6,
}
GPT2 = {
    "positions": "learned",
    "norm": "layernorm",
    "norm_bias": True,
    "gated": False,
    "activation": "gelu_tanh",
    "qkv_bias": True,
    "output_bias": True,
    "mlp_bias": True,
    "num_kv_heads": 4,
}
LATENT = {"kv_rank": 16, "nope_head_dim": 8, "rope_head_dim": 4, "value_head_dim": 10, "norm_eps": 1e-5}
DEEPSEEK = {"num_kv_heads": 4, "head_dim": 12, "tie_embeddings": False, "latent": LATENT}
SHARED = EXPERTS | {"shared_intermediate_size": 48, "dense_layers": (0,)}

# What each architecture of llama.cpp can hold: its name, and what differs from a plain Llama.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "biases": ("llama", {"tie_embeddings": False, "qkv_bias": True, "output_bias": True, "mlp_bias": True}),
    "wide heads": ("llama", {"head_dim": 12, "num_kv_heads": 1}),
    "linear": ("llama", {"rope_scaling": {"kind": "linear", "factor": 4.0, "original_max_seq_len": 16}}),
    "yarn": ("llama", {"rope_scaling": YARN}),
    "yarn factor": ("llama", {"rope_scaling": YARN | {"attention_factor": 1.3}}),
    "llama3": (
        "llama",
        {
            "head_dim": 64,
            "rope_theta": 500_000.0,
            "rope_scaling": {"kind": "llama3", "factor": 32.0, "original_max_seq_len": 8192},
        },
    ),
    "mixtral": ("llama", {"experts": EXPERTS, "intermediate_size": 24}),
    "qwen2": ("qwen2", {"qkv_bias": True, "rope_theta": 1e6, "rope_scaling": YARN}),
    "qwen3": ("qwen3", {"qk_norm": "head", "head_dim": 12, "tie_embeddings": False}),
    "qwen3moe": ("qwen3moe", {"qk_norm": "head", "experts": EXPERTS}),
    "gemma2": (
        "gemma2",
        GEMMA
        | {
            "sliding_window": 4,
            "attention_pattern": ("sliding", "full"),
            "attention_softcap": 50.0,
            "logit_softcap": 30.0,
        },
    ),
    "gemma3": (
        "gemma3",
        GEMMA
        | {
            "num_layers": 7,
            "qk_norm": "head",
            "sliding_window": 4,
            "attention_pattern": ("sliding",) * 5 + ("full",),
            "rope_theta": 1e6,
            "sliding_rope_theta": 10_000.0,
            "rope_scaling": {"kind": "linear", "factor": 8.0, "original_max_seq_len": 8},
        },
    ),
    "gemma3 pattern": (
        "gemma3",
        GEMMA
        | {
            "num_layers": 3,
            "qk_norm": "head",
            "sliding_window": 4,
            "attention_pattern": ("sliding", "full", "full"),
            "sliding_rope_theta": 20_000.0,
        },
    ),
    "gemma3 full": ("gemma3", GEMMA | {"qk_norm": "head", "tie_embeddings": False}),
    "gpt2": ("gpt2", GPT2),
    "deepseek v3": (
        "deepseek2",
        DEEPSEEK
        | {
            "latent": LATENT | {"q_rank": 20},
            "rope_scaling": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0},
            "experts": SHARED
            | {"router": "sigmoid", "routed_scale": 2.5, "num_groups": 2, "top_groups": 1, "balance": "bias"},
        },
    ),
    "deepseek v2": (
        "deepseek2",
        DEEPSEEK
        | {
            "rope_scaling": YARN | {"mscale": 0.707, "mscale_all_dim": 0.707},
            "experts": SHARED | {"normalize_top_k": False},
        },
    ),
    "deepseek dense": ("deepseek2", DEEPSEEK),
}


def random_model(seed: int = 0, **changes: Any) -> Decoder:
    """Weights large enough that every part of the model shows in the logits and the best token stands out."""
    model = Decoder(ModelConfig(**BASE | changes)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            scale = 0.1 if tensor.dim() < 2 else 0.3 if name.startswith("embedding") else 1.2 / tensor.shape[-1] ** 0.5
            drawn = torch.empty(tensor.shape).normal_(0, scale, generator=generator)
            centre = 1.0 if name.endswith("norm.weight") and not model.config.norm_unit_offset else 0.0
            tensor.copy_(drawn + centre)
    return model


def logits(model: Decoder, ids: torch.Tensor | None = None) -> torch.Tensor:
    ids = torch.randint(VOCAB, (2, 19), generator=torch.Generator().manual_seed(1)) if ids is None else ids
    with torch.no_grad():
        return model(ids)


@pytest.fixture(scope="session")
def byte_level_dir(tmp_path_factory) -> Path:
    """A trained byte-level tokenizer of 300 tokens, with a chat template."""
    directory = tmp_path_factory.mktemp("byte-level")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat sat on the mat and the dog ran to the man in the hat"] * 9, trainer)
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    for number in range(len(tokens), VOCAB):
        tokenizer.add_tokens([f"word{number}"])
    tokenizer.save(str(directory / "tokenizer.json"))
    special = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[1], "pad_token": SPECIAL[2]}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    (directory / "special_tokens_map.json").write_text(json.dumps(special))
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    return directory


@pytest.mark.parametrize("case", CASES)
def test_an_exported_model_comes_back_whole(case, byte_level_dir, tmp_path):
    architecture, changes = CASES[case]
    model = random_model(**changes)
    export_gguf(model, byte_level_dir, tmp_path / "m.gguf", "f32")
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]
    source = GGUFFile(tmp_path / "m.gguf")
    assert source.get("general.architecture") == architecture
    back = load_gguf(tmp_path / "m.gguf")
    again = {"intermediate_size": EXPERTS["intermediate_size"]} if case == "mixtral" else {}
    assert back.config == model.config.model_copy(update=again)
    assert torch.equal(logits(back), logits(model))
    for name, tensor in model.state_dict().items():
        # 1 + weight is rounded once on the way out: the weight may change, what is multiplied by does not.
        shift = 1.0 if model.config.norm_unit_offset and name.endswith("norm.weight") else 0.0
        assert torch.equal(back.state_dict()[name] + shift, tensor + shift), name


@pytest.mark.parametrize("case", CASES)
def test_metadata_and_tensors_are_those_that_the_gguf_package_reads(case, byte_level_dir, tmp_path):
    architecture, changes = CASES[case]
    model = random_model(**changes)
    export_gguf(model, byte_level_dir, tmp_path / "m.gguf", "bf16", name="tiny")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    ours = GGUFFile(tmp_path / "m.gguf")
    theirs = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert {key: ours.get(key) for key in ours.fields} == theirs
    assert theirs["general.name"] == "tiny"
    assert theirs["general.file_type"] == gguf.LlamaFileType.MOSTLY_BF16
    assert theirs["tokenizer.chat_template"] == TEMPLATE
    assert theirs["tokenizer.ggml.eos_token_id"] == 1
    assert theirs[f"{architecture}.context_length"] == 64
    for tensor in reader.tensors:
        dequantized = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(ours.read(tensor.name).numpy(), dequantized.reshape(ours.shape(tensor.name)))
        small = len(tensor.shape) == 1 or "gate_inp" in tensor.name or "position_embd" in tensor.name
        assert tensor.tensor_type.name == ("F32" if small else "BF16"), tensor.name


def test_the_same_model_gives_the_same_bytes(byte_level_dir, tmp_path):
    for name in ("a", "b"):
        export_gguf(random_model(), byte_level_dir, tmp_path / f"{name}.gguf", "q8_0")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@pytest.mark.parametrize("dtype", ["f16", "bf16", "q8_0"])
def test_rounded_weights_are_near_the_ones_they_come_from(dtype, byte_level_dir, tmp_path):
    model = random_model()
    export_gguf(model, byte_level_dir, tmp_path / "m.gguf", dtype)
    back = load_gguf(tmp_path / "m.gguf").state_dict()
    for name, tensor in model.state_dict().items():
        step = {"f16": 2.0**-11, "bf16": 2.0**-8, "q8_0": 1 / 240}[dtype] * tensor.abs().max()
        assert (back[name] - tensor).abs().max() <= (0 if tensor.dim() == 1 else step), name
    # 48 is no multiple of the 32 weights of a q8_0 block, so rows of that length stay in half precision.
    kinds = {name: stored.kind.name for name, stored in GGUFFile(tmp_path / "m.gguf").tensors.items()}
    assert kinds["blk.0.ffn_down.weight"] == ("F16" if dtype == "q8_0" else dtype.upper())
    assert kinds["blk.0.ffn_up.weight"] == dtype.upper()


def test_an_imported_export_is_a_model_directory(byte_level_dir, tmp_path):
    model = random_model(**CASES["qwen3"][1])
    export_gguf(model, byte_level_dir, tmp_path / "m.gguf", "f32")
    figures = import_gguf(tmp_path / "m.gguf", tmp_path / "out", torch.float32)
    assert figures["parameters"] == model.config.num_parameters
    assert torch.equal(logits(load_model(tmp_path / "out")), logits(model))
    texts = ["the cat sat 123", "<|im_start|>hé 水\n"]
    before, after = (Tokenizer.from_file(str(path / "tokenizer.json")) for path in (byte_level_dir, tmp_path / "out"))
    assert [after.encode(text).ids for text in texts] == [before.encode(text).ids for text in texts]
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == TEMPLATE


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"positions": "alibi"}, ["positions = 'alibi'"]),
        ({"positions": "none"}, ["positions = 'none'"]),
        ({"causal": False}, ["causal = False"]),
        ({"learned_sinks": True}, ["learned_sinks = True"]),
        ({"sliding_window": 8, "attention_pattern": ("sliding",)}, ["sliding_window = 8", "attention_pattern"]),
        ({"sliding_window": 8, "attention_pattern": ("sliding",), "sink_tokens": 2}, ["sink_tokens = 2"]),
        ({"qk_norm": "projection"}, ["qk_norm = 'projection'"]),
        ({"norm_position": "post"}, ["norm_position = 'post'"]),
        ({"norm_position": "output"}, ["norm_position = 'output'"]),
        ({"parallel_block": "shared"}, ["parallel_block = 'shared'"]),
        ({"activation": "relu2", "gated": False}, ["activation = 'relu2'", "gated = False"]),
        ({"rope_fraction": 0.5}, ["rope_fraction = 0.5"]),
        ({"rope_scaling": {"kind": "dynamic", "factor": 2.0, "original_max_seq_len": 32}}, ["rope_scaling"]),
        ({"rope_scaling": YARN | {"beta_fast": 16.0}}, ["rope_scaling.beta_fast = 16.0"]),
        ({"rope_scaling": YARN | {"truncate": False}}, ["rope_scaling.truncate = False"]),
        (
            {"qk_norm": "head", "rope_scaling": {"kind": "llama3", "factor": 8.0, "original_max_seq_len": 64}},
            ["qwen3", "rope_scaling"],
        ),
        ({"logit_softcap": 30.0}, ["logit_softcap = 30.0"]),
        ({"logit_scale": 0.5}, ["logit_scale = 0.5"]),
        ({"embedding_norm": True}, ["embedding_norm = True"]),
        ({"embedding_scale": 2.0}, ["embedding_scale = 2.0"]),
        ({"attention_scale": 0.3}, ["attention_scale = 0.3"]),
        ({"experts": SHARED}, ["experts.shared_intermediate_size = 48", "experts.dense_layers = (0,)"]),
        ({"experts": EXPERTS | {"router": "sigmoid"}}, ["experts.router = 'sigmoid'"]),
        ({"experts": EXPERTS | {"balance": "bias"}}, ["experts.balance = 'bias'"]),
        (DEEPSEEK | {"experts": EXPERTS}, ["experts.shared_intermediate_size = 0"]),
        (DEEPSEEK | {"latent": LATENT | {"norm_eps": 1e-6}}, ["latent.norm_eps = 1e-06"]),
        (DEEPSEEK | {"rope_scaling": YARN}, ["rope_scaling.mscale"]),
        (DEEPSEEK | {"num_layers": 27, "latent": LATENT | {"q_rank": 8}}, ["latent.q_rank = 8", "27 layers"]),
        (GPT2 | {"norm_bias": False}, ["norm_bias = False"]),
        (GPT2 | {"head_dim": 12}, ["head_dim = 12"]),
        (GEMMA | {"norm_unit_offset": False}, ["norm_unit_offset = False"]),
    ],
)
def test_what_llama_cpp_does_not_run_is_refused_by_field(changes, fields):
    with pytest.raises(GristmillError, match="no home") as caught:
        describe(ModelConfig(**BASE | changes))
    for field in fields:
        assert field in str(caught.value)


def test_settings_of_training_do_not_matter():
    experts = EXPERTS | {"aux_loss_weight": 0.3, "z_loss_weight": 0.1, "capacity_factor": 2.0, "balance": "none"}
    assert describe(ModelConfig(**BASE | {"experts": experts}))[0] == "llama"


def test_a_failed_export_leaves_nothing(byte_level_dir, tmp_path):
    model = random_model()
    (tmp_path / "m.gguf").write_bytes(b"the one before")
    with torch.no_grad():
        model.blocks[1].feed_forward.down.weight[3, 5] = 1e6
    with pytest.raises(GristmillError, match=r"blk\.1\.ffn_down\.weight.*float16"):
        export_gguf(model, byte_level_dir, tmp_path / "m.gguf", "f16")
    with pytest.raises(GristmillError, match="q5_k"):
        export_gguf(model, byte_level_dir, tmp_path / "m.gguf", "q5_k")
    small = random_model(vocab_size=VOCAB - 1)
    with pytest.raises(GristmillError, match=r"tokenizer\.json"):
        export_gguf(small, byte_level_dir, tmp_path / "m.gguf", "f32")
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]
    assert (tmp_path / "m.gguf").read_bytes() == b"the one before"


@pytest.mark.parametrize(
    ("low", "high", "factor", "context"), [(1.0, 4.0, 8.0, 8192), (1.5, 6.0, 32.0, 4096), (2.0, 3.5, 4.0, 30_000)]
)
@pytest.mark.parametrize("stated", [True, False])
def test_llama3_settings_follow_from_the_factors(low, high, factor, context, stated):
    scaling = RopeScaling(
        kind="llama3", factor=factor, original_max_seq_len=context, low_freq_factor=low, high_freq_factor=high
    )
    factors = llama3_factors(scaling, 128, 500_000.0)
    found = llama3_scaling(factors, 128, 500_000.0, context if stated else None, "f")
    assert found is not None
    # Only the two borders and the factor can be seen: without the context, another with the same borders is as good.
    assert torch.allclose(llama3_factors(found, 128, 500_000.0), factors, rtol=1e-4)
    if stated:
        assert found == scaling


def test_factors_of_published_llama3_models_are_those_of_their_definition():
    """Llama 3.1: pairs of wavelengths above 8,192 tokens are slowed 8 times, those below 2,048 are kept."""
    scaling = RopeScaling(kind="llama3", factor=8.0, original_max_seq_len=8192)
    factors = llama3_factors(scaling, 128, 500_000.0)
    for pair, factor in enumerate(factors.tolist()):
        wavelength = 2 * math.pi * 500_000.0 ** (2 * pair / 128)
        if wavelength > 8192:
            assert factor == pytest.approx(8.0)
        elif wavelength < 2048:
            assert factor == pytest.approx(1.0)
        else:
            smooth = (8192 / wavelength - 1) / 3
            assert factor == pytest.approx(1 / ((1 - smooth) / 8 + smooth), rel=1e-5)


@pytest.mark.parametrize(
    "kind",
    ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "IQ2_XXS"],
)
def test_every_kind_of_block_is_read_as_the_gguf_package_reads_it(kind, tmp_path):
    """Blocks of random bytes: what they mean is the package's business, where they lie and how rows follow is ours."""
    stored = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[stored]
    rows = np.random.default_rng(0).integers(0, 60, (3, 2 * size), dtype=np.uint8)  # small enough for finite scales
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("first", np.ones(5, np.float32))
    writer.add_tensor("blocks", rows, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    source = GGUFFile(tmp_path / "m.gguf")
    assert source.shape("blocks") == (3, 2 * block)
    assert np.array_equal(source.read("blocks").numpy(), gguf.quants.dequantize(rows, stored).astype(np.float32))
    assert source.read("first").tolist() == [1.0] * 5


# Shapes whose missing keys have the values that transformers takes for granted when it reads a GGUF file.
KNOWN_TO_TRANSFORMERS = {
    "llama": {},
    "qwen2": {"qkv_bias": True, "rope_theta": 1e6},
    "qwen3": {"qk_norm": "head", "head_dim": 128, "tie_embeddings": False},
    "gemma2": CASES["gemma2"][1] | {"head_dim": 256, "sliding_window": 4096},
    "gemma3": CASES["gemma3"][1] | {"head_dim": 256, "rope_scaling": None},
    "gpt2": GPT2 | {"intermediate_size": 128, "max_seq_len": 1024},
}


@pytest.mark.parametrize("name", KNOWN_TO_TRANSFORMERS)
def test_logits_are_those_of_transformers_on_the_same_file(name, byte_level_dir, tmp_path):
    pytest.importorskip("accelerate")  # transformers reads no GGUF file without it
    transformers = pytest.importorskip("transformers")
    model = random_model(**KNOWN_TO_TRANSFORMERS[name])
    export_gguf(model, byte_level_dir, tmp_path / "m.gguf", "f32")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert (theirs(ids).logits - logits(model, ids)).abs().max() <= 1e-4
