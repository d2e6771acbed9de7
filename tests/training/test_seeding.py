"""One seed, many named streams that do not disturb each other."""

import random

import numpy as np
import torch

from offrl.training.seeding import normal, seed_globally, stream, streams


def numbers(generator, n=1000):
    return torch.rand(n, generator=generator)


def test_the_same_seed_and_name_give_the_same_numbers():
    assert torch.equal(numbers(stream(7, "data")), numbers(stream(7, "data")))


def test_seeds_and_names_give_different_streams():
    """All pairs of 50 seeds and 4 names start differently, neighbouring seeds included."""
    starts = {
        (s, name): stream(s, name).initial_seed()
        for s in range(50)
        for name in ("init", "noise", "data", "eval")
    }
    assert len(set(starts.values())) == len(starts)


def test_streams_of_neighbouring_seeds_are_uncorrelated():
    """The correlation of n independent pairs has standard error 1 / sqrt(n); 5 of them at n = 100 000."""
    a, b = (numbers(g, 100_000) for g in streams((0, 1), "data"))
    assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1].item()) < 5 / 100_000**0.5


def test_drawing_from_one_stream_does_not_move_another_nor_the_global_one():
    torch.manual_seed(0)
    before, kept = torch.get_rng_state(), numbers(stream(0, "noise"))
    first, second = stream(0, "data"), stream(0, "noise")
    numbers(first)
    assert torch.equal(numbers(second), kept)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_streams_are_pinned():
    """A run is reproduced from its seed by a later version only if these numbers never change."""
    assert stream(0, "init").initial_seed() == 7518656201426917601
    assert stream(12345, "noise").initial_seed() == 1534631340589974837


def test_normal_draws_come_from_each_seeds_own_stream():
    stacked = normal((5, 2), streams((0, 1, 2), "noise"))
    assert stacked.shape == (3, 5, 2)
    for k in range(3):
        assert torch.equal(stacked[k : k + 1], normal((5, 2), [stream(k, "noise")]))


def test_normal_draws_are_standard_normal():
    """Mean 0 with standard error 1/sqrt(n), variance 1 with sqrt(2/n), fourth moment 3 with sqrt(96/n); 5 of
    each.
    """
    n = 200_000
    x = normal((n,), [stream(0, "noise")])[0].double()
    assert abs(x.mean().item()) < 5 / n**0.5
    assert abs(x.square().mean().item() - 1) < 5 * (2 / n) ** 0.5
    assert abs(x.pow(4).mean().item() - 3) < 5 * (96 / n) ** 0.5


def test_the_global_streams_are_seeded_too():
    """For methods of one's own that draw from them; any seed that SeedSequence takes is allowed."""

    def draws():
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()  # noqa: NPY002

    saved = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    seed_globally(5)
    first = draws()
    seed_globally(2**40)
    other = draws()
    seed_globally(5)
    assert draws() == first
    assert all(a != b for a, b in zip(first, other, strict=True))
    torch.set_rng_state(saved[0])
    np.random.set_state(saved[1])  # noqa: NPY002
    random.setstate(saved[2])
