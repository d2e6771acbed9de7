"""Whole stable-baselines3 agents: plain ``TD3.load`` and ``SAC.load`` act as the policy does."""

import base64
import json
import zipfile

import gymnasium
import numpy as np
import pytest
import stable_baselines3
import torch

import offrl
from offrl.errors import ConfigError, PolicyError
from offrl.export import sb3
from offrl.export.policy import export_policy
from offrl.nn.mixture import SquashedMixturePolicy
from offrl.nn.policy import (
    ACTIVATIONS,
    DeterministicPolicy,
    DiagGaussianPolicy,
    GaussianPolicy,
    SquashedGaussianPolicy,
)
from offrl.nn.random_policy import RandomPolicy
from offrl.nn.sb3 import load_sb3_actor

OBS = 3
BOXES = [([-1.0, -1.0], [1.0, 1.0]), ([-2.0, 0.25], [2.0, 4.75]), ([-0.4, 1 / 3], [0.1, 0.7])]
KINDS = [
    (DeterministicPolicy, "TD3", {}),
    (GaussianPolicy, "TD3", {}),
    (SquashedGaussianPolicy, "SAC", {}),
    (SquashedGaussianPolicy, "SAC", {"log_std_min": -1.0}),
]


def tiny(kind=DeterministicPolicy, box=BOXES[0], hidden=(8, 6), obs_dim=OBS, seed=0, **settings):
    """A policy with weights large enough to reach the tanh's bends, and a normalizer that matters."""
    torch.manual_seed(seed)
    policy = kind(obs_dim, len(box[0]), hidden, *box, **settings)
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    policy.set_normalizer(torch.linspace(-1.0, 2.0, obs_dim), torch.linspace(0.05, 4.0, obs_dim))
    return policy.eval()


def raw_observations(policy, rows=50, seed=1):
    noise = torch.randn((rows, policy.obs_dim), generator=torch.Generator().manual_seed(seed))
    return policy.mean + policy.std * noise


def load(path, name):
    return getattr(stable_baselines3, name).load(path, device="cpu", custom_objects={"buffer_size": 1})


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize(("kind", "name", "settings"), KINDS)
def test_plain_stable_baselines3_and_our_reader_give_our_deterministic_action(
    tmp_path, kind, name, settings, box
):
    policy, out = tiny(kind, box, **settings), tmp_path / "agent.zip"
    result = export_policy(policy, out, "sb3")
    assert (result.agent, [p.name for p in tmp_path.iterdir()]) == (name, ["agent.zip"])
    assert result.error <= 1e-5
    agent, again = load(out, name), load_sb3_actor(out)
    for rows in (1, 7, 256):
        x = raw_observations(policy, rows)
        expected = policy.act(x)[0]
        actions, _ = agent.predict(x.numpy(), deterministic=True)
        np.testing.assert_allclose(actions, expected.detach(), rtol=0, atol=1e-5)
        torch.testing.assert_close(again.act(x)[0], expected, rtol=0, atol=1e-5)
    one, _ = agent.predict(x[0].numpy(), deterministic=True)
    assert one.shape == (policy.act_dim,)
    np.testing.assert_array_equal(agent.action_space.low, policy.action_low)
    np.testing.assert_array_equal(agent.action_space.high, policy.action_high)
    torch.testing.assert_close(again.action_low, policy.action_low, rtol=0, atol=1e-8)


@pytest.mark.parametrize("hidden", [(), (5,), (5, 4, 6)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", [DeterministicPolicy, SquashedGaussianPolicy])
def test_every_activation_and_depth(tmp_path, kind, activation, hidden):
    policy = tiny(kind, hidden=hidden, activation=activation)
    result = export_policy(policy, tmp_path / "agent.zip", "sb3")
    x = raw_observations(policy)
    actions, _ = load(tmp_path / "agent.zip", result.agent).predict(x.numpy(), deterministic=True)
    np.testing.assert_allclose(actions, policy(x).detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("log_std_min", [-20.0, -5.0, -0.5])
def test_sac_samples_from_our_distribution(tmp_path, log_std_min):
    """Equal means and log_std, also where our lower clamp, SAC's upper one and neither bind."""
    policy = tiny(SquashedGaussianPolicy, BOXES[1], log_std_min=log_std_min)
    x = raw_observations(policy, 400)
    with torch.no_grad():  # log_std before the clamp: mean -1, standard deviation 4
        weight, bias = (p[policy.act_dim :] for p in (policy.head.weight, policy.head.bias))
        raw = policy.output(x)[:, policy.act_dim :]
        weight *= 4 / raw.std(0)[:, None]
        bias.copy_(4 * (bias - raw.mean(0)) / raw.std(0) - 1)
    result = export_policy(policy, tmp_path / "agent.zip", "sb3")
    assert result.sampling == "it also samples as the policy does"
    actor = load(tmp_path / "agent.zip", "SAC").policy.actor
    mean, log_std, _ = actor.get_action_dist_params(x)
    own_mean, own_std = policy.moments(x)
    raw = policy.output(x)[:, policy.act_dim :]
    assert (raw > 2).any()
    assert ((raw > log_std_min) & (raw < 2)).any()
    assert (raw < log_std_min).any()
    torch.testing.assert_close(mean, own_mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(log_std, own_std.log(), rtol=1e-5, atol=1e-5)
    back = load_sb3_actor(tmp_path / "agent.zip").moments(x)
    torch.testing.assert_close(back, (own_mean, own_std), rtol=1e-4, atol=1e-5)


def test_the_fold_is_rounded_once():
    """Every folded number is the float32 nearest to the exact one, also where b - W mean / std cancels digits."""
    policy = tiny(obs_dim=40)
    policy.set_normalizer(torch.linspace(-30, 30, 40), torch.linspace(0.01, 0.1, 40))
    (weight, bias), *_ = sb3._folded(policy)
    wide, first = policy.std.double(), policy.trunk[0]
    exact = first.bias.double() - (first.weight.double() * policy.mean.double() / wide).sum(1)
    torch.testing.assert_close(bias.double(), exact, rtol=2**-24, atol=0)
    torch.testing.assert_close(weight.double(), first.weight.double() / wide, rtol=2**-24, atol=0)


def test_a_normalizer_that_float32_cannot_fold_is_refused_with_its_column(tmp_path):
    """mean / std = 1e6: the products are a million times larger than their sum, float32 has seven digits."""
    policy = tiny(hidden=(8, 8))
    policy.set_normalizer(torch.tensor([0.0, 1000.0, 0.0]), torch.tensor([1.0, 1e-3, 1.0]))
    message = "column 1 of the observations has mean 1000 and std 0.001: use format onnx or torch"
    with pytest.raises(PolicyError, match=message):
        export_policy(policy, tmp_path / "agent.zip", "sb3")
    assert list(tmp_path.iterdir()) == []


def test_no_class_of_ours_is_inside(tmp_path):
    export_policy(tiny(SquashedGaussianPolicy), tmp_path / "agent.zip", "sb3", env=None)
    with zipfile.ZipFile(tmp_path / "agent.zip") as archive:
        data = json.loads(archive.read("data"))
        everything = b"".join(archive.read(name) for name in archive.namelist())
    pickles = [base64.b64decode(v[":serialized:"]) for v in data.values() if isinstance(v, dict) and v]
    assert len(pickles) > 3
    assert b"offrl" not in everything + b"".join(pickles)


def test_weights_of_the_target_actor_are_the_actors_and_settings_are_the_librarys(tmp_path):
    export_policy(tiny(), tmp_path / "agent.zip", "sb3")
    agent = load(tmp_path / "agent.zip", "TD3")
    for one, other in zip(agent.actor.parameters(), agent.actor_target.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    with zipfile.ZipFile(tmp_path / "agent.zip") as archive:
        assert json.loads(archive.read("data"))["buffer_size"] == 1_000_000


def test_an_export_leaves_the_random_numbers_alone(tmp_path):
    policy = tiny()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    export_policy(policy, tmp_path / "agent.zip", "sb3")
    assert torch.equal(torch.get_rng_state(), state)


def test_an_exported_run_is_evaluated_and_trained_on_by_plain_stable_baselines3(tmp_path, pendulum):
    """The same episodes and returns in ``evaluate_policy`` as with our policy; the run's own spaces fit ``load(env)``."""
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.vec_env import DummyVecEnv

    settings = {"steps": 5, "hidden": 8, "batch_size": 8, "eval_every": 5, "eval_episodes": 1}
    run = offrl.train("td3_bc", pendulum, out=tmp_path, progress=False, **settings)
    out = tmp_path / "agent.zip"
    export_policy(run.directory, out, "sb3")

    def make():
        env = gymnasium.make("Pendulum-v1", max_episode_steps=50)
        return stable_baselines3.common.monitor.Monitor(env)

    environments = DummyVecEnv([make])
    agent = stable_baselines3.TD3.load(out, env=environments, device="cpu", buffer_size=200)
    environments.seed(7)
    returns, _ = evaluate_policy(agent, environments, n_eval_episodes=3, return_episode_rewards=True)
    np.testing.assert_allclose(returns, own_returns(run.policy, make(), 3), rtol=1e-4)
    agent.learn(105)  # learning_starts is 100
    assert agent._n_updates == 5


def own_returns(policy, env, episodes):
    returns = []
    for episode in range(episodes):
        observation, _ = env.reset(seed=7 if episode == 0 else None)
        total, over = 0.0, False
        while not over:
            x = torch.as_tensor(observation, dtype=torch.float32)[None]
            observation, reward, terminated, truncated, _ = env.step(policy.act(x)[0][0].detach().numpy())
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    return returns


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        (tiny(DiagGaussianPolicy), "diag_gaussian policy: its mean is not squashed by a tanh"),
        (SquashedMixturePolicy(OBS, 1, (8,)), "squashed_mixture policy: it is a mixture"),
        (tiny(observation_clip=10.0), "it clips normalized observations at 10, for which they have no layer"),
        (tiny(SquashedGaussianPolicy, log_std_min=-30.0), "its log_std is clamped at -30, SAC's at -20"),
        (tiny(SquashedGaussianPolicy, log_std_min=-5.0, activation="tanh"), "clamped at -5, SAC's at -20"),
        (tiny(SquashedGaussianPolicy, log_std_min=-5.0, hidden=()), "its log_std is clamped at -5"),
    ],
)
def test_what_no_agent_can_express_is_refused(tmp_path, policy, reason):
    with pytest.raises(PolicyError, match=f"no stable-baselines3 TD3 or SAC acts as .*{reason}"):
        export_policy(policy, tmp_path / "agent.zip", "sb3")
    assert list(tmp_path.iterdir()) == []


def test_a_random_policy_is_refused(tmp_path):
    with pytest.raises(PolicyError, match="a random policy holds no network"):
        export_policy(RandomPolicy(OBS, 1), tmp_path / "agent.zip", "sb3")


def test_an_environment_gives_its_spaces_or_is_refused(tmp_path):
    out = tmp_path / "agent.zip"
    export_policy(tiny(box=([-2.0], [2.0])), out, "sb3", env="Pendulum-v1")
    expected = gymnasium.make("Pendulum-v1")
    agent = load(out, "TD3")
    assert (agent.observation_space, agent.action_space) == (
        expected.observation_space,
        expected.action_space,
    )
    for box in (([-1.0], [2.0]), ([-2.0], [1.0])):
        with pytest.raises(ConfigError, match=r"Pendulum-v1 has actions Box\(-2.* built for Box\(-"):
            export_policy(tiny(box=box), out, "sb3", env="Pendulum-v1")
    with pytest.raises(ConfigError, match=r"Pendulum-v1 has actions .*\(1,\).* built for .*\(2,\)"):
        export_policy(tiny(), out, "sb3", env="Pendulum-v1")
    with pytest.raises(ConfigError, match=r"Pendulum-v1 has observations .*, but the policy takes O=4"):
        export_policy(tiny(obs_dim=4, box=([-2.0], [2.0])), out, "sb3", env="Pendulum-v1")


def test_statistics_beside_the_file_would_be_applied_twice(tmp_path):
    (tmp_path / "vecnormalize.pkl").touch()
    with pytest.raises(ConfigError, match=r"vecnormalize.pkl.* choose another folder"):
        export_policy(tiny(), tmp_path / "agent.zip", "sb3")


def test_wrong_weights_are_noticed(tmp_path, monkeypatch):
    """Without the fold the written agent acts on observations that are not normalized."""
    policy = tiny()
    unfolded = [(m.weight.detach(), m.bias.detach()) for m in (*policy.trunk, policy.head)]
    monkeypatch.setattr(sb3, "_folded", lambda _: unfolded)
    with pytest.raises(PolicyError, match="is not written: at batch size 1 its actions differ"):
        export_policy(policy, tmp_path / "agent.zip", "sb3")
    assert list(tmp_path.iterdir()) == []
