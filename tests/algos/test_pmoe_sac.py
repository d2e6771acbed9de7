"""PMOE-SAC as it updates: SAC with one expert, isolation of the gate, targets of drawn experts."""

import dataclasses

import gymnasium
import pytest
import torch

pytest.importorskip("stable_baselines3")

from offrl.algos.pmoe_sac import ALGORITHM, PMOESAC, PMOESACConfig
from offrl.algos.sac import SAC
from offrl.errors import ConfigError
from offrl.estimators import mixture as mx
from offrl.nn.soft_actor_critic import values

GRADIENTS = pytest.mark.parametrize("gradient", mx.GRADIENTS)


def make(algorithm=PMOESAC, seed=0, **settings):
    defaults = {"learning_starts": 15, "hidden": 16, "batch_size": 32, "buffer_size": 500}
    return algorithm(
        "MlpPolicy",
        gymnasium.make("Pendulum-v1", max_episode_steps=20),
        seed=seed,
        device="cpu",
        **defaults | settings,
    )


def trained(algorithm=PMOESAC, **settings):
    model = make(algorithm, **settings).learn(60)
    return model, model.replay_buffer.batch(32)


def parameters(model):
    return {name: p.detach().clone() for name, p in model.policy.named_parameters()}


@GRADIENTS
def test_with_one_expert_every_gradient_is_sacs(gradient):
    """Same weights, same noise: losses and gradients."""
    theirs, batch = trained(algorithm=SAC)
    ours = make(experts=1, gradient=gradient)
    ours.policy.load_state_dict(theirs.policy.state_dict(), strict=False)
    found = []
    for model in (ours, theirs):
        params = list(model.policy.actor.parameters())[:6]
        torch.manual_seed(0)
        loss, logged = model.actor_loss(list(model.policy.actor.parameters()), batch, model.alpha())
        found.append([loss, logged["entropy"], logged["q_policy"], *torch.autograd.grad(loss, params)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_one_expert_is_sac_step_by_step():
    """Parameters and metrics after every one of 40 updates, what it plays included: bit for bit."""
    states = []
    for settings in ({"experts": 1}, {"algorithm": SAC}):
        model = make(**settings)  # now: it seeds the streams that all share
        seen, update = [], model.update

        def watched(batch, update=update, seen=seen, model=model):
            metrics = update(batch)
            seen.append((parameters(model), metrics))
            return metrics

        model.update = watched
        model.learn(55)
        states.append(seen)
    assert len(states[0]) == len(states[1]) == 40
    for (mine, logged), (other, expected) in zip(*states, strict=True):
        assert all(torch.equal(mine[name], value) for name, value in other.items())
        for name, value in expected.items():
            torch.testing.assert_close(logged[name], value)
        assert not mine["actor.gate.0"].any()


def split(model, batch, weight=1.0):
    """Gradients of the actor's loss for net and gate."""
    params = list(model.policy.actor.parameters())
    torch.manual_seed(0)
    loss, _ = model.actor_loss(params, batch, model.alpha())
    grads = torch.autograd.grad(loss, params)
    return grads[:6], grads[6:]


def test_gate_and_experts_learn_apart():
    """The gate's gradient is that of its loss alone, exactly; trunk and experts do not feel the gate's weight."""
    model, batch = trained()
    once = split(model, batch)
    model.settings = PMOESACConfig(gate_weight=2.0)
    twice = split(model, batch)
    assert all(torch.equal(a, b) for a, b in zip(once[0], twice[0], strict=True))
    for a, b in zip(once[1], twice[1], strict=True):
        torch.testing.assert_close(2 * a, b)
        assert a.abs().max() > 0


def test_the_loss_recomputed_by_hand():
    """Winner by the smaller critic, its own density, its cost; the gate against the one-hot, mean over experts."""
    model, batch = trained(experts=3)
    params, alpha = list(model.policy.actor.parameters()), model.alpha()
    torch.manual_seed(0)
    loss, logged = model.actor_loss(params, batch, alpha)
    torch.manual_seed(0)
    m = mx.Mixture(*(t.detach() for t in model.policy.actor.mixture(params, batch.observations)))
    noise = torch.randn_like(m.mean)
    total = gate = entropy = 0.0
    for row in range(32):
        q, log_p = [], []
        for i in range(3):
            u = m.mean[0, row, i] + m.log_std[0, row, i].exp() * noise[0, row, i]
            both = values(
                model.critic_optimizer.constant, batch.observations[:, row : row + 1], u.tanh()[None, None]
            )
            q.append(float(both.min()))
            normal = torch.distributions.Normal(m.mean[0, row, i], m.log_std[0, row, i].exp())
            log_p.append(float((normal.log_prob(u) - (1 - u.tanh() ** 2).log()).sum()))
        j = max(range(3), key=q.__getitem__)
        total += float(alpha) * log_p[j] - q[j]
        entropy -= log_p[j]
        gate += sum((float(m.weights[0, row, i]) - (i == j)) ** 2 for i in range(3)) / 3
    assert loss.item() == pytest.approx((total + gate) / 32, rel=1e-3)
    assert logged["entropy"].item() == pytest.approx(entropy / 32, rel=1e-3)
    assert logged["gate_loss"].item() == pytest.approx(gate / 32, rel=1e-3)


def test_targets_draw_an_expert_and_stop_at_terminations():
    model, batch = trained()
    alpha = model.alpha()
    torch.manual_seed(0)
    y = model.target(batch, alpha)
    torch.manual_seed(0)
    actions, log_probs = model.policy.actor.sample(
        list(model.policy.actor.parameters()), batch.next_observations
    )
    q = values(list(model.policy.critic_target), batch.next_observations, actions).amin(1)
    torch.testing.assert_close(y, (batch.rewards + 0.99 * (q - alpha * log_probs)).detach())
    ended = dataclasses.replace(batch, terminated=torch.ones_like(batch.terminated))
    torch.testing.assert_close(model.target(ended, alpha), batch.rewards)


@GRADIENTS
def test_the_trunk_learns_from_the_gate_where_the_gradient_is_that_of_the_objective(gradient, tmp_path):
    """Its gradient changes with a detached gate, except for PMOE's own; a saved model goes on so."""
    made = make(gradient=gradient)
    made.save(tmp_path / "model.zip")
    for model in (made, PMOESAC.load(tmp_path / "model.zip", device="cpu")):
        _, batch = trained()
        with torch.no_grad():
            model.policy.actor.gate[0].normal_(generator=torch.Generator().manual_seed(0))
        as_set, _ = split(model, batch)
        model.policy.actor.detach = True
        apart, _ = split(model, batch)
        changed = [not torch.equal(a, b) for a, b in zip(as_set, apart, strict=True)]
        assert changed == [gradient != "frequency"] * 4 + [False] * 2


@GRADIENTS
def test_every_gradient_moves_gate_and_experts(gradient):
    model = make(gradient=gradient)
    before = parameters(model)
    model.learn(60)
    after = parameters(model)
    assert all(not torch.equal(before[name], after[name]) for name in before)
    assert model.policy.whole == (gradient != "frequency")


def test_what_is_logged():
    model, batch = trained()
    found = model.update(batch)
    assert set(found) == set(ALGORITHM.metrics)
    assert 1.0 <= found["active_experts"].item() <= 4.0
    assert 0.0 <= found["gate_entropy"].item() <= 1.3863
    assert 0.0 < found["expert_distance"].item() < 2.0


def test_all_learners_and_the_mixtures_entropy_are_other_losses():
    losses = []
    for settings in ({}, {"learners": "all"}, {"mixture_entropy": True}):
        model, batch = trained()
        model.settings = PMOESACConfig(**settings)
        torch.manual_seed(0)
        losses.append(model.actor_loss(list(model.policy.actor.parameters()), batch, model.alpha())[0].item())
    assert len(set(losses)) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"experts": 0}, "experts must be 1 or more, got 0"),
        ({"gradient": "exact"}, "gradient must be one of frequency, marginal, score, gumbel, got 'exact'"),
        ({"learners": "some"}, "learners must be winner or all"),
        ({"gate_weight": 0.0}, "gate_weight must be above 0"),
        ({"gradient": "score", "learners": "all"}, "learners belongs to gradient frequency, not to score"),
        ({"gradient": "marginal", "mixture_entropy": True}, "mixture_entropy belongs to gradient frequency"),
        ({"softmax_temperature": 0.5}, "softmax_temperature belongs to gradient gumbel, not to frequency"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        PMOESACConfig(**settings)
