"""Mirrors of the scalars: TensorBoard files on request, W&B through its public calls, refused early if missing."""

import importlib.util
import sys
import types

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from offrl.errors import MissingExtraError
from offrl.training.sinks import Sinks, require_sinks

NONE = {"tensorboard": False, "wandb": False}


def test_nothing_is_written_unless_asked_for(tmp_path):
    sinks = Sinks(tmp_path, NONE)
    sinks.scalars(1, {"train/loss": 1.0})
    sinks.close()
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_gets_every_scalar(tmp_path):
    sinks = Sinks(tmp_path, NONE | {"tensorboard": True})
    for step in (1, 2):
        sinks.scalars(step, {"train/loss": 0.5 * step, "eval/return": 7.0})
    sinks.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 0.5), (2, 1.0)]
    assert sorted(events.Tags()["scalars"]) == ["eval/return", "train/loss"]


def test_wandb_gets_every_scalar_and_the_config(tmp_path, monkeypatch):
    """A stand-in for the library records the calls: the real one wants an account."""
    calls = []
    stand_in = types.ModuleType("wandb")
    stand_in.__spec__ = importlib.util.spec_from_loader("wandb", None)

    class Run:
        def log(self, values, step):
            calls.append((step, values))

        def finish(self):
            calls.append("finished")

    def init(project, name, config):
        calls.append((project, name, config["wandb"]))
        return Run()

    stand_in.init = init
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    sinks = Sinks(tmp_path / "bc" / "tiny" / "seed0", NONE | {"wandb": True})
    sinks.scalars(5, {"train/loss": 1.0})
    sinks.close()
    assert calls == [("offrl", "bc/tiny/seed0", True), (5, {"train/loss": 1.0}), "finished"]


@pytest.mark.parametrize("library", ["tensorboard", "wandb"])
def test_a_missing_library_is_refused_with_its_extra(monkeypatch, library):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == library else real(name))
    with pytest.raises(MissingExtraError, match=rf"needs {library}.*pip install 'offrl\[{library}\]'"):
        require_sinks(NONE | {library: True})
    require_sinks(NONE)
