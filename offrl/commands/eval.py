"""``offrl eval SOURCE``: roll out a policy and print what it earns."""

import json
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.progress import Progress

from offrl.commands.adjust import AdjustOptions, adjusted, comparison_lines
from offrl.commands.arguments import parse
from offrl.data.environments import EnvSpec, named_environment
from offrl.data.reference import (
    PUSHT,
    Pair,
    normalized_score,
    reference_label,
    reference_returns,
    scored_by_success,
)
from offrl.errors import ConfigError
from offrl.evaluation.reproduce import Measured, measured
from offrl.evaluation.risk import comparison, mean_interval
from offrl.evaluation.rollout import EvaluationResult, evaluate
from offrl.evaluation.sources import SourceFacts, check_folder, env_facts, load_source, source_facts
from offrl.evaluation.video import check_target, record
from offrl.files import atomic_write
from offrl.nn.policy import Policy, save_policy

SHORTFALL = 1  # exit code when --expect is missed


@dataclass(frozen=True, kw_only=True)
class PlayOptions:
    """What is played and what is printed."""

    source: tyro.conf.Positional[str]
    """What acts: run:DIR or DIR, sb3:FILE.zip, lerobot:DIR, py:PACKAGE.MODULE:NAME, served:PORT, random, waypoint,
    expert."""
    env: str | None = None
    """Gymnasium id or a short name (pusht-state); default: the one that the run was evaluated on."""
    episodes: int = 10
    """Episodes to play."""
    seed: int = 0
    """Seed of the environments and of the policy's samples."""
    workers: int = 1
    """Processes; the numbers do not depend on it."""
    stochastic: bool = False
    """Sample actions instead of taking the mode."""
    video: Path | None = None
    """Also film one episode, rendered off-screen: FILE.mp4 or FILE.gif."""
    expect: float | None = None
    """A published result to reproduce: where the environment tells success, a number of 0 .. 1 is a success rate, else
    it is a mean return. A warning and exit code 1 if even the upper 95 % bound here is below it."""
    json: bool = False
    """Print one JSON object."""
    out: Path | None = None
    """Write the raw returns and lengths to this .npz file."""


@dataclass(frozen=True, kw_only=True)
class EvalOptions(AdjustOptions, PlayOptions):
    """Roll out a policy and print return, its interval and the normalized score where one is known.

    SOURCE is a run directory or policy folder (run:DIR or just DIR), sb3:FILE.zip, py:PACKAGE.MODULE:NAME
    (your own code), random, waypoint (point mazes), or expert (PushT, FetchPickAndPlace, FetchPush).

    With --adjust RUN the policy's actions are pulled towards the data of a run of cdsa, and the policy itself plays the
    same episodes for comparison.
    """


def main(argv: list[str]) -> int:
    """``offrl eval ...``."""
    options = parse(EvalOptions, "offrl eval", argv)
    check(options)
    facts = source_facts(options.source)
    spec = environment(options, facts)
    base = load_source(options.source, spec)
    policy = adjusted(options, base)
    if options.adjust_out is not None:
        save_policy(policy, options.adjust_out, env_facts(spec) | {"base": options.source})
    result = play(options, spec, policy)
    summary = summarize(options, result, *reference(spec, facts))
    if facts.fine_tuned:
        summary["kind"] = "fine-tuning"
    if policy is not base:
        summary["adjustment"] = {"run": str(options.adjust), **policy.config()}
        summary["comparison"] = comparison(play(options, spec, base).returns, result.returns)
    print(
        json.dumps(summary) if options.json else describe(summary), flush=True
    )  # before a disk or film fails
    if options.out is not None:
        write_returns(options.out, result)
    if options.video is not None:
        frames = record(policy, spec, options.video, seed=options.seed, deterministic=not options.stochastic)
        if not options.json:
            print(f"film {options.video}: {frames} frames")
    if options.expect is not None:
        rate = measured(result, None if 0 <= options.expect <= 1 else "return")
        if rate.high < options.expect:
            print(f"offrl: {shortfall(rate, options.expect)}", file=sys.stderr)
            return SHORTFALL
    return 0


def shortfall(rate: Measured, expected: float) -> str:
    """One line that says how far a policy is below what was expected of it."""
    if rate.kind == "return":
        return f"expected a mean return of {expected:g}, but its 95 % interval is {rate.low:.1f} .. {rate.high:.1f}"
    return (
        f"expected a success rate of {expected:g}, but it is {rate.mean:.2f} with a 95 % interval of "
        f"{rate.low:.2f} .. {rate.high:.2f}: check versions, normalizers and averaged weights before building on it"
    )


def play(options: EvalOptions, spec: EnvSpec, policy: Policy) -> EvaluationResult:
    """The episodes asked for, with a progress bar on a terminal."""
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(spec.env_id, total=options.episodes)
        return evaluate(
            policy,
            spec,
            episodes=options.episodes,
            seed=options.seed,
            workers=options.workers,
            deterministic=not options.stochastic,
            progress=lambda done, _: bar.update(task, completed=done),
        )


def check(options: EvalOptions) -> None:
    """Refuse what would fail only after the episodes (ConfigError, MissingExtraError)."""
    if options.out is not None and options.out.suffix != ".npz":
        raise ConfigError(f"--out must end in .npz, got {options.out}")
    if options.expect is not None and (options.episodes < 2 or not math.isfinite(options.expect)):
        raise ConfigError("--expect needs a finite return and at least 2 episodes")
    if options.video is not None:
        check_target(options.video)
    if options.adjust_out is not None:
        check_folder(options.adjust_out, "--adjust-out")


def environment(options: EvalOptions, facts: SourceFacts) -> EnvSpec:
    """The environment asked for, else the run's own.

    Raises:
        ConfigError: neither is known.
    """
    if facts.env is not None and options.env in (None, facts.env.env_id):
        return facts.env
    if options.env is None:
        raise ConfigError(
            f"{options.source} does not say which environment it is for; pass --env ID, e.g. Hopper-v5"
        )
    return named_environment(options.env)


def reference(spec: EnvSpec, facts: SourceFacts) -> tuple[Pair | None, str | None]:
    """Reference returns for normalized scores and where they come from; (None, None) where none are known."""
    if facts.reference_returns is not None and facts.env == spec:
        label = reference_label(facts.dataset_name) if facts.dataset_name else None
        return facts.reference_returns, label or "reference of its dataset"
    robot = re.fullmatch(r"(Hopper|HalfCheetah|Walker2d|Ant)-v([45])", spec.env_id)
    if robot is None:
        return None, None
    kind = robot[1].lower()
    name = (
        f"{kind}-medium-v2" if robot[2] == "4" else f"mujoco/{kind}/expert-v0"
    )  # any quality: one pair a robot
    return reference_returns(name), reference_label(name)


def summarize(
    options: EvalOptions, result: EvaluationResult, pair: Pair | None, label: str | None
) -> dict[str, Any]:
    """What is printed, as JSON values."""
    interval = mean_interval(result.returns)
    summary: dict[str, Any] = {
        "source": options.source,
        "env_id": result.env_id,
        "episodes": len(result.returns),
        "seed": options.seed,
        "deterministic": not options.stochastic,
        "return_mean": result.mean,
        "return_std": result.std,
        "interval": interval,
        "length_mean": float(result.lengths.mean()),
    }
    if result.successes is not None:
        summary["success_rate"] = float(result.successes.mean())
        rate = measured(result, "success")
        summary["success_interval"] = [rate.low, rate.high] if len(result.successes) > 1 else None
        if result.env_id == PUSHT:  # what its papers call the score
            summary["max_reward_mean"] = float(result.max_rewards.mean())
    if pair is not None:
        score = float(normalized_score(pair, result.scored).mean())
        summary |= {"normalized_score": score, "reference": label}
        by_success = scored_by_success(result.env_id)
        if scored := summary["success_interval"] if by_success else mean_interval(result.scored):
            summary["score_interval"] = normalized_score(pair, scored).tolist()
    return summary


def describe(summary: dict[str, Any]) -> str:
    """The summary as lines for people."""
    sampled = "" if summary["deterministic"] else "sampled actions, "
    plural = "" if summary["episodes"] == 1 else "s"
    episodes = f"{summary['episodes']} episode{plural}, {sampled}seed {summary['seed']}"
    kind = f" ({summary['kind']})" if "kind" in summary else ""
    lines = [f"{summary['source']}{kind} on {summary['env_id']}: {episodes}"]
    line = f"return {summary['return_mean']:.1f}"
    if summary["episodes"] > 1:
        line += f" +- {summary['return_std']:.1f} (std)"
    if summary["interval"]:
        line += ", 95 % interval of the mean {:.1f} .. {:.1f}".format(*summary["interval"])
    lines.append(line + f", mean length {summary['length_mean']:.1f}")
    if "success_rate" in summary:
        best = summary.get("max_reward_mean")
        mean = "" if best is None else f", mean of the episodes' largest reward {best:.3f}"
        line = f"success {100 * summary['success_rate']:.1f} %"
        if summary["success_interval"]:
            low, high = summary["success_interval"]
            line += f" (95 % interval {100 * low:.1f} .. {100 * high:.1f})"
        lines.append(line + mean)
    if "normalized_score" in summary:
        line = f"normalized score {summary['normalized_score']:.1f}"
        if "score_interval" in summary:
            line += " ({:.1f} .. {:.1f})".format(*summary["score_interval"])
        lines.append(f"{line}, {summary['reference']}")
    if "comparison" in summary:
        lines += comparison_lines(summary["adjustment"], summary["comparison"])
    return "\n".join(lines)


def write_returns(path: Path, result: EvaluationResult) -> None:
    """Write ``returns``, ``lengths`` (n,), ``successes`` where there are any and PushT's ``max_rewards``, to .npz."""
    arrays: dict[str, Any] = {"returns": result.returns, "lengths": result.lengths}
    if result.env_id == PUSHT:
        arrays["max_rewards"] = result.max_rewards
    if result.successes is not None:
        arrays["successes"] = result.successes
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)
