"""Levels from features: the textbook's figures by hand, the season ahead, order sizes, gradients, files."""

import numpy as np
import pytest
import torch
from scipy.stats import norm

from offrl.algos.hdpo import HDPO, HDPOConfig, Permutations, resolved
from offrl.envs.inventory.demand import Poisson
from offrl.envs.inventory.levels import MULTIPLES, ItemLevels, Textbook, describe
from offrl.envs.inventory.policies import DemandFacts, load_policy, save_policy
from offrl.envs.inventory.protocol import Setting, Split
from offrl.envs.inventory.scenarios import Observation, evaluate, rollout
from offrl.envs.inventory.spec import OUTSIDE, Edge, Network, Node
from offrl.errors import ConfigError
from offrl.training.seeding import streams


def two_items(fixed=0.0, pack=0.0):
    """A warehouse with two stores, and a store by itself: two parts without a lane between."""
    nodes = [Node(name="W", kind="warehouse", holding_cost=0.5)]
    nodes += [Node(name=f"s{k}", kind="store", holding_cost=1, underage_cost=9, initial=20) for k in range(3)]
    edges = [
        Edge(source="W", target="s0", lead_time=1), Edge(source="W", target="s1", lead_time=2),
        Edge(source=OUTSIDE, target="W", lead_time=3, fixed_cost=fixed, pack=pack),
        Edge(source=OUTSIDE, target="s2", lead_time=1, calendar=(1, 0)),
    ]  # fmt: skip
    return Network(name="two", nodes=tuple(nodes), edges=tuple(edges), lost_sales=True)


FACTS = DemandFacts(means=(4.0, 6.0, 5.0), stds=(2.0, 3.0, 1.0))


def made(network, facts=FACTS, seeds=(0,)):
    return ItemLevels(network, facts, streams(list(seeds), "init"))


def test_the_textbook_by_hand():
    book = Textbook(two_items(fixed=40.0), FACTS)
    np.testing.assert_allclose(book.mean, [10, 4, 6, 5])
    np.testing.assert_allclose(book.std, [13**0.5, 2, 3, 1], rtol=1e-6)
    np.testing.assert_allclose(book.cover, [4, 2, 3, 3])  # s2: lead time 1 and every second period
    np.testing.assert_allclose(book.batch, [(2 * 40 * 10 / 0.5) ** 0.5, 0, 0, 0])
    want = [40, 8 + norm.ppf(0.9) * 2 * 2**0.5, 18 + norm.ppf(0.9) * 3 * 3**0.5, 15 + norm.ppf(0.9) * 3**0.5]
    np.testing.assert_allclose(book.level[0], want, rtol=1e-4)


def test_levels_look_ahead_at_the_season():
    """An order of period t covers t .. t + lead time; the sum wraps round the year."""
    season = (1.0, 1.0, 1.0, 3.0)
    facts = DemandFacts(means=(4.0, 6.0, 5.0), stds=(2.0, 3.0, 1.0), season=(season, season, (1.0,)))
    book = Textbook(two_items(), facts)
    np.testing.assert_allclose(book.ahead[:, 1], [8, 8, 16, 16])
    np.testing.assert_allclose(book.ahead[:, 2], [18, 30, 30, 30])
    np.testing.assert_allclose(book.ahead[:, 0], [60] * 4)
    np.testing.assert_allclose(book.ahead[:, 3], [15] * 4)
    policy, stock = made(two_items(), facts), torch.zeros(1, 4, 3)
    now, later = (policy.levels(policy.logits(Observation(stock, t, None, None, None)), t)[0] for t in (0, 2))
    assert later[1] > now[1] + 5
    assert abs(later[3] - now[3]) < 0.5
    again = policy.levels(policy.logits(Observation(stock, 4, None, None, None)), 4)[0]
    torch.testing.assert_close(now, again)


def test_it_orders_up_to_the_level_and_the_size_at_or_below_it():
    network = two_items(fixed=40.0)
    policy = made(network)
    policy.multiple.fill_(0.5)
    stock = torch.zeros(3, 4, 3)
    stock[:, 0, 0] = 1000.0
    level = policy.levels(policy.logits(Observation(stock, 0, None, None, None)), 0)[0].detach()
    stock[0, 1:, 0], stock[1, 1:, 0], stock[2, 1:, 0] = level[1:] - 1, level[1:] + 1, level[1:] / 2
    orders = policy(Observation(stock, 0, None, None, None)).detach()
    np.testing.assert_allclose(orders[0], [1, 1, 0, 1], atol=1e-4)
    np.testing.assert_allclose(orders[1], 0, atol=1e-5)
    np.testing.assert_allclose(orders[2, [0, 1, 3]], level[1:] / 2, rtol=1e-4)
    stock[:, 0, 0] = level[0] - 3
    stock[:, 1:, 0] = 1e4
    size = 0.5 * (2 * 40 * 10 / 0.5) ** 0.5
    assert float(policy(Observation(stock, 0, None, None, None))[0, 2].detach()) == pytest.approx(
        3 + size, rel=1e-4
    )
    with pytest.raises(ConfigError, match="hidden must be sizes of 1 or more"):
        ItemLevels(network, FACTS, streams([0], "init"), hidden=(0,))


def setting(network):
    splits = {
        name: Split(scenarios=32, batch=16, periods=40, ignore=10, demand_seed=k) for k, name in enumerate(("train", "dev", "test"))
    }  # fmt: skip
    return Setting(name="two", network=network, demand=Poisson(means=(4.0, 6.0, 5.0)), splits=splits)


def test_order_sizes_are_chosen_part_by_part_and_then_held():
    network = two_items(fixed=60.0)
    paths = setting(network).draw("train")
    policy = made(network)
    policy.prepare(paths)
    assert len(set(policy.multiple[:3].tolist())) == 1
    chosen = float(policy.multiple[0])
    some, costs = paths.rows(torch.arange(8)), []
    for multiple in MULTIPLES:
        policy.multiple.fill_(multiple)
        with torch.no_grad():
            costs.append(float(rollout(policy, some, feasibility="project").costs[:, :, :3].sum()))
    assert MULTIPLES[int(np.argmin(costs))] == chosen > 0
    free = made(two_items())
    free.prepare(paths)
    assert (free.multiple == 1).all()
    assert describe(free) == ""
    policy.multiple.fill_(0.5)
    assert describe(policy) == "order sizes as multiples of Wilson's, nodes by multiple: 0.5: 1"


def test_seeds_choose_the_same_order_sizes_alone_and_side_by_side():
    """Two hundred items, among which some are near a tie: the first weights of a seed must not break it."""
    random, count = np.random.default_rng(0), 200
    nodes = tuple(
        Node(name=f"s{k:03d}", kind="store", holding_cost=1.0, underage_cost=float(random.uniform(3, 20)))
        for k in range(count)
    )
    edges = tuple(
        Edge(
            source=OUTSIDE, target=node.name, lead_time=int(random.integers(1, 4)),
            fixed_cost=float(random.uniform(2, 60)),
        ) for node in nodes
    )  # fmt: skip
    split = Split(scenarios=16, batch=4, periods=40, ignore=2, demand_seed=1)
    setting = Setting(
        name="items", network=Network(name="items", nodes=nodes, edges=edges, lost_sales=True),
        demand=Poisson(means=tuple(random.uniform(1, 20, count))), splits=dict.fromkeys(("train", "dev", "test"), split),
    )  # fmt: skip
    paths = setting.draw("train")
    facts = DemandFacts.of(setting, paths)
    alone, other, both = (
        HDPO(paths, facts, HDPOConfig(policy="item_levels"), seeds).net.multiple for seeds in ((0,), (1,), (0, 1))
    )  # fmt: skip
    assert len(set(alone.tolist())) > 2
    assert torch.equal(alone, other)
    assert torch.equal(alone, both)


def test_training_lowers_the_cost_of_wrong_levels():
    network = two_items(fixed=30.0)
    made_up = setting(network)
    paths, dev = made_up.draw("train"), made_up.draw("dev")
    wrong = DemandFacts(means=(4.0, 6.0, 5.0), stds=(9.0, 12.0, 11.0))
    config = HDPOConfig(policy="item_levels", lr=0.01)
    assert resolved(config, network).estimator == "pathwise"
    learner = HDPO(paths, wrong, config, [0, 1])
    before = evaluate(learner.policy(1), dev, ignore=10).mean()
    source, data = Permutations(len(paths), 16, 2), streams([0, 1], "data")
    for _ in range(60):
        learner.update(source.sample(data))
    after = [float(evaluate(learner.policy(k), dev, ignore=10).mean()) for k in (0, 1)]
    assert max(after) < 0.85 * float(before)
    assert after[0] != after[1]


def test_files_keep_sizes_and_seasons(tmp_path):
    facts = DemandFacts(
        means=(4.0, 6.0, 5.0), stds=(2.0, 3.0, 1.0), season=((0.5, 0.5, 0.5, 2.5), (1.0,), (1.0,))
    )
    policy = made(two_items(fixed=10.0), facts)
    policy.multiple.fill_(0.75)
    save_policy(policy, tmp_path)
    again = load_policy(tmp_path)
    assert again.facts == facts
    stock = torch.rand(5, 4, 3) * 9
    for period in (0, 3):
        seen = Observation(stock, period, None, None, None)
        torch.testing.assert_close(again(seen), policy(seen))
    assert not torch.equal(*(policy(Observation(stock, t, None, None, None)) for t in (0, 3)))
