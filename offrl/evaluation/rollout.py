"""Returns of a policy in an environment, the same whatever the number of processes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from offrl.data.environments import EnvSpec
from offrl.data.reference import scored_values
from offrl.errors import ConfigError
from offrl.evaluation.blocks import WIDTH, Episode, Plan
from offrl.evaluation.environments import env_spec
from offrl.evaluation.pool import BlockPool
from offrl.nn.policy import Policy

Progress = Callable[[int, int], None]  # (done, total)


@dataclass(frozen=True)
class EvaluationResult:
    """Outcomes of n episodes, in episode order."""

    returns: np.ndarray  # (n,) float64, undiscounted
    lengths: np.ndarray  # (n,) int64, steps
    successes: np.ndarray | None  # (n,) bool, reached at any step; None where the environment does not say
    env_id: str
    max_rewards: np.ndarray = field(default_factory=lambda: np.empty(0))  # (n,), largest reward of a step

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(self.returns.mean())

    @property
    def scored(self) -> np.ndarray:
        """(n,) float64, what normalized scores are made of: returns, or successes in OGBench's single tasks."""
        return scored_values(self.env_id, self.returns, self.successes)

    @property
    def std(self) -> float:
        """Sample standard deviation of the returns; 0 for one episode."""
        return float(self.returns.std(ddof=1)) if len(self.returns) > 1 else 0.0


class Evaluator:
    """Evaluates policies in one environment; processes and environments stay open between calls.

    Use it as a context manager, or call ``close``.

    Args:
        env: a Gymnasium id or a row of the environment table.
        workers: processes that play, this one included; the results do not depend on it.
        width: episodes side by side; the policy acts for all of them at once. Episode k begins alike for every
            width, but a policy's draws and the last digits of its actions differ.

    Raises:
        ConfigError: the environment cannot be made, or workers or width below 1.
        MissingExtraError: the environment's library is not installed.
    """

    def __init__(self, env: EnvSpec | str, workers: int = 1, *, width: int = WIDTH) -> None:
        if width < 1:
            raise ConfigError(f"width must be 1 or more, got {width}")
        spec = env_spec(env)
        self.pool, self.env_id, self.width = BlockPool(spec, workers), spec.env_id, width

    def __call__(
        self,
        policy: Policy,
        episodes: int = 10,
        *,
        seed: int = 0,
        stream: int = 0,
        deterministic: bool = True,
        max_steps: int | None = None,
        progress: Progress | None = None,
    ) -> EvaluationResult:
        """Play ``episodes`` episodes; the arguments are those of ``evaluate``."""
        if episodes < 1:
            raise ConfigError(f"episodes must be 1 or more, got {episodes}")
        plan = Plan(seed, stream, deterministic, max_steps=max_steps, width=self.width)
        played: list[Episode] = []

        def consume(block: list[Episode]) -> bool:
            played.extend(block)
            if progress is not None:
                progress(len(played), episodes)
            return True

        sizes = [min(plan.width, episodes - start) for start in range(0, episodes, plan.width)]
        self.pool.run(policy, plan, sizes, consume)
        successes = [episode.success for episode in played]
        return EvaluationResult(
            returns=np.array([episode.total for episode in played]),
            lengths=np.array([episode.length for episode in played]),
            successes=None if None in successes else np.array(successes, dtype=bool),
            env_id=self.env_id,
            max_rewards=np.array([episode.best for episode in played]),
        )

    def close(self) -> None:
        """End the worker processes and close the environments; may be called twice."""
        self.pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def evaluate(
    policy: Policy,
    env: EnvSpec | str,
    *,
    episodes: int = 10,
    seed: int = 0,
    stream: int = 0,
    workers: int = 1,
    deterministic: bool = True,
    max_steps: int | None = None,
    progress: Progress | None = None,
) -> EvaluationResult:
    """Returns of ``policy`` over whole episodes.

    Args:
        policy: raw observations in, actions out; it acts on the CPU, five episodes side by side.
        env: a Gymnasium id (``Hopper-v5``) or a row of the environment table.
        episodes: how many; the first n are the same for every larger number.
        seed: of environments and action draws.
        stream: another set of episodes of the same seed, e.g. the training step.
        workers: processes that play, this one included; the results do not depend on it.
        deterministic: the policy's mode instead of samples.
        max_steps: cut episodes here; default: the environment's own limit.
        progress: called with (episodes done, episodes).

    Raises:
        PolicyError: the policy does not fit the environment, or gave an action that is not finite.
        ConfigError: an environment or a number that cannot be used.
        MissingExtraError: the environment's library is not installed.
        ChildProcessError: a worker process died.
    """
    with Evaluator(env, workers) as evaluator:
        return evaluator(
            policy,
            episodes,
            seed=seed,
            stream=stream,
            deterministic=deterministic,
            max_steps=max_steps,
            progress=progress,
        )
