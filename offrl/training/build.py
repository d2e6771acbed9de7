"""Builds a learner and its batch source from a dataset and the settings of a run."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from offrl.data.dataset import OfflineDataset, Rows, Transitions
from offrl.data.environments import EnvSpec
from offrl.data.normalize import ObservationNormalizer
from offrl.data.source import UniformSource, WindowSource
from offrl.data.split import split_episodes
from offrl.errors import ConfigError, DatasetError
from offrl.evaluation.blocks import step_limit
from offrl.evaluation.environments import make_env
from offrl.training.problem import Algorithm, Learner, Problem

BOUND_TOLERANCE = 1e-4  # recorded float32 actions may exceed the box by rounding


def build(
    method: Algorithm,
    settings: Any,
    data: OfflineDataset,
    spec: EnvSpec | None,
    config: dict[str, Any],
    seeds: Sequence[int] = (),
) -> tuple[Learner, UniformSource]:
    """The learner of ``seeds`` (default: the run's own) and the source of its batches, on the run's device."""
    if config.get("holdout"):
        data = split_episodes(data, config["holdout"])[0]
    if method.prepare is not None:
        data = method.prepare(data, settings)
    rule: Rows = "steps" if method.windows else config["rows"]
    rows = data.transitions(rule, next_actions=method.next_actions)
    low, high = action_box(data, rows, spec)
    if getattr(settings, "normalize_observations", False):
        normalizer = ObservationNormalizer.fit(rows.observations)
    else:
        normalizer = ObservationNormalizer.identity(rows.observations.shape[1])
    device = torch.device(config["device"])
    rewards = scaled_rewards(rows.rewards, data, settings)
    to_go = None
    if method.returns_to_go:
        sparse, discount = getattr(settings, "sparse_rewards", False), getattr(settings, "discount", 1.0)
        to_go = torch.from_numpy(returns_to_go(rewards, rows.episode, discount, sparse=sparse))
    problem = Problem(
        observations=normalizer(torch.from_numpy(rows.observations)).to(device),
        actions=torch.from_numpy(rows.actions).to(device),
        rewards=torch.from_numpy(rewards).to(device),
        next_observations=normalizer(torch.from_numpy(rows.next_observations)).to(device),
        terminated=torch.from_numpy(rows.terminated).to(device),
        next_actions=None if rows.next_actions is None else torch.from_numpy(rows.next_actions).to(device),
        action_low=torch.from_numpy(low).to(device),
        action_high=torch.from_numpy(high).to(device),
        normalizer=normalizer,
        returns_to_go=None if to_go is None else to_go.to(device),
        episode=torch.from_numpy(rows.episode).to(device) if method.windows else None,
        seeds=tuple(seeds) or (config["seed"],),
        steps=config["steps"],
        device=device,
        compile=config["compile"],
        threads=config["threads"],
    )
    source = make_source(problem, settings.batch_size, settings.context if method.windows else 0)
    return method.learner(problem, settings), source


def make_source(problem: Problem, batch_size: int, window: int = 0) -> UniformSource:
    """Uniform batches of the problem's own rows, or of windows of them."""
    fields = (
        problem.observations,
        problem.actions,
        problem.rewards,
        problem.next_observations,
        problem.terminated,
        problem.next_actions,
        problem.returns_to_go,
    )
    if not window or problem.episode is None:
        return UniformSource(*fields, batch_size=batch_size)
    return WindowSource(*fields, episode=problem.episode, length=window, batch_size=batch_size)


def scaled_rewards(rewards: np.ndarray, data: OfflineDataset, settings: Any) -> np.ndarray:
    """Rewards (N,) float32 as the settings ask for them: scaled, then shifted."""
    scale = getattr(settings, "reward_scale", 1.0)
    if getattr(settings, "return_range_scaling", False):
        scale *= return_range_scale(data)
    shifted: np.ndarray = (rewards * scale + getattr(settings, "reward_shift", 0.0)).astype(np.float32)
    return shifted


def return_range_scale(data: OfflineDataset) -> float:
    """1000 / (best - worst episode return): IQL's reward scale on locomotion data.

    Raises:
        DatasetError: all episodes have the same return.
    """
    returns = data.episode_returns
    spread = float(returns.max() - returns.min())
    if spread <= 0:
        raise DatasetError(
            "every episode has the same return: return_range_scaling has no scale, turn it off"
        )
    return 1000.0 / spread


def returns_to_go(
    rewards: np.ndarray, episode: np.ndarray, discount: float, *, sparse: bool = False
) -> np.ndarray:
    """Discounted sum of rewards from each row to the last row of its episode, (N,) float32.

    Args:
        rewards: (N,), episodes in order.
        episode: (N,), number of each row's episode.
        discount: per step.
        sparse: an episode whose every reward is the lowest of all returns that reward / (1 - discount) throughout.
    """
    starts = np.flatnonzero(np.diff(episode, prepend=episode[0] - 1))
    last = np.zeros(len(rewards), dtype=bool)
    last[np.append(starts[1:], len(rewards)) - 1] = True
    out, following = np.empty(len(rewards)), 0.0
    for row in range(len(rewards) - 1, -1, -1):
        following = float(rewards[row]) + (0.0 if last[row] else discount * following)
        out[row] = following
    if sparse:
        lowest = rewards.min()
        failed = np.maximum.reduceat(rewards, starts) == lowest
        lengths = np.diff(np.append(starts, len(rewards)))
        out[np.repeat(failed, lengths)] = lowest / (1.0 - discount)
    return out.astype(np.float32)


def dataset_env(data: OfflineDataset, env: str | None) -> EnvSpec | None:
    """The environment that a run on ``data`` is evaluated on: ``env``, or else the one that the data name."""
    own = data.metadata.get("env_id")
    if env is None and own is None:
        return None
    if own is not None and env in (None, own):
        kwargs = data.metadata.get("env_kwargs") or {}
        return EnvSpec(env_id=own, kwargs=kwargs, flatten=tuple(data.metadata.get("flatten") or ()))
    return EnvSpec(env_id=str(env))


def action_box(
    data: OfflineDataset, rows: Transitions, spec: EnvSpec | None
) -> tuple[np.ndarray, np.ndarray]:
    """Action bounds (A,), (A,) float32: the environment's, else those in the data's metadata, else [-1, 1].

    Raises:
        ConfigError: the environment's observations or actions do not have the data's shape.
        DatasetError: recorded actions lie outside the bounds.
    """
    obs_dim, act_dim = rows.observations.shape[1], rows.actions.shape[1]
    if spec is not None:
        env = make_env(spec)
        try:
            step_limit(env, None)  # refuses an environment whose episodes might never end
            shapes = (env.observation_space.shape, env.action_space.shape)
            low, high = env.action_space.low, env.action_space.high  # type: ignore[attr-defined]
        finally:
            env.close()
        if shapes != ((obs_dim,), (act_dim,)):
            raise ConfigError(
                f"the data have O={obs_dim}, A={act_dim} but {spec.env_id} has observations {shapes[0]} and "
                f"actions {shapes[1]}; pass the --env that the data were collected in"
            )
    elif "action_low" in data.metadata:
        low, high = np.asarray(data.metadata["action_low"]), np.asarray(data.metadata["action_high"])
    else:
        low, high = -np.ones(act_dim), np.ones(act_dim)
    low, high = low.astype(np.float32), high.astype(np.float32)
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
        raise ConfigError(f"the action box must be finite, got {low.tolist()} .. {high.tolist()}")
    tolerance = BOUND_TOLERANCE * (high - low)
    outside = ((rows.actions < low - tolerance) | (rows.actions > high + tolerance)).any(axis=1)
    if outside.any():
        row = int(np.argmax(outside))
        action = rows.actions[row].round(4).tolist()
        raise DatasetError(
            f"action {action} at row {row} lies outside [{low.tolist()}, {high.tolist()}] "
            f"({int(outside.sum())} such rows); rescale or clip the actions, or pass the right --env"
        )
    return low, high
