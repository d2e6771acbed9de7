"""Builds a learner and its batch source from a dataset and the settings of a run."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from offrl.data.dataset import OfflineDataset, Rows, Transitions
from offrl.data.environments import EnvSpec, module_named, named_environment
from offrl.data.normalize import ObservationNormalizer
from offrl.data.source import MixedSource, Source, UniformSource, WindowSource
from offrl.data.split import split_episodes
from offrl.errors import ConfigError, DatasetError
from offrl.evaluation.blocks import step_limit
from offrl.evaluation.environments import make_env
from offrl.training.online import OnlineSource, Player, RowRule
from offrl.training.options import settings_from_json
from offrl.training.problem import Algorithm, Learner, OnlineSettings, Problem

BOUND_TOLERANCE = 1e-4  # recorded float32 actions may exceed the box by rounding


class BatchSource(Source, Protocol):
    """A source that knows how many rows of the run's own data it draws from."""

    def __len__(self) -> int: ...


def build(
    method: Algorithm,
    settings: Any,
    data: OfflineDataset,
    spec: EnvSpec | None,
    config: dict[str, Any],
    seeds: Sequence[int] = (),
) -> tuple[Learner, BatchSource]:
    """The learner of ``seeds`` (default: the run's own) and the source of its batches, on the run's device."""
    if config.get("holdout"):
        data = split_episodes(data, config["holdout"])[0]
    if method.prepare is not None:
        data = method.prepare(data, settings)
    rule: Rows = "steps" if method.windows else config["rows"]
    rows = data.transitions(rule, next_actions=method.next_actions, images=not method.images)
    low, high = action_box(data, rows, spec)
    if getattr(settings, "normalize_observations", False):
        normalizer = ObservationNormalizer.fit(rows.observations)
    else:
        normalizer = ObservationNormalizer.identity(rows.observations.shape[1])
    device = torch.device(config["device"])
    rewards = reward_map(data, settings)(rows.rewards)
    to_go, online = None, online_settings(method, config)
    if method.returns_to_go:
        to_go = torch.from_numpy(_to_go(settings, rewards)(rewards, rows.episode))
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
        inputs=data.flat_inputs,
        images=_images(data, rows, device) if method.images else None,
        seeds=tuple(seeds) or (config["seed"],),
        steps=config["steps"],
        device=device,
        compile=config["compile"],
        threads=config["threads"],
        online=online,
        offline_updates=config["fine_tuned_from"]["steps"] if online else 0,
    )
    learner = method.learner(problem, settings)
    if online is not None and spec is not None:
        return learner, _online_source(problem, online, method, settings, data, spec)
    return learner, _offline_source(problem, method, settings, data, config)


def _images(data: OfflineDataset, rows: Transitions, device: torch.device) -> torch.Tensor | None:
    """Those of the rows, (N, P) bytes, or None."""
    found = data.flat_images(rows.step)
    return torch.from_numpy(found).to(device) if found.shape[1] else None


def _offline_source(
    problem: Problem, method: Algorithm, settings: Any, data: OfflineDataset, config: dict[str, Any]
) -> BatchSource:
    """The run's own rows, or windows of them, or these and others."""
    if "mix" in config:
        from offrl.training.synthetic import make_mixed_source  # brings what others do not need

        if getattr(settings, "imitation", False) and not getattr(settings, "expert_dataset", ""):
            raise ConfigError(
                "--mix would bring rewards and other behaviour among the demonstrations of --imitation; name those "
                "with expert_dataset, and what is mixed in is unlabelled"
            )
        fields, scaled = _fields(problem), reward_map(data, settings)
        return make_mixed_source(problem, fields, method, scaled, settings.batch_size, config["mix"])
    starts = None if method.starts is None else method.starts(problem, settings)
    window = settings.context if method.windows else 0
    return make_source(problem, settings.batch_size, window, starts)


def online_settings(method: Algorithm, config: dict[str, Any]) -> OnlineSettings | None:
    """The settings of a run that goes on online; None for one that does not.

    Raises:
        ConfigError: the method cannot.
    """
    if "online" not in config:
        return None
    if isinstance(method.online, str):
        raise ConfigError(f"{config['algorithm']} cannot go on online: {method.online}")
    settings: OnlineSettings = settings_from_json(method.online, config["online"])
    return settings


def _online_source(
    problem: Problem,
    online: OnlineSettings,
    method: Algorithm,
    settings: Any,
    data: OfflineDataset,
    spec: EnvSpec,
) -> OnlineSource:
    """Offline rows and room for those that the environment will give."""
    env = make_env(spec)
    room = online.warmup_steps + problem.steps + step_limit(env, None) + 1
    mixed = MixedSource(*_fields(problem), batch_size=settings.batch_size, capacity=room)
    if mixed.picked == 0:
        raise ConfigError("batch_size must be 2 or more online: half of a batch is played steps")
    scaled, to_go = reward_map(data, settings), None
    if method.returns_to_go:
        over = _to_go(settings, problem.rewards.cpu().numpy())
        to_go = lambda rewards: over(rewards, np.zeros(len(rewards), np.int64))  # noqa: E731
    rule = RowRule(problem.normalizer, scaled, to_go, method.next_actions)
    player = Player(env, problem.seeds[0], getattr(online, "exploration_noise", 0.0))
    return OnlineSource(mixed, player, rule, online.warmup_steps)


def _to_go(settings: Any, rewards: np.ndarray) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """``returns_to_go`` of (rewards, episode) as the settings ask for it, for data with these scaled rewards."""
    lowest = float(rewards.min()) if getattr(settings, "sparse_rewards", False) else None
    return functools.partial(returns_to_go, discount=getattr(settings, "discount", 1.0), lowest=lowest)


def make_source(
    problem: Problem, batch_size: int, window: int = 0, starts: torch.Tensor | None = None
) -> UniformSource:
    """Uniform batches of the problem's own rows, or of windows of them."""
    if not window or problem.episode is None:
        return UniformSource(*_fields(problem), batch_size=batch_size)
    return WindowSource(
        *_fields(problem),
        episode=problem.episode,
        length=window,
        batch_size=batch_size,
        starts=starts,
        images=problem.images,
    )


def _fields(problem: Problem) -> tuple[Any, ...]:
    """The positional arguments of ``UniformSource``."""
    return (
        problem.observations,
        problem.actions,
        problem.rewards,
        problem.next_observations,
        problem.terminated,
        problem.next_actions,
        problem.returns_to_go,
    )


def reward_map(data: OfflineDataset, settings: Any) -> Callable[[np.ndarray], np.ndarray]:
    """What makes rewards (N,) float32 those that the settings ask for: scaled, then shifted."""
    scale, shift = getattr(settings, "reward_scale", 1.0), getattr(settings, "reward_shift", 0.0)
    if getattr(settings, "return_range_scaling", False):
        scale *= return_range_scale(data, legacy_chunking=getattr(settings, "legacy_chunking", False))
    return lambda rewards: (rewards * scale + shift).astype(np.float32)


def return_range_scale(data: OfflineDataset, *, legacy_chunking: bool = False) -> float:
    """1000 / (best - worst return of a whole episode): the scale of rewards of IQL and others on locomotion data.

    Args:
        data: a last episode in which recording stopped does not count.
        legacy_chunking: returns are those of ``chunk_returns``, as in the official code of O-DICE and in CORL.

    Raises:
        DatasetError: all episodes have the same return.
    """
    if legacy_chunking:
        rows = data.transitions("qlearning")
        returns = chunk_returns(rows.rewards, rows.terminated)
    else:
        returns = data.episode_returns[:-1] if data.last_is_cut else data.episode_returns
    spread = float(returns.max() - returns.min()) if len(returns) else 0.0
    if spread <= 0:
        raise DatasetError(
            "every episode has the same return: return_range_scaling has no scale, turn it off"
        )
    return 1000.0 / spread


def chunk_returns(rewards: np.ndarray, terminated: np.ndarray, length: int = 1000) -> np.ndarray:
    """Sums of rewards over ``length`` rows or up to a termination, what comes first; a rest is left out.

    Q-learning rows lack the last one of an episode that timed out, so that a piece straddles two such episodes: that is
    why it is not the default.

    Args:
        rewards: (N,).
        terminated: (N,), 0 or 1.
        length: of a piece without termination.

    Returns:
        (pieces,) float64.
    """
    found, total, steps = [], 0.0, 0
    for reward, end in zip(rewards.tolist(), terminated.tolist(), strict=True):
        total, steps = total + reward, steps + 1
        if end or steps == length:
            found.append(total)
            total, steps = 0.0, 0
    return np.array(found)


def returns_to_go(
    rewards: np.ndarray, episode: np.ndarray, discount: float, *, lowest: float | None = None
) -> np.ndarray:
    """Discounted sum of rewards from each row to the last row of its episode, (N,) float32.

    Args:
        rewards: (N,), episodes in order.
        episode: (N,), number of each row's episode.
        discount: per step.
        lowest: an episode whose every reward is this returns it / (1 - discount) throughout: the lowest reward of
            sparse data.
    """
    starts = np.flatnonzero(np.diff(episode, prepend=episode[0] - 1))
    last = np.zeros(len(rewards), dtype=bool)
    last[np.append(starts[1:], len(rewards)) - 1] = True
    out, following = np.empty(len(rewards)), 0.0
    for row in range(len(rewards) - 1, -1, -1):
        following = float(rewards[row]) + (0.0 if last[row] else discount * following)
        out[row] = following
    if lowest is not None:
        failed = np.maximum.reduceat(rewards, starts) == lowest
        lengths = np.diff(np.append(starts, len(rewards)))
        out[np.repeat(failed, lengths)] = lowest / (1.0 - discount)
    return out.astype(np.float32)


def dataset_env(data: OfflineDataset, env: str | None) -> EnvSpec | None:
    """The environment that a run on ``data`` is evaluated on: ``env``, or else the one that the data name.

    Raises:
        ConfigError: the data name one for which code would be imported.
    """
    own = data.metadata.get("env_id")
    if env is None and own is None:
        return None
    if env is None and (module := module_named(str(own))):
        raise ConfigError(
            f"the data name the environment {own!r}, for which Python would import the module {module!r}; "
            f"pass --env {own} if you trust it"
        )
    if own is not None and env in (None, own):
        kwargs = data.metadata.get("env_kwargs") or {}
        return EnvSpec(env_id=own, kwargs=kwargs, flatten=tuple(data.metadata.get("flatten") or ()))
    return named_environment(str(env))


def action_box(
    data: OfflineDataset, rows: Transitions, spec: EnvSpec | None
) -> tuple[np.ndarray, np.ndarray]:
    """Action bounds (A,), (A,) float32: the environment's, else those in the data's metadata, else [-1, 1].

    Raises:
        ConfigError: the environment's observations or actions do not have the data's shape.
        DatasetError: recorded actions lie outside the bounds.
    """
    obs_dim, act_dim = data.obs_dim, rows.actions.shape[1]
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
