"""Fitted Q evaluation: what a policy is worth, estimated from recorded data alone.

    y   = r + gamma (1 - d) Q'(s', pi(s'))             pi deterministic, fixed; of one that always draws, a draw a row
    L_Q = mean (Q(s, a) - y)^2                         over the data's pairs
    V   = mean Q(s_0, pi(s_0))                         over the first states of all episodes

A tenth of the episodes is held out; the TD error there says how far the fit can be trusted. The estimate is of the
*discounted* return.

Source: Le, Voloshin & Yue, arXiv:1903.08738, algorithm 3; with a target network that moves slowly instead of one that
is refitted, as in Paine et al., arXiv:2007.09055, section 3.
"""

from __future__ import annotations  # evaluated annotations of inner functions cannot be compiled

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offrl.data.batch import Batch
from offrl.data.dataset import OfflineDataset, Transitions
from offrl.data.normalize import ObservationNormalizer
from offrl.data.source import UniformSource
from offrl.errors import ConfigError, DatasetError
from offrl.estimators.bellman import td_loss, td_target
from offrl.evaluation.critics import remembers
from offrl.nn.gradients import gradients
from offrl.nn.mlp import Params, init_mlp, mlp
from offrl.nn.policy import Policy
from offrl.nn.precision import Precision
from offrl.nn.trainable import Trainable
from offrl.training.loop import MetricMeans, train
from offrl.training.seeding import stream

ACTING_ROWS = 4096  # states that the policy sees at a time


@dataclass(frozen=True, kw_only=True)
class FQEOptions:
    """How the evaluation is fitted."""

    steps: int = 50_000
    """Gradient updates."""
    discount: float = 0.99
    """Discount factor per step."""
    hidden: int = 256
    """Width of the two hidden layers."""
    batch_size: int = 256
    """Transitions per update."""
    lr: float = 3e-4
    """Adam step size."""
    tau: float = 0.005
    """Step of the target network towards the online one."""
    held_out: float = 0.1
    """Share of the episodes that is not fitted and tells the TD error."""
    seed: int = 0
    """Seed of the split, the weights and the batches."""

    def __post_init__(self) -> None:
        for name in ("steps", "hidden", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if not 0.0 < self.discount < 1.0:
            raise ConfigError(f"discount must be in (0, 1), got {self.discount}")
        for name in ("lr", "tau", "held_out"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise ConfigError(f"{name} must be in (0, 1), got {getattr(self, name)}")
        if self.seed < 0:
            raise ConfigError(f"seed must be 0 or more, got {self.seed}")


@dataclass(frozen=True)
class FQEResult:
    """What the fit says."""

    value: float  # mean Q(s_0, pi(s_0)) over all episodes' first states, discounted
    value_std: float  # sample standard deviation over those states
    held_out_td_error: float  # root mean squared, on episodes that were not fitted
    fitted_td_error: float  # the same on the fitted ones
    action_distance: float  # mean |pi(s) - a| over the data, in half-ranges of the action box, mean over dims
    data_value: float  # mean discounted return of the data's own episodes, for comparison
    episodes: int  # whose first states are known


class FittedQ:
    """The learner: batches' ``next_actions`` are the policy's."""

    metrics = ("critic_loss", "q_data")

    def __init__(self, obs_dim: int, act_dim: int, options: FQEOptions) -> None:
        init = [stream(options.seed, "fqe init")]
        params = init_mlp((obs_dim + act_dim, options.hidden, options.hidden, 1), 1, init)
        self.options, self.critic = options, Trainable(params, options.lr, target=True)

    def q(self, params: Params, observations: Tensor, actions: Tensor) -> Tensor:
        """Q(s, a), (1, B, O) and (1, B, A) -> (1, B)."""
        return mlp(params, torch.cat((observations, actions), dim=2))[:, 0]

    def target(self, batch: Batch) -> Tensor:
        """Y (1, B)."""
        assert batch.next_actions is not None
        next_q = self.q(self.critic.target or [], batch.next_observations, batch.next_actions)
        return td_target(batch.rewards, batch.terminated, next_q, self.options.discount)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step of Q, then of its target."""
        target = self.target(batch)

        def loss(critic: Params) -> tuple[Tensor, dict[str, Tensor]]:
            q = self.q(critic, batch.observations, batch.actions)
            per_seed = td_loss(q[:, None], target)
            return per_seed.sum(), {"critic_loss": per_seed, "q_data": q.mean(dim=1)}

        grads, metrics = gradients(loss, self.critic.params)
        self.critic.apply(grads)
        self.critic.update_target(self.options.tau)
        return metrics

    def policy(self, seed: int = 0) -> Policy:
        """There is none: the policy is what is judged."""
        raise NotImplementedError("fitted Q evaluation learns no policy")

    def state_dict(self) -> dict[str, Any]:
        """The network."""
        return {"critic": self.critic.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.critic.load_state_dict(state["critic"])


def fitted_q_evaluation(
    policy: Policy,
    data: OfflineDataset,
    options: FQEOptions | None = None,
    *,
    progress: Callable[[int, float], None] = lambda step, loss: None,
) -> FQEResult:
    """Estimate the discounted return of ``policy``'s deterministic actions from ``data``.

    Args:
        policy: memoryless; its observations are the data's.
        data: two episodes or more, by any behaviour.
        options: how to fit.
        progress: called a hundred times with the updates made and the mean loss since.

    Raises:
        DatasetError: fewer than two episodes, no known successor among the held-out or the fitted ones, or observations
            and actions that are not the policy's.
    """
    options = options or FQEOptions()
    rows = data.transitions("exact")
    _check(policy, data, rows)
    normalizer = ObservationNormalizer.fit(rows.observations)
    next_actions = _act(policy, rows.next_observations)
    held_out = _split(data.num_episodes, options)
    fitted = ~np.isin(rows.episode, held_out)
    _check_split(fitted, data.num_episodes, len(held_out))
    learner = FittedQ(rows.observations.shape[1], rows.actions.shape[1], options)
    means = MetricMeans(learner.metrics)
    loop = train(
        learner,
        _source(rows, next_actions, normalizer, fitted, options.batch_size),
        [stream(options.seed, "fqe data")],
        means,
        steps=options.steps,
        every=[max(options.steps // 100, 1)],
        around=Precision("float32", "cpu"),
    )
    for step in loop:
        progress(step, means.pop()["critic_loss"][0])
    values = _values(learner, policy, rows.observations[_first(rows)], normalizer)
    half = (policy.action_high - policy.action_low).numpy() / 2
    gaps = np.abs(_act(policy, rows.observations) - rows.actions) / half
    return FQEResult(
        value=float(values.mean()),
        value_std=float(values.std(ddof=1)),
        held_out_td_error=_td_error(learner, rows, next_actions, normalizer, ~fitted),
        fitted_td_error=_td_error(learner, rows, next_actions, normalizer, fitted),
        action_distance=float(gaps.mean()),
        data_value=float(np.mean(discounted_returns(data, options.discount))),
        episodes=len(values),
    )


def discounted_returns(data: OfflineDataset, discount: float) -> np.ndarray:
    """Sum of discount^t r_t of every episode, (E,) float64."""
    rewards = data.fields["rewards"].astype(np.float64)
    starts = data.episode_starts
    steps = np.arange(len(rewards)) - np.repeat(starts[:-1], np.diff(starts))
    return np.add.reduceat(rewards * discount**steps, starts[:-1])


def _check(policy: Policy, data: OfflineDataset, rows: Transitions) -> None:
    shapes = (rows.observations.shape[1], rows.actions.shape[1])
    wanted = (policy.obs_dim, policy.act_dim)
    if shapes != wanted:
        raise DatasetError(
            f"the data have O={shapes[0]}, A={shapes[1]}, the policy O={wanted[0]}, A={wanted[1]}"
        )
    if remembers(policy):
        raise DatasetError(
            "this policy acts on the episode so far: a row of data does not say what it would do"
        )
    if data.num_episodes < 2:
        raise DatasetError("fitted Q evaluation holds out whole episodes: the data need two or more")


def _split(episodes: int, options: FQEOptions) -> np.ndarray:
    count = min(max(round(options.held_out * episodes), 1), episodes - 1)
    order = torch.randperm(episodes, generator=stream(options.seed, "fqe split"))
    return order[:count].numpy()


def _check_split(fitted: np.ndarray, episodes: int, held_out: int) -> None:
    for kept, count, which in ((fitted, episodes - held_out, "fitted"), (~fitted, held_out, "held-out")):
        if not kept.any():
            raise DatasetError(
                f"no row of the {count} {which} episodes says where it leads (cut after one step, without a next "
                "observation); another --held-out or --seed splits them otherwise"
            )


@torch.no_grad()
def _act(policy: Policy, observations: np.ndarray) -> np.ndarray:
    """As it acts: a policy that always draws gives one draw a row, from a fixed stream."""
    parts, generator = torch.from_numpy(observations).split(ACTING_ROWS), torch.Generator().manual_seed(0)
    acted = [policy.act(part, deterministic=True, generator=generator)[0].float() for part in parts]
    return torch.cat(acted).numpy()


def _source(
    rows: Transitions,
    next_actions: np.ndarray,
    normalizer: ObservationNormalizer,
    keep: np.ndarray,
    size: int,
) -> UniformSource:
    return UniformSource(
        normalizer(torch.from_numpy(rows.observations[keep])),
        torch.from_numpy(rows.actions[keep]),
        torch.from_numpy(rows.rewards[keep]),
        normalizer(torch.from_numpy(rows.next_observations[keep])),
        torch.from_numpy(rows.terminated[keep]),
        torch.from_numpy(next_actions[keep]),
        batch_size=size,
    )


@torch.no_grad()
def _values(
    learner: FittedQ, policy: Policy, observations: np.ndarray, normalizer: ObservationNormalizer
) -> np.ndarray:
    states, actions = normalizer(torch.from_numpy(observations)), torch.from_numpy(_act(policy, observations))
    return learner.q(learner.critic.constant, states[None], actions[None])[0].double().numpy()


@torch.no_grad()
def _td_error(
    learner: FittedQ,
    rows: Transitions,
    next_actions: np.ndarray,
    normalizer: ObservationNormalizer,
    keep: np.ndarray,
) -> float:
    total = 0.0
    for part in np.array_split(np.flatnonzero(keep), -(-int(keep.sum()) // ACTING_ROWS)):
        s, s2 = (normalizer(torch.from_numpy(x[part])) for x in (rows.observations, rows.next_observations))
        a, a2 = (torch.from_numpy(x[part])[None] for x in (rows.actions, next_actions))
        r, d = (torch.from_numpy(x[part])[None] for x in (rows.rewards, rows.terminated))
        batch = Batch(s[None], a, r, s2[None], d, torch.from_numpy(part)[None], a2)
        gap = learner.q(learner.critic.constant, s[None], a) - learner.target(batch)
        total += float(gap.double().square().sum())
    return float(np.sqrt(total / keep.sum()))


def _first(rows: Transitions) -> np.ndarray:
    """The first kept row of every episode."""
    return np.flatnonzero(np.r_[True, rows.episode[1:] != rows.episode[:-1]])
