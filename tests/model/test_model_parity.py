"""Every family against transformers with the same weights: logits, gradients, greedy tokens, files in both directions.

The models and the comparison are those of benchmarks/parity.py, which writes the table of docs/models.md.
"""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from model_variants import VARIANTS, random_ids, random_model, variant

from gristmill.model.config import ModelConfig
from gristmill.model.decoder import Decoder
from gristmill.weights.families import FAMILIES, family_of, home_of
from gristmill.weights.families.own import OWN
from gristmill.weights.hf import save_model
from gristmill.weights.load import load_model

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = 1e-4


def _parity():
    spec = importlib.util.spec_from_file_location("benchmarks_parity", ROOT / "benchmarks" / "parity.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


parity = _parity()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return parity.write_tokenizer(tmp_path_factory.mktemp("files") / "tokenizer")


@pytest.mark.parametrize("case", parity.CASES, ids=lambda case: f"{case.family}: {case.what}")
def test_logits_gradients_files_and_greedy_tokens_agree(case):
    result = parity.measure(case)
    assert result.logits <= TOLERANCE
    assert result.gradients <= TOLERANCE
    assert result.saved <= TOLERANCE
    assert result.same_tokens


def test_every_family_is_compared():
    assert {case.family for case in parity.CASES} == {family.model_type for family in FAMILIES}


@pytest.mark.parametrize("case", [case for case in parity.CASES if "trained length" in case.what], ids=lambda c: c.what)
def test_the_comparison_would_notice_a_scaling_that_is_left_out(case, tmp_path):
    theirs = parity.build(case)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    plain = Decoder(ours.config.model_copy(update={"rope_scaling": None}))
    plain.load_state_dict(ours.state_dict())
    ids = torch.randint(61, (1, case.length), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert (plain(ids) - theirs(ids).logits).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_saved_whole(name, tokenizer, tmp_path):
    """As a family of transformers, which then computes the same, or in gristmill's own format."""
    model = random_model(variant(name))
    save_model(model, tmp_path, tokenizer)
    ours = load_model(tmp_path)
    assert ours.config == model.config
    for (key, expected), (other, tensor) in zip(model.state_dict().items(), ours.state_dict().items(), strict=True):
        assert key == other
        assert torch.equal(tensor, expected), key
    if home_of(model.config) is OWN:
        return
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager", dtype=torch.float32
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    ids = random_ids(2, 40)
    with torch.no_grad():
        assert (theirs(ids).logits - model(ids)).abs().max() <= TOLERANCE


SHAPES = {
    "multi-query": {"num_kv_heads": 1},
    "multi-head": {"num_kv_heads": 4},
    "untied": {"tie_embeddings": False},
    "narrow-heads": {"head_dim": 4},
    "one-head": {"num_heads": 1, "num_kv_heads": 1, "head_dim": 32},
    "rope-and-eps": {"rope_theta": 100_000.0, "norm_eps": 1e-3},
}
BASE = {"vocab_size": 41, "hidden_size": 32, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8}
BASE |= {"intermediate_size": 44, "max_seq_len": 64}


def llama_pair(changes, tokenizer, tmp_path) -> tuple[Decoder, torch.nn.Module]:
    model = random_model(ModelConfig(**BASE | changes))
    assert family_of(model.config).model_type == "llama"
    save_model(model, tmp_path, tokenizer)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    return model, theirs.eval()


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_of_llama_agree(name, tokenizer, tmp_path):
    ours, theirs = llama_pair(SHAPES[name], tokenizer, tmp_path)
    ids = torch.randint(41, (2, 23), generator=torch.Generator().manual_seed(1))
    our_logits, their_logits = ours(ids), theirs(ids).logits
    assert their_logits.abs().max() > 0.1
    assert (our_logits - their_logits).abs().max() <= TOLERANCE
    for logits in (our_logits, their_logits):
        F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    for ours_name, theirs_name in (
        ("embedding.weight", "model.embed_tokens.weight"),
        ("norm.weight", "model.norm.weight"),
    ):
        difference = ours.get_parameter(ours_name).grad - theirs.get_parameter(theirs_name).grad
        assert difference.abs().max() <= TOLERANCE


def test_positions_given_by_the_caller_agree(tokenizer, tmp_path):
    ours, theirs = llama_pair({}, tokenizer, tmp_path)
    ids = torch.randint(41, (1, 9), generator=torch.Generator().manual_seed(2))
    positions = torch.tensor([[0, 1, 2, 3, 10, 11, 12, 30, 31]])
    with torch.no_grad():
        expected = theirs(ids, position_ids=positions, attention_mask=torch.ones_like(ids)).logits
        assert (ours(ids, positions) - expected).abs().max() <= TOLERANCE


def test_the_table_in_the_docs_lists_every_case():
    """Figures may differ between machines; families, cases and order may not."""
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    assert page.count(parity.BEGIN) == page.count(parity.END) == 1, "docs/models.md lost the markers of its table"
    rows = page.split(parity.BEGIN)[1].split(parity.END)[0].strip().splitlines()[2:]
    listed = [tuple(cell.strip() for cell in row.split("|")[1:3]) for row in rows]
    assert listed == [(f"`{case.family}`", case.what) for case in parity.CASES], "run benchmarks/parity.py --write"
    assert all("equal" in row and "differ" not in row for row in rows)
