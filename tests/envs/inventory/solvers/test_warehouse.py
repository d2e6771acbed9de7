"""The Federgruen-Zipkin bound: printed values, limits, and the companion policy just above it."""

import numpy as np
import pytest

from offrl.envs.inventory.solvers.base_stock import base_stock
from offrl.envs.inventory.solvers.demand import parse_demand
from offrl.envs.inventory.solvers.warehouse import equalizing_shipments, warehouse
from offrl.errors import ConfigError

PRINTED = {  # stores, correlation -> bound per store for (Ls, p) = (2, 4), (2, 9), (6, 4), (6, 9); Lw = 3
    (3, 0): "5.1514 6.4585 7.2792 9.1261",
    (3, 0.5): "5.7537 7.2136 7.7172 9.6753",
    (5, 0): "4.5912 5.7561 6.6655 8.3567",
    (5, 0.5): "5.2964 6.6402 7.1695 8.9886",
    (10, 0): "4.6735 5.8593 6.9384 8.6989",
    (10, 0.5): "5.5359 6.9405 7.5462 9.4609",
}


def published_stores(stores):
    """Means and standard deviations as the published setting draws them."""
    means = np.round(np.random.RandomState(33).uniform(2.5, 7.5, stores), 3)
    return means, np.round(means * np.random.RandomState(92).uniform(0.25, 0.5, stores), 3)


@pytest.mark.parametrize(("stores", "correlation"), PRINTED)
def test_printed_bounds(stores, correlation):
    means, stds = published_stores(stores)
    got = [
        warehouse(means, stds, correlation, 3, lead_time, 1, p).bound_per_store
        for lead_time in (2, 6)
        for p in (4, 9)
    ]
    assert " ".join(f"{bound:.4f}" for bound in got) == PRINTED[stores, correlation]


def test_the_published_example_level():
    assert warehouse(*published_stores(5), 0.5, 3, 2, 1, 4).level == pytest.approx(158.13, abs=5e-3)


@pytest.mark.parametrize(("centre", "correlation"), [(0, 0.0), (0, 0.7), (3, 1.0), (5, 1.0)])
def test_limits_are_sums_of_newsvendors(centre, correlation):
    """Without a centre, or when the stores' demands move as one, each store is a location of its own."""
    means, stds = np.array([30.0, 40.0, 50.0]), np.array([2.0, 3.0, 1.0])
    alone = [
        base_stock(parse_demand(f"normal:{m},{s}"), centre + 2, 1, 9)
        for m, s in zip(means, stds, strict=True)
    ]
    found = warehouse(means, stds, correlation, centre, 2, 1, 9)
    assert found.bound == pytest.approx(sum(one.cost for one in alone), rel=1e-6)
    assert found.level == pytest.approx(sum(one.level for one in alone), abs=0.02)


def test_shipments_are_feasible_and_equalize():
    g = np.random.default_rng(0)
    means, stds = g.uniform(2, 8, 6), g.uniform(1, 3, 6)
    positions = g.normal(15, 8, size=(500, 6))
    available = g.uniform(0, 60, 500)
    available[:5] = 0
    sent = equalizing_shipments(positions, available, means, stds, 2)
    assert (sent >= 0).all()
    np.testing.assert_allclose(sent.sum(axis=1), available, atol=1e-9)
    after = (positions + sent - 3 * means) / (3**0.5 * stds)
    reached = np.where(sent > 0, after, -np.inf).max(axis=1)
    for row in range(5, 500):
        fed = sent[row] > 0
        np.testing.assert_allclose(after[row][fed], reached[row], atol=1e-9)
        assert (after[row][~fed] >= reached[row] - 1e-9).all()


def test_the_companion_policy_costs_little_more_than_the_bound():
    """The sheet's example, simulated: 5.321 against a bound of 5.296."""
    means, stds = published_stores(5)
    centre, lead, h, p = 3, 2, 1.0, 4.0
    found = warehouse(means, stds, 0.5, centre, lead, h, p)
    covariance = np.outer(stds, stds) * (0.5 + 0.5 * np.eye(5))
    demands = np.random.default_rng(1).multivariate_normal(means, covariance, size=(300, 2000))
    stock = np.tile(means * (lead + 1), (2000, 1))
    coming, ordered = np.zeros((lead - 1, 2000, 5)), np.zeros((centre, 2000))
    costs = np.zeros((300, 2000))
    for t in range(300):
        position = stock + coming.sum(axis=0)
        order = np.maximum(found.level - position.sum(axis=1) - ordered.sum(axis=0), 0)
        sent = equalizing_shipments(position, ordered[0], means, stds, lead)
        left = stock - demands[t]
        costs[t] = (h * np.maximum(left, 0) + p * np.maximum(-left, 0)).sum(axis=1)
        coming = np.concatenate([coming, sent[None]])
        ordered = np.concatenate([ordered[1:], order[None]])
        stock, coming = left + coming[0], coming[1:]
    paths = costs[60:].mean(axis=0) / 5
    error = paths.std() / 2000**0.5
    assert paths.mean() == pytest.approx(5.321, abs=3 * error + 0.013)
    assert paths.mean() > found.bound_per_store - 3 * error
    assert paths.mean() < 1.01 * found.bound_per_store
    assert error < 0.01


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"means": np.ones(2)}, "2 means, 3 stds"),
        ({"stds": np.zeros(3)}, "stds positive"),
        ({"correlation": 1.5}, r"in \[-0.5, 1\], got 1.5"),
        ({"correlation": -0.6}, r"in \[-0.5, 1\]"),
        ({"centre_lead_time": -1}, "lead_time must be 0"),
        ({"penalty": 0}, "penalty must be a positive"),
    ],
)
def test_what_is_refused(change, words):
    typed = {
        "means": np.ones(3),
        "stds": np.ones(3),
        "correlation": 0.5,
        "centre_lead_time": 1,
        "store_lead_time": 1,
    }
    with pytest.raises(ConfigError, match=words):
        warehouse(**({**typed, "holding": 1, "penalty": 9} | change))
