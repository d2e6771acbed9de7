"""``offrl inventory train SETTING`` and ``offrl inventory resume RUN``."""

import dataclasses
import json
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from offrl.commands import arguments
from offrl.errors import PolicyError, UsageError

if TYPE_CHECKING:
    from offrl.algos.hdpo import HDPOConfig
    from offrl.training.inventory import InventoryOptions, InventoryResult
    from offrl.training.progress import Reporter


@dataclass(frozen=True, kw_only=True)
class Output:
    """What is printed."""

    quiet: Annotated[bool, tyro.conf.arg(aliases=["-q"])] = False
    """Print nothing but errors."""
    json: bool = False
    """Print one JSON object per development cost, and one per run, instead of progress."""

    @property
    def mode(self) -> str:
        """The reporter's mode."""
        return "quiet" if self.quiet else "json" if self.json else "text"


@dataclass(frozen=True)
class ResumeOptions:
    """Go on with a stopped run (and those trained beside it) exactly where its last checkpoint left it."""

    run: tyro.conf.Positional[Path]
    """Run directory."""
    output: Output = dataclasses.field(default_factory=Output)


def main(argv: list[str]) -> int:
    """The arguments of ``train``, or ``resume ...``."""
    if argv[:1] == ["resume"]:
        from offrl.training.inventory import resume

        o = arguments.parse(ResumeOptions, "offrl inventory resume", argv[1:])
        _summary(resume(o.run, _reporter(o.output, 1)), o.output)
        return 0
    return _train(argv)


def _train(argv: list[str]) -> int:
    from offrl.algos.hdpo import HDPOConfig
    from offrl.training.inventory import InventoryOptions, start

    if not argv:
        raise UsageError("name a setting: offrl inventory train SETTING ('offrl inventory list' shows all)")
    run = dataclasses.make_dataclass(
        "Run",
        [
            (f.name, f.type, f)
            for f in dataclasses.fields(InventoryOptions)
            if f.name not in ("setting", "vary")
        ],
        frozen=True, kw_only=True,
    )  # fmt: skip
    run.__doc__, run.__module__ = InventoryOptions.__doc__, InventoryOptions.__module__
    form = dataclasses.make_dataclass(
        "Train",
        [
            ("setting", tyro.conf.Positional[str]),
            ("target", Annotated[str | None, tyro.conf.arg(metavar="fill_rate=SHARE", help=TARGET)], None),
            ("set", Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE ...", help=SET)], ()),
            ("run", run, dataclasses.field(default_factory=run)),
            ("hdpo", HDPOConfig, HDPOConfig()),
            ("output", tyro.conf.FlagCreatePairsOff[Output], Output()),
        ],
        frozen=True,
    )
    about = "Train a policy on a setting by gradients through its simulator; everything is kept in a new run directory."
    o: Any = arguments.parse(form, "offrl inventory train", argv, description=about, pairs=True)
    options = InventoryOptions(setting=o.setting, vary=pairs(o.set), **dataclasses.asdict(o.run))
    if o.target is not None:
        options = dataclasses.replace(options, penalty=_aimed(o.hdpo, options, o.target, o.output))
    _summary(start(o.hdpo, options, _reporter(o.output, options.steps)), o.output)
    return 0


TARGET = (
    "First find the factor of all underage costs at which the policy serves this share of demand at once, in short "
    "trainings, and print it; then train with it."
)
SET = "What the setting lets vary, e.g. --set lead_time=2 underage_cost=4."


def _aimed(config: "HDPOConfig", options: "InventoryOptions", target: str, output: Output) -> float:
    """The penalty for ``--target``."""
    from offrl.training.inventory_target import Trial, parse_target, penalty_for

    if options.penalty != 1:
        raise UsageError("--target finds the penalty: leave --penalty out")
    share = parse_target(target)

    def told(trial: Trial) -> None:
        if output.mode == "text":
            print(f"underage costs x {trial.penalty:.4g}: fill rate {trial.fill:.4f}", flush=True)

    penalty = penalty_for(config, options, share, told)
    if output.mode == "text":
        print(f"penalty for fill rate {share:g}: underage costs x {penalty:.4g}")
    return penalty


def pairs(given: tuple[str, ...]) -> dict[str, float]:
    """``KEY=NUMBER`` words as a dictionary."""
    found = {}
    for word in given:
        key, sign, value = word.partition("=")
        try:
            found[key] = float(value)
        except ValueError:
            sign = ""
        if not sign:
            raise UsageError(f"--set takes KEY=NUMBER, such as lead_time=2, got {word!r}")
    return found


def _reporter(output: Output, steps: int) -> "Reporter":
    """What is printed while it trains; of several processes the first one prints."""
    from offrl.training.progress import Reporter

    return Reporter(output.mode if os.environ.get("RANK", "0") == "0" else "quiet", steps)


def _summary(results: list["InventoryResult"], output: Output) -> None:
    from offrl.envs.inventory.reference import shown
    from offrl.training.run_dir import RunDir

    for r in results:
        penalty = RunDir(r.directory).config["inventory"].get("penalty", 1.0)
        if output.mode == "json":
            facts = {"directory": str(r.directory), "seed": r.seed, "final": True, "cost": r.cost}
            facts |= {"standard_error": r.standard_error, "dev_cost": r.dev_cost, "best_step": r.best_step}
            facts |= {} if penalty == 1 else {"penalty": penalty}
            known = {
                k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in facts.items()
            }
            sys.stdout.write(json.dumps(known) + "\n")
        elif output.mode == "text":
            if r.already_finished:
                print(f"{r.directory} is already finished")
            print(
                f"test cost {r.cost:.4f} +- {shown(r.standard_error)} (s.e. over {len(r.costs)} scenarios) per store "
                f"and period, policy of update {r.best_step} (development cost {r.dev_cost:.4f})"
                + (f"; underage costs x {penalty:.4g}, as trained" if penalty != 1 else "")
            )
    if results and not any(math.isfinite(r.dev_cost) for r in results):
        raise PolicyError(
            f"training has diverged: no development cost of {results[0].directory} was a number; try a lower --lr"
        )
    if output.mode == "text" and results:
        print(f"next: offrl inventory eval {results[0].directory}")
