"""Command lines to dataclasses: tyro parses and writes the help, a mistake becomes one line."""

import contextlib
import difflib
import io
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args

import tyro

from offrl.errors import UsageError

Form = TypeVar("Form")
REWORDED = (
    (r"^Error parsing (--[\w.-]+): invalid literal for int\(\) with base \d+:", r"\1 needs an integer, got"),
    (r"^Error parsing (--[\w.-]+): could not convert string to float:", r"\1 needs a number, got"),
    (r"^Error parsing [\w.]+: ", ""),  # a check of a whole group of options: its message stands alone
    (r"^Missing from [^:]*: ", "missing: "),
    (r"^Missing value", "missing value"),
    (r" \(required\)", ""),
    (r"\. Expected \d+ values\.", ""),
)
HELP = re.compile(
    r"(--[\w-]+ (?:\{[^}]*\}|[A-Z]+))(?: (?!--)\S+)*"
)  # an option and its help, in a list of them
ANSI = re.compile(r"\x1b\[[0-9;]*m")
FRAME = "╭╮╰╯│─| "


def parse(
    form: type[Form], prog: str, argv: list[str], *, description: str | None = None, pairs: bool = False
) -> Form:
    """An instance of the dataclass ``form`` from command-line arguments; ``--help`` prints and exits.

    Args:
        form: field names are the options, field docstrings the help.
        prog: what the user typed before the arguments, e.g. ``offrl resume``.
        argv: the arguments.
        description: first lines of the help; default: the docstring of ``form``.
        pairs: flags come as ``--x`` and ``--no-x``, for forms whose defaults vary.

    Raises:
        UsageError: an unknown option (the nearest one is named), a missing or an impossible value.
    """
    complaint = io.StringIO()
    options = _tyro_options(prog, argv, description, pairs)
    try:
        with contextlib.redirect_stderr(complaint):
            parsed: Form
            parsed, unknown = tyro.cli(form, **options, return_unknown_args=True)
    except SystemExit as leaving:
        if leaving.code in (0, None):  # --help
            raise
        raise UsageError(f"{_sentence(complaint.getvalue())} ('{prog} --help' shows all options)") from None
    if unknown:
        raise UsageError(f"{_unknown(form, options, unknown[0])} ('{prog} --help' shows all options)")
    return parsed


def glimpse(form: type[Form], argv: list[str]) -> Form | None:
    """The fields of ``form`` among arguments that hold others, too; None where ``parse`` has to say something."""
    if "-h" in argv or "--help" in argv:
        return None
    options = _tyro_options("", argv, None, False)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            found: Form = tyro.cli(form, **options, return_unknown_args=True)[0]
    except SystemExit:
        return None
    return found


def _tyro_options(prog: str, argv: list[str], description: str | None, pairs: bool) -> dict[str, Any]:
    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(_optional)
    markers = (tyro.conf.OmitArgPrefixes, *(() if pairs else (tyro.conf.FlagCreatePairsOff,)))
    options: dict[str, Any] = {"prog": prog, "args": argv, "description": description}
    return options | {"config": markers, "registry": registry}


def _optional(
    info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
    """``T | None`` is typed as T: None is only what an option is when it is not given."""
    kinds = [kind for kind in get_args(info.type) if kind is not NoneType]
    if NoneType not in get_args(info.type) or len(kinds) != 1 or kinds[0] not in (str, int, float, Path):
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=kinds[0].__name__.upper(),
        instance_from_str=lambda given: kinds[0](given[0]),
        is_instance=lambda value: value is None or isinstance(value, kinds[0]),
        str_from_instance=lambda value: [str(value)],
    )


def _unknown(form: type[Any], options: dict[str, Any], token: str) -> str:
    """What is wrong with an argument that no field takes."""
    if not token.startswith("-"):
        return f"unexpected argument {token!r}"
    name = token.partition("=")[0]
    page = io.StringIO()
    with contextlib.redirect_stdout(page), contextlib.suppress(SystemExit):
        tyro.cli(form, **options | {"args": ["--help"]})
    known = re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", ANSI.sub("", page.getvalue()))
    near = difflib.get_close_matches(name.replace("_", "-"), known, n=1)
    return f"unknown option {name}" + (f"; did you mean {near[0]}?" if near else "")


def _sentence(box: str) -> str:
    """The content of tyro's framed message as one line."""
    framed = [line for line in ANSI.sub("", box).splitlines() if line.startswith(("│ ", "| ", "  "))]
    lines = [line.strip(FRAME) for line in framed]
    text = " ".join(line for line in lines if line.strip("-"))
    text = re.split("For full help|Argument helptext:", text)[0]
    for pattern, plain in REWORDED:
        text = re.sub(pattern, plain, text)
    if text.startswith("missing: "):
        text = HELP.sub(r"\1", text)
    return " ".join(text.split()).rstrip(".") or "wrong usage"


def subcommand(
    command: str, names: Mapping[str, Any], overview: Callable[[], str], argv: list[str]
) -> str | None:
    """The first word of ``argv``, if it is one of ``names``; None after the overview, where help was asked for.

    Raises:
        UsageError: no such subcommand; the nearest name is proposed.
    """
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(overview())
        return None
    if argv[0] not in names:
        near = difflib.get_close_matches(argv[0], names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"unknown subcommand {argv[0]!r}{hint} ('offrl {command} --help' lists all)")
    return argv[0]
