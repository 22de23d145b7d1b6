"""T5 directories: the same numbers as transformers, in and out, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from gristmill.errors import GristmillError
from gristmill.model.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from gristmill.weights import t5
from gristmill.weights.encoders import load_encoder_decoder, save_encoder_decoder

transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-4
SIZES = {
    "vocab_size": 41,
    "d_model": 32,
    "d_kv": 10,
    "d_ff": 52,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "dropout_rate": 0.0,
    "decoder_start_token_id": 0,
}
VERSIONS = {
    "1.0": {"feed_forward_proj": "relu"},
    "1.1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
}
OURS = {
    "vocab_size": 41,
    "hidden_size": 32,
    "head_dim": 10,
    "intermediate_size": 52,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 4,
    "max_seq_len": 512,
    "positions": "none",
    "relative_buckets": 8,
    "relative_max_distance": 12,
    "attention_scale": 1.0,
}
OUR_VERSIONS = {
    "1.0": {"activation": "relu", "gated": False, "logit_scale": 32**-0.5},
    "1.1": {"activation": "gelu_tanh", "gated": True, "tie_embeddings": False},
}


def strengthen(model: torch.nn.Module, seed: int = 0) -> None:
    """Weights of which every part has a say in what comes out."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            size = 1.0 if "relative" in name else 0.1
            parameter.copy_(torch.randn(parameter.shape) * size + (parameter.dim() == 1))


def theirs(version: str, directory: Path, **changes) -> torch.nn.Module:
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**SIZES | VERSIONS[version] | changes))
    if version == "1.1":  # transformers 5 ties the head of every new T5; published 1.1 models have their own
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    strengthen(model)
    model.save_pretrained(directory)
    return model.eval()


def our_t5(version: str, **changes) -> EncoderDecoder:
    model = EncoderDecoder(EncoderDecoderConfig(**OURS | OUR_VERSIONS[version] | changes))
    strengthen(model)
    return model.eval()


def batch(left: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Input of 29 tokens (beyond the farthest bucket), its mask, output."""
    torch.manual_seed(5)
    mask = torch.ones(3, 29, dtype=torch.long)
    mask[1, :9] = 0
    return torch.randint(41, (3, 29)), mask if left else mask.flip(1), torch.randint(41, (3, 17))


def assert_same(ours: EncoderDecoder, hf: torch.nn.Module) -> None:
    """Logits and the gradients of all parameters."""
    ids, mask, output = batch()
    one, other = ours(ids, output, mask), hf(ids, attention_mask=mask, decoder_input_ids=output).logits
    assert other.abs().max() > 0.1
    assert (one - other).abs().max() <= TOLERANCE
    for logits in (one, other):
        F.cross_entropy(logits[:, :-1].flatten(0, 1), output[:, 1:].flatten()).backward()
    gradients = {name: parameter.grad for name, parameter in hf.named_parameters()}
    table = t5.t5_layout(ours.config)
    assert set(table) == {name for name, _ in ours.named_parameters()}
    for name, parts in table.items():
        expected = torch.cat([gradients[part.name] for part in parts])
        assert expected.abs().max() > 0, name
        assert (ours.get_parameter(name).grad - expected).abs().max() <= TOLERANCE, name


@pytest.mark.parametrize("version", VERSIONS)
def test_a_directory_of_transformers_gives_the_same_numbers_and_gradients(version, tmp_path):
    hf = theirs(version, tmp_path)
    ours = load_encoder_decoder(tmp_path)
    assert ours.config == EncoderDecoderConfig(**OURS | OUR_VERSIONS[version] | {"norm_eps": 1e-6})
    assert_same(ours, hf)


@pytest.mark.parametrize("version", VERSIONS)
def test_transformers_loads_what_is_saved(version, tmp_path):
    ours = our_t5(version, start_id=3, max_seq_len=77)
    save_encoder_decoder(ours, tmp_path)
    hf, info = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert_same(ours, hf.eval())
    back = load_encoder_decoder(tmp_path)
    assert back.config == ours.config
    state = back.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in ours.state_dict().items())


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("version", VERSIONS)
def test_greedy_generation_is_that_of_transformers(version, left, tmp_path):
    hf = theirs(version, tmp_path, num_decoder_layers=2)  # its cache takes the encoder's number of layers
    ours = load_encoder_decoder(tmp_path)
    ids, mask, _ = batch(left)
    stop = ours.generate(ids, 24, mask_BS=mask)[0][5]  # a token that does come up
    out = hf.generate(ids, attention_mask=mask, max_new_tokens=24, do_sample=False, eos_token_id=stop, pad_token_id=40)
    written = ours.generate(ids, 24, [stop], mask)
    assert len({token for row in written for token in row}) > 3
    for row, expected in zip(written, out[:, 1:].tolist(), strict=True):
        assert row == expected[: len(row)]
        assert set(expected[len(row) :]) <= {40}
        assert row[-1] == stop or len(row) == 24


def test_an_older_config_says_by_tying_whether_logits_are_scaled(tmp_path):
    """transformers 4 has no key of its own for it."""
    theirs("1.1", tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    del settings["scale_decoder_outputs"]
    (tmp_path / "config.json").write_text(json.dumps(settings | {"tie_word_embeddings": False}))
    assert load_encoder_decoder(tmp_path).config.logit_scale == 1.0
    (tmp_path / "config.json").write_text(json.dumps(settings | {"tie_word_embeddings": True}))
    assert load_encoder_decoder(tmp_path).config.logit_scale == 32**-0.5


def test_copies_of_the_embedding_are_taken_and_others_refused(tmp_path):
    hf = theirs("1.0", tmp_path)
    file = tmp_path / "model.safetensors"
    whole = load_file(file)
    copies = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
    save_file(whole | {name: whole["shared.weight"].clone() for name in copies}, file)
    ids, mask, output = batch()
    ours = load_encoder_decoder(tmp_path)
    assert ours.head is None
    expected = hf(ids, attention_mask=mask, decoder_input_ids=output).logits
    assert (ours(ids, output, mask) - expected).abs().max() <= TOLERANCE
    save_file(whole | {copies[1]: whole["shared.weight"] + 1}, file)
    with pytest.raises(GristmillError, match=r"decoder\.embed_tokens\.weight differs from shared\.weight"):
        load_encoder_decoder(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"feed_forward_proj": "gated-mish"}, "feed_forward_proj = 'gated-mish'"),
        ({"architectures": ["T5EncoderModel"]}, "architectures = .*T5EncoderModel"),
        ({"is_encoder_decoder": False}, "is_encoder_decoder = False"),
        ({"num_heads": 5}, r"SelfAttention\.relative_attention_bias\.weight has shape \[8, 4\]"),
        ({"num_decoder_layers": 10**9}, "num_decoder_layers = 1000000000"),
        ({"num_layers": 1}, r"encoder\.block\.1.* has no place"),
        ({"num_decoder_layers": 4}, r"decoder\.block\.3.* is missing"),
        ({"relative_attention_max_distance": 4}, r"relative_attention_max_distance \(4\) must be above 4"),
        ({"relative_attention_num_buckets": 7}, r"relative_attention_num_buckets \(7\) must be even"),
        ({"decoder_start_token_id": 41}, r"decoder_start_token_id \(41\) is not below vocab_size"),
        ({"decoder_start_token_id": "x"}, "decoder_start_token_id"),
        ({"tie_word_embeddings": False}, r"tensor lm_head\.weight is missing"),
        ({"model_type": "mt5"}, "model_type 'mt5'"),
    ],
)
def test_what_config_json_asks_and_cannot_have_is_named(changes, said, tmp_path):
    save_encoder_decoder(our_t5("1.0"), tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | changes))
    with pytest.raises(GristmillError, match=said):
        load_encoder_decoder(tmp_path)


def test_a_missing_cross_attention_tensor_is_named(tmp_path):
    save_encoder_decoder(our_t5("1.0"), tmp_path)
    name = "decoder.block.2.layer.1.EncDecAttention.v.weight"
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({key: value for key, value in tensors.items() if key != name}, tmp_path / "model.safetensors")
    with pytest.raises(GristmillError, match=f"tensor {name} is missing"):
        load_encoder_decoder(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"positions": "rope", "relative_buckets": 0}, "relative_buckets = 0 and positions = 'rope'"),
        ({"num_kv_heads": 2}, "num_kv_heads = 2"),
        ({"attention_scale": None}, "attention_scale"),
        ({"logit_scale": 1.0}, "logit_scale = 1.0"),
        ({"logit_scale": 0.5}, "logit_scale = 0.5"),
        ({"gated": True, "activation": "gelu"}, "activation = 'gelu'"),
        ({"norm_position": "sandwich"}, "norm_position = 'sandwich'"),
    ],
)
def test_what_t5_has_no_place_for_is_named(changes, said, tmp_path):
    with pytest.raises(GristmillError, match=said):
        save_encoder_decoder(our_t5("1.0", **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()
