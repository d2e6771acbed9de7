"""Recording a dataset with a policy: whole episodes, numbered, the same bytes from any number of processes.

Episodes 0, 1, 2, ... each have streams of their own (see ``offrl.evaluation.blocks``); the dataset is their
rows in this order, cut after ``steps`` rows. What a process records therefore depends on the episode alone.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from offrl.data.dataset import OfflineDataset
from offrl.data.environments import EnvSpec
from offrl.errors import ConfigError, DatasetError
from offrl.evaluation.blocks import Env, Episode, Plan, step_limit
from offrl.evaluation.environments import describe_environment, env_spec
from offrl.evaluation.pool import BlockPool
from offrl.evaluation.rollout import Progress
from offrl.nn.policy import Policy

WIDTH = (
    10  # episodes in lockstep; most blocks end with few of them alive, so that a narrow one wastes forwards
)


def collect(
    env: EnvSpec | str,
    policy: Policy,
    steps: int,
    *,
    stochastic: bool = False,
    noise: float = 0.0,
    seed: int = 0,
    workers: int = 1,
    max_steps: int | None = None,
    collector: str | None = None,
    progress: Progress | None = None,
) -> OfflineDataset:
    """Let ``policy`` act and record every step.

    Args:
        env: a Gymnasium id or a row of the environment table.
        policy: raw observations in, actions out.
        steps: rows N of the dataset; the last episode is cut (``truncated``) where they end.
        stochastic: sample actions, where the policy has a distribution.
        noise: standard deviation of Gaussian noise added to each action, in action units; the action is cut
            to the box afterwards, and recorded as it was executed.
        seed: of environments, samples and noise.
        workers: processes that play, this one included; the data do not depend on it.
        max_steps: cut episodes here; default: the environment's own limit.
        collector: what the metadata call the policy; default: its kind.
        progress: called with (rows so far, steps).

    Returns:
        N rows with true next observations, MuJoCo's ``infos.qpos`` and ``infos.qvel`` before each action, and
        ``infos.success`` where the environment gives it.

    Raises:
        ConfigError: ``steps`` below 1, or an environment or number that cannot be used.
        PolicyError: the policy does not fit the environment, or gave an action that is not finite.
        ChildProcessError: a worker process died.
    """
    if steps < 1:
        raise ConfigError(f"steps must be 1 or more, got {steps}")
    plan = Plan(seed, 0, not stochastic, noise, max_steps, record=True, width=WIDTH)
    spec = env_spec(env)
    table = _Table(steps)

    def consume(block: list[Episode]) -> bool:
        for episode in block:
            table.add(episode)
        if progress is not None:
            progress(table.rows, steps)
        return table.rows < steps

    with BlockPool(spec, workers) as pool:
        facts = _describe(pool.envs[0], spec, plan)
        pool.run(policy, plan, itertools.repeat(WIDTH), consume)
    facts["collector"] = collector or policy.kind
    return OfflineDataset(table.fields, [*table.starts, steps], facts)


def collect_successes(
    env: EnvSpec | str,
    policy: Policy,
    episodes: int,
    *,
    steps_each: int,
    stochastic: bool = False,
    seed: int = 0,
    workers: int = 1,
) -> OfflineDataset:
    """Record whole episodes and keep the first ``episodes`` of those that succeed: demonstrations.

    Args:
        env: as for ``collect``.
        policy: likewise.
        episodes: how many are kept.
        steps_each: ``episodes`` times so many steps are recorded; what is too much is thrown away.
        stochastic: as for ``collect``.
        seed: likewise.
        workers: likewise.

    Returns:
        The demonstrations; ``metadata["success_rate"]`` is that of all finished episodes, the failures included.

    Raises:
        ConfigError: the environment does not tell success, or too few episodes succeeded.
        PolicyError, ChildProcessError: as ``collect``.
    """
    data = collect(env, policy, episodes * steps_each, stochastic=stochastic, seed=seed, workers=workers)
    if "infos.success" not in data.fields:
        raise ConfigError(f"{data.metadata['env_id']} does not tell whether an episode succeeds")
    reached = np.add.reduceat(data.fields["infos.success"].astype(int), data.episode_starts[:-1]) > 0
    finished = reached[:-1] if len(reached) > 1 else reached  # the last one was cut by the number of steps
    chosen = np.flatnonzero(finished)[:episodes]
    if len(chosen) < episodes:
        raise ConfigError(
            f"only {len(chosen)} of {len(finished)} episodes succeeded, {episodes} are wanted; raise steps_each"
        )
    kept = data.select(chosen)
    kept.metadata["success_rate"] = round(float(finished.mean()), 4)
    return kept


def concatenate(datasets: Sequence[OfflineDataset], metadata: dict[str, Any] | None = None) -> OfflineDataset:
    """The rows of several datasets one after the other; no episode runs across a seam.

    Args:
        datasets: one or more, with the same fields and shapes; an unfinished last episode gets truncated.
        metadata: of the result, over what all the parts agree on; ``parts`` lists each part's own.

    Raises:
        DatasetError: none given, or the fields differ.
    """
    if not datasets:
        raise DatasetError("there is nothing to concatenate")
    first, fields = datasets[0], {}
    for index, other in enumerate(datasets):
        if differing := sorted(first.fields.keys() ^ other.fields.keys()):
            raise DatasetError(f"dataset {index} and dataset 0 do not both have {differing[0]!r}")
    for name, array in first.fields.items():
        parts = [dataset.fields[name] for dataset in datasets]
        if wrong := [i for i, part in enumerate(parts) if part.shape[1:] != array.shape[1:]]:
            raise DatasetError(
                f"{name!r} has rows of shape {parts[wrong[0]].shape[1:]} in dataset {wrong[0]}, "
                f"{array.shape[1:]} in dataset 0"
            )
        fields[name] = np.concatenate(parts)
    offsets = np.cumsum([0, *(dataset.num_steps for dataset in datasets)])
    ends = offsets[1:] - 1
    fields["truncated"][ends] |= ~fields["terminated"][ends]
    starts = [d.episode_starts[:-1] + offset for d, offset in zip(datasets, offsets[:-1], strict=True)]
    own = [_portable(dataset.metadata) for dataset in datasets]
    common = {key: value for key, value in own[0].items() if all(o.get(key) == value for o in own)}
    own_only = [{k: v for k, v in o.items() if k not in common} for o in own]
    lengths = [{"steps": dataset.num_steps} for dataset in datasets]
    parts_metadata = [length | part for length, part in zip(lengths, own_only, strict=True)]
    return OfflineDataset(
        fields,
        np.concatenate([*starts, offsets[-1:]]),
        common | {"parts": parts_metadata} | (metadata or {}),
    )


class _Table:
    """Preallocated columns, filled episode by episode."""

    def __init__(self, steps: int) -> None:
        self.steps, self.rows = steps, 0
        self.fields: dict[str, np.ndarray] = {}
        self.starts: list[int] = []

    def add(self, episode: Episode) -> None:
        count = min(episode.length, self.steps - self.rows)
        if count == 0:
            return
        here = slice(self.rows, self.rows + count)
        for name, array in _columns(episode):
            if name not in self.fields:
                self.fields[name] = np.zeros((self.steps, *array.shape[1:]), array.dtype)
            self.fields[name][here] = array[:count]
        self.starts.append(self.rows)
        self.rows += count
        if count < episode.length:
            self.fields["truncated"][self.rows - 1] = True


def _columns(episode: Episode) -> list[tuple[str, np.ndarray]]:
    columns = []
    for name, array in episode.arrays.items():
        if name.startswith("observations"):  # T + 1 rows
            columns += [(name, array[:-1]), (f"next_{name}", array[1:])]
        else:
            columns.append((name, array))
    for name in ("terminated", "truncated"):
        flags = np.zeros(episode.length, dtype=bool)
        flags[-1] = getattr(episode, name)
        columns.append((name, flags))
    return columns


def _describe(env: Env, spec: EnvSpec, plan: Plan) -> dict[str, Any]:
    """The metadata that environment and plan give."""
    return describe_environment(env, spec) | {
        "max_episode_steps": step_limit(env, plan.max_steps),
        "seed": plan.seed,
        "noise": plan.noise,
        "stochastic": not plan.deterministic,
    }


def _portable(metadata: dict[str, Any]) -> dict[str, Any]:
    """Metadata without what belongs to the exact content or file; cuts are marked now."""
    return {k: v for k, v in metadata.items() if k not in ("sha256", "source", "timeouts_recorded")}
