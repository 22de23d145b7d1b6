"""Loggers: what reaches TensorBoard (read back), wandb and trackio (stand-ins with their interfaces)."""

import sys
import types

import pytest
import torch

from gristmill.errors import GristmillError
from gristmill.events import StageLog
from gristmill.train.config import WatchConfig
from gristmill.train.loggers import LOGGERS, open_loggers
from gristmill.train.watch import Watch

SETTINGS = {"steps": 10, "muon": {"momentum": 0.95}, "prompts": ["a", "b"], "clip_norm": None}


class Service:
    """Stands for wandb and for trackio: remembers what it was told. `keeps_order`: as wandb does, it drops what comes
    with a step below the last one, which rises by itself where none is given."""

    def __init__(self, keeps_order):
        self.started, self.logged, self.finished = [], [], 0
        self.keeps_order, self.last, self.axes = keeps_order, 0, {}

    def define_metric(self, name, step_metric=None):
        self.axes[name] = step_metric

    def init(self, **options):
        self.started.append(options)
        self.id = options.get("id") or "run-1"
        return self

    def log(self, values, step=None):
        axis = self.axes.get("*")
        if self.keeps_order:
            number = self.last + 1 if step is None else step
            if number < self.last:
                return
            self.last = number
        if axis is not None:
            step = values[axis]
            values = {name: value for name, value in values.items() if name != axis}
        self.logged.append((step, values))

    def finish(self):
        self.finished += 1


@pytest.fixture(params=["wandb", "trackio"])
def service(request, monkeypatch):
    found = Service(keeps_order=request.param == "wandb")
    monkeypatch.setitem(sys.modules, request.param, types.SimpleNamespace(init=found.init))
    found.name = request.param
    return found


def test_all_that_the_configuration_offers_is_there():
    field = WatchConfig.model_fields["loggers"].annotation
    assert set(field.__args__[0].__args__) == set(LOGGERS)


@pytest.mark.parametrize("name", LOGGERS)
def test_a_missing_package_is_named(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(GristmillError, match=f"pip install {name}"):
        open_loggers([name], tmp_path, "base", SETTINGS)


def test_the_loggers_are_fed_what_the_event_log_is_fed(service, tmp_path):
    loggers = open_loggers([service.name], tmp_path / "run", "base", SETTINGS)
    config = service.started[0]["config"]
    assert config["steps"] == 10
    assert config["muon.momentum"] == 0.95
    assert config["clip_norm"] == "None"
    watch = Watch(WatchConfig(), StageLog.silent(), None, torch.device("cpu"), "fp32", loggers=loggers)
    watch.entry(5, {"loss": 2.5, "validation_bits_per_byte/books": 1.25})
    watch.close()
    assert service.logged == [(5, {"loss": 2.5, "validation_bits_per_byte/books": 1.25})]
    assert service.finished == 1


def test_steps_after_a_way_back_are_kept(service, tmp_path):
    (logger,) = open_loggers([service.name], tmp_path / "run", "base", SETTINGS)
    for step in (10, 20, 5, 15):
        logger.log(step, {"loss": step / 2})
    assert service.logged == [(10, {"loss": 5.0}), (20, {"loss": 10.0}), (5, {"loss": 2.5}), (15, {"loss": 7.5})]


def test_a_resumed_run_goes_on_in_the_same_series(service, tmp_path):
    for first_step in (0, 20):
        open_loggers([service.name], tmp_path / "run", "base", SETTINGS, first_step)
    first, second = service.started
    assert second["resume"] == "allow"
    if service.name == "wandb":
        assert (first["id"], second["id"]) == (None, "run-1")
    else:
        assert first["name"] == second["name"] == "run-base"


def test_tensorboard_holds_the_scalars_and_hides_what_was_cut_off(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first_step, steps in ((0, (5, 10, 15)), (10, (15, 20))):
        (logger,) = open_loggers(["tensorboard"], tmp_path, "base", SETTINGS, first_step)
        for step in steps:
            logger.log(step, {"loss": step + first_step / 100})
        logger.text(steps[-1], "sample/a", "text")
        logger.close()
    found = EventAccumulator(str(tmp_path / "tensorboard" / "base")).Reload()
    assert [(e.step, round(e.value, 4)) for e in found.Scalars("loss")] == [
        (5, 5.0),
        (10, 10.0),
        (15, 15.1),
        (20, 20.1),
    ]
