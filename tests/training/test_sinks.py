"""Mirrors of the scalars: TensorBoard files on request, W&B through its public calls, refused early if missing."""

import importlib.util
import sys
import types

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

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


@pytest.mark.parametrize(("after", "kept"), [(2, [(1, 1), (2, 2)]), (-1, [])])
def test_tensorboard_forgets_what_a_resume_writes_again(tmp_path, monkeypatch, after, kept):
    """A killed run wrote steps 1 to 3; the next process goes on after ``after``, or from the beginning."""
    seconds = iter(
        range(1000, 10_000)
    )  # files are read in the order of their names, which begin with the second
    monkeypatch.setattr(event_file_writer, "time", types.SimpleNamespace(time=lambda: float(next(seconds))))
    killed = Sinks(tmp_path, NONE | {"tensorboard": True})
    for step in (1, 2, 3):
        killed.scalars(step, {"train/loss": float(step)})
    killed.close()
    resumed = Sinks(tmp_path, NONE | {"tensorboard": True})
    resumed.resume(after)
    resumed.scalars(3, {"train/loss": 30.0})
    resumed.scalars(4, {"train/loss": 40.0})
    resumed.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [*kept, (3, 30.0), (4, 40.0)]


@pytest.fixture
def calls(monkeypatch):
    """What a stand-in for the library was called with: the real one wants an account."""
    calls = []
    stand_in = types.ModuleType("wandb")
    stand_in.__spec__ = importlib.util.spec_from_loader("wandb", None)

    class Run:
        id = "abc123"

        def log(self, values, step):
            calls.append((step, values))

        def finish(self):
            calls.append("finished")

    def init(project, name, config, id=None, resume=None):
        calls.append((project, name, config["wandb"], id, resume))
        return Run()

    stand_in.init = init
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    return calls


def test_wandb_gets_every_scalar_and_the_config(tmp_path, calls):
    directory = tmp_path / "bc" / "tiny" / "seed0"
    directory.mkdir(parents=True)
    sinks = Sinks(directory, NONE | {"wandb": True})
    sinks.scalars(5, {"train/loss": 1.0})
    sinks.close()
    assert calls[0][:3] == ("offrl", "bc/tiny/seed0", True)
    assert calls[1:] == [(5, {"train/loss": 1.0}), "finished"]


def test_a_resume_goes_on_in_its_wandb_run(tmp_path, calls):
    for _ in range(2):
        Sinks(tmp_path, NONE | {"wandb": True}).close()
    assert [call[3:] for call in calls[::2]] == [(None, "allow"), ("abc123", "allow")]


@pytest.mark.parametrize("library", ["tensorboard", "wandb"])
def test_a_missing_library_is_refused_with_its_extra(monkeypatch, library):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == library else real(name))
    with pytest.raises(MissingExtraError, match=rf"needs {library}.*pip install 'offrl\[{library}\]'"):
        require_sinks(NONE | {library: True})
    require_sinks(NONE)
