"""The models of CDSA: scores against closed forms, inverse dynamics, which rows count, exact resume, repair of actions."""

import copy
import dataclasses
import itertools

import numpy as np
import pytest
import torch

from offrl.algos import load_algorithm
from offrl.algos.cdsa import CDSA, CDSAConfig, data_statistics, valid_mean
from offrl.data.dataset import OfflineDataset
from offrl.data.neighbours import NeighbourIndex
from offrl.diffusion.adjustment import CDSAPolicy
from offrl.errors import ConfigError, DatasetError
from offrl.evaluation.risk import measure_shift
from offrl.nn.policy import Policy
from offrl.training.build import build
from offrl.training.check import check_algorithm, source_of, tiny_problem

QUICK = {"hidden": 64, "blocks": 1, "dynamics_hidden": 8, "lr": 3e-3, "ema_decay": 0.99, "batch_size": 512}
GAIN, NOISE = torch.tensor([[0.3, 0.5]]), 0.1  # a = -K s + N(0, 0.1)


def problem_of(s, a, moved=None, terminated=None, seeds=(0,), **fields):
    """Transitions (s, a, s + moved) with actions in [-1, 1]; ``moved`` is random where it does not matter."""
    moved = torch.randn(s.shape, generator=torch.Generator().manual_seed(9)) if moved is None else moved
    width = a.shape[1]
    made = dataclasses.replace(
        tiny_problem(seeds, len(s)),
        observations=s,
        actions=a,
        next_observations=s + moved,
        terminated=torch.zeros(len(s)) if terminated is None else terminated,
        action_low=-torch.ones(width),
        action_high=torch.ones(width),
    )
    return dataclasses.replace(made, **fields)


def batches(problem, batch_size):
    source, streams = source_of(problem, batch_size), problem.streams("data")
    while True:
        yield source.sample(streams)


def fit(problem, updates, **settings):
    config = CDSAConfig(**QUICK | settings)
    learner = CDSA(problem, config)
    for batch in itertools.islice(batches(problem, config.batch_size), updates):
        learner.update(batch)
    return learner


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear_gaussian(rows, seed=0):
    s = draws(rows, 2, seed=seed)
    return s, -s @ GAIN.T + NOISE**0.5 * draws(rows, 1, seed=seed + 1)


def joint_score(z, sigma):
    """-(Sigma + sigma^2 I)^-1 z of z = [s, a]."""
    covariance = torch.eye(3)
    covariance[2, :2] = covariance[:2, 2] = -GAIN[0]
    covariance[2, 2] = NOISE + GAIN.square().sum()
    return -torch.linalg.solve(covariance + sigma**2 * torch.eye(3), z.T).T


def test_the_closed_form_has_the_numbers_of_the_sheet():
    """At s = (1, -1), a = 2 (cdsa sheet 8.2): what the trained models below are held against."""
    z = torch.tensor([[1.0, -1.0, 2.0]])
    found = [joint_score(z, sigma)[0, 2].item() for sigma in (0.0, 0.1, 0.5)]
    assert found == pytest.approx([-18.0, -15.895, -4.402], abs=1e-3)
    alone = [-(2 + (GAIN @ torch.tensor([1.0, -1.0])).item()) / (NOISE + x**2) for x in (0.1, 0.5)]
    assert alone == pytest.approx([-16.364, -5.143], abs=1e-3)


def relative_error(model, target, sigma):
    """Root mean square error of the score over that of the truth, on points within 2 sd."""
    s, a = linear_gaussian(3000, seed=50)
    keep = (s.abs() < 2).all(1) & ((a + s @ GAIN.T).abs() < 2 * NOISE**0.5).all(1)
    s, a = s[keep], a[keep]
    of_states, of_actions = (step / sigma**2 for step in model.denoising_step(model.standardize(s), a, sigma))
    if target == "joint":
        found, truth = torch.cat((of_states, of_actions), 1), joint_score(torch.cat((s, a), 1), sigma)
    else:
        assert of_states.abs().max() == 0
        found, truth = of_actions, -(a + s @ GAIN.T) / (NOISE + sigma**2)
    return ((found - truth).norm() / truth.norm()).item()


@pytest.mark.parametrize("target", ["joint", "cond_action"])
def test_the_trained_score_is_that_of_the_smoothed_density(target):
    """One noise level, 0.5: joint and action-only scores differ by a fifth there, and each is met to 5 %."""
    model = fit(problem_of(*linear_gaussian(20_000)), 500, levels=1, target=target).policy()
    assert relative_error(model, target, 0.5) < 0.05


def test_several_levels_are_told_apart():
    """0.5 and 0.25 from one network, to 10 % in this short a run."""
    learner = fit(problem_of(*linear_gaussian(20_000)), 500, levels=2, sigma_min=0.25)
    for sigma in (0.25, 0.5):
        assert relative_error(learner.policy(), "joint", sigma) < 0.1


@pytest.mark.slow
def test_all_levels_meet_the_closed_form_to_five_percent():
    """The default ten levels; at 0.1 the score is a small part of what the network puts out."""
    settings = {"hidden": 128, "lr": 1e-3, "batch_size": 2048, "ema_decay": 0.999}
    model = fit(problem_of(*linear_gaussian(200_000)), 8000, **settings).policy()
    for sigma in (0.1, 0.2, 0.5):
        assert relative_error(model, "joint", sigma) < 0.05, sigma


class Fixed(Policy):
    """A policy that is a function of raw observations."""

    def __init__(self, function, obs_dim, act_dim):
        super().__init__(obs_dim, act_dim)
        self.function = function

    def forward(self, observations):
        return self.clip(self.function(observations))


def test_a_data_set_of_one_point_pulls_onto_it():
    """The optimal score is (z0 - z) / sigma^2: one whole step lands on z0 (cdsa sheet 8.3)."""
    s, a = torch.tensor([[2.0, -3.0]]), torch.tensor([[0.4]])
    model = fit(problem_of(s.expand(64, 2), a.expand(64, 1)), 300, levels=1, sigma_max=0.3).policy()
    starts = torch.linspace(-0.2, 1.0, 7)[:, None]
    policy = CDSAPolicy(Fixed(lambda o: starts, 2, 1), model, alpha=1.0, sigma=0.3)
    assert policy(s.expand(7, 2)).flatten().tolist() == pytest.approx([0.4] * 7, abs=0.03)


def test_two_clusters_attract_from_their_own_side():
    """Clusters at -0.8 and 0.8 of sd 0.1: from 0.3 to one, from -0.3 to the other (cdsa sheet 8.4)."""
    a = 0.8 * draws(4000, 1).sign() + 0.1 * draws(4000, 1, seed=1)
    problem = problem_of(torch.zeros(4000, 2), a)
    model = fit(problem, 400, levels=1, sigma_max=0.3).policy()
    starts = torch.tensor([[0.3], [-0.3]])
    policy = CDSAPolicy(Fixed(lambda o: starts, 2, 1), model, alpha=1.0, sigma=0.3, steps=30)
    assert policy(torch.zeros(2, 2)).flatten().tolist() == pytest.approx([0.8, -0.8], abs=0.1)


def test_inverse_and_one_step_model_learn_linear_dynamics():
    """s' = s + A s + B a: I = B^+ (s' - s - A s), so I(s, f(s, a) + B d) = a + d; f is the step (cdsa sheet 8.5)."""
    a_matrix, b = 0.02 * draws(3, 3), torch.tensor([[0.05, 0.0], [0.0, 0.1], [0.05, 0.05]])
    s, a = 3 * draws(20_000, 3, seed=1), 0.8 * (2 * torch.rand(20_000, 2, generator=torch.Generator()) - 1)
    moved = s @ a_matrix.T + a @ b.T
    settings = {"dynamics_hidden": 64, "dynamics_lr": 5e-3, "hidden": 8, "batch_size": 256}
    model = fit(problem_of(s, a, moved), 1200, **settings).policy()
    o, action, d = s[:500], a[:500] / 2, 0.3 * a[500:1000]
    states, there = model.standardize(o), (o @ a_matrix.T + (action + d) @ b.T) / model.step_std
    pinv = (there * model.step_std - o @ a_matrix.T) @ torch.linalg.pinv(b).T
    torch.testing.assert_close(pinv, action + d, rtol=0, atol=1e-4)
    assert (model.inverse(states, there) - pinv).square().mean().sqrt() < 0.04
    moved = (o @ a_matrix.T + action @ b.T) / model.step_std
    assert (model.ahead(states, action) - moved).square().mean().sqrt() < 0.08


def test_actions_out_of_the_data_are_repaired_more_by_a_larger_alpha():
    """Base: the data's mean action + 0.4. Distance to the data falls with alpha, and the return rises (8.6).

    The data's actions are the best ones: r = -(a - a*(s))^2.
    """
    s = draws(20_000, 2)
    best = lambda o: (0.5 * torch.sin(o)).clamp(-0.5, 0.5)  # noqa: E731
    a = best(s) + 0.05 * draws(20_000, 2, seed=1)
    model = fit(problem_of(s, a), 300, levels=1, sigma_max=0.4, target="cond_action").policy()
    index = NeighbourIndex(model.standardize(s), a, 1.0, backend="torch")
    o = draws(400, 2, seed=2)
    base = Fixed(lambda o: best(o) + 0.4, 2, 2)
    shifts, returns = [], []
    for alpha in (0.0, 0.25, 0.5, 0.75, 1.0):
        actions = CDSAPolicy(base, model, alpha=alpha, sigma=0.4)(o)
        shifts.append(measure_shift(index, model.standardize(o), base(o), actions))
        returns.append(-(actions - best(o)).square().sum(1).mean().item())
    distances = [shift.distance_after for shift in shifts]
    assert distances[0] == shifts[0].distance_before
    assert all(later < earlier for earlier, later in itertools.pairwise(distances))
    assert all(later > earlier for earlier, later in itertools.pairwise(returns))
    assert distances[-1] < 0.15 * distances[0]


# Which rows count, and in which units


def test_statistics_by_hand():
    """Terminal rows count for the states alone; a column that never moves has no length; sds are at least 1e-3."""
    s = torch.tensor([[0.0, 5.0, 1.0], [2.0, 5.0, 1.0], [4.0, 5.0, 1.0], [6.0, 5.0, 1.0]])
    moved = torch.tensor([[1.0, 0.1, 0.0], [3.0, 0.3, 0.0], [1.0, 0.3, 0.0], [1e6, 1e6, 1e6]])
    mean, std, step_std, limit = data_statistics(s, s + moved, torch.tensor([0.0, 0.0, 0.0, 1.0]))
    assert mean.tolist() == [3.0, 5.0, 1.0]
    assert std.tolist() == pytest.approx([5**0.5, 1e-3, 1e-3])
    wanted = [moved[:3, k].std(unbiased=False).item() for k in range(2)]
    assert step_std.tolist() == pytest.approx([*wanted, 0.0], rel=1e-4)
    lengths = (moved[:3, :2] / step_std[:2]).norm(dim=1)
    assert limit.item() == pytest.approx(lengths.max().item(), rel=1e-4)


def test_the_longest_step_is_the_99th_percentile():
    moved = torch.arange(1.0, 101.0)[:, None]
    _, _, std, limit = data_statistics(torch.zeros(100, 1), moved, torch.zeros(100))
    assert limit.item() == pytest.approx(99 / std.item(), rel=1e-5)


def test_data_without_a_successor_are_refused():
    with pytest.raises(DatasetError, match="every row is terminal"):
        data_statistics(torch.zeros(3, 1), torch.zeros(3, 1), torch.ones(3))


def test_terminal_rows_teach_nothing_about_dynamics():
    """Successors of terminal rows changed to anything: not a bit of the models differs."""
    s, a = draws(200, 3), draws(200, 2, seed=1).tanh()
    terminated = (draws(200, seed=2) > 0.5).float()
    moved = draws(200, 3, seed=3)
    other = torch.where(terminated[:, None] > 0, 1e4, moved)
    first, second = (
        fit(problem_of(s, a, m, terminated), 6, batch_size=32, hidden=16) for m in (moved, other)
    )
    for x, y in zip(first.policy().state_dict().values(), second.policy().state_dict().values(), strict=True):
        assert torch.equal(x, y)
    errors, valid = torch.tensor([[[1.0, 3.0], [7.0, 7.0]]]), torch.tensor([[1.0, 0.0]])
    assert valid_mean(errors, valid).tolist() == [5.0]
    assert valid_mean(errors, torch.zeros(1, 2)).tolist() == [0.0]


@pytest.mark.parametrize("rows", ["exact", "qlearning"])
def test_rows_cut_by_a_time_limit_without_successor_never_reach_the_models(rows):
    """Episodes at 0 and at 1000: across the cut a shifted successor would be 1000 away."""
    steps = np.tile(np.arange(5.0), 4)[:, None] + np.repeat([0.0, 1000.0, 0.0, 1000.0], 5)[:, None]
    cut = np.tile([False, False, False, False, True], 4)
    arrays = {
        "observations": steps.astype(np.float32),
        "actions": np.zeros((20, 1), np.float32),
        "rewards": np.zeros(20, np.float32),
        "terminated": np.zeros(20, bool),
        "truncated": cut,
    }
    data = OfflineDataset.from_arrays(**arrays)
    config = {"rows": rows, "device": "cpu", "steps": 1, "compile": False, "threads": 1, "seed": 0}
    method = load_algorithm("cdsa")[1]
    learner, source = build(method, CDSAConfig(**QUICK), data, None, config)
    assert len(source) == 16
    mean, _, step_std, _ = learner.statistics
    assert step_std.item() == 0.0, "every step is 1 long"
    assert mean.item() == pytest.approx(501.5)


def test_actions_are_in_half_ranges_of_the_box():
    """The same data in another box and stretched accordingly: the same score weights, to rounding."""
    s, a = draws(300, 3), draws(300, 2, seed=1).tanh()
    small = fit(problem_of(s, a), 6, batch_size=32, hidden=16)
    center, half = torch.tensor([1.0, -2.0]), torch.tensor([4.0, 0.5])
    box = {"action_low": center - half, "action_high": center + half}
    large = fit(problem_of(s, center + half * a, **box), 6, batch_size=32, hidden=16)
    for x, y in zip(small.score.params, large.score.params, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-4)
    assert large.policy().action_high.tolist() == (center + half).tolist()


# The learner


def test_the_levels_are_geometric():
    sigmas = CDSAConfig().sigmas()
    assert sigmas[[0, -1]].tolist() == pytest.approx([0.5, 0.01])
    ratios = sigmas[1:] / sigmas[:-1]
    torch.testing.assert_close(ratios, ratios[:1].expand(9))
    assert CDSAConfig(levels=1, sigma_max=0.2).sigmas().tolist() == pytest.approx([0.2])


def test_an_update_uses_its_own_levels_and_noise():
    """The reported loss by hand; an untouched inverse before the second update, a moved one after."""
    problem = tiny_problem()
    config = CDSAConfig(hidden=16, dynamics_hidden=8, batch_size=32)
    learner, fresh = CDSA(problem, config), CDSA(problem, config)
    series = batches(problem, 32)
    batch = next(series)
    metrics = learner.update(batch)
    assert set(metrics) == {"denoising_loss"}
    assert all(torch.equal(a, b) for a, b in zip(learner.dynamics.params, fresh.dynamics.params, strict=True))
    generator = problem.streams("noise")[0]
    sigma = config.sigmas()[torch.randint(10, (32,), generator=generator)]
    noise = torch.randn((1, 32, 5), generator=generator)
    mean, std = fresh.statistics[:2]
    z = torch.cat(((batch.observations - mean) / std, batch.actions), dim=2) + sigma[None, :, None] * noise
    found = fresh.net(fresh.score.params, z, sigma.log()[None] / 4)
    torch.testing.assert_close(metrics["denoising_loss"], (found - noise).square().mean((1, 2)).detach())
    assert set(learner.update(next(series))) == set(learner.metrics)
    assert not torch.equal(learner.dynamics.params[0], fresh.dynamics.params[0])


def test_the_saved_score_has_the_averaged_weights():
    learner = fit(tiny_problem(), 9, hidden=16)
    model = learner.policy()
    newest, average = learner.score.params, learner.score.average
    for saved, a, b in zip(model.score_weights, average, newest, strict=True):
        assert torch.equal(saved, a)
        assert not torch.equal(saved, b)


def test_resume_is_exact_also_between_two_steps_of_the_dynamics():
    problem = tiny_problem((0, 1))
    series = list(itertools.islice(batches(problem, 32), 9))
    config = CDSAConfig(**QUICK | {"hidden": 16})
    whole, half = CDSA(problem, config), CDSA(problem, config)
    for batch in series:
        whole.update(batch)
    for batch in series[:5]:
        half.update(batch)
    resumed = CDSA(problem, config)
    resumed.load_state_dict(copy.deepcopy(half.state_dict()))
    for batch in series[5:]:
        resumed.update(batch)
    for seed in range(2):
        own, other = (x.policy(seed).state_dict() for x in (whole, resumed))
        assert all(torch.equal(own[name], other[name]) for name in own)


def test_seeds_side_by_side_equal_their_single_runs():
    stacked = fit(tiny_problem((0, 1, 2)), 12, hidden=16, batch_size=32)
    for k in range(3):
        single = fit(tiny_problem((k,)), 12, hidden=16, batch_size=32)
        own, other = single.policy().state_dict(), stacked.policy(k).state_dict()
        for name in own:
            torch.testing.assert_close(own[name], other[name], rtol=0, atol=1e-4)


def test_the_checks_of_a_model_pass():
    findings = dict(check_algorithm("cdsa"))
    assert len(findings) == 3
    assert set(findings.values()) == {None}, findings


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(value):
    for field in dataclasses.fields(CDSAConfig):
        if isinstance(field.default, float):
            with pytest.raises(ConfigError, match=field.name):
                CDSAConfig(**{field.name: value})


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"levels": 0}, "levels must be 1"),
        ({"blocks": 0}, "blocks must be 1"),
        ({"dynamics_hidden": 0}, "dynamics_hidden must be 1"),
        ({"target": "a"}, "target must be joint or cond_action"),
        ({"ema_decay": 1.0}, "ema_decay must be in"),
        ({"sigma_min": 0.5}, "need 0 < sigma_min < sigma_max"),
        ({"dynamics_lr": 0.0}, "dynamics_lr must be in"),
    ],
)
def test_impossible_settings_are_refused(wrong, why):
    with pytest.raises(ConfigError, match=why):
        CDSAConfig(**wrong)


def test_it_says_that_it_is_a_reconstruction():
    import offrl.algos.cdsa as module

    for doc in (module.__doc__, CDSAConfig.__doc__):
        assert "reconstruction, not verified against the authors' code" in doc.lower()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # raised inside torch's own compiler
@pytest.mark.parametrize("settings", [{}, {"levels": 1, "target": "cond_action"}])
def test_compiled_updates_equal_eager_ones(settings):
    problem = tiny_problem((0, 1))
    eager = fit(problem, 8, hidden=16, batch_size=32, **settings)
    other = fit(dataclasses.replace(problem, compile=True), 8, hidden=16, batch_size=32, **settings)
    for own, theirs in zip(eager.score.params, other.score.params, strict=True):
        torch.testing.assert_close(own, theirs, rtol=0, atol=2e-5)
