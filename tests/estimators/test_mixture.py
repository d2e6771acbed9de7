"""Mixtures of Gaussians: densities by quadrature, win frequencies in closed form, unbiased gradients of the index."""

import math

import pytest
import torch

from offrl.estimators import mixture as mx
from offrl.estimators.likelihood import gaussian_log_prob, tanh_gaussian_sample


def some(k, a, batch=(5,), dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    gate = torch.randn(*batch, k, generator=g, dtype=dtype)
    mean, log_std = torch.randn(2, *batch, k, a, generator=g, dtype=dtype)
    return mx.mixture(gate, mean, 0.3 * log_std - 0.5)


def noise_of(m, seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(m.mean.shape, generator=g, dtype=m.mean.dtype)


@pytest.mark.parametrize("squash", [True, False])
def test_the_density_integrates_to_one(squash):
    """Midpoint rule over the action line; squashed actions live in (-1, 1)."""
    m = some(3, 1, ())
    if squash:
        edges = torch.linspace(-1, 1, 400_001, dtype=torch.float64)
        a = (edges[1:] + edges[:-1]) / 2
        u = a.atanh()
    else:
        a = u = torch.linspace(-15, 15, 20_001, dtype=torch.float64)
    density = mx.log_prob(m, u[:, None], squash=squash).exp()
    assert float(density.sum() * (a[1] - a[0])) == pytest.approx(1.0, abs=2e-4)


def test_the_density_is_that_of_torch():
    from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

    m = some(4, 3)
    u = torch.randn(5, 3, dtype=torch.float64)
    theirs = MixtureSameFamily(
        Categorical(logits=m.log_weights), Independent(Normal(m.mean, m.log_std.exp()), 1)
    )
    torch.testing.assert_close(mx.log_prob(m, u, squash=False), theirs.log_prob(u))
    slope = (1 - u.tanh() ** 2).log().sum(-1)
    torch.testing.assert_close(mx.log_prob(m, u, squash=True), theirs.log_prob(u) - slope)


@pytest.mark.parametrize("squash", [True, False])
def test_one_expert_is_a_gaussian(squash):
    m = some(1, 3)
    noise = noise_of(m)
    draws = mx.draw_all(m, noise, squash=squash)
    if squash:
        action, log_prob = tanh_gaussian_sample(m.mean[:, 0], m.log_std[:, 0], noise[:, 0])
    else:
        action = m.mean[:, 0] + m.log_std[:, 0].exp() * noise[:, 0]
        log_prob = gaussian_log_prob(m.mean[:, 0], m.log_std[:, 0], action)
    torch.testing.assert_close(draws.actions[:, 0], action, rtol=0, atol=0)
    torch.testing.assert_close(draws.log_probs[:, 0], log_prob)
    torch.testing.assert_close(mx.log_prob(m, draws.u[:, 0], squash=squash), log_prob)
    q = torch.randn(5, 1, dtype=torch.float64)
    assert float(mx.frequency_loss(m.weights, q)) == 0
    cost = draws.log_probs - q
    for loss in (mx.winner_loss(cost, q), mx.marginal_loss(m.weights, cost)):
        assert torch.equal(loss, cost.mean())


def test_far_out_nothing_overflows():
    """tanh(20) rounds to 1; six dimensions 40 standard deviations away underflow as a product of densities."""
    m = mx.mixture(torch.zeros(2), torch.zeros(2, 6), torch.zeros(2, 6))
    far = torch.full((6,), 40.0, requires_grad=True)
    value = mx.log_prob(m, far, squash=True)
    (gradient,) = torch.autograd.grad(value, far)
    expected = 6 * (-800 - 0.5 * math.log(2 * math.pi) - 2 * (math.log(2) - 40))
    assert value.item() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(gradient, torch.full((6,), -38.0), rtol=1e-3, atol=0)


def test_the_mixture_hides_at_most_log_k_nats():
    """E[log pi_i - log pi] is the information that a tells about i."""
    for seed, spread in ((0, 0.01), (1, 1.0), (2, 100.0)):
        one = some(4, 2, (1,), seed=seed)
        m = mx.Mixture(
            *(t.expand(20_000, *t.shape[1:]) for t in (one.log_weights, spread * one.mean, one.log_std))
        )
        draws = mx.draw_all(m, noise_of(m), squash=False)
        gap = mx.marginal_loss(m.weights, draws.log_probs - mx.every_log_prob(m, draws.u, squash=False))
        assert -1e-3 < float(gap) < math.log(4)
        entropy = -float((m.weights[0] * m.log_weights[0]).sum())
        if spread == 100.0:
            assert float(gap) == pytest.approx(entropy, abs=1e-3)  # far apart: a tells i


def test_every_log_prob_is_log_prob_of_each_draw():
    m = some(3, 2)
    u = mx.draw_all(m, noise_of(m), squash=True).u
    for i in range(3):
        torch.testing.assert_close(
            mx.every_log_prob(m, u, squash=True)[:, i], mx.log_prob(m, u[:, i], squash=True)
        )


def learned_gate(values, steps=1500, batch=1024, seed=0):
    """Softmax weights after training only the gate, the experts' values being draws of ``values(noise)``."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        q0 = values(torch.randn(4, 2, generator=g))
    logits = torch.zeros(q0.shape[1], requires_grad=True)
    for t in range(steps):
        q = values(torch.randn(batch, len(logits), generator=g))
        w = logits.softmax(0).expand(batch, -1)
        (gradient,) = torch.autograd.grad(mx.frequency_loss(w, q), logits)
        with torch.no_grad():
            logits -= 4.0 / (1 + t / 100) * gradient
    return logits.detach().softmax(0)


def k0_share(limit):
    """1/2 + (1/pi) Int_0^limit K0(z) dz."""
    from scipy.special import iti0k0

    return 0.5 + float(iti0k0(limit)[1]) / math.pi


@pytest.mark.parametrize(("s1", "s2"), [(0.101, 0.197), (0.2, 0.2), (0.3, 0.1)])
def test_the_gate_learns_win_frequencies_of_two_widths(s1, s2):
    """Experts on modes of equal height: expert 1 wins with probability (2/pi) arctan(s2/s1), whatever c is."""
    scale = torch.tensor([s1, s2])
    w = learned_gate(lambda z: -4.0 * (z * scale) ** 2)
    assert float(w[0]) == pytest.approx(2 / math.pi * math.atan(s2 / s1), abs=0.02)


@pytest.mark.parametrize(("limit", "expected"), [(0.0, 0.5), (0.5, 0.795106), (2.0, 0.969086)])
def test_the_gate_learns_win_frequencies_of_two_heights(limit, expected):
    """Equal widths s, heights apart by D: 1/2 + (1/pi) Int_0^{D/(2 c s^2)} K0, not softmax(Q)."""
    assert k0_share(limit) == pytest.approx(expected, abs=1e-6)
    c, s = 4.0, 0.1
    gap = torch.tensor([limit * 2 * c * s * s, 0.0])
    w = learned_gate(lambda z: gap - c * (s * z) ** 2, steps=3000)
    assert float(w[0]) == pytest.approx(expected, abs=0.02)


def test_equal_experts_have_equal_weights():
    g = torch.Generator().manual_seed(0)
    q = torch.randn(40_000, 5, generator=g)
    assert ((mx.wins(q).mean(0) - 0.2).abs() < 0.01).all()


def test_the_gates_gradient_in_closed_form():
    """dL/dz_i = (2/K) w_i ((w_i - v_i) - sum_j w_j (w_j - v_j)), one row."""
    z = torch.tensor([0.3, -0.4, 1.2], dtype=torch.float64, requires_grad=True)
    q = torch.tensor([[1.0, 3.0, 2.0]], dtype=torch.float64)
    (got,) = torch.autograd.grad(mx.frequency_loss(z.softmax(0)[None], q), z)
    w, v = z.detach().softmax(0), torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(got, 2 / 3 * w * ((w - v) - (w * (w - v)).sum()))


def test_only_the_winner_learns():
    cost = torch.randn(6, 4, requires_grad=True)
    q = torch.randn(6, 4, requires_grad=True)
    by_cost, by_q = torch.autograd.grad(
        mx.winner_loss(cost, q), (cost, q), allow_unused=True, materialize_grads=True
    )
    assert torch.equal(by_cost, mx.wins(q) / 6)
    assert not by_q.any()


def test_leading_axes_are_runs():
    """A stack of losses is the losses of each."""
    w, q, cost = torch.randn(3, 7, 4).softmax(-1), torch.randn(3, 7, 4), torch.randn(3, 7, 4)
    for loss in (mx.frequency_loss(w, q), mx.winner_loss(cost, q), mx.marginal_loss(w, cost)):
        assert loss.shape == (3,)
    torch.testing.assert_close(mx.frequency_loss(w, q)[1], mx.frequency_loss(w[1], q[1]))
    torch.testing.assert_close(
        mx.score_loss(w[..., 0], cost[..., 0])[2], mx.score_loss(w[2, :, 0], cost[2, :, 0])
    )


def objective_gradient(loss_of, rows=200_000):
    """Gradient of ``loss_of(mixture, noise, uniform)`` at fixed parameters of two experts in one dimension."""
    gate = torch.tensor([0.4, -0.3], requires_grad=True)
    mean = torch.tensor([[0.5], [-0.8]], requires_grad=True)
    log_std = torch.tensor([[-0.5], [0.1]], requires_grad=True)
    g = torch.Generator().manual_seed(3)
    m = mx.mixture(gate.expand(rows, 2), mean.expand(rows, 2, 1), log_std.expand(rows, 2, 1))
    loss = loss_of(m, torch.randn(rows, 2, 1, generator=g), torch.rand(rows, 2, generator=g))
    return torch.cat([t.flatten() for t in torch.autograd.grad(loss, (gate, mean, log_std))])


def exact_gradient(alpha=0.3):
    """Of J = Int pi (alpha log pi - Q), Q = cos(2 a) + a/2, by quadrature in float64."""
    gate = torch.tensor([0.4, -0.3], dtype=torch.float64, requires_grad=True)
    mean = torch.tensor([[0.5], [-0.8]], dtype=torch.float64, requires_grad=True)
    log_std = torch.tensor([[-0.5], [0.1]], dtype=torch.float64, requires_grad=True)
    a = torch.linspace(-12, 12, 20_001, dtype=torch.float64)[:, None]
    log_pi = mx.log_prob(mx.mixture(gate, mean, log_std), a, squash=False)
    j = (log_pi.exp() * (alpha * log_pi - value(a))).sum() * (a[1, 0] - a[0, 0])
    return torch.cat([t.flatten() for t in torch.autograd.grad(j, (gate, mean, log_std))])


def value(a):
    return (2 * a[..., 0]).cos() + a[..., 0] / 2


ALPHA = torch.tensor(0.3)


@pytest.mark.parametrize("name", ["marginal", "score"])
def test_marginal_and_score_ratio_are_unbiased(name):
    """Against quadrature; 200 000 draws leave a noise of about 0.003."""

    def loss(m, noise, uniform):
        return mx.GRADIENTS[name](m, noise, uniform, value, ALPHA, squash=False).loss

    torch.testing.assert_close(objective_gradient(loss), exact_gradient().float(), rtol=0, atol=0.012)


def test_in_the_frequency_gradient_gate_and_experts_do_not_touch():
    """Of the experts' part the gate gets exactly nothing, also where log pi of the mixture is in it; and conversely."""
    gate, mean, log_std = (
        t.requires_grad_() for t in (torch.randn(8, 3), torch.randn(8, 3, 2), torch.randn(8, 3, 2))
    )
    noise = torch.randn(8, 3, 2)
    for every in (False, True):
        for whole in (False, True):
            m = mx.mixture(gate, mean, log_std)
            options = {"every": every, "whole": whole}
            parts = [
                mx.frequency(m, noise, noise, value, ALPHA, weight=w, **options).loss for w in (0.0, 1.0, 3.0)
            ]
            none, one, three = (
                torch.autograd.grad(p, (gate, mean, log_std), retain_graph=True) for p in parts
            )
            assert not none[0].any()
            torch.testing.assert_close(3 * one[0], three[0])
            assert one[0].abs().max() > 1e-4
            assert all(torch.equal(a, b) for a, b in zip(one[1:], none[1:], strict=True))
            learn = none[1].abs().sum(-1) > 0
            won = mx.wins(value(mx.draw_all(m, noise, squash=True).actions)).bool()
            found = mx.draw_all(m, noise, squash=True)
            log_pi = mx.every_log_prob(m, found.u, squash=True) if whole else found.log_probs
            cost = ALPHA * log_pi - value(found.actions)
            want = cost.mean() if every else cost[won].mean()  # of all experts, or of the winners
            torch.testing.assert_close(parts[0], want)
            assert torch.equal(learn, won) or every or whole  # in the mixture's density all have a part
            assert learn.all() or not (every or whole)


@pytest.mark.parametrize("name", mx.GRADIENTS)
def test_with_one_expert_every_gradient_is_that_of_sac(name):
    """alpha log pi(a) - Q(a) with the same noise: value and gradient."""
    m = some(1, 2, (6,), torch.float32)
    mean, log_std = (t.clone().requires_grad_() for t in (m.mean, m.log_std))
    noise, uniform = noise_of(m), torch.rand(6, 1)
    got = mx.GRADIENTS[name](mx.mixture(torch.randn(6, 1), mean, log_std), noise, uniform, value, ALPHA)
    action, log_prob = tanh_gaussian_sample(mean[:, 0], log_std[:, 0], noise[:, 0])
    want = (ALPHA * log_prob - value(action)).mean()
    torch.testing.assert_close(got.loss, want)
    for ours, theirs in zip(
        *(torch.autograd.grad(x, (mean, log_std)) for x in (got.loss, want)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(got.log_probs, log_prob.detach())
    torch.testing.assert_close(got.q, value(action).detach())


@pytest.mark.parametrize("name", mx.GRADIENTS)
def test_a_stack_of_runs_is_each_run(name):
    m, uniform, alpha = some(3, 2, (4, 6), torch.float32), torch.rand(4, 6, 3), torch.rand(4)
    noise = noise_of(m)
    whole = mx.GRADIENTS[name](m, noise, uniform, value, alpha)
    one = mx.GRADIENTS[name](mx.Mixture(*(t[2] for t in m)), noise[2], uniform[2], value, alpha[2])
    for ours, theirs in zip(whole, one, strict=True):
        torch.testing.assert_close(ours[2], theirs)


def test_the_distance_of_experts_is_that_of_pairs():
    """Root of the mean square over pairs and states, for each stacked run; none with one expert."""
    means = torch.randn(2, 5, 3, 4)
    pairs = [(means[:, :, i] - means[:, :, j]).square().sum(-1) for i, j in ((0, 1), (0, 2), (1, 2))]
    torch.testing.assert_close(mx.distance(means), torch.stack(pairs).mean(dim=(0, 2)).sqrt())
    assert mx.distance(means[:, :, :1]).tolist() == [0.0, 0.0]


def on_hills(experts, seed):
    """Gate, means and log_std after 1500 steps on Q = -4 (|a| - 1)^2 with alpha 0.05."""
    g, alpha = torch.Generator().manual_seed(seed), torch.tensor(0.05)
    params = [
        torch.zeros(experts),
        0.3 * torch.randn(experts, 1, generator=g),
        torch.full((experts, 1), -1.0),
    ]
    params = [p.requires_grad_() for p in params]
    adam = torch.optim.Adam(params, lr=3e-3)
    for _ in range(1500):
        m = mx.Mixture(*(t.expand(256, *t.shape) for t in mx.mixture(*params)))
        noise = torch.randn(256, experts, 1, generator=g)
        adam.zero_grad()
        mx.frequency(
            m, noise, noise, lambda a: -4 * (a[..., 0].abs() - 1).square(), alpha, squash=False
        ).loss.backward()
        adam.step()
    return [p.detach().squeeze(-1) for p in params[1:]] + [params[0].detach().softmax(0)]


def test_one_expert_climbs_a_hill():
    """There sigma = sqrt(alpha/8) = 0.0791."""
    mean, log_std, _ = on_hills(1, seed=0)
    assert mean.abs().item() == pytest.approx(1.0, abs=0.02)
    assert 0.075 < log_std.exp().item() < 0.085


def test_two_experts_climb_the_two_hills():
    """With this seed one each; the winner as if it were alone, and the gate is then (2/pi) arctan(s2/s1)."""
    mean, log_std, weights = on_hills(2, seed=7)
    best, std = weights.argmax(), log_std.exp()
    assert mean.prod() < 0
    assert (mean.abs() - 1).abs().max() < 0.05
    assert mean[best].abs().item() == pytest.approx(1.0, abs=0.02)
    assert 0.075 < std[best].item() < 0.1
    share = 2 / math.pi * torch.atan(std[1] / std[0])
    assert weights[0].item() == pytest.approx(share.item(), abs=0.03)


def test_the_score_ratios_baseline_leaves_the_row_itself_out():
    """Costs 1 and 3: (1 - 3) / 2 and (3 - 1) / 2; with the mean of both it would be half of that, a bias of 1 / n."""
    log_weight = torch.zeros(2, requires_grad=True)
    (found,) = torch.autograd.grad(mx.score_loss(log_weight, torch.tensor([1.0, 3.0])), [log_weight])
    torch.testing.assert_close(found, torch.tensor([-1.0, 1.0]))


def test_the_densities_and_values_that_count_are_the_winners():
    """Expert 1 sits where Q is high, expert 0 far off; the draws' own mean is by weights."""
    m = mx.mixture(torch.zeros(5, 2), torch.tensor([[9.0], [0.0]]).expand(5, 2, 1), torch.zeros(2, 1))
    noise = torch.randn(5, 2, 1)
    found = mx.frequency(m, noise, noise, lambda a: -a[..., 0].square(), ALPHA, squash=False)
    each = mx.draw_all(m, noise, squash=False).log_probs
    torch.testing.assert_close(found.log_probs, each[:, 1])
    torch.testing.assert_close(found.q, -noise[:, 1, 0].square())
    torch.testing.assert_close(found.own, each.mean(1))


def test_the_score_ratio_has_the_value_of_the_cost():
    cost, log_weight = torch.randn(9), torch.randn(9)
    torch.testing.assert_close(mx.score_loss(log_weight, cost), cost.mean())


def test_indices_are_drawn_with_their_weights_and_stay_one_hot():
    m = mx.mixture(
        torch.tensor([0.0, 1.0, 2.0]).expand(50_000, 3), torch.zeros(50_000, 3, 1), torch.zeros(1, 1)
    )
    g = mx.gumbel(torch.rand(50_000, 3, generator=torch.Generator().manual_seed(0)))
    share = torch.bincount(mx.draw_index(m, g), minlength=3) / 50_000
    assert ((share - m.weights[0]).abs() < 0.01).all()
    y = mx.straight_through(m, g, 1.0)
    torch.testing.assert_close(y.sum(-1), torch.ones(50_000))
    assert torch.equal(y.argmax(-1), mx.draw_index(m, g))
    assert torch.isfinite(mx.gumbel(torch.tensor([0.0, 1.0 - 2**-24, 0.5]))).all()


def test_the_straight_through_derivative_is_that_of_the_softmax():
    gate = torch.tensor([[0.1, 0.5, -0.2]], requires_grad=True)
    m = mx.mixture(gate, torch.zeros(1, 3, 1), torch.zeros(1, 3, 1))
    g, factor = torch.tensor([[0.3, -0.1, 0.2]]), torch.tensor([[1.0, 2.0, 4.0]])
    y = mx.straight_through(m, g, 0.5)
    one_hot = torch.nn.functional.one_hot(mx.draw_index(m, g), y.shape[-1]).to(y.dtype)
    torch.testing.assert_close(y, one_hot, rtol=0.0, atol=1e-6)
    (got,) = torch.autograd.grad((y * factor).sum(), gate)
    z = gate.detach().clone().requires_grad_()
    (want,) = torch.autograd.grad((((z + g) / 0.5).softmax(-1) * factor).sum(), z)
    torch.testing.assert_close(got, want)


def test_picking_one_expert():
    values, index = torch.arange(12.0).view(2, 3, 2), torch.tensor([2, 0])
    assert mx.pick(values, index).tolist() == [[4.0, 5.0], [6.0, 7.0]]
    m = some(3, 2, (2,))
    mean, log_std = m.expert(index)
    assert torch.equal(mean, m.mean[[0, 1], index])
    assert torch.equal(log_std, m.log_std[[0, 1], index])
