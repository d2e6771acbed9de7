"""On-policy MDPO: the mirror-descent step in closed form, and that training takes it."""

from itertools import pairwise

import gymnasium
import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3")

from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.common.vec_env import DummyVecEnv
from torch.distributions import Categorical, Normal, kl_divergence

from offrl.algos.mdpo_on import MDPOOn, MDPOOnConfig, divergence, mirror_step_loss
from offrl.errors import ConfigError
from offrl.estimators.regularizers import categorical_kl
from offrl.estimators.rollouts import Rollouts

P, A = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([1.0, -0.5, 0.2]).double()


def pendulum(length=20):
    return gymnasium.make("Pendulum-v1", max_episode_steps=length)


def make(env=None, **settings):
    defaults = {"hidden": 8, "rollout": 64, "batch_size": 16}
    return MDPOOn("MlpPolicy", env or pendulum(), seed=0, device="cpu", **defaults | settings)


def after_rollout(**settings):
    """A model with a full rollout, not yet trained on."""
    model = make(**settings)
    model.train = lambda: None
    model.learn(model.n_steps)
    del model.train
    return model


def solve(p, advantages, t, rate=0.1, steps=1500):
    """Minimise the loss over the logits, (..., actions) a state, actions weighted with their exact frequencies."""
    actions = p.shape[-1]
    logits = p.log().clone().requires_grad_()
    rollouts = Rollouts(
        old_log_probs=p.log().flatten(), advantages=(advantages * p * actions).flatten()
    )  # a mean over all pairs is then one over states of the sum over actions of pi A
    optimizer = torch.optim.Adam([logits], rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    for _ in range(steps):
        kl = categorical_kl(logits, p.log()).flatten()
        loss = mirror_step_loss(logits.log_softmax(-1).flatten(), rollouts, kl, t)
        (logits.grad,) = torch.autograd.grad(loss, [logits])
        optimizer.step()
        schedule.step()
    return logits.detach().softmax(-1)


@pytest.mark.parametrize(
    ("t", "exact"),
    [
        (0.1, [0.530315, 0.273868, 0.195817]),
        (1.0, [0.761261, 0.101916, 0.136823]),  # KL(old || new) would end at 0.728261, 0.137201, 0.134538
        (5.0, [0.992400, 0.000329, 0.007271]),
    ],
)
def test_the_discrete_step_is_the_old_policy_times_the_exponential(t, exact):
    """Pi_k exp(t A), normalised."""
    closed = P * (t * A).exp()
    torch.testing.assert_close(closed / closed.sum(), torch.tensor(exact).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(solve(P, A, t), torch.tensor(exact).double(), atol=5e-4, rtol=0)


class Bandit(gymnasium.Env):
    """One step an episode: Q = -(a - 1.5)^2."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,))
    action_space = gymnasium.spaces.Box(-20, 20, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action):
        return np.ones(1, np.float32), -((float(action[0]) - 1.5) ** 2), True, False, {}


def test_the_gaussian_step_in_training():
    """N(0, 1) times exp(t Q) is N(0.875, 0.4167) at t = 0.7. Advantages are standardised, their std is sqrt 11."""
    env = DummyVecEnv([Bandit] * 50)
    settings = {
        "hidden": 2,
        "rollout": 400,
        "inner_steps": 400,
        "lr": 0.01,
        "epochs": 1,
        "batch_size": 20_000,
    }
    model = make(env, step_size=0.7 * 11**0.5, max_grad_norm=100.0, **settings)
    with torch.no_grad():
        model.policy.action_net.weight.zero_()
    model.learn(20_000)
    found = model.policy.get_distribution(torch.ones(1, 1)).distribution
    assert found.mean.item() == pytest.approx(0.875, abs=0.03)
    assert found.stddev.item() ** 2 == pytest.approx(0.416667, abs=0.03)


def test_policies_of_a_small_decision_process_get_better_at_the_rate_of_mirror_descent():
    """Exact advantages, constant t: J never falls, and J* - J(pi_k) <= D / (t k) + a bound of the first gap."""
    g = torch.Generator().manual_seed(0)
    gamma, t = 0.8, 1.0
    transition = torch.rand(3, 2, 3, generator=g).double().pow(4)
    transition /= transition.sum(-1, keepdim=True)
    reward, start = torch.rand(3, 2, generator=g).double(), torch.full((3,), 1 / 3).double()

    def evaluate(p):
        values = torch.linalg.solve(
            torch.eye(3).double() - gamma * (p[..., None] * transition).sum(1), (p * reward).sum(1)
        )
        q = reward + gamma * transition @ values
        return q - values[:, None], float(start @ values)

    best = max(
        evaluate(torch.eye(2).double()[torch.tensor([a, b, c])])[1]
        for a in (0, 1)
        for b in (0, 1)
        for c in (0, 1)
    )
    p, scores = torch.full((3, 2), 0.5).double(), []
    for k in range(12):
        advantages, score = evaluate(p)
        scores.append(score)
        new = p * (t * advantages).exp()
        new /= new.sum(-1, keepdim=True)
        if k < 3:
            torch.testing.assert_close(solve(p, advantages, t, steps=400), new, atol=1e-3, rtol=0)
        p = new
    gaps = [best - score for score in scores]
    assert all(a >= b - 1e-12 for a, b in pairwise(gaps))
    for k in range(1, 12):
        assert gaps[k] <= (np.log(2) / t + 1 / (1 - gamma)) / ((1 - gamma) * k)
    assert gaps[-1] < gaps[0] / 3


def test_the_first_gradient_is_reinforce_and_the_kl_has_none():
    model = after_rollout()
    samples = next(model.minibatches(None))
    rollouts = Rollouts(old_log_probs=samples.old_log_prob, advantages=samples.advantages)
    with torch.no_grad():
        old = model.family(samples.observations)
    parameters = model.actor_parameters()

    def grads(loss):
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])

    new = model.family(samples.observations)
    log_probs = new.log_prob(samples.actions).sum(-1)
    kl = divergence(new, old)
    assert kl.abs().max() < 1e-6
    ours = grads(mirror_step_loss(log_probs, rollouts, kl, 0.01))
    again = model.family(samples.observations)
    plain = grads(-(samples.advantages * again.log_prob(samples.actions).sum(-1)).mean())
    torch.testing.assert_close(ours, plain, atol=1e-6, rtol=1e-5)
    assert plain.norm() > 1e-2


def test_the_divergence_is_of_the_new_policy_from_the_old_and_summed_over_actions():
    """As torch has it; Gaussians and categoricals."""
    g = torch.Generator().manual_seed(0)
    new, old = (Normal(torch.randn(5, 3, generator=g), torch.rand(5, 3, generator=g) + 0.1) for _ in range(2))
    torch.testing.assert_close(divergence(new, old), kl_divergence(new, old).sum(-1))
    new, old = (Categorical(logits=torch.randn(5, 3, generator=g)) for _ in range(2))
    torch.testing.assert_close(divergence(new, old), kl_divergence(new, old))


def test_a_larger_step_size_moves_the_policy_further():
    """On the same rollout; enough inner steps to come near each step's solution."""
    found = []
    for t in (0.05, 0.2, 1.0):
        model = after_rollout(inner_steps=150, lr=3e-3)
        found.append(float(model.improve(t)[1]))
    assert found[0] < 0.5 * found[1] < 0.25 * found[2]


def test_the_policy_learns_from_the_whole_rollout_and_values_from_minibatches():
    """m full batches for the actor alone; then epochs of whole minibatches for the critic alone, each its own Adam."""
    model = after_rollout(inner_steps=7, epochs=3, rollout=70, batch_size=16)
    sizes, family = [], model.family

    def watched(observations):
        sizes.append(len(observations))
        return family(observations)

    model.family = watched

    def copies(parameters):
        return [p.detach().clone() for p in parameters]

    actor, critic = copies(model.actor_parameters()), copies(model.critic_parameters())
    model.improve(1.0)
    assert sizes == [70] * 9  # pi_k, seven steps, the KL afterwards
    assert all(torch.equal(a, b) for a, b in zip(critic, model.critic_parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(actor, model.actor_parameters(), strict=True))
    actor = copies(model.actor_parameters())
    assert len(model.fit_values()) == 3 * 4
    assert all(torch.equal(a, b) for a, b in zip(actor, model.actor_parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(critic, model.critic_parameters(), strict=True))
    steps = {float(model.policy.optimizer.state[p]["step"]) for p in model.actor_parameters()}
    assert steps == {7.0}
    assert {float(model.policy.optimizer.state[p]["step"]) for p in model.critic_parameters()} == {12.0}
    everything = {id(p) for p in [*model.actor_parameters(), *model.critic_parameters()]}
    assert everything == {id(p) for p in model.policy.parameters()}


@pytest.mark.parametrize("shared", [True, False])
def test_a_features_extractor_learns_with_the_policy_and_not_again_with_the_values(shared):
    """Else the fit of V would move the policy away from where its KL was held."""
    given = {"features_extractor_class": NatureCNN, "share_features_extractor": shared}
    env = Bandit()
    env.observation_space = gymnasium.spaces.Box(0, 255, (3, 36, 36), np.uint8)
    model = make(env, policy_kwargs=given, rollout=4)
    actor, critic = ({id(p) for p in ps()} for ps in (model.actor_parameters, model.critic_parameters))
    assert {id(p) for p in model.policy.pi_features_extractor.parameters()} <= actor
    assert actor & critic == set()
    assert actor | critic == {id(p) for p in model.policy.parameters()}


def test_the_gradient_is_cut_for_the_policy_and_not_for_values(monkeypatch):
    model = after_rollout(inner_steps=2, epochs=1, rollout=32, batch_size=16, max_grad_norm=0.25)
    limits = []
    monkeypatch.setattr(model, "step", lambda loss, parameters, limit: limits.append(limit))
    model.improve(1.0)
    model.fit_values()
    assert limits == [0.25, 0.25, None, None]


def test_inner_steps_are_gradient_steps_on_the_objective():
    """Recomputed from outside: torch's Adam on the clipped gradient of the written objective."""
    model, twin = (after_rollout(inner_steps=5, max_grad_norm=0.02) for _ in range(2))
    samples = next(twin.minibatches(None))
    advantages = (samples.advantages - samples.advantages.mean()) / (samples.advantages.std() + 1e-8)
    parameters = twin.actor_parameters()
    optimizer = torch.optim.Adam(parameters, lr=3e-4, eps=1e-5)
    old = twin.policy.get_distribution(samples.observations).distribution
    old = Normal(old.mean.detach().clone(), old.stddev.detach().clone())
    for _ in range(5):
        new = twin.policy.get_distribution(samples.observations).distribution
        ratio = (new.log_prob(samples.actions) - old.log_prob(samples.actions)).sum(-1).exp()
        objective = (ratio * advantages).mean() - kl_divergence(new, old).sum(-1).mean() / 0.3
        optimizer.zero_grad()
        (-objective).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.02)
        optimizer.step()
    model.improve(0.3)
    for a, b in zip(model.actor_parameters(), parameters, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("num_envs", [1, 2])
def test_the_step_size_falls_from_one_to_one_over_the_number_of_rollouts(num_envs):
    model = make(DummyVecEnv([pendulum] * num_envs), rollout=20, epochs=1, step_size=2.0, anneal_lr=True)
    seen, improve = [], model.improve

    def watched(step_size):
        seen.append((step_size, model.policy.optimizer.param_groups[0]["lr"]))
        return improve(step_size)

    model.improve = watched
    model.learn(100 * num_envs)
    np.testing.assert_allclose([t for t, _ in seen], [2.0, 1.6, 1.2, 0.8, 0.4])
    np.testing.assert_allclose([lr for _, lr in seen], 3e-4 * np.array([1.0, 0.8, 0.6, 0.4, 0.2]))
    constant = make(rollout=20, epochs=1, anneal_step_size=False)
    constant.improve = lambda step_size: (
        seen.append((step_size, None)) or ([torch.zeros(())], torch.zeros(()))
    )
    constant.learn(60)
    assert [t for t, _ in seen[-3:]] == [1.0] * 3
    assert constant.policy.optimizer.param_groups[0]["lr"] == 3e-4


def test_values_are_fitted_with_a_limit_on_their_movement():
    """Where V is near and the target far, a move beyond the limit is punished as much as one to it."""
    model = after_rollout(rollout=64, batch_size=64, epochs=1)
    samples = next(model.minibatches(None))
    assert (samples.returns < samples.old_values - 1).all()
    at_limit = model.fit_values()[0]
    torch.testing.assert_close(at_limit, (samples.old_values - samples.returns).square().mean())
    with torch.no_grad():
        model.policy.value_net.bias -= 0.5  # beyond the limit of 0.2, towards the targets
    near = samples.old_values - 0.2
    torch.testing.assert_close(
        model.fit_values()[0], (near - samples.returns).square().mean(), rtol=1e-3, atol=0
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inner_steps": 0}, "inner_steps must be 1 or more, got 0"),
        ({"step_size": 0.0}, "step_size must be above 0"),
        ({"value_clip": -1.0}, "value_clip must be 0 or more"),
        ({"rollout": 1}, "rollout must be 2 or more"),
        ({"activation": "gelu"}, "activation must be tanh or relu"),
        ({"gae_lambda": 1.5}, "gae_lambda in"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        MDPOOnConfig(**settings)
