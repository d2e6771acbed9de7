"""Nearest neighbours: every backend against float64 brute force, ties, bounds, limits in beta, and bad input."""

import sys

import numpy as np
import pytest
import torch

from offrl.data import neighbours
from offrl.data.neighbours import NeighbourIndex
from offrl.errors import ConfigError, MissingExtraError

BACKENDS = ["numba", "scipy", "torch"]


def make_data(kind, count=3000, obs_dim=7, act_dim=3, seed=0):
    """States and actions: spread out, in tight clusters, as tiled copies, or on a coarse lattice full of ties."""
    rng = np.random.default_rng(seed)
    states, actions = rng.normal(size=(count, obs_dim)), rng.uniform(-1, 1, (count, act_dim))
    if kind == "clusters":
        member = rng.integers(8, size=count)
        states = rng.normal(size=(8, obs_dim))[member] + 1e-3 * states
        actions = np.clip(1.5 * rng.uniform(-1, 1, (8, act_dim))[member] + 0.1 * actions, -1, 1)
    if kind == "copies":
        states, actions = np.tile(states[: count // 10], (10, 1)), np.tile(actions[: count // 10], (10, 1))
    if kind == "lattice":
        states, actions = np.round(0.6 * states), np.round(actions)
    return torch.tensor(states, dtype=torch.float32), torch.tensor(actions, dtype=torch.float32)


def make_queries(actions, seed=1, batch=96):
    """Rows with actions near the data's, halfway between lattice points, and anywhere."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(actions), (batch,), generator=generator)
    noise = torch.randn(batch, actions.shape[1], generator=generator)
    near = (actions[rows] + 0.15 * noise).clamp(-1, 1)
    anywhere = 2 * torch.rand(noise.shape, generator=generator) - 1
    kind = torch.arange(batch)[:, None] % 3
    return rows, torch.where(kind == 0, near, torch.where(kind == 1, (2 * anywhere).round() / 2, anywhere))


def make_keys(states, actions, beta, rows, policy_actions):
    points = torch.cat([beta * states, actions], dim=1)
    return points, torch.cat([points[rows, : states.shape[1]], policy_actions], dim=1)


def brute_force(points, keys):
    """Squared distances (B, N) by differences in float64, columns added in order."""
    total = torch.zeros(len(keys), len(points), dtype=torch.float64)
    for d in range(points.shape[1]):
        gap = keys[:, None, d].double() - points[None, :, d].double()
        total += gap * gap
    return total


@pytest.mark.parametrize("beta", [0.0, 0.3, 2.0, 1e4])
@pytest.mark.parametrize("kind", ["spread", "clusters", "copies", "lattice"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_is_brute_force_with_ties_to_the_lowest_row(backend, kind, beta):
    states, actions = make_data(kind)
    rows, policy_actions = make_queries(actions)
    points, keys = make_keys(states, actions, beta, rows, policy_actions)
    squares = brute_force(points, keys)
    lowest = (squares == squares.amin(dim=1, keepdim=True)).int().argmax(dim=1)
    index = NeighbourIndex(states, actions, beta, backend=backend)
    assert torch.equal(index.query(rows, policy_actions), lowest)
    distances, found = index.nearest(keys)
    assert torch.equal(found, lowest)
    torch.testing.assert_close(distances, squares.amin(dim=1).sqrt(), rtol=1e-12, atol=0)


def test_the_data_of_these_tests_has_ties():
    """On a lattice with half-way keys several different rows are equally near, not only copies."""
    states, actions = make_data("lattice")
    points, keys = make_keys(states, actions, 2.0, *make_queries(actions))
    squares = brute_force(points, keys)
    tied = squares == squares.amin(dim=1, keepdim=True)
    different = [len(torch.unique(points[row], dim=0)) for row in tied]
    assert max(different) >= 4
    assert int((tied.sum(dim=1) > 1).sum()) >= 10


@pytest.mark.parametrize("count", [1, 2, 31, 32, 33, 64, 65, 1025])
@pytest.mark.parametrize("backend", BACKENDS)
def test_sizes_around_the_leaf(backend, count):
    states, actions = make_data("spread", count, obs_dim=3, act_dim=2)
    rows, policy_actions = make_queries(actions)
    points, keys = make_keys(states, actions, 0.5, rows, policy_actions)
    index = NeighbourIndex(states, actions, 0.5, backend=backend)
    want = brute_force(points, keys).argmin(dim=1)
    assert torch.equal(index.query(rows, policy_actions), want)
    assert torch.equal(index.nearest(keys)[1], want)


@pytest.mark.parametrize("obs_dim", [1, 11, 17, 29])
@pytest.mark.parametrize("backend", BACKENDS)
def test_several_blocks_of_rows_and_locomotion_widths(backend, obs_dim, monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK_ROWS", 1000)
    monkeypatch.setattr(neighbours, "BLOCK_KEYS", 10)
    states, actions = make_data("spread", 5000, obs_dim, act_dim=6)
    rows, policy_actions = make_queries(actions)
    points, keys = make_keys(states, actions, 0.2, rows, policy_actions)
    index = NeighbourIndex(states, actions, 0.2, backend=backend)
    assert torch.equal(index.query(rows, policy_actions), brute_force(points, keys).argmin(dim=1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_columns_of_very_different_scale(backend):
    """One state column a thousand times wider than the rest: the coarse first pass must not lose a neighbour."""
    states, actions = make_data("clusters")
    states[:, 2] *= 1e3
    states[0, 2] = 1e5
    rows, policy_actions = make_queries(actions)
    points, keys = make_keys(states, actions, 2.0, rows, policy_actions)
    index = NeighbourIndex(states, actions, 2.0, backend=backend)
    assert torch.equal(index.query(rows, policy_actions), brute_force(points, keys).argmin(dim=1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_keys_far_outside_the_data(backend):
    states, actions = make_data("spread")
    keys = 1e9 * torch.randn(8, 10, generator=torch.Generator().manual_seed(0))
    points = torch.cat([states, actions], dim=1)
    distances, _ = NeighbourIndex(states, actions, 1.0, backend=backend).nearest(keys)
    torch.testing.assert_close(distances, brute_force(points, keys).amin(dim=1).sqrt(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_huge_beta_always_finds_the_own_row(backend):
    """Beyond beta = 2 sqrt(A) a_max / (least state distance) no other row can win."""
    states, actions = make_data("spread")
    least = torch.pdist(states.double()).min()
    beta = 1.01 * 2 * actions.shape[1] ** 0.5 / float(least)
    rows, policy_actions = make_queries(actions)
    assert torch.equal(
        NeighbourIndex(states, actions, beta, backend=backend).query(rows, policy_actions), rows
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_answers_action_is_never_farther_than_the_own_one(backend):
    states, actions = make_data("clusters")
    rows, policy_actions = make_queries(actions)
    for beta in (0.0, 0.1, 1.0, 10.0):
        found = NeighbourIndex(states, actions, beta, backend=backend).query(rows, policy_actions)
        own = (policy_actions - actions[rows]).double().square().sum(dim=1)
        other = (policy_actions - actions[found]).double().square().sum(dim=1)
        assert bool((other <= own * (1 + 1e-12)).all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_states_the_action_decides(backend):
    """beta = 0: permuting the states changes no answer."""
    states, actions = make_data("spread")
    rows, policy_actions = make_queries(actions)
    permuted = states[torch.randperm(len(states), generator=torch.Generator().manual_seed(0))]
    first = NeighbourIndex(states, actions, 0.0, backend=backend).query(rows, policy_actions)
    assert torch.equal(
        NeighbourIndex(permuted, actions, 0.0, backend=backend).query(rows, policy_actions), first
    )
    assert torch.equal(first, brute_force(actions, policy_actions).argmin(dim=1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_identical_rows_give_row_zero(backend):
    states, actions = torch.ones(500, 4), torch.ones(500, 2)
    index = NeighbourIndex(states, actions, 2.0, backend=backend)
    assert index.query(torch.tensor([499, 3]), torch.zeros(2, 2)).tolist() == [0, 0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_answers_depend_on_neither_order_nor_history_nor_threads(backend):
    states, actions = make_data("clusters")
    rows, policy_actions = make_queries(actions)
    index = NeighbourIndex(states, actions, 1.0, backend=backend)
    first = index.query(rows, policy_actions)
    index.query(*make_queries(actions, seed=9))
    flipped = index.query(rows.flip(0), policy_actions.flip(0)).flip(0)
    single = torch.cat([index.query(rows[k : k + 1], policy_actions[k : k + 1]) for k in range(len(rows))])
    threads = NeighbourIndex(states, actions, 1.0, backend=backend, threads=3).query(rows, policy_actions)
    for other in (flipped, single, threads):
        assert torch.equal(other, first)


@pytest.mark.parametrize("kind", ["spread", "clusters"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_around_a_query_changes_no_answer(backend, kind):
    """PRDC searches within its update, which '--precision bf16' puts under autocast."""
    states, actions = make_data(kind)
    rows, policy_actions = make_queries(actions)
    index = NeighbourIndex(states, actions, 0.3, backend=backend)
    want = index.query(rows, policy_actions)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(index.query(rows, policy_actions), want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_empty_batch_has_no_answers(backend):
    index = NeighbourIndex(*make_data("spread"), 1.0, backend=backend)
    assert index.query(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 3)).shape == (0,)


def test_a_query_leaves_data_and_graph_alone():
    states, actions = make_data("spread")
    before = states.clone(), actions.clone()
    index = NeighbourIndex(states, actions, 2.0)
    rows, policy_actions = make_queries(actions)
    answers = index.query(rows, policy_actions.requires_grad_())
    assert answers.dtype == torch.int64
    assert not answers.requires_grad
    assert torch.equal(states, before[0])
    assert torch.equal(actions, before[1])
    assert index.build_seconds > 0


def test_auto_takes_the_compiled_tree_for_many_rows_only(monkeypatch):
    assert NeighbourIndex(*make_data("spread", 100), 1.0).backend == "scipy"
    monkeypatch.setattr(neighbours, "FEW_ROWS", 100)
    assert NeighbourIndex(*make_data("spread", 100), 1.0).backend == "numba"
    monkeypatch.setattr(neighbours.importlib.util, "find_spec", lambda name: None)
    assert NeighbourIndex(*make_data("spread", 100), 1.0).backend == "scipy"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3, 2), torch.zeros(4, 1), 1.0), r"\(3, 2\) and \(4, 1\)"),
        ((torch.zeros(0, 2), torch.zeros(0, 1), 1.0), "N >= 1"),
        ((torch.zeros(3), torch.zeros(3, 1), 1.0), r"\(N, O\)"),
        ((torch.zeros(3, 2), torch.zeros(3, 1), -1.0), "beta must be >= 0"),
        ((torch.zeros(3, 2), torch.zeros(3, 1), float("nan")), "beta must be >= 0"),
        ((torch.full((3, 2), float("nan")), torch.zeros(3, 1), 1.0), "not finite"),
        ((torch.ones(3, 2), torch.zeros(3, 1), 1e30), "above 1e\\+15"),
    ],
)
def test_data_that_cannot_be_indexed_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        NeighbourIndex(*arguments)


def test_without_numba_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "offrl.data.box_tree", raising=False)
    with pytest.raises(MissingExtraError, match=r"offrl\[knn\]"):
        NeighbourIndex(*make_data("spread"), 1.0, backend="numba")


def test_an_unknown_backend_is_refused():
    with pytest.raises(ConfigError, match="choose auto, numba, scipy or torch"):
        NeighbourIndex(torch.zeros(3, 2), torch.zeros(3, 1), 1.0, backend="faiss")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("rows", "policy_actions", "message"),
    [
        ([0, 1], [[0.0, 0.0, float("nan")], [0.0] * 3], "has the actor diverged"),
        ([0, 1], [[0.0, 0.0, float("inf")], [0.0] * 3], "has the actor diverged"),
        ([0, 1], [[0.0] * 2] * 2, r"actions \(B, 3\)"),
        ([0], [[0.0] * 3] * 2, r"actions \(B, 3\)"),
        ([3000], [[0.0] * 3], "0 .. 2999"),
        ([-1], [[0.0] * 3], "0 .. 2999"),
    ],
)
def test_bad_queries_are_refused(backend, rows, policy_actions, message):
    index = NeighbourIndex(*make_data("spread"), 1.0, backend=backend)
    with pytest.raises(ConfigError, match=message):
        index.query(torch.tensor(rows), torch.tensor(policy_actions))


def test_bad_keys_are_refused():
    index = NeighbourIndex(*make_data("spread"), 1.0)
    with pytest.raises(ConfigError, match=r"\(B, 10\)"):
        index.nearest(torch.zeros(2, 9))
    with pytest.raises(ConfigError, match="finite"):
        index.nearest(torch.full((2, 10), float("nan")))
