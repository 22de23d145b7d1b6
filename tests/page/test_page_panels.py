"""The panels: real content from the artifacts, honest emptiness without them, and no crash on any damage."""

import json
import random
import shutil

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from page_run import CONFIGS, EVIL, SHAPE, SOURCES, VOCABULARY, make_run, replace_by_unigram

from gristmill.model.config import ModelConfig
from gristmill.model.presets import preset
from gristmill.page.files import Run
from gristmill.page.panel_training import chart_specs, metric_rows, thinned
from gristmill.page.panels import PANELS, panel
from gristmill.page.play import ROWS, merges, run_tokenizer, tokenize, vocabulary
from gristmill.page.state import StageState

KINDS = {
    "figures",
    "table",
    "intervals",
    "documents",
    "histograms",
    "judgement",
    "pairs",
    "charts",
    "image",
    "lines",
    "empty",
    "play",
    "chat",
}


def sections(directory, key) -> dict[str, dict]:
    made = panel(Run(directory), key)["sections"]
    assert len({section["id"] for section in made}) == len(made)
    return {section["id"]: section for section in made}


def table_rows(section) -> list[list]:
    assert section["kind"] == "table"
    assert all(len(row) == len(section["columns"]) for row in section["rows"])
    return section["rows"]


@pytest.mark.parametrize("key", PANELS)
def test_every_panel_of_a_finished_run_has_content_and_no_empty_section(finished_run, key):
    made = panel(Run(finished_run), key)["sections"]
    assert {section["kind"] for section in made} <= KINDS
    assert not [section for section in made if section["kind"] == "empty"]
    assert len(made) >= 2


@pytest.mark.parametrize("key", PANELS)
def test_every_panel_of_an_empty_run_says_what_to_do(tmp_path, key):
    made = panel(Run(tmp_path), key)["sections"]
    assert made
    assert {section["kind"] for section in made} <= {"empty", "chat"}
    assert any("gristmill" in (section.get("command") or "") for section in made) or key == "artifacts"


def test_a_running_stage_is_not_told_to_be_started(tmp_path):
    (tmp_path / "events.jsonl").write_text(json.dumps({"seq": 1, "type": "stage_started", "stage": "corpus"}) + "\n")
    (section,) = panel(Run(tmp_path), "processing")["sections"]
    assert section["command"] is None
    assert "running" in section["message"]


def test_data_is_counted_in_the_tables(finished_run):
    found = sections(finished_run, "data")
    assert [row[:2] for row in table_rows(found["domains"])] == [["books", 20], ["code", 10], ["web", 10]]
    assert [row[:2] for row in table_rows(found["languages"])] == [["en", 40]]
    rows = table_rows(found["sources"])
    assert {(row[0], row[1], row[2]) for row in rows} == {(source, domain, 10) for source, domain in SOURCES}
    assert [row[3] for row in rows] == sorted((row[3] for row in rows), reverse=True)
    figures = json.loads((finished_run / "artifacts/collected/manifest.json").read_text())["figures"]
    assert sum(row[3] for row in rows) == figures["bytes"]
    samples = found["collected-samples"]["items"]
    assert [item["label"] for item in samples] == [row[0] for row in rows]
    assert samples[0]["text"].startswith(EVIL)  # the source that it makes the largest


def test_processing(finished_run):
    found = sections(finished_run, "processing")
    kept = table_rows(found["kept"])
    assert sum(row[1] for row in kept) == 30
    assert sum(row[2] for row in kept) == 10
    reasons = table_rows(found["reasons"])
    assert sum(row[1] for row in reasons) == 10
    assert [row[1] for row in reasons] == sorted((row[1] for row in reasons), reverse=True)
    samples = found["removed-samples"]["items"]
    assert {item["group"] for item in samples} == {row[0] for row in reasons}
    assert {item["group"]: item["group_note"] for item in samples}["exact_duplicate"] == "3 documents"
    assert "words 60" in {item["label"] for item in samples if item["group"] == "gopher_quality:min_words"}
    assert {item["group"] for item in found["kept-samples"]["items"]} == {"books", "code", "web"}
    assert table_rows(found["personal-data"]) == [["email", 14]]
    assert [row[1] for row in table_rows(found["mixture"])] == [0.5, 0.2, 0.3]
    assert table_rows(found["corpus-languages"])[0][:2] == ["en", 30]
    assert table_rows(found["evaluation-sets"]) == [["quiz", 12, 3, 0]]
    assert found["problems"]["rows"][0][2].endswith(EVIL)


def test_the_funnel_loses_what_the_reasons_took(finished_run):
    found = sections(finished_run, "processing")
    rows = table_rows(found["funnel"])
    assert [row[0] for row in rows[:3]] == ["as collected", "cleaned and cut", "exact duplicates"]
    assert [row[0] for row in rows[-3:]] == ["near-duplicates", "for training", "for validation"]
    assert (rows[0][3], rows[1][3]) == (41, 40)
    taken = dict(table_rows(found["reasons"]))
    left = rows[1][3]
    for row in rows[2:-2]:
        left -= row[1]
        assert row[3] == left
    assert sum(row[1] for row in rows[2:-2]) == sum(taken.values()) == 10
    assert left == rows[-2][3] + rows[-1][3] == 30
    stages = table_rows(found["stages"])
    assert stages[-1] == ["all", 41, 40, 37, 33, 33, 30, 27, 3]


def test_values_are_drawn_with_their_thresholds(finished_run):
    items = {item["title"]: item for item in sections(finished_run, "processing")["values"]["items"]}
    assert list(items) == ["words", "bytes"]
    words = items["words"]
    assert sum(words["kept"]) == 30
    assert sum(words["removed"]) == 10 - 3  # exact copies are not counted twice
    assert words["note"] == "gopher_quality:min_words 50"
    assert words["cuts"] == [[50.0, "gopher_quality:min_words: 50"]]
    assert len(words["bins"]) == len(words["kept"]) == len(words["removed"])


def test_a_cluster_shows_what_stays_and_what_is_like_it(finished_run):
    items = sections(finished_run, "processing")["clusters"]["items"]
    assert {item["group"] for item in items} == {"kjv/5"}
    assert {item["group_note"] for item in items} == {"3 like it"}
    assert [item["label"] for item in items] == ["stays", *["0.83 alike"] * 3]


def test_an_older_corpus_still_shows_a_document_of_each_reason(tmp_path):
    directory = make_run(tmp_path / "run", ("collected", "corpus"))
    (directory / "artifacts/corpus/report.json").write_text('{"weights": {"web": 1.0}}')
    found = sections(directory, "processing")
    assert len(found["removed-samples"]["items"]) == 4
    assert table_rows(found["mixture"]) == [["web", 1.0]]
    assert "funnel" not in found


def test_long_documents_are_cut_and_their_length_kept(tmp_path):
    from page_run import row, write_table

    from gristmill.page.documents import SAMPLE_CHARACTERS, samples_by

    long = {**row(1, "local", "books"), "text": "x" * (SAMPLE_CHARACTERS + 5)}
    write_table(tmp_path, [row(3, "a", "web"), long, row(4, "a", "web"), row(5, "a", "web")])
    found = samples_by(tmp_path, "h", "source", 2)
    assert [(item["source"], len(item["text"]), item["characters"]) for item in found][-1] == ("local", 1200, 1205)
    assert [item["source"] for item in found] == ["a", "a", "local"]


def test_parameters_are_split_as_the_model_counts_them(finished_run):
    expected = ModelConfig(**SHAPE, vocab_size=VOCABULARY).num_parameters
    found = sections(finished_run, "architecture")["parameters"]
    assert table_rows(found)[-1][:2] == ["All", expected]
    assert sum(row[1] for row in table_rows(found)[:-1]) == expected
    assert f"base/ holds {expected:,} numbers" in found["note"]


def architecture_of(directory, shape):
    """The panel of a run whose recipe has this shape, and which has made no model yet."""
    directory.mkdir()
    (directory / "recipe.yaml").write_text(json.dumps({"base": {"model": shape}}))
    return sections(directory, "architecture")


def test_experts_and_latent_attention_are_counted_as_the_model_has_them(tmp_path):
    config = preset("deepseek-v2-lite")
    found = architecture_of(tmp_path / "run", config.model_dump(mode="json"))
    rows = {row[0]: row[1] for row in table_rows(found["parameters"])}
    assert rows["All"] == config.num_parameters == pytest.approx(15.7e9, rel=0.01)
    assert rows["Met by one token, of its experts"] == config.num_active_parameters
    assert rows["Routers"] == 26 * 64 * 2048
    items = {item["label"]: item["value"] for item in found["derived"]["items"]}
    assert items["KV cache per token, 16 bit"] == 27 * (512 + 64) * 2
    assert items["weights in 16 bit"] == 2 * config.num_parameters
    looked_up = config.vocab_size * config.hidden_size
    norms = table_rows(found["parameters"])[4]
    assert norms[0] == "Norms"
    work = 2 * (config.num_active_parameters - looked_up - norms[1])
    assert items["FLOP per generated token, short context"] == work
    assert "L * (R + P) b" in found["derived"]["note"]
    assert dict(table_rows(found["shape"]))["experts.top_k"] == 6


def test_what_sliding_windows_can_see_stands_beside_the_whole_cache(tmp_path):
    found = architecture_of(
        tmp_path / "run",
        {**SHAPE, "vocab_size": 9, "sliding_window": 8, "attention_pattern": ["sliding", "full"], "sink_tokens": 2},
    )
    items = {item["label"]: item["value"] for item in found["derived"]["items"]}
    per_layer = 2 * 2 * 4 * 2
    assert items["KV cache per token, 16 bit"] == 2 * per_layer
    assert items["KV cache of 64 tokens"] == 64 * 2 * per_layer
    assert items["of which queries can still see"] == (64 + 10) * per_layer
    assert dict(table_rows(found["shape"]))["attention_pattern"] == "sliding, full"


def test_a_shape_that_is_not_whole_has_no_figures(tmp_path):
    found = architecture_of(tmp_path / "run", {"hidden_size": 16, "vocab_size": 9})
    assert set(found) == {"shape"}


def test_architecture_is_known_from_the_recipe_before_training(tmp_path):
    directory = make_run(tmp_path / "run", ("collected", "corpus", "tokenizer"))
    found = sections(directory, "architecture")
    assert dict(table_rows(found["shape"])) == {"vocab_size": VOCABULARY, **SHAPE}
    assert "not there yet" in found["parameters"]["note"]


def test_curves_come_from_the_log(finished_run):
    found = sections(finished_run, "pretraining")["curves-base"]
    assert found["stage"] == "base"
    assert [chart["title"] for chart in found["charts"]][:2] == ["Loss", "Validation"]
    steps = [row["step"] for row in found["rows"]]
    assert steps == [1, *range(5, 201, 5)]
    assert [row["step"] for row in found["rows"] if "validation_bits_per_byte" in row] == list(range(25, 201, 25))


def test_curves_come_from_the_artifact_where_there_is_no_log(tmp_path):
    directory = make_run(tmp_path / "run", ("collected", "corpus", "tokenizer", "tokens", "base"))
    (directory / "events.jsonl").unlink()
    history = [{"step": 5, "loss": 4.0}, {"step": 10, "loss": 3.0}]
    (directory / "artifacts/base/training.json").write_text(json.dumps(history))
    assert sections(directory, "pretraining")["curves-base"]["rows"] == history


def test_speed_follows_from_the_times_between_metrics():
    state = StageState()
    state.metrics = {
        10: {"loss": 3.0, "time": 100.0},
        20: {"loss": 2.0, "time": 104.0},
        30: {"loss": 2.0, "time": 104.0},
    }
    batch = CONFIGS["base"]["training"]["batch_size"] * CONFIGS["base"]["sequence_length"]
    rows = metric_rows(state, batch)
    assert rows[1] == {"step": 20, "loss": 2.0, "tokens_per_second": 10 * 256 / 4}
    assert "tokens_per_second" not in rows[0]
    assert "tokens_per_second" not in rows[2]


def test_quantities_nobody_foresaw_get_a_chart_of_their_own():
    specs = chart_specs({"loss", "validation_loss", "reward_margin"}, "nats")
    assert [[series["key"] for series in spec["series"]] for spec in specs] == [
        ["loss", "validation_loss"],
        ["reward_margin"],
    ]


def test_long_curves_are_thinned_but_keep_their_ends_and_rare_points():
    rows = [{"step": i, "loss": 1.0, **({"validation": 2.0} if i % 1000 == 999 else {})} for i in range(20_000)]
    kept = thinned(rows)
    assert len(kept) < 1700
    assert (kept[0]["step"], kept[-1]["step"]) == (0, 19_999)
    assert sum("validation" in row for row in kept) == 20
    assert thinned(rows[:100]) == rows[:100]


def test_alignment(finished_run):
    found = sections(finished_run, "alignment")
    accuracy = {row["label"]: row for row in found["accuracy"]["rows"]}
    assert list(accuracy) == ["base", "sft", "dpo", "int8"]
    assert accuracy["dpo"]["low"] < accuracy["dpo"]["value"] == 0.68 < accuracy["dpo"]["high"]
    assert found["accuracy"]["interval_label"] == "95 % interval"
    assert table_rows(found["families"]) == [["copy words", 0.02, 0.61, 0.68, 0.67]]
    pair = found["preference-pairs"]["items"][0]
    assert [text["mark"] for text in pair["texts"]] == ["chosen", "rejected"]
    assert pair["texts"][1]["text"].endswith(EVIL)
    assert found["conversations"]["items"][0]["texts"] == [{"label": "assistant", "text": "stone"}]


def test_artifacts_and_lineage(finished_run):
    found = sections(finished_run, "artifacts")
    lineage = {row[0]: row for row in table_rows(found["lineage"])}
    manifest = json.loads((finished_run / "artifacts/int8/manifest.json").read_text())
    assert lineage["int8"][2] == manifest["hash"][:12]
    assert lineage["int8"][3] == ", ".join(f"{name} {digest[:12]}" for name, digest in manifest["parents"].items())
    assert [row[0] for row in table_rows(found["logit-lens"])] == ["embedding", "layer 0", "layer 1"]
    assert "layer 1, head 2 (0.40)" in found["attention"]["note"]


def test_weights_are_listed_from_their_headers_without_the_inspect_stage(tmp_path):
    directory = make_run(tmp_path / "run", ("collected", "corpus", "tokenizer", "tokens", "base"))
    rows = table_rows(sections(directory, "artifacts")["weights"])
    assert len(rows) == 2 + 2 * 9
    assert ["model.embed_tokens.weight", f"{VOCABULARY} × 16", "F32", VOCABULARY * 16] in rows


def test_deployment(finished_run):
    found = sections(finished_run, "deployment")
    assert found["chat"]["command"] == f"gristmill serve {finished_run}"
    assert [row[1] for row in table_rows(found["quantization"])] == [40000, 12000]
    assert [row[0] for row in table_rows(found["models"])] == ["base", "sft", "dpo", "int8"]


def test_a_server_without_a_run_has_a_chat_and_says_so_elsewhere():
    assert [section["kind"] for section in panel(None, "deployment")["sections"]] == ["chat"]
    assert panel(None, "data")["sections"][0]["command"] == "gristmill page RUN"
    assert "error" in tokenize(None, "text")
    assert vocabulary(None, "", 0)["rows"] == []


def test_damaged_files_leave_a_note_in_their_place(tmp_path, finished_run):
    """Every file of every artifact in turn becomes something else; no panel may fail."""
    directory = tmp_path / "run"
    shutil.copytree(finished_run, directory)
    rng = random.Random(0)
    replacements = (
        b"",
        b"null",
        b"[]",
        b"[1]",
        b'{"a": 1}',
        b'{"layers": [{}], "tasks": {"models": {"base": {}}}}',
        b"\xff\x00",
    )
    for path in sorted((directory / "artifacts").rglob("*")):
        if path.is_file():
            whole = path.read_bytes()
            for damage in rng.sample(replacements, 3):
                path.write_bytes(damage)
                for key in PANELS:
                    assert panel(Run(directory), key)["sections"]
            path.write_bytes(whole)
    (directory / "artifacts/evaluation/report.json").write_text('{"tasks": {"models": {"base": {"accuracy": 1}}}}')
    notes = [s["message"] for s in panel(Run(directory), "alignment")["sections"] if s["kind"] == "empty"]
    assert notes == ["This part cannot be shown: KeyError: 'tasks'"]


# ---- the tokenizer's own tools


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=60))
def test_pieces_join_to_the_text_and_words_hold_them(finished_run, text):
    answer = tokenize(Run(finished_run), text)
    pieces, words = answer["pieces"], answer["words"]
    assert "".join(piece["text"] for piece in pieces) == text
    assert "".join(words) == text
    assert [i for piece in pieces for i in piece["ids"]] == run_tokenizer(Run(finished_run)).encode(text)
    for number, word in enumerate(words):
        assert "".join(piece["text"] for piece in pieces if piece["word"] == number) == word


def test_a_words_merges_end_in_its_pieces(finished_run):
    run = Run(finished_run)
    answer = tokenize(run, "the miller 東")
    for number, word in enumerate(answer["words"]):
        found = merges(run, word)
        assert "".join(found["begins"][: len(word)]) == word or word == " 東"
        last = found["steps"][-1]["parts"] if found["steps"] else found["begins"]
        assert len(last) == sum(len(piece["ids"]) for piece in answer["pieces"] if piece["word"] == number)
    steps = merges(run, " the")["steps"]
    assert steps[-1]["parts"] == [" the"]
    assert all(step["left"] + step["right"] in step["parts"] for step in steps)
    assert all(step["number"] >= 1 for step in steps)
    assert "more than 200 bytes" in merges(run, "x" * 201)["error"]
    assert "no tokenizer" in merges(None, "x")["error"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("tokenizer.json", b"{", "tokenizer.json is not a tokenizer"),
        ("tokenizer.json", None, "holds no tokenizer.json"),
        ("tokenizer_config.json", b"{}", "names no eos_token"),
        ("tokenizer_config.json", b"[", "tokenizer_config.json is not valid JSON"),
        ("chat_template.jinja", b"{% if", "is not a valid chat template"),
        ("chat_template.jinja", b"\xff", "chat_template.jinja is not UTF-8"),
        ("manifest.json", b"[]", "manifest.json is corrupt"),
    ],
)
def test_a_broken_tokenizer_is_not_called_a_missing_one(tmp_path, name, content, says):
    directory = make_run(tmp_path / "run", ("collected", "corpus", "tokenizer"))
    path = directory / "artifacts" / "tokenizer" / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    run = Run(directory)
    answers = [tokenize(run, "the miller"), merges(run, "the"), vocabulary(run, "the", 0)]
    for error in [answer["error"] for answer in answers]:
        assert error.startswith("The run's tokenizer cannot be used: ")
        assert says in error
    assert vocabulary(run, "the", 0)["rows"] == []
    assert says in sections(directory, "tokenization")["play"]["note"]
    assert run_tokenizer(run) is None


def test_another_kind_has_pieces_and_no_merges(tmp_path):
    """A unigram tokenizer, which replaces the run's."""
    directory = make_run(tmp_path / "run", ("collected", "corpus", "tokenizer"))
    replace_by_unigram(directory / "artifacts" / "tokenizer")
    run = Run(directory)
    answer = tokenize(run, "the miller")
    assert "".join(piece["text"] for piece in answer["pieces"]) == "the miller"
    assert "words" not in answer
    assert "otherwise than by merges" in merges(run, "the")["error"]
    found = sections(directory, "tokenization")
    assert "merges" not in found
    assert table_rows(found["fertility"])
    assert "Choose a piece" not in found["play"]["note"]
    assert vocabulary(run, "the", 0)["total"] > 0


def test_fertility_is_measured_by_domain_and_language(finished_run):
    found = sections(finished_run, "tokenization")
    tokenizer = run_tokenizer(Run(finished_run))
    rows = pq.read_table(finished_run / "artifacts/corpus/documents").to_pylist()
    rows = [row for row in rows if row["split"] == "validation"]
    shown = {row[0]: row[1:] for row in table_rows(found["fertility"])}
    assert set(shown) == {row["domain"] for row in rows}
    for domain, (size, per_token, per_word, *_) in shown.items():
        texts = [row["text"] for row in rows if row["domain"] == domain]
        tokens = sum(len(tokenizer.encode(text)) for text in texts)
        assert size == sum(len(text.encode()) for text in texts)
        assert per_token == pytest.approx(size / tokens)
        assert per_word == pytest.approx(tokens / sum(len(text.split()) for text in texts))
    assert [row[0] for row in table_rows(found["fertility-languages"])] == ["en"]


def test_without_a_corpus_the_stages_own_fertility_is_shown(tmp_path):
    directory = make_run(tmp_path / "run", ("collected", "corpus", "tokenizer"))
    shutil.rmtree(directory / "artifacts" / "corpus")
    found = sections(directory, "tokenization")
    figures = json.loads((directory / "artifacts/tokenizer/manifest.json").read_text())["figures"]
    assert {row[0]: row[2] for row in table_rows(found["fertility"])} == figures["tokens_per_word"]
    assert "fertility-languages" not in found


def test_the_tokenizers_figures(finished_run):
    items = sections(finished_run, "tokenization")["tokenizer"]["items"]
    assert [(item["label"], item["value"]) for item in items] == [
        ("entries", VOCABULARY),
        ("pre-tokenizer", "qwen2"),
        ("text sampled", 6000),
        ("trained in", 2.5),
    ]


def test_special_tokens_have_ids_and_uses(finished_run):
    rows = table_rows(sections(finished_run, "tokenization")["special-tokens"])
    assert rows[0] == ["<|bos|>", "0", "begins a document"]
    assert rows[4] == ["<|im_end|>", "4", "ends a turn"]


def test_special_tokens_in_a_text_stay_letters(finished_run):
    answer = tokenize(Run(finished_run), "a<|im_end|>東")
    assert "".join(piece["text"] for piece in answer["pieces"]) == "a<|im_end|>東"
    assert answer["bytes"] == 14
    assert answer["tokens"] == sum(len(piece["ids"]) for piece in answer["pieces"]) > 3
    assert answer["pieces"][-1]["text"] == "東"
    assert len(answer["pieces"][-1]["ids"]) == 3


def test_the_vocabulary_is_searched_and_paged(finished_run):
    run = Run(finished_run)
    first = vocabulary(run, "", 0)
    assert (len(first["rows"]), first["total"], first["next"]) == (ROWS, VOCABULARY, ROWS)
    assert first["rows"][3] == {"id": 3, "text": "<|im_start|>", "bytes": 0}
    assert vocabulary(run, "", 2 * ROWS)["next"] is None
    assert {row["text"] for row in vocabulary(run, "im_", 0)["rows"]} == {"<|im_start|>", "<|im_end|>"}
    assert 299 in {row["id"] for row in vocabulary(run, "299", 0)["rows"]}
