"""PPO through the estimator core is stable-baselines3's PPO, number for number."""

import gymnasium
import numpy as np
import pytest
import stable_baselines3 as sb3
import torch

from offrl.algos.ppo import PPO, PPOConfig
from offrl.errors import ConfigError

SAME = {"max_grad_norm": 1e9}


def pair(env_id, **more):
    """Ours and theirs, same weights, and a rollout of theirs in both."""
    settings = {
        "rollout": 96,
        "batch_size": 96,
        "epochs": 1,
        "hidden": 16,
        "entropy_coefficient": 0.01,
    } | SAME
    ours = PPO("MlpPolicy", gymnasium.make(env_id), seed=0, device="cpu", **settings | more)
    theirs = sb3.PPO(
        "MlpPolicy",
        gymnasium.make(env_id),
        seed=0,
        device="cpu",
        n_steps=96,
        batch_size=96,
        n_epochs=1,
        ent_coef=0.01,
        policy_kwargs={"net_arch": [16, 16]},
        **SAME,
    )
    for model in (ours, theirs):
        train, model.train = model.train, lambda: None
        model.set_random_seed(0)  # they draw from one stream
        model.learn(96)
        model.train = train
    for name in ("observations", "actions", "rewards", "advantages", "returns", "values", "log_probs"):
        np.testing.assert_allclose(
            getattr(ours.rollout_buffer, name), getattr(theirs.rollout_buffer, name), rtol=1e-5, atol=1e-5
        )
    return ours, theirs


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "CartPole-v1"])
def test_same_data_and_weights_give_the_same_gradients(env_id):
    """After a perturbation, so that ratios differ from 1 and a good part of the steps is clipped."""
    ours, theirs = pair(env_id)
    with torch.no_grad():
        for p in theirs.policy.parameters():
            p += 0.4 * torch.randn_like(p)
    ours.policy.load_state_dict(theirs.policy.state_dict())
    for name, value in vars(theirs.rollout_buffer).items():
        setattr(ours.rollout_buffer, name, value.copy() if isinstance(value, np.ndarray) else value)
    theirs.train()
    ours.train()
    assert 0.05 < theirs.logger.name_to_value["train/clip_fraction"] < 0.98
    for (name, a), b in zip(ours.policy.named_parameters(), theirs.policy.parameters(), strict=True):
        scale = float(b.grad.abs().max())
        assert scale > 0, name
        assert float((a.grad - b.grad).abs().max()) < 1e-6 * max(scale, 1.0), name
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    for name, key in (("policy_loss", "policy_gradient_loss"), ("value_loss",) * 2):
        ours_value, theirs_value = (m.logger.name_to_value for m in (ours, theirs))
        assert ours_value[f"train/{name}"] == pytest.approx(theirs_value[f"train/{key}"], rel=1e-4, abs=1e-6)


def test_whole_runs_agree():
    """Minibatches, several epochs, gradient clipping and time limits: as long as rounding has not grown."""
    arguments = {"seed": 3, "device": "cpu"}
    ours = PPO("MlpPolicy", gymnasium.make("Pendulum-v1"), rollout=128, **arguments).learn(256)
    theirs = sb3.PPO("MlpPolicy", gymnasium.make("Pendulum-v1"), n_steps=128, **arguments).learn(256)
    for a, b in zip(ours.policy.parameters(), theirs.policy.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5)


def test_reinforce_is_the_same_gradient_where_the_policy_is_still_the_old_one():
    """Ratios of 1: clipping does nothing, rho and log pi have one gradient."""
    grads = []
    for estimator in ("ppo", "reinforce"):
        model, _ = pair("Pendulum-v1", estimator=estimator)
        loss, _ = model.loss(next(model.minibatches(None)))
        found = torch.autograd.grad(loss, list(model.policy.parameters()))
        grads.append(torch.cat([g.flatten() for g in found]))
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)


def test_reinforce_goes_on_where_ppo_clips():
    model, _ = pair("Pendulum-v1", estimator="reinforce")
    with torch.no_grad():
        model.policy.log_std += 3.0
    samples = next(model.minibatches(None))
    loss, seen = model.loss(samples)
    (grad,) = torch.autograd.grad(loss, [model.policy.log_std])
    log_probs = model.policy.evaluate_actions(samples.observations, samples.actions)[1]
    white = (samples.advantages - samples.advantages.mean()) / (samples.advantages.std() + 1e-8)
    (plain,) = torch.autograd.grad(
        -(white * log_probs).mean() - 0.01 * model.policy.log_std.sum(), [model.policy.log_std]
    )
    torch.testing.assert_close(grad, plain)
    assert float(model.metrics(seen)["clip_fraction"]) == 0.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"clip": 0.0}, "clip must be above 0"), ({"estimator": "a2c"}, "estimator must be ppo or reinforce")],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        PPOConfig(**settings)
