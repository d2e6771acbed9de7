"""A source of batches that plays: before every update one step of the environment, by the policy of that moment.

    batch    half of its rows from the offline data, half from all steps played so far
    step     the method's own sampled action, for a deterministic policy with Gaussian noise
    row      normalized and scaled as the offline rows; ``terminated`` only where the environment ended the episode

A step becomes a row as soon as all of it is known: with next actions one step later (a step that a time limit cuts has
none and is left out, as in the offline rows), with returns-to-go when its episode ends.

Source: equal halves: RLPD, arXiv:2302.02948; a warm-up of the offline policy: WSRL, arXiv:2412.07762.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from offrl.data.batch import Batch
from offrl.data.normalize import ObservationNormalizer
from offrl.data.source import MixedSource
from offrl.errors import CheckpointError, PolicyError
from offrl.nn.policy import Policy
from offrl.training.seeding import stream

ENV_STREAM = 3  # evaluations have 1 and 2

Env = gymnasium.Env[np.ndarray, np.ndarray]


@dataclass
class Episode:
    """The steps of an episode so far, T of them."""

    observations: list[np.ndarray] = field(default_factory=list)  # T + 1 of (O,) float32
    actions: list[np.ndarray] = field(default_factory=list)  # T of (A,) float32, as executed
    rewards: list[float] = field(default_factory=list)
    terminated: bool = False
    truncated: bool = False

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def ended(self) -> bool:
        """Whether the environment ended it or cut it."""
        return self.terminated or self.truncated


class Player:
    """An environment that is played a step at a time; episode k of a seed always begins alike.

    Args:
        env: with flat observations and a bounded action box; its time limit cuts episodes.
        seed: of the environment and of the actions.
        noise: standard deviation of Gaussian noise on actions, in half-ranges of the box.
    """

    def __init__(self, env: Env, seed: int, noise: float = 0.0) -> None:
        self.env, self.seed, self.noise = env, seed, noise
        box: Any = env.action_space
        self.low, self.high = box.low.astype(np.float32), box.high.astype(np.float32)
        self.half = torch.from_numpy((self.high - self.low) / 2)
        self.generator = stream(seed, "act")
        self.number, self.steps = -1, 0
        self.begin()

    def begin(self) -> None:
        """Reset for the next episode."""
        self.number += 1
        words = np.random.SeedSequence([ENV_STREAM, self.seed, self.number]).generate_state(2, np.uint32)
        self.env.action_space.seed(int(words[1]))
        observation, _ = self.env.reset(seed=int(words[0]))
        self.episode = Episode([np.asarray(observation, np.float32)])

    @torch.inference_mode()
    def act(self, policy: Policy) -> None:
        """One step with an action drawn from ``policy`` (PolicyError where it is not finite)."""
        observation = torch.from_numpy(self.episode.observations[-1])[None]
        actions, _ = policy.act(observation, deterministic=False, generator=self.generator)
        if self.noise:
            draws = torch.randn(actions.shape, generator=self.generator)
            actions = actions + self.noise * self.half * draws
        action = actions[0].numpy()
        if not np.isfinite(action).all():
            raise PolicyError(f"the policy's action is not finite after {self.steps} steps online")
        self.steps += 1
        self.take(np.clip(action, self.low, self.high))

    def take(self, action: np.ndarray) -> None:
        """One step with a given action (A,)."""
        observation, reward, terminated, truncated, _ = self.env.step(action)
        episode = self.episode
        episode.observations.append(np.array(observation, np.float32))
        episode.actions.append(action)
        episode.rewards.append(float(reward))
        episode.terminated, episode.truncated = bool(terminated), bool(truncated)

    def state_dict(self) -> dict[str, Any]:
        """The episode's number, its actions and its last observation, and the stream of actions."""
        actions = np.array(self.episode.actions, np.float32).reshape(len(self.episode), len(self.low))
        return {
            "number": self.number,
            "steps": self.steps,
            "actions": torch.from_numpy(actions),
            "observation": torch.from_numpy(self.episode.observations[-1]),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any], *, strict: bool = True) -> None:
        """Play the saved episode again up to where it was.

        Args:
            state: what ``state_dict`` returned.
            strict: refuse an environment that does not come to the saved observation; else go on with a new episode.

        Raises:
            CheckpointError: it does not.
        """
        self.number, self.steps = state["number"] - 1, state["steps"]
        self.generator.set_state(state["generator"].cpu())
        self.begin()
        for action in state["actions"].cpu().numpy():
            if not self.episode.ended:
                self.take(action)
        reached = self.episode.observations[-1]
        same = not self.episode.ended and reached.tobytes() == state["observation"].cpu().numpy().tobytes()
        if same:
            return
        if strict:
            raise CheckpointError(
                f"the environment does not come to the same state when its {len(state['actions'])} last actions are "
                "played again, so that a resume would not be exact; add --allow-inexact to go on with a new episode"
            )
        self.begin()


@dataclass(frozen=True)
class RowRule:
    """How played steps become rows of the offline table."""

    normalizer: ObservationNormalizer
    scaled: Callable[[np.ndarray], np.ndarray]  # rewards as the learner sees them
    to_go: Callable[[np.ndarray], np.ndarray] | None = None  # returns-to-go of an episode's scaled rewards
    next_actions: bool = False

    def whole(self, episode: Episode) -> int:
        """How many of the first steps are complete."""
        count = len(episode)
        if self.to_go is not None and not episode.ended:
            return 0
        if self.next_actions and not episode.terminated:
            return max(count - 1, 0)
        return count

    def rows(self, episode: Episode, first: int, last: int) -> Tensor:
        """Steps ``first .. last - 1`` as rows (n, W) in the columns of ``UniformSource``."""
        seen = np.array(episode.observations[first : last + 1])
        observations = self.normalizer(torch.from_numpy(seen))
        actions = np.array(episode.actions[first : last + 1])
        rewards = self.scaled(np.array(episode.rewards[first:last], np.float32))
        count = last - first
        terminated = torch.zeros(count, 1)
        terminated[-1] = episode.terminated and last == len(episode)
        parts = [observations[:-1], torch.from_numpy(actions[:count])]
        parts += [torch.from_numpy(rewards[:, None]), observations[1:], terminated]
        if self.next_actions:  # after a terminated step none is taken: its own stands there, masked
            following = actions[1:] if len(actions) > count else np.append(actions[1:], actions[-1:], axis=0)
            parts.append(torch.from_numpy(following))
        if self.to_go is not None:
            returns = self.to_go(self.scaled(np.array(episode.rewards, np.float32)))
            parts.append(torch.from_numpy(returns[first:last, None]))
        return torch.cat(parts, dim=1)


class OnlineSource:
    """Plays one step before every update, and draws batches from offline and played rows in equal halves.

    Args:
        mixed: the offline rows, and room for ``warmup`` steps, those of all updates and an episode.
        player: the environment.
        rule: how steps become rows.
        warmup: steps played before the first update; where no row is complete by then, as many as it takes.
    """

    metrics = ("online_return",)

    def __init__(self, mixed: MixedSource, player: Player, rule: RowRule, warmup: int) -> None:
        self.mixed, self.player, self.rule, self.warmup = mixed, player, rule, warmup
        self.stored = 0  # steps of the current episode that are rows already
        self.strict = True

    def __len__(self) -> int:
        return len(self.mixed)

    def refresh(self, policy: Callable[[], Policy]) -> dict[str, Tensor]:
        """Play the step of this update, before the first one the warm-up; the mean return of episodes that ended."""
        current, returns = policy(), []
        wanted = max(self.player.steps, self.warmup) + 1
        while self.player.steps < wanted or not self.mixed.appended:
            returns += self._step(current)
        if not returns:
            return {}
        device = self.mixed.table.device
        return {"online_return": torch.tensor([np.mean(returns)], dtype=torch.float32, device=device)}

    def _step(self, policy: Policy) -> list[float]:
        """One step; returns the return of its episode if that has ended."""
        self.player.act(policy)
        episode = self.player.episode
        whole = self.rule.whole(episode)
        if whole > self.stored:
            self.mixed.append(self.rule.rows(episode, self.stored, whole))
            self.stored = whole
        if not episode.ended:
            return []
        self.player.begin()
        self.stored = 0
        return [float(np.sum(episode.rewards))]

    def sample(self, generators: Sequence[torch.Generator]) -> Batch:
        """A batch (1, B, ...): offline rows first."""
        return self.mixed.sample(generators)

    def state_dict(self) -> dict[str, Any]:
        """Played rows, and what brings the environment back to where it is."""
        return {"stored": self.stored, "player": self.player.state_dict(), **self.mixed.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned; the episode is played again."""
        self.mixed.load_state_dict(state)
        self.player.load_state_dict(state["player"], strict=self.strict)
        self.stored = state["stored"] if len(self.player.episode) else 0
