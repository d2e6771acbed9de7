"""``offrl sweep``: algorithms x datasets or environments x settings x seeds, here or on a Ray cluster, in one table."""

import sys

from offrl.commands.arguments import parse
from offrl.sweeps.options import SweepOptions
from offrl.sweeps.run import run_sweep


def main(argv: list[str]) -> int:
    """``offrl sweep ...``."""
    o = parse(SweepOptions, "offrl sweep", argv)
    result = run_sweep(o, (lambda line: None) if o.quiet else _say)
    if o.dry_run:
        for name in result.cells:
            print(name)
    return 0


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
