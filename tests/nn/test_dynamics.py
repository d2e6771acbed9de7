"""The one-step model: it learns linear dynamics with their noise, and its rollouts follow and end."""

import copy

import pytest
import torch

from offrl.nn.dynamics import DynamicsEnsemble, Scale


def transitions(count=4000, seed=0):
    """o' = o + (0.3 a, -0.1 o_0) + noise of std (0.05, 0), r = o_0 - a, the end where o_0 > 1."""
    g = torch.Generator().manual_seed(seed)
    o, a = torch.randn(count, 2, generator=g), torch.rand(count, 1, generator=g) * 2 - 1
    noise = 0.05 * torch.randn(count, generator=g)
    successors = torch.stack((o[:, 0] + 0.3 * a[:, 0] + noise, o[:, 1] - 0.1 * o[:, 0]), dim=1)
    return o, a, o[:, 0] - a[:, 0], successors, (o[:, 0] > 1).float()


def ensemble(hidden=32, members=2):
    data = transitions()
    return DynamicsEnsemble(
        Scale.fit(*data[:4]), hidden, members, 3e-3, torch.Generator().manual_seed(1)
    ), data


def fit(model, data, updates, seed=2):
    g = torch.Generator().manual_seed(seed)
    for _ in range(updates):
        rows = torch.randint(len(data[0]), (model.members, 128), generator=g)
        losses = model.update(*(x[rows] for x in data))
    return losses


@pytest.fixture(scope="module")
def trained():
    model, data = ensemble()
    fit(model, data, 600)
    return model


def test_it_learns_means_noise_and_ends(trained):
    o, a, r, _, d = transitions(500, seed=9)
    mean, log_std, logit = trained.predict(*(x.expand(2, -1, -1) for x in (o, a)))
    raw = mean * trained.scale.target_std + trained.scale.target_mean
    wanted = torch.stack((0.3 * a[:, 0], -0.1 * o[:, 0], r), dim=1)
    assert (raw - wanted).abs().mean(dim=(0, 1)).max() < 0.03
    std = log_std.exp() * trained.scale.target_std
    assert std[..., 0].median().item() == pytest.approx(0.05, rel=0.2)
    assert std[..., 1].median().item() < 0.01
    assert ((logit > 0).float() == d).float().mean() > 0.97


def test_a_drawn_step_has_the_noise_of_the_data(trained):
    o, a = torch.zeros(4000, 2), torch.zeros(4000, 1)
    successors, rewards, ended = trained.step(o, a, torch.Generator().manual_seed(0))
    assert successors[:, 0].std().item() == pytest.approx(0.05, rel=0.25)
    assert successors.mean(0).abs().max() < 0.03
    assert rewards.abs().mean() < 0.1
    assert not ended.any()


def test_a_rollout_feeds_its_states_back_and_stops_counting_after_the_end(trained):
    """With a = -1 the state falls by 0.3 a step: from 1.5 it ends in its first step, for good; from 0 not in five."""
    start = torch.tensor([[1.5, 0.0], [0.0, 0.0]])
    steps = trained.rollout(start, lambda o: -torch.ones(len(o), 1), 5, torch.Generator().manual_seed(0))
    assert torch.equal(steps["observations"][:, 1:], steps["next_observations"][:, :-1])
    assert torch.equal(steps["observations"][:, 0], start)
    assert steps["valid"].tolist() == [[True, False, False, False, False], [True] * 5]
    assert steps["terminated"][0].tolist()[0::4] == [True, False]
    fall = steps["observations"][1, :, 0].diff()
    assert fall.mean().item() == pytest.approx(-0.3, abs=0.05)


def test_members_learn_from_their_own_batches():
    """Member 1's data change: member 0 does not."""
    one, data = ensemble()
    other, _ = ensemble()
    rows = torch.arange(64).expand(2, -1)
    batch = [x[rows] for x in data]
    changed = [torch.stack((x[0], x[1] + 1)) for x in batch]
    one.update(*batch)
    other.update(*changed)
    for a, b in zip(one.net.params, other.net.params, strict=True):
        assert torch.equal(a[0], b[0])
        assert not torch.equal(a[1], b[1])


def test_resume_is_exact_and_the_size_is_told():
    model, data = ensemble()
    fit(model, data, 5)
    saved = copy.deepcopy(model.state_dict())
    fit(model, data, 5, seed=3)
    fresh, _ = ensemble()
    fresh.load_state_dict(saved)
    fit(fresh, data, 5, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(model.net.params, fresh.net.params, strict=True))
    assert model.num_parameters == 2 * (3 * 32 + 32 + 32 * 32 + 32 + 32 * 7 + 7)


def test_a_constant_column_keeps_its_scale():
    o, a, r, s, _ = transitions(50)
    scale = Scale.fit(torch.ones_like(o), a, r, torch.ones_like(o))
    assert scale.input_std[:2].tolist() == [1.0, 1.0]
    assert scale.target_std[:2].tolist() == [1.0, 1.0]
    assert s.shape == (50, 2)
