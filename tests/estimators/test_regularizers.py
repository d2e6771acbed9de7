"""KL estimates and their gradients against enumeration, exact KLs against torch.distributions."""

import pytest
import torch
from torch.distributions import Categorical, Independent, Normal, kl_divergence

from offrl.estimators import regularizers as reg


@pytest.fixture
def policies():
    """Logits of pi (with gradient), of the reference and of the policy that sampled, over 5 actions."""
    g = torch.Generator().manual_seed(0)
    logits, ref, old = (torch.randn(5, generator=g, dtype=torch.float64) for _ in range(3))
    return logits.requires_grad_(), ref.log_softmax(0), old.log_softmax(0)


def expectation(values, log_probs):
    """E over actions drawn from log_probs, which are constants: every action with its probability."""
    return (log_probs.detach().exp() * values).sum()


def kl(log_p, log_q):
    return (log_p.exp() * (log_p - log_q)).sum()


@pytest.mark.parametrize(
    ("name", "unbiased", "gradient"),
    [
        ("k1", True, "zero"),
        ("k2", False, "reverse"),
        ("k3", True, "forward"),
        ("k1+", True, "reverse"),
        ("k3+", True, "reverse"),
    ],
)
def test_estimates_have_the_stated_value_and_gradient(policies, name, unbiased, gradient):
    """reverse: KL(pi || ref); forward: KL(ref || pi)."""
    logits, ref, _ = policies
    log_p = logits.log_softmax(0)
    estimate = expectation(reg.REGULARIZERS[name](log_p, ref), log_p)
    reverse, forward = kl(log_p, ref), kl(ref, log_p)
    assert torch.allclose(estimate, reverse) == unbiased
    (got,) = torch.autograd.grad(estimate, logits, retain_graph=True)
    truth = {"reverse": reverse, "forward": forward, "zero": 0.0 * reverse}[gradient]
    (want,) = torch.autograd.grad(truth, logits)
    torch.testing.assert_close(got, want)


def test_the_weighted_estimate_is_exact_off_policy(policies):
    logits, ref, old = policies
    log_p = logits.log_softmax(0)
    estimate = expectation(reg.weighted_kl(log_p, ref, old), old)
    torch.testing.assert_close(estimate, kl(log_p, ref))
    (got,) = torch.autograd.grad(estimate, logits, retain_graph=True)
    (want,) = torch.autograd.grad(kl(log_p, ref), logits)
    torch.testing.assert_close(got, want)


def test_k3_is_never_negative_and_never_overflows():
    d = torch.tensor([-1e3, -1.0, 0.0, 1.0, 1e3])
    got = reg.k3(d, torch.zeros(5))
    assert got.isfinite().all()
    assert (got[1:] >= 0).all()
    torch.testing.assert_close(got[1:4], (-d).exp()[1:4] - 1 + d[1:4])


def test_no_estimate_pushes_an_action_further_from_the_reference():
    """Where the policy is far below the reference, k3 is at its bound: no slope, but never one that lowers pi more."""
    d = torch.tensor([-1e3, -25.0, -19.0, -1.0], requires_grad=True)
    for name in ("k3", "k3+"):
        (slope,) = torch.autograd.grad(reg.REGULARIZERS[name](d, torch.zeros(4)).sum(), d)
        assert (slope <= 0).all(), name
    torch.testing.assert_close(reg.k3(d.detach(), torch.zeros(4))[2:], (-d).exp()[2:].detach() - 1 + d[2:])


def test_gaussian_kl_both_ways():
    g = torch.Generator().manual_seed(1)
    m, s, n, t = (torch.randn(4, 3, generator=g, dtype=torch.float64) for _ in range(4))
    p, q = Independent(Normal(m, s.exp()), 1), Independent(Normal(n, t.exp()), 1)
    torch.testing.assert_close(reg.gaussian_kl(m, s, n, t), kl_divergence(p, q))
    torch.testing.assert_close(reg.gaussian_kl(n, t, m, s), kl_divergence(q, p))
    torch.testing.assert_close(reg.gaussian_entropy(s), p.entropy())
    assert (reg.gaussian_kl(m, s, m, s) == 0).all()


def test_categorical_kl_both_ways_and_with_impossible_actions():
    g = torch.Generator().manual_seed(2)
    a, b = (torch.randn(4, 6, generator=g, dtype=torch.float64) for _ in range(2))
    torch.testing.assert_close(
        reg.categorical_kl(a, b), kl_divergence(Categorical(logits=a), Categorical(logits=b))
    )
    torch.testing.assert_close(
        reg.categorical_kl(b, a), kl_divergence(Categorical(logits=b), Categorical(logits=a))
    )
    torch.testing.assert_close(reg.categorical_entropy(a), Categorical(logits=a).entropy())
    hole = torch.tensor([False, True, False, False, True, False])
    c, d = a.masked_fill(hole, -torch.inf).requires_grad_(), b.masked_fill(hole, -torch.inf)
    torch.testing.assert_close(reg.categorical_kl(c, d), reg.categorical_kl(a[:, ~hole], b[:, ~hole]))
    torch.testing.assert_close(reg.categorical_entropy(c), reg.categorical_entropy(a[:, ~hole]))
    (gradient,) = torch.autograd.grad((reg.categorical_kl(c, d) + reg.categorical_entropy(c)).sum(), c)
    assert gradient.isfinite().all()


def test_value_losses():
    v, target, before = (
        torch.tensor([1.0, 2.0, 0.0]),
        torch.tensor([0.0, 2.5, 1.0]),
        torch.tensor([0.5, 1.0, 0.9]),
    )
    torch.testing.assert_close(reg.value_loss(v, target), torch.tensor([1.0, 0.25, 1.0]))
    got = reg.clipped_value_loss(v, target, before, clip=0.2)
    torch.testing.assert_close(got, torch.tensor([1.0, 1.3**2, 1.0]))


def test_entropy_term_has_the_sign_of_a_loss():
    assert reg.negative_entropy(torch.tensor(2.0)).item() == -2.0


def test_the_adaptive_coefficient_moves_towards_the_target():
    assert reg.adapted(1.0, kl=12.0, target=6.0, share=0.5) == pytest.approx(1.1)
    assert reg.adapted(1.0, kl=5.4, target=6.0, share=0.5) == pytest.approx(0.95)
    assert reg.adapted(2.0, kl=6.0, target=6.0, share=0.5) == 2.0
