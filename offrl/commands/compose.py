"""``offrl compose``: one policy out of two or more frozen ones, and whether it is better than they are."""

import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from offrl.commands.arguments import parse
from offrl.commands.compose_check import Setting, check_all, width, wire
from offrl.commands.compose_diagnose import describe_hint, diagnose, summary_of
from offrl.commands.compose_page import write_page
from offrl.data.environments import named_environment
from offrl.data.load import load_dataset
from offrl.errors import ConfigError
from offrl.evaluation.reproduce import measured
from offrl.evaluation.rollout import EvaluationResult, Evaluator
from offrl.evaluation.sources import check_folder, env_facts, load_source
from offrl.evaluation.video import check_target
from offrl.nn.policy import Policy, save_policy
from offrl.policies.composed import ComposedPolicy, ViewedPolicy, composable
from offrl.policies.composition import RATIO_TOLERANCE, Matching, Operator, normalizer_ratios
from offrl.policies.search import Search, Weights, paired_gain, search_weights, simplex
from offrl.policies.wiring import Piece


@dataclass(frozen=True, kw_only=True)
class ComposeOptions:
    """Compose frozen chunk policies at test time and compare the result with its parents, on the same episodes.

    The policies (runs of diffusion_policy and flow_policy) must take the observations and actions of --env. Example:

      offrl compose --policy RUN_A --policy RUN_B --env pusht-state --check
      offrl compose --policy RUN_A --policy RUN_B --env pusht-state --diagnose --demos builtin:pusht-demo
      offrl compose --policy RUN_A --policy RUN_B --env pusht-state --search --episodes 200 --out composed

    A policy that sees other things than the environment calls them by is wired by a file, e.g. keypoints.toml:

      [inputs."observation.state"]
      from = ["agent_pos", "environment_state"]      # or KEY[FROM:TO]; images: camera, layout, resize

    Weights are searched on the episodes of one seed and reported on those of another, so that the report does not
    flatter the winner. Success decides where the environment says so, else the return.
    """

    policy: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="DIR")] = ()
    """A run or policy folder, lerobot:DIR, sb3:FILE.zip or served:PORT; give the option once for each policy."""
    wiring: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="FILE")] = ()
    """Wiring file (TOML) of each policy, in their order: which parts of the environment its inputs are made of;
    - for a policy whose inputs have the names of those parts."""
    env: str
    """Gymnasium id or a short name (pusht-state; pusht-all shows poses and keypoints)."""
    check: bool = False
    """Only check that everything fits, before any weights are loaded; every mistake is one line."""
    diagnose: bool = False
    """Only estimate weights and gain from the errors on --demos, without playing: a hint."""
    demos: str | None = None
    """Demonstrations for --diagnose, best such that no policy was trained on."""
    expect: Annotated[tuple[float, ...], tyro.conf.arg(metavar="X ...")] = ()
    """Published success (else return) of each policy, in order: a warning if one here is below even its upper bound."""
    weights: Annotated[tuple[float, ...], tyro.conf.arg(metavar="W ...")] = ()
    """Weights of the policies, in order (of or: their logarithms); default: equal ones."""
    search: bool = False
    """Look for the weights: steps of 0.1, all of them positive."""
    operator: Operator = "convex"
    """convex: weighted mean of the clean chunks; product: sum of the scores; or, and: SuperDiff's."""
    denoising_steps: int = 0
    """Noise levels of a plan; 0: as many as the first policy takes."""
    stochastic: bool = False
    """Posterior steps (DDPM) instead of the ODE's."""
    allow_anisotropic: bool = False
    """Go on where the action normalizers differ by another factor in each dim: not exact (renormalizing is)."""
    matching: Matching = "levels"
    """How, then: levels asks a policy once for each factor, top_up adds the missing noise, mean takes one level."""
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
    side_by_side: int = 5
    """Episodes whose chunks are denoised together; 32 are several times as fast and draw other noise."""
    out: Path | None = None
    """Folder for the composed policy and compose.json."""
    report: Path | None = None
    """Also write one HTML page: table, success against weight, a film of all side by side, denoising of a 2-D toy."""
    no_film: bool = False
    """Leave the film out of --report."""
    json: bool = False
    """Print one JSON object."""


def main(argv: list[str]) -> int:
    """``offrl compose ...``."""
    options = parse(ComposeOptions, "offrl compose", argv)
    check(options)
    spec = named_environment(options.env)
    setting = Setting.of(spec)
    if options.check:
        return only_check(options, setting)
    parents = [load_source(name, spec) for name in options.policy]
    for policy in parents:
        composable(policy)  # else what it sees would be asked for first
    seen = fitting_wires(options, parents, setting)
    composed = compose(options, parents, options.weights or None, **seen)  # refuses before anything is played
    if options.diagnose:
        found = diagnose(composed, load_dataset(str(options.demos)), setting, options.seed)
        print(json.dumps(summary_of(found)) if options.json else describe_hint(found), flush=True)
        return 0
    with Evaluator(spec, options.workers, width=options.side_by_side) as evaluator:
        best = search(options, parents, seen, evaluator) if options.search else None
        weights = best.best if best else options.weights or None
        chosen = compose(options, parents, weights, **seen)
        results = report(options, parents, seen, chosen, evaluator)
    summary = summarize(options, chosen, results, best)
    for line in shortfalls(options, results):
        print(f"offrl: warning: {line}", file=sys.stderr)
    print(
        json.dumps(summary) if options.json else describe(summary), flush=True
    )  # before a disk or film fails
    if options.out is not None:
        save_policy(chosen, options.out, env_facts(spec))
        (options.out / "compose.json").write_text(json.dumps(summary, indent=1))
    if options.report is not None:
        players = {"composition": chosen} | numbered(alone(parents, seen))
        write_page(options.report, summary, players, spec, options.seed, film=not options.no_film)
    return 0


def check(options: ComposeOptions) -> None:
    """Refuse options that contradict each other (ConfigError)."""
    if len(options.policy) < 2:
        raise ConfigError("give --policy twice or more, once for each policy")
    if options.search and (options.weights or options.operator != "convex"):
        raise ConfigError(
            "--search finds the weights of a convex composition: leave --weights and --operator out"
        )
    searching = any(getattr(options, n) != getattr(ComposeOptions, n) for n in ("rounds", "search_episodes"))
    if searching and not options.search:
        raise ConfigError("--rounds and --search-episodes have no effect without --search")
    if options.matching != ComposeOptions.matching and not options.allow_anisotropic:
        raise ConfigError("--matching has no effect without --allow-anisotropic")
    if options.diagnose != (options.demos is not None):
        raise ConfigError("--diagnose and --demos go together: the errors are measured on demonstrations")
    if options.check and options.diagnose:
        raise ConfigError("--check looks at no weights, --diagnose needs them: give one of the two")
    if options.expect and len(options.expect) != len(options.policy):
        raise ConfigError(f"--expect takes {len(options.policy)} numbers, one a policy, in their order")
    if options.out is not None and any(name.startswith("served:") for name in options.policy):
        raise ConfigError("--out needs policies that are files: a served one ends with its server")
    if options.out is not None:
        check_folder(options.out, "--out")
    for name in ("report", "out"):
        if getattr(options, name) is not None and (options.check or options.diagnose):
            raise ConfigError(f"--{name} keeps what was played: leave --check and --diagnose out")
    if options.report is not None and options.report.suffix not in (".html", ".htm"):
        raise ConfigError(f"--report must end in .html, got {options.report}")
    if options.no_film and options.report is None:
        raise ConfigError("--no-film has an effect with --report only")
    if options.report is not None and not options.no_film:
        check_target(options.report.with_suffix(".mp4"))
        if options.env.startswith("served:"):
            raise ConfigError(f"{options.env} lives in another process and cannot be filmed: add --no-film")
    if options.side_by_side < 1:
        raise ConfigError(f"--side-by-side must be 1 or more, got {options.side_by_side}")
    if options.episodes < 2:
        raise ConfigError(f"episodes must be 2 or more, for an interval, got {options.episodes}")


def only_check(options: ComposeOptions, setting: Setting) -> int:
    """Print what fits and what does not; 1 if anything does not."""

    def build(skeletons: list[Policy], wires: Sequence[Sequence[Piece]], obs_dim: int) -> ComposedPolicy:
        return compose(options, skeletons, options.weights or None, wires=wires, obs_dim=obs_dim)

    found = check_all(options.policy, options.wiring, setting, build)
    if options.json:
        print(json.dumps({"mistakes": found.mistakes, "lines": found.lines}), flush=True)
    else:
        for line in [*found.lines, *([] if found.mistakes else ["everything fits"])]:
            print(line, flush=True)
        for line in found.mistakes:
            print(f"offrl: {line}", file=sys.stderr)
    return 1 if found.mistakes else 0


def fitting_wires(options: ComposeOptions, parents: list[Policy], setting: Setting) -> dict[str, Any]:
    """Arguments of ``ComposedPolicy`` that say what each policy sees.

    Raises:
        ConfigError: something is wired wrongly.
    """
    found = wire(options.policy, options.wiring, parents, setting)
    if found.mistakes:
        more = len(found.mistakes) - 1
        rest = f" ({more} more: see 'offrl compose ... --check')" if more else ""
        raise ConfigError(found.mistakes[0] + rest)
    total = width(setting)
    if all([(p.start, p.stop) for p in pieces] == whole(pieces, total) for pieces in found.wires):
        return {}
    return {"wires": found.wires, "obs_dim": total}


def whole(pieces: Sequence[Piece], total: int) -> list[tuple[int, int]]:
    """The columns of pieces that make up the whole observation in order, and are taken as they are."""
    stops = [piece.stop for piece in pieces]
    plain = all(piece.layout == "HWC" and piece.resize is None for piece in pieces)
    return list(itertools.pairwise([0, *stops])) if plain and stops[-1:] == [total] else []


def shortfalls(options: ComposeOptions, results: dict[str, EvaluationResult]) -> list[str]:
    """One line for each policy that does not reproduce what was published for it."""
    lines = []
    for number, published in enumerate(options.expect, 1):
        rate = measured(results[f"policy {number}"])
        if rate.high < published:
            lines.append(
                f"policy {number} ({options.policy[number - 1]}) has {rate} of {published:g} published: find out why "
                "first; a gain over a broken parent says little"
            )
    return lines


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
        "matching": options.matching,
    }
    return ComposedPolicy(parents, **(settings | changed)).eval()


def outcomes(result: EvaluationResult) -> np.ndarray:
    """What decides, one number an episode: success, or the return where there is none."""
    return result.returns if result.successes is None else result.successes.astype(np.float64)


def search(
    options: ComposeOptions, parents: list[Policy], seen: dict[str, Any], evaluator: Evaluator
) -> Search:
    """The best weights on the search seed's episodes."""

    def evaluate(weights: Weights, stream: int, episodes: int) -> np.ndarray:
        policy = compose(options, parents, weights, **seen)
        return outcomes(evaluator(policy, episodes, seed=options.seed + 1, stream=stream))

    return search_weights(evaluate, simplex(len(parents)), options.search_episodes, rounds=options.rounds)


def report(
    options: ComposeOptions,
    parents: list[Policy],
    seen: dict[str, Any],
    chosen: ComposedPolicy,
    evaluator: Evaluator,
) -> dict[str, EvaluationResult]:
    """Results of the composition, its parents and the controls on the report seed's episodes."""
    players: dict[str, Policy] = {"composition": chosen} | numbered(alone(parents, seen))
    if not options.no_controls:
        weights = tuple(chosen.weights) if options.operator == "convex" else None
        players["equal weights"] = compose(options, parents, None, operator="convex", **seen)
        players["action average"] = compose(options, parents, weights, operator="action_average", **seen)
        itself, twice = [parents[0]] * len(parents), dict(seen)
        if seen:
            twice["wires"] = [seen["wires"][0]] * len(parents)
        players["policy 1 with itself"] = compose(options, itself, None, operator="convex", **twice)
    return {name: evaluator(policy, options.episodes, seed=options.seed) for name, policy in players.items()}


def numbered(policies: list[Policy]) -> dict[str, Policy]:
    """The policies by what they are called in tables."""
    return {f"policy {i}": policy for i, policy in enumerate(policies, 1)}


def alone(parents: list[Policy], seen: dict[str, Any]) -> list[Policy]:
    """Each policy by itself, on what it sees of the environment."""
    if not seen:
        return parents
    return [
        ViewedPolicy(p, pieces, seen["obs_dim"]) for p, pieces in zip(parents, seen["wires"], strict=True)
    ]


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
        "normalizer_ratios": [
            r.tolist() for r in normalizer_ratios([p.denoiser().actions for p in chosen.chunky()])
        ],
        "measure": "return" if results["composition"].successes is None else "success",
        "episodes": options.episodes,
        "seed": options.seed,
        "results": rows,
    }
    if found is not None:
        tried = [[*w, found.means[w], found.episodes[w]] for w in found.means]
        summary["search"] = {"seed": options.seed + 1, "episodes": found.played, "candidates": tried}
        summary["search"]["intervals"] = [list(found.intervals[w]) for w in found.means]
    return summary


def describe(summary: dict[str, Any]) -> str:
    """The summary as lines for people."""
    lines = []
    if "search" in summary:
        two = len(summary["policies"]) == 2  # one weight tells the other
        tried = ", ".join(
            f"{' '.join(f'{w:g}' for w in (row[:1] if two else row[:-2]))}: {row[-2]:.2f} ({row[-1]})"
            for row in summary["search"]["candidates"]
        )
        lines.append(
            f"search, {summary['search']['episodes']} episodes of seed {summary['search']['seed']}; "
            f"{'weight of policy 1' if two else 'weights'}: {summary['measure']} (episodes): {tried}"
        )
    weights = ""
    if summary["weights"] is not None:
        word = "log-weights" if summary["operator"] == "or" else "weights"
        weights = f", {word} " + " ".join(f"{w:g}" for w in summary["weights"])
    lines.append(
        f"{summary['operator']}{weights} on {summary['env_id']}: {summary['episodes']} episodes, seed {summary['seed']}"
    )
    if (worst := max(summary["mismatch"])) > 1e-6:
        lines.append(f"noise levels are matched up to a factor {np.exp(worst):.3f} (nearest trained levels)")
    if any(max(row) > (1 + RATIO_TOLERANCE) * min(row) for row in summary["normalizer_ratios"]):
        for number, row in enumerate(summary["normalizer_ratios"][1:], 2):
            table = " ".join(f"{x:.4g}" for x in row)
            lines.append(
                f"action normalizers of policies {number} and 1, factor in each dim, not exact: {table}"
            )
    lines.append(
        f"{'':22}{summary['measure']:>9}   gain of the composition, 95 % interval of the paired mean"
    )
    for name, row in summary["results"].items():
        line = f"{name:22}{row['mean']:9.3f}"
        if "gain" in row:
            line += "   {:+.3f} ({:+.3f} .. {:+.3f})".format(row["gain"], *row["interval"])
        lines.append(line)
    return "\n".join(lines)
