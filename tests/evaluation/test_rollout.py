import os
import signal

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from offrl.data.environments import EnvSpec
from offrl.errors import ConfigError, PolicyError
from offrl.evaluation import pool as pool_module
from offrl.evaluation.blocks import Plan, run_block
from offrl.evaluation.environments import FlatObservation, env_spec, make_env, mujoco_state
from offrl.evaluation.pool import BlockPool
from offrl.evaluation.rollout import EvaluationResult, Evaluator, evaluate
from offrl.nn.policy import (
    DeterministicPolicy,
    DiagGaussianPolicy,
    Policy,
    SquashedGaussianPolicy,
)
from offrl.nn.random_policy import RandomPolicy

PENDULUM = EnvSpec("Pendulum-v1", horizon=12)


class Counter(gymnasium.Env):
    """Observation (episode's length, steps so far); each step pays the action; ends after 1 to 6 steps."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    actions: list = []

    def __init__(self, shift=0, success=False, endless=False):
        self.shift, self.success, self.endless = shift, success, endless

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.length = int(self.np_random.integers(1, 7)) + self.shift
        self.steps = 0
        return self.observe(), {}

    def step(self, action):
        self.steps += 1
        Counter.actions.append(np.array(action))
        done = self.steps == self.length and not self.endless
        info = {"success": self.steps == 2} if self.success else {}
        return self.observe(), float(action[0]), done, False, info

    def observe(self):
        return np.array([self.length, self.steps], dtype=np.float64)


class Goal(Counter):
    """The same with a dict observation."""

    observation_space = spaces.Dict(
        {"b": spaces.Box(-9, 9, (1,)), "a": spaces.Box(-9, 9, (2,)), "c": spaces.Box(-9, 9, (1,))}
    )

    def observe(self):
        length, steps = super().observe()
        return {"b": np.array([length]), "a": np.array([steps, -steps]), "c": np.array([0.0])}


@pytest.fixture(autouse=True)
def _register():
    Counter.actions = []
    for name, entry, limit in (
        ("Counter-v0", Counter, 20),
        ("Endless-v0", Counter, None),
        ("Goal-v0", Goal, 20),
    ):
        gymnasium.register(name, entry_point=entry, max_episode_steps=limit)
    yield
    for name in ("Counter-v0", "Endless-v0", "Goal-v0"):
        del gymnasium.registry[name]


class Linear(Policy):
    """A policy of a test: ``function(observations, state, generator)``."""

    def __init__(self, function, obs_dim=2):
        super().__init__(obs_dim, 1)
        self.function = function

    def act(self, observations, state=None, *, deterministic=True, generator=None):
        return self.function(observations, state, generator)


def pays(value):
    return Linear(lambda observations, state, _: (torch.full((len(observations), 1), value), state))


def stochastic(obs_dim=3, act_dim=1):
    torch.manual_seed(0)
    policy = SquashedGaussianPolicy(obs_dim, act_dim, (16,), [-2.0] * act_dim, [2.0] * act_dim)
    with torch.no_grad():
        policy.head.bias[act_dim:] = 1.0
    return policy


# --- returns ----------------------------------------------------------------------------------------------


def test_returns_lengths_and_moments_of_episodes_that_pay_a_half_a_step():
    result = evaluate(pays(0.5), "Counter-v0", episodes=13)
    assert np.array_equal(result.returns, 0.5 * result.lengths)
    assert set(result.lengths) <= set(range(1, 7))
    assert len(set(result.lengths)) > 2
    assert result.env_id == "Counter-v0"
    assert result.successes is None
    assert (result.max_rewards == 0.5).all()
    assert result.mean == result.returns.mean()
    assert result.std == pytest.approx(np.sqrt(((result.returns - result.mean) ** 2).sum() / 12))


def test_the_spread_of_one_episode_is_zero():
    assert EvaluationResult(np.array([3.0]), np.array([1]), None, "x").std == 0.0


def test_success_at_any_step_counts_and_is_none_where_the_environment_does_not_say():
    """The flag is up at step 2 only; episodes of one step never see it."""
    result = evaluate(pays(0.0), EnvSpec("Counter-v0", {"success": True}), episodes=20)
    assert np.array_equal(result.successes, result.lengths >= 2)
    assert result.successes.any()
    assert not result.successes.all()


def test_a_limit_below_the_environments_own_cuts_the_episodes():
    spec = EnvSpec("Counter-v0", {"endless": True})
    assert evaluate(pays(1.0), spec, episodes=2).lengths.tolist() == [20, 20]
    assert evaluate(pays(1.0), spec, episodes=2, max_steps=3).returns.tolist() == [3.0, 3.0]
    assert evaluate(pays(1.0), EnvSpec("Counter-v0", {"endless": True}, horizon=4), episodes=1).lengths == [4]


def test_an_environment_without_a_limit_is_refused_unless_one_is_given():
    with pytest.raises(ConfigError, match="Endless-v0 has no time limit"):
        evaluate(pays(1.0), "Endless-v0", episodes=1)
    assert evaluate(pays(1.0), EnvSpec("Endless-v0", {"endless": True}), episodes=1, max_steps=5).lengths == [
        5
    ]


def test_the_actions_that_are_executed_lie_in_the_box():
    evaluate(pays(7.0), "Counter-v0", episodes=3)
    assert {float(a[0]) for a in Counter.actions} == {1.0}
    assert Counter.actions[0].dtype == np.float32


# --- blocks -----------------------------------------------------------------------------------------------


def test_the_policy_always_sees_five_rows_and_only_valid_observations():
    """Padding repeats what the row saw last, or the first row; it never invents an observation."""
    seen = []

    def function(observations, state, _):
        seen.append(observations.clone())
        return torch.zeros(len(observations), 1), state

    evaluate(Linear(function), "Counter-v0", episodes=7)
    assert {len(rows) for rows in seen} == {5}
    assert all((rows[:, 0] >= 1).all() and (rows[:, 1] <= rows[:, 0]).all() for rows in seen)


def test_what_a_finished_row_does_changes_nothing():
    """Actions of finished and padded rows are 100 in one run, 0 in the other."""

    def play(junk):
        def function(observations, state, _):
            over = observations[:, 1:] >= observations[:, :1]
            return torch.where(over, junk, observations[:, 1:] / 10), state

        return evaluate(Linear(function), "Counter-v0", episodes=8)

    one, other = play(100.0), play(0.0)
    assert np.array_equal(one.returns, other.returns)
    assert np.array_equal(one.lengths, other.lengths)


def test_the_first_episodes_are_the_same_for_every_number_of_episodes():
    policy = stochastic()
    few, many = (evaluate(policy, PENDULUM, episodes=n, deterministic=False) for n in (7, 10))
    assert np.array_equal(few.returns, many.returns[:7])


def test_seed_and_stream_choose_the_environments_draws():
    """The lengths are drawn by the environment: 20 of them are equal by chance once in 6^20."""
    runs = [
        evaluate(pays(0.0), "Counter-v0", episodes=20, seed=seed, stream=stream).lengths.tolist()
        for seed, stream in ((0, 0), (0, 0), (0, 1), (1, 0))
    ]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2] != runs[3] != runs[0]


def test_seed_and_stream_choose_the_policys_draws():
    policy = stochastic()
    runs = [
        evaluate(policy, PENDULUM, episodes=3, seed=seed, stream=stream, deterministic=False).returns
        for seed, stream in ((0, 0), (0, 0), (0, 1), (1, 0))
    ]
    assert np.array_equal(runs[0], runs[1])
    assert len({tuple(run) for run in runs}) == 3
    assert len(set(runs[0])) == 3  # episodes of one block differ


def test_blocks_do_not_depend_on_what_was_played_before():
    """The same environments play block 3 fresh, and after another block that left them mid-episode."""
    policy, plan = stochastic().eval(), Plan(seed=4, deterministic=False)
    envs = [make_env(PENDULUM) for _ in range(5)]
    fresh = [episode.total for episode in run_block(envs, policy, plan, 3, 5)]
    calls = iter([True, False])
    run_block(envs, policy, Plan(seed=9, max_steps=500), 0, 5, tick=lambda: next(calls))
    assert [episode.total for episode in run_block(envs, policy, plan, 3, 5)] == fresh


def test_a_block_is_given_up_when_tick_says_so():
    envs = [make_env(EnvSpec("Counter-v0", {"endless": True}, horizon=500)) for _ in range(5)]
    assert run_block(envs, pays(0.0), Plan(seed=0), 0, 5, tick=lambda: False) is None
    assert len(Counter.actions) == 64 * 5


def test_a_state_is_carried_from_step_to_step_and_starts_empty_in_each_block():
    def function(observations, state, _):
        count = 0 if state is None else state
        return torch.full((len(observations), 1), count / 10), count + 1

    result = evaluate(Linear(function), "Counter-v0", episodes=10)
    expected = [sum(range(n)) / 10 for n in result.lengths]
    assert np.allclose(result.returns, expected)


def test_observations_that_a_policy_keeps_do_not_change_later():
    kept = []

    def function(observations, state, _):
        kept.append((observations, observations.clone()))
        return torch.zeros(len(observations), 1), state

    evaluate(Linear(function), "Counter-v0", episodes=5)
    assert all(torch.equal(then, now) for now, then in kept)


def test_samples_come_from_the_blocks_stream_and_not_from_the_global_one():
    policy = stochastic()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = evaluate(policy, PENDULUM, episodes=2, deterministic=False)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert np.array_equal(first.returns, evaluate(policy, PENDULUM, episodes=2, deterministic=False).returns)


def test_noise_is_added_before_the_cut_to_the_box():
    """Zero plus noise 0.2, 1000 draws: standard error of the std is 0.2 / sqrt(2000); 4 of them."""
    spec = EnvSpec("Counter-v0", {"endless": True}, horizon=200)
    run_block([make_env(spec) for _ in range(5)], pays(0.0), Plan(seed=0, noise=0.2), 0, 5)
    executed = np.array(Counter.actions)
    assert executed.std() == pytest.approx(0.2, abs=4 * 0.2 / 2000**0.5)
    Counter.actions = []
    run_block([make_env(spec) for _ in range(5)], pays(1.0), Plan(seed=0, noise=0.2), 0, 5)
    assert np.max(Counter.actions) == 1.0
    assert np.mean(np.array(Counter.actions) == 1.0) == pytest.approx(0.5, abs=4 * 0.5 / 1000**0.5)
    Counter.actions = []
    run_block([make_env(spec) for _ in range(5)], pays(3.0), Plan(seed=0, noise=0.2), 0, 5)
    assert {float(a[0]) for a in Counter.actions} == {1.0}  # not cut first, then disturbed


def test_training_mode_device_and_threads_of_the_caller_are_left_alone():
    policy = stochastic().train()
    evaluate(policy, PENDULUM, episodes=1)
    assert policy.training
    torch.set_num_threads(2)
    evaluate(policy, PENDULUM, episodes=1)
    assert torch.get_num_threads() == 2


def test_the_evaluator_reports_progress_and_can_be_closed_twice():
    calls = []
    with Evaluator("Counter-v0") as evaluator:
        evaluator(pays(0.0), 12, progress=lambda done, total: calls.append((done, total)))
        evaluator.close()
    assert calls == [(5, 12), (10, 12), (12, 12)]


def test_episodes_side_by_side_are_the_same_ones_and_the_policy_sees_them_together():
    rows = []

    class Watching(SquashedGaussianPolicy):
        def forward(self, observations):
            rows.append(len(observations))
            return observations[:, 1:2]

    results = []
    for width in (1, 3, 7):
        with Evaluator(PENDULUM, width=width) as evaluator:
            results.append(evaluator(Watching(3, 1, (4,), [-2.0], [2.0]), 7))
            assert set(rows) == {width}
            rows.clear()
    for result in results[1:]:
        np.testing.assert_allclose(result.returns, results[0].returns, rtol=1e-6)
    with pytest.raises(ConfigError, match="width must be 1 or more, got 0"):
        Evaluator(PENDULUM, width=0)


# --- refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (
            RandomPolicy(4, 1),
            r"observations have shape \(3,\) but the policy was built for O=4; was it trained",
        ),
        (
            RandomPolicy(3, 2),
            r"takes actions of shape \(1,\) but the policy was built for A=2; was it trained",
        ),
    ],
)
def test_a_policy_of_another_environment_is_refused(policy, message):
    with pytest.raises(PolicyError, match=message):
        evaluate(policy, "Pendulum-v1", episodes=1)


def test_actions_that_are_not_finite_are_refused_but_only_in_rows_that_act():
    def function(observations, state, _):
        over = observations[:, 1:] >= observations[:, :1]
        return torch.where(over, torch.nan, 0.0), state

    evaluate(Linear(function), "Counter-v0", episodes=5)  # finished rows may say what they like
    with pytest.raises(PolicyError, match="not finite at step 0; its observation was finite"):
        evaluate(pays(torch.nan), "Counter-v0", episodes=1)


def test_a_return_that_is_not_finite_is_refused(monkeypatch):
    """It has no mean; a report of it would be none."""
    step = Counter.step
    monkeypatch.setattr(Counter, "step", lambda *a: (step(*a)[0], np.nan, *step(*a)[2:]))
    with pytest.raises(PolicyError, match="return is nan: the environment paid a reward that is not finite"):
        evaluate(pays(0.5), "Counter-v0", episodes=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"episodes": 0}, "episodes must be 1 or more"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
        ({"workers": 0}, "workers must be 1 or more"),
        ({"max_steps": 0}, "max_steps must be 1 or more"),
    ],
)
def test_impossible_numbers_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        evaluate(pays(0.0), "Counter-v0", **arguments)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("Hoper-v5", "cannot make the environment 'Hoper-v5': .*Did you mean: `Hopper`"),
        ("Hopper-v2", "cannot make the environment 'Hopper-v2'"),
        ("CartPole-v1", r"CartPole-v1 has actions Discrete\(2\)"),
        (EnvSpec("Counter-v0", {"size": 3}), "does not take the arguments {'size': 3"),
        (
            EnvSpec("", verdict="none", reason="its robot is gone"),
            "no environment to act in: its robot is gone",
        ),
        (EnvSpec("Goal-v0", flatten=("a", "z")), "has no observation 'z'; it has a, b, c"),
    ],
)
def test_environments_that_cannot_be_used_are_refused_with_the_reason(spec, message):
    with pytest.raises(ConfigError, match=message):
        make_env(spec)


def test_a_policy_that_cannot_travel_is_refused_before_a_process_is_started():
    with BlockPool(env_spec("Counter-v0"), workers=2) as pool:
        with pytest.raises(PolicyError, match=r"cannot be sent to another process .* or run with workers=1"):
            pool.run(pays(0.0), Plan(seed=0), [5], lambda _: True)
        assert pool.helpers == []


# --- environments -----------------------------------------------------------------------------------------


def test_dict_observations_are_flattened_in_the_declared_order():
    env = make_env(EnvSpec("Goal-v0", flatten=("b", "a")))
    observation, _ = env.reset(seed=0)
    assert isinstance(env, FlatObservation)
    assert env.observation_space.shape == observation.shape == (3,)
    assert observation.dtype == np.float32
    assert observation[0] == env.unwrapped.length
    assert set(env.raw) == {"a", "b", "c"}
    observation, *_ = env.step(np.zeros(1))
    assert observation.tolist() == [env.unwrapped.length, 1.0, -1.0]


def test_the_simulators_state_is_found_behind_wrappers_and_only_in_mujoco():
    env = make_env("InvertedPendulum-v5")
    env.reset(seed=0)
    assert mujoco_state(env).qpos.shape == (2,)
    assert mujoco_state(make_env("Pendulum-v1")) is None


def test_goal_environments_of_gymnasium_robotics_are_registered_when_named():
    env = make_env(env_spec("PointMaze_UMaze-v3"))
    assert env.observation_space.shape == (6,)
    env.reset(seed=0)
    assert mujoco_state(env).qpos.shape == (2,)


# --- processes --------------------------------------------------------------------------------------------


def test_one_two_and_three_processes_give_the_same_numbers_and_a_death_is_reported(monkeypatch):
    """Episodes that end by themselves at different times, sampled actions, more blocks than processes."""
    spec, policy = env_spec("InvertedPendulum-v5"), stochastic(4)

    def play(evaluator, policy, episodes=33):
        result = evaluator(policy, episodes, seed=3, stream=7, deterministic=False)
        return result.returns.tolist(), result.lengths.tolist()

    with Evaluator(spec) as evaluator:
        expected = play(evaluator, policy)
        other = play(evaluator, RandomPolicy(4, 1, [-3.0], [3.0]))
    with Evaluator(spec, workers=3) as evaluator:
        pool, own = evaluator.pool, []
        monkeypatch.setattr(pool_module, "run_block", lambda *a, **k: own.append(a) or run_block(*a, **k))
        pool.start_helpers()
        for helper in pool.helpers:
            assert helper.connection.poll(300)  # started: from the first block on, all three play
        assert play(evaluator, policy) == expected
        assert 0 < len(own) <= 3  # the two others took two blocks each of seven at the start
        pool.helpers.pop().stop()
        pool.workers = 2
        assert play(evaluator, policy) == expected
        assert play(evaluator, RandomPolicy(4, 1, [-3.0], [3.0])) == other  # helpers take the new policy
        os.kill(pool.helpers[0].process.pid, signal.SIGKILL)
        with pytest.raises(ChildProcessError, match="worker process 1 died with exit code -9"):
            play(evaluator, policy, episodes=500)
        assert pool.helpers == []


@pytest.mark.parametrize("kind", [DeterministicPolicy, DiagGaussianPolicy])
def test_every_kind_acts_in_a_box_that_is_not_minus_one_to_one(kind):
    torch.manual_seed(0)
    result = evaluate(kind(3, 1, (8,), [-2.0], [2.0]), PENDULUM, episodes=2)
    assert result.lengths.tolist() == [12, 12]
