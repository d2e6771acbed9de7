"""Uniform batches: every field from its own row, each seed from its own stream."""

import pytest
import torch

from offrl.data.source import UniformSource
from offrl.training.check import source_of, tiny_problem
from offrl.training.seeding import streams

FIELDS = ("observations", "actions", "rewards", "next_observations", "terminated")
EXTRAS = ("next_actions", "returns_to_go")


def test_every_field_is_the_one_of_the_rows_that_were_drawn():
    """Batches are views of one packed table; with O = 3 and A = 2 a slice that is off by one mixes fields."""
    problem = tiny_problem()
    batch = source_of(problem, 64, next_actions=True, returns_to_go=True).sample(streams((0, 1), "data"))
    assert batch.rows.shape == (2, 64)
    assert batch.rows.dtype == torch.int64
    for name in (*FIELDS, *EXTRAS):
        assert torch.equal(getattr(batch, name), getattr(problem, name)[batch.rows]), name


@pytest.mark.parametrize("asked", [(), ("next_actions",), ("returns_to_go",)])
def test_extra_fields_are_given_only_where_the_method_asks(asked):
    problem = tiny_problem()
    batch = source_of(problem, 4, **dict.fromkeys(asked, True)).sample(streams((0,), "data"))
    for name in EXTRAS:
        value = getattr(batch, name)
        assert (value is not None) is (name in asked)
        assert value is None or torch.equal(value, getattr(problem, name)[batch.rows])


def test_a_stack_draws_what_its_seeds_draw_alone():
    source = source_of(tiny_problem(), 32)
    stacked = source.sample(streams((3, 4, 5), "data"))
    for k, seed in enumerate((3, 4, 5)):
        single = source.sample(streams((seed,), "data"))
        assert torch.equal(stacked.rows[k : k + 1], single.rows)
        assert torch.equal(stacked.observations[k : k + 1], single.observations)


def test_the_same_stream_gives_the_same_series_and_goes_on():
    source = source_of(tiny_problem(), 32)
    a, b = streams((0,), "data"), streams((0,), "data")
    series = [source.sample(a).rows for _ in range(3)]
    assert all(torch.equal(x, source.sample(b).rows) for x in series)
    assert not torch.equal(series[0], series[1])
    assert source.state_dict() == {}  # all that the next batch depends on is in the generator


def test_draws_are_uniform_with_replacement():
    """200 000 draws from 10 rows: each count is binomial(n, 0.1), within 5 standard errors of n / 10."""
    n = 200_000
    column = torch.arange(10.0)
    source = UniformSource(column[:, None], column[:, None], column, column[:, None], column, batch_size=n)
    rows = source.sample(streams((0,), "data")).rows
    counts = torch.bincount(rows.flatten(), minlength=10)
    assert len(source) == len(counts) == 10
    assert ((counts - n / 10).abs() < 5 * (n * 0.1 * 0.9) ** 0.5).all()


@pytest.mark.parametrize("batch_size", [1, 7])
def test_the_batch_size_is_what_was_asked_for(batch_size):
    batch = source_of(tiny_problem(rows=3), batch_size).sample(streams((0, 1), "data"))
    assert batch.rewards.shape == (2, batch_size)
    assert batch.observations.shape == (2, batch_size, 3)


def test_batches_do_not_share_memory_with_the_data_or_each_other():
    problem = tiny_problem()
    source, generators = source_of(problem, 16), streams((0,), "data")
    first, before = source.sample(generators), problem.observations.clone()
    first.observations.zero_()
    assert torch.equal(problem.observations, before)
    assert source.sample(generators).observations.any()
    assert source.table[:, :3].equal(before)
