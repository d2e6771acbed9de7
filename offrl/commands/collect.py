"""``offrl collect``: record a dataset with any policy."""

import sys
import time
from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from offrl.collect import collect
from offrl.commands.arguments import parse
from offrl.data.write import check_target, write_dataset
from offrl.evaluation.environments import env_spec
from offrl.evaluation.sources import load_source


@dataclass(frozen=True, kw_only=True)
class CollectOptions:
    """Let a policy act in an environment and write every step to a D4RL-format HDF5 file or a Minari dataset.

    The same options give the same bytes, whatever --workers says.
    """

    env: str
    """Gymnasium id, e.g. Hopper-v5."""
    policy: str
    """What acts: run:DIR or DIR, sb3:FILE.zip, lerobot:DIR, py:PACKAGE.MODULE:NAME, served:PORT, random, waypoint,
    expert."""
    out: str
    """FILE.hdf5, or minari:ID such as minari:zoo/hopper-medium-v0."""
    steps: int = 100_000
    """Environment steps to record; the last episode is cut there."""
    stochastic: bool = False
    """Sample actions instead of taking the mode."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise on each action, in action units; cut to the box afterwards."""
    seed: int = 0
    """Seed of the environments, the policy's samples and the noise."""
    workers: int = 1
    """Processes that play; the data do not depend on it."""
    overwrite: bool = False
    """Replace the output if it exists."""
    quiet: Annotated[bool, tyro.conf.arg(aliases=["-q"])] = False
    """Print nothing but errors."""


def main(argv: list[str]) -> int:
    """``offrl collect ...``."""
    options = parse(CollectOptions, "offrl collect", argv)
    check_target(options.out, overwrite=options.overwrite)
    spec = env_spec(options.env)
    policy = load_source(options.policy, spec)
    began = time.monotonic()
    with progress_bar(hidden=options.quiet) as bar:
        task = bar.add_task(f"{options.policy} in {options.env}", total=options.steps, rate=0.0)

        def show(done: int, _: int) -> None:
            bar.update(task, completed=done, rate=done / max(time.monotonic() - began, 1e-9))

        dataset = collect(
            spec,
            policy,
            options.steps,
            stochastic=options.stochastic,
            noise=options.noise,
            seed=options.seed,
            workers=options.workers,
            collector=options.policy,
            progress=show,
        )
    rate = dataset.num_steps / (time.monotonic() - began)
    write_dataset(dataset, options.out, overwrite=options.overwrite)
    if not options.quiet:
        print(f"{dataset.describe()}; mean return {dataset.episode_returns.mean():.1f}, {rate:,.0f} steps/s")
        print(f"written to {options.out}")
    return 0


def progress_bar(*, hidden: bool) -> Progress:
    """Steps done, rate and time left, on a terminal's stderr; nothing elsewhere."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f}  {task.fields[rate]:,.0f} steps/s"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=hidden or not sys.stderr.isatty(),
    )
