"""``offrl fqe SOURCE --dataset URI``: what a policy is worth, from recorded data and, where asked, from episodes."""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.progress import Progress

from offrl.collect import collect
from offrl.commands.arguments import parse
from offrl.data.dataset import OfflineDataset
from offrl.data.load import load_dataset
from offrl.errors import ConfigError
from offrl.evaluation.diagnostics import FQERecord, write_record
from offrl.evaluation.environments import env_spec
from offrl.evaluation.sources import load_source, split_source
from offrl.fitted_q import FQEOptions, FQEResult, discounted_returns, fitted_q_evaluation
from offrl.nn.policy import read_description
from offrl.training.build import dataset_env


@dataclass(frozen=True, kw_only=True)
class Options(FQEOptions):
    """Estimate the discounted return of a policy's deterministic actions from recorded data (fitted Q evaluation).

    SOURCE is what 'offrl eval' takes: a run directory, sb3:FILE.zip, py:PACKAGE.MODULE:NAME. The held-out TD error and
    the distance of the policy's actions to the data's say how far to trust the estimate; --env-steps plays the policy
    and shows how far it is off. Of a run directory the result is kept in it as fqe.json, for 'offrl report'.
    """

    source: tyro.conf.Positional[str]
    """The policy."""
    dataset: str
    """The data, as 'offrl train' takes them; they need not be the policy's own."""
    env: str | None = None
    """Gymnasium id to play in; default: the one that the data name."""
    env_steps: int = 0
    """Also play this many steps there and compare with the discounted return seen."""
    json: bool = False
    """Print one JSON object."""


def main(argv: list[str]) -> int:
    """``offrl fqe ...``."""
    options = parse(Options, "offrl fqe", argv)
    if options.env_steps < 0:
        raise ConfigError(f"env_steps must be 0 or more, got {options.env_steps}")
    data = load_dataset(options.dataset)
    spec = dataset_env(data, options.env)
    if spec is None and (options.env_steps or split_source(options.source)[0] not in ("run", "sb3")):
        raise ConfigError("the data name no environment: pass --env ID")
    policy = load_source(options.source, spec or "")
    values = np.zeros(0)
    if options.env_steps and spec is not None:
        played = collect(env_spec(spec), policy, options.env_steps, seed=options.seed)
        values = discounted_returns(played, options.discount)[: -1 if played.last_is_cut else None]
        if len(values) == 0:
            raise ConfigError(f"no episode ended within --env-steps {options.env_steps}: play more")
    fields = FQEOptions.__dataclass_fields__
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("fitting Q", total=options.steps)
        result = fitted_q_evaluation(
            policy,
            data,
            FQEOptions(**{name: getattr(options, name) for name in fields}),
            progress=lambda step, _: bar.update(task, completed=step),
        )
    record = asdict(result) | {"played_value": None, "overestimation": None, "played_episodes": 0}
    if len(values):
        record |= {"played_value": float(np.mean(values)), "played_episodes": len(values)}
        record["overestimation"] = result.value - float(np.mean(values))
    print(json.dumps(record) if options.json else describe(record))
    if (directory := run_of(options.source)) is not None:
        path = write_record(directory, fqe_record(directory, options, data, result))
        print(f"wrote {path}", file=sys.stderr)
    return 0


def run_of(source: str) -> Path | None:
    """The run directory that ``source`` names, or None."""
    scheme, rest = split_source(source)
    return Path(rest) if scheme == "run" and (Path(rest) / "config.json").is_file() else None


def fqe_record(directory: Path, options: Options, data: OfflineDataset, result: FQEResult) -> FQERecord:
    """What is kept beside the run for its report."""
    step = read_description(directory).get("extra", {}).get("step", 0)
    return FQERecord(
        step=step if isinstance(step, int) else 0,
        discount=options.discount,
        fitted_steps=options.steps,
        dataset=str(data.metadata.get("name") or "data"),
        **asdict(result),
    )


def describe(record: dict[str, float | int | None]) -> str:
    """The result in words."""
    lines = [
        f"estimated discounted return  {record['value']:.2f} (over {record['episodes']} first states, "
        f"std {record['value_std']:.2f})",
        f"discounted return of data    {record['data_value']:.2f}",
        f"TD error, held out / fitted  {record['held_out_td_error']:.3g} / {record['fitted_td_error']:.3g}",
        f"distance to the data         {record['action_distance']:.3f} half-ranges of the action box a dimension",
    ]
    if record["played_value"] is not None:
        lines.append(
            f"played                       {record['played_value']:.2f} over {record['played_episodes']} episodes: "
            f"the estimate is off by {record['overestimation']:+.2f}"
        )
    return "\n".join(lines)
