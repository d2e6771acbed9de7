"""After the training: which configuration of each algorithm and dataset, chosen how, and what it earns afterwards.

    last     highest mean of the final evaluations, over the seeds             costs their episodes
    fqe      highest fitted Q evaluation (``offrl fqe``), mean over the seeds  costs none
    bandit   UCB over the configurations; a pull is one episode of one of a configuration's policies, its seeds in
             turn; the highest mean after the last pull (``offrl.evaluation.bandit``)  costs the budget

The chosen configuration's policies then play fresh episodes. Episodes are drawn from (seed, stream): evaluations
during training have their step as the stream, the bandit's pulls and the fresh episodes have streams above all
steps, each their own range. The policies are those of the search: that one of many was the luckiest is not undone by
fresh episodes, only that its episodes were.
"""

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from offrl.data.environments import EnvSpec
from offrl.data.load import load_dataset
from offrl.data.reference import normalized_score, scored_by_success
from offrl.errors import CheckpointError, ConfigError, PolicyError
from offrl.evaluation.bandit import ucb
from offrl.evaluation.rollout import Evaluator
from offrl.files import atomic_write_json, atomic_write_text
from offrl.fitted_q import FQEOptions, fitted_q_evaluation
from offrl.nn.decision_transformer import DecisionTransformerPolicy
from offrl.nn.policy import load_policy
from offrl.training.cells import Cell
from offrl.training.run_dir import RunDir
from offrl.training.sweep import Entry, run_directory, scored

Select = Literal["last", "fqe", "bandit"]
SEARCH_STREAM = 1 << 31  # of the bandit's pulls: this plus the pull's number
REPORT_STREAM = SEARCH_STREAM + (1 << 30)  # of the fresh episodes
MODULE = "offrl.sweeps.choice"


@dataclass(frozen=True)
class Arm:
    """A configuration: the finished runs of all its seeds."""

    settings: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Contest:
    """The configurations of one algorithm on one dataset."""

    algorithm: str
    dataset: str
    arms: tuple[Arm, ...]
    missing: int  # configurations that lack a finished run


def contests(listed: Sequence[Entry], out: Path) -> list[Contest]:
    """What there is to choose from."""
    groups: dict[tuple[str, str], dict[str, list[Entry]]] = {}
    for entry in listed:
        of_pair = groups.setdefault((entry.algorithm, entry.dataset), {})
        of_pair.setdefault(entry.settings, []).append(entry)
    found = []
    for (algorithm, dataset), arms in groups.items():
        whole = [
            Arm(settings, tuple(own))
            for settings, own in arms.items()
            if all(e.result(out).exists() for e in own)
        ]
        found.append(Contest(algorithm, dataset, tuple(whole), len(arms) - len(whole)))
    return found


def judge_cells(
    contest: Contest, select: Select, out: Path, *, budget: int, steps: int, seed: int
) -> list[Cell]:
    """The cells that must have run before ``decide``: fitted Q evaluations, or a bandit; none where all is known."""
    if len(contest.arms) < 2 or select == "last":
        return []
    if select == "fqe":
        return [
            _cell(out, f"fqe-{entry.name}", {"kind": "fqe", "run": entry.name, "steps": steps, "seed": seed}, [entry])
            for arm in contest.arms
            for entry in arm.entries
        ]  # fmt: skip
    arms = [[entry.name for entry in arm.entries] for arm in contest.arms]
    facts = {"kind": "bandit", "arms": arms, "budget": budget, "seed": seed}
    entries = [entry for arm in contest.arms for entry in arm.entries]
    return [_cell(out, f"bandit-{contest.algorithm}-{Path(contest.dataset).name}", facts, entries)]


def final_cells(arm: Arm, out: Path, episodes: int) -> list[Cell]:
    """The cells in which the chosen policies play ``episodes`` fresh episodes each; none without an environment."""
    if not RunDir(run_directory(arm.entries[0], out)).config["env_id"]:
        return []
    return [
        _cell(out, f"final-{entry.name}", {"kind": "final", "run": entry.name, "episodes": episodes}, [entry])
        for entry in arm.entries
    ]


def _cell(out: Path, name: str, facts: dict[str, Any], entries: Sequence[Entry]) -> Cell:
    """A cell whose name ends in a hash of ``facts``; entries' names hash all that the policies depend on."""
    name = f"{name}-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:8]}"
    runs = {entry.name: str(run_directory(entry, out).resolve()) for entry in entries}
    spec, result = (out / "choice" / f"{name}{suffix}" for suffix in (".cell.json", ".json"))
    atomic_write_json(spec, facts | {"runs": runs, "result": str(result.resolve())})
    return Cell(name, (sys.executable, "-m", MODULE, str(spec.resolve())), result)


@dataclass(frozen=True)
class Decision:
    """The chosen configuration, why, and what the choice cost."""

    arm: int
    values: tuple[float, ...]  # what was compared, of each arm
    online_episodes: int
    how: str


def decide(contest: Contest, select: Select, out: Path, cells: Sequence[Cell]) -> Decision:
    """The choice, from what ``judge_cells`` left.

    Raises:
        ConfigError: nothing is left to choose from, or a run was never evaluated.
    """
    names = f"{contest.algorithm} on {contest.dataset}"
    if not contest.arms:
        raise ConfigError(f"{names}: no configuration has finished runs of all its seeds")
    if len(contest.arms) == 1:
        return Decision(0, (), 0, "the only configuration")
    if select == "bandit":
        record = json.loads(cells[0].result.read_text())
        budget = len(record["pulled"])
        how = f"UCB bandit over {len(contest.arms)} configurations, {budget} online episodes"
        return Decision(record["chosen"], tuple(record["means"]), budget, how)
    if select == "fqe":
        flat = iter(json.loads(cell.result.read_text())["value"] for cell in cells)
        values = [float(np.mean([next(flat) for _ in arm.entries])) for arm in contest.arms]
        how = f"highest fitted Q evaluation of {len(values)} configurations, no online episode"
        return Decision(int(np.argmax(values)), tuple(values), 0, how)
    means, episodes = [], 0
    for arm in contest.arms:
        last = [_last_evaluation(entry, out) for entry in arm.entries]
        means.append(float(np.mean([np.mean(values) for values in last])))
        episodes += sum(map(len, last))
    how = f"highest last evaluation of {len(means)} configurations, {episodes} online episodes"
    return Decision(int(np.argmax(means)), tuple(means), episodes, how)


def _last_evaluation(entry: Entry, out: Path) -> list[float]:
    """The episodes' returns, or their successes where scores are made of those."""
    raw = json.loads(entry.result(out).read_text())
    if not raw["evaluations"]:
        raise ConfigError(
            f"{entry.name} was never evaluated: --select last needs an environment, pass --env ID"
        )
    values: list[float] = scored(raw["config"], raw["evaluations"][-1]).tolist()
    return values


# --- what a cell does -----------------------------------------------------------------------------------


def main(argv: Sequence[str]) -> None:
    """Do what the cell description that ``argv`` names asks for."""
    facts = json.loads(Path(argv[0]).read_text())
    result = Path(facts["result"])
    record = {"fqe": _fqe, "bandit": _bandit, "final": _final}[facts["kind"]](facts)
    atomic_write_json(result, {key: facts[key] for key in facts if key not in ("runs", "result")} | record)


def _fqe(facts: dict[str, Any]) -> dict[str, Any]:
    run = RunDir(Path(facts["runs"][facts["run"]]))
    policy = load_policy(run.path)
    if isinstance(policy, DecisionTransformerPolicy):
        raise PolicyError(f"{run.path} acts on the episode so far: fitted Q evaluation cannot judge it")
    options = FQEOptions(steps=facts["steps"], seed=facts["seed"])
    fit = fitted_q_evaluation(policy, load_dataset(run.config["dataset"]), options)
    return {"value": fit.value, "held_out_td_error": fit.held_out_td_error, "data_value": fit.data_value}


def _final(facts: dict[str, Any]) -> dict[str, Any]:
    run = RunDir(Path(facts["runs"][facts["run"]]))
    with Evaluator(_spec(run)) as evaluator:
        played = evaluator(
            load_policy(run.path), facts["episodes"], seed=run.config["seed"], stream=REPORT_STREAM
        )
    reference = run.config["reference_returns"]
    scores = normalized_score(tuple(reference), played.scored).tolist() if reference else None
    return {"stream": REPORT_STREAM, "returns": played.returns.tolist(), "scores": scores}


def _bandit(facts: dict[str, Any]) -> dict[str, Any]:
    """Pull by pull; each is recorded, so that a bandit that was stopped goes on where it was."""
    arms, seed = facts["arms"], facts["seed"]
    runs = {name: RunDir(Path(path)) for name, path in facts["runs"].items()}
    policies = {name: load_policy(run.path) for name, run in runs.items()}
    first = runs[arms[0][0]]
    pair, unit = _scale(first)
    log = Path(facts["result"]).with_suffix(".pulls.csv")
    known = _read_pulls(log)
    atomic_write_text(log, "".join(f"{arm},{score!r}\n" for arm, score in known))
    counts, t = [0] * len(arms), 0
    with Evaluator(_spec(first)) as evaluator, open(log, "a", encoding="utf-8") as file:

        def pull(arm: np.ndarray) -> np.ndarray:
            nonlocal t
            k = int(arm[0])
            name = arms[k][counts[k] % len(arms[k])]
            if t < len(known):
                if known[t][0] != k:
                    raise CheckpointError(
                        f"{log} is of another search: pull {t + 1} is of arm {known[t][0]}, not {k}"
                    )
                score = known[t][1]
            else:
                played = evaluator(policies[name], 1, seed=seed, stream=SEARCH_STREAM + t)
                score = float(normalized_score(pair, played.scored)[0])
                file.write(f"{k},{score!r}\n")
                file.flush()
            counts[k] += 1
            t += 1
            return np.array([score])

        played = ucb(pull, len(arms), facts["budget"], rng=np.random.default_rng(seed))
    values, pulled = played.values[0], played.arms[0]
    means = [float(values[pulled == k].mean()) if counts[k] else None for k in range(len(arms))]
    record = {"chosen": int(played.chosen[0, -1]), "means": means, "pulled": pulled.tolist()}
    return record | {"scores": values.tolist(), "scale": unit}


def _read_pulls(log: Path) -> list[tuple[int, float]]:
    """The whole lines of the record; a line that a kill cut short is played again."""
    if not log.exists():
        return []
    lines = log.read_text(encoding="utf-8").split("\n")[:-1]
    return [(int(arm), float(score)) for arm, score in (line.split(",") for line in lines)]


def _scale(run: RunDir) -> tuple[tuple[float, float], str]:
    """Returns that count as 0 and 100: the exploration of the bandit is meant for such scores."""
    if reference := run.config["reference_returns"]:
        return (float(reference[0]), float(reference[1])), "normalized score"
    if scored_by_success(run.config["env_id"]):
        return (0.0, 1.0), "success rate, %"
    returns = load_dataset(run.config["dataset"]).episode_returns
    low, high = float(returns.min()), float(returns.max())
    return (
        low,
        high if high > low else low + 1.0,
    ), "lowest and highest return of the data's episodes as 0 and 100"


def _spec(run: RunDir) -> EnvSpec:
    c = run.config
    if not c["env_id"]:
        raise ConfigError(f"{run.path} has no environment to play in")
    return EnvSpec(c["env_id"], kwargs=c["env_kwargs"], flatten=tuple(c["env_flatten"]))


if __name__ == "__main__":
    main(sys.argv[1:])
