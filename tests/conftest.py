"""Fixtures that many tests share: one torch thread, and a tiny dataset whose environment needs no simulator."""

import os
import signal
import sys
import time
import traceback
import types

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start

import numpy as np
import pytest
import torch

from offrl.data.dataset import OfflineDataset
from offrl.training.seeding import seed_globally

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _one_thread_and_one_seed():
    """Results of a test never depend on the thread count that another test set, nor on draws that it made."""
    torch.set_num_threads(1)
    seed_globally(0)


def pendulum_arrays(episodes: int = 4, length: int = 40, seed: int = 0) -> dict[str, np.ndarray]:
    """Made-up steps in the shapes and units of Pendulum-v1: O=3, A=1, actions in [-2, 2]; every episode is cut."""
    rng = np.random.default_rng(seed)
    angle, velocity = rng.uniform(-np.pi, np.pi, (episodes, length)), rng.uniform(-8, 8, (episodes, length))
    observations = np.stack([np.cos(angle), np.sin(angle), velocity], axis=-1).reshape(-1, 3)
    actions = rng.uniform(-2, 2, (episodes * length, 1))
    cut = np.zeros((episodes, length), dtype=bool)
    cut[:, -1] = True
    return {
        "observations": observations.astype(np.float32),
        "actions": actions.astype(np.float32),
        "rewards": -(angle**2 + 0.1 * velocity**2).reshape(-1).astype(np.float32),
        "terminated": np.zeros(episodes * length, dtype=bool),
        "truncated": cut.reshape(-1),
    }


@pytest.fixture
def pendulum() -> OfflineDataset:
    """A tiny dataset that names Pendulum-v1 as its environment, with reference returns."""
    facts = {"name": "tiny", "env_id": "Pendulum-v1", "reference_returns": [-1500.0, -150.0]}
    facts |= {"env_kwargs": {"max_episode_steps": 20}}
    return OfflineDataset.from_arrays(**pendulum_arrays(), metadata=facts)


@pytest.fixture
def pendulum_npz(tmp_path):
    """The steps of ``pendulum`` as an npz file, without metadata."""
    path = tmp_path / "tiny.npz"
    np.savez(path, **pendulum_arrays())
    return path


@pytest.fixture
def signal_at(monkeypatch):
    """Calls ``signal_at(step, number)``: this process gets the signal while update ``step`` is being made."""
    from offrl.data.source import UniformSource

    sample = UniformSource.sample

    def arm(step: int, number: int = signal.SIGTERM) -> None:
        made = iter(range(1, 10**9))

        def sampling(self, generators):
            if next(made) == step:
                signal.raise_signal(number)
            return sample(self, generators)

        monkeypatch.setattr(UniformSource, "sample", sampling)

    return arm


@pytest.fixture
def elsewhere():
    """Makes of a tensor one that stands on a run's device: generators take CPU tensors only."""
    return lambda tensor: types.SimpleNamespace(cpu=lambda: tensor)


class Child:
    """What a forked process left: exit code (negative: the signal that ended it), standard output and error."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.code, self.out, self.err = os.waitstatus_to_exitcode(status), out, err


@pytest.fixture
def in_child(tmp_path_factory):
    """Calls ``in_child(function)``: runs it in a forked process, which may get a signal.

    ``kill_after`` are the seconds after which it is sent, ``kill_when`` is asked until it says so.

    Forking costs milliseconds where a new interpreter with torch costs seconds; the process is as real.
    """
    folder = tmp_path_factory.mktemp("child")

    def run(function, kill_after: float | None = None, kill_when=None, number: int = signal.SIGKILL) -> Child:
        names = folder / "out", folder / "err"
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                for number, name in zip((1, 2), names, strict=True):
                    os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
                sys.stdout, sys.stderr = (os.fdopen(number, "w") for number in (1, 2))
                code = int(function() or 0)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(pid, number)
        if kill_when is not None:
            while not kill_when() and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                time.sleep(0.002)
            os.kill(pid, number)
        _, status = os.waitpid(pid, 0)
        return Child(status, *(name.read_text() for name in names))

    return run
