"""What a run's critics and actions are like, measured from its last checkpoint: what ``offrl diagnose`` shows."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offrl.algos import load_algorithm
from offrl.data.dataset import OfflineDataset, Transitions
from offrl.data.environments import EnvSpec
from offrl.data.load import load_dataset
from offrl.data.split import split_episodes
from offrl.errors import CheckpointError, ConfigError, DatasetError
from offrl.evaluation.critics import (
    Played,
    Values,
    action_distance,
    bias,
    nearest_distance,
    play,
    remembers,
    returns,
    td_error,
)
from offrl.evaluation.diagnostics import Diagnostics
from offrl.files import sha256_file
from offrl.nn.policy import Policy
from offrl.online.options import ROWS as ROWS_ONLINE
from offrl.training.build import build, reward_map
from offrl.training.checkpoint import load_checkpoint
from offrl.training.options import settings_from_json
from offrl.training.problem import Algorithm
from offrl.training.run_dir import RunDir

ROWS, QUERIES = 20_000, 1_000  # of the data, drawn once: for errors and distances, for neighbours
DISCOUNT = 0.99  # of a method that has none, as in offrl fqe


@dataclass(frozen=True, kw_only=True)
class DiagnoseOptions:
    """How much is measured."""

    episodes: int = 10
    """Episodes to play in the run's environment; 0 plays none."""
    seed: int = 0
    """Seed of the episodes, and of which rows of large data are looked at."""

    def __post_init__(self) -> None:
        for name in ("episodes", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be 0 or more, got {getattr(self, name)}")


def diagnose(
    directory: Path, options: DiagnoseOptions | None = None, held_out: OfflineDataset | None = None
) -> Diagnostics:
    """Measure a run.

    Args:
        directory: of a run with a checkpoint; its data and algorithm must be what they were.
        options: how much.
        held_out: data that the run was not trained on; default: the episodes that it held out itself, if any.

    Raises:
        CheckpointError: no checkpoint, or other data or code than the run's.
        DatasetError: ``held_out`` is the run's own data, or has other observations or actions.
        ConfigError: the run was trained from data in memory, or in an environment.
    """
    options = options or DiagnoseOptions()
    run = _Run(directory)
    rng = np.random.default_rng(options.seed)
    rows = run.data.transitions(run.rule)
    drawn = _draw(rng, len(rows), ROWS)
    sample = _take(rows, drawn)
    memory = remembers(run.policy)
    values = run.values
    unseen, name = run.held_out(held_out)
    errors: dict[str, Any] = {"td_error": None, "held_out_td_error": None, "held_out": None}
    if values is not None:
        errors["held_out"] = name
        errors["td_error"] = run.td_error(values, sample)
        if unseen is not None:
            fresh = unseen.transitions(run.rule)
            fresh = _take(fresh, _draw(rng, len(fresh), ROWS))
            errors["held_out_td_error"] = run.td_error(values, fresh)
    queries = drawn[_draw(rng, len(drawn), QUERIES)]
    return Diagnostics(
        step=run.step,
        discount=run.discount,
        seed=options.seed,
        **errors,
        **_played(run, values, options),
        action_distance=None if memory else action_distance(run.policy, sample),
        nearest_action_distance=None if memory else nearest_distance(run.policy, rows, queries),
        rows=len(drawn),
    )


def _played(run: "_Run", values: Values | None, options: DiagnoseOptions) -> dict[str, Any]:
    """The fields that need episodes."""
    found: dict[str, Any] = {"critics": run.critics, "q": [], "q_mean": [], "returns": []}
    found |= {"tail_weight": None, "visited_overestimation": None, "visited_states": 0}
    found |= {"discounted_return": None, "played_episodes": 0}
    if run.spec is None or options.episodes == 0:
        return found
    episodes = play(run.policy, run.spec, options.episodes, options.seed)
    raw = [returns(e.rewards, run.discount)[0] for e in episodes]
    found |= {"discounted_return": float(np.mean(raw)), "played_episodes": len(raw)}
    weights = [run.discount ** len(e.rewards) if e.cut else 0.0 for e in episodes]
    found["tail_weight"] = float(np.mean(weights))
    if values is not None:
        seen = bias(values, run.policy, [run.as_learned(e) for e in episodes], run.discount)
        found |= {"q": seen.q.tolist(), "q_mean": seen.q_mean.tolist(), "returns": seen.returns.tolist()}
        found |= {"visited_overestimation": seen.visited, "visited_states": seen.visited_states}
    return found


class _Run:
    """A run with the learner of its last checkpoint, on the CPU."""

    def __init__(self, directory: Path) -> None:
        run = RunDir(directory)
        config = run.config
        if config["rows"] == ROWS_ONLINE:
            raise ConfigError(
                f"{directory} learned in an environment: it has no data to hold its critics and actions against"
            )
        if "llm" in config:
            raise ConfigError(f"{directory} is the run of a language model: it has no critics to diagnose")
        if config["dataset"] is None:
            raise ConfigError(
                f"{directory} was trained from data in memory; train from a file to diagnose it"
            )
        own_file = config["algorithm_file"]
        if own_file and sha256_file(own_file) != config["algorithm_sha256"]:
            raise CheckpointError(f"{own_file} was edited since {directory} was trained with it")
        _, self.method = load_algorithm(own_file or config["algorithm"])
        self.settings = settings_from_json(self.method.config, config["settings"])
        whole = load_dataset(config["dataset"])
        if whole.sha256 != config["dataset_sha256"]:
            raise CheckpointError(f"the data of {directory} changed since it was trained (SHA-256 differs)")
        self.directory, self.config, self.whole, self.unseen = directory, config, whole, None
        fitted, share = whole, config.get("holdout") or 0.0
        if share:
            fitted, self.unseen = split_episodes(whole, share)
        self.data = _prepared(self.method, fitted, self.settings)
        self.spec = _environment(config)
        self.rule: Any = "steps" if self.method.windows else config["rows"]
        self.discount = float(getattr(self.settings, "discount", DISCOUNT))
        self._load(run)

    def _load(self, run: RunDir) -> None:
        stack = run.stack()
        state, _ = load_checkpoint(stack[0].path)
        if state is None:
            raise CheckpointError(
                f"{self.directory} has no checkpoint yet; go on with: offrl resume {self.directory}"
            )
        here = {**self.config, "device": "cpu", "compile": False}
        seeds = [member.config["seed"] for member in stack]
        self.learner, _ = build(self.method, self.settings, self.whole, self.spec, here, seeds)
        try:
            self.learner.load_state_dict(state["learner"])
            self.step = int(state["step"])
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"the checkpoint of {self.directory} does not fit this version of {self.config['algorithm']}: {error}"
            ) from None
        self.member, self.seeds = stack.index(run), len(seeds)
        self.policy: Policy = self.learner.policy(self.member)
        self.values = self._values(getattr(self.learner, "q_values", None))
        self.critics = 0
        if self.values is not None:
            nothing = np.zeros((1, self.policy.obs_dim), np.float32)
            self.critics = len(self.values(nothing, self.policy.center.numpy()[None]))

    def _values(self, q_values: Callable[[Tensor, Tensor], Tensor] | None) -> Values | None:
        """The learner's ``q_values`` on raw observations; None without critics."""
        if q_values is None:
            return None

        @torch.no_grad()
        def values(observations: np.ndarray, actions: np.ndarray) -> np.ndarray:
            pair = self.policy.normalize(torch.from_numpy(observations)), torch.from_numpy(actions)
            s, a = (x[None].expand(self.seeds, -1, -1).contiguous() for x in pair)
            q: Tensor = q_values(s, a)[self.member]
            return q.double().numpy()

        return values

    def td_error(self, values: Values, rows: Transitions) -> float:
        """The Bellman error on ``rows``, rewards scaled as in training."""
        return td_error(values, self.policy, rows, self.scaled(rows.rewards), self.discount)

    def scaled(self, rewards: np.ndarray) -> np.ndarray:
        """Rewards in the critics' unit."""
        return reward_map(self.data, self.settings)(rewards)

    def as_learned(self, episode: Played) -> Played:
        """An episode with rewards in the critics' unit."""
        return replace(episode, rewards=self.scaled(episode.rewards).astype(np.float64))

    def held_out(self, given: OfflineDataset | None) -> tuple[OfflineDataset | None, str | None]:
        """The data that were not trained on and what they are."""
        if given is None:
            return self.unseen, f"{self.unseen.num_episodes} episodes of its data" if self.unseen else None
        if given.sha256 == self.config["dataset_sha256"]:
            raise DatasetError(f"{self.directory} was trained on these data: they are not held out")
        widths = (given.obs_dim, given.act_dim)
        if widths != (self.policy.obs_dim, self.policy.act_dim):
            raise DatasetError(
                f"the held-out data have O={widths[0]}, A={widths[1]}, the run's policy O={self.policy.obs_dim}, "
                f"A={self.policy.act_dim}"
            )
        return given, str(given.metadata.get("name") or "other data")


def _prepared(method: Algorithm, data: OfflineDataset, settings: Any) -> OfflineDataset:
    return data if method.prepare is None else method.prepare(data, settings)


def _environment(config: dict[str, Any]) -> EnvSpec | None:
    if not config["env_id"]:
        return None
    return EnvSpec(config["env_id"], kwargs=config["env_kwargs"], flatten=tuple(config["env_flatten"]))


def _draw(rng: np.random.Generator, count: int, limit: int) -> np.ndarray:
    """All of 0 .. count - 1, or ``limit`` of them, ascending."""
    return np.arange(count) if count <= limit else np.sort(rng.choice(count, limit, replace=False))


def _take(rows: Transitions, chosen: np.ndarray) -> Transitions:
    arrays = ("observations", "actions", "rewards", "next_observations", "terminated", "episode", "step")
    return replace(rows, **{name: getattr(rows, name)[chosen] for name in arrays}, next_actions=None)
