"""KL-Cov: which tokens are held, and the gradient of what holds them."""

import math

import pytest
import torch

from offrl.errors import ConfigError
from offrl.estimators.compose import compose
from offrl.estimators.covariance import covariances
from offrl.llm.methods import load_method
from offrl.llm.methods.kl_cov import pick
from offrl.llm.options import LLMOptions
from offrl.llm.session import build

METHOD = load_method("kl_cov")


@pytest.fixture
def batch_of(drifted):
    now, batch = drifted()
    return lambda: (now, METHOD.estimator(METHOD.config(), 6).prepare(batch))


def gradient(settings, now, batch):
    leaf = now.clone().requires_grad_()
    return torch.autograd.grad(METHOD.estimator(settings, 6).loss(leaf, batch), leaf)[0]


def free(now, batch):
    leaf = now.clone().requires_grad_()
    return torch.autograd.grad(compose(advantage="group_std").loss(leaf, batch), leaf)[0]


@pytest.mark.parametrize("share", [1e-4, 0.1, 0.5, 1.0])
def test_the_largest_covariances_are_held(share, batch_of):
    now, batch = batch_of()
    tokens = int(batch.mask.sum())
    found = pick(METHOD.config(share=share), batch, now).factors
    number = max(1, int(share * tokens))
    assert int(found.sum()) == number
    cov = covariances(now, batch.advantages, batch.mask)
    smallest = cov[batch.mask].sort(descending=True).values[number - 1]
    assert torch.equal(found > 0, batch.mask & (cov >= smallest))


def test_the_gradient_by_hand(batch_of):
    """Of a held token -r A plus the penalty times the sign of its log-ratio, of another -r A, over the tokens."""
    now, batch = batch_of()
    settings = METHOD.config(share=0.4, penalty=0.7)
    batch = pick(settings, batch, now)
    found, tokens = gradient(settings, now, batch), int(batch.mask.sum())
    signs = set()
    for i, t in batch.mask.nonzero().tolist():
        d = float(now[i, t] - batch.old_log_probs[i, t])
        want = -math.exp(d) * float(batch.advantages[i])
        if batch.factors[i, t]:
            want = want + (0.7 if d > 0 else -0.7)
            signs.add(d > 0)
        assert float(found[i, t]) == pytest.approx(want / tokens, rel=1e-9)
    assert signs == {True, False}
    assert found[~batch.mask].abs().max() == 0


def test_there_is_no_clip(batch_of):
    now, batch = batch_of()
    ratio = (now - batch.old_log_probs).exp()
    settings = METHOD.config(share=1e-9)
    batch = pick(settings, batch, now)
    far = batch.mask & ((ratio > 1.5) | (ratio < 0.6)) & (batch.factors == 0)
    assert far.any()
    found, want = gradient(settings, now, batch), free(now, batch)
    torch.testing.assert_close(found[far], want[far])
    assert found[far].abs().min() > 0


def test_in_the_first_update_of_a_batch_the_penalty_does_nothing(batch_of):
    _, batch = batch_of()
    settings = METHOD.config(share=0.5)
    batch = pick(settings, batch, batch.old_log_probs)
    assert batch.factors.sum() > 5
    assert torch.equal(gradient(settings, batch.old_log_probs, batch), free(batch.old_log_probs, batch))


def test_covariances_are_those_of_the_policy_as_it_is_before_each_update():
    """In the second update of a batch it is no longer the one that sampled."""
    settings = METHOD.config(share=0.2)
    made = build("kl_cov", settings, LLMOptions(prompts=4, group=4, reuse=2, device="cpu"))
    batch = made._prepared(made._collect()[0])
    batch = batch.replace(advantages=torch.linspace(-1.0, 1.0, 16))
    with torch.no_grad():
        for p in made.parameters:
            p.add_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    found, _ = made.companion.masked(batch)
    now = made._scores(batch, made.policy)[0]
    assert torch.equal(found.factors, pick(settings, batch, now).factors)
    assert not torch.equal(found.factors, pick(settings, batch, batch.old_log_probs).factors)


def test_one_update_a_batch_is_refused():
    with pytest.raises(ConfigError, match="kl_cov: with one update a batch its penalty has no effect"):
        build("kl_cov", METHOD.config(), LLMOptions())
    for given in ({"reuse": 2}, {"minibatches": 2}, {"bypass": True, "delay": 2}):
        build("kl_cov", METHOD.config(), LLMOptions(**given))
    with pytest.raises(ConfigError, match="penalty must be positive"):
        METHOD.config(penalty=0.0)
    with pytest.raises(ConfigError, match="share must be above 0"):
        METHOD.config(share=2.0)
