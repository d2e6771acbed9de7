"""Clip-Cov: which tokens lose their gradient, and that nothing else changes."""

import pytest
import torch

from offrl.errors import ConfigError
from offrl.estimators.compose import compose
from offrl.estimators.covariance import covariances
from offrl.llm.methods import load_method
from offrl.llm.methods.clip_cov import candidates, pick
from offrl.llm.options import LLMOptions
from offrl.llm.session import build

METHOD = load_method("clip_cov")


@pytest.fixture
def batch_of(drifted):
    now, batch = drifted()
    return lambda: (now, METHOD.estimator(METHOD.config(), 6).prepare(batch))


def gradient(estimator, now, batch):
    leaf = now.clone().requires_grad_()
    return torch.autograd.grad(estimator.loss(leaf, batch), leaf)[0]


WIDE = {"cov_low": -100.0, "cov_high": 100.0}


def test_the_band_and_the_clip_decide_who_may_be_picked(batch_of):
    now, batch = batch_of()
    settings = METHOD.config(cov_low=0.1, cov_high=0.6, clip_low=0.3, clip_high=0.3)
    found = candidates(settings, batch, now)
    cov = covariances(now, batch.advantages, batch.mask)
    ratio, a = (now - batch.old_log_probs).exp(), batch.advantages[:, None].expand_as(now)
    wanted = torch.zeros_like(found)
    for i, t in batch.mask.nonzero().tolist():
        clipped = (a[i, t] > 0 and ratio[i, t] > 1.3) or (a[i, t] < 0 and ratio[i, t] < 0.7)
        wanted[i, t] = bool(0.1 < cov[i, t] < 0.6) and not clipped
    assert torch.equal(found, wanted)
    assert 3 <= int(found.sum()) < int(batch.mask.sum())
    in_band = (cov > 0.1) & (cov < 0.6) & batch.mask
    assert int(in_band.sum()) > int(found.sum())


@pytest.mark.parametrize(("share", "number"), [(1e-4, 1), (0.1, 3), (0.25, 9), (1.0, None)])
def test_so_many_are_picked_and_only_from_those(share, number, batch_of, stream):
    now, batch = batch_of()
    settings = METHOD.config(share=share, cov_low=-0.5, cov_high=0.9)
    free = candidates(settings, batch, now)
    tokens = int(batch.mask.sum())
    number = min(max(1, int(share * tokens)), int(free.sum()))
    picked = pick(settings, batch, now, stream()).factors == 0
    assert int(picked.sum()) == number
    assert not (picked & ~free).any()


def test_picked_tokens_lose_their_gradient_and_the_others_keep_it(batch_of, stream):
    now, batch = batch_of()
    settings = METHOD.config(share=0.3, **WIDE)
    estimator = METHOD.estimator(settings, 6)
    picked = pick(settings, batch, now, stream())
    plain = compose(advantage="group_std", mask=("ppo_clip", {"low": 1.0, "high": 1.0}))
    found, without = gradient(estimator, now, picked), gradient(plain, now, batch)
    off = picked.factors == 0
    assert found[off].abs().max() == 0
    assert without[off & batch.mask].abs().min() > 0
    assert torch.equal(found[~off], without[~off])  # the mean still divides by all tokens


def test_without_candidates_it_is_ppo(batch_of, stream):
    now, batch = batch_of()
    settings = METHOD.config(cov_low=50.0, cov_high=60.0, clip_low=0.2, clip_high=0.3)
    estimator = METHOD.estimator(settings, 6)
    picked = pick(settings, batch, now, stream())
    ppo = compose(advantage="group_std", mask=("ppo_clip", {"low": 0.2, "high": 0.3}))
    assert torch.equal(gradient(estimator, now, picked), gradient(ppo, now, batch))
    assert torch.equal(estimator.surrogate(now, picked), ppo.surrogate(now, batch))


def test_the_choice_is_random_and_the_methods_own(batch_of, stream):
    now, batch = batch_of()
    settings = METHOD.config(share=0.2, **WIDE)
    draws = [pick(settings, batch, now, stream(s)).factors for s in range(200)]
    assert torch.equal(draws[0], pick(settings, batch, now, stream(0)).factors)
    often = 1 - torch.stack(draws).mean(dim=0)
    assert often[~batch.mask].max() == 0
    free = candidates(settings, batch, now)
    assert often[~free].max() == 0
    assert often[free].min() > 0.05  # each is picked about every fifth time
    assert often[free].max() < 0.4


def test_covariances_are_those_of_the_policy_as_it_is_before_each_update():
    """In the second update of a batch it is no longer the one that sampled."""
    settings = METHOD.config(share=1.0, cov_low=0.1, cov_high=100.0)
    made = build("clip_cov", settings, LLMOptions(prompts=4, group=4, reuse=2, device="cpu"))
    batch = made._prepared(made._collect()[0])
    with torch.no_grad():
        for p in made.parameters:
            p.add_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    batch = batch.replace(advantages=torch.linspace(-1.0, 1.0, 16))
    state = made.streams["method"].get_state()

    def picked(log_probs):
        made.streams["method"].set_state(state)
        return pick(settings, batch, log_probs, made.streams["method"]).factors

    found = made.companion.masked(batch)[0].factors
    assert torch.equal(found, picked(made._scores(batch, made.policy)[0]))
    assert not torch.equal(found, picked(batch.old_log_probs))


def test_a_band_of_quantiles(batch_of):
    now, batch = batch_of()
    cov = covariances(now, batch.advantages, batch.mask)[batch.mask].sort().values
    settings = METHOD.config(quantiles=True, cov_low=0.5, cov_high=1.0)
    found = covariances(now, batch.advantages, batch.mask)[candidates(settings, batch, now)]
    assert float(found.min()) > float(cov[(len(cov) - 1) // 2])
    assert float(found.max()) < float(cov[-1])
    assert len(found) >= len(cov) // 2 - 3


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"share": 0.0}, "share must be above 0"),
        ({"cov_low": 5.0}, "cov_low must be below cov_high"),
        ({"quantiles": True}, "quantiles are between 0 and 1"),
    ],
)
def test_impossible_settings(given, says):
    with pytest.raises(ConfigError, match=says):
        METHOD.config(**given)
