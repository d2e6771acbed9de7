"""The dataset doctor: what is in a dataset, what looks wrong, and whether today's simulator agrees."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from offrl.data.dataset import OfflineDataset
from offrl.data.environments import EnvSpec, find_environment, flatten_order, module_named, plain_row
from offrl.data.reference import reference_label, reference_returns
from offrl.errors import DatasetError

if TYPE_CHECKING:
    import gymnasium

SATURATED = 0.999  # of the way from the middle of the action box to its edge
OUTSIDE = 1e-3  # actions this far beyond the box (relative to half its width) are an error
JUMP_QUANTILES, JUMP_DEVIATIONS = 4.0, 1.0  # a step that is this many 99 % quantiles and deviations long
MISMATCH = 1e-5  # recorded successor against the next row, relative to the column's deviation
SAMPLE_ROWS = 200_000  # rows that quantiles are estimated on
MAX_WIDTH = 4096  # wider observations are images; their columns are not looked at


@dataclass(frozen=True)
class Finding:
    """Something to know about a dataset. Only errors make ``offrl data check`` fail."""

    level: Literal["error", "warning", "note"]
    text: str


@dataclass(frozen=True)
class Report:
    """What the doctor measured. Shares are between 0 and 1, rows count from 0."""

    steps: int
    episodes: int
    terminated: int  # episodes that the environment ended
    truncated: int  # episodes cut by a time limit (both flags can be set)
    unfinished: int  # 1 if the last episode has neither flag
    lengths: tuple[int, float, int]  # shortest, median, longest, in steps
    returns: tuple[float, float, float]  # lowest, mean, highest
    rewards: tuple[float, float]  # lowest, highest
    actions: tuple[float, float]  # lowest, highest
    saturated: float  # share of action entries at the limit
    duplicates: float  # share of rows whose observation and action occurred before
    constant_columns: tuple[int, ...]  # of the flat observations
    teleports: np.ndarray  # rows from which an observation jumps implausibly far inside an episode
    teleporting: tuple[int, ...]  # columns that do
    mismatches: int  # rows whose recorded successor is not the next row of the episode
    not_finite: dict[str, int]  # infos -> rows with NaN or infinity
    reference: tuple[float, float] | None  # returns (random, expert)
    reference_source: str | None
    environment: EnvSpec | None
    findings: tuple[Finding, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Whether no finding is an error."""
        return all(finding.level != "error" for finding in self.findings)


def check(dataset: OfflineDataset) -> Report:
    """Measure a dataset and list what is wrong or worth knowing.

    What a reader refuses (missing arrays, NaN, wrong lengths) never gets here: loading fails first.
    """
    fields, ends = dataset.fields, dataset.episode_starts[1:] - 1
    terminated, truncated = fields["terminated"][ends], fields["truncated"][ends]
    lengths, returns, rewards = dataset.episode_lengths, dataset.episode_returns, fields["rewards"]
    environment, name = described_environment(dataset), table_name(dataset)
    own, table = dataset.reference_returns, reference_returns(name)
    measured = Report(
        steps=dataset.num_steps,
        episodes=dataset.num_episodes,
        terminated=int(terminated.sum()),
        truncated=int(truncated.sum()),
        unfinished=int((~(terminated | truncated)).sum()),
        lengths=(int(lengths.min()), float(np.median(lengths)), int(lengths.max())),
        returns=(float(returns.min()), float(returns.mean()), float(returns.max())),
        rewards=(float(rewards.min()), float(rewards.max())),
        actions=(float(fields["actions"].min()), float(fields["actions"].max())),
        saturated=_saturated(fields["actions"], action_box(dataset, environment)),
        **_observations(dataset),
        not_finite=_not_finite(fields),
        reference=own or table,
        reference_source=(
            reference_label(name)
            if own in (None, table)
            else str(dataset.metadata.get("reference", "recorded with the data"))
        ),
        environment=environment,
    )
    return Report(**{**measured.__dict__, "findings": tuple(_findings(dataset, measured))})


def table_name(dataset: OfflineDataset) -> str:
    """The name to look the dataset up by; empty for a file, whose name says nothing about its content."""
    source = str(dataset.metadata.get("source", ""))
    named = not source or source.startswith(("d4rl:", "minari:", "ogbench:"))
    return str(dataset.metadata.get("name", "")) if named else ""


def described_environment(dataset: OfflineDataset) -> EnvSpec | None:
    """The table's row for the dataset's name, else the environment in its metadata, else None."""
    return find_environment(table_name(dataset)) or _recorded(dataset.metadata)


def recorded_environment(dataset: OfflineDataset) -> EnvSpec:
    """The environment that recorded the data: the one in the metadata, else the table's row for the name.

    Raises:
        DatasetError: neither is known, or the data name one for which code would be imported.
    """
    spec = _recorded(dataset.metadata) or find_environment(table_name(dataset))
    if spec is None:
        raise DatasetError("the data name no environment to replay them in; convert them with --env ID")
    if module := module_named(spec.env_id):
        raise DatasetError(
            f"the data name the environment {spec.env_id!r}, for which Python would import the module {module!r}; "
            "it is not replayed"
        )
    return spec


def _recorded(metadata: dict[str, Any]) -> EnvSpec | None:
    env_id, kwargs = metadata.get("env_id"), dict(metadata.get("env_kwargs") or {})
    if not env_id:
        return None
    flatten = tuple(metadata.get("flatten") or flatten_order(env_id))
    return plain_row(env_id, kwargs) or EnvSpec(env_id, kwargs, flatten)


# --- measurements ---------------------------------------------------------------------------------------


def action_box(dataset: OfflineDataset, spec: EnvSpec | None) -> tuple[np.ndarray, np.ndarray] | None:
    """Lowest and highest actions, both (A,), as recorded with the data or as the table has them."""
    box = [np.ravel(dataset.metadata.get(name) or []) for name in ("action_low", "action_high")]
    if all(len(edge) == dataset.act_dim and edge.dtype.kind in "fi" for edge in box):
        return box[0].astype(np.float64), box[1].astype(np.float64)
    if spec is None or spec.action_limit is None:
        return None
    high = np.full(dataset.act_dim, spec.action_limit)
    return -high, high


def _saturated(actions: np.ndarray, box: tuple[np.ndarray, np.ndarray] | None) -> float:
    """Share of entries at the limit; without a known limit, at the extremes of their column."""
    low, high = box or (actions.min(axis=0), actions.max(axis=0))
    margin = (1.0 - SATURATED) * (high - low) / 2
    return float(((actions >= high - margin) | (actions <= low + margin)).mean())


def _observations(dataset: OfflineDataset) -> dict[str, Any]:
    if dataset.obs_dim > MAX_WIDTH:
        empty = np.zeros(0, dtype=np.int64)
        nothing = {"duplicates": 0.0, "constant_columns": (), "mismatches": 0}
        return {**nothing, "teleports": empty, "teleporting": ()}
    observations = dataset.flat_observations()
    spread = observations.std(axis=0, dtype=np.float64)
    constant = np.flatnonzero(observations.min(axis=0) == observations.max(axis=0))
    teleports, columns = _teleports(observations, spread, dataset.episode_starts)
    return {
        "duplicates": _duplicates(observations, dataset.fields["actions"]),
        "constant_columns": tuple(int(column) for column in constant),
        "teleports": teleports,
        "teleporting": tuple(int(column) for column in columns),
        "mismatches": _mismatches(dataset, observations, spread),
    }


def _duplicates(observations: np.ndarray, actions: np.ndarray) -> float:
    """Share of rows whose observation and action, bit for bit, occurred before."""
    rows = np.ascontiguousarray(np.hstack([observations, actions.astype(np.float32)]))
    keys = rows.view(np.dtype((np.void, rows.itemsize * rows.shape[1])))
    return 1.0 - len(np.unique(keys)) / len(keys)


def _inside(episode_starts: np.ndarray) -> np.ndarray:
    """Rows with a later row in the same episode."""
    inside = np.ones(episode_starts[-1], dtype=bool)
    inside[episode_starts[1:] - 1] = False
    return np.flatnonzero(inside)


def _teleports(
    observations: np.ndarray, spread: np.ndarray, episode_starts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rows after which some column moves both far for one step and far for the column as a whole; those columns.

    On locomotion data this misses resets that look like ordinary states, and flags about 1 real step in 10^4.
    """
    rows = _inside(episode_starts)
    if len(rows) == 0:
        return rows, rows
    sample = rows[:: max(1, len(rows) // SAMPLE_ROWS)]
    usual = np.quantile(np.abs(observations[sample + 1] - observations[sample]), 0.99, axis=0)
    limit = np.maximum(JUMP_QUANTILES * usual, JUMP_DEVIATIONS * spread) + 1e-9
    far, columns = np.zeros(len(rows), dtype=bool), np.zeros(len(spread), dtype=bool)
    for start in range(0, len(rows), SAMPLE_ROWS):
        part = rows[start : start + SAMPLE_ROWS]
        steps = np.abs(observations[part + 1] - observations[part])
        far[start : start + SAMPLE_ROWS] = (steps > limit).any(axis=1)
        columns |= (steps > limit).any(axis=0)
    return rows[far], np.flatnonzero(columns)


def _mismatches(dataset: OfflineDataset, observations: np.ndarray, spread: np.ndarray) -> int:
    if not dataset.has_next_observations:
        return 0
    rows, wrong = _inside(dataset.episode_starts), 0
    for start in range(0, len(rows), SAMPLE_ROWS):
        part = rows[start : start + SAMPLE_ROWS]
        gap = np.abs(dataset.flat_observations(part, successors=True) - observations[part + 1])
        wrong += int((gap > MISMATCH * (1.0 + spread)).any(axis=1).sum())
    return wrong


def _not_finite(fields: dict[str, np.ndarray]) -> dict[str, int]:
    counts = {}
    for name, array in fields.items():
        if name.startswith("infos.") and array.dtype.kind == "f":
            bad = int((~np.isfinite(array.reshape(len(array), -1))).any(axis=1).sum())
            if bad:
                counts[name] = bad
    return counts


# --- judgements -----------------------------------------------------------------------------------------


def _findings(dataset: OfflineDataset, report: Report) -> list[Finding]:
    found = [Finding("error", text) for text in _errors(dataset, report)]
    found += [Finding("warning", text) for text in _warnings(dataset, report)]
    return found + [Finding("note", text) for text in _notes(report)]


def _errors(dataset: OfflineDataset, report: Report) -> list[str]:
    out, spec = [], report.environment
    if spec is not None:
        for what, have, want in (
            ("observations", dataset.obs_dim, spec.obs_dim),
            ("actions", dataset.act_dim, spec.act_dim),
        ):
            if want is not None and have != want:
                out.append(f"{what} are {have} wide, those of {spec.env_id or 'this dataset'} are {want}")
    box = action_box(dataset, spec)
    if box is not None:
        (low, high), actions = box, dataset.fields["actions"]
        beyond = np.maximum(low - actions.min(axis=0), actions.max(axis=0) - high)
        column = int(np.argmax(beyond))
        if beyond[column] > OUTSIDE * (high - low)[column] / 2:
            extremes = f"{actions[:, column].min():.6g} .. {actions[:, column].max():.6g}"
            allowed = f"{low[column]:g} .. {high[column]:g}"
            out.append(f"action {column} goes from {extremes}, the environment allows {allowed}")
    if report.mismatches:
        out.append(
            f"{report.mismatches} recorded next observations differ from the next row of their episode: "
            "shuffled rows or wrong episode ends?"
        )
    return out


def _warnings(dataset: OfflineDataset, report: Report) -> list[str]:
    out = []
    if len(report.teleports):
        where = _listed(report.teleports[:6].tolist(), 5)
        columns = f"columns {_listed(report.teleporting, 12)}"
        why = "missing episode ends?"
        if len(report.teleporting) == 1:
            columns, why = f"column {report.teleporting[0]} alone", "an angle that wraps around? Else " + why
        out.append(f"{len(report.teleports)} jumps inside episodes (after rows {where}), in {columns}: {why}")
    if report.rewards[0] == report.rewards[1]:
        out.append(f"every reward is {report.rewards[0]:g}: there is nothing to prefer")
    if dataset.metadata.get("timeouts_recorded") is False:
        out.append(
            "time limits were not recorded; they are counted, or episodes run on to the next termination"
        )
    for name, count in report.not_finite.items():
        out.append(f"{name} is not finite in {count} rows")
    if report.saturated > 0.5:
        out.append(f"{report.saturated:.0%} of the action entries are at their limit")
    if report.environment is None:
        out.append("no environment is known for these data: policies cannot be evaluated without --env")
    elif report.environment.verdict == "none":
        out.append(f"no environment to evaluate in: {report.environment.reason}")
    return out


def _notes(report: Report) -> list[str]:
    out = []
    if columns := report.constant_columns:
        out.append(f"{len(columns)} constant observation columns: {_listed(columns, 12)}")
    if report.duplicates > 0.01:
        out.append(f"{report.duplicates:.1%} of the rows repeat an earlier observation and action")
    if report.unfinished:
        out.append("the last episode is unfinished")
    if report.reference is None:
        out.append("no reference returns: results are plain returns, not scores")
    if report.environment is not None and report.environment.verdict == "drifted":
        out.append(f"environment drifted: {report.environment.reason}")
    return out


def _listed(numbers: Sequence[int], most: int) -> str:
    return ", ".join(str(n) for n in numbers[:most]) + (" .." if len(numbers) > most else "")


# --- replay ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Replay:
    """Recorded steps against the same steps simulated now; absolute errors."""

    rows: int
    observation_error: tuple[float, float]  # median and largest over rows; each row's worst column
    reward_error: tuple[float, float]
    observation_step: float  # median over rows of the recorded step's worst column, for scale


def replay(dataset: OfflineDataset, env: "gymnasium.Env[Any, Any]", rows: int = 200) -> Replay:
    """Restore recorded simulator states, take the recorded actions and compare what comes next.

    Args:
        dataset: holds ``infos.qpos`` and ``infos.qvel`` (before the action).
        env: from ``make_env(recorded_environment(dataset))``.
        rows: how many steps, spread evenly over those with a recorded successor.

    Raises:
        DatasetError: no simulator state is recorded, or it does not fit the environment.
    """
    if not {"infos.qpos", "infos.qvel"} <= set(dataset.fields):
        raise DatasetError(
            "the data hold no simulator state (infos.qpos, infos.qvel), so their steps cannot be replayed"
        )
    if rows < 1:
        raise DatasetError(f"replay needs at least 1 step, got {rows}")
    table = dataset.transitions("exact")
    usable = np.flatnonzero(_successor_recorded(dataset)[table.step])
    if len(usable) == 0:
        raise DatasetError("no step has a recorded next observation; episodes are one step long")
    chosen = usable[np.unique(np.linspace(0, len(usable) - 1, min(rows, len(usable))).astype(int))]
    env.reset(seed=0)
    errors, reward_errors = [], []
    for index in chosen:
        _restore(env, dataset, int(table.step[index]))
        observation, reward, *_ = env.step(table.actions[index])
        if np.shape(observation) != table.next_observations[index].shape:
            raise DatasetError(
                f"the environment gives observations {np.shape(observation)}, the data hold "
                f"{table.next_observations[index].shape}"
            )
        errors.append(np.abs(observation - table.next_observations[index]).max())
        reward_errors.append(abs(float(reward) - float(table.rewards[index])))
    steps = np.abs(table.next_observations[chosen] - table.observations[chosen]).max(axis=1)
    return Replay(
        len(chosen),
        (float(np.median(errors)), float(np.max(errors))),
        (float(np.median(reward_errors)), float(np.max(reward_errors))),
        float(np.median(steps)),
    )


def _successor_recorded(dataset: OfflineDataset) -> np.ndarray:
    """(N,) bool: the true next observation of the step is in the data."""
    known = np.full(dataset.num_steps, dataset.has_next_observations)
    known[_inside(dataset.episode_starts)] = True
    return known


def _restore(env: "gymnasium.Env[Any, Any]", dataset: OfflineDataset, row: int) -> None:
    fields, base = dataset.fields, cast(Any, env.unwrapped)
    simulators = (base, *(getattr(base, name, None) for name in _INNER))
    owner: Any = next((s for s in simulators if hasattr(s, "set_state")), None)
    if owner is None:
        raise DatasetError(f"{type(base).__name__} has no simulator state that could be restored")
    qpos, qvel = (np.asarray(fields[f"infos.{n}"][row], dtype=np.float64).ravel() for n in ("qpos", "qvel"))
    if (len(qpos), len(qvel)) != (owner.model.nq, owner.model.nv):
        raise DatasetError(
            f"the recorded state has {len(qpos)} positions and {len(qvel)} velocities, the environment "
            f"{owner.model.nq} and {owner.model.nv}"
        )
    if hasattr(base, "set_env_state"):  # Adroit: the scene is part of the state, and fixed during an episode
        start = dataset.episode_starts[np.searchsorted(dataset.episode_starts, row, side="right") - 1]
        base.set_env_state({"qpos": qpos, "qvel": qvel, **_scene(base, fields, int(start))})
    else:
        owner.set_state(qpos, qvel)
    goals = next((fields[k] for k in ("observations.desired_goal", "infos.goal") if k in fields), None)
    if goals is not None and isinstance(getattr(base, "goal", None), np.ndarray):
        base.goal = np.asarray(goals[row], dtype=np.float64)


_INNER = ("point_env", "ant_env")  # where Gymnasium-Robotics keeps the simulator of a maze task
_SCENES: dict[str, tuple[str, ...]] = {
    "Pen": ("desired_orien",),
    "Door": ("door_body_pos",),
    "Hammer": ("board_pos",),
    "Relocate": ("obj_pos", "target_pos"),
}


def _scene(base: Any, fields: dict[str, np.ndarray], row: int) -> dict[str, np.ndarray]:
    hand = type(base).__name__.removeprefix("AdroitHand").removesuffix("Env")
    names = _SCENES.get(hand, ())
    if missing := [name for name in names if f"infos.{name}" not in fields]:
        raise DatasetError(f"the data hold no infos.{missing[0]}, which is part of this environment's state")
    return {name: np.asarray(fields[f"infos.{name}"][row], dtype=np.float64).ravel() for name in names}
