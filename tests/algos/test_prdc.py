"""PRDC: the neighbour that the actor is pulled to, its limits (TD3+BC, no states) and its known answers."""

import dataclasses
import itertools
import math

import pytest
import torch

from offrl.algos.prdc import ALGORITHM, PRDC, PRDCConfig, actor_loss
from offrl.algos.td3_bc import TD3BC, TD3BCConfig
from offrl.errors import ConfigError
from offrl.training.check import batches, tiny_problem

SMALL = {"hidden": 8, "batch_size": 32}


def series(problem, count):
    return list(itertools.islice(batches(ALGORITHM, problem), count))


def random_policy_actions(batch, seed=0):
    return 2 * torch.rand(batch.actions.shape, generator=torch.Generator().manual_seed(seed)) - 1


def distances(problem, beta, observations, actions):
    """|| (beta s, a) - (beta s_i, a_i) || to every row by direct differences in float64: (B, N)."""
    states = beta * (observations[:, None].double() - problem.observations.double())
    return torch.cat([states, actions[:, None].double() - problem.actions.double()], dim=2).norm(dim=2)


@pytest.mark.parametrize("beta", [0.0, 0.5, 2.0])
def test_the_anchor_is_the_action_of_the_nearest_pair(beta):
    """Against O(N B) brute force, three seeds at once; the metrics measure the state and the action part."""
    problem = tiny_problem((0, 1, 2))
    learner, (batch,) = PRDC(problem, PRDCConfig(beta=beta, **SMALL)), series(problem, 1)
    pi, metrics = random_policy_actions(batch), {}
    nearest = learner.nearest_actions(batch, pi, metrics)
    assert nearest.shape == pi.shape
    for k in range(3):
        d = distances(problem, beta, batch.observations[k], pi[k])
        rows = d.argmin(dim=1)
        assert torch.equal(nearest[k], problem.actions[rows])
        states = beta * (problem.observations[rows] - batch.observations[k]).norm(dim=1)
        actions = (problem.actions[rows] - pi[k]).norm(dim=1)
        torch.testing.assert_close(
            (states**2 + actions**2).sqrt(), d.amin(dim=1).float(), rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(metrics["neighbour_state_distance"][k], states.mean())
        torch.testing.assert_close(metrics["neighbour_action_distance"][k], actions.mean())
        torch.testing.assert_close(metrics["self_hit_rate"][k], (rows == batch.rows[k]).float().mean())
        torch.testing.assert_close(metrics["bc_loss"][k], (pi[k] - batch.actions[k]).square().mean())


@pytest.mark.parametrize("beta", [0.0, 0.3, 2.0, 100.0])
def test_the_anchor_is_never_farther_than_the_datas_own_action(beta):
    """The own pair is a candidate at distance |pi - a|, so |pi - a*|^2 <= |pi - a|^2 for every sample.

    It is strict wherever another row's action was taken.
    """
    problem = tiny_problem((0, 1))
    learner, (batch,) = PRDC(problem, PRDCConfig(beta=beta, **SMALL)), series(problem, 1)
    pi = random_policy_actions(batch)
    nearest = learner.nearest_actions(batch, pi, {})
    to_anchor, to_own = ((pi - a).square().sum(dim=2) for a in (nearest, batch.actions))
    other = (nearest != batch.actions).any(dim=2)
    assert torch.equal(to_anchor[~other], to_own[~other])
    assert (to_anchor[other] < to_own[other]).all()
    assert other.any() == (beta < 100.0)


def test_the_dc_loss_is_at_most_the_bc_loss_in_training():
    problem = tiny_problem()
    learner = PRDC(problem, PRDCConfig(beta=0.5, lr=1e-2, policy_delay=1, **SMALL))
    for batch in series(problem, 20):
        metrics = learner.update(batch)
        assert metrics["dc_loss"] <= metrics["bc_loss"]
        assert 0.0 <= metrics["self_hit_rate"] <= 1.0


def test_a_large_beta_is_td3_bc():
    """With beta > 2 sqrt(A) a_max / (least distance of two states) no other pair can be nearer than the own
    one.

    Then losses, gradients and all weights are TD3+BC's, here after 10 updates bit for bit.
    """
    problem = tiny_problem()
    least = torch.pdist(problem.observations).min().item()
    beta = 2 * math.sqrt(problem.act_dim) / least * 1.01
    prdc = PRDC(problem, PRDCConfig(beta=beta, **SMALL))
    td3_bc = TD3BC(problem, TD3BCConfig(**SMALL))
    for batch in series(problem, 10):
        ours, theirs = prdc.update(batch), td3_bc.update(batch)
        assert {"self_hit_rate": 1.0}.items() <= ours.items() or "actor_loss" not in ours
        assert ours.get("dc_loss") == ours.get("bc_loss") == theirs.get("bc_loss")
        for name in theirs:
            assert torch.equal(ours[name], theirs[name]), name
    for a, b in zip(prdc.policy().parameters(), td3_bc.policy().parameters(), strict=True):
        assert torch.equal(a, b)


def test_without_states_the_neighbour_depends_on_the_action_alone():
    """beta = 0: permuting the states among the rows changes no anchor; with beta = 2 it does."""
    problem = tiny_problem()
    order = torch.randperm(len(problem.observations), generator=torch.Generator().manual_seed(0))
    shuffled = dataclasses.replace(problem, observations=problem.observations[order])
    (batch,) = series(problem, 1)
    pi = random_policy_actions(batch)
    for beta, equal in ((0.0, True), (2.0, False)):
        anchors = [
            PRDC(p, PRDCConfig(beta=beta, **SMALL)).nearest_actions(
                dataclasses.replace(batch, observations=p.observations[batch.rows]), pi, {}
            )
            for p in (problem, shuffled)
        ]
        assert torch.equal(*anchors) is equal


def test_without_states_dense_data_hardly_hold_the_policy():
    """Uniform actions, N = 400, A = 2: the nearest of N points is about 1/(2 sqrt(N/4)) = 0.05 away, far
    below bc.
    """
    problem = tiny_problem()
    learner, (batch,) = PRDC(problem, PRDCConfig(beta=0.0, **SMALL)), series(problem, 1)
    pi = random_policy_actions(batch)
    nearest = learner.nearest_actions(batch, pi, {})
    assert (pi - nearest).square().mean() < 0.02 * (pi - batch.actions).square().mean()


def test_no_gradient_flows_through_the_search():
    """d/dpi of mean (pi - a*)^2 is 2 (pi - a*) / (B A) exactly, with a* a constant."""
    problem = tiny_problem()
    learner, (batch,) = PRDC(problem, PRDCConfig(**SMALL)), series(problem, 1)
    pi = random_policy_actions(batch).requires_grad_()
    nearest = learner.nearest_actions(batch, pi, {})
    loss, _ = actor_loss(pi.sum(dim=2), pi, nearest, alpha=0.0)
    loss.sum().backward()
    torch.testing.assert_close(pi.grad, (2 * (pi - nearest) / pi[0].numel()).detach())


def test_the_neighbour_stays_while_pi_moves_less_than_half_the_gap_to_the_second():
    """Moving pi by delta changes each distance by at most delta, so below half the gap the order of the two
    stays.
    """
    problem = tiny_problem()
    learner, (batch,) = PRDC(problem, PRDCConfig(beta=0.5, **SMALL)), series(problem, 1)
    pi = random_policy_actions(batch)
    two = distances(problem, 0.5, batch.observations[0], pi[0]).topk(2, largest=False).values
    direction = torch.nn.functional.normalize(random_policy_actions(batch, seed=1), dim=2)
    half_gap = ((two[:, 1] - two[:, 0]) / 2).float()[None, :, None]
    before = learner.nearest_actions(batch, pi, {})
    assert torch.equal(learner.nearest_actions(batch, pi + 0.99 * half_gap * direction, {}), before)
    assert not torch.equal(learner.nearest_actions(batch, pi + 0.7 * direction, {}), before)


@pytest.mark.parametrize(
    ("beta", "settles"), [(100.0, (math.sqrt(6) - 1) / 2), (1.0, 1.0)], ids=["own", "other"]
)
def test_the_two_row_toy_has_the_known_answer(beta, settles):
    """Data {(0, -1), (0.1, 1)}, Q(a) = a, a free scalar pi at s = 0 from 0.5, alpha 2.5, actions in [-1, 1].

    The other pair is nearer iff (0.1 beta)^2 + (pi - 1)^2 < (pi + 1)^2, that is pi > beta^2 / 400.
    beta = 100: never; the pull of Q balances that of the own action where 2.5 / pi = 2 (pi + 1), at 0.7247.
    beta = 1: from pi = 0.0025 on, both pulls go upwards and pi ends at the bound.
    """
    problem = dataclasses.replace(
        tiny_problem(rows=2),
        observations=torch.tensor([[0.0], [0.1]]),
        next_observations=torch.zeros(2, 1),
        actions=torch.tensor([[-1.0], [1.0]]),
        action_low=-torch.ones(1),
        action_high=torch.ones(1),
    )
    learner = PRDC(problem, PRDCConfig(beta=beta, **SMALL))
    batch = dataclasses.replace(
        series(problem, 1)[0],
        observations=torch.zeros(1, 1, 1),
        actions=-torch.ones(1, 1, 1),
        rows=torch.tensor([[0]]),
    )

    def anchor(pi):
        return learner.nearest_actions(batch, torch.tensor([[[pi]]]), {}).item()

    switch = beta**2 / 400
    assert anchor(min(switch - 1e-3, 1.0)) == -1.0
    assert anchor(switch + 1e-3) == 1.0

    pi = torch.tensor([[[0.5]]], requires_grad=True)
    for _ in range(300):
        loss, _ = actor_loss(pi[..., 0], pi, learner.nearest_actions(batch, pi.detach(), {}), alpha=2.5)
        (grad,) = torch.autograd.grad(loss.sum(), pi)
        with torch.no_grad():
            pi.sub_(0.02 * grad).clamp_(-1.0, 1.0)
    assert pi.item() == pytest.approx(settles, abs=1e-4)


def test_the_same_seed_gives_the_same_losses_for_200_updates():
    problem = tiny_problem()
    curves = []
    for _ in range(2):
        learner = PRDC(problem, PRDCConfig(**SMALL))
        curves.append([{k: v.item() for k, v in learner.update(b).items()} for b in series(problem, 200)])
    assert curves[0] == curves[1]
    assert curves[0][1] != curves[0][3]


def test_the_actors_gradient_does_not_depend_on_the_scale_of_q():
    problem = tiny_problem()
    learner, (batch,) = PRDC(problem, PRDCConfig(**SMALL)), series(problem, 1)
    anchor = lambda pi: learner.nearest_actions(batch, pi, {})  # noqa: E731
    before, _ = learner.td3.actor_gradients(batch.observations, anchor)
    with torch.no_grad():
        for p in learner.td3.critic.params[-2:]:
            p.mul_(1000.0)
    after, _ = learner.td3.actor_gradients(batch.observations, anchor)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-6)


def test_the_search_comes_once_an_actor_step_and_only_then():
    """It is the expensive part: 10 updates with policy_delay 2 make 5 searches; reading the timings resets
    them.
    """
    problem = tiny_problem()
    learner = PRDC(problem, PRDCConfig(**SMALL))
    for batch in series(problem, 10):
        metrics = learner.update(batch)
        assert ("self_hit_rate" in metrics) == ("actor_loss" in metrics)
    assert learner.queries == 5
    assert learner.pop_timings()["neighbour_query_ms"] > 0.0
    assert learner.pop_timings() == {"neighbour_query_ms": 0.0}


def test_the_loss_is_td3_bcs_with_another_anchor():
    """-2.5 * 1 / 2 + (1 + 1) / 2: Q = (-1, 3) has mean 1 and mean |Q| = 2."""
    loss, parts = actor_loss(torch.tensor([[-1.0, 3.0]]), torch.ones(1, 2, 1), torch.zeros(1, 2, 1), 2.5)
    assert loss.tolist() == [-0.25]
    assert parts["dc_loss"].tolist() == [1.0]
    assert parts["q_scale"].tolist() == [1.25]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": -1.0}, "alpha must be 0 or more, got -1.0"),
        ({"beta": -2.0}, "beta must be 0 or more, got -2.0"),
        ({"noise_clip": -1.0}, "noise_clip must be 0 or more"),
        ({"tau": 0.995}, "did you mean 0.005"),
    ],
)
def test_an_impossible_setting_is_refused_with_value_and_rule(settings, message):
    with pytest.raises(ConfigError, match=message):
        PRDCConfig(**settings)


def test_the_defaults_are_those_of_the_official_commands():
    c = PRDCConfig()
    assert (c.alpha, c.beta, c.discount, c.tau, c.policy_noise, c.noise_clip) == (
        2.5,
        2.0,
        0.99,
        0.005,
        0.2,
        0.5,
    )
    assert (c.policy_delay, c.lr, c.hidden, c.batch_size, c.normalize_observations) == (
        2,
        3e-4,
        256,
        256,
        True,
    )
    assert ALGORITHM.presets["halfcheetah-"] == {"alpha": 40.0}
    assert ALGORITHM.presets["antmaze-"] == {
        "alpha": 7.5,
        "beta": 7.5,
        "reward_scale": 1e4,
        "reward_shift": -1.0,
    }
