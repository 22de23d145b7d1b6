"""GGUF files: tiny ones written here by the gguf package, read back to the same logits."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import tokenizers
import torch
import transformers

from gristmill.errors import GristmillError
from gristmill.weights.families.transforms import interleaved_rows
from gristmill.weights.gguf import import_gguf
from gristmill.weights.layout import split_tensors
from gristmill.weights.load import load_model

NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
# Bytes as GPT-2 spells them: printable ASCII as itself, a space as Ġ, a newline as Ċ.
TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    *"abcdehlorwt'0123456789ĠĊ!",
    "he",
    "ll",
    "hell",
    "hello",
    "Ġw",
    "ĠĠ",
    "12",
]
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "Ġ Ġ", "1 2"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
)


def gguf_name(name: str) -> str:
    if name in NAMES:
        return NAMES[name]
    layer, module = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
    return f"blk.{layer}.{NAMES[module]}.weight"


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to q and k: halves of each head are dealt out in turn."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path: Path, model, *, quantize=None, extra=None, drop=(), **changes) -> Path:
    """A llama GGUF file; `changes` replaces or (None) removes metadata, `extra` adds tensors, `drop` removes them."""
    config = model.config
    metadata = {
        "llama.block_count": config.num_layers,
        "llama.context_length": config.max_seq_len,
        "llama.embedding_length": config.hidden_size,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_heads,
        "llama.attention.head_count_kv": config.num_kv_heads,
        "llama.attention.key_length": config.head_dim,
        "llama.rope.dimension_count": config.head_dim,
        "llama.rope.freq_base": config.rope_theta,
        "llama.attention.layer_norm_rms_epsilon": config.norm_eps,
        "general.license": "apache-2.0",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [3, 3, 3] + [1] * (len(TOKENS) - 3),
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.chat_template": TEMPLATE,
    }
    metadata |= {key.replace("__", "."): value for key, value in changes.items()}
    writer = gguf.GGUFWriter(path, metadata.pop("general.architecture", "llama"))
    for key, value in metadata.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif value is not None:
            writer.add_array(key, value)
    for name, tensor in split_tensors(model):
        array = tensor.float().numpy().copy()
        if "q_proj" in name or "k_proj" in name:
            array = permute(array, config.num_heads if "q_proj" in name else config.num_kv_heads)
        if gguf_name(name) in drop:
            continue
        if quantize is not None and array.ndim == 2:
            writer.add_tensor(gguf_name(name), gguf.quants.quantize(array, quantize), raw_dtype=quantize)
        else:
            writer.add_tensor(gguf_name(name), array)
    for name, array in (extra or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def model(random_model):
    return random_model(vocab_size=len(TOKENS), rope_theta=100_000.0)


def logits(model) -> torch.Tensor:
    ids = torch.randint(len(TOKENS), (2, 13), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(ids)


@pytest.mark.parametrize(
    "changes",
    [{}, {"tie_embeddings": False}, {"num_kv_heads": 1}, {"num_kv_heads": 4, "head_dim": 6}, {"head_dim": 16}],
)
def test_float_weights_come_through_unchanged(changes, random_model, tmp_path):
    model = random_model(vocab_size=len(TOKENS), **changes)
    figures = import_gguf(write_gguf(tmp_path / "m.gguf", model), tmp_path / "out", torch.float32)
    imported = load_model(tmp_path / "out")
    assert imported.config == model.config
    assert torch.equal(logits(imported), logits(model))
    assert figures["license"] == "apache-2.0"
    assert figures["parameters"] == model.config.num_parameters


def test_reordered_rows_give_the_products_of_interleaved_rotation():
    """llama.cpp turns neighbouring pairs (2i, 2i + 1), the decoder turns (i, i + D/2): the scores must be the same."""
    generator = torch.Generator().manual_seed(0)
    stored_q, stored_k = (torch.randn(8, 5, generator=generator) for _ in range(2))
    x, y = (torch.randn(5, generator=generator) for _ in range(2))
    frequencies = 10_000.0 ** (-torch.arange(0, 8, 2) / 8)

    def neighbours(vector, at):
        pairs = torch.view_as_complex(vector.view(4, 2).contiguous()) * torch.polar(torch.ones(4), at * frequencies)
        return torch.view_as_real(pairs).flatten()

    def halves(vector, at):
        pairs = torch.complex(vector[:4], vector[4:]) * torch.polar(torch.ones(4), at * frequencies)
        return torch.cat([pairs.real, pairs.imag])

    expected = neighbours(stored_q @ x, 11) @ neighbours(stored_k @ y, 3)
    q, k = (interleaved_rows(1, 0, 8).load(stored) for stored in (stored_q, stored_k))
    assert (halves(q @ x, 11) @ halves(k @ y, 3)).item() == pytest.approx(expected.item(), abs=1e-4)
    assert (halves(stored_q @ x, 11) @ halves(stored_k @ y, 3)).item() != pytest.approx(expected.item(), abs=1e-2)


def test_quantized_tensors_are_multiplied_out(random_model, tmp_path):
    model = random_model(vocab_size=len(TOKENS), intermediate_size=64)
    kind = gguf.GGMLQuantizationType.Q8_0
    import_gguf(write_gguf(tmp_path / "m.gguf", model, quantize=kind), tmp_path / "out", torch.float32)
    imported = dict(split_tensors(load_model(tmp_path / "out")))
    for name, weight in split_tensors(model):
        steps = weight.abs().max() / 127  # Q8_0 keeps one step for 32 weights; none is larger than this
        assert (imported[name] - weight).abs().max() <= (steps if weight.dim() == 2 else 0), name


def test_the_directory_loads_in_transformers(model, tmp_path):
    import_gguf(write_gguf(tmp_path / "m.gguf", model), tmp_path / "out")
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True, dtype=torch.float32
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    ids = torch.arange(10)[None]
    with torch.no_grad():
        assert (theirs(ids).logits - load_model(tmp_path / "out")(ids)).abs().max() <= 1e-4
    assert theirs.generation_config.eos_token_id == [2]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["dtype"], config["rms_norm_eps"]) == ("bfloat16", 1e-5)


def test_the_tokenizer_cuts_digits_apart_and_keeps_special_tokens(model, tmp_path):
    import_gguf(write_gguf(tmp_path / "m.gguf", model), tmp_path / "out")
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert tokenizer.encode("hello world'd  12!").tokens == [
        "hello", "Ġw", "o", "r", "l", "d", "'", "d", "ĠĠ", "1", "2", "!",
    ]  # fmt: skip
    assert tokenizer.encode("<|im_start|>a").ids == [1, TOKENS.index("a")]
    assert tokenizer.decode(tokenizer.encode("hello w\n<|im_end|>").ids) == "hello w\n"
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id, theirs.unk_token_id) == (1, 2, 2, 0)
    text = theirs.apply_chat_template([{"role": "a", "content": "hello"}], tokenize=False)
    assert text == "<|im_start|>a\nhello<|im_end|>\n"


def test_gpt2_tokenizers_join_digits(model, tmp_path):
    import_gguf(write_gguf(tmp_path / "m.gguf", model, tokenizer__ggml__pre="gpt-2"), tmp_path / "out")
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert tokenizer.encode("12").tokens == ["12"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"general__architecture": "mamba"}, ["architecture", "mamba", "qwen3moe"]),
        ({"split__count": 2}, ["split.count"]),
        ({"llama__block_count": None}, ["llama.block_count", "missing"]),
        ({"llama__block_count": 10**9}, ["llama.block_count", "1000000000"]),
        ({"llama__block_count": 3}, ["blk.2.attn_norm.weight", "missing"]),
        ({"llama__feed_forward_length": 45}, ["blk.0.ffn_gate.weight", "[44, 32]", "[45, 32]"]),
        ({"llama__attention__head_count": 0}, ["llama.attention.head_count"]),
        ({"llama__attention__head_count_kv": 3}, ["num_kv_heads"]),
        ({"llama__rope__dimension_count": 4}, ["llama.rope.dimension_count"]),
        ({"llama__rope__scaling__type": "longrope"}, ["llama.rope.scaling.type", "longrope"]),
        ({"llama__expert_count": 8}, ["experts.top_k"]),
        ({"llama__expert_count": 8, "llama__expert_used_count": 2}, ["blk.0.ffn_gate_inp.weight", "missing"]),
        ({"llama__attention__sliding_window": 16}, ["llama.attention.sliding_window", "16"]),
        ({"llama__attention__scale": 0.5}, ["llama.attention.scale", "not known"]),
        ({"llama__attention__causal": False}, ["llama.attention.causal"]),
        ({"llama__block_count": 2**31}, ["llama.block_count"]),
        ({"llama__context_length": "long"}, ["llama.context_length", "long"]),
        ({"llama__rope__freq_base": 0.5}, ["llama.rope.freq_base"]),
        ({"drop": ["output_norm.weight"]}, ["output_norm.weight", "missing"]),
        ({"extra": {"rope_freqs.weight": np.array([1, 3, 1, 2], np.float32)}}, ["rope_freqs.weight", "Llama 3"]),
        ({"extra": {"blk.0.odd.weight": np.ones(4, np.float32)}}, ["blk.0.odd.weight", "no place"]),
        ({"tokenizer__ggml__model": "bert"}, ["tokenizer.ggml.model", "bert"]),
        ({"tokenizer__ggml__model": "llama"}, ["tokenizer.ggml.scores"]),
        ({"tokenizer__ggml__pre": "tekken"}, ["tokenizer.ggml.pre", "tekken"]),
        ({"tokenizer__ggml__add_bos_token": True, "tokenizer__ggml__bos_token_id": None}, ["add_bos_token"]),
        ({"tokenizer__ggml__tokens": TOKENS[:-1]}, ["tokenizer.ggml.tokens"]),
        ({"tokenizer__ggml__merges": ["h z"]}, ["tokenizer.ggml.merges", "h z"]),
        ({"tokenizer__ggml__eos_token_id": 999}, ["eos_token_id", "999"]),
        ({"tokenizer__ggml__token_type": [1, 1]}, ["token_type"]),
    ],
)
def test_what_is_not_a_plain_llama_is_refused_by_key(changes, words, model, tmp_path):
    file = write_gguf(tmp_path / "odd.gguf", model, **changes)
    with pytest.raises(GristmillError) as caught:
        import_gguf(file, tmp_path / "out")
    for word in ("odd.gguf", *words):
        assert word in str(caught.value)


@pytest.mark.parametrize("part", [0.0, 0.001, 0.05, 0.3, 0.9, 0.9999])
def test_a_truncated_file_is_named(part, model, tmp_path):
    file = write_gguf(tmp_path / "cut.gguf", model)
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(GristmillError, match=r"cut\.gguf is not a whole GGUF file"):
        import_gguf(file, tmp_path / "out")


def test_garbage_and_absence_are_named(tmp_path):
    (tmp_path / "noise.gguf").write_bytes(b"GGUF\x03\x00\x00\x00" + b"\xff" * 2000)
    with pytest.raises(GristmillError, match=r"noise\.gguf is not a whole GGUF file"):
        import_gguf(tmp_path / "noise.gguf", tmp_path / "out")
    with pytest.raises(GristmillError, match=r"absent\.gguf does not exist"):
        import_gguf(tmp_path / "absent.gguf", tmp_path / "out")
