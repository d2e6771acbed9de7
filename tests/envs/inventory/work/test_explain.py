"""The nearest classical policy: one that is classical is found again."""

import numpy as np
import pytest
import torch

from offrl.envs.inventory.work.company import company_of
from offrl.envs.inventory.work.explain import _threshold, nearest
from offrl.envs.inventory.work.planning import min_max, plan_of, setting_of
from tests.envs.inventory.work.test_company import read_tables_of


def test_the_threshold_parts_orders_from_none():
    position = np.array([[5.0, 1, 9, 3, np.nan], [5, 1, 9, 3, 7], [1, 2, 3, 4, 5]])
    orders = np.array([[0, 1, 0, 1, 0], [1, 1, 0, 1, 0], [1, 0, 1, 1, 0]], dtype=bool)
    np.testing.assert_array_equal(_threshold(position, orders), [4, 6, 4.5])


@pytest.mark.parametrize("kind", ["sS", "base-stock"])
def test_levels_of_a_classical_policy_are_found_again(kind, small):
    """Of Asia's item, which may be ordered in every second week only; stock upstream is scarce at times."""
    plan = plan_of(company_of(read_tables_of(small.rows)), 2)
    top = torch.tensor([900.0, 900, 60, 70, 80])
    levels = torch.stack([top if kind == "base-stock" else top * 0.6, top], 1)
    paths = setting_of(plan, "x").draw("dev")
    rule = min_max(plan.network, levels)
    found = nearest(rule, paths, kind)
    np.testing.assert_allclose(found[:, 1], top, atol=1)
    np.testing.assert_allclose(found[:, 0], levels[:, 0], atol=1 if kind == "base-stock" else 12)
    never = nearest(lambda seen: 0 * rule(seen), paths, kind)
    assert (never == 0).all()
