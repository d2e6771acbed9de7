"""Advantages against naive loops in float64."""

import pytest
import torch

from offrl.estimators import advantages as adv
from offrl.estimators.groups import Groups


@pytest.fixture
def segments():
    """Ragged ends inside segments: B=5, T=13, terminations and time limits at random."""
    g = torch.Generator().manual_seed(3)
    shape = (5, 13)
    ends = torch.rand(shape, generator=g)
    data = {name: torch.randn(shape, generator=g, dtype=torch.float64) for name in ("r", "v", "cut_v")}
    last = torch.randn(5, generator=g, dtype=torch.float64)
    terminated, truncated = ends < 0.15, (ends > 0.8)
    following = adv.next_values(data["v"], last, truncated, data["cut_v"])
    return data["r"], data["v"], data["cut_v"], last, terminated, truncated, following


def after(b, t, v, cut_v, last, truncated):
    """V of what truly followed step t."""
    if truncated[b, t]:
        return cut_v[b, t]
    return v[b, t + 1] if t + 1 < v.shape[1] else last[b]


def naive_gae(segments, discount, lam):
    r, v, cut_v, last, terminated, truncated, _ = segments
    out = torch.zeros_like(r)
    for b in range(r.shape[0]):
        running = 0.0
        for t in reversed(range(r.shape[1])):
            bootstrap = 0.0 if terminated[b, t] else after(b, t, v, cut_v, last, truncated)
            if terminated[b, t] or truncated[b, t]:
                running = 0.0
            running = r[b, t] + discount * bootstrap - v[b, t] + discount * lam * running
            out[b, t] = running
    return out


@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_gae_is_the_naive_recursion(segments, lam):
    r, v, _, _, terminated, truncated, following = segments
    got = adv.gae(r, v, following, terminated, truncated, discount=0.9, lam=lam)
    torch.testing.assert_close(got, naive_gae(segments, 0.9, lam))


def test_a_time_limit_bootstraps_and_a_termination_does_not():
    r, v = torch.zeros(2, 2), torch.zeros(2, 2)
    end = torch.tensor([[False, True], [False, False]])
    cut = torch.tensor([[False, False], [False, True]])
    following = adv.next_values(v, torch.tensor([5.0, 5.0]), cut, torch.full((2, 2), 7.0))
    got = adv.gae(r, v, following, end, cut, discount=0.5, lam=1.0)
    torch.testing.assert_close(got, torch.tensor([[0.0, 0.0], [1.75, 3.5]]))


def test_nothing_leaks_from_the_next_episode(segments):
    r, v, cut_v, last, terminated, truncated, _ = segments
    done = terminated | truncated
    b, t = (int(x[0]) for x in torch.where(done[:, :-1]))
    changed = r.clone()
    changed[b, t + 1 :] += 100.0
    values = v.clone()
    values[b, t + 1 :] += 100.0
    following = adv.next_values(values, last, truncated, cut_v)
    before = adv.gae(r, v, segments[-1], terminated, truncated)
    after_change = adv.gae(changed, values, following, terminated, truncated)
    assert torch.equal(before[b, : t + 1], after_change[b, : t + 1])
    assert not torch.equal(before[b, t + 1 :], after_change[b, t + 1 :])


def test_steps_that_are_not_chosen_are_passed_over():
    """With tool output and padding cut out, the same rows give the same numbers."""
    g = torch.Generator().manual_seed(0)
    mask = torch.tensor([[1, 0, 0, 1, 1, 0, 1, 0], [1, 1, 1, 1, 0, 0, 0, 0]]).bool()
    r, v = torch.randn(2, 8, generator=g), torch.randn(2, 8, generator=g)
    got = adv.gae(r, v, adv.next_values(v, mask=mask), mask=mask, discount=0.9, lam=0.8)
    to_go = adv.returns_to_go(r, mask=mask, discount=0.9)
    for row in range(2):
        rr, vv = r[row, mask[row]][None], v[row, mask[row]][None]
        want = adv.gae(rr, vv, adv.next_values(vv), discount=0.9, lam=0.8)
        torch.testing.assert_close(got[row, mask[row]], want[0])
        torch.testing.assert_close(to_go[row, mask[row]], adv.returns_to_go(rr, discount=0.9)[0])
        assert (got[row, ~mask[row]] == 0).all()
        assert (to_go[row, ~mask[row]] == 0).all()


def test_truncated_steps_need_their_final_values():
    with pytest.raises(ValueError, match="final_values"):
        adv.next_values(torch.zeros(1, 2), truncated=torch.ones(1, 2))


def test_returns_to_go_are_the_naive_sums(segments):
    r, v, cut_v, last, terminated, truncated, following = segments
    plain = adv.returns_to_go(r, None, terminated, truncated, discount=0.9)
    with_values = adv.returns_to_go(r, following, terminated, truncated, discount=0.9)
    for b in range(r.shape[0]):
        for t in range(r.shape[1]):
            total, factor, k = 0.0, 1.0, t
            while True:
                total, factor = total + factor * r[b, k], factor * 0.9
                if terminated[b, k] or truncated[b, k] or k + 1 == r.shape[1]:
                    break
                k += 1
            torch.testing.assert_close(plain[b, t], total)
            tail = 0.0 if terminated[b, k] else factor * after(b, k, v, cut_v, last, truncated)
            torch.testing.assert_close(with_values[b, t], total + tail)


@pytest.mark.parametrize("steps", [1, 3, 20])
def test_n_step_is_the_naive_sum(segments, steps):
    r, v, cut_v, last, terminated, truncated, following = segments
    got = adv.n_step(r, v, following, terminated, truncated, steps=steps, discount=0.9)
    for b in range(r.shape[0]):
        for t in range(r.shape[1]):
            total, factor, k = 0.0, 1.0, t
            for taken in range(1, steps + 1):
                total, factor = total + factor * r[b, k], factor * 0.9
                if taken == steps or terminated[b, k] or truncated[b, k] or k + 1 == r.shape[1]:
                    break
                k += 1
            tail = 0.0 if terminated[b, k] else factor * after(b, k, v, cut_v, last, truncated)
            torch.testing.assert_close(got[b, t], total + tail - v[b, t])


def test_gae_covers_one_step_and_all_rewards(segments):
    r, v, _, _, terminated, truncated, following = segments
    one = adv.n_step(r, v, following, terminated, truncated, steps=1, discount=0.9)
    all_of_them = adv.returns_to_go(r, following, terminated, truncated, discount=0.9) - v
    ends = (terminated, truncated)
    torch.testing.assert_close(adv.gae(r, v, following, *ends, discount=0.9, lam=0.0), one)
    torch.testing.assert_close(adv.gae(r, v, following, *ends, discount=0.9, lam=1.0), all_of_them)


IDS = torch.tensor([7, -2, 7, 9, -2, 7, 7, 4])  # sizes 4, 2, 1, 1, mixed up
REWARDS = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.3, 0.5, 0.25, 0.7], dtype=torch.float64)
LENGTHS = torch.tensor([3.0, 1.0, 2.0, 5.0, 4.0, 6.0, 1.0, 2.0], dtype=torch.float64)


def naive_groups(function):
    """function(own reward, own length, rewards, lengths, others' rewards, others' lengths) of every row."""
    out = []
    for i, own in enumerate(IDS.tolist()):
        rows = [j for j in range(8) if IDS[j] == own]
        others = [j for j in rows if j != i]
        out.append(function(REWARDS[i], REWARDS[rows], LENGTHS[rows], REWARDS[others], LENGTHS[others]))
    return torch.stack([torch.as_tensor(x, dtype=torch.float64) for x in out])


def test_group_baselines_are_the_naive_ones():
    def std(r):
        return r.std() if len(r) > 1 else 0.0

    cases = [
        (adv.group_mean(REWARDS, IDS), lambda own, r, n, o, on: own - r.mean()),
        (adv.group_std(REWARDS, IDS), lambda own, r, n, o, on: (own - r.mean()) / (std(r) + 1e-6)),
        (adv.group_leave_one_out(REWARDS, IDS), lambda own, r, n, o, on: own - o.mean() if len(o) else 0.0),
        (adv.group_length(REWARDS, IDS, LENGTHS), lambda own, r, n, o, on: own - (n * r).sum() / n.sum()),
        (
            adv.group_length(REWARDS, IDS, LENGTHS, leave_one_out=True),
            lambda own, r, n, o, on: own - (on * o).sum() / on.sum() if len(o) else 0.0,
        ),
    ]
    for got, naive in cases:
        torch.testing.assert_close(got, naive_groups(naive))


def test_leave_one_out_is_the_scaled_mean_baseline():
    """Property 3: G / (G - 1) (R - mean) for every group of two or more."""
    size = Groups(IDS).rows(Groups(IDS).size)
    got, centered = adv.group_leave_one_out(REWARDS, IDS), adv.group_mean(REWARDS, IDS)
    many = size > 1
    torch.testing.assert_close(got[many], (size / (size - 1.0))[many] * centered[many])


def test_group_statistics_do_not_depend_on_order():
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    for function in (adv.group_mean, adv.group_std, adv.group_leave_one_out):
        torch.testing.assert_close(function(REWARDS[order], IDS[order]), function(REWARDS, IDS)[order])


def test_equal_rewards_give_exactly_zero():
    rewards, ids = torch.full((9,), 0.1), torch.tensor([0, 1, 0, 1, 0, 1, 0, 0, 0])
    for function in (adv.group_mean, adv.group_std, adv.group_leave_one_out):
        assert (function(rewards, ids) == 0).all()


def test_whitening_counts_steps_and_ignores_the_rest():
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]]).bool()
    x = torch.tensor([[1.0, 2.0, 6.0, torch.nan], [3.0, torch.nan, torch.inf, 0.0]])
    chosen = torch.tensor([1.0, 2.0, 6.0, 3.0])
    want = (chosen - chosen.mean()) / (chosen.std() + 1e-8)
    torch.testing.assert_close(adv.whiten(x, mask)[mask], want)
    torch.testing.assert_close(adv.whiten(x, mask, center=False)[mask], want + chosen.mean())
    rows = adv.whiten(torch.tensor([1.0, 5.0]), mask)[mask]
    torch.testing.assert_close(rows, torch.tensor([-0.5, -0.5, -0.5, 1.5]))  # of 1, 1, 1, 5: mean 2, std 2
    torch.testing.assert_close(adv.whiten(chosen), want)
    torch.testing.assert_close(adv.whiten_rows(chosen), want)


@pytest.mark.parametrize("value", [0.1, 0.3, 0.7, 1.0, -1e4, 0.0])
def test_whitening_equal_values_gives_zero(value):
    """The mean of equal numbers is another number in float32, and their std is of the size of that error."""
    rewards, mask = torch.full((512,), value), torch.arange(9) < torch.arange(512)[:, None] % 7 + 1
    assert (adv.whiten(rewards, mask)[mask] == 0).all()
    assert (adv.whiten(rewards) == 0).all()
    torch.testing.assert_close(adv.whiten(rewards, center=False), rewards)
    little = rewards + 1e-4 * max(abs(value), 1.0) * (torch.arange(512) % 2)
    assert adv.whiten(little).abs().mean() == pytest.approx(1.0, abs=0.05)


def test_groups_whose_weights_all_vanish_have_equal_ones():
    rewards, ids = torch.tensor([1.0, 0.0, 0.0, 5.0, 3.0]), torch.tensor([0, 0, 0, 1, 1])
    weights = torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0])
    got = adv.group_weighted(rewards, ids, weights)
    torch.testing.assert_close(got, torch.tensor([2 / 3, -1 / 3, -1 / 3, 0.0, -2.0]))
    got = adv.group_weighted(rewards, ids, weights, leave_one_out=True)
    torch.testing.assert_close(got, torch.tensor([1.0, -0.5, -0.5, 2.0, -2.0]))


def test_whitening_one_number_gives_zero():
    """With and without a mask; torch's std of one number is NaN."""
    one = torch.tensor([2.0])
    for got in (adv.whiten(one), adv.whiten_rows(one), adv.whiten(one, torch.tensor([[True]]))):
        assert got.tolist() in ([0.0], [[0.0]])
    assert adv.whiten(one, center=False).tolist() == [2.0]


def test_outcomes_go_to_the_last_chosen_step():
    mask = torch.tensor([[1, 0, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]]).bool()
    got = adv.rewards_at_end(torch.tensor([1.0, 2.0, 3.0]), mask, torch.full((3, 4), 10.0), 0.1)
    want = torch.tensor([[-1.0, 0.0, 0.0, 0.0], [-1.0, -1.0, -1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(got, want)
    plain = adv.rewards_at_end(torch.tensor([1.0, 2.0, 3.0]), mask)
    torch.testing.assert_close(plain.sum(dim=1), torch.tensor([1.0, 2.0, 0.0]))


def test_greedy_baseline():
    torch.testing.assert_close(adv.greedy(REWARDS, LENGTHS), REWARDS - LENGTHS)
