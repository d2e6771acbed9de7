"""``offrl compose``: one policy out of two or more frozen ones, and whether it is better than they are."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from offrl.commands.arguments import parse
from offrl.data.environments import named_environment
from offrl.errors import ConfigError
from offrl.evaluation.rollout import EvaluationResult, Evaluator
from offrl.evaluation.sources import load_source
from offrl.nn.policy import Policy, save_policy
from offrl.policies.composed import ComposedPolicy
from offrl.policies.composition import Operator
from offrl.policies.search import Search, Weights, paired_gain, search_weights, simplex


@dataclass(frozen=True, kw_only=True)
class ComposeOptions:
    """Compose frozen chunk policies at test time and compare the result with its parents, on the same episodes.

    The policies (runs of diffusion_policy and flow_policy) must take the observations and actions of --env. Example:

      offrl compose --policy RUN_A --policy RUN_B --env pusht-state --search --episodes 200 --out composed

    Weights are searched on the episodes of one seed and reported on those of another, so that the report does not
    flatter the winner. Success decides where the environment says so, else the return.
    """

    policy: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="DIR")] = ()
    """A run or policy folder; give the option once for each policy."""
    env: str
    """Gymnasium id or a short name (pusht-state)."""
    weights: Annotated[tuple[float, ...], tyro.conf.arg(metavar="W ...")] = ()
    """Weights of the policies, in order; default: equal ones."""
    search: bool = False
    """Look for the weights: steps of 0.1, all of them positive."""
    operator: Operator = "convex"
    """convex: weighted mean of the clean chunks; product: sum of the scores; or, and: SuperDiff's."""
    denoising_steps: int = 0
    """Noise levels of a plan; 0: as many as the first policy takes."""
    stochastic: bool = False
    """Posterior steps (DDPM) instead of the ODE's."""
    allow_anisotropic: bool = False
    """Go on where the action normalizers differ by another factor in each dim: not exact."""
    episodes: int = 50
    """Report episodes of each policy and control."""
    search_episodes: int = 50
    """Search episodes of each candidate that stays to the end."""
    rounds: int = 3
    """Rounds of successive halving in the search; 1 plays every candidate to the end."""
    no_controls: bool = False
    """Leave out equal weights, the average of actions and the first policy composed with itself."""
    seed: int = 0
    """Seed of the report; the search takes the next one."""
    workers: int = 1
    """Processes; the numbers do not depend on it."""
    out: Path | None = None
    """Folder for the composed policy and compose.json."""
    json: bool = False
    """Print one JSON object."""


def main(argv: list[str]) -> int:
    """``offrl compose ...``."""
    options = parse(ComposeOptions, "offrl compose", argv)
    check(options)
    spec = named_environment(options.env)
    parents = [load_source(name, spec) for name in options.policy]
    compose(
        options, parents, options.weights or None
    )  # refuses what cannot be composed before anything is played
    with Evaluator(spec, options.workers) as evaluator:
        found = search(options, parents, evaluator) if options.search else None
        weights = found.best if found else options.weights or None
        chosen = compose(options, parents, weights)
        results = report(options, parents, chosen, evaluator)
    summary = summarize(options, chosen, results, found)
    if options.out is not None:
        save_policy(chosen, options.out, {"env_id": spec.env_id})
        (options.out / "compose.json").write_text(json.dumps(summary, indent=1))
    print(json.dumps(summary) if options.json else describe(summary), flush=True)
    return 0


def check(options: ComposeOptions) -> None:
    """Refuse options that contradict each other (ConfigError)."""
    if len(options.policy) < 2:
        raise ConfigError("give --policy twice or more, once for each policy")
    if options.search and (options.weights or options.operator != "convex"):
        raise ConfigError(
            "--search finds the weights of a convex composition: leave --weights and --operator out"
        )
    if options.episodes < 2:
        raise ConfigError(f"episodes must be 2 or more, for an interval, got {options.episodes}")


def compose(
    options: ComposeOptions, parents: list[Policy], weights: Weights | None, **changed: Any
) -> ComposedPolicy:
    """The composition that the options ask for, with these weights."""
    settings: dict[str, Any] = {
        "operator": options.operator,
        "weights": weights,
        "denoising_steps": options.denoising_steps or None,
        "stochastic": options.stochastic,
        "allow_anisotropic": options.allow_anisotropic,
    }
    return ComposedPolicy(parents, **(settings | changed)).eval()


def outcomes(result: EvaluationResult) -> np.ndarray:
    """What decides, one number an episode: success, or the return where there is none."""
    return result.returns if result.successes is None else result.successes.astype(np.float64)


def search(options: ComposeOptions, parents: list[Policy], evaluator: Evaluator) -> Search:
    """The best weights on the search seed's episodes."""

    def evaluate(weights: Weights, stream: int, episodes: int) -> np.ndarray:
        policy = compose(options, parents, weights)
        return outcomes(evaluator(policy, episodes, seed=options.seed + 1, stream=stream))

    return search_weights(evaluate, simplex(len(parents)), options.search_episodes, rounds=options.rounds)


def report(
    options: ComposeOptions, parents: list[Policy], chosen: ComposedPolicy, evaluator: Evaluator
) -> dict[str, EvaluationResult]:
    """Results of the composition, its parents and the controls on the report seed's episodes."""
    players: dict[str, Policy] = {"composition": chosen}
    players |= {f"policy {i}": policy for i, policy in enumerate(parents, 1)}
    if not options.no_controls:
        weights = tuple(chosen.weights) if options.operator == "convex" else None
        players["equal weights"] = compose(options, parents, None, operator="convex")
        players["action average"] = compose(options, parents, weights, operator="action_average")
        itself = [parents[0]] * len(parents)
        players["policy 1 with itself"] = compose(options, itself, None, operator="convex")
    return {name: evaluator(policy, options.episodes, seed=options.seed) for name, policy in players.items()}


def summarize(
    options: ComposeOptions,
    chosen: ComposedPolicy,
    results: dict[str, EvaluationResult],
    found: Search | None,
) -> dict[str, Any]:
    """What is printed, as JSON values."""
    base = outcomes(results["composition"])
    rows: dict[str, dict[str, Any]] = {}
    for name, result in results.items():
        values = outcomes(result)
        rows[name] = {"mean": float(values.mean()), "max_reward_mean": float(result.max_rewards.mean())}
        if name != "composition":
            gain = paired_gain(base, values)
            rows[name] |= {"gain": gain.mean, "interval": [gain.low, gain.high]}
    summary: dict[str, Any] = {
        "env_id": results["composition"].env_id,
        "policies": list(options.policy),
        "operator": options.operator,
        "weights": None if options.operator == "and" else chosen.weights,
        "denoising_steps": chosen.denoising_steps,
        "mismatch": chosen.mismatch,
        "measure": "return" if results["composition"].successes is None else "success",
        "episodes": options.episodes,
        "seed": options.seed,
        "results": rows,
    }
    if found is not None:
        tried = [[*w, found.means[w], found.episodes[w]] for w in found.means]
        summary["search"] = {"seed": options.seed + 1, "episodes": found.played, "candidates": tried}
    return summary


def describe(summary: dict[str, Any]) -> str:
    """The summary as lines for people."""
    lines = []
    if "search" in summary:
        tried = ", ".join(f"{row[0]:g}: {row[-2]:.2f} ({row[-1]})" for row in summary["search"]["candidates"])
        lines.append(
            f"search, {summary['search']['episodes']} episodes of seed {summary['search']['seed']}; weight of "
            f"policy 1: {summary['measure']} (episodes): {tried}"
        )
    weights = (
        "" if summary["weights"] is None else ", weights " + " ".join(f"{w:g}" for w in summary["weights"])
    )
    lines.append(
        f"{summary['operator']}{weights} on {summary['env_id']}: {summary['episodes']} episodes, seed {summary['seed']}"
    )
    if (worst := max(summary["mismatch"])) > 1e-6:
        lines.append(f"noise levels are matched up to a factor {np.exp(worst):.3f} (nearest trained levels)")
    lines.append(
        f"{'':22}{summary['measure']:>9}   gain of the composition, 95 % interval of the paired mean"
    )
    for name, row in summary["results"].items():
        line = f"{name:22}{row['mean']:9.3f}"
        if "gain" in row:
            line += "   {:+.3f} ({:+.3f} .. {:+.3f})".format(row["gain"], *row["interval"])
        lines.append(line)
    return "\n".join(lines)
