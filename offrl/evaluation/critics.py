"""How well critics know their policy: predicted value against returns, Bellman error, distance of actions to data.

    value           Q(s, a) = min_k Q_k(s, a)
    return          G_t = r_t + gamma G_{t+1};  G_T = 0 where the episode terminated at T,
                    G_T = Q(s_T, pi(s_T)) where a time limit cut it: what would have followed was not seen
    overestimation  mean Q(s_0, a_0) - G_0 over episodes; over visited states where gamma^(T-t) <= 0.1 in cut ones
    TD error        sqrt mean_k (Q_k(s, a) - y)^2,   y = r + gamma (1 - d) Q(s', pi(s'))

pi is the deterministic policy, r the reward that the critics learned from (scaled and shifted). With the critics' own
value as the tail, a constant error b of theirs shows as (1 - gamma^T) b: the tail's weight is part of the answer. The
target y is the same for every method, whatever its own one adds (entropy, penalties, expectiles), so that methods can
be compared; a method's training loss is another number.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from offrl.data.dataset import Transitions
from offrl.data.environments import EnvSpec, key_columns
from offrl.data.neighbours import NeighbourIndex
from offrl.data.normalize import ObservationNormalizer
from offrl.evaluation.blocks import Episode, Plan
from offrl.evaluation.environments import FlatObservation
from offrl.evaluation.pool import BlockPool
from offrl.nn.policy import Policy

TAIL_LIMIT = 0.1  # visited states of a cut episode count while the unseen tail weighs at most this
ROWS = 256  # states that policy and critics see at a time; some methods have hundreds of critics
KEYS, BETA = 200, 2.0  # neighbour queries at a time, weight of the states (PRDC's)

Values = Callable[
    [np.ndarray, np.ndarray], np.ndarray
]  # raw (n, O), actions (n, A) -> Q of each critic (E, n)


@dataclass(frozen=True, eq=False)
class Played:
    """One episode of T steps."""

    observations: np.ndarray  # (T + 1, O) float32, raw
    actions: np.ndarray  # (T, A)
    rewards: np.ndarray  # (T,)
    cut: bool  # by a time limit


@dataclass(frozen=True, eq=False)
class Bias:
    """What critics predicted at the first states of N episodes, and what came."""

    q: np.ndarray  # (N,) the smallest of the critics, at the first state and action
    q_mean: np.ndarray  # (N,) mean of the critics there
    returns: np.ndarray  # (N,) G_0, with the critics' own value as the tail of a cut episode
    tail_weight: np.ndarray  # (N,) gamma^T of a cut episode, 0 of a terminated one
    visited: float | None  # mean of Q - G over the visited states that count; None if there are none
    visited_states: int


def play(policy: Policy, spec: EnvSpec, episodes: int, seed: int, workers: int = 1) -> list[Played]:
    """Whole episodes of the deterministic policy, recorded."""
    plan, found = Plan(seed, record=True), []

    def consume(block: list[Episode]) -> bool:
        found.extend(block)
        return True

    sizes = [min(plan.width, episodes - start) for start in range(0, episodes, plan.width)]
    with BlockPool(spec, workers) as pool:
        pool.run(policy, plan, sizes, consume)
        shown = pool.envs[0]
    keys = [("observations", slice(None))]
    if isinstance(shown, FlatObservation):  # what it shows is recorded by name
        keys = [key_columns(f"observations.{key}") for key in shown.keys]
    return [
        Played(
            np.concatenate(
                [e.arrays[k].reshape(e.length + 1, -1)[:, columns] for k, columns in keys], axis=1
            ),
            e.arrays["actions"],
            e.arrays["rewards"].astype(np.float64),
            e.truncated,
        )
        for e in found
    ]


def returns(rewards: np.ndarray, discount: float, tail: float = 0.0) -> np.ndarray:
    """G_t of every step, (T,) float64; ``tail`` is the value after the last one."""
    out, following = np.empty(len(rewards)), tail
    for t in range(len(rewards) - 1, -1, -1):
        out[t] = following = float(rewards[t]) + discount * following
    return out


def bias(values: Values, policy: Policy, episodes: Sequence[Played], discount: float) -> Bias:
    """Predictions against returns; the episodes' rewards are in the critics' unit."""
    q, q_mean, first, weights, gaps = [], [], [], [], []
    for episode in episodes:
        length = len(episode.rewards)
        all_q = in_parts(values, episode.observations[:-1], episode.actions)
        tail = 0.0
        if episode.cut:
            last = episode.observations[-1:]
            tail = float(values(last, actions_of(policy, last)).min())
        g = returns(episode.rewards, discount, tail)
        weight = discount ** np.arange(length, 0, -1) if episode.cut else np.zeros(length)
        counted = weight <= TAIL_LIMIT
        gaps.append((all_q.min(axis=0) - g)[counted])
        q.append(all_q[:, 0].min())
        q_mean.append(all_q[:, 0].mean())
        first.append(g[0])
        weights.append(weight[0])
    visited = np.concatenate(gaps)
    return Bias(
        q=np.array(q),
        q_mean=np.array(q_mean),
        returns=np.array(first),
        tail_weight=np.array(weights),
        visited=float(visited.mean()) if len(visited) else None,
        visited_states=len(visited),
    )


def td_error(
    values: Values, policy: Policy, rows: Transitions, rewards: np.ndarray, discount: float
) -> float:
    """Root mean squared Bellman error over rows and critics; ``rewards`` (N,) are in the critics' unit."""
    q = in_parts(values, rows.observations, rows.actions)
    following = rows.next_observations
    next_q = in_parts(values, following, actions_of(policy, following)).min(axis=0)
    target = rewards + discount * (1.0 - rows.terminated) * next_q
    return float(np.sqrt(np.mean((q - target) ** 2)))


def action_distance(policy: Policy, rows: Transitions) -> float:
    """Mean |pi(s) - a| over rows and action dims, in half-ranges of the action box."""
    return float(np.abs((actions_of(policy, rows.observations) - rows.actions) / half_range(policy)).mean())


def nearest_distance(policy: Policy, data: Transitions, queries: np.ndarray) -> float:
    """Mean |pi(s) - a*| over ``queries`` (n,) of the data's rows, in half-ranges, a* the action of the nearest pair.

    Near in (2 s, a), s normalized by the data's mean and std, a in half-ranges: how far the policy acts from what the
    data did in states like this one.
    """
    half = half_range(policy)
    normalizer = ObservationNormalizer.fit(data.observations)
    states = normalizer(torch.from_numpy(data.observations))
    index = NeighbourIndex(states, torch.from_numpy(data.actions / half), BETA, backend="torch")
    pi = torch.from_numpy(actions_of(policy, data.observations[queries]) / half)
    keys = torch.cat((BETA * states[torch.from_numpy(queries)], pi), dim=1)
    found = torch.cat([index.nearest(part)[1] for part in keys.split(KEYS)])
    return float((pi - torch.from_numpy(data.actions / half)[found]).abs().mean())


def half_range(policy: Policy) -> np.ndarray:
    """(A,) of the policy's action box."""
    half: np.ndarray = ((policy.action_high - policy.action_low) / 2).numpy()
    return half


def remembers(policy: Policy) -> bool:
    """Whether the policy acts on more than the observation, so that it has no action for a row of data."""
    with torch.no_grad():
        return policy.act(torch.zeros(1, policy.obs_dim), deterministic=True)[1] is not None


@torch.no_grad()
def actions_of(policy: Policy, observations: np.ndarray) -> np.ndarray:
    """The deterministic actions, (n, A) float32; of a policy that always draws, draws from one fixed stream."""
    parts, generator = torch.from_numpy(observations).split(ROWS), torch.Generator().manual_seed(0)
    acted = [policy.act(part, deterministic=True, generator=generator)[0].float() for part in parts]
    return torch.cat(acted).numpy()


def in_parts(values: Values, observations: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """Q of each critic, (E, n) float64."""
    pieces = range(0, len(observations), ROWS)
    found = [values(observations[i : i + ROWS], actions[i : i + ROWS]) for i in pieces]
    return np.concatenate(found, axis=1).astype(np.float64)
