"""Every step of a training run as a dataset: what the environments saw and did, below any normalization.

The episodes of each environment follow each other in the dataset, one environment after the other; an episode that a
reset or the end of training cuts is ``truncated`` there. Steps are written to the run directory at every checkpoint, so
that a resumed run forgets those that its checkpoint does not know.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from offrl.data.dataset import OfflineDataset
from offrl.data.environments import EnvSpec
from offrl.data.write import check_target
from offrl.errors import CheckpointError, ConfigError
from offrl.evaluation.blocks import step_limit
from offrl.evaluation.environments import describe_environment, make_env
from offrl.files import atomic_write

FOLDER = "recorded"  # in the run directory, until the dataset is written
FIELDS = ("observations", "actions", "rewards", "next_observations", "terminated", "truncated")


class Recording(VecEnvWrapper):
    """Environments that keep their steps; put it directly around them, below VecNormalize."""

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        self.rows: list[dict[str, np.ndarray]] = []  # (environments, ...) each, since the last save
        self.observations = np.empty(0)
        self.fresh = True  # no step since the last reset

    def reset(self) -> Any:
        """Reset all environments: the episodes under way end here."""
        self.observations, self.fresh = np.array(self.venv.reset()), True
        return self.observations.copy()

    def go_on(self, observations: np.ndarray) -> None:
        """In the middle of episodes that were recorded up to ``observations``."""
        self.observations, self.fresh = observations, False

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions as they are executed."""
        self.actions = np.array(actions)
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Keep the step."""
        observations, rewards, dones, infos = self.venv.step_wait()
        observations = np.asarray(observations)
        successors = observations.copy()
        for i in np.flatnonzero(dones):
            successors[i] = infos[i]["terminal_observation"]
        cut = np.array([info.get("TimeLimit.truncated", False) for info in infos])
        row = (self.observations, self.actions, np.array(rewards), successors, dones & ~cut, dones & cut)
        first = np.full(len(dones), self.fresh)
        self.rows.append({**dict(zip(FIELDS, row, strict=True)), "first": first})
        self.observations, self.fresh = observations.copy(), False
        return observations, rewards, dones, infos

    def save(self, run: Path, number: int) -> int:
        """Write the steps since the last save as part ``number``; returns the number of parts then."""
        if not self.rows:
            return number
        folder = run / FOLDER
        folder.mkdir(exist_ok=True)
        part = {name: np.stack([row[name] for row in self.rows]) for name in self.rows[0]}
        with atomic_write(_part(folder, number)) as temporary, open(temporary, "wb") as file:
            np.savez(file, **part)  # type: ignore[arg-type]
        self.rows = []
        return number + 1


def recording(env: VecEnv | None) -> Recording | None:
    """The recording among the wrappers of ``env``."""
    while isinstance(env, VecEnvWrapper):
        if isinstance(env, Recording):
            return env
        env = env.venv
    return None


def recorded(run: Path, parts: int, config: dict[str, Any]) -> OfflineDataset:
    """The dataset of a run's ``parts``; ``config`` is the run's.

    Raises:
        CheckpointError: a part is missing or damaged.
    """
    found = []
    for number in range(parts):
        path = _part(run / FOLDER, number)
        try:
            with np.load(path, allow_pickle=False) as saved:
                found.append({name: saved[name] for name in (*FIELDS, "first")})
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"{path} is missing or damaged: {error}") from None
    time = {
        name: np.concatenate([part[name] for part in found]) for name in found[0]
    }  # (T, environments, ...)
    last = np.ones_like(time["first"])
    last[:-1] = time["first"][1:]
    time["truncated"] = time["truncated"] | (last & ~time["terminated"])
    fields = {name: np.concatenate(np.moveaxis(time[name], 1, 0)) for name in FIELDS}
    spec = EnvSpec(config["env_id"], kwargs=config["env_kwargs"], flatten=tuple(config["env_flatten"]))
    env = make_env(spec)
    facts = describe_environment(env, spec) | {"max_episode_steps": step_limit(env, None)}
    env.close()
    facts |= {"collector": f"{config['algorithm']}, all of its training", "seed": config["seed"]}
    return OfflineDataset.from_fields(fields, facts)


def claim(run: Path, target: str) -> None:
    """Refuse a target that is there and that this run has not begun to write.

    Raises:
        ConfigError: somebody else wrote it while the run was training.
    """
    begun = run / FOLDER / "begun"
    if begun.exists():
        return
    try:
        check_target(target, overwrite=False, option="--record")
    except ConfigError:
        raise ConfigError(
            f"{target} exists by now, and this run did not write it: move it away, then offrl resume {run}"
        ) from None
    begun.touch()


def forget(run: Path) -> None:
    """Delete the parts of a run whose dataset is written."""
    shutil.rmtree(run / FOLDER, ignore_errors=True)


def _part(folder: Path, number: int) -> Path:
    return folder / f"part{number:06d}.npz"
