"""Training of both chunk policies: what a window holds, what the loss is, two modes, resume, seeds."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from offrl.algos import CHUNKS, load_algorithm
from offrl.diffusion.training import GrowingAverage
from offrl.errors import ConfigError
from offrl.policies.chunk import SCHEDULES
from offrl.policies.learner import chunk_windows
from offrl.training.check import batches, check_algorithm, source_of, tiny_problem

EVERY = pytest.mark.parametrize("name", CHUNKS)
SMALL = {"hidden": 8, "step_embed": 8, "horizon": 4, "n_obs": 1, "n_act": 2, "batch_size": 32}


def learner_of(name, problem, **settings):
    method = load_algorithm(name)[1]
    return method.learner(problem, method.config(**(SMALL | settings)))


@EVERY
def test_every_check_passes(name):
    findings = dict(check_algorithm(name))
    assert len(findings) >= 5
    assert set(findings.values()) == {None}, findings


def test_windows_of_a_short_episode():
    """Five steps, T = 4, To = 2, Ta = 2: from one step before the episode to one after it."""
    problem = dataclasses.replace(tiny_problem(rows=10), episode=torch.tensor([0] * 5 + [1] * 5))
    config = load_algorithm("diffusion_policy")[1].config(horizon=4, n_obs=2, n_act=2)
    first = [[0, 0, 1, 2], [0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 4]]
    rows = chunk_windows(problem, config)
    assert rows.tolist() == first + [[5 + i for i in row] for row in first]
    long = load_algorithm("diffusion_policy")[1].config(horizon=4, n_obs=1, n_act=3)
    own = [[0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 4], [3, 4, 4, 4]]
    assert chunk_windows(problem, long).tolist() == own + [[5 + i for i in row] for row in own]
    source = source_of(problem, 64, window=4, starts=rows)
    batch = source.sample([torch.Generator().manual_seed(0)])
    assert batch.actions.shape == (1, 64, 4, 2)
    drawn = {tuple(row) for row in batch.rows[0].tolist()}
    assert drawn == {tuple(row) for row in rows.tolist()}
    torch.testing.assert_close(batch.actions[0], problem.actions[batch.rows[0]])


@EVERY
def test_the_loss_is_the_papers(name):
    """Written out here for the windows, times and noise that were drawn."""
    learner = learner_of(name, tiny_problem((0, 1)), n_obs=2)
    seen, chunks = torch.randn(2, 6, 6), torch.rand(2, 6, 4, 2) * 2 - 1
    times, noise = learner.draw(chunks)
    _, metrics = learner.gradients(seen, chunks, times, noise)
    for s in range(2):
        if name == "diffusion_policy":
            assert times.dtype == torch.int64
            abar = SCHEDULES["diffusion"].abar[times[s]].float()[:, None, None]
            x, target, told = (
                abar.sqrt() * chunks[s] + (1 - abar).sqrt() * noise[s],
                noise[s],
                times[s].float(),
            )
        else:
            t = times[s][:, None, None]
            x, target, told = (1 - t) * chunks[s] + t * noise[s], noise[s] - chunks[s], 100 * times[s]
        weights = {n: p[s].detach() for n, p in zip(learner.names, learner.training.params, strict=True)}
        out = torch.func.functional_call(learner.net, weights, (x, told, seen[s]))
        torch.testing.assert_close(metrics["loss"][s], (out - target).square().mean())


@EVERY
def test_an_update_sees_the_first_observations_of_a_window_and_the_average_acts(name):
    learner = learner_of(name, tiny_problem(), n_obs=2, lr=0.1, warmup_steps=1)
    batch = next(iter(batches(load_algorithm(name)[1], tiny_problem())))
    batch = dataclasses.replace(
        batch, actions=batch.actions[:, :, :4], observations=batch.observations[:, :, :4]
    )
    told, inner = [], learner._gradients

    def gradients(seen, *rest):
        told.append(seen)
        return inner(seen, *rest)

    learner._gradients = gradients
    for _ in range(3):
        learner.update(batch)
    first = batch.observations[:, :, :2]
    torch.testing.assert_close(told[0], learner.observation_units(first).flatten(2))
    weights = dict(learner.policy().named_parameters())
    for n, average, p in zip(learner.names, learner.training.average, learner.training.params, strict=True):
        assert torch.equal(weights[n], average[0])
        assert not torch.equal(average, p)


@EVERY
def test_times_are_uniform_over_all_levels(name):
    learner = learner_of(name, tiny_problem())
    times = torch.cat([learner.draw(torch.zeros(1, 5000, 1, 1))[0].flatten() for _ in range(4)]).float()
    highest = 99 if name == "diffusion_policy" else 1.0
    assert 0 <= times.min() < 0.02 * highest
    assert 0.99 * highest < times.max() <= highest
    assert times.mean().item() == pytest.approx(highest / 2, rel=0.02)
    assert times.std().item() == pytest.approx(highest / 12**0.5, rel=0.03)


def test_what_the_network_sees_is_within_the_limits_and_constant_columns_are_zero():
    problem = tiny_problem()
    problem = dataclasses.replace(
        problem, observations=problem.observations * torch.tensor([5.0, 0.0, 1.0]) + 3
    )
    learner = learner_of("diffusion_policy", problem)
    seen = learner.observation_units(problem.observations)
    assert seen[:, [0, 2]].amax(0).tolist() == pytest.approx([1, 1], abs=1e-5)
    assert seen[:, [0, 2]].amin(0).tolist() == pytest.approx([-1, -1], abs=1e-5)
    assert seen[:, 1].abs().max() == 0
    torch.testing.assert_close(learner.policy().normalizer("observation")(problem.observations), seen)


def two_ways(rows=400, steps=300):
    """One observation; each episode of 10 steps goes all -0.8 or all 0.8."""
    episode = torch.arange(rows) // 10
    side = torch.where(episode % 2 == 0, 0.8, -0.8)[:, None]
    base = dataclasses.replace(
        tiny_problem(rows=rows), observations=torch.zeros(rows, 3), episode=episode, steps=steps
    )
    jitter = 0.1 * torch.randn(rows, 1, generator=torch.Generator().manual_seed(1))
    return dataclasses.replace(
        base, actions=side + jitter, action_low=-torch.ones(1), action_high=torch.ones(1)
    )


@pytest.mark.slow
@EVERY
def test_both_modes_are_kept_where_cloning_takes_their_mean(name):
    updates = 1000
    problem = two_ways(steps=updates)
    learner = learner_of(name, problem, hidden=32, lr=3e-3, warmup_steps=20)
    source = source_of(problem, 32, window=4, starts=chunk_windows(problem, learner.config))
    generators = problem.streams("data")
    for _ in range(updates):
        learner.update(source.sample(generators))
    plans = learner.policy().plan(torch.zeros(400, 1, 3), torch.Generator().manual_seed(0))[..., 0]
    right = plans[:, 0] > 0
    assert 0.35 < right.double().mean() < 0.65
    assert (plans.abs() - 0.8).abs().mean() < 0.15
    assert (plans.abs() < 0.3).double().mean() < 0.05
    assert (plans.sign() == plans[:, :1].sign()).all(
        1
    ).double().mean() > 0.95  # a plan does not change its mind
    assert problem.actions.mean().abs() < 0.05  # what a mean squared error on actions would learn


def test_cloning_by_squared_error_lands_between_the_modes():
    problem = two_ways()
    method = load_algorithm("bc")[1]
    learner = method.learner(problem, method.config(hidden=16, lr=1e-2))
    source, generators = source_of(problem, 64), problem.streams("data")
    for _ in range(200):
        learner.update(source.sample(generators))
    assert learner.policy()(torch.zeros(1, 3)).abs().item() < 0.3


def test_the_average_forgets_its_first_updates():
    decay = GrowingAverage(0.75)
    assert decay(1) == 0.0
    assert decay(11) == pytest.approx(0.834, abs=1e-3)
    assert decay(10**9) == 0.9999
    learner = learner_of("diffusion_policy", tiny_problem(), lr=0.1, warmup_steps=1)
    method = load_algorithm("diffusion_policy")[1]
    problem, averages = tiny_problem(), None
    stream = (b for b in batches(method, problem))
    for update, batch in enumerate(itertools.islice(stream, 5), 1):
        cut = dataclasses.replace(
            batch, actions=batch.actions[:, :, :4], observations=batch.observations[:, :, :4]
        )
        learner.update(cut)
        new = learner.training.params[0].detach()
        kept = 0.0 if update == 1 else 1 - update**-0.75
        averages = new.clone() if averages is None else kept * averages + (1 - kept) * new
        torch.testing.assert_close(learner.training.average[0], averages)


def test_the_optimizer_is_torchs_adamw_along_the_cosine():
    problem = tiny_problem()
    settings = {"lr": 1e-2, "warmup_steps": 3, "weight_decay": 0.1}
    learner = learner_of("diffusion_policy", problem, **settings)
    own = [p.detach().clone().requires_grad_() for p in learner.training.params]
    other = torch.optim.AdamW(own, lr=1.0, betas=(0.95, 0.999), weight_decay=0.1)
    for update in range(6):
        chunks = torch.rand(1, 8, 4, 2, generator=torch.Generator().manual_seed(update))
        grads, _ = learner.gradients(torch.zeros(1, 8, 3), chunks, *learner.draw(chunks))
        learner.training.apply(grads)
        for p, g in zip(own, grads, strict=True):
            p.grad = g.clone()
        rate = update / 3 if update < 3 else 0.5 * (1 + np.cos(np.pi * (update - 3) / 97))
        other.param_groups[0]["lr"] = 1e-2 * rate
        other.step()
    for a, b in zip(own, learner.training.params, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@EVERY
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"horizon": 10}, "multiple of 4"),
        ({"hidden": 12}, "multiples of 8"),
        ({"n_act": 16}, "at most horizon"),
        ({"warmup_steps": 0}, "warmup_steps"),
        ({"ema_power": 0.0}, "ema_power"),
        ({"weight_decay": float("nan")}, "weight_decay .*nan"),
        ({"denoising_steps": 0}, "1 or more"),
    ],
)
def test_settings_that_do_not_fit_are_refused(name, change, message):
    with pytest.raises(ConfigError, match=message):
        load_algorithm(name)[1].config(**change)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@EVERY
def test_compiled_updates_equal_eager_ones(name):
    logs = []
    for compile_it in (False, True):
        problem = dataclasses.replace(tiny_problem((0, 1)), compile=compile_it)
        learner = learner_of(name, problem, horizon=16, n_obs=2, n_act=8)
        series = itertools.islice(batches(load_algorithm(name)[1], problem), 8)
        logs.append(torch.stack([learner.update(batch)["loss"] for batch in series]))
    torch.testing.assert_close(logs[0], logs[1], rtol=1e-4, atol=1e-5)
