"""HDPO: known gradients, what the state passes on, estimators side by side, seeds, resuming, finding optima."""

import dataclasses
import math

import pytest
import torch

from offrl.algos.hdpo import HDPO, HDPOConfig, Permutations, gradient_spread, rollout_cost
from offrl.envs.inventory import stochastic
from offrl.envs.inventory.network import Parameters
from offrl.envs.inventory.policies import DemandFacts, InventoryPolicy, make_policy
from offrl.envs.inventory.scenarios import Scenarios, evaluate
from offrl.envs.inventory.settings import load_setting
from offrl.envs.inventory.spec import OUTSIDE, Edge, Network, Node
from offrl.errors import ConfigError
from offrl.estimators.rollouts import Rollouts
from offrl.training.seeding import streams


def drawn(name, paths=32, periods=12, **options):
    setting = load_setting(name, **options).resized(train=paths, dev=paths, periods={"train": periods})
    scenarios = setting.draw("train")
    return setting, scenarios, DemandFacts.of(setting, scenarios)


def learner(name, policy, seeds=(0,), paths=32, periods=12, steps=1, **settings):
    _, scenarios, facts = drawn(name, paths, periods)
    return HDPO(scenarios, facts, HDPOConfig(policy=policy, **settings), seeds, steps)


def train(algorithm, updates, batch=8, source=None, data=None, seeds=(0,)):
    source = source or Permutations(len(algorithm.train), batch, len(seeds))
    data = data or streams(seeds, "data")
    return [algorithm.update(source.sample(data)) for _ in range(updates)], source, data


def weights(algorithm, seed=0):
    return [p.detach().clone() for p in algorithm.policy(seed).parameters()]


def test_the_gradient_of_a_newsvendor_is_the_empirical_one():
    """L = 1, empty start, d_0 = 0: order S, then nothing. dL/dS = ((h + p) F(S) - p) / T, F the sample's cdf of d_1."""
    h, p, level, n = 1.0, 9.0, 5.3, 500
    network = Network(
        name="n", lost_sales=False, edges=(Edge(source=OUTSIDE, target="s", lead_time=1),),
        nodes=(Node(name="s", kind="store", holding_cost=h, underage_cost=p),),
    )  # fmt: skip
    d = torch.zeros(2, n, 1)
    d[1, :, 0] = torch.randn(n, generator=torch.Generator().manual_seed(0)) * 1.6 + 5
    scenarios = Scenarios(
        network=network, initial=torch.zeros(n, 1, 1), demands=d, parameters=Parameters.of(network)
    )
    s = torch.tensor(level, requires_grad=True)
    cost = rollout_cost(lambda seen: s.expand(n, 1) * (seen.period == 0), scenarios).sum() / (n * 2)
    (g,) = torch.autograd.grad(cost, s)
    share = float((d[1, :, 0] <= level).float().mean())
    assert float(g) == pytest.approx(((h + p) * share - p) / 2, rel=1e-5)


def loss_gradient(algorithm, **changes):
    costs = rollout_cost(algorithm.net, algorithm.train, **changes)
    return torch.autograd.grad(costs.mean(), list(algorithm.net.parameters()), materialize_grads=True)


@pytest.mark.parametrize(
    ("setting", "policy"), [("serial_system", "mlp_serial"), ("one_store_lost", "mlp_one_store")]
)
def test_truncation_changes_the_gradient_and_checkpoints_do_not(setting, policy):
    algorithm = learner(setting, policy)
    whole = loss_gradient(algorithm)
    for periods in (1, 5, 12):
        for a, b in zip(whole, loss_gradient(algorithm, checkpoint_periods=periods), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    cut = loss_gradient(algorithm, truncation=4)
    assert max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(whole, cut, strict=True)) > 0.01
    both = loss_gradient(algorithm, truncation=4, checkpoint_periods=2)
    for a, b in zip(cut, both, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_detaching_what_the_policy_sees_changes_the_gradient():
    algorithm = learner("serial_system", "mlp_serial")
    blind = rollout_cost(
        lambda seen: algorithm.net(seen._replace(stock=seen.stock.detach())), algorithm.train
    )
    g = torch.autograd.grad(blind.mean(), list(algorithm.net.parameters()))
    assert any(not torch.allclose(a, b, rtol=1e-2) for a, b in zip(loss_gradient(algorithm), g, strict=True))


def test_the_cost_is_that_of_a_plain_rollout_with_its_discount():
    from offrl.envs.inventory.scenarios import rollout

    algorithm = learner("serial_system", "echelon_base_stock")
    for discount in (1.0, 0.9):
        network = dataclasses.replace(algorithm.train.network, discount=discount)
        scenarios = dataclasses.replace(algorithm.train, network=network)
        want = rollout(algorithm.net, scenarios).mean(network)
        got = rollout_cost(algorithm.net, scenarios).sum() / (len(scenarios) * scenarios.periods)
        torch.testing.assert_close(got, want)


def test_sampled_rewards_add_up_to_the_loss_with_its_discount():
    """Without noise a sampled rollout is the plain one, and both estimators have one objective."""
    for name in ("or_gym_inv_management", "one_store_lost"):
        setting = load_setting(name).resized(train=4, dev=4, test=4, periods={"train": 12})
        paths = setting.draw("train")
        policy = make_policy(
            "base_stock", setting.network, DemandFacts.of(setting, paths), streams([0], "init", "cpu")
        )
        with torch.no_grad():
            sampled = stochastic.sample(policy, torch.zeros(1, 1), paths, torch.zeros)
            loss = rollout_cost(policy, paths) / (12 * paths.network.stores)
        torch.testing.assert_close(-sampled.rewards.sum(1), loss)


def test_chunks_of_a_batch_add_up_to_its_gradient():
    """20 paths 8 at a time, two seeds: the parts are unequal and belong to both."""
    batch = torch.stack([torch.arange(20), torch.arange(20).flip(0) + 5])
    one, two = (learner("one_store_lost", "mlp_one_store", (0, 1), chunk=c) for c in (0, 8))
    (a, cost_a), (b, cost_b) = one._pathwise(batch), two._pathwise(batch)
    torch.testing.assert_close(cost_a, cost_b)
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-6)


def test_the_loss_is_the_mean_over_paths_periods_and_stores():
    algorithm = learner("one_warehouse_lost_demand", "echelon_base_stock", paths=6)
    costs = rollout_cost(algorithm.net, algorithm.train)
    metrics = algorithm.update(torch.arange(6)[None])
    torch.testing.assert_close(metrics["cost"], (costs.detach().mean() / (12 * 5))[None])


def test_gradient_norms_are_bounded_by_seed():
    free, bound = (
        learner("one_store_lost", "mlp_one_store", (0, 1), max_grad_norm=n, lr=1e-3) for n in (0.0, 1e-3)
    )
    grads, _ = free._pathwise(torch.arange(8).expand(2, -1))
    norms = torch.stack([sum(g[k].square().sum() for g in grads).sqrt() for k in range(2)])
    seen = []
    bound.trained.apply = lambda g: seen.extend(g)
    torch.testing.assert_close(bound._step(grads), norms)
    for k in range(2):
        assert float(sum(g[k].square().sum() for g in seen).sqrt()) == pytest.approx(1e-3, rel=1e-2)


def test_straight_through_orders_are_whole_and_pass_gradients():
    algorithm = learner("one_store_lost", "mlp_one_store")
    seen = []

    def spy(observation):
        orders = algorithm.net(observation)
        seen.append(observation.stock.detach())
        return orders

    scenarios = dataclasses.replace(algorithm.train, initial=algorithm.train.initial.round())
    costs = rollout_cost(spy, scenarios, straight_through=True)
    assert torch.equal(seen[-1], seen[-1].round())
    g = torch.autograd.grad(costs.sum(), list(algorithm.net.parameters()))
    assert all(bool(x.any()) for x in g)


def test_scaling_demand_stock_and_levels_scales_cost():
    algorithm = learner("serial_system", "echelon_base_stock")
    levels = torch.tensor([40.0, 30.0, 20.0, 10.0])
    big = dataclasses.replace(
        algorithm.train, initial=algorithm.train.initial * 3, demands=algorithm.train.demands * 3
    )
    setting, _, facts = drawn("serial_system")

    def cost(scale, scenarios):
        level = tuple((levels * scale).tolist())
        policy = make_policy("echelon_base_stock", setting.network, facts, [torch.Generator()], levels=level)
        return rollout_cost(policy, scenarios).detach()

    torch.testing.assert_close(cost(3, big), 3 * cost(1, algorithm.train), rtol=1e-4, atol=1e-2)


ESTIMATORS = ["pathwise", "score", "score_rtg", "score_batch", "rloo", "a2c", "ppo"]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_seeds_side_by_side_equal_single_runs(estimator):
    stack = learner("one_store_lost", "mlp_one_store", (3, 4), estimator=estimator)
    log, *_ = train(stack, 3, seeds=(3, 4))
    for k, seed in enumerate((3, 4)):
        single = learner("one_store_lost", "mlp_one_store", (seed,), estimator=estimator)
        own, *_ = train(single, 3, seeds=(seed,))
        for a, b in zip(weights(stack, k), weights(single), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(log[-1]["cost"][k], own[-1]["cost"][0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_resumed_learner_is_bit_equal(estimator):
    new = lambda: learner("one_store_lost", "mlp_one_store", estimator=estimator, lr_decay=True, steps=6)  # noqa: E731
    whole, half = new(), new()
    train(whole, 6)
    _, source, data = train(half, 3)
    state = {k: _copied(v) for k, v in half.state_dict().items()}
    place, streams_at = _copied(source.state_dict()), [g.get_state() for g in data]
    again = new()
    again.load_state_dict(state)
    later, fresh = Permutations(32, 8, 1), streams((0,), "data")
    later.load_state_dict(place)
    for g, saved in zip(fresh, streams_at, strict=True):
        g.set_state(saved)
    train(again, 3, source=later, data=fresh)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(again), strict=True))


def _copied(x):
    if isinstance(x, torch.Tensor):
        return x.clone()
    if isinstance(x, dict):
        return {k: _copied(v) for k, v in x.items()}
    return [_copied(v) for v in x] if isinstance(x, list) else x


@pytest.mark.parametrize(
    ("name", "policy", "part"),
    [("favorita_one_store", "fixed_quantile", "forecaster.body.layers.0"), ("one_store_lost", "item_levels", "multiple")],
)  # fmt: skip
def test_what_was_fitted_before_training_is_in_the_checkpoint(name, policy, part, monkeypatch):
    """It is not fitted anew by whatever machine or version goes on."""
    setting = load_setting(name).resized(train=4, dev=4)
    paths = setting.draw("train")
    cls = type(
        make_policy(policy, setting.network, DemandFacts.of(setting, paths), streams([0], "init", "cpu"))
    )
    monkeypatch.setattr(cls, "prepare", lambda self, scenarios: None)
    made = [HDPO(paths, DemandFacts.of(setting, paths), HDPOConfig(policy=policy), (0, 1)) for _ in range(2)]
    with torch.no_grad():
        made[0].net.state_dict()[part].add_(1.0)
    assert not torch.equal(made[1].net.state_dict()[part], made[0].net.state_dict()[part])
    made[1].load_state_dict(made[0].state_dict())
    for key, value in made[0].net.state_dict().items():
        assert torch.equal(made[1].net.state_dict()[key], value), key


def test_minibatches_cover_every_path_once_an_epoch():
    source, data = Permutations(10, 4, 2), streams((0, 1), "data")
    batches = [source.sample(data) for _ in range(6)]
    assert [b.shape[1] for b in batches] == [4, 4, 2, 4, 4, 2]
    for epoch in (batches[:3], batches[3:]):
        for rows in torch.cat(epoch, 1):
            assert sorted(rows.tolist()) == list(range(10))
    first, second = torch.cat(batches[:3], 1), torch.cat(batches[3:], 1)
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])


def test_seeds_with_paths_of_their_own_take_the_first_ones_equally_often():
    """2 rows fill a batch of 4 by repeating, 8 rows are the epochs of 8, and 6 go on in the next shuffle."""
    source, data = Permutations(10, 4, 3, (2, 8, 6)), streams((0, 1, 2), "data")
    batches = [source.sample(data) for _ in range(3)]
    state = _copied(source.state_dict())
    batches += [source.sample(data) for _ in range(3)]
    assert all(b.shape == (3, 4) for b in batches)
    for batch in batches:
        assert sorted(batch[0].tolist()) == [0, 0, 1, 1]
    for k, (n, epochs) in enumerate(((2, 12), (8, 3), (6, 4))):
        rows = torch.cat([b[k] for b in batches]).view(epochs, n)
        assert (rows.sort(1).values == torch.arange(n)).all()
    assert not torch.equal(torch.cat([b[1] for b in batches[:2]]), torch.cat([b[1] for b in batches[2:4]]))
    again, fresh = Permutations(10, 4, 3, (2, 8, 6)), streams((0, 1, 2), "data")
    for _ in range(3):
        again.sample(fresh)
    other = Permutations(10, 4, 3, (2, 8, 6))
    other.load_state_dict(state)
    assert all(torch.equal(other.sample(fresh), batch) for batch in batches[3:])
    for wrong in ((2, 8), (0, 8, 6), (2, 8, 11)):
        with pytest.raises(ConfigError, match="a number from 1 to 10 for each of 3 seeds"):
            Permutations(10, 4, 3, wrong)


def test_two_orders_of_minibatches_agree_within_noise_and_one_repeats():
    def level(data_seed):
        algorithm = learner("one_store_backlogged", "base_stock", paths=64, periods=20, lr=0.3)
        train(algorithm, 20, batch=32, data=streams((data_seed,), "data"))
        return float(torch.nn.functional.softplus(algorithm.policy().level.detach()))

    first, other = level(0), level(1)
    assert level(0) == first != other
    assert abs(first - other) < 0.5


class Linear(InventoryPolicy):
    """z = w . x + b on the four columns of one store, order softplus(z): w = -.9, b = 26."""

    name = "linear"

    def __init__(self, network, facts, generators):
        super().__init__(network, facts, generators)
        start = torch.tensor([-0.9, -0.9, -0.9, -0.9, 26.0])
        self.weight = torch.nn.Parameter(start.repeat(self.copies, 1))

    def logits(self, seen):
        w = self.by_seed(self.weight, seen)
        return ((seen.stock[:, 0] * w[:, :4]).sum(1) + w[:, 4])[:, None]

    def orders(self, logits, seen):
        return torch.nn.functional.softplus(logits)


@pytest.fixture(scope="module")
def spreads():
    """Mean gradients and variances at sigma 1 of all estimators, 4096 paths of 50 periods."""
    setting, scenarios, facts = drawn("one_store_backlogged", 4096, 50)
    policy = Linear(setting.network, facts, [torch.Generator()])
    found = {}
    for name in ESTIMATORS[:5]:
        config = HDPOConfig(estimator=name, sigma=1.0)
        found[name] = gradient_spread(policy, scenarios, config, torch.Generator().manual_seed(1))
    return found


def test_all_estimators_point_the_same_way(spreads):
    """Batch means of 4096 paths at sigma 1: the sheet's cosines are 1.00, .99, .98, 1.00."""
    want = spreads["pathwise"][0]
    for name, least in (("score", 0.9), ("score_rtg", 0.97), ("score_batch", 0.97), ("rloo", 0.99)):
        assert float(torch.cosine_similarity(want, spreads[name][0], 0)) > least, name


def test_variances_are_ordered_as_measured(spreads):
    """Relative to pathwise about 18, 147, 1.5e3, 7.3e3 at sigma 1; pathwise itself about 169."""
    base = float(spreads["pathwise"][1]) * 1.0
    assert 100 < base < 300
    relative = {name: float(v) / base for name, (_, v) in spreads.items()}
    for name, want in (("rloo", 18), ("score_batch", 147), ("score_rtg", 1.5e3), ("score", 7.3e3)):
        assert want / 2 < relative[name] < want * 2, relative


def test_score_gradients_are_scaled_like_the_pathwise_one(spreads):
    """Same loss, same units: lengths of the mean gradients agree, not only directions."""
    ratio = float(spreads["rloo"][0].norm() / spreads["pathwise"][0].norm())
    assert ratio == pytest.approx(1.0, abs=0.25)


def test_spreads_without_a_value_net_only():
    setting, scenarios, facts = drawn("one_store_backlogged", 4)
    policy = Linear(setting.network, facts, [torch.Generator()])
    with pytest.raises(ConfigError, match="value net"):
        gradient_spread(policy, scenarios, HDPOConfig(estimator="ppo"), torch.Generator())


def test_base_stock_finds_the_critical_ratio():
    """L = 4, p = 9: the .9-quantile of five periods' demand, 29.59 +- .15; cost within .2 % of the optimum, paired."""
    algorithm = learner(
        "one_store_backlogged", "base_stock", paths=1024, periods=40, lr=0.2, lr_decay=True, steps=80
    )
    with torch.no_grad():
        algorithm.net.level.fill_(28.0)
    train(algorithm, 80, batch=512)
    found = float(torch.nn.functional.softplus(algorithm.policy().level.detach()))
    assert found == pytest.approx(29.59, abs=0.15)
    setting = load_setting("one_store_backlogged").resized(test=500, periods={"test": 200})
    test = setting.draw("test")
    best = make_policy("base_stock", setting.network, algorithm.net.facts, [torch.Generator()], levels=29.59)
    costs = [evaluate(p, test, ignore=20).mean() for p in (algorithm.policy(), best)]
    assert float(costs[0] / costs[1]) - 1 < 2e-3


@pytest.mark.parametrize(
    ("estimator", "updates", "lr"), [("rloo", 25, 0.01), ("a2c", 25, 0.01), ("ppo", 8, 1e-3)]
)
def test_score_estimators_learn_too(estimator, updates, lr):
    """A fresh net orders too little; 25 optimizer steps (ppo: 128) take off a twentieth of the cost."""
    settings = {"estimator": estimator, "lr": lr, "sigma": 1.0}
    algorithm = learner("one_store_lost", "mlp_one_store", paths=128, periods=20, **settings)
    log, *_ = train(algorithm, updates, batch=128)
    assert float(log[-1]["cost"]) < 0.95 * float(log[0]["cost"]), [float(x["cost"]) for x in log]


def test_values_telescope_to_the_returns_of_the_two_seeds():
    """Lambda 1, no discount: value plus advantage is the reward to go, whatever the values; nothing after the end."""
    algorithm = learner("one_store_lost", "mlp_one_store", (0, 1), paths=6, estimator="a2c", gae_lambda=1.0)
    rows = torch.arange(6).repeat(2)
    sampled = stochastic.sample(
        algorithm.net, algorithm._log_std(6), algorithm.train.rows(rows), algorithm._noise
    )
    data = algorithm._valued(Rollouts(rewards=sampled.rewards, group_ids=rows), sampled)
    to_go = sampled.rewards.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(data.returns, to_go, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(data.next_values[:, :-1], data.values[:, 1:])
    assert not data.next_values[:, -1].any()
    assert data.values.std() > 0


def test_settings_are_checked():
    for wrong, word in (
        ({"policy": "mlp"}, "unknown policy"), ({"lr": 0.0}, "lr"), ({"sigma": 0.0}, "sigma"), ({"chunk": -1}, "chunk"),
        ({"discount": 1.1}, "discount"), ({"echelon": False}, "echelon has no effect with policy base_stock"), ({"estimator": "rloo", "draws": 1}, "draws"),
        ({"truncation": 5, "checkpoint_periods": 2}, "multiple"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=word):
            HDPOConfig(**wrong)
    assert HDPOConfig(policy="gnn").norm_bound == 1.0
    assert HDPOConfig(policy="base_stock").step_size == 0.5
    with pytest.raises(ConfigError, match="nothing to train"):
        learner("one_store_lost", "myopic_2")


@pytest.mark.parametrize("option", ["truncation", "chunk", "checkpoint_periods", "straight_through"])
def test_settings_of_the_pathwise_gradient_are_refused_by_the_others(option):
    _, scenarios, facts = drawn("one_store_backlogged", 4)
    HDPO(scenarios, facts, HDPOConfig(**{option: True}), (0,))
    for name in ESTIMATORS[1:]:
        with pytest.raises(ConfigError, match=f"{option} has no effect with estimator {name}: leave it out"):
            HDPO(scenarios, facts, HDPOConfig(estimator=name, **{option: True}), (0,))


@pytest.mark.parametrize(
    ("option", "value", "readers"),
    [
        ("sigma", 0.75, ESTIMATORS[1:]),
        ("draws", 3, ["rloo"]),
        ("discount", 0.75, ESTIMATORS[2:]),
        ("gae_lambda", 0.75, ["a2c", "ppo"]),
        ("value_lr", 0.75, ["a2c", "ppo"]),
        ("clip_ratio", 0.75, ["ppo"]),
        ("passes", 3, ["ppo"]),
        ("minibatches", 3, ["ppo"]),
    ],
)
def test_settings_that_an_estimator_does_not_read_are_refused(option, value, readers):
    _, scenarios, facts = drawn("one_store_backlogged", 4)
    for name in ESTIMATORS:
        config = HDPOConfig(estimator=name, **{option: value})
        if name in readers:
            HDPO(scenarios, facts, config, (0,))
        else:
            with pytest.raises(
                ConfigError, match=f"{option} has no effect with estimator {name}: leave it out"
            ):
                HDPO(scenarios, facts, config, (0,))


def test_the_step_size_falls_along_a_cosine():
    algorithm = learner("one_store_lost", "mlp_one_store", lr=0.01, lr_decay=True, steps=4)
    seen = []
    for _ in range(4):
        train(algorithm, 1)
        seen.append(algorithm.trained.lr)
    want = [0.005 * (1 + math.cos(math.pi * k / 4)) for k in range(4)]
    assert seen == pytest.approx(want)


@pytest.mark.slow
def test_a_net_on_lost_sales_comes_within_one_percent():
    """L = 2, p = 4: optimum 4.3953, orders rounded, paired with the optimal policy."""
    from offrl.envs.inventory.policies import rounded

    setting = load_setting("one_store_lost", lead_time=2, underage_cost=4)
    setting = setting.resized(train=8192, dev=64, test=2000, periods={"test": 500})
    scenarios = setting.draw("train")
    facts = DemandFacts.of(setting, scenarios)
    config = HDPOConfig(policy="mlp_one_store", lr=6e-3, lr_decay=True)
    algorithm = HDPO(scenarios, facts, config, (0,), 1500)
    train(algorithm, 1500, batch=1024)
    test = setting.draw("test")
    best = make_policy("optimal", setting.network, facts, [torch.Generator()])
    ours = evaluate(rounded(algorithm.policy(), setting.network), test, ignore=100)
    assert float((ours - evaluate(best, test, ignore=100)).mean()) / 4.3953 < 0.01
