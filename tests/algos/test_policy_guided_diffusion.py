"""The trajectory model: its windows, statistics and loss, exact resume, seeds side by side, what it learns."""

import copy
import dataclasses
import itertools

import pytest
import torch

from offrl.algos import load_algorithm
from offrl.algos.policy_guided_diffusion import (
    PRESETS,
    PolicyGuidedDiffusion,
    PolicyGuidedDiffusionConfig,
    row_statistics,
    window_starts,
)
from offrl.diffusion import edm
from offrl.diffusion.sampler import Sampler, sample_rows
from offrl.errors import ConfigError, DatasetError
from offrl.training.build import make_source
from offrl.training.check import check_algorithm, tiny_problem

SMALL = PolicyGuidedDiffusionConfig(context=8, hidden=32, blocks=2, batch_size=16)


def problem_of(lengths, terminal, seeds=(0,), **fields):
    """Episodes of these lengths; those in ``terminal`` end by termination, the others by a time-out."""
    rows = sum(lengths)
    episode = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    terminated = torch.zeros(rows)
    ends = torch.tensor(lengths).cumsum(0) - 1
    terminated[ends[list(terminal)]] = 1.0
    made = dataclasses.replace(tiny_problem(seeds, rows), episode=episode, terminated=terminated)
    return dataclasses.replace(made, **fields)


def learner_of(problem, config=SMALL):
    return PolicyGuidedDiffusion(problem, config)


def batches(problem, config=SMALL):
    starts = window_starts(problem, config)
    source, streams = (
        make_source(problem, config.batch_size, config.context, starts),
        problem.streams("data"),
    )
    while True:
        yield source.sample(streams)


def trained(problem, updates, learner=None, series=None):
    learner = learner or learner_of(problem)
    for batch in itertools.islice(series or batches(problem), updates):
        learner.update(batch)
    return learner


@pytest.mark.parametrize(
    ("lengths", "terminal", "length", "stride", "wanted"),
    [
        # one episode of 10 ending in termination: starts 0..6 fit; every third 0, 3, 6; 6 ends in the terminal step
        ([10], [0], 4, 3, [0, 3, 6]),
        # the same ending in a time-out: 6 would end in it
        ([10], [], 4, 3, [0, 3]),
        # 6 (terminal), 3 (too short), 7 (time-out): possible are 0 1 2 | 9 10 11 12; every fourth of these is 0, 10
        # besides 2 ends in the terminal step, 9 begins an episode; 12 ends in the time-out
        ([6, 3, 7], [0], 4, 4, [0, 2, 9, 10]),
        # an episode of just L steps, terminal, then one of just L steps, timed out
        ([4, 4], [0], 4, 8, [0]),
        # beginnings come without the stride
        ([5, 5, 5], [], 4, 100, [0, 5, 10]),
    ],
)
def test_the_windows_begin_where_they_should(lengths, terminal, length, stride, wanted):
    """Hand-placed ends; the exact list (pgd sheet 12.8)."""
    config = PolicyGuidedDiffusionConfig(context=length, stride=stride, hidden=32, blocks=2)
    assert window_starts(problem_of(lengths, terminal), config).tolist() == wanted


def test_windows_stay_within_an_episode_and_end_in_termination_only_at_their_last_step():
    config = dataclasses.replace(SMALL, stride=1)
    problem = problem_of([30, 9, 8, 3, 50, 8], [1, 3, 4, 5])
    starts = window_starts(problem, config)
    rows = starts[:, None] + torch.arange(8)
    assert (problem.episode[rows] == problem.episode[starts][:, None]).all()
    assert (problem.terminated[rows[:, :-1]] == 0).all()
    assert problem.terminated[rows[:, -1]].sum() == 3  # of the three long enough
    batch = next(batches(problem, config))
    assert set(batch.rows[0, :, 0].tolist()) <= set(starts.tolist())
    assert (batch.valid == 1).all()


def test_data_without_a_window_are_refused():
    with pytest.raises(DatasetError, match=r"no window of 8 steps fits .* lower --context"):
        window_starts(problem_of([7, 5], [0]), SMALL)
    with pytest.raises(DatasetError, match="no window"):
        window_starts(problem_of([8], []), SMALL)


def test_rows_are_standardized_as_often_as_windows_hold_them():
    """Windows of 2 at rows 0, 1, 1 and 3 hold rows 0 1 1 2 1 2 3 4; a constant column keeps its scale."""
    values = torch.tensor([[1.0, 7.0], [2.0, 7.0], [4.0, 7.0], [8.0, 7.0], [16.0, 7.0]])
    mean, std = row_statistics(values, torch.tensor([0, 1, 3]), 2)
    held = torch.tensor([1.0, 2.0, 2.0, 4.0, 8.0, 16.0])
    assert mean.tolist() == pytest.approx([held.mean().item(), 7.0])
    assert std.tolist() == pytest.approx([held.std(unbiased=False).item(), 1.0])


def test_the_standardized_windows_have_mean_zero_and_unit_variance():
    problem = problem_of([100, 60, 40], [0, 2])
    learner = learner_of(problem)
    starts = window_starts(problem, SMALL)
    rows = learner._raw(problem.observations, problem.actions, problem.rewards, problem.terminated)
    windows = ((rows - learner.mean) / learner.std)[(starts[:, None] + torch.arange(8)).flatten()]
    torch.testing.assert_close(windows.mean(0), torch.zeros(7), rtol=0, atol=1e-4)
    torch.testing.assert_close(windows.var(0, unbiased=False), torch.ones(7), rtol=0, atol=1e-3)


def test_an_update_is_adam_on_the_edm_loss():
    """Gradients by hand from the same levels and noise; the first Adam step moves each weight by the step size."""
    problem = problem_of([100, 100], [0, 1])
    learner, batch = learner_of(problem), next(batches(problem))
    before = [p.detach().clone() for p in learner.training.params]
    saved = [g.get_state() for g in learner.noise]
    metrics = learner.update(batch)
    fresh = learner_of(problem)
    for g, state in zip(fresh.noise, saved, strict=True):
        g.set_state(state)
    rows = fresh._raw(batch.observations, batch.actions, batch.rewards, batch.terminated)
    x = (rows - fresh.mean) / fresh.std
    levels = edm.draw_levels(16, fresh.noise)
    noise = torch.randn((1, 16, 8, 7), generator=fresh.noise[0])
    params = fresh.training.params
    loss = edm.loss(lambda u, c: fresh.net(params, u, c), x, levels, noise)
    torch.testing.assert_close(metrics["denoising_loss"], loss.detach())
    for p, g, old in zip(
        learner.training.params, torch.autograd.grad(loss.sum(), params), before, strict=True
    ):
        large = g.abs() > 1e-4
        moved = (p.detach() - old)[large]
        lr = 2e-3 * 0.1
        torch.testing.assert_close(moved, -lr * g[large].sign(), rtol=1e-3, atol=1e-8)


def test_the_saved_model_has_the_averaged_weights():
    problem = problem_of([100, 100], [0, 1])
    learner = trained(problem, 25)
    model = learner.policy()
    for saved, average, newest in zip(
        model.weights, learner.training.average, learner.training.params, strict=True
    ):
        assert torch.equal(saved, average)
        assert not torch.equal(saved, newest)
    kept = [p.clone() for p in model.weights]
    trained(problem, 10, learner)
    assert all(torch.equal(a, b) for a, b in zip(kept, model.weights, strict=True))


def test_resume_is_exact():
    """2 N updates equal N, save, load into a fresh learner, N more, bit for bit, noise streams included."""
    problem = problem_of([100, 100], [0, 1])
    series = list(itertools.islice(batches(problem), 24))
    whole = trained(problem, 24, series=series)
    half = trained(problem, 12, series=series)
    resumed = learner_of(problem)
    resumed.load_state_dict(copy.deepcopy(half.state_dict()))
    trained(problem, 12, resumed, series[12:])
    for a, b in zip(whole.training.params, resumed.training.params, strict=True):
        assert torch.equal(a, b)
    assert all(
        torch.equal(a, b) for a, b in zip(whole.training.average, resumed.training.average, strict=True)
    )
    assert whole.noise[0].get_state().equal(resumed.noise[0].get_state())


def test_seeds_side_by_side_equal_their_single_runs():
    """Losses of 12 updates to 1e-4; weights to a tenth of the step size, as Adam divides tiny gradients by themselves."""
    lengths, terminal = [100, 100], [0, 1]
    stacked = learner_of(together := problem_of(lengths, terminal, (0, 1, 2)))
    log = [stacked.update(b)["denoising_loss"] for b in itertools.islice(batches(together), 12)]
    for k in range(3):
        single = learner_of(alone := problem_of(lengths, terminal, (k,)))
        own = [single.update(b)["denoising_loss"] for b in itertools.islice(batches(alone), 12)]
        torch.testing.assert_close(torch.stack(log)[:, k], torch.cat(own), rtol=1e-4, atol=1e-5)
        for a, b in zip(stacked.policy(k).weights, single.policy().weights, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=2e-4)


def test_it_learns_the_law_of_its_data():
    """Data: o_t = t, a_t = tanh(0.5 z), r_t = z in windows of 4 rows with one z ~ N(0, 1) each.

    Samples have the ramp in every row, reward 2 artanh(a) and the end in the last row, and are as spread as the data.
    """
    episodes, length = 300, 4
    z = torch.randn(episodes, generator=torch.Generator().manual_seed(1)).repeat_interleave(length)
    problem = problem_of(
        [length] * episodes,
        range(episodes),
        observations=torch.arange(length).float().repeat(episodes)[:, None],
        actions=(0.5 * z).tanh()[:, None],
        rewards=z,
        action_low=-torch.ones(1),
        action_high=torch.ones(1),
        steps=300,
    )
    config = PolicyGuidedDiffusionConfig(
        context=length, hidden=64, blocks=1, stride=1, lr=5e-3, ema_decay=0.8
    )
    learner = trained(problem, 300, learner_of(problem, config), batches(problem, config))
    model = learner.policy()
    rows = model.decode(sample_rows(model, 200, length, torch.Generator().manual_seed(2), Sampler(steps=24)))
    assert (rows.observations[..., 0] - torch.arange(length)).square().mean().sqrt().item() < 0.35
    latent = 2 * rows.actions[..., 0].clamp(-0.999, 0.999).atanh()
    assert (latent - rows.rewards).square().mean().sqrt().item() < 0.35
    assert rows.rewards.mean(1).std().item() == pytest.approx(1.0, abs=0.3)
    assert rows.terminated[:, -1].float().mean() > 0.97
    assert rows.terminated[:, :-1].float().mean() < 0.02


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(value):
    for field in dataclasses.fields(PolicyGuidedDiffusionConfig):
        if isinstance(field.default, float):
            with pytest.raises(ConfigError, match=field.name):
                PolicyGuidedDiffusionConfig(**{field.name: value})


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"hidden": 20}, "features must be a multiple of 8"),
        ({"blocks": 0}, "blocks must be 1"),
        ({"context": 3}, "context must be 2"),
        ({"stride": 0}, "stride must be 1"),
        ({"ema_every": 0}, "ema_every must be 1"),
        ({"warmup": 1.0}, "warmup must be in"),
        ({"ema_decay": 1.0}, "ema_decay must be in"),
        ({"batch_size": 0}, "batch_size must be 1"),
        ({"lr": 2.0}, "lr must be in"),
    ],
)
def test_impossible_settings_are_refused(wrong, why):
    with pytest.raises(ConfigError, match=why):
        PolicyGuidedDiffusionConfig(**wrong)


def test_the_preset_is_the_official_size():
    config = PolicyGuidedDiffusionConfig(**PRESETS["official"])
    problem = problem_of([40], [0], observations=torch.zeros(40, 17), actions=torch.zeros(40, 6))
    assert config.hidden == 1024
    assert load_algorithm("policy_guided_diffusion")[1].config is PolicyGuidedDiffusionConfig
    assert problem.obs_dim + problem.act_dim + 2 == 25  # rows of halfcheetah: 177.7 M parameters


def test_the_checks_of_a_model_pass():
    """What 'offrl algos check' runs on what has no policy: updates, determinism, exact resume."""
    findings = dict(check_algorithm("policy_guided_diffusion"))
    assert len(findings) == 3
    assert set(findings.values()) == {None}, findings


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # raised inside torch's own compiler
def test_compiled_updates_equal_eager_ones():
    problem = problem_of([100, 100], [0, 1])
    eager = trained(problem, 8)
    other = trained(dataclasses.replace(problem, compile=True), 8)
    for a, b in zip(eager.training.params, other.training.params, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5)
