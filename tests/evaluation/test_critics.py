"""Known critics against known returns: every number here is worked out by hand."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from offrl.data.dataset import OfflineDataset
from offrl.data.environments import EnvSpec
from offrl.evaluation import critics
from offrl.evaluation.critics import Played, action_distance, bias, nearest_distance, play, returns, td_error
from offrl.nn.decision_transformer import DecisionTransformerPolicy
from offrl.nn.one_step_flow import OneStepFlowPolicy
from offrl.nn.policy import DeterministicPolicy


class Walk(gymnasium.Env):
    """Observation: steps so far. Each step pays 1 + the action; three steps end it, or the time limit before."""

    observation_space = spaces.Box(-9, 9, (1,), np.float32)
    action_space = spaces.Box(-2.0, 2.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.array([self.steps], np.float32), 1.0 + float(action[0]), self.steps == 3, False, {}


class Named(Walk):
    """The same with a dict observation; the second key comes first."""

    observation_space = spaces.Dict({"a": spaces.Box(-9, 9, (2,)), "b": spaces.Box(-9, 9, (1,))})

    def reset(self, *, seed=None, options=None):
        return self.named(super().reset(seed=seed)[0]), {}

    def step(self, action):
        observation, *rest = super().step(action)
        return self.named(observation), *rest

    def named(self, observation):
        return {"a": np.repeat(-observation, 2), "b": observation}


gymnasium.register("CriticWalk-v0", entry_point=Walk, max_episode_steps=50)
gymnasium.register("CriticNamed-v0", entry_point=Named, max_episode_steps=50)


def constant_policy(action, obs_dim=1, half=2.0):
    """Always ``action``, in a box of ``half`` around 0."""
    raw = float(np.arctanh(action / half))
    layers = [(torch.zeros(2, obs_dim), torch.zeros(2)), (torch.zeros(1, 2), torch.tensor([raw]))]
    return DeterministicPolicy.from_params(layers, [-half], [half])


def critics_of(*functions):
    """Q of each critic from functions of (observation column, action column)."""
    return lambda s, a: np.stack([f(s[:, 0], a[:, 0]) + np.zeros(len(s)) for f in functions])


def episode(rewards, cut, start=0.0):
    steps = np.arange(len(rewards) + 1, dtype=np.float32)[:, None] + np.float32(start)
    return Played(steps, np.ones((len(rewards), 1), np.float32), np.array(rewards, dtype=np.float64), cut)


def test_returns_are_discounted_from_every_step_and_end_in_the_tail():
    np.testing.assert_allclose(returns(np.array([1.0, 2.0, 4.0]), 0.5), [1 + 1 + 1, 2 + 2, 4])
    np.testing.assert_allclose(returns(np.array([1.0, 2.0, 4.0]), 0.5, 8.0), [3 + 1, 4 + 2, 4 + 4])


def test_overestimation_is_q_minus_the_return_where_the_episode_terminated():
    """Critics 3 and 5 against 1 + 0.5 + 0.25 * 4 = 2.5: the smallest counts, the mean stands beside it."""
    values = critics_of(lambda s, a: 3.0, lambda s, a: 5.0)
    found = bias(values, constant_policy(1.0), [episode([1, 1, 4], cut=False)] * 2, 0.5)
    np.testing.assert_allclose(found.q, [3, 3])
    np.testing.assert_allclose(found.q_mean, [4, 4])
    np.testing.assert_allclose(found.returns, [2.5, 2.5])
    np.testing.assert_allclose(found.tail_weight, [0, 0])
    assert found.visited == pytest.approx(np.mean([3 - 2.5, 3 - 3, 3 - 4]))
    assert found.visited_states == 6


def test_a_constant_error_shows_by_what_was_seen_where_a_time_limit_cut():
    """Reward 1 for ever is worth 2 at discount 0.5; Q = 2 + b over T = 3 steps shows (1 - 1/8) b."""
    b = 0.8
    found = bias(critics_of(lambda s, a: 2 + b), constant_policy(1.0), [episode([1, 1, 1], cut=True)], 0.5)
    assert found.q[0] - found.returns[0] == pytest.approx((1 - 1 / 8) * b)
    assert found.tail_weight[0] == pytest.approx(1 / 8)


def test_the_tail_is_the_policys_own_value_where_it_was_cut():
    """At s_T = 2 with the policy's action 0.5, not the recorded 1: the smaller of 20.5 and 30, a quarter of it."""
    values = critics_of(lambda s, a: 10 * s + a, lambda s, a: 30.0)
    found = bias(values, constant_policy(0.5), [episode([0, 0], cut=True)], 0.5)
    assert found.returns[0] == pytest.approx(0.25 * 20.5)


def test_visited_states_count_while_little_was_unseen():
    """Six steps at 0.5: 1/64, 1/32, 1/16 of the value unseen at the first three, 1/8 at the fourth."""
    value = critics_of(lambda s, a: s)
    found = bias(value, constant_policy(1.0), [episode([0] * 6, cut=True)], 0.5)
    tail = 6.0
    assert found.visited_states == 3
    assert found.visited == pytest.approx(np.mean([s - tail * 0.5 ** (6 - s) for s in range(3)]))
    short = bias(value, constant_policy(1.0), [episode([0, 0], cut=True)], 0.5)
    assert (short.visited, short.visited_states) == (None, 0)


def test_values_do_not_depend_on_how_rows_are_cut(monkeypatch):
    values, length = critics_of(lambda s, a: s * a), 7
    whole = bias(values, constant_policy(1.0), [episode([1.0] * length, False)], 0.9)
    monkeypatch.setattr(critics, "ROWS", 3)
    parts = bias(values, constant_policy(1.0), [episode([1.0] * length, False)], 0.9)
    assert whole.visited == parts.visited


def rows_of(observations, actions, rewards, terminated, following):
    data = OfflineDataset.from_arrays(
        np.array(observations)[:, None],
        np.array(actions)[:, None],
        rewards,
        terminated,
        [not t for t in terminated],
        next_observations=np.array(following)[:, None],
    )
    return data.transitions("exact")


def test_the_bellman_error_by_hand():
    """Q = s + a and Q = s + 2 a, pi = 0.5, discount 0.5.

    Row 1, s = 1, a = 1, r = 2, s' = 3: y = 2 + 0.5 (3 + 0.5) = 3.75; gaps 2 - 3.75 and 3 - 3.75.
    Row 2, terminated, s = 0, a = 1, r = 3: y = 3; gaps 1 - 3 and 2 - 3.
    """
    rows = rows_of([1.0, 0.0], [1.0, 1.0], [2.0, 3.0], [False, True], [3.0, 9.0])
    values = critics_of(lambda s, a: s + a, lambda s, a: s + 2 * a)
    found = td_error(values, constant_policy(0.5), rows, rows.rewards, 0.5)
    assert found == pytest.approx(np.sqrt(np.mean(np.square([1.75, 0.75, 2.0, 1.0]))))


def test_the_true_value_has_no_bellman_error():
    """A walk that pays 1 + a and goes on for ever under a = 0.5: Q = 1 + a + 0.5 * 3."""
    rows = rows_of(
        np.arange(5.0), np.linspace(-1, 1, 5), 1 + np.linspace(-1, 1, 5), [False] * 5, np.arange(5.0)
    )
    exact = critics_of(lambda s, a: 1 + a + 0.5 * 3.0)
    assert td_error(exact, constant_policy(0.5), rows, rows.rewards, 0.5) == pytest.approx(0, abs=1e-6)
    assert td_error(exact, constant_policy(-0.5), rows, rows.rewards, 0.5) == pytest.approx(0.5)


def test_the_distance_to_the_data_is_in_half_ranges():
    rows = rows_of([0.0, 1.0], [1.0, -1.0], [0, 0], [True, True], [0.0, 0.0])
    assert action_distance(constant_policy(0.5), rows) == pytest.approx((0.5 + 1.5) / 2 / 2, rel=1e-5)


def test_the_nearest_pair_may_be_another_row_of_the_same_state():
    """Two rows in one state: the policy's 0.5 is 1.5 from row 0's own action and 0.1 from row 1's."""
    rows = rows_of([0.0, 0.0, 5.0], [-1.0, 0.6, 0.5], [0, 0, 0], [True] * 3, [0.0] * 3)
    found = nearest_distance(constant_policy(0.5), rows, np.array([0]))
    assert found == pytest.approx(0.1 / 2, rel=1e-4)


def test_a_near_state_matters_more_than_a_near_action():
    """Row 2 did exactly the policy's action, but far away; row 3 did not, where no other row is."""
    rows = rows_of([0.0, 0.01, 50.0, 99.0], [0.9, 0.7, 0.5, -0.9], [0] * 4, [True] * 4, [0.0] * 4)
    assert nearest_distance(constant_policy(0.5), rows, np.array([0, 1])) == pytest.approx(0.2 / 2, rel=1e-4)
    assert nearest_distance(constant_policy(0.5), rows, np.array([3])) == pytest.approx(1.4 / 2, rel=1e-4)


@pytest.mark.parametrize(
    ("env_id", "flatten", "obs_dim"),
    [("CriticWalk-v0", (), 1), ("CriticWalk-v0", ("steps",), 1), ("CriticNamed-v0", ("b", "a"), 3)],
)
def test_played_episodes_are_whole(env_id, flatten, obs_dim):
    """Data may name the parts of what the environment shows as one vector (PushT's state)."""
    spec = EnvSpec(env_id, flatten=flatten)
    whole = play(constant_policy(0.5, obs_dim), spec, 7, 0)
    assert len(whole) == 7
    for found in whole:
        np.testing.assert_array_equal(found.observations[:, 0], [0, 1, 2, 3])
        np.testing.assert_allclose(found.rewards, 1.5, rtol=1e-6)
        assert found.observations.shape == (4, obs_dim)
        assert found.actions.shape == (3, 1)
        assert not found.cut
    spec = EnvSpec(env_id, flatten=flatten, horizon=2)
    assert [(len(e.rewards), e.cut) for e in play(constant_policy(0.5, obs_dim), spec, 2, 0)] == [
        (2, True)
    ] * 2


def test_parts_in_no_declared_order_come_as_the_environment_has_them():
    (found,) = play(constant_policy(0.5, 3), EnvSpec("CriticNamed-v0"), 1, 0)
    np.testing.assert_array_equal(found.observations[:, 2], [0, 1, 2, 3])


def test_only_a_policy_with_a_memory_remembers():
    transformer = DecisionTransformerPolicy(1, 1, hidden=4, layers=1, heads=1, context=2, max_steps=5)
    assert critics.remembers(transformer)
    assert not critics.remembers(constant_policy(0.5))


def test_a_policy_that_always_draws_gives_the_same_actions_twice():
    policy, observations = OneStepFlowPolicy(1, 1, (4,)), np.zeros((5, 1), np.float32)
    with torch.no_grad():
        policy.layers[-1].weight.normal_(generator=torch.Generator().manual_seed(0))
    first = critics.actions_of(policy, observations)
    np.testing.assert_array_equal(first, critics.actions_of(policy, observations))
    assert len(np.unique(first)) > 1
