"""Fitted Q evaluation finds values that are known, trusts only what it may, and says how far off it is."""

import json

import numpy as np
import pytest
import torch

from offrl.cli import main
from offrl.data.dataset import OfflineDataset
from offrl.errors import ConfigError, DatasetError
from offrl.fitted_q import FQEOptions, discounted_returns, fitted_q_evaluation
from offrl.nn.decision_transformer import DecisionTransformerPolicy
from offrl.nn.one_step_flow import OneStepFlowPolicy
from offrl.nn.policy import DeterministicPolicy, save_policy

FAST = {"steps": 800, "discount": 0.5, "hidden": 32, "batch_size": 64, "lr": 3e-3, "tau": 0.05}
ACTION = 0.5


def two_way_policy(obs_dim=2, half=1.0):
    """0.5 of the box where the first observation is 1, -0.5 where the second is."""
    hidden = torch.zeros(4, obs_dim)
    hidden[0, 0] = hidden[1, 1] = 1.0
    size = float(np.arctanh(ACTION))
    layers = [(hidden, torch.zeros(4)), (torch.tensor([[size, -size, 0.0, 0.0]]), torch.zeros(1))]
    return DeterministicPolicy.from_params(layers, [-half], [half])


def chain(episodes=200, *, terminated=True, seed=0):
    """Two steps, s0 to s1 to the end: r = 1 + a in s0 and 2 a in s1, random actions."""
    rng = np.random.default_rng(seed)
    actions = rng.uniform(-1, 1, (2 * episodes, 1)).astype(np.float32)
    first = np.arange(2 * episodes) % 2 == 0
    states = np.eye(2, dtype=np.float32)[(~first).astype(int)]
    return OfflineDataset.from_arrays(
        states,
        actions,
        np.where(first, 1 + actions[:, 0], 2 * actions[:, 0]),
        ~first & terminated,
        ~first & (not terminated),
        next_observations=np.eye(2, dtype=np.float32)[np.ones(2 * episodes, dtype=int)],
    )


def test_the_value_of_another_policy_than_the_datas():
    """V(s0) = (1 + 0.5) + 0.5 * 2 * (-0.5) = 1: the actions of s1 count there, whatever the row's own action is."""
    result = fitted_q_evaluation(two_way_policy(), chain(), FQEOptions(**FAST))
    assert result.value == pytest.approx(1.0, abs=0.1)
    assert result.value_std == pytest.approx(0.0, abs=1e-5)  # one first state
    assert result.data_value == pytest.approx(1.0, abs=0.15)
    assert result.held_out_td_error < 0.15
    assert result.fitted_td_error < 0.15
    assert result.episodes == 200


def test_only_a_termination_ends_the_bootstrap():
    """Cut instead of terminated, s1 goes on to itself for ever: V(s1) = -1 / (1 - 0.5) = -2, V(s0) = 1.5 - 1."""
    result = fitted_q_evaluation(two_way_policy(), chain(terminated=False), FQEOptions(**FAST))
    assert result.value == pytest.approx(0.5, abs=0.12)


def test_a_policy_that_always_draws_is_worth_what_its_draws_earn():
    """r = |a| and 100 z cut at +-1 as the action: every draw earns 1, the action at zero noise 0."""
    scale = torch.tensor([[0.0, 100.0], [0.0, -100.0]])  # gelu(100 z) - gelu(-100 z) = 100 z
    layers = [(scale, torch.zeros(2)), (torch.tensor([[1.0, -1.0]]), torch.zeros(1))]
    box = torch.tensor([-1.0]), torch.tensor([1.0])
    policy = OneStepFlowPolicy.from_params(layers, *box, torch.zeros(1), torch.ones(1))
    actions = np.random.default_rng(0).uniform(-1, 1, (400, 1))
    data = OfflineDataset.from_arrays(
        np.zeros((400, 1)), actions, np.abs(actions[:, 0]), np.ones(400, dtype=bool)
    )
    result = fitted_q_evaluation(policy, data, FQEOptions(**FAST))
    assert result.value == pytest.approx(1.0, abs=0.1)
    assert result.action_distance == pytest.approx(1.0, abs=0.1)


def test_the_distance_to_the_data_is_in_half_ranges():
    data = chain()
    result = fitted_q_evaluation(two_way_policy(half=2.0), data, FQEOptions(**FAST | {"steps": 1}))
    own = np.where(data.fields["observations"][:, :1] == 1, 1.0, -1.0)
    assert result.action_distance == pytest.approx(np.abs(data.fields["actions"] - own).mean() / 2, rel=1e-5)


def test_a_surprise_shows_in_the_held_out_error_alone():
    """Rewards that no feature explains are memorized on the fitted episodes; each episode has its own state."""
    rng = np.random.default_rng(0)
    n = 40
    data = OfflineDataset.from_arrays(
        rng.normal(size=(n, 20)),
        rng.uniform(-1, 1, (n, 1)),
        rng.choice([-1.0, 1.0], n),
        np.ones(n, dtype=bool),
    )
    result = fitted_q_evaluation(two_way_policy(20), data, FQEOptions(**FAST | {"held_out": 0.25}))
    assert result.fitted_td_error < 0.1
    assert result.held_out_td_error > 0.8


def test_discounted_returns_restart_with_every_episode():
    data = OfflineDataset.from_arrays(np.zeros((5, 1)), np.zeros((5, 1)), [1, 2, 4, 3, 5], [0, 0, 1, 0, 1])
    np.testing.assert_allclose(discounted_returns(data, 0.5), [1 + 1 + 1, 3 + 2.5])


def test_the_seed_decides_everything():
    options = FAST | {"steps": 20}
    one, two, other = (
        fitted_q_evaluation(two_way_policy(), chain(20), FQEOptions(**options, seed=seed))
        for seed in (1, 1, 2)
    )
    assert one == two
    assert one.value != other.value


def test_progress_is_told_a_hundred_times():
    told = []
    fitted_q_evaluation(
        two_way_policy(),
        chain(20),
        FQEOptions(**FAST | {"steps": 200}),
        progress=lambda *now: told.append(now),
    )
    assert [step for step, _ in told] == list(range(2, 201, 2))
    assert all(loss >= 0 for _, loss in told)


@pytest.mark.parametrize(
    ("policy", "data", "message"),
    [(two_way_policy(3), chain(4), "O=2.*O=3"), (two_way_policy(), chain(1), "two or more")],
    ids=["other shapes", "one episode"],
)
def test_what_cannot_be_judged_is_refused(policy, data, message):
    with pytest.raises(DatasetError, match=message):
        fitted_q_evaluation(policy, data, FQEOptions(**FAST))


def test_episodes_without_a_known_successor_judge_nothing():
    """One step each, cut, and where it leads is not recorded: no error can be told, or no fit made, of those alone."""
    cut = np.array([0, 1, 1, 1, 1, 1], dtype=bool)  # one episode of two steps, four of one
    flat = np.zeros((6, 1), np.float32), np.ones(6), np.zeros(6, dtype=bool)
    data = OfflineDataset.from_arrays(np.eye(2, dtype=np.float32)[[0, 1, 0, 0, 0, 0]], *flat, cut)
    fast = FAST | {"steps": 1, "held_out": 0.2}
    said = set()
    for seed in range(12):  # some of them hold out the long episode
        with pytest.raises(DatasetError, match="no row of the .* episodes says where it leads") as caught:
            fitted_q_evaluation(two_way_policy(), data, FQEOptions(**fast, seed=seed))
        said.add(str(caught.value).split(" episodes")[0])
    assert said == {"no row of the 1 held-out", "no row of the 4 fitted"}


def test_first_states_that_lead_nowhere_known_are_not_counted():
    cut = np.array([0, 1] * 10 + [1], dtype=bool)  # ten episodes of two steps, one of one
    flat = np.zeros((21, 1), np.float32), np.ones(21), np.zeros(21, dtype=bool)
    data = OfflineDataset.from_arrays(np.eye(2, dtype=np.float32)[[0, 1] * 10 + [0]], *flat, cut)
    assert fitted_q_evaluation(two_way_policy(), data, FQEOptions(**FAST | {"steps": 1})).episodes == 10


def test_a_policy_that_acts_on_the_episode_so_far_is_refused():
    policy = DecisionTransformerPolicy(2, 1, hidden=4, layers=1, heads=1, context=2, max_steps=5)
    with pytest.raises(DatasetError, match="acts on the episode so far"):
        fitted_q_evaluation(policy, chain(4), FQEOptions(**FAST))


def test_a_missing_option_is_one_line_without_the_help_of_all(capsys):
    assert main(["fqe", "random"]) == 2
    assert capsys.readouterr().err == (
        "offrl: missing: --dataset STR ('offrl fqe --help' shows all options)\n"
    )


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"discount": 1.0}, {"held_out": 0.0}, {"tau": 1.5}, {"seed": -1}]
)
def test_impossible_options_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        FQEOptions(**wrong)


def test_the_command_compares_with_episodes(tmp_path, pendulum_npz, capsys):
    layers = [(torch.zeros(4, 3), torch.zeros(4)), (torch.zeros(1, 4), torch.zeros(1))]
    save_policy(DeterministicPolicy.from_params(layers, [-2.0], [2.0]), tmp_path / "policy")
    words = [
        "fqe",
        str(tmp_path / "policy"),
        "--dataset",
        str(pendulum_npz),
        "--steps",
        "20",
        "--hidden",
        "8",
    ]
    assert main([*words, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["episodes"] == 4
    assert record["played_value"] is None
    assert main(words) == 0
    assert "estimated discounted return" in capsys.readouterr().out
    assert main([*words, "--env-steps", "50"]) == 1
    assert "pass --env" in capsys.readouterr().err
    assert main([*words, "--env-steps", "199", "--env", "Pendulum-v1"]) == 1
    assert "no episode ended within --env-steps 199: play more" in capsys.readouterr().err
    assert main([*words, "--env-steps", "200", "--env", "Pendulum-v1"]) == 0
    assert "the estimate is off by" in capsys.readouterr().out


def test_playing_shows_the_overestimation(tmp_path, capsys):
    words = ["--dataset", "builtin:double-pendulum-demo", "--steps", "5", "--hidden", "8", "--json"]
    assert main(["fqe", "random", *words, "--env-steps", "100"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["played_episodes"] > 3
    assert record["overestimation"] == pytest.approx(record["value"] - record["played_value"])
