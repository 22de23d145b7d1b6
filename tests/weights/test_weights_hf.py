"""Model directories: what we write, transformers reads, and the other way round, with the same logits."""

import json
import shutil
import weakref

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gristmill.errors import GristmillError
from gristmill.weights.hf import save_model
from gristmill.weights.layout import split_tensors
from gristmill.weights.load import load_model
from gristmill.weights.safetensors_writer import StoredTensor, write_weights
from gristmill.weights.tokenizer_files import special_token_ids

TOLERANCE = 1e-4
SHAPES = {
    "grouped": {},
    "multi-query": {"num_kv_heads": 1, "norm_eps": 1e-6},
    "multi-head-untied": {"num_kv_heads": 4, "tie_embeddings": False},
    "wide-heads": {"head_dim": 14, "rope_theta": 50_000.0},
    "narrow-heads-untied": {"head_dim": 6, "tie_embeddings": False},
}


def ids(vocab: int = 40) -> torch.Tensor:
    return torch.randint(vocab, (2, 19), generator=torch.Generator().manual_seed(1))


def from_transformers(directory, **options):
    """Load strictly: missing or unexpected tensors would otherwise be random, with a mere warning."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True, **options)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    return model.eval()


@pytest.mark.parametrize("name", SHAPES)
def test_transformers_reads_what_we_write(name, random_model, tokenizer_dir, tmp_path):
    model = random_model(**SHAPES[name])
    save_model(model, tmp_path, tokenizer_dir)
    theirs = from_transformers(tmp_path)
    assert type(theirs).__name__ == "LlamaForCausalLM"
    assert theirs.dtype == torch.float32
    with torch.no_grad():
        assert (theirs(ids()).logits - model(ids())).abs().max() <= TOLERANCE
        reloaded = load_model(tmp_path)
        assert reloaded.config == model.config
        assert torch.equal(reloaded(ids()), model(ids()))


def test_ids_of_special_tokens_that_only_the_map_names(random_model, tokenizer_dir, tmp_path):
    shutil.copytree(tokenizer_dir, tmp_path / "t")
    (tmp_path / "t" / "tokenizer_config.json").write_text("{}")
    assert special_token_ids(tmp_path / "t", 40) == special_token_ids(tokenizer_dir, 40)
    save_model(random_model(), tmp_path / "m", tmp_path / "t")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert (config["bos_token_id"], config["pad_token_id"]) == (0, 2)


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {"num_key_value_heads": 1, "tie_word_embeddings": True},
        {"num_key_value_heads": 2, "head_dim": 10, "rope_parameters": {"rope_type": "default", "rope_theta": 70_000.0}},
        {"num_key_value_heads": 4, "rms_norm_eps": 1e-3, "max_position_embeddings": 99},
    ],
)
def test_we_read_what_transformers_writes(changes, shards, tmp_path):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=53, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, **changes
    )
    theirs = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    theirs.save_pretrained(tmp_path, **({"max_shard_size": "20KB"} if shards else {}))
    assert (tmp_path / "model.safetensors.index.json").exists() == shards
    ours = load_model(tmp_path)
    with torch.no_grad():
        assert (theirs(ids(53)).logits - ours(ids(53))).abs().max() <= TOLERANCE
    if "max_position_embeddings" in changes:
        assert ours.config.max_seq_len == 99


def test_the_same_weights_give_the_same_bytes(random_model, tokenizer_dir, tmp_path):
    for name in ("first", "second"):
        save_model(random_model(), tmp_path / name, tokenizer_dir)
    files = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "second").iterdir())
    for name in files:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name


def test_files_and_settings_of_a_directory(random_model, tokenizer_dir, tmp_path):
    save_model(random_model(rope_theta=12_345.0), tmp_path, tokenizer_dir, dtype=torch.bfloat16)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        assert (tmp_path / name).read_bytes() == (tokenizer_dir / name).read_bytes()
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 12_345.0
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (0, 1, 2)
    generation = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert generation.eos_token_id == [1, 4]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer("abc").input_ids == [5, 6, 7]
    mode = (tmp_path / "model.safetensors").stat().st_mode
    assert mode == (tmp_path / "config.json").stat().st_mode


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_files_hold_the_rounded_weights(dtype, random_model, tokenizer_dir, tmp_path):
    model = random_model()
    save_model(model, tmp_path, tokenizer_dir, dtype)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {dtype}  # noqa: SIM118
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118
    assert from_transformers(tmp_path).dtype == dtype
    for name, parameter in load_model(tmp_path, dtype=dtype).named_parameters():
        assert torch.equal(parameter, model.get_parameter(name).to(dtype)), name


def test_a_model_with_nan_is_not_saved(random_model, tokenizer_dir, tmp_path):
    model = random_model()
    with torch.no_grad():
        model.blocks[1].feed_forward.gate_up.weight[50, 3] = float("nan")  # row 50 of 88: the up half
    with pytest.raises(GristmillError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        save_model(model, tmp_path, tokenizer_dir)
    assert not (tmp_path / "model.safetensors").exists()


def test_weights_beyond_float16_are_refused_by_name(random_model, tokenizer_dir, tmp_path):
    model = random_model()
    with torch.no_grad():
        model.norm.weight[0] = 1e6
    save_model(model, tmp_path / "bfloat16", tokenizer_dir, torch.bfloat16)
    with pytest.raises(GristmillError, match=r"model\.norm\.weight"):
        save_model(model, tmp_path / "float16", tokenizer_dir, torch.float16)


def test_a_tokenizer_that_is_absent_or_too_large_is_named(random_model, tokenizer_dir, tmp_path):
    with pytest.raises(GristmillError, match=r"tokenizer\.json"):
        save_model(random_model(), tmp_path, tmp_path / "nowhere")
    with pytest.raises(GristmillError, match="id 30, the model's vocab_size is 20"):
        save_model(random_model(vocab_size=20), tmp_path, tokenizer_dir)


def _killed(*args):
    raise KeyboardInterrupt


def test_a_save_that_was_killed_leaves_nothing_in_the_next_one(random_model, tokenizer_dir, tmp_path, monkeypatch):
    """A kill leaves no time to clean up: neither in the middle of a file nor between two."""
    with monkeypatch.context() as patch:
        patch.setattr("gristmill.weights.safetensors_writer.shutil.rmtree", lambda *args, **kwargs: None)
        patch.setattr("gristmill.weights.safetensors_writer.os.replace", _killed)
        with pytest.raises(KeyboardInterrupt):
            save_model(random_model(), tmp_path / "cut", tokenizer_dir, max_shard_bytes=10_000)
        assert list((tmp_path / "cut" / ".weights.writing").iterdir())
    save_model(random_model(), tmp_path / "cut", tokenizer_dir)
    save_model(random_model(), tmp_path / "whole", tokenizer_dir)
    left, expected = ({path.name for path in (tmp_path / name).rglob("*")} for name in ("cut", "whole"))
    assert left == expected


def test_saving_over_the_directory_it_came_from(random_model, tokenizer_dir, tmp_path):
    save_model(random_model(), tmp_path, tokenizer_dir)
    model = load_model(tmp_path)
    save_model(model, tmp_path, tmp_path)
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path)(ids()), random_model()(ids()))


def test_the_end_of_a_turn_stops_generation(random_model, tokenizer_dir, tmp_path):
    own = tmp_path / "tokenizer"
    shutil.copytree(tokenizer_dir, own)
    (own / "chat_template.jinja").write_text(
        "{% for message in messages %}{% if message.role == 'assistant' %}{% generation %}{{ message.content }}"
        "<|im_start|>{% endgeneration %}{% else %}{{ message.content }}{% endif %}{% endfor %}"
    )
    save_model(random_model(), tmp_path / "model", own)
    assert json.loads((tmp_path / "model" / "generation_config.json").read_text())["eos_token_id"] == [1, 4, 3]


def test_large_models_are_cut_into_shards(random_model, tokenizer_dir, tmp_path):
    model = random_model(tie_embeddings=False)
    save_model(model, tmp_path, tokenizer_dir, max_shard_bytes=20_000)
    shards = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(shards) > 2
    assert shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    assert all(path.stat().st_size < 23_000 for path in tmp_path.glob("*.safetensors"))  # with its header
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * sum(parameter.numel() for parameter in model.parameters())
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path)(ids()), model(ids()))
        assert (from_transformers(tmp_path)(ids()).logits - model(ids())).abs().max() <= TOLERANCE
    save_model(model, tmp_path, tokenizer_dir)  # one file again: what is left of the shards would be read by others
    assert [path.name for path in tmp_path.glob("model*")] == ["model.safetensors"]
    save_model(model, tmp_path, tokenizer_dir, max_shard_bytes=20_000)
    assert not (tmp_path / "model.safetensors").exists()


def test_the_file_is_what_the_safetensors_library_writes(random_model, tokenizer_dir, tmp_path):
    """Not byte for byte, for the order of tensors is free."""
    model = random_model()
    save_model(model, tmp_path, tokenizer_dir, torch.bfloat16)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors, tmp_path / "library.safetensors", metadata={"format": "pt"})
    headers = [_header(tmp_path / name) for name in ("library.safetensors", "model.safetensors")]
    assert headers[0] == headers[1]
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    for name, tensor in split_tensors(model):
        assert torch.equal(tensors[name], tensor.to(torch.bfloat16)), name


def _header(path):
    """Types and shapes, and where the last tensor ends, in a header of a multiple of eight bytes."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    entries = json.loads(data[8 : 8 + length])
    ends = [entry.pop("data_offsets")[1] for name, entry in entries.items() if name != "__metadata__"]
    assert max(ends) == len(data) - 8 - length
    return entries, max(ends), length % 8


def test_values_are_made_one_tensor_at_a_time(tmp_path):
    """A writer that held all tensors would need the model's memory twice."""
    alive = weakref.WeakSet()
    most = 0

    def make():
        nonlocal most
        tensor = torch.zeros(100)
        alive.add(tensor)
        most = max(most, len(alive))
        return tensor

    write_weights([StoredTensor(f"t{n}", (100,), torch.float32, make) for n in range(10)], tmp_path)
    assert most <= 2  # the one that is written, and the one before it until its name is taken
    assert set(load_file(tmp_path / "model.safetensors")) == {f"t{n}" for n in range(10)}
