"""docs/concepts.md keeps its word: every idea has its row, and what a row names exists."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "concepts.md"
PACKAGE = ROOT / "src" / "gristmill"
IDS = [f"G{number:02}" for number in range(1, 46)] + [f"P{number:02}" for number in range(1, 32)]
HEADER = ["id", "idea", "in a sentence", "module", "command", "measured"]
ROOMS_TO_COME = {"retrieve/", "agents/", "route/"}  # no directory yet
PLANNED = "*planned*"


@dataclass(frozen=True)
class Row:
    id: str
    idea: str
    sentence: str
    module: str
    command: str
    measured: str


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def read_rows() -> list[Row]:
    """The rows of every table on the page, in order."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    tables = [cells(line) for line in lines if line.startswith("|") and not line.startswith("|---")]
    headers = [row for row in tables if row[0] == "id"]
    assert headers == [HEADER, HEADER]
    malformed = [row for row in tables if len(row) != len(HEADER)]
    assert not malformed, malformed
    return [Row(*row) for row in tables if row[0] != "id"]


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def places(row: Row) -> tuple[list[str], list[str]]:
    """The paths that hold the idea today, and the rooms that it or the rest of it is planned for."""
    today, _, later = row.module.partition(PLANNED)
    return quoted(today), quoted(later)


def command_verbs() -> set[str]:
    """Every command of the command line by its full name, such as `gristmill tokenize train`."""
    import typer.main

    import gristmill.cli

    def walk(command, name: str):
        children = getattr(command, "commands", None)
        if children is None:
            yield name
            return
        for child_name, child in children.items():
            yield from walk(child, f"{name} {child_name}")

    return set(walk(typer.main.get_command(gristmill.cli.app), "gristmill"))


def without_links(cell: str) -> str:
    return re.sub(r"\[([^\]]*)\]\([^)]*\)", "", cell)


def cited_files(cell: str) -> list[Path]:
    return [PAGE.parent / target.split("#")[0] for target in re.findall(r"\]\(([^)]+)\)", cell)]


def numbers(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?![\w])", text))


ROWS = read_rows()


def test_every_id_has_one_row_in_order():
    assert [row.id for row in ROWS] == IDS


def test_ideas_and_sentences_are_there_and_differ():
    for column in ("idea", "sentence"):
        values = [getattr(row, column) for row in ROWS]
        assert all(values)
        assert len(set(values)) == len(values), column
    for row in ROWS:
        words = len(row.sentence.split())
        assert 8 <= words <= 60, f"{row.id}: {words} words"
        assert row.sentence.endswith("."), row.id


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_named_modules_exist(row):
    here, rooms_to_come = places(row)
    assert here or rooms_to_come, f"{row.id} names no module"
    for path in here:
        place = PACKAGE / path
        if path.endswith("/"):
            code = [file for file in place.glob("*.py") if file.name != "__init__.py"]
            assert code, f"{row.id} says that {path} holds the idea, but nothing is there"
        else:
            assert place.is_file(), f"{row.id} names {path}"
    for room in rooms_to_come:
        assert room in ROOMS_TO_COME or (room.endswith("/") and (PACKAGE / room).is_dir()), f"{row.id} plans {room}"


def test_named_commands_are_verbs_of_the_command_line():
    verbs = command_verbs()
    for row in ROWS:
        if row.command == PLANNED:
            continue
        named = quoted(row.command)
        assert named, f"{row.id}: a command stands between backticks, or it is {PLANNED}"
        for command in named:
            assert command in verbs, f"{row.id} names {command!r}, which is none of {sorted(verbs)}"


def test_an_idea_without_code_has_no_command():
    for row in ROWS:
        if not places(row)[0]:
            assert row.command == PLANNED, row.id


def test_measured_figures_stand_in_the_file_they_cite():
    for row in ROWS:
        if row.measured == PLANNED:
            continue
        files = cited_files(row.measured)
        assert files, f"{row.id}: a figure comes with a link to the file that records it"
        for file in files:
            assert file.is_file(), f"{row.id} cites {file}, which does not exist"
        figures = numbers(without_links(row.measured))
        assert figures, f"{row.id}: {row.measured!r} holds no figure"
        recorded = set().union(*(numbers(file.read_text(encoding="utf-8")) for file in files))
        assert figures <= recorded, f"{row.id}: {sorted(figures - recorded)} stand in none of the cited files"
