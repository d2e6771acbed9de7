"""A composed policy acts like its parents where it must, and is saved with them."""

import numpy as np
import pytest
import torch

from offrl.data.normalize import AffineNormalizer
from offrl.errors import ConfigError, PolicyError
from offrl.nn.policy import DeterministicPolicy, load_policy, save_policy
from offrl.policies.chunk import ChunkPolicy
from offrl.policies.composed import ComposedPolicy


def parent(seed=0, obs_dim=3, scale=(0.5, 0.5), **settings):
    torch.manual_seed(seed)
    sizes = {"widths": (8, 16), "step_embed": 8, "horizon": 8, "n_obs": 2, "n_act": 4} | settings
    policy = ChunkPolicy(obs_dim, 2, [-2, -2], [2, 2], **sizes).eval()
    actions = AffineNormalizer.build(np.zeros(2), np.array(scale))
    policy.set_normalizers(AffineNormalizer.build(np.zeros(obs_dim), np.ones(obs_dim)), actions)
    return policy


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


OBSERVATIONS = torch.randn(5, 3, generator=stream(9))


def play(policy, steps=9):
    state, g, out = None, stream(1), []
    with torch.no_grad():
        for t in range(steps):
            action, state = policy.act(OBSERVATIONS + t, state, generator=g)
            out.append(action)
    return torch.stack(out)


@pytest.mark.parametrize("stochastic", [False, True])
def test_all_the_weight_acts_as_the_parent_and_a_policy_with_itself_as_itself(stochastic):
    a, b = parent(0, stochastic=stochastic), parent(1, stochastic=stochastic)

    def both(first, second, w):
        return play(ComposedPolicy([first, second], weights=[w, 1 - w], stochastic=stochastic))

    assert torch.equal(both(a, b, 1.0), play(a))
    assert torch.equal(both(a, b, 0.0), play(b))
    assert torch.equal(both(a, a, 0.3), play(a))
    assert (both(a, b, 0.5) - play(a)).abs().max() > 1e-2


def test_a_diffusion_and_a_flow_with_other_histories_and_chunks_plan_together():
    a = parent(0, n_obs=3, horizon=12, n_act=6)
    b = parent(1, family="flow", n_obs=1, horizon=4, n_act=2)
    policy = ComposedPolicy([a, b])
    assert (policy.n_obs, policy.n_act, policy.composition().rows, policy.composition().now) == (3, 2, 12, 2)
    assert policy.mismatch == [0.0, 0.0]
    assert torch.isfinite(play(policy)).all()


def test_each_parent_sees_the_last_observations_that_it_asks_for():
    a, b = parent(0, n_obs=3), parent(1, n_obs=1)
    history = torch.randn(5, 3, 3, generator=stream(2))
    for weights, alone, seen in (([1, 0], a, history), ([0, 1], b, history[:, -1:])):
        policy = ComposedPolicy([a, b], operator="action_average", weights=weights, n_act=4)
        own = alone.plan(seen, zero=True)[:, :4]
        torch.testing.assert_close(policy.plan(history, zero=True), own, rtol=0, atol=1e-6)


def test_each_parent_sees_its_columns():
    wide, narrow = parent(0), parent(1, obs_dim=2)
    policy = ComposedPolicy([wide, narrow], columns=[[0, 1, 2], [2, 0]], weights=[0, 1])
    state = narrow.act(OBSERVATIONS[:, [2, 0]], None, generator=stream(1))[0]
    torch.testing.assert_close(policy.act(OBSERVATIONS, generator=stream(1))[0], state, rtol=0, atol=1e-5)
    with pytest.raises(PolicyError, match="policy 2 was built for 2 numbers"):
        ComposedPolicy([wide, narrow])


def test_the_action_average_is_each_ones_own_plan():
    a, b = parent(0), parent(1)
    policy, g, h = (
        ComposedPolicy([a, b], operator="action_average", weights=[0.25, 0.75]),
        stream(1),
        stream(1),
    )
    history = OBSERVATIONS[:, None].expand(-1, 2, -1)
    expected = 0.25 * a.plan(history, h) + 0.75 * b.plan(history, h)
    torch.testing.assert_close(policy.act(OBSERVATIONS, generator=g)[0], policy.clip(expected[:, 0]))


@pytest.mark.parametrize("operator", ["convex", "product", "or", "and", "action_average"])
def test_it_is_saved_with_its_parents_and_comes_back(operator, tmp_path):
    weights = None if operator == "and" else [0.4, 0.6]
    policy = ComposedPolicy([parent(0), parent(1, family="flow")], operator=operator, weights=weights).eval()
    save_policy(policy, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["parent_1", "parent_2"]
    again = load_policy(tmp_path)
    assert torch.equal(play(policy), play(again))
    assert again.config() == policy.config()
    assert torch.equal(play(load_policy(tmp_path / "parent_2")), play(policy.chunky()[1]))


def test_the_bound_is_the_first_parents_and_the_temperature_what_was_asked_for():
    wide, none = (parent(seed, sampler={"clip": clip}) for seed, clip in ((0, 2.0), (1, None)))
    assert ComposedPolicy([wide, none]).composition().clip == 2.0
    assert ComposedPolicy([none, wide]).composition().clip is None
    policy = ComposedPolicy([wide, none], operator="or", temperature=0.5)
    assert policy.composition().temperature == policy.config()["temperature"] == 0.5


def test_a_damaged_composition_is_refused(tmp_path):
    save_policy(ComposedPolicy([parent(0), parent(1)], weights=[0.4, 0.6]), tmp_path)
    path = tmp_path / "policy.json"
    text = path.read_text()
    for old, new, message in (
        ("parent_2", "../x", "folders are damaged"),
        ('"operator": "convex"', '"operator": "best"', "unknown operator 'best'"),
        ("0.6", "0.7", "sum to 1"),
    ):
        path.write_text(text.replace(old, new))
        with pytest.raises(PolicyError, match=message):
            load_policy(tmp_path)
    path.write_text(text.replace('"parents"', '"no"'))
    with pytest.raises(PolicyError, match="missing 1 required positional argument|two or more"):
        load_policy(tmp_path)


def test_what_does_not_fit_is_refused():
    a = parent(0)
    with pytest.raises(ConfigError, match="0: 1, 1: 2"):
        ComposedPolicy([a, parent(1, scale=(0.5, 1.0))])
    with pytest.raises(PolicyError, match="chunk policies"):
        ComposedPolicy([a, DeterministicPolicy(3, 2)])
    with pytest.raises(PolicyError, match="two or more"):
        ComposedPolicy([a])
    with pytest.raises(PolicyError, match="n_act must be in 1 .. 7"):
        ComposedPolicy([a, parent(1)], n_act=8)
