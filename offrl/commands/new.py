"""``offrl new algo NAME``: a working algorithm file to start from."""

import keyword
import sys
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

import tyro

from offrl.algos import ALGORITHMS, CHUNKS, ELSEWHERE, MODELS, ONLINE
from offrl.commands import arguments
from offrl.errors import ConfigError
from offrl.files import atomic_write_text


@dataclass(frozen=True)
class New:
    """Write NAME.py: a small offline method that trains, resumes and passes 'offrl algos check'."""

    kind: tyro.conf.Positional[Literal["algo"]]
    """What to start."""
    name: tyro.conf.Positional[str]
    """Name of the algorithm, also of its file."""
    folder: Path = Path()
    """Where to write it."""


def main(argv: list[str]) -> int:
    """Write the file and say what to do next."""
    options = arguments.parse(New, "offrl new", argv)
    if not options.name.isidentifier() or not options.name.islower() or keyword.iskeyword(options.name):
        raise ConfigError(f"{options.name!r} is not a module name; use lower case letters, digits and _")
    if options.name in {*ALGORITHMS, *CHUNKS, *MODELS, *ONLINE, *ELSEWHERE}:
        raise ConfigError(f"{options.name!r} is the name of an algorithm that is there; choose another")
    path = options.folder / f"{options.name}.py"
    if path.exists():
        raise FileExistsError(17, "file exists, choose another name", str(path))
    template = resources.files("offrl.commands").joinpath("algorithm_template.txt").read_text()
    atomic_write_text(path, template.replace("my_algo", options.name))
    typed = path if path.is_absolute() else f"./{path}"
    sys.stdout.write(
        f"wrote {path}\n"
        f"  offrl algos check {path}\n"
        f"  offrl train {typed} --dataset builtin:double-pendulum-demo --steps 5000\n"
    )
    return 0
