"""Our SAC is stable-baselines3's, update for update."""

import gymnasium
import pytest
import stable_baselines3 as sb3
import torch
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch.distributions import Normal

from offrl.algos.sac import SAC
from offrl.data.batch import Batch


def into(layers, params, index):
    """Weights of a stacked network into torch's layers."""
    from offrl.nn.mlp import unstack

    for layer, (weight, bias) in zip(layers, unstack(list(params), index), strict=True):
        layer.weight.data.copy_(weight)
        layer.bias.data.copy_(bias)


def linear(module):
    return [m for m in module.modules() if isinstance(m, torch.nn.Linear)]


def copy_weights(ours, theirs):
    """From our policy into theirs."""
    actor, heads = theirs.actor, torch.nn.Linear(8, 2)
    into([*linear(actor.latent_pi), heads], ours.policy.actor.net, 0)
    for head, rows in ((actor.mu, slice(0, 1)), (actor.log_std, slice(1, 2))):
        head.weight.data.copy_(heads.weight.data[rows])
        head.bias.data.copy_(heads.bias.data[rows])
    for critic, net in (
        (theirs.critic, ours.policy.critic),
        (theirs.critic_target, ours.policy.critic_target),
    ):
        for k in (0, 1):
            into(linear(critic.q_networks[k]), net, k)


def test_updates_are_those_of_stable_baselines3(monkeypatch):
    """Four updates with the same batches and noise: weights, targets and temperature agree."""
    env = gymnasium.make("Pendulum-v1")
    ours = SAC("MlpPolicy", env, seed=0, device="cpu", hidden=8, lr=0.01, tau=0.1)
    theirs = sb3.SAC(
        "MlpPolicy",
        env,
        seed=0,
        device="cpu",
        learning_rate=0.01,
        tau=0.1,
        policy_kwargs={"net_arch": [8, 8]},
    )
    theirs._setup_learn(1)
    copy_weights(ours, theirs)
    g = torch.Generator().manual_seed(0)
    fixed = torch.randn(32, 1, generator=g)
    monkeypatch.setattr(torch, "randn_like", lambda x: fixed.view(x.shape))
    monkeypatch.setattr(Normal, "rsample", lambda self, shape=None: self.loc + self.scale * fixed)
    for _ in range(4):
        s, following = torch.randn(2, 32, 3, generator=g)
        a, (r, ended) = torch.randn(32, 1, generator=g).tanh(), torch.randn(2, 32, generator=g)
        ended = (ended > 0.5).float()
        rows = torch.zeros(1, 32, dtype=torch.int64)
        ours.update(Batch(s[None], a[None], r[None], following[None], ended[None], rows))
        data = ReplayBufferSamples(s, a, following, ended[:, None], r[:, None])
        monkeypatch.setattr(theirs.replay_buffer, "sample", lambda size, env=None, data=data: data)
        theirs.train(1, 32)
    other = sb3.SAC("MlpPolicy", env, seed=1, device="cpu", policy_kwargs={"net_arch": [8, 8]})
    copy_weights(ours, other)
    for (name, x), y in zip(other.policy.named_parameters(), theirs.policy.parameters(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-4, msg=name)
    torch.testing.assert_close(ours.policy.log_alpha, theirs.log_ent_coef, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_it_swings_the_pendulum_up():
    """The sheet's smoke test: better than -250 within 10 000 steps."""
    model = SAC("MlpPolicy", "Pendulum-v1", seed=0, device="cpu", learning_starts=100, lr=1e-3).learn(8000)
    returns = [e["r"] for e in list(model.ep_info_buffer)[-10:]]
    assert sum(returns) / len(returns) > -250
