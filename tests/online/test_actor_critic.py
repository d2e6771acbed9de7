"""The short way through stable-baselines3's actor-critic gives its numbers; rollouts are judged at once."""

import copy
from functools import partial

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from offrl.algos.pmoe_ppo import PMOEPPO
from offrl.algos.ppo import PPO
from offrl.estimators import mixture as mx
from offrl.online.actor_critic import FastActorCriticPolicy

SEEN = gymnasium.spaces.Box(-10, 10, (5,))
BOX = gymnasium.spaces.Box(-2, 2, (3,))
KINDS = (FastActorCriticPolicy, ActorCriticPolicy)


def pair(seen=SEEN, acts=BOX, **settings):
    """Ours and theirs with the same weights, none of them zero."""
    found = []
    for kind in KINDS:
        torch.manual_seed(0)
        policy = kind(seen, acts, lambda _: 1e-3, **settings)
        with torch.no_grad():
            for p in policy.parameters():
                p += 0.3 * torch.randn_like(p)
        found.append(policy)
    return found


def answers(policy, x, actions):
    """All that a method asks of a policy."""
    torch.manual_seed(1)
    drawn = policy(x)
    return [
        *drawn,
        *policy(x, deterministic=True),
        *policy.evaluate_actions(x, actions),
        policy.predict_values(x),
    ]


@pytest.mark.parametrize(
    "settings",
    [
        {"net_arch": [8, 8]},
        {"net_arch": {"pi": [8], "vf": [4, 6]}, "activation_fn": nn.ReLU},
        {"net_arch": []},
        {"log_std_init": -1.5},
    ],
    ids=str,
)
def test_the_short_way_gives_the_same_numbers(settings):
    ours, theirs = pair(**settings)
    x, actions = 3 * torch.randn(7, 5, dtype=torch.float64), torch.randn(7, 3)
    assert ours.short
    for a, b in zip(answers(ours, x, actions), answers(theirs, x, actions), strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_and_the_same_gradients():
    x, actions, weights = torch.randn(7, 5), torch.randn(7, 3), torch.randn(3, 7)
    found = []
    for policy in pair():
        values, log_probs, entropy = policy.evaluate_actions(x, actions)
        loss = (torch.stack((values.flatten(), log_probs, entropy)) * weights).sum()
        found.append(torch.autograd.grad(loss, list(policy.parameters())))
    for a, b in zip(*found, strict=True):
        assert b.abs().sum() > 0
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("seen", "acts", "settings"),
    [
        (SEEN, gymnasium.spaces.Discrete(3), {}),
        (SEEN, BOX, {"activation_fn": nn.ELU}),
        (gymnasium.spaces.Box(-1, 1, (5, 1)), BOX, {}),
        (gymnasium.spaces.MultiBinary(5), BOX, {}),
    ],
    ids=["discrete", "elu", "two axes", "bits"],
)
def test_everything_else_goes_their_way(seen, acts, settings):
    ours, theirs = pair(seen, acts, **settings)
    assert not ours.short
    x = torch.as_tensor(np.stack([seen.sample() for _ in range(7)]))
    actions = torch.as_tensor(np.stack([acts.sample() for _ in range(7)]))
    for a, b in zip(answers(ours, x, actions), answers(theirs, x, actions), strict=True):
        torch.testing.assert_close(a, b)


def test_a_copy_has_its_own_layers():
    ours, _ = pair()
    other, x = copy.deepcopy(ours), torch.randn(4, 5)
    before = ours.predict_values(x)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    assert torch.equal(ours.predict_values(x), before)
    assert torch.equal(other.predict_values(x), torch.zeros(4, 1))


def test_acting_alone_says_nothing_of_values():
    ours, _ = pair()
    x, found = torch.randn(4, 5), []
    for alone in (False, True):
        ours.acting_only = alone
        torch.manual_seed(0)
        found.append(ours(x))
    assert torch.equal(found[0][0], found[1][0])
    assert [y.shape for y in found[0]] == [y.shape for y in found[1]]
    assert all(y.isnan().all() for y in found[1][1:])


def test_adam_is_the_fused_one_unless_told_otherwise():
    kinds = [
        FastActorCriticPolicy(SEEN, BOX, lambda _: 1e-3, **more) for more in ({}, {"optimizer_kwargs": {}})
    ]
    assert [k.optimizer.defaults["fused"] for k in kinds] == [True, None]
    assert [k.optimizer.defaults["eps"] for k in kinds] == [1e-5, 1e-8]
    other = FastActorCriticPolicy(SEEN, BOX, lambda _: 1e-3, optimizer_class=torch.optim.SGD)
    assert type(other.optimizer) is torch.optim.SGD


def collected(kind, *policy, **settings):
    """A model with a rollout of two environments, episodes cut after 7 steps."""
    env = DummyVecEnv([partial(gymnasium.make, "Pendulum-v1", max_episode_steps=7)] * 2)
    model = kind(*policy, env=env, seed=0, device="cpu", rollout=20, hidden=8, **settings)
    model.train = lambda: None
    return model.learn(40)


@pytest.mark.parametrize("kind", [PPO, PMOEPPO])
def test_a_rollout_is_judged_as_its_steps_were(kind):
    model = collected(kind)
    buffer, policy = model.rollout_buffer, model.policy
    for step in range(20):
        for env in range(2):
            x, action = (torch.from_numpy(a[step, env])[None] for a in (buffer.observations, buffer.actions))
            with torch.no_grad():
                value, log_prob, _ = policy.evaluate_actions(x, action)
            assert buffer.values[step, env] == pytest.approx(float(value), rel=1e-4, abs=1e-5)
            assert buffer.log_probs[step, env] == pytest.approx(float(log_prob), rel=1e-4, abs=1e-5)
    assert np.isfinite(buffer.advantages).all()
    assert not policy.acting_only
    assert buffer.judge is None


def test_policies_of_stable_baselines3_are_judged_step_by_step():
    ours, theirs = collected(PPO), collected(PPO, ActorCriticPolicy)
    assert type(theirs.policy) is ActorCriticPolicy
    for name in ("actions", "values", "log_probs", "advantages", "returns"):
        a, b = (getattr(m.rollout_buffer, name) for m in (ours, theirs))
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=name)


class Fails(BaseCallback):
    def _on_step(self):
        raise KeyboardInterrupt


def test_a_rollout_that_is_interrupted_leaves_a_whole_policy():
    model = collected(PPO)
    with pytest.raises(KeyboardInterrupt):
        model.learn(40, callback=Fails())
    assert not model.policy.acting_only
    assert model.rollout_buffer.judge is None


def test_a_step_cuts_long_gradients_and_leaves_others_alone():
    model = collected(PPO)
    policy = model.policy
    learned = list(policy.mlp_extractor.policy_net.parameters())
    for p in policy.parameters():
        p.grad = torch.ones_like(p)
    before = {n: p.detach().clone() for n, p in policy.named_parameters()}
    x = torch.randn(6, 3)

    def loss():
        return 1e3 * policy.mlp_extractor.policy_net(x).square().sum()

    expected = torch.autograd.grad(loss(), learned)
    length = torch.cat([g.flatten() for g in expected]).norm()
    model.step(loss(), learned, 0.5)
    assert length > 0.5
    for p, g in zip(learned, expected, strict=True):
        torch.testing.assert_close(p.grad, g * 0.5 / length, rtol=1e-4, atol=1e-7)
    moved = {n for n, p in policy.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n in before if n.startswith("mlp_extractor.policy_net")}


def test_short_gradients_are_left_as_they_are():
    model = collected(PPO)
    (bias,) = [model.policy.value_net.bias]
    for limit in (2.0, None):
        model.step((0.1 * bias).sum(), [bias], limit)
        torch.testing.assert_close(bias.grad, torch.tensor([0.1]))


def test_metrics_of_an_epoch_are_those_of_all_its_steps():
    model = collected(PPO)
    with torch.no_grad():
        model.policy.log_std += 0.4
    parts = [model.loss(samples)[1] for samples in model.minibatches(10)]
    assert len(parts) == 4
    whole = model.metrics({name: torch.cat([p[name] for p in parts]) for name in parts[0]})
    each = [model.metrics(part) for part in parts]
    assert 0 < whole["clip_fraction"] < 1
    for name, value in whole.items():
        torch.testing.assert_close(value, torch.stack([e[name] for e in each]).mean(), msg=name)


def test_gumbel_numbers_draw_experts_by_their_weights():
    torch.manual_seed(0)
    weights = torch.tensor([0.6, 0.3, 0.1])
    m = mx.mixture(weights.log().expand(20_000, 3), torch.zeros(20_000, 3, 1), torch.zeros(3, 1))
    numbers = mx.gumbel_like(m.log_weights)
    assert float(numbers.mean()) == pytest.approx(0.5772, abs=0.02)
    drawn = torch.bincount(mx.draw_index(m, numbers), minlength=3) / 20_000
    torch.testing.assert_close(drawn, weights, rtol=0, atol=0.015)


def test_without_orthogonal_weights_they_are_those_of_torch():
    """Rows of an orthogonal layer have one length; those of torch's have not, for actor, critic and mixture."""
    for kind in (PPO, PMOEPPO):
        for orthogonal in (True, False):
            policy = collected(kind, orthogonal=orthogonal).policy
            lengths = torch.stack([policy.mlp_extractor.policy_net[2].weight.norm(dim=1)])
            assert bool(torch.allclose(lengths, torch.full_like(lengths, 2**0.5), atol=1e-4)) == orthogonal
            assert (policy.action_net.weight.abs().max() < 0.02) == orthogonal


@pytest.mark.parametrize("kind", [PPO, PMOEPPO])
def test_a_value_function_may_go_untrained(kind):
    model = collected(kind, value_coefficient=0.0)
    before = [p.detach().clone() for p in model.policy.value_net.parameters()]
    loss, _ = model.loss(next(model.minibatches(None)))
    model.step(loss, list(model.policy.parameters()), 0.5)
    assert all(torch.equal(a, b) for a, b in zip(before, model.policy.value_net.parameters(), strict=True))
