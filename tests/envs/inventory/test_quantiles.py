"""Quantile forecasts and the newsvendors on them."""

import dataclasses

import pytest
import torch

from offrl.envs.inventory.policies import DemandFacts, load_policy, make_policy, save_policy
from offrl.envs.inventory.quantiles import LEVELS, QuantileForecaster, interpolate, pinball
from offrl.envs.inventory.scenarios import evaluate, rollout
from offrl.envs.inventory.settings import load_setting
from offrl.errors import ConfigError

GRID = torch.arange(1, LEVELS + 1) / 20


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_interpolation_passes_through_the_quantiles_and_goes_straight_on():
    q = torch.tensor([float(i * i) for i in range(1, 20)])
    torch.testing.assert_close(interpolate(q.expand(19, -1), GRID), q, rtol=1e-5, atol=1e-3)
    assert float(interpolate(q, torch.tensor(0.0))) == pytest.approx(2 * 1 - 4)
    assert float(interpolate(q, torch.tensor(1.0))) == pytest.approx(2 * 19**2 - 18**2)
    tau = torch.linspace(0, 1, 101)
    assert (interpolate(q.expand(101, -1), tau).diff() > 0).all()


def test_the_slope_in_tau_is_that_of_the_segment():
    q = torch.tensor([float(i * i) for i in range(1, 20)])
    tau = torch.tensor([0.02, 0.52, 0.99], requires_grad=True)
    (slope,) = torch.autograd.grad(interpolate(q.expand(3, -1), tau).sum(), tau)
    torch.testing.assert_close(slope, 20 * torch.tensor([3.0, 21.0, 37.0]))  # 4 - 1, 11^2 - 10^2, 19^2 - 18^2


def test_pinball_is_least_at_the_quantile():
    sample = torch.rand(2001, generator=generator())
    tries = torch.linspace(0, 1, 201)
    for tau in (0.1, 0.5, 0.9):
        losses = pinball(sample[:, None] - tries, torch.tensor(tau)).mean(0)
        assert abs(float(tries[losses.argmin()]) - float(sample.quantile(tau))) < 0.01
    assert pinball(torch.tensor([2.0, -2.0]), torch.tensor(0.75)).tolist() == [1.5, 0.5]


def backlogged(paths=256):
    setting = load_setting("one_store_backlogged").resized(
        train=paths, dev=4, test=400, periods={"train": 40, "test": 200}
    )
    return setting, setting.draw("train")


@pytest.fixture(scope="module")
def fitted():
    """A forecaster of five periods of Normal(5, 1.6), and its last loss."""
    _, scenarios = backlogged()
    forecaster = QuantileForecaster(0, False, (4,), 5.0, generator())
    return forecaster, forecaster.fit(scenarios, generator(), steps=300, rows=512)


def test_a_fitted_forecaster_knows_the_quantiles_of_five_periods(fitted):
    """L = 4: spread 1.6 sqrt 5 = 3.578, median 25, .9-quantile 25 + 1.2816 x 3.578 = 29.59.

    The pinball losses of a normal's quantiles add up to about 20 x 3.578 / (2 sqrt pi) = 20.2, in units of the mean 4.04.
    """
    forecaster, loss = fitted
    q = forecaster(None, None, 1)[0, 0]
    assert float(q[9]) == pytest.approx(25.0, abs=0.3)
    assert float(q[17]) == pytest.approx(29.59, abs=0.4)
    assert loss == pytest.approx(4.04, abs=0.15)
    assert not any(p.requires_grad for p in forecaster.parameters())


def test_quantile_newsvendor_is_nearly_optimal_with_backlog_and_learned_tau_agrees(fitted, tmp_path):
    setting, scenarios = backlogged()
    facts = DemandFacts.of(setting, scenarios)
    policy, fixed = (
        make_policy(n, setting.network, facts, [generator()]) for n in ("quantile_nv", "fixed_quantile")
    )
    for either in (policy, fixed):
        either.forecaster.load_state_dict(fitted[0].state_dict())
    test = setting.draw("test")
    best = make_policy("base_stock", setting.network, facts, [generator()], levels=29.59)
    gap = evaluate(policy, test, ignore=20).mean() / evaluate(best, test, ignore=20).mean() - 1
    assert float(gap) < 0.01
    with torch.no_grad():
        fixed.free.fill_(torch.tensor(0.9).logit())
        torch.testing.assert_close(
            rollout(fixed, test).costs, rollout(policy, test).costs, rtol=1e-4, atol=1e-3
        )
        save_policy(fixed, tmp_path)
        assert torch.equal(rollout(load_policy(tmp_path), test).costs, rollout(fixed, test).costs)


def test_prepare_fits_the_forecaster_on_training_demand(monkeypatch):
    setting, scenarios = backlogged(8)
    facts = DemandFacts.of(setting, scenarios)
    policy, seen = make_policy("transformed_nv", setting.network, facts, [generator()]), []
    monkeypatch.setattr(QuantileForecaster, "fit", lambda self, data, g, **k: seen.append(data))
    policy.prepare(scenarios)
    assert seen == [scenarios]


def test_returns_are_marked_and_go_below_zero():
    setting, scenarios = backlogged(8)
    facts = DemandFacts.of(setting, scenarios)
    policy = make_policy("returns_nv", setting.network, facts, [generator()])
    assert not policy.admissible
    seen = scenarios.observe(scenarios.initial + 100, 0)
    assert (policy(seen) < 0).all()
    plain = make_policy("quantile_nv", setting.network, facts, [generator()])
    assert not plain(seen).any()


def test_lead_times_of_scenarios_choose_their_own_quantile():
    setting = load_setting("one_store_real_data_lost_demand").resized(train=12)
    scenarios = setting.draw("train")
    facts = DemandFacts.of(setting, scenarios)
    policy = make_policy("quantile_nv", setting.network, facts, [generator()], lead_times=(4, 5, 6))
    seen = scenarios.observe(scenarios.initial, 0)
    found = policy.forecaster(seen.past_demand.flatten(0, 1), seen.days_from_christmas, 12)
    got = policy.quantile(torch.full((12, 1), 0.5), seen)[:, 0]
    for i, lead_time in enumerate(seen.parameters.lead_times[:, 0].tolist()):
        assert float(got[i]) == pytest.approx(max(float(found[i, lead_time - 4, 9]), 0.0), rel=1e-4)


def test_every_lead_time_of_the_series_has_a_forecast_of_its_own():
    """The network has one lane of lead time 6; the series have 4, 5 and 6, also where few of them are drawn."""
    setting = load_setting("favorita_one_store").resized(train=2, dev=2)
    facts = DemandFacts.of(setting, setting.draw("train"))
    for name in ("quantile_nv", "returns_nv", "fixed_quantile", "transformed_nv"):
        policy = make_policy(name, setting.network, facts, [generator()])
        assert policy.forecaster.lead_times == (4, 5, 6)
        assert policy.places[[4, 5, 6]].tolist() == [0, 1, 2]


def test_a_lead_time_without_a_forecast_is_refused():
    setting = load_setting("favorita_one_store").resized(train=12)
    scenarios = setting.draw("train")
    facts = DemandFacts.of(setting, scenarios)
    for few in ((6,), (4, 6), (4, 5)):
        policy = make_policy("quantile_nv", setting.network, facts, [generator()], lead_times=few)
        with pytest.raises(ConfigError, match="and the scenarios have others"):
            policy(scenarios.observe(scenarios.initial, 0))


def test_a_warehouse_is_refused_and_short_demand_too():
    setting = load_setting("one_warehouse_lost_demand")
    facts = DemandFacts(means=setting.demand.means, stds=setting.demand.stds)
    with pytest.raises(ConfigError, match="supplied from 'outside' alone"):
        make_policy("quantile_nv", setting.network, facts, [generator()])
    _, scenarios = backlogged(4)
    with pytest.raises(ConfigError, match="fewer than"):
        QuantileForecaster(0, False, (50,), 5.0, generator()).fit(scenarios, generator(), steps=1)


def test_training_windows_are_past_week_and_future_of_one_series():
    """Demand numbers its own place: what is seen ends where what is to be forecast begins, and so does the calendar."""
    setting = load_setting("favorita_one_store").resized(train=5, dev=5)
    paths = setting.draw("train")
    length = len(paths.demands)
    place = torch.arange(length)[:, None, None] + 1000.0 * torch.arange(5)[None, :, None]
    paths = dataclasses.replace(paths, demands=place, calendar=tuple(float(t) for t in range(length)))
    forecaster = QuantileForecaster(16, True, (4, 6), 1.0, torch.Generator().manual_seed(0))
    last = paths.periods - 7
    past, days, target = forecaster._windows(paths, 4000, last, torch.Generator().manual_seed(0))
    start = days[:, None]
    series = past[:, :1] - start + 16
    torch.testing.assert_close(past, series + start + torch.arange(-16.0, 0))
    for column, periods in enumerate((5, 7)):
        want = (series + start + torch.arange(float(periods))).sum(1)
        torch.testing.assert_close(target[:, column], want)
    assert set(series.flatten().tolist()) == {0.0, 1000.0, 2000.0, 3000.0, 4000.0}
    assert (float(days.min()), float(days.max())) == (16.0, length - 7.0)
