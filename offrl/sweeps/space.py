"""Random search: ranges of settings from a TOML file, and settings drawn from them.

lr = { log_uniform = [1e-4, 1e-3] }      for every algorithm that has the setting

[td3_bc]                                 for this one alone
alpha = { uniform = [1.0, 10.0] }
hidden = { choice = [128, 256] }
policy_every = { int = [1, 4] }          both ends may be drawn
"""

import json
import math
import tomllib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np

from offrl.algos import load_method
from offrl.errors import ConfigError
from offrl.files import atomic_write_json, read_json_object
from offrl.training.options import settings_from_json
from offrl.training.sweep import settings_of

Kind = Literal["uniform", "log_uniform", "choice", "int"]
KINDS = get_args(Kind)
DIGITS = 6  # of a drawn number: what is written is what is used
RECORD = "search.json"


@dataclass(frozen=True)
class Range:
    """What a setting is drawn from."""

    kind: Kind
    values: tuple[Any, ...]  # two ends, or the choices

    def draw(self, count: int, rng: np.random.Generator) -> list[Any]:
        """``count`` values; the first ones do not depend on ``count``."""
        if self.kind == "choice":
            return [self.values[int(rng.integers(len(self.values)))] for _ in range(count)]
        low, high = self.values
        if self.kind == "int":
            return [int(rng.integers(low, high + 1)) for _ in range(count)]
        if self.kind == "log_uniform":
            drawn = np.exp(rng.uniform(math.log(low), math.log(high), count))
        else:
            drawn = rng.uniform(low, high, count)
        return [min(max(float(f"{value:.{DIGITS}g}"), low), high) for value in drawn]


Space = dict[str, dict[str, Range]]  # algorithm, or "" for all -> setting -> range


def read_space(path: Path) -> Space:
    """The ranges in a TOML file.

    Raises:
        ConfigError: not TOML, no range, or a range that makes no sense.
        FileNotFoundError: no such file.
    """
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
    return parse_space(given, str(path))


def parse_space(given: dict[str, Any], where: str = "the space") -> Space:
    """The same from nested dicts."""
    space: Space = {}
    for name, value in given.items():
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: {name} must be {_forms()}, got {value!r}")
        if value and not set(value) & set(KINDS) and all(isinstance(v, dict) for v in value.values()):
            ranges = {_setting(key): _range(f"{where}: {name}.{key}", v) for key, v in value.items()}
            space.setdefault(name, {}).update(ranges)
        else:
            space.setdefault("", {})[_setting(name)] = _range(f"{where}: {name}", value)
    if not space:
        raise ConfigError(f"{where} names no setting")
    return space


def _setting(name: str) -> str:
    return name.replace("-", "_")


def _forms() -> str:
    return "{ KIND = [...] } with KIND one of " + ", ".join(KINDS)


def _range(where: str, value: dict[str, Any]) -> Range:
    if len(value) != 1 or next(iter(value)) not in KINDS:
        raise ConfigError(f"{where} must be {_forms()}, got {value!r}")
    kind, values = next(iter(value.items()))
    if not isinstance(values, list) or any(isinstance(v, list | dict) for v in values):
        raise ConfigError(f"{where}: {kind} takes a list of values, got {values!r}")
    if kind == "choice":
        if not values or len({(type(v), v) for v in values}) < len(values):
            raise ConfigError(f"{where}: choice takes different values, got {values!r}")
        return Range("choice", tuple(values))
    wanted = (int,) if kind == "int" else (int, float)
    numbers = [v for v in values if isinstance(v, wanted) and not isinstance(v, bool) and math.isfinite(v)]
    what = "whole numbers" if kind == "int" else "numbers"
    if len(values) != 2 or len(numbers) < 2 or values[0] >= values[1]:
        raise ConfigError(f"{where}: {kind} takes two {what}, the lower one first, got {values!r}")
    if kind == "log_uniform" and values[0] <= 0:
        raise ConfigError(f"{where}: log_uniform needs ends above 0, got {values!r}")
    ends = values if kind == "int" else [float(v) for v in values]
    return Range(cast("Kind", kind), tuple(ends))


def ranges_of(space: Space, algorithms: Sequence[str]) -> dict[str, dict[str, Range]]:
    """Short name of each algorithm -> the ranges that apply to it; its own win.

    Raises:
        ConfigError: a setting that no algorithm has, an algorithm that is not swept, an end that a setting refuses.
    """
    found: dict[str, dict[str, Range]] = {}
    used: set[str] = set()
    for algorithm in algorithms:
        short, method = load_method(algorithm)
        known = settings_of(method)
        for name in space.get(short, {}):
            if name not in known:
                raise ConfigError(f"{short} has no setting {name!r}; it has {', '.join(known)}")
        common = {name: r for name, r in space.get("", {}).items() if name in known}
        used |= {*common, short}
        found[short] = {
            name: _fitted(short, *known[name], name, r) for name, r in (common | space.get(short, {})).items()
        }
    unknown = [name for name in ({*space} - {""}) | {*space.get("", {})} if name not in used]
    if unknown:
        raise ConfigError(
            f"the space names {sorted(unknown)[0]!r}, which is neither an algorithm of this sweep nor a setting of one"
        )
    return found


def _fitted(algorithm: str, config: type, default: Any, name: str, given: Range) -> Range:
    """The range as the setting takes it: every end or choice is tried."""
    if given.kind in ("uniform", "log_uniform") and isinstance(default, int):
        raise ConfigError(f"{algorithm}'s {name} takes no fractions (default {default}): use int or choice")
    values = tuple(float(v) if isinstance(default, float) and type(v) is int else v for v in given.values)
    if given.kind == "int" and isinstance(default, float):
        raise ConfigError(f"{algorithm}'s {name} is a fraction (default {default}): use uniform or choice")
    for value in values:
        try:
            settings_from_json(config, {name: value})
        except ConfigError as error:
            raise ConfigError(f"the space of {algorithm}: {error}") from None
    return Range(given.kind, values)


def draw(
    ranges: dict[str, dict[str, Range]], count: int, seed: int, out: Path, *, write: bool = True
) -> dict[str, list[dict[str, Any]]]:
    """``count`` draws of every algorithm's settings.

    A setting's draws depend on the seed, the algorithm and its own range alone, and the first of them not on
    ``count``. They are written to ``out``, and what is written wins: a sweep goes on with the settings it began with,
    and a larger ``count`` adds to them.

    Raises:
        ConfigError: ``out`` holds the draws of another space or seed.
    """
    drawn = {}
    for algorithm, own in ranges.items():
        columns = {name: r.draw(count, _generator(seed, algorithm, name)) for name, r in own.items()}
        rows = [{name: values[k] for name, values in columns.items()} for k in range(count)] if own else [{}]
        drawn[algorithm] = rows
    facts = {
        "seed": seed,
        "space": {a: {n: {r.kind: list(r.values)} for n, r in own.items()} for a, own in ranges.items()},
    }
    recorded: dict[str, list[dict[str, Any]]] = {}
    path = out / RECORD
    if path.exists():
        known = read_json_object(path, ConfigError)
        if {key: known.get(key) for key in facts} != facts:
            raise ConfigError(
                f"{path} holds the draws of another space, seed or list of algorithms; give those, or another --out"
            )
        recorded = known["draws"]
    drawn = {a: (recorded.get(a, []) + rows[len(recorded.get(a, [])) :]) for a, rows in drawn.items()}
    if write:
        atomic_write_json(path, facts | {"draws": drawn})
    return {a: rows[:count] for a, rows in drawn.items()}


def different(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each of ``rows`` once, in order: where few values can be drawn, draws coincide."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        found.setdefault(json.dumps(row), row)
    return list(found.values())


def _generator(seed: int, algorithm: str, name: str) -> np.random.Generator:
    words = [seed, zlib.crc32(algorithm.encode()), zlib.crc32(name.encode())]
    return np.random.default_rng(np.random.SeedSequence(words))
