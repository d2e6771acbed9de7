"""Covariances of tokens: the theory of the entropy's change, tokens by hand, choice of the largest."""

import pytest
import torch

from offrl.estimators.covariance import covariances, largest


def entropy(logits):
    return torch.distributions.Categorical(logits=logits).entropy()


@pytest.mark.parametrize("natural", [True, False])
def test_the_change_of_a_softmaxs_entropy_is_minus_the_covariance(natural):
    """Tokens in the policy's own proportions: 1, 2, 3, 4 and 10 of five actions."""
    counts = torch.tensor([1, 2, 3, 4, 10])
    pi = counts.double() / 20
    advantages = torch.tensor([0.3, -1.0, 2.0, 0.5, -0.2]).double()
    drive = advantages if natural else pi * advantages
    actions = torch.arange(5).repeat_interleave(counts).view(4, 5)
    mask = torch.ones(4, 5, dtype=torch.bool)
    found = covariances(pi.log()[actions], drive[actions], mask).mean()
    eta = 1e-5
    step = eta * (advantages if natural else pi * advantages)
    change = entropy(pi.log() + step) - entropy(pi.log())
    assert float(change) == pytest.approx(-eta * float(found), rel=1e-4)


def test_only_chosen_tokens_count():
    log_probs = torch.tensor([[-1.0, -3.0, torch.nan], [-2.0, torch.inf, 5.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    found = covariances(log_probs, torch.tensor([1.0, 4.0]), mask)
    # means -2 and 2: (1)(-1), (-1)(-1), (0)(2)
    assert found.tolist() == [[-1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]


def test_the_largest_among_some():
    values = torch.tensor([[5.0, 1.0, 4.0], [2.0, 9.0, 3.0]])
    among = torch.tensor([[True, True, True], [True, False, True]])
    assert largest(values, among, 2).tolist() == [[True, False, True], [False, False, False]]
    assert torch.equal(largest(values, among, 9), among)
    assert not largest(values, torch.zeros_like(among), 3).any()
