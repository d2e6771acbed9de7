"""The offline run that a run online goes on from: what it hands over, and what must still be as it was."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from offrl.errors import CheckpointError, ConfigError
from offrl.files import sha256_file
from offrl.nn.policy import load_policy
from offrl.training.checkpoint import NEWEST, load_checkpoint
from offrl.training.problem import Learner, OnlineSettings
from offrl.training.run_dir import RunDir

KEPT = (  # the learned values and the normalizer mean nothing under others
    *("normalize_observations", "reward_scale", "reward_shift", "return_range_scaling", "sparse_rewards"),
    "discount",
)


@dataclass(frozen=True)
class Origin:
    """A finished offline run, and how it goes on."""

    run: RunDir
    online: OnlineSettings

    def facts(self, config: dict[str, Any]) -> dict[str, Any]:
        """What ``config.json`` of the run online records besides, for an otherwise complete ``config``.

        Raises:
            CheckpointError: the data of the offline run changed.
            ConfigError: other data, something else that its networks rest on would change, or there is no environment.
        """
        own, path = self.run.config, self.run.path
        if config["dataset_sha256"] != own["dataset_sha256"]:
            if config["dataset"] != own["dataset"]:
                given = config["dataset"] or "the dataset"
                raise ConfigError(
                    f"{given} does not hold the data that {path} was trained on: they must stay"
                )
            raise CheckpointError(
                f"the data of {path} changed since it was trained (SHA-256 differs); restore them"
            )
        if config["env_id"] is None:
            raise ConfigError("going on online needs an environment: pass --env ID")
        pairs = [("rows", config["rows"], own["rows"]), ("seed", config["seed"], own["seed"])]
        pairs.append(("holdout", config["holdout"], own.get("holdout", 0.0)))
        pairs += [(k, config["settings"].get(k), own["settings"].get(k)) for k in KEPT]
        for name, new, old in pairs:
            if new != old:
                raise ConfigError(f"{name} is {new}, but {path} was trained with {old}: it must stay")
        checkpoint = sha256_file(self.run.stack()[0].path / NEWEST)
        source = {"run": str(path.resolve()), "steps": own["steps"], "checkpoint_sha256": checkpoint}
        return {"online": asdict(self.online), "fine_tuned_from": source}


def load_offline(learner: Learner, config: dict[str, Any]) -> None:
    """Put the offline run's last state into ``learner``, if ``config`` is of a run that goes on from one.

    Raises:
        FileNotFoundError: the offline run is not where it was.
        CheckpointError: its files changed, or are damaged.
        ConfigError: settings or environment do not fit its networks.
    """
    if "fine_tuned_from" not in config:
        return
    source = config["fine_tuned_from"]
    path = Path(source["run"])
    runs = RunDir(path).stack()
    if sha256_file(runs[0].path / NEWEST) != source["checkpoint_sha256"]:
        raise CheckpointError(f"{runs[0].path / NEWEST} changed since {path} was chosen; restore it")
    state, note = load_checkpoint(runs[0].path, config["device"])
    if state is None or note or state["step"] != source["steps"]:
        raise CheckpointError(f"{path} does not have the checkpoint of its last update; train it again")
    index = [run.path.resolve() for run in runs].index(path.resolve())
    try:
        learner.load_state_dict(of_seed(state["learner"], learner.state_dict(), index, len(runs)))
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"the settings do not fit the networks of {path}: {error}") from None
    _compare_policies(learner, path, config["env_id"])


def _compare_policies(learner: Learner, path: Path, env_id: str) -> None:
    """Refuse a start that is not the offline run's saved policy: another action box, normalizer or data."""
    saved, begun = load_policy(path).state_dict(), learner.policy().state_dict()
    for name in ("action_low", "action_high"):
        if not torch.equal(saved[name], begun[name].cpu()):
            raise ConfigError(
                f"{env_id} has another action box ({name} {begun[name].tolist()}) than {path} was trained for "
                f"({saved[name].tolist()})"
            )
    for name, value in saved.items():
        if not torch.equal(value, begun[name].cpu()):
            raise CheckpointError(
                f"{name!r} of the policy in {path} is not that of its checkpoint; restore it"
            )


def of_seed(state: Any, like: Any, index: int, seeds: int) -> Any:
    """The part of one seed in the learner state of a stack: the tensors' leading axes, lists of streams.

    Args:
        state: of ``seeds`` seeds.
        like: of a single one.
        index: which one, in the order of the stack.
        seeds: S.
    """
    if seeds == 1:
        return state
    if isinstance(like, torch.Tensor):
        if state.shape == like.shape:
            return state
        size = len(state) // seeds
        return state[index * size : (index + 1) * size]
    if isinstance(like, dict):
        return {key: of_seed(state[key], value, index, seeds) for key, value in like.items()}
    if isinstance(like, list | tuple):
        if len(state) == seeds * len(like):  # one entry a seed
            state = state[index * len(like) : (index + 1) * len(like)]
        return [of_seed(a, b, index, seeds) for a, b in zip(state, like, strict=True)]
    return state
