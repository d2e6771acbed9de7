"""Groups by id: statistics, whole groups in micro-batches, the gate between samples and demonstrations."""

import pytest
import torch

from offrl.estimators.groups import Groups, solved_gate, whole_groups

IDS = torch.tensor([3, -1, 3, 8, -1, 3])
X = torch.tensor([1.0, 2.0, 4.0, 7.0, 0.0, -5.0])


def members(i):
    return X[i == IDS]


def test_statistics_are_those_of_the_members():
    groups = Groups(IDS)
    assert groups.ids.tolist() == [-1, 3, 8]
    assert groups.size.tolist() == [2, 3, 1]
    for name in ("sum", "mean", "max"):
        want = torch.stack([getattr(members(i), name)() for i in (-1, 3, 8)])
        torch.testing.assert_close(getattr(groups, name)(X), want)
    torch.testing.assert_close(
        groups.std(X), torch.stack([members(-1).std(), members(3).std(), torch.tensor(0.0)])
    )
    torch.testing.assert_close(
        groups.logsumexp(X), torch.stack([members(i).logsumexp(0) for i in (-1, 3, 8)])
    )
    assert groups.rows(torch.tensor([10, 20, 30])).tolist() == [20, 10, 20, 30, 10, 20]


def test_sums_over_the_others_take_nothing_away():
    x = torch.tensor([1e-20, 2.0, 1.0, 7.0, 0.0, 3e-20])
    got = Groups(IDS).others(x)  # of the third row 4e-20, which a difference from 1 would not hold
    torch.testing.assert_close(got, torch.tensor([1.0, 0.0, 4e-20, 0.0, 2.0, 1.0]), atol=0.0, rtol=1e-6)


def test_log_sums_neither_overflow_nor_lose_their_gradient():
    x = torch.tensor([800.0, 801.0, -torch.inf, -900.0, -torch.inf], requires_grad=True)
    ids = torch.tensor([0, 0, 1, 2, 2])
    got = Groups(ids).logsumexp(x)
    assert got[1] == -torch.inf
    torch.testing.assert_close(got[0], x[:2].logsumexp(0))
    torch.testing.assert_close(got[2], torch.tensor(-900.0))
    (g,) = torch.autograd.grad(got[0], x)
    torch.testing.assert_close(g[:2], torch.tensor([0.0, 1.0]).softmax(0))


def test_micro_batches_hold_whole_groups():
    ids = torch.tensor([5, 1, 5, 2, 1, 5, 2, 9])
    parts = whole_groups(ids, 4)
    assert sorted(torch.cat(parts).tolist()) == list(range(8))
    assert all(len(part) <= 4 for part in parts)
    homes = {}
    for number, part in enumerate(parts):
        for i in ids[part].tolist():
            assert homes.setdefault(i, number) == number
    assert len(parts) == 2
    with pytest.raises(ValueError, match="group of 3 rows does not fit"):
        whole_groups(ids, 2)


def test_the_gate_takes_samples_or_demonstrations():
    rewards = torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0, 1.0])  # those of demonstrations do not count
    ids = torch.tensor([0, 0, 1, 1, 1, 0])
    demo = torch.tensor([0, 0, 0, 0, 1, 1]).bool()

    def keep(gate):
        return solved_gate(rewards, ids, demo, gate=gate).tolist()

    assert keep(0) == [True, True, False, False, True, False]
    assert keep(-1) == (~demo).tolist()
    assert keep(2) == demo.tolist()
    assert keep(1) == keep(0)
