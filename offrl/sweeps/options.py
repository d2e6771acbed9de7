"""What a sweep is asked for, checked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from offrl.algos import ONLINE
from offrl.errors import ConfigError
from offrl.sweeps.bands import PRESETS
from offrl.sweeps.choice import SEARCH_STREAM
from offrl.training.options import RunOptions, SeedMode

RUN = ("env", "steps", "eval_every", "eval_episodes", "final_episodes", "checkpoint_every")
FRESH = 1_000  # episodes of a chosen policy


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """Train every algorithm on every dataset with every setting of a grid and every seed; choose; report.

    Methods that learn in an environment (ppo, sac, ...) are trained in each of --envs instead; both kinds may be named
    together: offrl sweep --algos mdpo_on ppo --envs Hopper-v5 --seeds 0 1 --steps 500000.

    What is searched: --grid alpha=1,2.5 takes every combination; --random 20 --space space.toml draws 20 settings of
    each algorithm from ranges in a TOML file:

    lr = { log_uniform = [1e-4, 1e-3] } for every algorithm that has it; under a line [td3_bc] for that one alone:
    alpha = { uniform = [1, 10] }, hidden = { choice = [128, 256] }, policy_every = { int = [1, 4] }.

    What is chosen, per algorithm and dataset, with --select: last (highest last evaluation), fqe (highest fitted Q
    evaluation, no online episode) or bandit (UCB over --budget online episodes). The chosen policies then play
    --final-episodes fresh ones, and the table says what the choice cost.

    Expected core-hours are printed first; --dry-run stops there. Give the same command again to go on where it was
    stopped: finished runs are kept, others resume.
    """

    algos: Annotated[tuple[str, ...], tyro.conf.arg(metavar="ALGO ...")]
    """Algorithms: names, or paths of your own files."""
    datasets: Annotated[tuple[str, ...], tyro.conf.arg(metavar="URI ...")] = ()
    """Data, as for offrl train; default: those of --preset."""
    envs: Annotated[tuple[str, ...], tyro.conf.arg(metavar="ID ...")] = ()
    """Gymnasium ids for the methods that learn in an environment."""
    seeds: Annotated[tuple[int, ...], tyro.conf.arg(metavar="S ...")] = (0,)
    """Seeds of each."""
    seed_mode: SeedMode = "auto"
    """stacked: seeds of a setting together in one process; processes: one a seed; auto: what is faster."""
    grid: Annotated[tuple[str, ...], tyro.conf.arg(metavar="SETTING=V,V ...")] = ()
    """Values of settings; an algorithm that lacks a setting is not varied in it. In --envs also num_envs,
    normalize_observations and normalize_rewards."""
    random: int = 0
    """Settings to draw for each algorithm from --space; combined with the grid, if there is one."""
    space: Annotated[Path | None, tyro.conf.arg(metavar="FILE.toml")] = None
    """Ranges to draw from."""
    search_seed: int = 0
    """Seed of the draws and of the bandit."""
    select: Literal["none", "last", "fqe", "bandit"] = "none"
    """How one configuration is chosen for each algorithm and dataset."""
    budget: int = 0
    """Online episodes that the bandit may use for each algorithm and dataset."""
    presets: bool = False
    """Start from the settings tuned for each dataset's or environment's name; --steps stays."""
    preset: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """d4rl-locomotion: nine D4RL sets, tuned settings where a method has them, scores beside published ones."""
    out: Path = Path("sweep")
    """Folder of the runs, the raw numbers and the tables."""
    workers: Literal["local", "ray"] = "local"
    """Processes of this machine, or tasks on a Ray cluster (extra dist)."""
    address: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT")] = None
    """Ray cluster: auto, HOST:PORT or ray://HOST:PORT; default: an instance on this machine."""
    gpus: float = 0.0
    """Share of a GPU that Ray reserves for each process."""
    jobs: int = 0
    """Processes at once; 0: one a core. A cluster decides itself."""
    retries: int = 1
    """How often a process that fails is tried again."""
    dry_run: bool = False
    """Print the plan and stop."""
    quiet: Annotated[bool, tyro.conf.arg(aliases=["-q"])] = False
    """Print nothing but errors."""
    env: Annotated[str | None, tyro.conf.arg(metavar="ID")] = None
    """Gymnasium id to evaluate on; default: the one the data name. To learn in one: --envs."""
    steps: int = 1_000_000
    """Gradient updates of each run; in --envs environment steps, and so below."""
    eval_every: int = 5_000
    """Updates between evaluations; 0 evaluates only at the end."""
    eval_episodes: int = 10
    """Episodes per evaluation."""
    final_episodes: int = 0
    """With --select: fresh episodes of each chosen policy (0: 1000). Without it: episodes after the last update of each
    run (0: as eval_episodes)."""
    fqe_steps: int = 50_000
    """Updates of each fitted Q evaluation."""
    checkpoint_every: int = 10_000
    """Updates between checkpoints."""

    def __post_init__(self) -> None:
        if self.preset is not None and self.preset not in PRESETS:
            raise ConfigError(f"unknown preset {self.preset!r}; there is {', '.join(PRESETS)}")
        self._check_methods()
        if min(self.jobs, self.retries, self.random, self.search_seed, *self.seeds) < 0:
            raise ConfigError("jobs, retries, random, search_seed and seeds must be 0 or more")
        if bool(self.random) != (self.space is not None):
            raise ConfigError("--random N and --space FILE go together")
        if (self.select == "bandit") != (self.budget > 0):
            raise ConfigError(
                "--select bandit needs --budget N, the online episodes that it may use, and only it"
            )
        if self.workers != "ray" and (self.address is not None or self.gpus):
            raise ConfigError("--address and --gpus belong to --workers ray")
        if self.gpus < 0 or self.fqe_steps < 1:
            raise ConfigError("gpus must be 0 or more, fqe_steps 1 or more")
        if max(self.steps, self.budget) >= SEARCH_STREAM // 2:
            raise ConfigError(f"steps and budget must be below {SEARCH_STREAM // 2}")
        RunOptions(**self.run)  # checks the numbers

    def _check_methods(self) -> None:
        """Every method has something to learn from, and nothing is named for nobody (ConfigError)."""
        if not (self.algos and (self.uris or self.envs) and self.seeds):
            raise ConfigError("name at least one algorithm, dataset (or environment: --envs) and seed")
        online = [name for name in self.algos if name in ONLINE]
        offline = [name for name in self.algos if name not in ONLINE]
        if online and not self.envs:
            raise ConfigError(f"{online[0]} learns in an environment: pass --envs ID ...")
        if offline and not self.uris:
            raise ConfigError(f"{offline[0]} learns from data: pass --datasets URI ...")
        if (self.envs and not online) or (self.uris and not offline):
            name = "--datasets" if online else "--envs"
            raise ConfigError(f"none of {', '.join(self.algos)} takes {name}")
        if online and self.select in ("fqe", "bandit"):
            raise ConfigError(f"--select {self.select} needs data: with {online[0]} use --select last")

    @property
    def uris(self) -> tuple[str, ...]:
        """The datasets, those of the preset where none is named."""
        named = tuple(f"d4rl:{name}" for name in PRESETS[self.preset]) if self.preset else ()
        return self.datasets or named

    @property
    def unit(self) -> str:
        """What ``steps`` counts."""
        units = (["updates"] if self.uris else []) + (["environment steps"] if self.envs else [])
        return " or ".join(units)

    @property
    def run(self) -> dict[str, Any]:
        """The options of every run."""
        chosen = {name: getattr(self, name) for name in RUN}
        return chosen | ({"final_episodes": 0} if self.select != "none" else {})

    @property
    def fresh_episodes(self) -> int:
        """Episodes of each chosen policy."""
        return (self.final_episodes or FRESH) if self.select != "none" else 0
