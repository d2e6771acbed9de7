"""Options of online runs, and presets."""

import numpy as np
import pytest

from offrl.algos.n_pg_igt import ALGORITHM
from offrl.errors import ConfigError
from offrl.online.options import OnlineAlgorithm, OnlineOptions, apply_preset, choose


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 0}, "steps must be 1 or more, got 0"),
        ({"num_envs": 0}, "num_envs must be 1 or more"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"eval_every": -5}, "eval_every must be 0 or more"),
    ],
)
def test_impossible_options_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        OnlineOptions(**given)


def test_a_preset_sets_options_and_settings_and_the_longest_key_wins():
    presets = {
        "Hop": {"discount": 0.9},
        "Hopper-": {"discount": 0.8, "steps": 77, "normalize_observations": True},
    }
    method = OnlineAlgorithm(ALGORITHM.config, ALGORITHM.model, (), presets)
    options, settings = apply_preset(method, "Hopper-v5", OnlineOptions(seed=4), ALGORITHM.config(eta=0.5))
    assert (options.steps, options.normalize_observations, options.seed) == (77, True, 4)
    assert (settings.discount, settings.eta, options.preset) == (0.8, 0.5, "Hopper-v5")
    assert apply_preset(method, "Hop", options, settings)[1].discount == 0.9
    with pytest.raises(ConfigError, match="no preset for 'Ant-v5'; presets .*: Hop, Hopper-"):
        apply_preset(method, "Ant-v5", options, settings)


def test_numbers_from_python_are_of_their_options_kind():
    """1e5 steps are 100 000; half a step is none."""
    given = {"env": "x", "steps": 1e5, "trajectories": np.int64(3), "step_size": 1, "normalize_rewards": True}
    options, settings = choose("n_pg_igt", ALGORITHM, given)
    assert [repr(x) for x in (options.steps, settings.trajectories, settings.step_size)] == [
        "100000",
        "3",
        "1.0",
    ]
    for wrong in ({"steps": "100"}, {"steps": 0.5}, {"trajectories": float("inf")}, {"step_size": True}):
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))}: .* must be a"):
            choose("n_pg_igt", ALGORITHM, wrong)
    with pytest.raises(ConfigError, match="normalize_rewards: 1 must be true or false"):
        choose("n_pg_igt", ALGORITHM, {"normalize_rewards": 1})
