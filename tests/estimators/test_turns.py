"""Turns: their means are those of loops."""

import torch

from offrl.estimators.turns import Turns

STEPS = torch.tensor(
    [[0, 0, -1, 1, -1, 2], [0, -1, 1, 1, 1, -1], [0, -1, -1, -1, -1, -1], [0, 1, 2, 3, -1, -1]]
)
MASK = STEPS >= 0
MASK[3] = False  # a row of which nothing is learnt
X = torch.arange(24.0, dtype=torch.float64).view(4, 6) ** 1.5


def test_means_of_turns_are_those_of_loops():
    found = Turns(STEPS, MASK)
    assert found.mean(X).shape == (4, 4)
    for b in range(4):
        for k in range(4):
            own = [float(X[b, t]) for t in range(6) if STEPS[b, t] == k and MASK[b, t]]
            assert bool(found.present[b, k]) == bool(own)
            assert abs(float(found.mean(X)[b, k]) - (sum(own) / len(own) if own else 0.0)) < 1e-12


def test_values_go_back_to_their_tokens():
    found = Turns(STEPS, MASK)
    spread = found.tokens(torch.arange(16.0).view(4, 4))
    assert spread[0].tolist() == [0, 0, 0, 1, 0, 2]
    assert spread[1].tolist() == [4, 0, 5, 5, 5, 0]
    assert spread[3].abs().sum() == 0


def test_the_next_turn_is_that_of_the_same_row():
    found = Turns(STEPS, MASK).following(torch.arange(1.0, 17.0).view(4, 4))
    assert found.tolist() == [[2, 3, 0, 0], [6, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_turns_that_were_dropped_are_passed_over():
    """As rounds before a summary are: the turn before them is followed by the one after them."""
    steps = torch.tensor([[0, 1, -1, 3, 5, -1], [-1, -1, 2, 3, -1, -1]])
    found = Turns(steps, steps >= 0).following(torch.arange(1.0, 13.0).view(2, 6))
    assert found[0][[0, 1, 3, 5]].tolist() == [2, 4, 6, 0]
    assert found[1][[2, 3]].tolist() == [10, 0]


def test_shares_weigh_turns_the_same_and_add_up_to_one():
    """Two turns of one and nine tokens weigh half each."""
    steps = torch.tensor([[0, *[1] * 9]])
    shares = Turns(steps, steps >= 0).shares()
    torch.testing.assert_close(shares[0, 0], torch.tensor(0.5))
    torch.testing.assert_close(shares[0, 1:].sum(), torch.tensor(0.5))
    sums = Turns(STEPS, MASK).shares().sum(dim=1)
    torch.testing.assert_close(sums, torch.tensor([1.0, 1.0, 1.0, 0.0]))
