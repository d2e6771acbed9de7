"""Uniform batches: every field from its own row, each seed from its own stream."""

import dataclasses

import pytest
import torch

from offrl.data.source import UniformSource, WindowSource
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


# Windows


LENGTHS = (3, 1, 6)  # of the episodes: rows 0-2, 3, 4-9


def windows(length, batch_size=64, seeds=(0, 1)):
    problem = dataclasses.replace(
        tiny_problem(rows=10), episode=torch.repeat_interleave(torch.tensor([5, 6, 9]), torch.tensor(LENGTHS))
    )
    source = source_of(problem, batch_size, returns_to_go=True, window=length)
    return problem, source.sample(streams(seeds, "data"))


def test_a_window_has_every_field_of_consecutive_rows_and_stops_with_its_episode():
    """From row 1: rows 1, 2, then 2 again; from row 8: 8, 9, 9, 9."""
    problem, batch = windows(4)
    assert batch.rows.shape == batch.steps.shape == batch.valid.shape == (2, 64, 4)
    wanted = {0: [0, 1, 2, 2], 1: [1, 2, 2, 2], 3: [3, 3, 3, 3], 4: [4, 5, 6, 7], 8: [8, 9, 9, 9]}
    valid = {0: [1, 1, 1, 0], 1: [1, 1, 0, 0], 3: [1, 0, 0, 0], 4: [1, 1, 1, 1], 8: [1, 1, 0, 0]}
    steps = {0: [0, 1, 2, 2], 1: [1, 2, 2, 2], 3: [0, 0, 0, 0], 4: [0, 1, 2, 3], 8: [4, 5, 5, 5]}
    seen = set()
    for rows, ok, at in zip(
        batch.rows.view(-1, 4), batch.valid.view(-1, 4), batch.steps.view(-1, 4), strict=True
    ):
        start = rows[0].item()
        seen.add(start)
        if start in wanted:
            assert (rows.tolist(), ok.tolist(), at.tolist()) == (wanted[start], valid[start], steps[start])
    assert seen == set(range(10))
    for name in (*FIELDS, "returns_to_go"):
        assert torch.equal(getattr(batch, name), getattr(problem, name)[batch.rows]), name


def test_windows_start_where_single_rows_are_drawn_and_each_seed_draws_alone():
    problem, batch = windows(3)
    rows = source_of(problem, 64).sample(streams((0, 1), "data")).rows
    assert torch.equal(batch.rows[..., 0], rows)
    assert torch.equal(batch.rows[1:], windows(3, seeds=(1,))[1].rows)


def test_windows_begin_where_they_may_and_each_of_these_places_as_often():
    """Starts 3, 11 and 12 of rows in episodes of 25; 12 000 draws, a third each within 4 standard errors."""
    problem, starts = tiny_problem(), torch.tensor([3, 11, 12])
    fields = [getattr(problem, name) for name in FIELDS]
    source = WindowSource(*fields, episode=problem.episode, length=4, batch_size=6000, starts=starts)
    batch = source.sample(streams((0, 1), "data"))
    assert torch.equal(batch.rows, batch.rows[..., :1] + torch.arange(4))
    counts = (batch.rows[..., 0].flatten()[:, None] == starts).sum(0)
    assert counts.sum() == 12_000
    assert (counts - 4000).abs().max() < 4 * (12_000 * 2 / 9) ** 0.5
    alone = source.sample(streams((1,), "data"))
    assert torch.equal(alone.rows[0], batch.rows[1])
