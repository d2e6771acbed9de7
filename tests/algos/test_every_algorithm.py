"""What holds for every method: the checks, seeds side by side, a bandit with known optima, presets, names."""

import dataclasses
import itertools

import pytest
import torch

import offrl.nn.gradients
from offrl.algos import ALGORITHMS, load_algorithm, preset
from offrl.errors import ConfigError
from offrl.training.check import batches, check_algorithm, source_of, tiny_problem
from offrl.training.problem import Algorithm

EVERY = pytest.mark.parametrize("name", ALGORITHMS)


def small(method, width, **settings):
    """The method's default settings in small: every width is ``width``."""
    widths = {
        n: width for n in ("hidden", "policy_hidden", "vae_hidden") if n in method.config.__dataclass_fields__
    }
    return method.config(**widths, **settings)


def train(name, seeds, updates, change=None, **problem_fields):
    """A learner after ``updates`` updates; ``change(batch)`` may alter each batch. Returns it with its
    metrics.
    """
    _, method = load_algorithm(name)
    problem = dataclasses.replace(tiny_problem(seeds), **problem_fields)
    learner, log = method.learner(problem, small(method, 16, batch_size=32)), []
    for batch in itertools.islice(batches(method, problem), updates):
        log.append(learner.update(batch if change is None else change(batch)))
    return learner, log


def weights(learner, seed):
    return [p.detach() for p in learner.policy(seed).parameters()]


@EVERY
def test_every_check_passes(name):
    """What 'offrl algos check' runs: updates, determinism, exact resume, saved policy, stacking."""
    findings = dict(check_algorithm(name))
    assert len(findings) >= 5
    assert set(findings.values()) == {None}, findings


@EVERY
def test_seeds_trained_side_by_side_equal_their_single_runs(name):
    """20 updates of a stack of three: weights and metrics of seed k are those of its own run, to 1e-5."""
    stacked, log = train(name, (0, 1, 2), 20)
    for k in range(3):
        single, own = train(name, (k,), 20)
        for a, b in zip(weights(stacked, k), weights(single, 0), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
        for together, alone in zip(log, own, strict=True):
            assert together.keys() == alone.keys()
            for metric in alone:
                torch.testing.assert_close(together[metric][k], alone[metric].squeeze(), rtol=1e-4, atol=1e-5)


@EVERY
def test_one_seeds_data_do_not_reach_the_others(name):
    """Rewards, actions and order of seed 1's rows change in every batch: seeds 0 and 2 stay bit-equal."""

    def change(batch):
        def flip(x):
            return torch.stack([x[0], x[1].flip(0), x[2]])

        fields = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
        changed = {n: flip(x) for n, x in fields.items() if x is not None}
        factor = torch.tensor([1.0, -0.5, 1.0])
        for name in ("rewards", "actions"):
            changed[name] = changed[name] * factor.view(-1, *(1,) * (changed[name].dim() - 1))
        return dataclasses.replace(batch, **changed)

    one, _ = train(name, (0, 1, 2), 20)
    other, _ = train(name, (0, 1, 2), 20, change)
    for k, equal in ((0, True), (1, False), (2, True)):
        assert (
            all(torch.equal(a, b) for a, b in zip(weights(one, k), weights(other, k), strict=True)) is equal
        )


@EVERY
def test_a_seed_that_diverges_leaves_the_others_alone(name):
    """From the third update on seed 1 sees NaN: its weights become that, those of seeds 0 and 2 stay bit-equal."""

    def change(batch):
        seen.append(batch)
        if len(seen) > 2:
            batch.observations[1] = float("nan")
        return batch

    seen = []
    poisoned, log = train(name, (0, 1, 2), 12, change)
    whole, _ = train(name, (0, 1, 2), 12)
    for k in (0, 2):
        assert all(torch.equal(a, b) for a, b in zip(weights(poisoned, k), weights(whole, k), strict=True))
    assert any(x[1].isnan() for x in log[-1].values())
    assert not any(x[[0, 2]].isnan().any() for x in log[-1].values())
    assert any(w.isnan().any() for w in weights(poisoned, 1))


@EVERY
def test_the_values_are_those_of_the_critics_that_learn(name):
    """Mean Q at the data's actions, before an update, is what the update reports; methods without critics have none."""
    _, method = load_algorithm(name)
    problem = dataclasses.replace(
        tiny_problem((0, 1, 2)), action_low=torch.tensor([-2.0, -1.0]), action_high=torch.tensor([2.0, 5.0])
    )
    learner = method.learner(problem, small(method, 16, batch_size=32))
    assert hasattr(learner, "q_values") == (name not in ("bc", "decision_transformer", "odice"))
    for batch in itertools.islice(batches(method, problem), 3):
        before = learner.q_values(batch.observations, batch.actions) if hasattr(learner, "q_values") else None
        metrics = learner.update(batch)
        if before is not None:
            assert before.shape[0] == 3
            assert not before.requires_grad
            torch.testing.assert_close(before.mean(dim=(1, 2)), metrics["q_data"], rtol=1e-5, atol=1e-6)


BEST = 0.4  # of the bandit's actions


def bandit(rows=200):
    """One state, one step, one action dim: reward 1 - (a - 0.4)^2; the data's actions have mean -0.2 and
    cover [-1, 1].
    """
    actions = -1 + 2 * torch.linspace(0, 1, rows)[:, None] ** 1.5
    return dataclasses.replace(
        tiny_problem((0, 1, 2), rows),
        observations=torch.zeros(rows, 3),
        actions=actions,
        rewards=1 - (actions[:, 0] - BEST).square(),
        next_observations=torch.zeros(rows, 3),
        next_actions=actions,
        returns_to_go=1 - (actions[:, 0] - BEST).square(),
        terminated=torch.ones(rows),
        episode=torch.arange(rows),
        action_low=-torch.ones(1),
        action_high=torch.ones(1),
        steps=100_000,
    )


def optimum(name, problem):
    """Where the method's objective has its optimum, from the data and the true reward function.

    BC: the mean action. IQL: a Gaussian's weighted likelihood is highest at sum w a / sum w, w = exp(3 r), V
    cancels; AWAC: the same, as its baseline is drawn apart from a. O-DICE: w = max(0, r - V) with V = mean r + 2/3,
    the fixed point at lam 0.6 while every r - V is above -2. TD3+BC: lambda (best - pi) = pi - mean a with
    lambda = 2.5 / Q(pi), solved by iteration; ReBRAC likewise with lambda = 1 / (actor_bc_coef Q(pi)). PRDC: the
    data are dense, so that the anchor holds nothing back and the best action itself is left. A2PR: both targets pull
    towards the best action. SAC-N, EDAC: the best action too, at an entropy of -1. CQL, Cal-QL: the weight of their
    gap is 0 here, which leaves that as well.
    """
    mean = problem.actions.mean().item()
    if name == "bc":
        return mean
    if name == "fql":
        return (10 * problem.actions.median().item() + BEST) / 11
    if name == "odice":
        w = (problem.rewards - problem.rewards.mean() - 2 / 3).clamp(min=0)
        return ((w * problem.actions[:, 0]).sum() / w.sum()).item()
    if name in ("iql", "awac"):
        w = torch.exp(3 * problem.rewards)
        return ((w * problem.actions[:, 0]).sum() / w.sum()).item()
    if name in ("td3_bc", "rebrac"):
        pi, alpha = mean, 2.5 if name == "td3_bc" else 1 / 0.01
        for _ in range(50):
            scale = alpha / (1 - (pi - BEST) ** 2)
            pi = (scale * BEST + mean) / (scale + 1)
        return pi
    return BEST


@EVERY
def test_it_finds_the_optimum_of_a_bandit_from_three_seeds(name):
    """The mean action over the last 50 of 400 updates; over 15 seeds it was at most 0.15 away, the start 0.2
    to 0.6.

    The critic gets five steps for each of the actor's, lest the actor saturates before there is a Q to
    follow.
    """
    _, method = load_algorithm(name)
    problem, fields = bandit(), method.config.__dataclass_fields__
    wanted = {
        "policy_delay": 5,
        "cql_alpha": 0.0,
        "return_scale": 1.0,
        "warmup_steps": 1,
        "layers": 1,
        "context": 2,
    } | {f: 5e-3 for f in fields if f.endswith("lr")}
    learner = method.learner(problem, small(method, 32, **{f: x for f, x in wanted.items() if f in fields}))
    source = source_of(problem, 64, method.next_actions, method.returns_to_go, 2 * method.windows)
    generators, last = problem.streams("data"), []
    for update in range(400):
        learner.update(source.sample(generators))
        if update >= 350 and update % 10 == 0:
            last.append([learner.policy(seed)(torch.zeros(1, 3)).item() for seed in range(3)])
    for seed in range(3):
        assert sum(actions[seed] for actions in last) / len(last) == pytest.approx(
            optimum(name, problem), abs=0.15
        )


@EVERY
def test_under_autocast_metrics_stay_float32_and_are_those_of_float32(name):
    """What '--precision bf16' turns on: means over a thousand bfloat16 numbers would be wrong."""
    _, exact = train(name, (0, 1), 3)
    with torch.autocast("cpu", torch.bfloat16):
        _, rounded = train(name, (0, 1), 3)
    for one, other in zip(exact, rounded, strict=True):
        assert {x.dtype for x in other.values()} == {torch.float32}
        for metric in ("q_data", "critic_loss", "value", "actor_loss"):
            if metric in one:
                torch.testing.assert_close(one[metric], other[metric], rtol=0.1, atol=0.1)


@EVERY
def test_compile_reaches_every_method(name, monkeypatch):
    """'--compile' is an option of each: what it compiles returns the gradients, the eager code stands in here."""
    seen = []
    monkeypatch.setattr(offrl.nn.gradients, "_compiled", lambda function: seen.append(function) or function)
    train(name, (0,), 2, compile=True)
    assert seen


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # raised inside torch's own compiler
@EVERY
def test_compiled_updates_equal_eager_ones(name):
    """20 updates, weights and metrics to 1e-5. Needs a C++ compiler."""
    eager, log = train(name, (0, 1), 20)
    compiled, other = train(name, (0, 1), 20, compile=True)
    for seed in range(2):
        for a, b in zip(weights(eager, seed), weights(compiled, seed), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    for a, b in zip(log, other, strict=True):
        torch.testing.assert_close(dict(a), dict(b), rtol=1e-4, atol=1e-5)


@EVERY
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_refused_for_every_setting(name, value):
    """NaN passes every check written as 'x < 0', and then trains to NaN."""
    config = load_algorithm(name)[1].config
    numbers = [f.name for f in dataclasses.fields(config) if isinstance(f.default, float)]
    assert len(numbers) >= 2
    for setting in numbers:
        with pytest.raises(ConfigError, match=f"{setting} .*{value}"):
            config(**{setting: value})


# Presets and names


def two_presets():
    presets = {"hopper-": {"alpha": 1.0}, "hopper-medium-": {"alpha": 2.0}, "ant-": {"alpha": 3.0}}
    return Algorithm(config=object, learner=lambda problem, config: None, presets=presets)


def test_the_longest_fitting_prefix_wins():
    method = two_presets()
    assert preset(method, "hopper-medium-v2") == {"alpha": 2.0}
    assert preset(method, "hopper-medium-") == {"alpha": 2.0}
    assert preset(method, "hopper-random-v2") == {"alpha": 1.0}
    assert preset(method, "hopper-mediu") == {"alpha": 1.0}


def test_presets_of_d4rl_antmaze_are_not_those_of_ogbench():
    """Rewards of 0 and 1 there, of -1 and 0 here: r - 1 would be -2 and -1."""
    td3_bc = load_algorithm("td3_bc")[1]
    for method in (load_algorithm(name)[1] for name in ("iql", "td3_bc", "prdc", "odice")):
        assert preset(method, "antmaze-large-play-v2")
        with pytest.raises(ConfigError, match="no preset for 'antmaze-large-navigate-singletask-v0'"):
            preset(method, "antmaze-large-navigate-singletask-v0")
    own = Algorithm(td3_bc.config, td3_bc.learner, {"cube-": {"alpha": 3.0}, "antmaze-": {"alpha": 4.0}})
    assert preset(own, "cube-single-play-singletask-v0") == {"alpha": 3.0}


def test_a_preset_may_be_named_with_its_scheme():
    iql = load_algorithm("iql")[1]
    assert preset(iql, "d4rl:hopper-medium-v2") == preset(iql, "hopper-medium-v2")


@pytest.mark.parametrize("name", ["antmaze-umaze-v2", "my-hopper-medium-v2", "hopper", ""])
def test_a_name_that_no_preset_begins_is_refused_with_the_presets_there_are(name):
    """'ant-' is no prefix of 'antmaze-umaze-v2'; a preset must begin the name, not merely be in it."""
    with pytest.raises(ConfigError, match=rf"no preset for '{name}'; .*: ant-, hopper-, hopper-medium-"):
        preset(two_presets(), name)


def test_a_method_without_presets_says_none():
    with pytest.raises(ConfigError, match=r"no preset for 'hopper-medium-v2'; .*: none"):
        preset(load_algorithm("bc")[1], "hopper-medium-v2")


def test_changing_what_preset_returned_does_not_change_the_preset():
    method = two_presets()
    preset(method, "ant-v2")["alpha"] = 9.0
    assert preset(method, "ant-v2") == {"alpha": 3.0}


@EVERY
def test_every_preset_is_a_valid_setting(name):
    _, method = load_algorithm(name)
    for key, settings in method.presets.items():
        config = method.config(**preset(method, key))
        assert {k: getattr(config, k) for k in settings} == settings


def test_the_presets_of_iql_are_those_of_its_official_scripts():
    iql = load_algorithm("iql")[1]
    assert preset(iql, "hopper-medium-v2") == {"return_range_scaling": True}
    assert preset(iql, "ant-medium-v2") == preset(iql, "hopper-medium-v2")  # ours
    assert preset(iql, "antmaze-large-play-v2") == {
        "expectile": 0.9,
        "temperature": 10.0,
        "reward_shift": -1.0,
    }
    assert (
        preset(iql, "pen-human-v1") == preset(iql, "kitchen-mixed-v0") == {"temperature": 0.5, "dropout": 0.1}
    )


@pytest.mark.parametrize(("name", "hint"), [("td3bc", "td3_bc"), ("td3-bc", "td3_bc"), ("prcd", "prdc")])
def test_a_misspelt_name_is_refused_with_the_nearest(name, hint):
    with pytest.raises(ConfigError, match=f"unknown algorithm '{name}'; did you mean '{hint}'"):
        load_algorithm(name)


def test_a_file_is_loaded_by_its_path_and_must_declare_an_algorithm(tmp_path):
    good, bad = tmp_path / "mine.py", tmp_path / "empty.py"
    good.write_text("from offrl.algos.bc import ALGORITHM\n")
    bad.write_text("x = 1\n")
    name, method = load_algorithm(str(good))
    assert name == "mine"
    assert isinstance(method, Algorithm)
    with pytest.raises(
        ConfigError, match=r"empty.py declares no ALGORITHM = offrl.training.problem.Algorithm"
    ):
        load_algorithm(str(bad))
    with pytest.raises(FileNotFoundError, match=r"no algorithm file .*none.py"):
        load_algorithm(str(tmp_path / "none.py"))
