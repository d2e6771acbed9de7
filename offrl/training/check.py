"""Checks that any algorithm must pass: what 'offrl algos check' runs and what our own tests run on every method."""

import dataclasses
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from offrl.algos import load_algorithm
from offrl.data.batch import Batch
from offrl.data.normalize import ObservationNormalizer
from offrl.data.source import UniformSource
from offrl.nn.policy import load_policy, save_policy
from offrl.training.build import make_source
from offrl.training.checkpoint import load_checkpoint, rng_state, save_checkpoint, set_rng_state
from offrl.training.problem import Algorithm, Learner, Problem
from offrl.training.seeding import seed_globally, stream

OBS_DIM, ACT_DIM, ROWS, UPDATES = 3, 2, 400, 6


def tiny_problem(seeds: tuple[int, ...] = (0,), rows: int = ROWS) -> Problem:
    """A small random problem with O=3, A=2, action box [-1, 1]."""
    rng = np.random.default_rng(7)
    observations = torch.from_numpy(rng.normal(size=(rows, OBS_DIM)).astype(np.float32))
    actions = torch.from_numpy(rng.uniform(-1, 1, size=(rows, ACT_DIM)).astype(np.float32))
    return Problem(
        observations=observations,
        actions=actions,
        rewards=actions[:, 0] - observations[:, 0].abs(),
        next_observations=observations.roll(-1, 0),
        terminated=torch.from_numpy((rng.random(rows) < 0.05).astype(np.float32)),
        next_actions=actions.roll(-1, 0),
        action_low=-torch.ones(ACT_DIM),
        action_high=torch.ones(ACT_DIM),
        normalizer=ObservationNormalizer.identity(OBS_DIM),
        returns_to_go=3.0 * actions[:, 1],
        episode=torch.arange(rows) // 25,
        seeds=seeds,
        steps=100,
    )


def source_of(
    problem: Problem,
    batch_size: int = 32,
    next_actions: bool = False,
    returns_to_go: bool = False,
    window: int = 0,
    starts: torch.Tensor | None = None,
) -> UniformSource:
    """Uniform batches from a problem's own rows, or windows, with the fields asked for."""
    asked = dataclasses.replace(
        problem,
        next_actions=problem.next_actions if next_actions else None,
        returns_to_go=problem.returns_to_go if returns_to_go else None,
    )
    return make_source(asked, batch_size, window, starts)


def check_algorithm(name: str) -> Iterator[tuple[str, str | None]]:
    """Run every check on an algorithm; yields (what was checked, None or what is wrong)."""
    _, method = load_algorithm(name)
    checks = [_updates, _learns_deterministically, _resumes]
    checks += [_saves_policy, stacks, _values] if method.acts else []
    for check in checks:
        seed_globally(0)
        try:
            problem = check(method)
        except Exception as error:  # any failure of foreign code is the finding
            problem = f"{type(error).__name__}: {error}"
        about = (check.__doc__ or "").rstrip(".")
        yield about[:1].lower() + about[1:], problem


def batches(method: Algorithm, problem: Problem) -> Iterator[Batch]:
    """An endless, reproducible series of batches."""
    settings = method.config(**small_settings(method))
    window = settings.context if method.windows else 0
    starts = None if method.starts is None else method.starts(problem, settings)
    source = source_of(problem, 32, method.next_actions, method.returns_to_go, window, starts)
    streams = problem.streams("data")
    while True:
        yield source.sample(streams)


def small_settings(method: Algorithm) -> dict[str, int]:
    """Settings that make a method's networks small, and a model's windows and averages fit into the tiny problem."""
    sizes = {"hidden": 16} if method.acts else {"hidden": 32, "context": 8, "ema_every": 1}
    return {name: value for name, value in sizes.items() if hasattr(method.config, name)}


def _make(method: Algorithm, problem: Problem) -> Learner:
    return method.learner(problem, method.config(**small_settings(method)))


def _updates(method: Algorithm) -> str | None:
    """update() returns finite, declared metrics of shape (S,) without gradients."""
    problem = tiny_problem()
    learner, seen = _make(method, problem), set()
    for batch in itertools.islice(batches(method, problem), UPDATES):
        for key, value in learner.update(batch).items():
            seen.add(key)
            if value.requires_grad:
                return f"metric {key!r} still carries a gradient: detach it"
            if value.numel() != 1 or not torch.isfinite(value).all():
                return f"metric {key!r} is {value.tolist()}; it must be one finite number a seed"
    if seen != set(learner.metrics):
        return f"'metrics' lists {sorted(learner.metrics)} but updates returned {sorted(seen)}"
    return None


def _learns_deterministically(method: Algorithm) -> str | None:
    """Two runs from one seed are equal bit for bit and change the policy."""
    problem = tiny_problem()
    first, second = _train(method, problem, UPDATES), _train(method, problem, UPDATES)
    fresh = _make(method, problem)
    if _differs(first.policy(), second.policy()):
        return "two runs from the same seed differ: draw from problem.streams(...) only"
    return None if _differs(first.policy(), fresh.policy()) else "the policy does not change in training"


def _resumes(method: Algorithm) -> str | None:
    """2N updates equal N updates, save, load into a fresh learner, N updates, bit for bit."""
    problem = tiny_problem()
    series = list(itertools.islice(batches(method, problem), 2 * UPDATES))
    whole = _train(method, problem, 2 * UPDATES)
    half = _train(method, problem, UPDATES)
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder), {"learner": half.state_dict(), "rng": rng_state()})
        seed_globally(99)
        resumed = _make(method, problem)
        state, _ = load_checkpoint(Path(folder))
    if state is None:
        return "the checkpoint was not found again"
    resumed.load_state_dict(state["learner"])
    set_rng_state(state["rng"])
    for batch in series[UPDATES:]:
        resumed.update(batch)
    bad = _unequal(whole.state_dict(), resumed.state_dict())
    return f"state {bad!r} differs after a resume: is it in state_dict()?" if bad else None


def _saves_policy(method: Algorithm) -> str | None:
    """A saved policy acts like the learner's, within the action box."""
    problem = tiny_problem()
    policy = _train(method, problem, UPDATES).policy()
    with tempfile.TemporaryDirectory() as folder:
        save_policy(policy, Path(folder))
        loaded = load_policy(Path(folder))
    actions, again = (
        p.act(problem.observations[:9], deterministic=True, generator=stream(0, "check"))[0]
        for p in (policy, loaded)
    )
    if actions.shape != (9, ACT_DIM) or bool((actions.abs() > 1 + 1e-6).any()):
        return f"act() returned shape {tuple(actions.shape)} or left the action box"
    return None if torch.equal(actions, again) else "the loaded policy acts differently"


def stacks(method: Algorithm) -> str | None:
    """Seed k of a stack of 3 equals its single run to 1e-5."""
    stacked = _train(method, tiny_problem((0, 1, 2)), UPDATES)
    for k in range(3):
        single = _train(method, tiny_problem((k,)), UPDATES)
        observations = tiny_problem().observations
        apart = (stacked.policy(k)(observations) - single.policy()(observations)).abs().max().item()
        if apart > 1e-5:
            return f"seed {k} of the stack is {apart:.2g} away from its single run: reduce trailing axes only"
    return None


def _values(method: Algorithm) -> str | None:
    """q_values(), where the method has it, gives (S, E, B) without gradient."""
    learner = _train(method, tiny_problem((0, 1)), 1)
    if not hasattr(learner, "q_values"):
        return None
    problem = tiny_problem()
    pairs = (x.expand(2, -1, -1) for x in (problem.observations[None, :9], problem.actions[None, :9]))
    q = learner.q_values(*pairs)
    if q.ndim != 3 or (q.shape[0], q.shape[2]) != (2, 9) or q.requires_grad:
        return (
            f"q_values() returned shape {tuple(q.shape)}{' with a gradient' * q.requires_grad}, not (2, E, 9)"
        )
    return None


def _train(method: Algorithm, problem: Problem, updates: int) -> Learner:
    seed_globally(0)
    learner = _make(method, problem)
    for batch in itertools.islice(batches(method, problem), updates):
        learner.update(batch)
    return learner


def _differs(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return _unequal(a.state_dict(), b.state_dict()) is not None


def _unequal(a: Any, b: Any, path: str = "") -> str | None:
    """Where two nested states differ, or None."""
    if isinstance(a, torch.Tensor):
        return None if torch.equal(a, b) else path
    if isinstance(a, dict):
        pairs = [(str(key), a[key], b.get(key)) for key in a] if isinstance(b, dict) else [("?", a, None)]
    elif isinstance(a, list | tuple):
        pairs = [(str(i), x, y) for i, (x, y) in enumerate(zip(a, b, strict=True))]
    else:
        return None if a == b else path
    found = (_unequal(x, y, f"{path}.{key}".lstrip(".")) for key, x, y in pairs)
    return next((bad for bad in found if bad is not None), None)
