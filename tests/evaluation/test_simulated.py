"""The true simulator from made-up states: real transitions have no error, changed ones the error that was put in."""

import numpy as np
import pytest

from offrl.data.environments import EnvSpec
from offrl.errors import ConfigError
from offrl.evaluation.environments import env_spec, make_env
from offrl.evaluation.simulated import Simulator, dynamics_error


def real(spec, steps=40, seed=0):
    """Transitions of random actions, but those from velocities that the observation cuts."""
    env = make_env(spec)
    env.action_space.seed(seed)
    rows, (o, _) = [], env.reset(seed=seed)
    for _ in range(steps):
        a = env.action_space.sample()
        n, r, ended, cut, _ = env.step(a)
        if np.abs(o).max() < 9.9:
            rows.append((o, a, r, n))
        o = env.reset()[0] if ended or cut else n
    env.close()
    return [np.array(x, np.float32) for x in zip(*rows, strict=True)]


@pytest.mark.parametrize("env_id", ["Hopper-v5", "Walker2d-v5", "HalfCheetah-v5", "PointMaze_UMaze-v3"])
def test_real_transitions_have_no_error_and_a_shift_has_its_square(env_id):
    """float32 states: errors below 1e-4; every dim shifted by half a standard deviation: 0.25."""
    pytest.importorskip("mujoco")
    if env_id.startswith("PointMaze"):
        pytest.importorskip("gymnasium_robotics")
    spec = env_spec(env_id)
    o, a, r, n = real(spec)
    simulator = Simulator(spec)
    scale = o.std(axis=0)
    error = dynamics_error(simulator, o, a, r, n, scale)
    assert error.mean < 1e-4
    assert error.reward.max() < 1e-2
    shifted = dynamics_error(simulator, o, a, r + 1, n + 0.5 * np.where(scale > 1e-6, scale, 1.0), scale)
    assert shifted.mean == pytest.approx(0.25, rel=0.05)
    assert shifted.reward.mean() == pytest.approx(1.0, abs=1e-2)
    simulator.close()


def test_the_order_of_the_states_does_not_matter():
    """Nothing of the state before is left when the next one is set."""
    pytest.importorskip("mujoco")
    spec = env_spec("Hopper-v5")
    o, a, r, n = (x[:12] for x in real(spec, 20))
    simulator = Simulator(spec)
    forward, rewards = simulator.step(o, a)
    backward, other = simulator.step(o[::-1], a[::-1])
    np.testing.assert_array_equal(forward, backward[::-1])
    np.testing.assert_array_equal(rewards, other[::-1])
    assert r.shape == (12,)
    assert n.shape == o.shape


def test_an_environment_whose_state_is_not_observed_is_refused():
    with pytest.raises(ConfigError, match=r"the state of Pendulum-v1 cannot be set from its observations"):
        Simulator(EnvSpec(env_id="Pendulum-v1"))
