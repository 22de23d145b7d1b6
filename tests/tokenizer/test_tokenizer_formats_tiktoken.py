"""Ranks files and tekken files: read and written with tiktoken's ids, damaged ones named by line or entry."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hard_text import HARD_TEXTS, hard_text
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.errors import GristmillError
from gristmill.tokenizer.formats import exchange, export_tokenizer, import_tokenizer
from gristmill.tokenizer.formats.tiktoken import O200K, backend_of_ranks, merge_bytes, merges_of, read_ranks
from gristmill.tokenizer.tokenizer import Tokenizer

tiktoken = pytest.importorskip("tiktoken")

SPECIAL = {"<|endoftext|>": 1000, "<|fim|>": 1007}


def example_ranks(tokenizer: Tokenizer) -> dict[bytes, int]:
    texts = [text for i, text in enumerate(tokenizer._id_to_bytes) if i not in tokenizer.special_ids]
    return {text: rank for rank, text in enumerate(texts)}


def write_lines(path: Path, ranks: dict[bytes, int]) -> Path:
    path.write_text("".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items()))
    return path


def encoding_of(path: Path) -> Any:
    settings = json.loads(path.with_suffix(".json").read_text())
    ranks = pytest.importorskip("tiktoken.load").load_tiktoken_bpe(str(path))
    return tiktoken.Encoding("test", mergeable_ranks=ranks, **settings)


def test_what_is_exported_gives_the_same_ids_in_tiktoken(any_directory: Path, tmp_path: Path) -> None:
    ours = Tokenizer.load(any_directory)
    export_tokenizer(ours, "tiktoken", tmp_path / "ranks.tiktoken")
    theirs = encoding_of(tmp_path / "ranks.tiktoken")
    assert theirs.n_vocab == ours.vocab_size
    for text in HARD_TEXTS:
        assert theirs.encode_ordinary(text) == ours.encode(text), text
    assert theirs.encode("<|im_end|>", allowed_special="all") == [ours.im_end_id]


def test_what_is_exported_comes_back(any_directory: Path, tmp_path: Path) -> None:
    ours = Tokenizer.load(any_directory)
    export_tokenizer(ours, "tiktoken", tmp_path / "ranks.tiktoken")
    again = import_tokenizer(tmp_path / "ranks.tiktoken", tmp_path / "out")
    before, after = (json.loads(t.backend.to_str()) for t in (ours, again))
    assert after["model"]["merges"] == before["model"]["merges"]
    assert after["model"]["vocab"] == before["model"]["vocab"]
    assert [again.encode(text) for text in HARD_TEXTS] == [ours.encode(text) for text in HARD_TEXTS]
    assert (again.kind, again.lossless, again.eos_id) == ("bpe", True, ours.eos_id)
    export_tokenizer(again, "tiktoken", tmp_path / "again.tiktoken")
    for suffix in (".tiktoken", ".json"):
        assert (tmp_path / f"again{suffix}").read_bytes() == (tmp_path / f"ranks{suffix}").read_bytes()


@pytest.mark.parametrize("pattern", ["gpt2", "gpt4", "llama3", "qwen2", "o200k", r"\p{L}+|\P{L}"])
def test_a_ranks_file_with_a_pattern(pattern: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    ranks = example_ranks(tokenizer)
    path = write_lines(tmp_path / "some.ranks", ranks)
    ours = import_tokenizer(path, tmp_path / "out", pattern=pattern, special_tokens=SPECIAL)
    assert ours.vocab_size == 1008
    assert (ours.eos_id, ours.special_ids) == (1000, {1000, 1007})
    export_tokenizer(ours, "tiktoken", tmp_path / "out.tiktoken")
    assert read_ranks(tmp_path / "out.tiktoken") == ranks
    theirs = encoding_of(tmp_path / "out.tiktoken")
    if pattern == "o200k":
        assert theirs._pat_str == O200K
    for text in HARD_TEXTS:
        assert ours.encode(text) == theirs.encode_ordinary(text), text
        assert ours.decode(ours.encode(text)) == text


@settings(deadline=None)
@given(text=hard_text())
def test_recovered_merges_give_tiktokens_ids(tokenizer: Tokenizer, text: str) -> None:
    """With a pattern that cuts nothing, so that merges run over the whole text."""
    ranks = example_ranks(tokenizer)
    backend = _backends.setdefault(id(tokenizer), backend_of_ranks(ranks, r"[\s\S]+", {}, "ranks"))
    theirs = tiktoken.Encoding("whole", pat_str=r"[\s\S]+", mergeable_ranks=ranks, special_tokens={})
    assert backend.encode(text).ids == theirs.encode_ordinary(text)


_backends: dict[int, tokenizers.Tokenizer] = {}


@settings(deadline=None)
@given(words=st.lists(st.text("abc", min_size=2, max_size=6), max_size=8, unique=True))
def test_tokens_that_merging_does_not_reach_are_found(words: list[str]) -> None:
    """Either every token is what merging leaves of its own bytes, by the lower ranks alone, or one is named."""
    ranks = {letter: rank for rank, letter in enumerate([b"a", b"b", b"c"])}
    ranks |= {word.encode(): rank + 3 for rank, word in enumerate(words)}
    whole = [len(merge_bytes(word, ranks, rank)) == 2 for word, rank in ranks.items() if len(word) > 1]
    if all(whole):
        assert [left + right for left, right in merges_of(ranks, "r")] == [word for word in ranks if len(word) > 1]
    else:
        with pytest.raises(GristmillError, match=r"^r: token b'[abc]+' of rank \d+ cannot be made of tokens of lower"):
            merges_of(ranks, "r")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("YQ==", r"line 3: b'YQ==' is not a token in base64 and a rank"),
        ("YQ== 7 8", r"line 3: b'YQ== 7 8' is not"),
        ("Y? 7", r"line 3: b'Y\? 7' is not"),
        ("YWE= seven", r"line 3: b'YWE= seven' is not"),
        ("YWE= 1", r"line 3: token b'aa', rank 1: empty, negative or a repeat"),
        ("AA== 300", r"line 3: token b'\\x00', rank 300: empty"),
        ("YWE= -4", r"line 3: token b'aa', rank -4: empty"),
        ("YWE= 2147483648", r"line 3: rank 2147483648 is beyond the largest id, 2147483647"),
    ],
)
def test_damaged_ranks_files_are_named_by_line(line: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.tiktoken"
    path.write_text(f"AA== 0\nAQ== 1\n{line}\n")
    with pytest.raises(GristmillError, match=rf"bad\.tiktoken, {complaint}"):
        read_ranks(path)


def test_ranks_files_that_say_too_little(tokenizer: Tokenizer, tmp_path: Path) -> None:
    ranks = example_ranks(tokenizer)
    path = write_lines(tmp_path / "r.tiktoken", ranks)
    for options, complaint in [
        (
            {},
            r"r\.tiktoken is a ranks file that is not known here; give its pattern \(gpt2, .* and\s+its special tokens",
        ),
        ({"pattern": "gpt4"}, r"and its special tokens .* --pattern and --special"),
        ({"pattern": "gpt4", "special_tokens": {}}, r"which token ends a text; give it with --eos \(eos_token\)"),
        ({"pattern": "gpt4", "special_tokens": SPECIAL, "eos_token": "</s>"}, "has no special token '</s>'"),
        ({"pattern": "gpt4", "special_tokens": {"<|e|>": 5}}, r"'<\|e\|>': its id 5 is the rank of b'&' in"),
        ({"pattern": "gpt4", "special_tokens": {"<|e|>": -1}}, r"'<\|e\|>': its id -1 is not between 0 and 2147483647"),
        ({"pattern": "gpt4", "special_tokens": {"<|e|>": 2**31}}, r"its id 2147483648 is not between 0 and 2147483647"),
        (
            {"pattern": "gpt4", "special_tokens": {"<|e|>": 999, "b|": 999}},
            r"'b\|': its id 999 is also that of '<\|e\|>'",
        ),
        ({"pattern": "gpt4", "special_tokens": {"e": 5000}}, r"'e' is a token of text in .*r\.tiktoken"),
        ({"pattern": "gpt4", "special_tokens": {"Ġ": 5000}}, r"'Ġ' is a token of text in .*r\.tiktoken"),
        ({"pattern": "gpt4", "special_tokens": {" ": 5000}}, r"' ' is a token of text in .*r\.tiktoken"),
        ({"pattern": "(", "special_tokens": SPECIAL}, r"pattern '\(' is none of gpt2, .* and no regex"),
    ]:
        with pytest.raises(GristmillError, match=complaint):
            import_tokenizer(path, tmp_path / "out", **options)
    (tmp_path / "r.json").write_text('{"pat_str": "a"}')
    with pytest.raises(GristmillError, match=r"r\.json does not hold pat_str and special_tokens: KeyError"):
        import_tokenizer(path, tmp_path / "out")
    (tmp_path / "r.json").unlink()
    write_lines(tmp_path / "r.tiktoken", {token: rank for token, rank in ranks.items() if token != b"\xc0"})
    with pytest.raises(GristmillError, match="has no rank for the byte 0xC0"):
        import_tokenizer(path, tmp_path / "out", pattern="gpt4", special_tokens=SPECIAL)


def test_a_neighbour_of_a_ranks_file_matters_only_where_something_is_missing(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_lines(tmp_path / "vocab.tiktoken", example_ranks(tokenizer))
    given: dict[str, Any] = {"pattern": "gpt4", "special_tokens": SPECIAL}
    settings = json.dumps({"pat_str": "a", "special_tokens": {"<|mine|>": 2000}})
    for beside in ('{"the": 1}', "[]", "{", settings):
        (tmp_path / "vocab.json").write_text(beside)
        assert import_tokenizer(path, tmp_path / "out", **given).special_ids == {1000, 1007}
    assert import_tokenizer(path, tmp_path / "out", pattern="gpt4", eos_token="<|mine|>").eos_id == 2000
    known = exchange._Published("gpt4", SPECIAL)
    monkeypatch.setitem(exchange._PUBLISHED, hashlib.sha256(path.read_bytes()).hexdigest(), known)
    (tmp_path / "vocab.json").write_text(settings)  # as we export it, perhaps with other special tokens
    assert import_tokenizer(path, tmp_path / "out", eos_token="<|mine|>").special_ids == {2000}
    (tmp_path / "vocab.json").write_text('{"the": 1}')
    assert import_tokenizer(path, tmp_path / "out").special_ids == {1000, 1007}
    monkeypatch.undo()
    with pytest.raises(GristmillError, match="is a ranks file that is not known here"):
        import_tokenizer(path, tmp_path / "out")


def test_settings_of_ranks_take_no_other_files_place(tokenizer: Tokenizer, tmp_path: Path) -> None:
    export_tokenizer(tokenizer, "huggingface", tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for name, complaint in [
        ("tokenizer.tiktoken", r"tokenizer\.json exists and holds no pat_str; .* name another file"),
        ("ranks.json", r"ranks\.json ends in \.json, as its second file will; name the ranks file NAME\.tiktoken"),
        ("ranks.JSON", r"ranks\.JSON ends in \.json"),
    ]:
        with pytest.raises(GristmillError, match=complaint):
            export_tokenizer(tokenizer, "tiktoken", tmp_path / name)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    for _ in range(2):  # its own settings give way
        export_tokenizer(tokenizer, "tiktoken", tmp_path / "new" / "ranks.tiktoken")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["ranks.json", "ranks.tiktoken"]


@pytest.mark.parametrize("exists", [False, True])
def test_a_failed_import_leaves_nothing(exists: bool, directory: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    if exists:
        out.mkdir()
    export_tokenizer(tokenizer, "huggingface", source)
    (source / "chat_template.jinja").write_text("{% if %}")
    with pytest.raises(GristmillError, match=r"source/tokenizer\.json cannot be imported: .*/out"):
        import_tokenizer(source, out)
    (source / "tokenizer_config.json").write_text("{")
    with pytest.raises(GristmillError, match=r"source/tokenizer_config\.json is not valid JSON"):
        import_tokenizer(source, out)
    assert sorted(path.name for path in tmp_path.rglob("*") if source not in path.parents) == (
        ["out", "source"] if exists else ["source"]
    )
    again = import_tokenizer(directory, out)
    assert (again.directory, again.hash) == (out, tokenizer.hash)
    assert {path.parent for path in again.files} == {out}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]
    with pytest.raises(GristmillError, match=r"tokenizer\.json is a file; name a directory"):
        import_tokenizer(directory, out / "tokenizer.json")
    assert Tokenizer.load(out).hash == tokenizer.hash


def test_what_ranks_cannot_say_is_not_exported(tokenizer: Tokenizer, directory: Path, tmp_path: Path) -> None:
    def changed(name: str, change: Any) -> Tokenizer:
        copy = tmp_path / name
        export_tokenizer(tokenizer, "huggingface", copy)
        state = json.loads((copy / "tokenizer.json").read_text())
        change(state)
        (copy / "tokenizer.json").write_text(json.dumps(state))
        return Tokenizer.load(copy)

    def added_word(state: dict[str, Any]) -> None:
        state["added_tokens"].append({**state["added_tokens"][0], "id": 640, "content": "<think>", "special": False})

    def other_order(state: dict[str, Any]) -> None:
        state["model"]["merges"][:2] = state["model"]["merges"][1::-1]

    digits = {"type": "Digits", "individual_digits": False}
    for name, change, cause in [
        ("words", added_word, "it has the added token '<think>'"),
        ("normal", lambda state: state.update(normalizer={"type": "NFC"}), "it has a normalizer"),
        ("order", other_order, "its merges are not in the order of their ids"),
        ("twice", lambda state: state["pre_tokenizer"]["pretokenizers"].insert(0, digits), "is not a single regex"),
    ]:
        with pytest.raises(GristmillError, match=rf"{name}/tokenizer\.json cannot be written as ranks: .*{cause}"):
            export_tokenizer(changed(name, change), "tiktoken", tmp_path / "x.tiktoken")
    with pytest.raises(GristmillError, match="known are tiktoken, huggingface and sentencepiece"):
        export_tokenizer(tokenizer, "gguf", tmp_path / "x")


def tekken(tokenizer: Tokenizer, **changes: Any) -> dict[str, Any]:
    ranks = sorted(example_ranks(tokenizer).items(), key=lambda item: item[1])
    config = {"pattern": O200K, "default_vocab_size": 600, "default_num_special_tokens": 30, "version": "v3"}
    vocab = [{"rank": rank, "token_bytes": base64.b64encode(token).decode()} for token, rank in ranks]
    return {"config": config, "vocab": vocab, **changes}


def test_a_tekken_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "tekken.json").write_text(json.dumps(tekken(tokenizer)))
    ours = import_tokenizer(tmp_path, tmp_path / "out")
    assert (ours.vocab_size, ours.bos_id, ours.eos_id, ours.pad_id, len(ours.special_ids)) == (600, 1, 2, 11, 30)
    assert ours.backend.id_to_token(29) == "<SPECIAL_29>"
    ranks = {token: rank for token, rank in example_ranks(tokenizer).items() if rank < 570}
    theirs = tiktoken.Encoding("tekken", pat_str=O200K, mergeable_ranks=ranks, special_tokens={})
    for text in HARD_TEXTS:
        assert ours.encode(text) == [i + 30 for i in theirs.encode_ordinary(text)], text
    listed = tekken(tokenizer, special_tokens=[{"rank": 3, "token_str": "</s>"}])
    (tmp_path / "tekken.json").write_text(json.dumps(listed))
    assert import_tokenizer(tmp_path / "tekken.json", tmp_path / "out").eos_id == 3


def test_damaged_tekken_files_are_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    whole = tekken(tokenizer)

    def with_config(**changes: Any) -> dict[str, Any]:
        return {**whole, "config": {**whole["config"], **changes}}

    for state, complaint in [
        ({**whole, "config": {}}, r"is no whole tekken file: KeyError\('default_num_special_tokens'\)"),
        ({**whole, "special_tokens": [{}]}, r"is no whole tekken file: KeyError\('token_str'\)"),
        ({**whole, "vocab": [*whole["vocab"][:7], {"rank": 7}]}, r"vocab\[7\] is no token in base64 with a rank"),
        ({**whole, "vocab": [*whole["vocab"][:7], whole["vocab"][3]]}, r"vocab\[7\] has the rank 3"),
        ({**whole, "vocab": [{**whole["vocab"][0], "rank": "0"}]}, r"vocab\[0\] has the rank '0'"),
        ({**whole, "vocab": [{**whole["vocab"][0], "rank": 0.0}]}, r"vocab\[0\] has the rank 0\.0"),
        ({**whole, "vocab": 7}, r"is no whole tekken file: TypeError"),
        ({**whole, "vocab": "YQ=="}, r"config\.pattern must be a string and vocab a list"),
        (with_config(pattern=7), r"config\.pattern must be a string and vocab a list"),
        (
            with_config(default_num_special_tokens="30"),
            r"config\.default_num_special_tokens is '30', not a whole number",
        ),
        (
            with_config(default_num_special_tokens=601),
            r"default_num_special_tokens is 601, more than default_vocab_size",
        ),
        (with_config(default_vocab_size=None), r"config\.default_vocab_size is None, not a whole number"),
        (
            {**whole, "special_tokens": [{"rank": "3", "token_str": "</s>"}]},
            r"special_tokens: the rank of '</s>' is '3'",
        ),
        ({**whole, "special_tokens": [{"rank": 3, "token_str": 5}]}, r"special_tokens: token_str 5 is not a string"),
    ]:
        (tmp_path / "tekken.json").write_text(json.dumps(state))
        with pytest.raises(GristmillError, match=rf"tekken\.json.*{complaint}"):
            import_tokenizer(tmp_path / "tekken.json", tmp_path / "out")


def test_importing_a_directory_keeps_its_bytes(directory: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("of another tokenizer")
    again = import_tokenizer(directory, tmp_path)
    assert [path.name for path in again.files] == [path.name for path in tokenizer.files]
    assert again.hash == tokenizer.hash
    assert import_tokenizer(tmp_path, tmp_path).hash == tokenizer.hash


def test_a_tokenizer_json_alone(directory: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "some_tokenizer.json").write_bytes((directory / "tokenizer.json").read_bytes())
    found = import_tokenizer(tmp_path / "some_tokenizer.json", tmp_path / "out", chat_template="{{ eos_token }}")
    assert (found.eos_id, found.bos_id) == (tokenizer.eos_id, tokenizer.eos_id)  # by its usual name; bos is not named
    assert found.render_chat([]) == "<|eos|>"
    chosen = import_tokenizer(tmp_path / "some_tokenizer.json", tmp_path / "out", eos_token="<|im_end|>")
    assert (chosen.eos_id, chosen.template) == (4, None)


def test_what_cannot_be_imported(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF\3\0\0\0")
    (tmp_path / "tokenizer.json").write_text("{")
    for path, complaint in [
        (tmp_path / "none", "none cannot be read: No such file"),
        (tmp_path / "m.gguf", "is no whole GGUF file"),
        (tmp_path / "tokenizer.json", "is not valid JSON"),
    ]:
        with pytest.raises(GristmillError, match=complaint):
            import_tokenizer(path, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(GristmillError, match=r"empty holds no tokenizer\.json, tekken\.json or tokenizer\.model"):
        import_tokenizer(tmp_path / "empty", tmp_path / "out")
