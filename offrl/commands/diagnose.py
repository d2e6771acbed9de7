"""``offrl diagnose RUN...``: do the critics predict what the policy earns, and how far does it act from the data?"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from offrl.commands.arguments import parse
from offrl.data.load import load_dataset
from offrl.diagnose import DiagnoseOptions, diagnose
from offrl.errors import CheckpointError, ConfigError
from offrl.evaluation.diagnostics import Diagnostics, write_record
from offrl.evaluation.runs import find_runs

TAIL_WARNING = 0.1


@dataclass(frozen=True, kw_only=True)
class Options(DiagnoseOptions):
    """Measure what returns do not show, from the last checkpoint of each run: overestimation of the critics against
    played episodes, Bellman error on data that were trained on and on data that were not, distance of the policy's
    actions to the data's.

    Writes diagnostics.json into each run directory, which 'offrl report' shows. Held-out errors need data that the run
    never saw: train with --holdout 0.1, or name some with --held-out (for OGBench: ogbench:NAME-val).
    """

    runs: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN ...")]]
    """Run directories, or folders with runs in them."""
    held_out: Annotated[str | None, tyro.conf.arg(metavar="URI")] = None
    """Data that the runs were not trained on; default: the episodes that --holdout left out."""
    json: bool = False
    """Print one JSON object a run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.runs:
            raise ConfigError("name at least one run directory, e.g. offrl diagnose runs")


def main(argv: list[str]) -> int:
    """``offrl diagnose ...``."""
    options = parse(Options, "offrl diagnose", argv)
    unseen = load_dataset(options.held_out) if options.held_out else None
    how = DiagnoseOptions(episodes=options.episodes, seed=options.seed)
    runs, refused = find_runs(options.runs), 0
    for directory in runs:
        try:
            found = diagnose(directory, how, unseen)
        except (ConfigError, CheckpointError) as error:  # of this run; the others may be well
            if len(runs) == 1:
                raise
            print(f"offrl: {directory}: {error}", file=sys.stderr)
            refused += 1
            continue
        path = write_record(directory, found)
        line = json.dumps({"run": str(directory), **asdict(found)}) if options.json else describe(found)
        print(line if options.json else f"{directory}\n{line}\n  wrote {path}", flush=True)
    return 1 if refused else 0


def describe(found: Diagnostics) -> str:
    """The numbers in words; a dash where there is none."""
    lines = []
    if found.q:
        q, g, over = (float(np.mean(x)) for x in (found.q, found.returns, found.overestimation))
        lines.append(
            f"Q at first states        {q:.4g} (mean of {found.critics} critics {np.mean(found.q_mean):.4g}), "
            f"discounted return {g:.4g}: overestimation {over:+.4g} over {len(found.q)} episodes"
        )
        at = found.visited_overestimation
        lines.append(f"at visited states        {_signed(at)} over {found.visited_states}")
        if found.tail_weight is not None and found.tail_weight > TAIL_WARNING:
            lines.append(
                f"  time limits leave {100 * found.tail_weight:.0f} % of the value unseen; the critics' own stands in, "
                "so that their bias shows by so much less"
            )
    elif not found.critics:
        lines.append("no critic: no overestimation, no Bellman error")
    if found.td_error is not None:
        lines.append(
            f"Bellman error            {found.td_error:.4g} on fitted rows, {_plain(found.held_out_td_error)} "
            f"{'held out: ' + found.held_out if found.held_out else 'held out (nothing was: --holdout, --held-out)'}"
        )
    lines.append(
        f"distance to the data     {_plain(found.action_distance)} to the row's own action, "
        f"{_plain(found.nearest_action_distance)} to the nearest pair's, in half-ranges"
    )
    return "\n".join(f"  {line}" for line in lines)


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.4g}"
