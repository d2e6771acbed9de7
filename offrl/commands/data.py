"""``offrl data``: list, show, check, convert, download and add datasets."""

import difflib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from offrl.commands.arguments import parse
from offrl.data import doctor
from offrl.data.dataset import OfflineDataset
from offrl.data.download import add, data_home, fetch, installed, installed_ogbench, local_path
from offrl.data.environments import EnvSpec, environment_for, find_environment, named_environment
from offrl.data.load import load_dataset
from offrl.data.reference import D4RL, OGBENCH, bare_name, ogbench_name, reference_label, reference_returns
from offrl.errors import ConfigError, DatasetError, UsageError

MINARI = "minari:"
TABLES = (".csv", ".parquet")
MARKS = {"error": "ERROR", "warning": "warning", "note": "note"}


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """List the datasets that can be named: bundled ones, D4RL's, OGBench's, local Minari sets, downloaded files."""

    installed: bool = False
    """Only what lies on this machine."""


@dataclass(frozen=True)
class ShowOptions:
    """Show what is known about a dataset: environment, goal rule, horizon, verdict, reference returns."""

    name: tyro.conf.Positional[str]
    """A D4RL name, minari:ID, builtin:NAME or a file. Named sets need not be on this machine."""


@dataclass(frozen=True)
class CheckOptions:
    """Examine a dataset; exit with 1 if something is wrong with it."""

    uri: tyro.conf.Positional[str]
    """A D4RL name, minari:ID, builtin:NAME or a file."""
    replay: int = 0
    """Steps to repeat in the simulator from their recorded states, e.g. 200; 0: none."""


@dataclass(frozen=True)
class ConvertOptions:
    """Convert a dataset to another format, or a table of logs to a dataset."""

    source: tyro.conf.Positional[str]
    """A dataset, or FILE.csv or FILE.parquet with one row per step."""
    out: str = field(kw_only=True)
    """FILE.hdf5, FILE.npz or minari:ID."""
    obs: tuple[str, ...] = field(default=(), kw_only=True)
    """Tables: observation columns, as names or patterns ('x*')."""
    next_obs: tuple[str, ...] = field(default=(), kw_only=True)
    """Tables: columns of the true next observations, if recorded."""
    action: tuple[str, ...] = field(default=(), kw_only=True)
    """Tables: action columns, as names or patterns ('u*')."""
    reward: str | None = field(default=None, kw_only=True)
    """Tables: reward column."""
    episode: str | None = field(default=None, kw_only=True)
    """Tables: column that changes from episode to episode."""
    terminated: str | None = field(default=None, kw_only=True)
    """Tables: column of 0/1, the environment ended the episode; 'none' if no episode ever terminates."""
    truncated: str | None = field(default=None, kw_only=True)
    """Tables: column of 0/1, the episode was cut; default: at the end of episodes that do not terminate."""
    env: str | None = field(default=None, kw_only=True)
    """Gymnasium id, or a short name (pusht-state), to evaluate in, stored with the data."""
    overwrite: bool = field(default=False, kw_only=True)
    """Replace the output if it exists."""


@dataclass(frozen=True)
class DownloadOptions:
    """Download a D4RL or OGBench dataset, or verify it if it is here. OFFRL_DATA_MIRROR names other addresses."""

    name: tyro.conf.Positional[str]
    """A D4RL name, or ogbench:NAME."""


@dataclass(frozen=True)
class AddOptions:
    """Add a D4RL or OGBench file that was obtained elsewhere, after checking it."""

    file: tyro.conf.Positional[Path]
    """The HDF5 file, or OGBench's npz file."""
    as_name: Annotated[str, tyro.conf.arg(name="as")] = field(kw_only=True)
    """The name to find it under, e.g. d4rl:hopper-medium-v2 or ogbench:cube-single-play-singletask-v0."""


def main(argv: list[str]) -> int:
    """``offrl data COMMAND ...``."""
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: offrl data COMMAND ...\n")
        for name, (form, _) in COMMANDS.items():
            print(f"  {name:9} {(form.__doc__ or '').partition(';')[0].partition('. ')[0].rstrip('.')}")
        print("\n'offrl data COMMAND --help' explains each")
        return 0 if argv else 2
    name, rest = argv[0], argv[1:]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"unknown command 'data {name}'{hint} (there are: {', '.join(COMMANDS)})")
    form, run = COMMANDS[name]
    return run(parse(form, f"offrl data {name}", rest))


# --- list and show --------------------------------------------------------------------------------------


def list_command(options: ListOptions) -> int:
    """``offrl data list``."""
    console, here = Console(highlight=False), installed()
    _print_names(console, "bundled (builtin:NAME)", _builtin_names())
    if not options.installed:
        console.print(_d4rl_table())
        console.print(_ogbench_table())
    _print_names(console, f"D4RL files in {data_home()} (d4rl:NAME)", here)
    _print_names(console, f"OGBench files in {data_home()} (ogbench:NAME)", installed_ogbench())
    _print_names(console, f"Minari sets in {_minari_root()} (minari:ID)", sorted(_minari_ids()))
    return 0


def _print_names(console: Console, title: str, names: list[str]) -> None:
    console.print(f"[bold]{title}[/bold]")
    for name in names or ["none"]:
        console.print(f"  {name}", soft_wrap=True)


def _d4rl_table() -> Table:
    table = Table(title="D4RL (NAME or d4rl:NAME)", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in ("family", "tasks", "versions", "evaluated in", "verdict"):
        table.add_column(column, no_wrap=column != "tasks")
    for family in dict.fromkeys(name.split("-")[0] for name in D4RL):
        names = [name for name in D4RL if name.split("-")[0] == family]
        tasks = dict.fromkeys(name.removeprefix(family + "-").rpartition("-v")[0] for name in names)
        versions = sorted({name.rpartition("-")[2] for name in names})
        spec = environment_for(names[0])
        table.add_row(family, ", ".join(tasks), " ".join(versions), spec.env_id or "-", spec.verdict)
    return table


def _ogbench_table() -> Table:
    title = "OGBench (ogbench:DATA-singletask-v0, -singletask-task1-v0 ..; -v0-val: held-out data)"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in ("environment", "data", "O", "A", "steps"):
        table.add_column(column, no_wrap=column != "data")
    for environment in dict.fromkeys(data.rpartition("-")[0] for data in OGBENCH):
        kinds = [data.rpartition("-")[2] for data in OGBENCH if data.rpartition("-")[0] == environment]
        spec = environment_for(f"{environment}-{kinds[0]}-singletask-v0")
        table.add_row(environment, ", ".join(kinds), str(spec.obs_dim), str(spec.act_dim), str(spec.horizon))
    return table


def _builtin_names() -> list[str]:
    folder = resources.files("offrl.data") / "builtin"
    files = folder.iterdir() if folder.is_dir() else ()
    return sorted(file.name.removesuffix(".hdf5") for file in files if file.name.endswith(".hdf5"))


def _minari_root() -> Path:
    return Path(os.environ.get("MINARI_DATASETS_PATH") or "~/.minari/datasets").expanduser()


def _minari_ids() -> Iterator[str]:
    root = _minari_root()
    for path in root.glob("**/data/metadata.json"):
        parts = path.relative_to(root).parts[:-2]
        if parts and not any(part.startswith(".") for part in parts):
            yield "/".join(parts)


def show_command(options: ShowOptions) -> int:
    """``offrl data show NAME``."""
    name, console = options.name, Console(highlight=False)
    spec = find_environment(name)
    if spec is None:
        dataset = load_dataset(name)
        _print_facts(
            console, _dataset_facts(dataset) | _environment_facts(doctor.described_environment(dataset))
        )
        return 0
    facts = {"dataset": name} | _place(name) | _environment_facts(spec)
    pair = reference_returns(name)
    facts["reference"] = _reference_text(pair, reference_label(name))
    _print_facts(console, facts)
    return 0


def _place(name: str) -> dict[str, str]:
    """Where a named dataset lies, and what it holds if it is here."""
    bare = bare_name(name)
    if bare in D4RL or ogbench_name(bare):
        uri = f"d4rl:{bare}" if bare in D4RL else f"ogbench:{bare}"
        path, how = local_path(bare), f"offrl data download {uri.removeprefix('d4rl:')}"
        here = path.is_file()
    else:
        path, uri = _minari_root() / bare, MINARI + bare
        how = "scripts/make_zoo.py makes it" if bare.startswith("zoo/") else f"minari download {bare}"
        here = bare in set(_minari_ids())
    return (
        {"on disk": str(path), "content": load_dataset(uri).describe()}
        if here
        else {"on disk": f"no ({how})"}
    )


def _dataset_facts(dataset: OfflineDataset) -> dict[str, str]:
    facts = {"dataset": str(dataset.metadata.get("name", "")), "content": dataset.describe()}
    skipped = ("name", "source", "env_id", "env_kwargs", "flatten", "reference_returns", "sha256")
    for key, value in dataset.metadata.items():
        if key not in skipped:
            facts[key] = str(value)
    pair = dataset.reference_returns
    label = str(dataset.metadata.get("reference", "recorded with the data"))
    return facts | {"reference": _reference_text(pair, label)}


def _environment_facts(spec: EnvSpec | None) -> dict[str, str]:
    if spec is None:
        return {"environment": "unknown; name one with --env"}
    facts = {"environment": spec.env_id or "none installed today"}
    if spec.kwargs:
        facts["arguments"] = ", ".join(f"{key}={value}" for key, value in spec.kwargs.items())
    if spec.flatten:
        facts["flatten order"] = " + ".join(spec.flatten)
    if spec.obs_dim is not None:
        facts["widths"] = f"O={spec.obs_dim}, A={spec.act_dim}, actions in +-{spec.action_limit:g}"
    if spec.goal_rule:
        facts["goal"] = spec.goal_rule
    if spec.horizon is not None:
        facts["horizon"] = f"{spec.horizon} steps"
    return facts | {"verdict": spec.verdict + (f": {spec.reason}" if spec.reason else "")}


def _reference_text(pair: tuple[float, float] | None, label: str | None) -> str:
    return f"random {pair[0]:g}, expert {pair[1]:g} ({label})" if pair else "none: results are plain returns"


def _print_facts(console: Console, facts: dict[str, str]) -> None:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in facts.items():
        table.add_row(key, value.replace("[", r"\["))
    console.print(table)


# --- check ----------------------------------------------------------------------------------------------


def check_command(options: CheckOptions) -> int:
    """``offrl data check URI``."""
    if options.replay < 0:
        raise UsageError(f"--replay needs a number of steps, got {options.replay}")
    console, dataset = Console(highlight=False), load_dataset(options.uri)
    report = doctor.check(dataset)
    _print_facts(console, _report_facts(dataset, report))
    for finding in report.findings:
        console.print(f"{MARKS[finding.level]:8} {finding.text}", soft_wrap=True, markup=False)
    if options.replay:
        print(_replay_text(dataset, options.replay))
    print("nothing is wrong with these data" if report.ok else "these data need repair: see ERROR above")
    return 0 if report.ok else 1


def _report_facts(dataset: OfflineDataset, report: doctor.Report) -> dict[str, str]:
    shortest, median, longest = report.lengths
    low, mean, high = report.returns
    ends = f"{report.terminated} terminated, {report.truncated} cut, {report.unfinished} unfinished"
    return {
        "dataset": str(dataset.metadata["source"]),
        "steps": f"{report.steps}, O={dataset.obs_dim}, A={dataset.act_dim}",
        "episodes": f"{report.episodes} ({ends})",
        "lengths": f"{shortest} .. {longest} steps, median {median:g}",
        "returns": f"{low:.6g} .. {high:.6g}, mean {mean:.6g}",
        "rewards": f"{report.rewards[0]:.6g} .. {report.rewards[1]:.6g}",
        "actions": f"{report.actions[0]:.6g} .. {report.actions[1]:.6g}, {report.saturated:.1%} at the limit",
        "duplicates": f"{report.duplicates:.1%} of rows",
        "jumps": f"{len(report.teleports)} inside episodes",
        "next obs": "recorded" if dataset.has_next_observations else "not recorded (the next row stands in)",
        **_environment_facts(report.environment),
        "reference": _reference_text(report.reference, report.reference_source),
        "sha256": dataset.sha256,
    }


def _replay_text(dataset: OfflineDataset, rows: int) -> str:
    from offrl.evaluation.environments import make_env

    spec = doctor.recorded_environment(dataset)
    env = make_env(spec)
    try:
        result = doctor.replay(dataset, env, rows)
    finally:
        env.close()
    (median, largest), (reward, worst) = result.observation_error, result.reward_error
    return (
        f"replayed {result.rows} steps in {spec.env_id}: next observation off by {median:.2g} (median) and "
        f"{largest:.2g} (largest), reward by {reward:.2g} and {worst:.2g}; a recorded step moves an "
        f"observation by {result.observation_step:.2g} (median)"
    )


# --- convert, download, add -----------------------------------------------------------------------------


def convert_command(options: ConvertOptions) -> int:
    """``offrl data convert SOURCE --out TARGET``."""
    write = _writer(options.out, overwrite=options.overwrite)
    dataset = _read_source(options)
    if options.env is not None:
        spec = named_environment(options.env)
        _check_environment(dataset, spec)
        dataset.metadata |= {"env_id": spec.env_id, "env_kwargs": spec.kwargs}
        if "observations" in dataset.fields:  # flat already, as this environment's parts lie
            dataset.metadata["flatten"] = list(spec.flatten)
    written = write(dataset) or dataset
    print(f"{written.describe()}\nwritten to {options.out}")
    if left := dataset.num_steps - written.num_steps:
        print(f"last steps that became final observations of cut episodes, as Minari stores them: {left}")
    return 0


def _read_source(options: ConvertOptions) -> OfflineDataset:
    names: dict[str, Any] = {
        "observations": options.obs,
        "next_observations": options.next_obs,
        "actions": options.action,
        "reward": options.reward,
        "episode": options.episode,
        "terminated": options.terminated,
        "truncated": options.truncated,
    }
    given: dict[str, Any] = {key: value for key, value in names.items() if value}
    given |= {key: None for key in ("terminated", "truncated") if given.get(key) == "none"}
    if Path(options.source).suffix.lower() in TABLES and ":" not in options.source:
        from offrl.data.arrays import read_table

        return read_table(options.source, **given)
    if given:
        raise UsageError(
            f"column options are for tables ({', '.join(TABLES)}); {options.source!r} knows its own columns"
        )
    return load_dataset(options.source)


def _check_environment(dataset: OfflineDataset, spec: EnvSpec) -> None:
    """Refuse an environment that does not exist or whose spaces have other widths."""
    from offrl.evaluation.environments import make_env

    env = make_env(spec)
    shapes = (env.observation_space.shape, env.action_space.shape)
    env.close()
    if shapes != ((dataset.obs_dim,), (dataset.act_dim,)):
        raise DatasetError(
            f"the data have O={dataset.obs_dim}, A={dataset.act_dim}, but {spec.env_id} has observations of shape "
            f"{shapes[0]} and actions {shapes[1]}; wrong environment or wrong columns?"
        )


def _writer(out: str, *, overwrite: bool) -> Callable[[OfflineDataset], OfflineDataset | None]:
    """The function that writes to ``out`` and may return what was written; an existing target is refused first."""
    if out.startswith(MINARI):
        from offrl.data.minari import write_minari

        name = out.removeprefix(MINARI)
        if not overwrite and (_minari_root() / name).exists():
            raise ConfigError(f"{out} exists; choose another version, or pass --overwrite")
        return lambda dataset: write_minari(dataset, name, overwrite=overwrite)
    path = Path(out).expanduser()
    if path.suffix not in (".hdf5", ".h5", ".npz"):
        raise ConfigError(f"--out must be FILE.hdf5, FILE.npz or minari:ID, got {out!r}")
    if path.is_dir() or (path.exists() and not overwrite):
        raise ConfigError(f"{out} exists; choose another name, or pass --overwrite")
    if path.suffix == ".npz":
        return lambda dataset: write_npz(dataset, path)
    from offrl.data.d4rl import write_d4rl

    return lambda dataset: write_d4rl(dataset, path)


def write_npz(dataset: OfflineDataset, path: Path) -> None:
    """Write the arrays, without the metadata, as ``read_npz`` reads them; atomically."""
    from offrl.files import atomic_write

    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **dataset.fields)  # type: ignore[arg-type]


def download_command(options: DownloadOptions) -> int:
    """``offrl data download NAME``."""
    if options.name.startswith(MINARI):
        raise ConfigError(
            f"Minari downloads its own sets: minari download {options.name.removeprefix(MINARI)}"
        )
    path = fetch(options.name)
    print(f"{path} is complete and matches its checksum")
    return 0


def add_command(options: AddOptions) -> int:
    """``offrl data add FILE --as d4rl:NAME`` or ``ogbench:NAME``."""
    path, name = add(options.file, options.as_name), bare_name(options.as_name)
    print(f"added as {path}; use it with --dataset {'ogbench' if ogbench_name(name) else 'd4rl'}:{name}")
    return 0


COMMANDS: dict[str, tuple[type[Any], Callable[[Any], int]]] = {
    "list": (ListOptions, list_command),
    "show": (ShowOptions, show_command),
    "check": (CheckOptions, check_command),
    "convert": (ConvertOptions, convert_command),
    "download": (DownloadOptions, download_command),
    "add": (AddOptions, add_command),
}
