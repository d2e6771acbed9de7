"""Datasets in the replay buffer of a stable-baselines3 model, and its buffer as a dataset.

Any off-policy model with a plain ``ReplayBuffer`` serves, ours and stable-baselines3's: to learn online from a dataset
as well, give the model ``learning_starts=0`` and fill its buffer before ``learn``. Buffers hold raw observations and
rewards, also under VecNormalize, and actions scaled to [-1, 1].
"""

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from offrl.data.dataset import OfflineDataset
from offrl.data.load import load_dataset
from offrl.errors import ConfigError
from offrl.evaluation.blocks import step_limit
from offrl.evaluation.environments import describe_environment, env_spec, make_env


def fill_replay_buffer(model: OffPolicyAlgorithm, data: OfflineDataset | str) -> int:
    """Put a dataset behind what the model's replay buffer holds; returns how many transitions.

    A step that a time limit cut is one whose target goes on; where its successor was not recorded it is left out, and
    the step before it is the last of its episode. So is the step that the buffer ends with.

    Args:
        model: with one environment, a box of actions and flat observations.
        data: a dataset or its URI.

    Raises:
        ConfigError: the buffer is of another kind, or too small for the data beside what it holds.
        DatasetError: the data's observations or actions have another size, or cannot be read.
    """
    buffer = _plain(model)
    dataset = load_dataset(data) if isinstance(data, str) else data
    if buffer.n_envs != 1:
        raise ConfigError(
            f"a buffer of {buffer.n_envs} environments cannot be filled: make the model with one"
        )
    rows = dataset.transitions("exact")
    sizes = (buffer.observations[0, 0].size, buffer.action_dim)
    if (rows.observations.shape[1], rows.actions.shape[1]) != sizes:
        found = f"O={rows.observations.shape[1]}, A={rows.actions.shape[1]}"
        raise ConfigError(f"the data have {found}, the model's environment O={sizes[0]}, A={sizes[1]}")
    start, room = buffer.pos, buffer.buffer_size - buffer.pos
    if buffer.full or len(rows) > room:
        raise ConfigError(
            f"{len(rows):,} transitions do not fit into the {0 if buffer.full else room:,} free places of the buffer: "
            "make the model with a larger buffer_size"
        )
    end = start + len(rows)
    last = np.append(rows.episode[1:] != rows.episode[:-1], True)
    cut = last & ~(rows.terminated > 0)
    if start and not buffer.dones[start - 1]:
        buffer.dones[start - 1] = buffer.timeouts[start - 1] = 1
    for array, values in (
        (buffer.observations, rows.observations),
        (buffer.next_observations, rows.next_observations),
        (buffer.actions, model.policy.scale_action(rows.actions.reshape(-1, *model.action_space.shape))),  # type: ignore[misc]
        (buffer.rewards, rows.rewards),
        (buffer.dones, np.maximum(rows.terminated, cut)),
        (buffer.timeouts, cut),
    ):
        array[start:end] = values.reshape(array[start:end].shape)
    buffer.full, buffer.pos = end == buffer.buffer_size, end % buffer.buffer_size
    return len(rows)


def replay_dataset(model: OffPolicyAlgorithm, env_id: str) -> OfflineDataset:
    """What a model's replay buffer holds, as a dataset of raw steps in the order they were made.

    The episodes of each environment follow each other. One that the ring has overwritten in part begins later; one
    that is under way, or that a reset cut (``learn`` called again), is ``truncated``.

    Args:
        model: any with a box of actions and flat observations.
        env_id: of its environment, for the dataset's metadata.

    Raises:
        ConfigError: the buffer is empty or of another kind, or its sizes are not those of the environment.
    """
    buffer = _plain(model)
    order = np.arange(buffer.buffer_size if buffer.full else buffer.pos)
    order = np.roll(order, -buffer.pos) if buffer.full else order
    if not len(order):
        raise ConfigError("the replay buffer is empty")
    low, high = model.action_space.low, model.action_space.high  # type: ignore[attr-defined]
    unit = buffer.actions[order].reshape(len(order), buffer.n_envs, *low.shape)
    dones, cut = buffer.dones[order] > 0, buffer.timeouts[order] > 0
    dones[:-1] |= _unlike(buffer.next_observations[order[:-1]], buffer.observations[order[1:]])
    dones[-1] |= True
    ended = (buffer.dones[order] > 0) & ~cut
    time = {
        "observations": buffer.observations[order],
        "next_observations": buffer.next_observations[order],
        "actions": np.clip(model.policy.unscale_action(unit), low, high),
        "rewards": buffer.rewards[order],
        "terminated": ended,
        "truncated": dones & ~ended,
    }
    flat = {name: np.concatenate(np.moveaxis(x, 1, 0)) for name, x in time.items()}
    for name in ("observations", "next_observations", "actions"):
        flat[name] = flat[name].reshape(len(flat[name]), -1)
    spec = env_spec(env_id)
    env = make_env(spec)
    facts = describe_environment(env, spec) | {"max_episode_steps": step_limit(env, None)}
    sizes = tuple(int(np.prod(space.shape)) for space in (env.observation_space, env.action_space))  # type: ignore[arg-type]
    env.close()
    own = (flat["observations"].shape[1], flat["actions"].shape[1])
    if own != sizes:
        raise ConfigError(
            f"the buffer has O={own[0]}, A={own[1]}, but {env_id} has O={sizes[0]}, A={sizes[1]}"
        )
    return OfflineDataset.from_fields(flat, facts | {"collector": f"replay buffer of {type(model).__name__}"})


def _unlike(successors: np.ndarray, following: np.ndarray) -> np.ndarray:
    """Where the row that follows in the buffer is not what followed in the environment, (T - 1, environments)."""
    same = np.isclose(successors, following, rtol=1e-4, atol=1e-5)
    unlike: np.ndarray = ~same.reshape(*same.shape[:2], -1).all(axis=2)
    return unlike


def _plain(model: OffPolicyAlgorithm) -> Any:
    """The model's replay buffer.

    Raises:
        ConfigError: it has none, or one of another kind.
    """
    buffer = getattr(model, "replay_buffer", None)
    if not isinstance(buffer, ReplayBuffer) or isinstance(buffer, DictReplayBuffer):
        raise ConfigError(
            f"{type(model).__name__} has no replay buffer of flat observations: {type(buffer).__name__}"
        )
    if buffer.optimize_memory_usage:
        raise ConfigError("optimize_memory_usage keeps no true successors: make the model without it")
    if not isinstance(model.action_space, spaces.Box):
        raise ConfigError(f"actions must be a box, not {model.action_space}")
    return buffer
