"""What ``offrl diagnose`` and ``offrl fqe`` leave beside a run: two small JSON files, checked when they are read."""

import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, get_args

from offrl.errors import CheckpointError
from offrl.files import atomic_write_json, read_json_object

FORMAT = 1
DIAGNOSTICS, FQE = "diagnostics.json", "fqe.json"
Record = TypeVar("Record", "Diagnostics", "FQERecord")


@dataclass(frozen=True, kw_only=True)
class Diagnostics:
    """A run's critics and actions; None where a method has no critic, or nothing was played or held out.

    Values and errors are in the unit of the reward that the critics learned from; ``discounted_return`` is in the
    environment's.
    """

    step: int  # updates that the policy had
    discount: float
    critics: int  # 0: the method has none
    seed: int  # of the episodes
    q: list[float]  # per episode, smallest of the critics at its first state; empty without critic
    q_mean: list[float]  # mean of the critics there
    returns: list[float]  # per episode, discounted return from there, the critics' own value as the tail
    tail_weight: float | None  # mean over the episodes of gamma^T, 0 for a terminated one
    visited_overestimation: float | None
    visited_states: int
    discounted_return: float | None  # as played, nothing added where a time limit cut
    played_episodes: int
    td_error: float | None  # root mean squared, on rows that were trained on
    held_out_td_error: float | None
    held_out: str | None  # which rows were held out
    action_distance: float | None  # mean |pi(s) - a|, in half-ranges
    nearest_action_distance: float | None  # to the action of the nearest pair of the data
    rows: int  # rows of the data that errors and distances are taken over

    @property
    def overestimation(self) -> list[float]:
        """Q - return of each episode."""
        return [q - g for q, g in zip(self.q, self.returns, strict=True)]


@dataclass(frozen=True, kw_only=True)
class FQERecord:
    """The result of fitted Q evaluation, in the environment's reward."""

    step: int
    discount: float
    fitted_steps: int
    dataset: str
    value: float
    value_std: float
    held_out_td_error: float
    fitted_td_error: float
    action_distance: float
    data_value: float
    episodes: int


def write_record(directory: Path, record: Diagnostics | FQERecord) -> Path:
    """Write ``record`` beside the run, atomically; returns the file."""
    path = directory / (DIAGNOSTICS if isinstance(record, Diagnostics) else FQE)
    try:
        atomic_write_json(path, {"format": FORMAT, **asdict(record)})
    except ValueError:
        raise CheckpointError(f"the numbers of {directory} are not finite: has the run diverged?") from None
    return path


def read_diagnostics(directory: Path) -> Diagnostics | None:
    """What ``offrl diagnose`` left; None if it did not run (CheckpointError: the file is damaged)."""
    found = _read(directory / DIAGNOSTICS, Diagnostics)
    if found is not None and not len(found.q) == len(found.q_mean) == len(found.returns):
        raise CheckpointError(f"{directory / DIAGNOSTICS} is damaged: q, q_mean and returns differ in length")
    return found


def read_fqe(directory: Path) -> FQERecord | None:
    """What ``offrl fqe`` left; None if it did not run (CheckpointError: the file is damaged)."""
    return _read(directory / FQE, FQERecord)


def _read(path: Path, kind: type[Record]) -> Record | None:
    if not path.is_file():
        return None
    values = read_json_object(path, CheckpointError)
    if values.pop("format", None) != FORMAT:
        raise CheckpointError(f"{path} has another format than this version's {FORMAT}; make it again")
    wanted = {field.name: field.type for field in fields(kind)}
    if values.keys() != wanted.keys():
        odd = sorted(values.keys() ^ wanted.keys())[0]
        raise CheckpointError(
            f"{path} is damaged or of another version: {odd!r} is missing or unknown; make it again"
        )
    for name, value in values.items():
        if not _fits(value, wanted[name]):
            raise CheckpointError(f"{path} is damaged: {name!r} is {str(value)[:40]!r}")
    return kind(**values)


def _fits(value: Any, kind: Any) -> bool:
    """Whether a JSON value is of a field's type; numbers must be finite."""
    if kind == list[float]:
        return isinstance(value, list) and all(_fits(v, float) for v in value)
    kinds = get_args(kind) or (kind,)
    if value is None or isinstance(value, str):
        return type(value) in kinds
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return False
    return float in kinds or (int in kinds and isinstance(value, int) and value >= 0)
