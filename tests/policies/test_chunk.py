"""Chunk policies: history, queue and reset; sampling from a network that is known; saving."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from offrl.data.normalize import AffineNormalizer
from offrl.diffusion.steppers import sample
from offrl.errors import PolicyError
from offrl.nn.policy import load_policy, save_policy
from offrl.policies.chunk import SCHEDULES, ChunkPolicy

SMALL = {"widths": (8, 16), "step_embed": 8, "horizon": 8, "n_obs": 2, "n_act": 4}


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def random_policy(seed=0, **settings):
    torch.manual_seed(seed)
    policy = ChunkPolicy(3, 2, [-2, 0], [2, 10], **(SMALL | settings)).eval()
    zero, scale = np.zeros(3), np.array([1.0, 0.5, 2.0])
    actions = AffineNormalizer.build(np.array([-2.0, 0.0]), np.array([0.5, 0.2]), -np.ones(2))
    policy.set_normalizers(AffineNormalizer.build(zero, scale), actions)
    return policy


class Counting(ChunkPolicy):
    """Plans 10 t + 0.1 row for the newest observation t, and counts whom it plans for."""

    kind = "counting"

    def plan(self, history, generator=None, *, zero=False):
        self.asked = [*getattr(self, "asked", []), history.clone()]
        rows = torch.arange(self.n_act, dtype=torch.float32)
        return (10 * history[:, -1, :1] + 0.1 * rows)[..., None].expand(-1, -1, 1)


def counting():
    settings = {"widths": (8, 8), "step_embed": 8, "horizon": 8, "n_obs": 3, "n_act": 4}
    return Counting(1, 1, [-1e4], [1e4], **settings)


def seen(t, rows=2):
    return torch.arange(rows, dtype=torch.float32)[:, None] * 100 + t


def test_a_plan_is_carried_out_row_by_row_and_then_made_anew_from_the_last_observations():
    policy, state, actions = counting(), None, []
    for t in range(9):
        action, state = policy.act(seen(t, 1), state)
        actions.append(action.item())
    assert actions == pytest.approx([0, 0.1, 0.2, 0.3, 40, 40.1, 40.2, 40.3, 80])
    histories = [h[0, :, 0].tolist() for h in policy.asked]
    assert histories == [[0, 0, 0], [2, 3, 4], [6, 7, 8]]  # the first one repeated


def test_an_environment_that_was_reset_plans_at_once_with_a_history_of_its_own():
    policy, state = counting(), None
    for t in range(2):
        _, state = policy.act(seen(t), state)
    state = state.reset(torch.tensor([False, True]))
    actions, state = policy.act(seen(2), state)
    assert actions[:, 0].tolist() == pytest.approx([0.2, 1020])
    assert policy.asked[-1].tolist() == [[[102], [102], [102]]]
    actions, state = policy.act(seen(3), state)
    assert actions[:, 0].tolist() == pytest.approx([0.3, 1020.1])
    actions, _ = policy.act(seen(4), state)
    assert actions[:, 0].tolist() == pytest.approx([40, 1020.2], rel=1e-5)
    assert policy.asked[-1].tolist() == [[[2], [3], [4]]]


def test_resets_before_the_next_step_add_up():
    policy, state = counting(), None
    for t in range(2):
        _, state = policy.act(seen(t), state)
    for mask in ([True, False], [False, True]):
        state = state.reset(torch.tensor(mask))
    actions, _ = policy.act(seen(2), state)
    assert actions[:, 0].tolist() == pytest.approx([20, 1020])
    assert policy.asked[-1].tolist() == [[[2]] * 3, [[102]] * 3]


def test_an_environment_that_was_reset_draws_its_plan_from_the_given_stream():
    policy, observations = random_policy(), torch.randn(30, 3, generator=stream())
    new = torch.arange(30) > 0

    def played(seed):
        torch.manual_seed(seed)  # the global stream has no say
        _, state = policy.act(observations, generator=stream(1))
        return policy.act(observations, state.reset(new), generator=stream(seed % 10))[0]

    assert torch.equal(played(2), played(12))
    assert not torch.equal(played(2)[1:], played(3)[1:])
    assert torch.equal(played(2)[0], played(3)[0])


def test_what_is_exported_is_the_first_action_of_the_plan_from_zero_noise():
    policy, observations = random_policy(), torch.randn(4, 3, generator=stream())
    plan = policy.plan(observations[:, None].expand(-1, 2, -1), zero=True)
    assert torch.equal(policy(observations), policy.clip(plan[:, 0]))
    assert not torch.equal(policy(observations), policy.clip(plan[:, -1]))


def test_now_is_row_to_minus_one_of_the_chunk():
    policy = random_policy()
    history = torch.randn(5, 2, 3, generator=stream())
    chunk = policy.normalizer("action").inverse(policy.chunk(history, stream(1)))
    torch.testing.assert_close(policy.plan(history, stream(1)), chunk[:, 1:5])


class KnownNet(nn.Module):
    """The perfect network for normalized actions N(0.2, 0.3^2), as noise or as a velocity."""

    def __init__(self, family):
        super().__init__()
        self.family, self.times = family, []

    def forward(self, x, time, condition):
        self.times.append(time[0].item())
        if self.family == "diffusion":
            abar = SCHEDULES["diffusion"].abar[round(time[0].item())].item()
            alpha, sigma = abar**0.5, (1 - abar) ** 0.5
        else:
            sigma = time[0].item() / 100
            alpha = 1 - sigma
        var = alpha**2 * 0.09 + sigma**2
        clean = 0.2 + alpha * 0.09 / var * (x - alpha * 0.2)
        noise = sigma / var * (x - alpha * 0.2)
        return noise if self.family == "diffusion" else noise - clean


@pytest.mark.parametrize(
    ("family", "settings", "times"),
    [
        ("diffusion", {"denoising_steps": 100, "stochastic": True}, list(range(99, -1, -1))),
        ("diffusion", {"denoising_steps": 10}, [99, 89, 79, 69, 59, 49, 39, 29, 19, 9]),
        ("flow", {"denoising_steps": 10}, [100, 90, 80, 70, 60, 50, 40, 30, 20, 10]),
    ],
)
def test_a_perfect_network_gives_the_actions_law_at_the_trained_times(family, settings, times):
    """Its spread is the one that these steps have on a Gaussian: every step is linear, so it is known."""
    policy = random_policy(family=family, **settings)
    policy.unet = KnownNet(family)
    chunk = policy.chunk(torch.zeros(2000, 2, 3), stream())
    assert policy.unet.times == pytest.approx(times, abs=1e-3)
    assert chunk.mean().item() == pytest.approx(0.2, abs=0.02)
    grid = [1e9 if math.isinf(rho) else rho for rho in policy.schedule.grid(settings["denoising_steps"])]
    variance = grid[0] ** 2
    for rho, after in itertools.pairwise(grid):
        kept, told = 0.09 / (0.09 + rho**2), (after / rho) ** (2 if policy.stochastic else 1)
        variance *= (kept + told * (1 - kept)) ** 2
        variance += after**2 * (1 - told) if policy.stochastic else 0.0
    assert chunk.std().item() == pytest.approx(variance**0.5, rel=0.01)


def test_the_denoiser_is_what_the_policy_samples_with():
    for family in ("diffusion", "flow"):
        policy = random_policy(family=family)
        history = torch.randn(4, 2, 3, generator=stream())
        face, condition = policy.denoiser(), policy.encode(history)
        noise = torch.randn(4, 8, 2, generator=stream(1))
        grid = policy.schedule.grid(10)
        u = noise if math.isinf(grid[0]) else noise * grid[0]
        got = sample(lambda u, rho: face.denoise(u, rho, condition).clamp(-1, 1), u, grid)
        torch.testing.assert_close(got, policy.chunk(history, stream(1)), rtol=1e-4, atol=1e-5)
        assert (face.rows, face.now, face.levels is None) == (8, 1, family == "flow")


def test_observations_reach_the_network_normalized_oldest_first():
    policy = random_policy()
    history = torch.tensor([[[1.0, 2, 3], [4, 5, 6]]])
    assert policy.encode(history).tolist() == [[1, 1, 6, 4, 2.5, 12]]


@pytest.mark.parametrize("family", ["diffusion", "flow"])
def test_a_saved_policy_is_the_same(family, tmp_path):
    policy = random_policy(family=family)
    save_policy(policy, tmp_path)
    again = load_policy(tmp_path)
    observations = torch.randn(5, 3, generator=stream())
    actions, _ = policy.act(observations, generator=stream(1))
    assert torch.equal(actions, again.act(observations, generator=stream(1))[0])
    assert not torch.equal(actions, again.act(observations, generator=stream(2))[0])
    assert torch.equal(policy(observations), again(observations))
    assert bool((actions >= torch.tensor([-2, 0])).all() and (actions <= torch.tensor([2, 10])).all())
    (tmp_path / "policy.json").write_text(
        (tmp_path / "policy.json").read_text().replace('"horizon": 8', '"horizon": 7')
    )
    with pytest.raises(ValueError, match="multiple of 2"):
        load_policy(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"horizon": 7}, "multiple of 2"),
        ({"n_act": 8}, "at most horizon"),
        ({"family": "gan"}, "one of diffusion, flow"),
        ({"family": "flow", "stochastic": True}, "ODE only"),
        ({"denoising_steps": 101}, "at most 100"),
        ({"widths": (9, 18)}, "multiples of 8"),
        ({"n_obs": 0}, "1 or more"),
        ({"sampler": {"clip": 0.0}}, "clip must be a number above 0, or None, got 0.0"),
        ({"sampler": {"clip": math.nan}}, "clip must be a number above 0, or None, got nan"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, message):
    with pytest.raises(PolicyError, match=message):
        random_policy(**change)


def test_observations_of_another_size_are_refused():
    with pytest.raises(PolicyError, match="O=3"):
        random_policy().act(torch.zeros(2, 4))
    assert json.dumps(random_policy().config())
