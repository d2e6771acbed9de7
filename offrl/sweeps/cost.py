"""What a sweep will cost, before it starts: recorded rates of its finished runs, else a few timed updates.

An update of a method that learns in an environment is a step there with the share of learning that falls to it.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from offrl.algos import ONLINE
from offrl.data.dataset import OfflineDataset
from offrl.data.environments import EnvSpec
from offrl.evaluation.blocks import step_limit
from offrl.evaluation.rollout import Evaluator
from offrl.nn.policy import Policy
from offrl.nn.precision import Precision
from offrl.training.loop import MetricMeans, train
from offrl.training.options import RunOptions, make_settings
from offrl.training.runner import prepare
from offrl.training.seeding import streams
from offrl.training.sweep import Entry

WARM, MOST, SECONDS = 3, 200, 0.5  # updates before the clock runs, updates timed at most, seconds at most
PLAYED = 20  # steps that each of five environments is timed for


@dataclass(frozen=True)
class Rates:
    """What one core does."""

    update: float  # seconds an update
    step: float  # seconds a step of an evaluation episode; 0 without an environment
    horizon: int  # steps of its longest episode
    how: str


@dataclass(frozen=True)
class Estimate:
    """Core-seconds of what is left to do, and how they were found."""

    updates: float
    episodes: float  # if every episode is as long as it can be
    lines: tuple[str, ...]

    @property
    def core_hours(self) -> float:
        """All of it."""
        return (self.updates + self.episodes) / 3600.0


def estimate(
    listed: Sequence[Entry],
    out: Path,
    load: Callable[[str], OfflineDataset],
    chosen_episodes: int = 0,
) -> Estimate:
    """What the unfinished runs of ``listed`` cost one core.

    Runs that differ in nothing but seeds and fractions (learning rates, weights) are taken to cost the same.

    Args:
        listed: all runs of the sweep.
        out: its folder.
        load: gives the data of a URI.
        chosen_episodes: episodes that are played after training for each algorithm and dataset.
    """
    left: dict[tuple[str, ...], list[Entry]] = {}
    for entry in listed:
        if not entry.result(out).exists():
            left.setdefault(_price_class(entry), []).append(entry)
    updates = episodes = 0.0
    lines, steps, data = [], {}, {}
    for key, group in sorted(left.items(), key=lambda item: item[1][0].dataset):
        first = group[0].training
        label = f"{group[0].algorithm} on {group[0].dataset}" + (
            f" ({', '.join(key[2:])})" if key[2:] else ""
        )
        recorded, online = _recorded(key, listed, out), first.algorithm in ONLINE
        if not online and first.dataset not in data:
            data = {first.dataset: load(first.dataset)}  # one at a time
        try:
            rates = (
                measure_online(group[0], recorded)
                if online
                else measure(group[0], data[first.dataset], recorded)
            )
        except Exception as error:  # the cells will tell in their logs
            lines.append(f"{label}: cannot be estimated ({type(error).__name__}: {error})")
            continue
        options = RunOptions(**first.options)
        updates += len(group) * options.steps * rates.update
        episodes += len(group) * episodes_of(options) * rates.horizon * rates.step
        steps[key[:2]] = rates.horizon * rates.step
        played = f", {1 / rates.step:,.0f} environment steps/s" if rates.step else ""
        what = "steps/s with learning" if online else "updates/s"
        lines.append(f"{label}: {1 / rates.update:,.0f} {what} ({rates.how}){played}")
    episodes += chosen_episodes * sum(steps.values())
    return Estimate(updates, episodes, tuple(lines))


def episodes_of(options: RunOptions) -> int:
    """Episodes that a run is evaluated with, its last evaluation included."""
    between = (options.steps - 1) // options.eval_every if options.eval_every else 0
    return between * options.eval_episodes + (options.final_episodes or options.eval_episodes)


def _price_class(entry: Entry) -> tuple[str, ...]:
    """What sets the price: whole-number and named settings do, fractions do not."""
    sizes = [f"{k}={v}" for k, v in entry.varied.items() if not isinstance(v, float)]
    return entry.training.algorithm, entry.training.dataset, *sizes


def _recorded(key: tuple[str, ...], listed: Sequence[Entry], out: Path) -> float | None:
    """Seconds an update, the median over finished runs; those of a stack share its rate."""
    found = []
    for entry in listed:
        if _price_class(entry) == key and entry.result(out).exists():
            raw = json.loads(entry.result(out).read_text())
            if raw["median_steps_per_second"]:
                found.append(1.0 / (raw["median_steps_per_second"] * len(raw["config"].get("stack", [0]))))
    return sorted(found)[len(found) // 2] if found else None


def measure(entry: Entry, data: OfflineDataset, recorded: float | None = None) -> Rates:
    """Time a few updates of a run, unless their rate is recorded, and a few steps of its environment."""
    training = entry.training
    settings = make_settings(training.algorithm, training.settings, training.preset)
    options = RunOptions(threads=1, preset=training.preset, **training.options)
    plan = prepare(training.algorithm, settings, options, (0,), dataset=data)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        learner, source = plan.build((0,))
        if recorded is None:
            generators = streams((0,), "data", plan.configs[0]["device"])
            precision = Precision(options.precision, plan.configs[0]["device"])
            means = MetricMeans(learner.metrics)
            loop = train(learner, source, generators, means, steps=WARM + MOST, every=[1], around=precision)
            done, began = 0, 0.0
            for done in loop:
                if done == WARM:
                    began = time.perf_counter()
                elif done > WARM and time.perf_counter() - began > SECONDS:
                    break
            update, how = (time.perf_counter() - began) / (done - WARM), f"measured, {done - WARM} updates"
        else:
            update, how = recorded, "recorded"
        if plan.spec is None or not plan.method.acts:
            return Rates(update, 0.0, 0, how)
        return Rates(update, *_playing(learner.policy(0), plan.spec), how)
    finally:
        torch.set_num_threads(threads)


def measure_online(entry: Entry, recorded: float | None = None) -> Rates:
    """The same for a method that learns in an environment: some steps there, until it has learned from some."""
    from offrl.online.rate import seconds_per_step  # on stable-baselines3

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        timed, policy, spec = seconds_per_step(entry.training, SECONDS if recorded is None else 0.0)
        how = "measured" if recorded is None else "recorded"
        return Rates(timed if recorded is None else recorded, *_playing(policy, spec), how)
    finally:
        torch.set_num_threads(threads)


def _playing(policy: Policy, spec: EnvSpec) -> tuple[float, int]:
    """Seconds a step of an evaluation, steps of its longest episode."""
    with Evaluator(spec) as evaluator:
        horizon = step_limit(evaluator.pool.envs[0], None)
        evaluator(policy, 5, max_steps=1)  # makes the environments
        began = time.perf_counter()
        played = evaluator(policy, 5, max_steps=PLAYED)
        elapsed = time.perf_counter() - began
    return elapsed / int(played.lengths.sum()), horizon
