"""``offrl collect``: record a dataset with any policy."""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from offrl.collect import collect
from offrl.commands.arguments import parse
from offrl.data.dataset import OfflineDataset
from offrl.errors import ConfigError, MissingExtraError
from offrl.evaluation.environments import env_spec
from offrl.evaluation.sources import load_source

MINARI = "minari:"
SUFFIXES = (".hdf5", ".h5")


@dataclass(frozen=True, kw_only=True)
class CollectOptions:
    """Let a policy act in an environment and write every step to a D4RL-format HDF5 file or a Minari dataset.

    The same options give the same bytes, whatever --workers says.
    """

    env: str
    """Gymnasium id, e.g. Hopper-v5."""
    policy: str
    """What acts: run:DIR or DIR, sb3:FILE.zip, py:PACKAGE.MODULE:NAME, random, waypoint."""
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
    write(dataset, options.out, overwrite=options.overwrite)
    if not options.quiet:
        print(f"{dataset.describe()}; mean return {dataset.episode_returns.mean():.1f}, {rate:,.0f} steps/s")
        print(f"written to {options.out}")
    return 0


def check_target(out: str, *, overwrite: bool) -> None:
    """Refuse an output that cannot be written before any step is made.

    Raises:
        ConfigError: unknown kind of output, or it exists.
        PermissionError: its folder cannot be written.
    """
    if out.startswith(MINARI):
        _check_minari(out.removeprefix(MINARI), overwrite=overwrite)
        return
    path = Path(out)
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"--out must be FILE.hdf5 or minari:ID, got {out!r}")
    if path.is_dir() or (path.exists() and not overwrite):
        raise ConfigError(f"{out} exists already; choose another name, or pass --overwrite")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder, so {out} cannot be written")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"no permission to write in {folder}")


def write(dataset: OfflineDataset, out: str, *, overwrite: bool) -> None:
    """Write to FILE.hdf5 or ``minari:ID``."""
    if out.startswith(MINARI):
        from offrl.data.minari import write_minari

        write_minari(dataset, out.removeprefix(MINARI), overwrite=overwrite)
    else:
        from offrl.data.d4rl import write_d4rl

        write_d4rl(dataset, out)


def _check_minari(name: str, *, overwrite: bool) -> None:
    try:
        from minari.storage import get_dataset_path
    except ImportError as error:
        raise MissingExtraError("minari", "minari") from error
    from offrl.data.minari import ID

    if not ID.fullmatch(name):
        raise ConfigError(f"a Minari id has the form (namespace/)name-vN, got {name!r}")
    if get_dataset_path(name).exists() and not overwrite:
        raise ConfigError(f"{MINARI}{name} exists already; choose another version, or pass --overwrite")


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
