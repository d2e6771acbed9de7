"""How fast a method learns in an environment."""

import pytest
import torch

from offrl.online.rate import seconds_per_step
from offrl.training.cells import TrainingCell


@pytest.mark.parametrize(
    ("algorithm", "settings", "rollout"),
    [("n_pg_igt", {"trajectories": 2}, 40), ("sac", {"batch_size": 4}, 1), ("ppo", {"rollout": 10}, 10)],
)
def test_the_rate_is_counted_over_whole_rollouts(tiny, monkeypatch, algorithm, settings, rollout):
    """With a clock that ticks once a look, one look a rollout: a second for the steps of one."""
    ticks = iter(range(1000))
    monkeypatch.setattr("offrl.online.rate.time.perf_counter", lambda: float(next(ticks)))
    training = TrainingCell(algorithm, tiny, 0, {"steps": 10}, settings | {"hidden": 8})
    seconds, policy, spec = seconds_per_step(training, 1.0)
    assert spec.env_id == tiny
    assert policy(torch.zeros(1, 3)).shape == (1, 1)
    assert seconds == 1 / rollout
