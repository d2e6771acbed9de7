"""How fast a method learns in an environment."""

import pytest
import torch

from offrl.online.rate import Stopwatch, seconds_per_step
from offrl.training.cells import TrainingCell


@pytest.mark.parametrize(
    ("algorithm", "settings", "rollout", "unseen"),
    [
        ("n_pg_igt", {"trajectories": 2}, 40, 40),
        ("sac", {"batch_size": 4}, 1, 100),
        ("ppo", {"rollout": 10}, 10, 10),
    ],
)
def test_the_rate_is_counted_over_whole_rollouts(tiny, monkeypatch, algorithm, settings, rollout, unseen):
    """With a clock that ticks once a look, one look a rollout: a second for the steps of one."""
    watches: list[Stopwatch] = []

    class Kept(Stopwatch):
        def __init__(self, *given):
            super().__init__(*given)
            watches.append(self)

    monkeypatch.setattr("offrl.online.rate.Stopwatch", Kept)
    ticks = iter(range(1000))
    monkeypatch.setattr("offrl.online.rate.time.perf_counter", lambda: float(next(ticks)))
    training = TrainingCell(algorithm, tiny, 0, {"steps": 10}, settings | {"hidden": 8})
    seconds, policy, spec = seconds_per_step(training, 1.0)
    assert spec.env_id == tiny
    assert policy(torch.zeros(1, 3)).shape == (1, 1)
    assert seconds == 1 / rollout
    assert watches[0].first == unseen, "the first rollout and the random steps are not timed"
