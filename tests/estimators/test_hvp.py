"""Gradient and Hessian-vector product of J: exact in expectation, by playing every trajectory of small problems."""

import itertools
import math

import pytest
import torch

from offrl.estimators import hvp

torch.manual_seed(1)
F64 = torch.float64


class Tabular:
    """A softmax policy in a random MDP: every trajectory with its probability under theta (S A,)."""

    def __init__(self, states, actions, horizon, discount, seed=0):
        g = torch.Generator().manual_seed(seed)
        self.shape, self.horizon, self.discount = (states, actions), horizon, discount
        self.start = torch.rand(states, generator=g, dtype=F64).softmax(0)
        self.step = (2 * torch.rand(states, actions, states, generator=g, dtype=F64)).softmax(-1)
        self.reward = torch.randn(states, actions, generator=g, dtype=F64)
        pairs = list(itertools.product(range(states), range(actions)))
        played = list(itertools.product(pairs, repeat=horizon))
        self.s, self.a = (torch.tensor([[p[i] for p in tau] for tau in played]) for i in (0, 1))  # (K, H)
        self.rewards = self.reward[self.s, self.a]
        moves = self.step[self.s[:, :-1], self.a[:, :-1], self.s[:, 1:]]
        self.world = self.start[self.s[:, 0]] * moves.prod(dim=1)  # the environment's part of the probability
        self.powers = discount ** torch.arange(horizon, dtype=F64)

    def log_pi(self, theta, rows=slice(None)):
        """(K, H)."""
        return theta.view(self.shape).log_softmax(-1)[self.s[rows], self.a[rows]]

    def probabilities(self, theta):
        return self.world * self.log_pi(theta).sum(1).exp()

    def value(self, theta):
        return (self.probabilities(theta) * (self.rewards * self.powers).sum(1)).sum()


MDP = Tabular(3, 2, 4, 0.9)
THETA, U = torch.randn(6, dtype=F64), torch.randn(6, dtype=F64)
EPISODE = torch.repeat_interleave(torch.arange(len(MDP.s)), MDP.horizon)
PSI = hvp.rewards_to_go(MDP.rewards.flatten(), EPISODE, MDP.discount)


def weighted(psi):
    """psi times N p(tau), so that means over all trajectories become expectations."""
    return psi * (len(MDP.s) * MDP.probabilities(THETA))[EPISODE]


def log_probs(theta):
    return MDP.log_pi(theta).flatten()


def hessian(theta):
    return torch.autograd.functional.hessian(MDP.value, theta)


def test_the_trajectories_are_all_there_are():
    assert math.isclose(float(MDP.probabilities(THETA).sum()), 1.0, abs_tol=1e-12)


def test_the_expected_gradient_is_exact():
    expected = torch.func.grad(MDP.value)(THETA)
    ours = hvp.policy_gradient(log_probs, THETA, weighted(PSI), EPISODE)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)
    assert expected.norm() > 0.05


def test_the_expected_hessian_vector_product_is_exact():
    exact = hessian(THETA) @ U
    ours = hvp.hessian_vector_product(log_probs, THETA, U, weighted(PSI), EPISODE)
    torch.testing.assert_close(ours, exact, rtol=0, atol=1e-10)


def test_without_the_outer_product_it_would_be_far_off():
    """E Hess Phi u alone: what a product of batch means tends to, since scores have mean zero."""
    psi = weighted(PSI)
    _, slope = torch.func.jvp(lambda th: hvp.policy_gradient(log_probs, th, psi, EPISODE), (THETA,), (U,))
    assert (slope - hessian(THETA) @ U).norm() > 0.5 * (hessian(THETA) @ U).norm()


def test_each_trajectory_has_its_own_outer_product():
    """B_i u of one trajectory, against the formula with a dense Hessian; a mean of two is the mean of the two."""
    rows, singles = torch.tensor([5, 100]), []
    for row in rows:
        psi = PSI.view(-1, 4)[row]

        def phi(theta, row=row, psi=psi):
            return (psi * MDP.log_pi(theta, row)).sum()

        def score(theta, row=row):
            return MDP.log_pi(theta, row).sum()

        gradient, slope = torch.func.grad(phi)(THETA), torch.func.grad(score)(THETA) @ U
        singles.append(gradient * slope + torch.autograd.functional.hessian(phi, THETA) @ U)
    ours = hvp.hessian_vector_product(
        lambda theta: MDP.log_pi(theta, rows).flatten(), THETA, U, PSI.view(-1, 4)[rows].flatten(),
        torch.tensor([0] * 4 + [1] * 4),
    )  # fmt: skip
    torch.testing.assert_close(ours, torch.stack(singles).mean(0), rtol=0, atol=1e-12)


def test_a_baseline_from_the_other_trajectories_changes_no_expectation():
    """All pairs of trajectories of a problem with 2 states, 2 actions, 2 steps."""
    mdp = Tabular(2, 2, 2, 0.9, seed=3)
    theta, u = torch.randn(4, dtype=F64), torch.randn(4, dtype=F64)
    p, episode = mdp.probabilities(theta), torch.tensor([0, 0, 1, 1])
    gradient, product = torch.zeros(4, dtype=F64), torch.zeros(4, dtype=F64)
    for i, j in itertools.product(range(len(p)), repeat=2):
        rows = torch.tensor([i, j])
        psi = hvp.rewards_to_go(mdp.rewards[rows].flatten(), episode, mdp.discount)
        centred = hvp.leave_one_out(psi, episode)
        torch.testing.assert_close(centred[:2], psi[:2] - psi[2:])

        def log_pi(parameters, rows=rows):
            return mdp.log_pi(parameters, rows).flatten()

        gradient += p[i] * p[j] * hvp.policy_gradient(log_pi, theta, centred, episode)
        product += p[i] * p[j] * hvp.hessian_vector_product(log_pi, theta, u, centred, episode)
    torch.testing.assert_close(gradient, torch.func.grad(mdp.value)(theta), rtol=0, atol=1e-10)
    torch.testing.assert_close(
        product, torch.autograd.functional.hessian(mdp.value, theta) @ u, rtol=0, atol=1e-10
    )


def test_rewards_to_go_count_the_discount_from_the_start_of_each_trajectory():
    """0.5^t r_t = 4, 1, 0.5 | 2: sums from t on."""
    psi = hvp.rewards_to_go(torch.tensor([4.0, 2.0, 2.0, 2.0]), torch.tensor([0, 0, 0, 1]), 0.5)
    torch.testing.assert_close(psi, torch.tensor([5.5, 1.5, 0.5, 2.0]))


def test_the_baseline_treats_ended_trajectories_as_zero():
    psi = torch.tensor([5.0, 3.0, 2.0, 7.0])
    ours = hvp.leave_one_out(psi, torch.tensor([0, 0, 1, 2]))
    torch.testing.assert_close(ours, torch.tensor([5.0 - 4.5, 3.0, 2.0 - 6.0, 7.0 - 3.5]))
    with pytest.raises(ValueError, match="two or more"):
        hvp.leave_one_out(psi, torch.zeros(4, dtype=torch.int64))


# A scalar LQR whose J, J' and J'' are known: s' = 0.9 s + 0.5 a, r = -(s^2 + 0.1 a^2), a ~ N(theta s, 0.3^2).
GAIN = dict(discount=0.95, horizon=20, std=0.3)


def lqr_value(theta):
    m, total, power = torch.ones((), dtype=F64), 0.0, 1.0
    for _ in range(GAIN["horizon"]):
        total = total - power * ((1 + 0.1 * theta**2) * m + 0.1 * 0.09)
        m = (0.9 + 0.5 * theta) ** 2 * m + 0.25 * 0.09
        power = power * GAIN["discount"]
    return total


@pytest.mark.parametrize("theta", [0.0, -1.0])
def test_sampled_trajectories_of_a_linear_quadratic_problem_agree_with_its_recursion(theta):
    """The known J, J', J'' at 0 and -1; 20 000 trajectories, 4.5 standard errors."""
    at = torch.tensor([theta], dtype=F64)
    slope = torch.func.grad(lambda x: lqr_value(x[0]))(at)
    curvature = torch.autograd.functional.hessian(lambda x: lqr_value(x[0]), at)[0]
    known = {0.0: [-5.439220, -18.437660, -131.0135], -1.0: [-1.755932, -0.430915, -1.592446]}[theta]
    facts = torch.stack([lqr_value(at[0]), slope[0], curvature[0]])
    torch.testing.assert_close(facts, torch.tensor(known, dtype=F64), rtol=2e-6, atol=0)
    n, horizon, std = 20_000, GAIN["horizon"], GAIN["std"]
    g = torch.Generator().manual_seed(0)
    s, states, actions = torch.randn(n, generator=g, dtype=F64), [], []
    for _ in range(horizon):
        a = theta * s + std * torch.randn(n, generator=g, dtype=F64)
        states.append(s)
        actions.append(a)
        s = 0.9 * s + 0.5 * a
    s, a = (torch.stack(x, dim=1) for x in (states, actions))
    episode = torch.repeat_interleave(torch.arange(n), horizon)
    psi = hvp.leave_one_out(
        hvp.rewards_to_go(-(s**2 + 0.1 * a**2).flatten(), episode, GAIN["discount"]), episode
    )

    def log_pi(parameters):
        return -0.5 * ((a - parameters[0] * s) / std).square().flatten()

    score = ((a - theta * s) * s / std**2).sum(1)
    phi_slope = (psi.view(n, -1) * (a - theta * s) * s / std**2).sum(1)
    phi_curvature = -(psi.view(n, -1) * s.square() / std**2).sum(1)
    for ours, exact, each in (
        (hvp.policy_gradient(log_pi, at, psi, episode), slope, phi_slope),
        (
            hvp.hessian_vector_product(log_pi, at, torch.ones(1, dtype=F64), psi, episode),
            curvature,
            phi_slope * score + phi_curvature,
        ),
    ):
        torch.testing.assert_close(
            ours[0], each.mean(), rtol=1e-8, atol=1e-8
        )  # scalar closed form, same draws
        assert abs(float(ours[0] - exact[0])) < 4.5 * float(each.std() / n**0.5)
