"""PMOE-PPO as it updates: PPO with one expert, ratios of the mixture, Q and the gate."""

import gymnasium
import pytest
import torch

pytest.importorskip("stable_baselines3")

from offrl.algos.pmoe_ppo import ALGORITHM, PMOEPPO, PMOEPPOConfig
from offrl.algos.ppo import PPO
from offrl.errors import ConfigError


def make(algorithm=PMOEPPO, env=None, seed=0, **settings):
    defaults = {"rollout": 64, "batch_size": 16, "epochs": 2, "hidden": 8}
    env = env or gymnasium.make("Pendulum-v1", max_episode_steps=20)
    return algorithm("MlpPolicy", env, seed=seed, device="cpu", **defaults | settings)


def collected(**settings):
    """A model with a full rollout, not yet learned from; and one minibatch."""
    model = make(**settings)
    model.train = lambda: None
    model.learn(64)
    return model, next(iter(model.minibatches(64)))


def test_one_expert_is_ppo_step_by_step():
    """Parameters after every step of Adam, over two rollouts."""
    seen = []
    for settings in ({"experts": 1}, {"algorithm": PPO}):
        model = make(**settings)  # now: it seeds the streams that all share
        states, step = [], model.step

        def watched(*args, step=step, states=states, model=model):
            step(*args)
            states.append({n: p.detach().flatten().clone() for n, p in model.policy.named_parameters()})

        model.step = watched
        model.learn(128)
        seen.append(states)
    assert len(seen[0]) == len(seen[1]) == 16
    for ours, theirs in zip(*seen, strict=True):
        assert set(ours) == set(theirs)
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-6)


class Far(gymnasium.Env):
    """Six action dimensions, observations around 50."""

    observation_space = gymnasium.spaces.Box(-1e3, 1e3, (4,))
    action_space = gymnasium.spaces.Box(-1, 1, (6,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.normal(50, 20, 4).astype("float32"), {}

    def step(self, action):
        return self.np_random.normal(50, 20, 4).astype("float32"), float(-action.sum()), False, False, {}


def test_before_the_first_step_every_ratio_is_one():
    """Also where actions are far out and the product of densities underflows in single precision."""
    model = make(env=Far(), log_std=3.0)
    with torch.no_grad():
        model.policy.gate.weight.normal_(0, 0.1)
        model.policy.action_net.weight.normal_(0, 30)
    model.train = lambda: None
    model.learn(64)
    samples = next(iter(model.minibatches(64)))
    assert samples.actions.abs().max() > 40
    _, log_probs, _ = model.policy.evaluate_actions(samples.observations, samples.actions)
    torch.testing.assert_close((log_probs - samples.old_log_prob).exp(), torch.ones(64), rtol=0, atol=1e-4)


def test_the_additional_losses_by_hand():
    """Q on the actions taken against the returns; the gate against the best of fresh draws."""
    model, samples = collected(experts=3)
    m = model.policy.get_distribution(samples.observations).mixture
    torch.manual_seed(0)
    q_loss, gate_loss = model.gate_losses(m, samples)
    torch.manual_seed(0)
    draws = m.mean + m.log_std.exp() * torch.randn_like(m.mean)
    inputs = torch.cat((samples.observations, samples.actions), 1)
    torch.testing.assert_close(q_loss, (model.policy.q_net(inputs)[:, 0] - samples.returns).square().mean())
    judged = torch.stack(
        [model.policy.q_net(torch.cat((samples.observations, draws[:, i]), 1))[:, 0] for i in range(3)], 1
    )
    best = torch.nn.functional.one_hot(judged.argmax(1), 3)
    torch.testing.assert_close(gate_loss, (m.weights - best).square().mean())


def test_who_learns_from_what():
    """Q's loss moves Q alone, the gate's the gate alone; the clipped ratio moves the gate too, and not Q."""
    model, samples = collected(experts=3, gate_weight=0.0)
    with torch.no_grad():
        model.policy.gate.weight.normal_()
    named = dict(model.policy.named_parameters())

    def moved(loss):
        grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True, retain_graph=True)
        return {
            n.split(".")[0] for n, g in zip(named, grads, strict=True) if g is not None and g.abs().sum() > 0
        }

    m = model.policy.get_distribution(samples.observations).mixture
    q_loss, gate_loss = model.gate_losses(m, samples)
    assert moved(q_loss) == {"q_net"}
    assert moved(gate_loss) == {"gate"}
    loss, _ = super(PMOEPPO, model).loss(samples)
    assert moved(loss) == {"gate", "action_net", "log_std", "mlp_extractor", "value_net"}
    whole, _ = model.loss(samples)  # where the gate's own loss weighs nothing, and the ratio all the same
    assert moved(whole) == {"gate", "action_net", "log_std", "mlp_extractor", "value_net", "q_net"}


def test_the_loss_is_the_sum_of_its_parts():
    model, samples = collected(gate_weight=3.0)
    torch.manual_seed(0)
    loss, seen = model.loss(samples)
    logged = model.metrics(seen)
    base, _ = super(PMOEPPO, model).loss(samples)
    torch.testing.assert_close(loss, base + logged["q_loss"] + 3.0 * logged["gate_loss"])
    assert set(logged) | {"explained_variance"} >= set(ALGORITHM.metrics)
    assert logged["active_experts"].item() == pytest.approx(5.0)
    assert logged["gate_entropy"].item() == pytest.approx(torch.tensor(5.0).log().item())


def test_experts_of_different_states_are_all_active():
    """Sure in every state, of one expert in half of them and of another elsewhere: two are active."""
    model, samples = collected(experts=3)
    _, seen = model.loss(samples)
    sure = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]).repeat(32, 1)
    logged = model.metrics(seen | {"log_weights": sure.log()})
    assert logged["gate_entropy"].item() == pytest.approx(0.0)
    assert logged["active_experts"].item() == pytest.approx(2.0)
    apart = torch.tensor([[0.0], [3.0], [0.0]]).expand(64, 3, 1)  # two of three pairs are 3 apart
    assert model.metrics(seen | {"means": apart})["expert_distance"].item() == pytest.approx(
        (2 / 3 * 9) ** 0.5
    )


def test_the_gate_learns_which_expert_q_prefers():
    """Q = -a^2 and experts at 0 and 2: the weights go to the first."""
    model, samples = collected(experts=2, gate_weight=1.0)
    policy = model.policy
    with torch.no_grad():
        policy.action_net.weight.zero_()
        policy.action_net.bias.copy_(torch.tensor([0.0, 2.0]))
        policy.log_std.fill_(-2.0)
    policy.q = lambda obs, actions: -actions[..., 0].square()
    adam = torch.optim.Adam(policy.gate.parameters(), lr=0.05)
    for _ in range(250):
        m = policy.get_distribution(samples.observations).mixture
        adam.zero_grad()
        model.gate_losses(m, samples)[1].backward()
        adam.step()
    assert policy.get_distribution(samples.observations).mixture.weights[:, 0].min() > 0.9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"experts": 0}, "experts must be 1 or more, got 0"),
        ({"gate_weight": -1.0}, "gate_weight must be 0 or more"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        PMOEPPOConfig(**settings)
