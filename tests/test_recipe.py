from pathlib import Path

import pytest

from gristmill.errors import GristmillError
from gristmill.pipeline import run
from gristmill.recipe import check_ahead, dump_recipe, load_recipe

RECIPES = Path(__file__).parent.parent / "recipes"
BASE = """name: small
seed: 3
collected: {}
corpus: {}
tokenizer: {vocab_size: 512}
tokens: {}
base:
  model:
    hidden_size: 32
    num_layers: 1
    num_heads: 2
    num_kv_heads: 1
    head_dim: 16
    intermediate_size: 64
    max_seq_len: 32
  training:
    steps: 2
    batch_size: 2
    learning_rate: 0.01
  sequence_length: 32
"""


def write(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda p: p.name)
def test_every_recipe_in_the_repository_is_valid_and_round_trips(path, tmp_path):
    recipe = load_recipe(path)
    assert load_recipe(write(tmp_path, dump_recipe(recipe))) == recipe


def test_set_overrides_values_and_removes_stages(tmp_path):
    recipe = load_recipe(write(tmp_path, BASE), ["base.training.steps=7", "seed=9", "tokenizer=null"])
    assert recipe.base.training.steps == 7
    assert recipe.seed == 9
    assert recipe.tokenizer is None


@pytest.mark.parametrize(
    ("text", "overrides", "said"),
    [
        (
            BASE.replace("steps: 2", "stepps: 2"),
            [],
            r"recipe.yaml:17: base.training.stepps: unknown key; did you mean 'steps'",
        ),
        (BASE + "sftt: {}\n", [], r"recipe.yaml:21: sftt: unknown key; did you mean 'sft'"),
        (BASE.replace("steps: 2", "steps: many"), [], r"recipe.yaml:17: base.training.steps: .*integer.*'many'"),
        (BASE.replace("    steps: 2\n", ""), [], r"recipe.yaml:16: base.training.steps: this key is required"),
        (
            BASE.replace("num_kv_heads: 1", "num_kv_heads: 3"),
            [],
            r"num_kv_heads \(3\) is more than num_heads \(2\)",
        ),
        (BASE.replace("seed: 3", "seed: [3"), [], r"recipe.yaml:\d+: not valid YAML"),
        ("- a\n", [], "is not a recipe"),
        (BASE, ["base.sequence_length=64"], r"sequence_length \(64\) exceeds model.max_seq_len \(32\)"),
        (BASE, ["evaluation={}"], r"evaluation.window \(256\) exceeds base.model.max_seq_len \(32\)"),
        (
            BASE.replace("collected: {}", "collected: {paths: [{path: a, domain: b, text_feild: c}]}"),
            [],
            r"recipe.yaml:3: collected.paths.0.text_feild: unknown key; did you mean 'text_field'",
        ),
        (BASE + "seed: 4\n", [], r"recipe.yaml:21: seed: given twice, first on line 2"),
        (BASE.replace("seed: 3", "seed: 2024-13-45"), [], "not valid YAML"),
        (BASE, ["base.training.step=5"], r"--set: base.training.step: unknown key; did you mean 'steps'"),
        (BASE, ["base.training"], "expected key.path=value"),
        (BASE, ["seed.deep=1"], "seed holds no keys"),
    ],
)
def test_errors_name_the_line_the_key_and_the_nearest_known_one(tmp_path, text, overrides, said):
    with pytest.raises(GristmillError, match=said):
        load_recipe(write(tmp_path, text), overrides)


SFT = """sft:
  tasks: 4
  training: {steps: 1, batch_size: 1, learning_rate: 0.01}
"""
MARKED = "{% for m in messages %}{{ m.role }}:{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
PROMPT = "{% if add_generation_prompt %}assistant:{% endif %}"


@pytest.mark.parametrize(
    ("tokenizer", "template", "said"),
    [
        ("{vocab_size: 260}", "", r"tokenizer.vocab_size is 260, but 9 special tokens and the 256 bytes are 265"),
        ("{special_tokens: [the]}", "", r"tokenizer.special_tokens\[0\] 'the' could be a piece of plain text"),
        ("{chat_template: none.jinja}", "", r"tokenizer.chat_template is 'none.jinja', which is none of"),
        ("{chat_template: TEMPLATE}", "{% for %}", r"own.jinja is not a valid chat template"),
        (
            "{chat_template: TEMPLATE}",
            MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "") + PROMPT,
            r"own.jinja does not mark what the assistant writes, which is what sft and dpo learn",
        ),
    ],
)
def test_what_the_tokenizer_would_refuse_is_refused_before_the_first_stage(tmp_path, tokenizer, template, said):
    (tmp_path / "own.jinja").write_text(template)
    text = BASE.replace("{vocab_size: 512}", tokenizer.replace("TEMPLATE", str(tmp_path / "own.jinja"))) + SFT
    text = text.replace("collected: {}", f"collected: {{paths: [{{path: {tmp_path}/none, domain: a}}]}}")
    with pytest.raises(GristmillError, match=said):
        run(write(tmp_path, text), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_template_that_marks_nothing_is_fine_where_nothing_is_fine_tuned(tmp_path):
    (tmp_path / "own.jinja").write_text("{% for m in messages %}{{ m.role }}:{{ m.content }}{% endfor %}" + PROMPT)
    tokenizer = f"{{chat_template: {tmp_path / 'own.jinja'}}}"
    recipe = load_recipe(write(tmp_path, BASE.replace("{vocab_size: 512}", tokenizer)))
    check_ahead(recipe, ["tokenizer", "base"])
    tuned = load_recipe(write(tmp_path, BASE.replace("{vocab_size: 512}", tokenizer) + SFT))
    check_ahead(tuned, ["tokenizer", "base"])  # what is planned counts, as with --until
    with pytest.raises(GristmillError, match="does not mark what the assistant writes"):
        check_ahead(tuned, ["tokenizer", "base", "sft"])
    (tmp_path / "own.jinja").write_text(MARKED + PROMPT)
    check_ahead(tuned, ["tokenizer", "base", "sft"])
    (tmp_path / "own.jinja").unlink()
    check_ahead(tuned, ["corpus"])
    check_ahead(tuned, ["sft"])  # the tokenizer that is there holds its own copy


def test_a_missing_recipe_is_named(tmp_path):
    with pytest.raises(GristmillError, match="there is no recipe"):
        load_recipe(tmp_path / "none.yaml")
