"""Gymnasium environments as rollouts want them: a flat observation, a bounded box of actions, no checker."""

import importlib
import importlib.metadata
import math
import os
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from offrl.data.environments import EnvSpec, key_columns, named_environment
from offrl.data.reference import MUJOCO, PUSHT, SUCCESS, scored_by_success
from offrl.errors import ConfigError, MissingExtraError
from offrl.messages import served_port

SINGLETASK = "-singletask"  # in the ids of OGBench's environments
PUSHT_STATE = (("agent_pos", (2,)), ("block_pose", (3,)))  # what its plain observation is made of
ROBOTICS = ("PointMaze", "AntMaze", "Adroit", "Franka", "Fetch", "HandReach", "HandManipulate")


class FlatObservation(gymnasium.ObservationWrapper[np.ndarray, Any, dict[str, np.ndarray]]):
    """Concatenates the named parts of a dict observation into one float32 vector, in the given order.

    ``raw`` holds the last observation as the environment gave it.
    """

    raw: dict[str, np.ndarray]

    def __init__(self, env: gymnasium.Env[Any, Any], keys: tuple[str, ...]) -> None:
        super().__init__(env)
        self.keys = keys
        self.parts = [key_columns(key) for key in keys]
        space: Any = env.observation_space
        blank = {key: np.zeros(space[key].shape) for key, _ in self.parts}
        size = self._flat(blank).size
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float32)

    def observation(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        """The flat view, (O,) float32."""
        self.raw = observation
        return self._flat(observation)

    def _flat(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        parts = [np.ravel(observation[key])[columns] for key, columns in self.parts]
        return np.concatenate(parts, dtype=np.float32)


class PushTViews(gymnasium.ObservationWrapper[Any, Any, Any]):
    """PushT with the block's pose beside what its view shows: policies of different views act in one environment."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        shown: Any = env.observation_space
        self.observation_space = spaces.Dict(
            {**shown.spaces, "block_pose": spaces.Box(-np.inf, np.inf, (3,))}
        )

    def observation(self, observation: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The view, and x, y and angle (0 .. 2 pi) of the block."""
        block: Any = self.env.unwrapped.block  # type: ignore[attr-defined]
        pose = np.array([*block.position, block.angle % (2 * np.pi)])
        return {**observation, "block_pose": pose}


class SelfContained(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Makes an OGBench environment depend on nothing but its seed and its actions.

    Its mazes draw start positions and teleports from NumPy's global generator: here each has its own, seeded by
    ``reset``. Its robot arms make a new, unseeded action space at every look, and a look at their observation
    space resets them, both with warnings: here each space is made once.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.action_space, self.observation_space = env.action_space, env.observation_space
        self.random = np.random.RandomState(0).get_state()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """As the environment's."""
        if seed is not None:
            self.random = np.random.RandomState(seed).get_state()
        with self._own(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> Any:
        """As the environment's."""
        with self._own():
            return self.env.step(action)

    @contextmanager
    def _own(self) -> Iterator[None]:
        shared = np.random.get_state()  # noqa: NPY002
        np.random.set_state(self.random)  # noqa: NPY002
        try:
            yield
        finally:
            self.random = np.random.get_state()  # noqa: NPY002
            np.random.set_state(shared)  # noqa: NPY002


def make_env(spec: EnvSpec | str, render_mode: str | None = None) -> gymnasium.Env[np.ndarray, np.ndarray]:
    """A Gymnasium environment with observations (O,) and a bounded action box (A,).

    Args:
        spec: a Gymnasium id, or a row of the environment table: its arguments, the order in which a dict
            observation is flattened, and its time limit are applied.
        render_mode: as in ``gymnasium.make``.

    Raises:
        ConfigError: unknown or deprecated id, a dataset without an environment, or spaces that do not fit.
        MissingExtraError: MuJoCo, gymnasium-robotics or ogbench is not installed.
    """
    spec = env_spec(spec)
    if spec.verdict == "none":
        raise ConfigError(f"there is no environment to act in: {spec.reason}")
    if spec.env_id.startswith("served:"):
        return _served(spec.env_id, render_mode)
    settings, env_id = dict(spec.kwargs), spec.env_id
    if spec.horizon is not None:
        settings["max_episode_steps"] = spec.horizon
    if render_mode is not None:
        settings["render_mode"] = render_mode
    with _backend_named():
        if env_id not in gymnasium.registry and env_id.startswith(ROBOTICS):
            _register_robotics()
        if env_id not in gymnasium.registry and SINGLETASK in env_id:
            _register_ogbench()
        if env_id not in gymnasium.registry and env_id.startswith("offrl/"):
            importlib.import_module("offrl.envs.inventory.gymnasium_env")  # registers them
        if env_id not in gymnasium.registry and env_id == PUSHT:
            _register_pusht()
        env = _make(env_id, settings)
    try:
        if SINGLETASK in env_id:
            env = SelfContained(env)
        if (
            env_id == PUSHT
            and "block_pose" in spec.flatten
            and isinstance(env.observation_space, spaces.Dict)
        ):
            env = PushTViews(env)
        return _fitted(env, env_id, spec.flatten)
    except ConfigError:
        env.close()
        raise


def shown_parts(env: gymnasium.Env[Any, Any], spec: EnvSpec) -> list[tuple[str, tuple[int, ...]]]:
    """Name and shape of each part of an environment's flat observation, in order.

    Args:
        env: as from ``make_env``.
        spec: its row; a part of an array that is no dict is named only where its meaning is known.
    """
    if (named := getattr(env.unwrapped, "parts", None)) is not None:  # it lives in another process
        return list(named)
    if isinstance(env, FlatObservation):
        inner: Any = env.env.observation_space
        parts = []
        for name, (key, columns) in zip(env.keys, env.parts, strict=True):
            shape = inner[key].shape
            cut = columns != slice(None)
            parts.append((name, (len(range(*columns.indices(math.prod(shape)))),) if cut else shape))
        return parts
    if spec.env_id == PUSHT:
        return list(PUSHT_STATE)
    return [("observation", tuple(env.observation_space.shape or ()))]


def env_spec(env: EnvSpec | str) -> EnvSpec:
    """A Gymnasium id as a row of the environment table, with the declared order of its dict observation."""
    return named_environment(env) if isinstance(env, str) else env


def mujoco_state(env: gymnasium.Env[Any, Any]) -> Any:
    """The environment's ``MjData`` (``qpos``, ``qvel``), or None where it is not a MuJoCo environment."""
    base = env.unwrapped
    for owner in (base, getattr(base, "point_env", None), getattr(base, "ant_env", None)):
        data = getattr(owner, "data", None)
        if hasattr(data, "qpos") and hasattr(data, "qvel"):
            return data
    return None


def describe_environment(env: gymnasium.Env[Any, Any], spec: EnvSpec) -> dict[str, Any]:
    """What a dataset recorded in ``env`` says of it: id, versions, box of actions, reference returns."""
    box = env.action_space
    facts: dict[str, Any] = {
        "env_id": spec.env_id,
        "env_kwargs": dict(spec.kwargs),
        "gymnasium_version": importlib.metadata.version("gymnasium"),
        "action_low": box.low.tolist(),  # type: ignore[attr-defined]
        "action_high": box.high.tolist(),  # type: ignore[attr-defined]
    }
    if isinstance(env, FlatObservation):
        facts["flatten"] = list(env.keys)
    if mujoco_state(env) is not None:
        facts["mujoco_version"] = importlib.metadata.version("mujoco")
    robot, _, version = spec.env_id.partition("-")
    if pair := MUJOCO.get(robot.lower()):
        facts["reference_returns"] = list(pair)
        facts["reference"] = f"{version} env, D4RL reference"
    elif scored_by_success(spec.env_id):
        facts["reference_returns"], facts["reference"] = list(SUCCESS), "success rate"
    return facts


def _make(env_id: str, settings: dict[str, Any]) -> gymnasium.Env[Any, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # 'out of date': the caller names a version on purpose
            return gymnasium.make(env_id, disable_env_checker=True, **settings)
    except gymnasium.error.DependencyNotInstalled as error:
        if "mujoco_py" in str(error):
            raise ConfigError(
                f"cannot make the environment {env_id!r}: it needs mujoco-py, which is no longer maintained; "
                "use its -v4 or -v5"
            ) from error
        raise MissingExtraError("MuJoCo", "mujoco") from error
    except (gymnasium.error.Error, ImportError) as error:
        raise ConfigError(
            f"cannot make the environment {env_id!r}: {' '.join(str(error).split())}"
        ) from error
    except TypeError as error:
        raise ConfigError(f"{env_id} does not take the arguments {settings}: {error}") from error


def _served(env_id: str, render_mode: str | None) -> gymnasium.Env[np.ndarray, np.ndarray]:
    if render_mode is not None:
        raise ConfigError(f"{env_id} lives in another process and cannot be filmed from here; film it there")
    made: gymnasium.Env[np.ndarray, np.ndarray] = importlib.import_module(
        "offrl.evaluation.served"
    ).ServedEnv(served_port(env_id))
    return made


def _fitted(env: gymnasium.Env[Any, Any], env_id: str, flatten: tuple[str, ...]) -> gymnasium.Env[Any, Any]:
    space, action_space = env.observation_space, env.action_space
    if isinstance(space, spaces.Dict):
        keys = flatten or tuple(space)
        if missing := [k for k in keys if not isinstance(space.spaces.get(key_columns(k)[0]), spaces.Box)]:
            raise ConfigError(f"{env_id} has no observation {missing[0]!r}; it has {', '.join(space)}")
        env = FlatObservation(env, keys)
    elif not isinstance(space, spaces.Box) or len(space.shape) != 1:
        raise ConfigError(
            f"{env_id} has observations {space}; only flat vectors and dicts of arrays can be used"
        )
    if not isinstance(action_space, spaces.Box) or len(action_space.shape) != 1:
        raise ConfigError(f"{env_id} has actions {action_space}; only boxes of shape (A,) can be used")
    if not (np.isfinite(action_space.low).all() and np.isfinite(action_space.high).all()):
        raise ConfigError(f"{env_id} has unbounded actions; only bounded boxes can be used")
    return env


def _register_robotics() -> None:
    try:
        with _silent_stderr():
            robotics = importlib.import_module("gymnasium_robotics")
    except ImportError as error:
        raise MissingExtraError("gymnasium-robotics", "robotics") from error
    gymnasium.register_envs(robotics)


def _register_pusht() -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pygame's
            importlib.import_module("gym_pusht.envs.pusht")
    except ImportError as error:
        raise MissingExtraError("gym-pusht", "pusht") from error


def _register_ogbench() -> None:
    try:
        importlib.import_module("ogbench")
    except ImportError as error:
        raise MissingExtraError("ogbench", "ogbench") from error


@contextmanager
def _backend_named() -> Iterator[None]:
    """Say it where MuJoCo cannot even be imported with the user's MUJOCO_GL."""
    try:
        yield
    except (AttributeError, RuntimeError) as error:
        backend = os.environ.get("MUJOCO_GL")
        frames = traceback.extract_tb(error.__traceback__)
        if backend is None or not any(f.name == "<module>" and "mujoco" in f.filename for f in frames):
            raise
        raise ConfigError(
            f"MuJoCo cannot be loaded with MUJOCO_GL={backend} ({error}): is its library installed? "
            "Unset MUJOCO_GL where nothing is filmed"
        ) from error


@contextmanager
def _silent_stderr() -> Iterator[None]:
    with open(os.devnull, "w") as sink, redirect_stderr(sink):  # a release notice at every import
        yield
