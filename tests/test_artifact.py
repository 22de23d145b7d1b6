import json
import os

import pytest
from pydantic import BaseModel

from gristmill.artifact import (
    CHECKPOINTS,
    SCRATCH,
    StageRun,
    artifact_hash,
    build,
    check_files,
    read_manifest,
    verify,
)
from gristmill.errors import GristmillError
from gristmill.events import EventLog, StageLog


class Config(BaseModel):
    text: str = "hello"


def write_stage(config: Config, run: StageRun) -> dict[str, float]:
    (run.out / "text.txt").write_text(config.text)
    (run.out / "deep").mkdir(exist_ok=True)
    (run.out / "deep" / "more.txt").write_text("more")
    return {"letters": len(config.text)}


def make(target, function=write_stage, config=None, inputs=None, fingerprint="f", log=None):
    return build(
        target,
        kind="report",
        stage="demo",
        function=function,
        config=config or Config(),
        inputs=inputs or {},
        seed=1,
        fingerprint=fingerprint,
        log=log or StageLog.silent("demo"),
    )


def test_build_seals_what_the_stage_left(tmp_path):
    manifest = make(tmp_path / "demo")
    assert set(manifest.files) == {"text.txt", "deep/more.txt"}
    assert manifest.figures == {"letters": 5}
    assert read_manifest(tmp_path / "demo") == manifest
    assert verify(tmp_path / "demo").hash == manifest.hash
    assert sorted(os.listdir(tmp_path)) == ["demo"], "nothing half-written stays beside the artifact"


def test_hash_covers_files_parents_config_and_kind_only(tmp_path):
    first, second = make(tmp_path / "a"), make(tmp_path / "b", fingerprint="another")
    assert first.hash == second.hash
    assert first.seconds >= 0
    assert make(tmp_path / "c", config=Config(text="other")).hash != first.hash
    child = make(tmp_path / "d", inputs={"a": tmp_path / "a"})
    assert child.parents == {"a": first.hash}
    assert child.hash != first.hash
    assert artifact_hash("model", first.files, first.parents, first.config) != first.hash


def test_a_failing_stage_leaves_the_old_artifact_and_its_own_scratch(tmp_path):
    old = make(tmp_path / "demo")

    def fail(config, run):
        (run.scratch / "half").write_text("work")
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError):
        make(tmp_path / "demo", fail, fingerprint="g")
    assert read_manifest(tmp_path / "demo").hash == old.hash
    seen = []

    def resume(config, run):
        seen.append((run.scratch / "half").exists())
        return write_stage(config, run)

    make(tmp_path / "demo", resume, fingerprint="g")
    make(tmp_path / "other", resume, fingerprint="h")
    assert seen == [True, False]
    assert not (tmp_path / "demo" / SCRATCH).exists()


def test_work_under_another_fingerprint_is_thrown_away(tmp_path):
    def fail(config, run):
        (run.out / "stale.txt").write_text("stale")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        make(tmp_path / "demo", fail, fingerprint="old")
    manifest = make(tmp_path / "demo", fingerprint="new")
    assert "stale.txt" not in manifest.files


def test_checkpoints_under_another_fingerprint_are_put_aside_and_found_again(tmp_path):
    def cut(config, run):
        seen.append(sorted(path.name for path in run.scratch.glob(f"{CHECKPOINTS}/*")))
        (run.scratch / CHECKPOINTS / f"step-{len(seen)}").mkdir(parents=True)
        raise RuntimeError

    def start(fingerprint):
        log = EventLog(None)
        log.subscribers.append(events.append)
        with pytest.raises(RuntimeError):
            make(tmp_path / "demo", cut, fingerprint=fingerprint, log=log.stage("demo"))

    seen, events = [], []
    for fingerprint in ("long run", "mistake", "long run", "mistake"):
        start(fingerprint)
    assert seen == [[], [], ["step-1"], ["step-2"]]
    assert [event["resumed"] for event in events if event["type"] == "stage_started"] == [False, False, True, True]
    notes = [event["message"] for event in events if event["type"] == "note"]
    assert len(notes) == 3
    assert str(tmp_path / ".demo.partial-long run") in notes[0]
    make(tmp_path / "demo", fingerprint="mistake")
    assert (tmp_path / ".demo.partial-long run").exists()  # what took days is for the user to remove


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda d: (d / "text.txt").write_text("hullo"), "text.txt is corrupt"),
        (lambda d: (d / "text.txt").unlink(), "text.txt is missing"),
        (lambda d: (d / "extra.txt").write_text("x"), "extra.txt is not listed"),
        (lambda d: (d / "manifest.json").write_text("{"), "manifest.json is corrupt"),
        (lambda d: (d / "manifest.json").unlink(), "holds no manifest.json"),
        (lambda d: _edit(d, lambda m: m["config"].update(text="changed")), "was changed"),
        (lambda d: _edit(d, lambda m: m.update(format_version=99)), "format version 99"),
    ],
)
def test_verify_names_the_file_at_fault(tmp_path, damage, said):
    make(tmp_path / "demo")
    damage(tmp_path / "demo")
    with pytest.raises(GristmillError, match=said):
        verify(tmp_path / "demo")


def _edit(directory, change):
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_a_stage_killed_just_before_the_rename_is_only_renamed(tmp_path, monkeypatch):
    def killed(partial, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("gristmill.artifact._replace", killed)
        make(tmp_path / "demo")
    assert (tmp_path / ".demo.partial" / SCRATCH).exists(), "scratch stays until the artifact is whole"

    def never(config, run):
        raise AssertionError("the work was done")

    manifest = make(tmp_path / "demo", never)
    assert verify(tmp_path / "demo") == manifest
    assert sorted(os.listdir(tmp_path)) == ["demo"]


def test_files_torn_by_a_kill_are_not_sealed(tmp_path):
    def torn(config, run):
        (run.out / ".text.txt.writing").write_text("hal")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "demo", torn)
    assert ".text.txt.writing" not in make(tmp_path / "demo").files


def test_a_manifest_of_a_newer_format_is_not_called_corrupt(tmp_path):
    make(tmp_path / "demo")
    _edit(tmp_path / "demo", lambda m: m.update(format_version=2, new_field=1))
    with pytest.raises(GristmillError, match="format version 2 is not the 1"):
        read_manifest(tmp_path / "demo")


def test_a_manifest_cannot_point_outside_its_artifact(tmp_path):
    make(tmp_path / "demo")
    _edit(tmp_path / "demo", lambda m: m["files"].update({"../x": {"sha256": "0", "bytes": 1}}))
    with pytest.raises(GristmillError, match="outside the artifact"):
        verify(tmp_path / "demo")


def test_a_manifest_of_another_program_says_nothing(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"version": 1, "files": ["a"]}))
    check_files(tmp_path, ["a"])
    (tmp_path / "manifest.json").write_text("[" * 100_000)
    check_files(tmp_path, ["a"])


def test_small_files_are_compared_with_the_manifest(tmp_path):
    make(tmp_path / "a")
    check_files(tmp_path / "a", ["text.txt", "none.txt"])
    (tmp_path / "a" / "none.txt").write_text("new")
    with pytest.raises(GristmillError, match=r"none.txt was added since .*, or take it away"):
        check_files(tmp_path / "a", ["text.txt", "none.txt"])
    (tmp_path / "a" / "text.txt").write_text("other")
    with pytest.raises(GristmillError, match=r"text.txt was changed since .*, or put the old one back"):
        check_files(tmp_path / "a", ["text.txt"])
