"""Episodes in blocks: K environments step in lockstep, the policy always sees exactly K rows.

A block is the unit that a process takes, so nothing in it may depend on who runs it or what ran before. Its
streams come from (seed, stream, episode) for an environment and (seed, stream, block) for the policy's draws;
the forward pass always has K rows (a matrix product's last digits depend on its shape), a finished episode's
row repeats its last observation, and the row's action is thrown away.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import torch

from offrl.data.dataset import flatten_keys
from offrl.errors import ConfigError, PolicyError
from offrl.evaluation.environments import FlatObservation, mujoco_state
from offrl.nn.policy import Policy, wrong_observations

WIDTH = 5  # episodes in lockstep where nobody says
TICK = 64  # lockstep steps between calls of ``tick``
ENV_STREAM, POLICY_STREAM = 1, 2

Env = gymnasium.Env[np.ndarray, np.ndarray]
Tick = Callable[[], bool]


@dataclass(frozen=True)
class Plan:
    """What every block of a call has in common, besides policy and environment."""

    seed: int
    stream: int = 0
    deterministic: bool = True
    noise: float = 0.0  # std of Gaussian noise added to each action before it is clipped, in action units
    max_steps: int | None = None  # cuts episodes earlier than the environment does
    record: bool = False
    width: int = WIDTH  # K, episodes in lockstep; another width gives other last digits

    def __post_init__(self) -> None:
        if self.seed < 0 or self.stream < 0:
            raise ConfigError(f"seed must be 0 or more, got {min(self.seed, self.stream)}")
        if not (math.isfinite(self.noise) and self.noise >= 0):
            raise ConfigError(f"noise must be a standard deviation of 0 or more, got {self.noise}")
        if self.max_steps is not None and self.max_steps < 1:
            raise ConfigError(f"max_steps must be 1 or more, got {self.max_steps}")


@dataclass
class Episode:
    """One finished episode of T steps; ``arrays`` is filled when the plan records."""

    total: float = 0.0  # undiscounted return
    best: float = -math.inf  # largest reward of a step
    length: int = 0
    success: bool | None = None  # at any step; None where the environment does not say
    terminated: bool = False
    truncated: bool = False
    arrays: dict[str, np.ndarray] = field(
        default_factory=dict
    )  # observations* (T + 1, ...), the others (T, ...)


def check_fit(policy: Policy, env: Env) -> None:
    """Refuse a policy that was built for other observations or actions than ``env`` has (PolicyError)."""
    (obs_dim,), (act_dim,) = env.observation_space.shape or (), env.action_space.shape or ()
    if policy.obs_dim != obs_dim:
        raise PolicyError(wrong_observations((obs_dim,), policy.obs_dim))
    if policy.act_dim != act_dim:
        raise PolicyError(
            f"the environment takes actions of shape ({act_dim},) but the policy was built for "
            f"A={policy.act_dim}; was it trained on another environment?"
        )


def step_limit(env: Env, max_steps: int | None) -> int:
    """Steps after which an episode is cut: the smaller of ``max_steps`` and the environment's own limit.

    Raises:
        ConfigError: neither is there, so an episode might never end.
    """
    own = env.spec.max_episode_steps if env.spec else None
    inner = getattr(env.unwrapped, "max_episode_steps", None)  # of one that ends its episodes itself
    limits = [limit for limit in (own, inner, max_steps) if limit is not None]
    if not limits:
        name = env.spec.id if env.spec else "this environment"
        raise ConfigError(
            f"{name} has no time limit, an episode might never end: register max_episode_steps, or give max_steps"
        )
    return min(limits)


def run_block(
    envs: Sequence[Env], policy: Policy, plan: Plan, block: int, episodes: int, tick: Tick | None = None
) -> list[Episode] | None:
    """Play episodes ``block * K ... block * K + episodes - 1``.

    Args:
        envs: K environments of one kind; which ones does not matter, they are seeded here.
        policy: acts on (K, O) float32 rows.
        plan: streams, action noise, time limit, recording.
        block: number of the block.
        episodes: how many of its K rows are played, 1 to K; the others are padding.
        tick: called every few steps; the block is given up when it returns False.

    Returns:
        The episodes in order, or None if ``tick`` gave the block up.

    Raises:
        PolicyError: an action or a return that is not finite.
    """
    run = _Block(envs, policy, plan, block, episodes)
    with torch.inference_mode():
        while run.alive:
            run.step()
            if tick is not None and run.steps % TICK == 0 and run.alive and not tick():
                return None
    return run.finish()


class _Block:
    def __init__(self, envs: Sequence[Env], policy: Policy, plan: Plan, block: int, episodes: int) -> None:
        self.envs, self.policy, self.plan = envs, policy, plan
        self.limit = step_limit(envs[0], plan.max_steps)
        self.low, self.high = envs[0].action_space.low, envs[0].action_space.high  # type: ignore[attr-defined]
        self.alive = list(range(episodes))
        self.episodes = [Episode() for _ in self.alive]
        self.observations = torch.zeros(plan.width, policy.obs_dim)
        self.rows = self.observations.numpy()  # the same memory
        for i in self.alive:
            words = np.random.SeedSequence([ENV_STREAM, plan.seed, plan.stream, block * plan.width + i])
            reset_seed, action_seed = (int(word) for word in words.generate_state(2, np.uint32))
            envs[i].action_space.seed(action_seed)
            self.rows[i], _ = envs[i].reset(seed=reset_seed)
        self.rows[episodes:] = self.rows[0]
        words = np.random.SeedSequence([POLICY_STREAM, plan.seed, plan.stream, block])
        self.generator = torch.Generator().manual_seed(
            int(words.generate_state(1, np.uint64)[0] >> np.uint64(1))
        )
        self.state: Any = None
        self.totals = np.zeros(plan.width)
        self.steps = 0
        self.recorder = _Recorder(envs[:episodes]) if plan.record else None

    def step(self) -> None:
        observations = self.observations.clone()  # a policy may keep it
        actions = self.act(observations)
        if self.recorder:
            self.recorder.before(observations.numpy(), actions)
        self.steps += 1
        rewards, successes = np.zeros(self.plan.width), np.zeros(self.plan.width, dtype=bool)
        ended = False
        for i in self.alive:
            self.rows[i], rewards[i], terminated, truncated, info = self.envs[i].step(actions[i])
            success = info.get("success", info.get("is_success"))
            if success is not None:
                successes[i] = success
                self.episodes[i].success = bool(self.episodes[i].success or success)
            if terminated or truncated or self.steps >= self.limit:
                ended, self.episodes[i].length = True, self.steps
                self.episodes[i].terminated, self.episodes[i].truncated = bool(terminated), not terminated
        self.totals += rewards
        for i in self.alive:
            self.episodes[i].best = max(self.episodes[i].best, float(rewards[i]))
        self.state = self.policy.rewarded(self.state, torch.from_numpy(rewards))
        if self.recorder:
            self.recorder.after(rewards, successes)
        if ended:
            self.alive = [i for i in self.alive if not self.episodes[i].length]

    def act(self, observations: torch.Tensor) -> np.ndarray:
        plan = self.plan
        tensor, self.state = self.policy.act(
            observations, self.state, deterministic=plan.deterministic, generator=self.generator
        )
        if plan.noise:
            tensor = tensor + plan.noise * torch.randn(tensor.shape, generator=self.generator)
        actions = tensor.numpy()
        if not np.isfinite(actions).all():
            for i in self.alive:
                if not np.isfinite(actions[i]).all():
                    seen = "finite" if torch.isfinite(observations[i]).all() else "not finite either"
                    raise PolicyError(
                        f"the policy's action is not finite at step {self.steps}; its observation was {seen}"
                    )
        clipped: np.ndarray = np.minimum(np.maximum(actions, self.low), self.high)
        return clipped

    def finish(self) -> list[Episode]:
        for episode, total in zip(self.episodes, self.totals.tolist(), strict=False):
            if not math.isfinite(total):
                raise PolicyError(
                    f"an episode's return is {total}: the environment paid a reward that is not finite"
                )
            episode.total = total
        if self.recorder:
            self.recorder.see(self.observations.numpy())
            self.recorder.write(self.episodes)
        return self.episodes


class _Recorder:
    """One (K, ...) frame of each quantity a lockstep step, cut into episodes at the end."""

    def __init__(self, envs: Sequence[Env]) -> None:
        self.flat = [env for env in envs if isinstance(env, FlatObservation)]
        self.views: dict[str, list[np.ndarray]] = {}  # of the simulators' own memory, valid until a reset
        data = [mujoco_state(env) for env in envs]
        if data[0] is not None:
            self.views = {f"infos.{name}": [getattr(d, name) for d in data] for name in ("qpos", "qvel")}
        self.frames: dict[str, list[np.ndarray]] = {}

    def before(self, observations: np.ndarray, actions: np.ndarray) -> None:
        self.see(observations)
        self.add("actions", actions)
        for name, views in self.views.items():
            self.add(name, np.array(views))

    def after(self, rewards: np.ndarray, successes: np.ndarray) -> None:
        self.add("rewards", rewards)
        self.add("infos.success", successes)

    def see(self, observations: np.ndarray) -> None:
        if not self.flat:
            self.add("observations", observations)
            return
        raw = [flatten_keys({"observations": env.raw}) for env in self.flat]
        for name in raw[0]:
            self.add(name, np.array([parts[name] for parts in raw]))

    def add(self, name: str, frame: np.ndarray) -> None:
        self.frames.setdefault(name, []).append(frame)

    def write(self, episodes: Sequence[Episode]) -> None:
        columns = {name: np.stack(frames) for name, frames in self.frames.items()}
        for i, episode in enumerate(episodes):
            for name, column in columns.items():
                if name == "infos.success" and episode.success is None:
                    continue
                seen = name.startswith("observations")
                single = seen or name in ("actions", "rewards")
                rows = column[: episode.length + seen, i]
                episode.arrays[name] = rows.astype(np.float32) if single else rows.copy()
