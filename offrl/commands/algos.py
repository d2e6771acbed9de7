"""``offrl algos`` and ``offrl algos check FILE``."""

import sys
from dataclasses import dataclass

import tyro

from offrl.algos import ALGORITHMS, CHUNKS, ELSEWHERE, MODELS, ONLINE, plugins
from offrl.commands import arguments


@dataclass(frozen=True)
class Check:
    """Try a method on a tiny problem: update, metrics, exact resume, seeds, saved policy."""

    algorithm: tyro.conf.Positional[str]
    """Name or path of the algorithm."""


def main(argv: list[str]) -> int:
    """List the algorithms, or check one."""
    if argv[:1] == ["check"]:
        options = arguments.parse(Check, "offrl algos check", argv[1:])
        from offrl.training.check import check_algorithm

        failed = 0
        for name, problem in check_algorithm(options.algorithm):
            failed += problem is not None
            sys.stdout.write(f"FAILED  {name}: {problem}\n" if problem else f"ok      {name}\n")
        return 1 if failed else 0
    if argv:
        wants_help = argv[0] in ("-h", "--help")
        stream = sys.stdout if wants_help else sys.stderr
        stream.write(
            "usage: offrl algos             list the algorithms\n"
            "       offrl algos check ALGO  test one: a name, or your own FILE.py\n"
        )
        return 0 if wants_help else 2
    listed = ALGORITHMS | CHUNKS | MODELS
    listed |= {name: f"{about}; learns in --env" for name, about in ONLINE.items()}
    listed |= {name: f"{about}: {command}" for name, (about, command) in ELSEWHERE.items()}
    listed |= {name: f"plug-in {point.value}" for name, point in plugins().items()}
    width = max(map(len, listed))
    for name, about in listed.items():
        sys.stdout.write(f"{name:{width}} {about}\n")
    return 0
