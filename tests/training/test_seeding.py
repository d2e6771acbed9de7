"""One seed, many named streams that do not disturb each other."""

import torch

from offrl.training.seeding import normal, stream, streams


def numbers(generator, n=1000):
    return torch.rand(n, generator=generator)


def test_the_same_seed_and_name_give_the_same_numbers():
    assert torch.equal(numbers(stream(7, "data")), numbers(stream(7, "data")))


def test_seeds_and_names_give_different_streams():
    """All pairs of 50 seeds and 4 names start differently, neighbouring seeds included."""
    starts = {(s, name): stream(s, name).initial_seed() for s in range(50) for name in ("init", "noise", "data", "eval")}
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
    assert stream(0, "init").initial_seed() == PINNED[0, "init"]
    assert stream(12345, "noise").initial_seed() == PINNED[12345, "noise"]


PINNED = {(0, "init"): 0, (12345, "noise"): 0}


def test_normal_draws_come_from_each_seeds_own_stream():
    stacked = normal((5, 2), streams((0, 1, 2), "noise"))
    assert stacked.shape == (3, 5, 2)
    for k in range(3):
        assert torch.equal(stacked[k : k + 1], normal((5, 2), [stream(k, "noise")]))


def test_normal_draws_are_standard_normal():
    """Mean 0 with standard error 1/sqrt(n), variance 1 with sqrt(2/n), fourth moment 3 with sqrt(96/n); 5 of each."""
    n = 200_000
    x = normal((n,), [stream(0, "noise")])[0].double()
    assert abs(x.mean().item()) < 5 / n**0.5
    assert abs(x.square().mean().item() - 1) < 5 * (2 / n) ** 0.5
    assert abs(x.pow(4).mean().item() - 3) < 5 * (96 / n) ** 0.5
