"""Off-policy MDPO: its step in closed form, its limit SAC, when the old policy changes, and every update recomputed."""

import copy

import gymnasium
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("stable_baselines3")

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from offrl.algos.mdpo_off import MDPOOff, MDPOOffConfig
from offrl.data.batch import Batch
from offrl.errors import ConfigError
from offrl.estimators.pathwise import mirror_descent_loss, tsallis_log
from offrl.nn.soft_actor_critic import values

P, Q = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([1.0, -0.5, 0.2]).double()
SMALL = {"hidden": 8, "batch_size": 16, "learning_starts": 20, "buffer_size": 1000}


def make(env=None, **settings):
    env = env or gymnasium.make("Pendulum-v1", max_episode_steps=20)
    return MDPOOff("MlpPolicy", env, seed=0, device="cpu", **SMALL | settings)


def batch(size=16, act_dim=1, seed=0):
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(1, size, *shape, generator=g)

    actions, ended = normal(act_dim).tanh(), (normal() > 0.5).float()
    return Batch(normal(3), actions, normal(), normal(3), ended, torch.zeros(1, size, dtype=torch.int64))


def different(model):
    """The same model with an old actor that is another one."""
    model.policy.old_actor.load_state_dict(make(hidden=model.settings.hidden).policy.make_actor(
        torch.Generator().manual_seed(9)
    ).state_dict())  # fmt: skip
    return model


def minimize(kl, entropy, q):
    """Over p = w^2 / sum w^2, which can reach exact zeros: sum_a p (loss of one action)."""
    w = P.sqrt().clone().requires_grad_()
    optimizer = torch.optim.Adam([w], 0.02)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, 1500)
    for _ in range(1500):
        p = w.square() / w.square().sum()
        logs = [tsallis_log(x.clamp(min=1e-30).log()[:, None], q) for x in (p, P)]
        each = mirror_descent_loss(*(x[:, None] for x in (*logs, Q)), kl=kl, entropy=entropy, q=q)
        (w.grad,) = torch.autograd.grad((p * each).sum(), [w])
        optimizer.step()
        schedule.step()
    return p.detach()


@pytest.mark.parametrize(
    ("kl", "entropy", "q", "exact"),
    [
        (1.0, 0.0, 1.0, [0.761261, 0.101916, 0.136823]),
        (1.0, 0.0, 1.0001, [0.761261, 0.101916, 0.136823]),
        (1.0, 0.2, 1.0, [0.733052, 0.108696, 0.158251]),
        (1.0, 0.0, 2.0, [0.85, 0.0, 0.15]),
        (1.0, 0.0, 1.4, [0.794370, 0.069104, 0.136526]),
    ],
)
def test_the_step_has_its_closed_form(kl, entropy, q, exact):
    """KL: pi_k^(1 - lambda/c) exp(Q/c); q = 2: the projection of pi_k + Q/2 onto the simplex, with a true zero."""
    torch.testing.assert_close(minimize(kl, entropy, q), torch.tensor(exact).double(), atol=2e-3, rtol=0)


def test_with_lambda_equal_to_c_the_old_policy_has_no_say():
    p = Q.div(0.5).softmax(-1)
    torch.testing.assert_close(minimize(0.5, 0.5, 1.0), p, atol=1e-3, rtol=0)


def test_with_lambda_equal_to_c_the_actor_gradient_is_that_of_sac():
    """The same noise; one critic, no regularisation. Difference 0 however far the old actor is."""
    model = different(make(kl_coefficient=0.3, entropy_coefficient=0.3, regularization=0.0))
    b, noise = batch(), torch.randn(1, 16, 1)
    params = model.actor_optimizer.params
    loss, _ = model.actor_loss(params, b.observations, noise)
    actions, log_probs = model.policy.actor.sample(params, b.observations, noise)
    q = values(model.critic_optimizer.constant, b.observations, actions)[:, 0]
    sac = (0.3 * log_probs - q).mean()
    for ours, theirs in zip(torch.autograd.grad(loss, params), torch.autograd.grad(sac, params), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_the_divergence_has_no_gradient_at_the_old_policy_and_one_away_from_it():
    """KL is 0 and at its least there; the mean over much noise of the one-sample gradient shows it."""
    found = []
    for away in (False, True):
        grads = []
        for kl in (1.0, 1e-6):
            model = make(kl_coefficient=kl, entropy_coefficient=0.0, regularization=0.0)
            if away:
                different(model)
            params, noise = model.actor_optimizer.params, torch.randn(1, 50_000, 1)
            observations = torch.linspace(-1, 1, 3).expand(1, 50_000, 3)
            loss, metrics = model.actor_loss(params, observations, noise)
            grads.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, params)]))
        found.append((float((grads[0] - grads[1]).norm()), metrics["kl"].item()))
    assert found[0][0] < 0.02
    assert abs(found[0][1]) < 1e-5
    assert found[1][0] > 0.1
    assert found[1][1] > 0.01


def network(params, x, index=0):
    """A stacked network written with torch's own layers."""
    for k in range(0, len(params) - 2, 2):
        x = F.relu(x @ params[k][index] + params[k + 1][index])
    return x @ params[-2][index].T + params[-1][index].T


def distribution(actor, observations):
    mean, log_std = network(list(actor), observations).chunk(2, dim=-1)
    normal = Independent(Normal(mean, log_std.clamp(-20, 2).exp()), 1)
    return mean, log_std, TransformedDistribution(normal, [TanhTransform(cache_size=1)])


@pytest.mark.parametrize("act_dim", [1, 2])
def test_updates_are_those_of_the_written_losses(act_dim, monkeypatch):
    """Three updates with torch's layers, distributions and optimizers, from the formulas; all networks agree."""
    space = gymnasium.spaces.Box(-1, 1, (act_dim,))
    env = gymnasium.make("Pendulum-v1")
    env.unwrapped.action_space = space
    model = different_for(env, act_dim)
    fixed = torch.randn(1, 16, act_dim, generator=torch.Generator().manual_seed(5))
    monkeypatch.setattr(torch, "randn_like", lambda x: fixed)
    p = copy.deepcopy(
        {
            k: [x.detach() for x in v.parameters()]
            for k, v in model.policy.named_children()
            if k != "features_extractor"
        }
    )
    for k in ("actor", "critic", "value"):
        p[k] = [x.requires_grad_() for x in p[k]]
    optimizers = [torch.optim.Adam(p[k], lr=0.01) for k in ("actor", "critic", "value")]
    c, lam = 0.7, 0.2
    for step in range(3):
        b = batch(act_dim=act_dim, seed=step)
        model.update(b)
        s, a, r, following, ended = (
            x[0] for x in (b.observations, b.actions, b.rewards, b.next_observations, b.terminated)
        )
        mean, log_std, pi = distribution(p["actor"], s)
        drawn = (mean + log_std.clamp(-20, 2).exp() * fixed[0]).tanh()
        _, _, old = distribution(p["old_actor"], s)
        log_pi, log_old = pi.log_prob(drawn), old.log_prob(drawn)
        q1, q2 = (network(p["critic"], torch.cat([s, drawn], 1), k)[:, 0] for k in (0, 1))
        actor_loss = (c * log_pi + (lam - c) * log_old - q1).mean()
        actor_loss = actor_loss + 0.3 * (mean.square().mean() + log_std.clamp(-20, 2).square().mean())
        y_v = (torch.minimum(q1, q2) - lam * log_pi).detach()
        y_q = (r + 0.99 * (1 - ended) * network(p["value_target"], following)[:, 0]).detach()
        critic_loss = sum(
            0.5 * F.mse_loss(network(p["critic"], torch.cat([s, a], 1), k)[:, 0], y_q) for k in (0, 1)
        )
        value_loss = 0.5 * F.mse_loss(network(p["value"], s)[:, 0], y_v)
        for optimizer, loss in zip(optimizers, (actor_loss, critic_loss, value_loss), strict=True):
            parameters = optimizer.param_groups[0]["params"]
            for x, g in zip(
                parameters, torch.autograd.grad(loss, parameters, retain_graph=True), strict=True
            ):
                x.grad = g
        for optimizer in optimizers:
            optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(p["value_target"], p["value"], strict=True):
                slow += 0.05 * (fast - slow)
    for name, found in p.items():
        for ours, theirs in zip(getattr(model.policy, name).parameters(), found, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4, msg=name)


def different_for(env, act_dim):
    model = make(env, kl_coefficient=0.7, lr=0.01, tau=0.05, regularization=0.3)
    assert model.policy.act_dim == act_dim
    old = model.policy.make_actor(torch.Generator().manual_seed(9))
    model.policy.old_actor.load_state_dict(old.state_dict())
    return model


def test_with_q_above_one_logs_are_q_logs():
    """Actor's loss and value target from the densities of torch's distributions, dimension by dimension."""
    model = different(make(tsallis_q=1.5, kl_coefficient=0.7, regularization=0.0))
    b, noise = batch(), torch.randn(1, 16, 1)
    loss, found = model.actor_loss(model.actor_optimizer.params, b.observations, noise)
    mean, log_std, pi = distribution(list(model.policy.actor.net), b.observations[0])
    drawn = (mean + log_std.exp() * noise[0]).tanh()
    _, _, old = distribution(list(model.policy.old_actor.net), b.observations[0])
    q_log, old_q_log = (2 * (d.log_prob(drawn).exp().sqrt() - 1) for d in (pi, old))
    q = values(model.critic_optimizer.constant, b.observations, drawn[None])[0]
    torch.testing.assert_close(
        loss, (0.7 * q_log + 1.5 * (0.2 - 0.7) * old_q_log - q[0]).mean(), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(found["value_target"][0], q.amin(0) - 0.2 * q_log, rtol=1e-4, atol=1e-5)


class Watch(BaseCallback):
    """When the old actor changed, and whether it became the actor."""

    def _on_training_start(self):
        self.changes, self.last = [], self.weights("old_actor")

    def weights(self, name):
        return torch.cat(
            [p.flatten().clone() for p in getattr(self.model.policy, name).parameters()]
        ).detach()

    def _on_step(self):
        now = self.weights("old_actor")
        if not torch.equal(now, self.last):
            self.changes.append(
                self.num_timesteps - self.training_env.num_envs
            )  # it was after the step before
        self.last = now
        return True


@pytest.mark.parametrize(("num_envs", "times"), [(1, [50, 75, 100]), (2, [50, 76, 100])])
def test_the_old_policy_changes_at_multiples_of_m_steps_only(num_envs, times):
    """Not during the random steps either, since the actor has not moved then; several environments cross multiples."""
    env = make_vec_env("Pendulum-v1", n_envs=num_envs)
    watch = Watch()
    model = make(env, refresh_every=25, learning_starts=30).learn(110, callback=watch)
    assert watch.changes == times
    assert model._n_updates == 110 - 30
    assert not torch.equal(watch.weights("actor"), watch.weights("old_actor"))


def test_refreshing_takes_the_actor_of_now_and_only_copies():
    model = make(learning_starts=0)
    model.learn(30)
    model.num_timesteps = 1000
    model._on_step()
    for new, old in zip(model.policy.actor.parameters(), model.policy.old_actor.parameters(), strict=True):
        assert torch.equal(new, old)
        assert not old.requires_grad
        assert new.data_ptr() != old.data_ptr()


def test_the_mean_action_is_played_on_request():
    """As the authors' code does; the default is a sample."""
    observations = torch.randn(5, 3)
    model = make(deterministic_rollout=True)
    mean = model.policy.actor.act(observations, deterministic=True)
    assert torch.equal(model.explore(observations), mean)
    assert not torch.equal(make().explore(observations), mean)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kl_coefficient": 0.0}, "kl_coefficient must be above 0"),
        ({"tsallis_q": 0.5}, r"tsallis_q must be in \[1, 2\], got 0.5"),
        ({"tsallis_mode": "sum"}, "tsallis_mode must be per_dim or joint"),
        ({"refresh_every": 0}, "refresh_every must be 1 or more"),
        ({"entropy_coefficient": -0.1}, "must be 0 or more"),
        ({"tau": 0.0}, r"tau must be in \(0, 1\]"),
        ({"batch_size": 0}, "batch_size must be 1 or more"),
        ({"lr": 0.0}, "lr must be above 0"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        MDPOOffConfig(**settings)
