"""Rewards of text: built-in verifiers and functions from files, weighted; those of TRL and verl fit as they are.

A specification is ``NAME`` or ``FILE.py:FUNCTION``, then ``=WEIGHT`` if it is not 1. Two signatures are known:

    f(completions, **kwargs) -> list of float or None            huggingface/trl: prompts and all columns are in kwargs
    f(data_source, solution_str, ground_truth, extra_info) -> float, or a dict with "score"       volcengine/verl
"""

import importlib.util
import inspect
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offrl.errors import ConfigError
from offrl.llm.data import Row
from offrl.llm.verifiers import check_of, load_verifier

LARGEST = 3e38
"""Rewards are kept as float32."""
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)


@dataclass(frozen=True)
class Asked:
    """Responses to be rewarded, N of them, with what was asked."""

    rows: list[Row]
    """Of the data set."""
    prompts: list[Any]
    """Text, or messages."""
    answers: list[Any]
    responses: list[str]
    """Without special tokens."""
    tokens: list[list[int]]
    """The same as ids, end included."""


@dataclass(frozen=True)
class Reward:
    """One component."""

    name: str
    weight: float
    call: Callable[[Asked], list[float]]
    check: Callable[[Any], object] = lambda answer: None
    """Raises a ConfigError for an answer that it cannot use."""

    def __call__(self, asked: Asked) -> list[float]:
        """A value a response, before the weight.

        Raises:
            ConfigError: the function raised, or returned something else than a finite number for each.
        """
        try:
            values = [math.nan if v is None else float(v) for v in self.call(asked)]
        except ConfigError:
            raise
        except (Exception, SystemExit) as error:  # from outside: whatever it raises ends no run as finished
            raise ConfigError(f"reward {self.name} raised {type(error).__name__}: {error}") from error
        if len(values) != len(asked.responses):
            raise ConfigError(
                f"reward {self.name} returned {len(values)} values for {len(asked.responses)} responses"
            )
        if wrong := [value for value in values if abs(value) * max(abs(self.weight), 1.0) > LARGEST]:
            raise ConfigError(f"reward {self.name} is {wrong[0]:g}, too large a number")
        return [0.0 if math.isnan(value) else value for value in values]  # as TRL: no opinion


def load_rewards(specifications: tuple[str, ...]) -> list[Reward]:
    """The components, the first of which says what is right.

    Raises:
        ConfigError: unknown names, files or signatures, two of one name, or none of any weight.
    """
    found = [load_reward(text) for text in specifications]
    if found and not any(reward.weight for reward in found):
        raise ConfigError("all rewards weigh 0: nothing would be learnt")
    names = [reward.name for reward in found]
    if double := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"two rewards are called {double[0]!r}")
    return found


def load_reward(text: str) -> Reward:
    """One component from its specification."""
    name, weight = split_weight(text)
    if math.isinf(weight):
        raise ConfigError(f"the weight of --reward {text} is too large a number")
    path, _, function = name.rpartition(":")
    if path.endswith(".py"):
        return Reward(function, weight, adapted(_imported(Path(path), function), name))
    verifier = load_verifier(name)
    return Reward(
        name.split(":")[0], weight, lambda asked: verifier(asked.responses, asked.answers), check_of(name)
    )


def split_weight(text: str) -> tuple[str, float]:
    """``NAME=WEIGHT``; without a number after the last "=" the weight is 1."""
    name, sign, weight = text.rpartition("=")
    if not (sign and NUMBER.fullmatch(weight)):
        return text, 1.0
    return name, float(weight)


def file_of(text: str) -> Path | None:
    """The file that a specification names, if any."""
    path = split_weight(text)[0].rpartition(":")[0]
    return Path(path) if path.endswith(".py") else None


def absolute(text: str) -> str:
    """The same specification from any working directory."""
    name, _ = split_weight(text)
    path, _, function = name.rpartition(":")
    return f"{Path(path).resolve()}:{function}{text[len(name) :]}" if path.endswith(".py") else text


def adapted(function: Callable[..., Any], name: str) -> Callable[[Asked], list[float]]:
    """A function of either signature.

    Raises:
        ConfigError: of neither.
    """
    parameters = inspect.signature(function).parameters
    if "solution_str" in parameters:
        return lambda asked: _verl(function, asked, "extra_info" in parameters)
    every = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if "completions" in parameters or every:
        return lambda asked: _trl(function, asked, None if every else set(parameters))
    raise ConfigError(
        f"{name} takes ({', '.join(parameters)}); a reward takes (completions, **kwargs) or "
        "(data_source, solution_str, ground_truth, extra_info)"
    )


def _trl(function: Callable[..., Any], asked: Asked, wanted: set[str] | None) -> list[float]:
    """All at once; messages where the prompts are messages."""
    chats = bool(asked.prompts) and not isinstance(asked.prompts[0], str)
    completions = [[{"role": "assistant", "content": r}] if chats else r for r in asked.responses]
    columns = {key: [row.get(key) for row in asked.rows] for key in asked.rows[0]} if asked.rows else {}
    given = {**columns, "prompts": asked.prompts, "completions": completions, "completion_ids": asked.tokens}
    for taken in ("prompt", "completion"):  # TRL gives these under their plural names only
        given.pop(taken, None)
    return list(function(**(given if wanted is None else {k: v for k, v in given.items() if k in wanted})))


def _verl(function: Callable[..., Any], asked: Asked, with_info: bool) -> list[float]:
    """One by one."""
    values = []
    for row, answer, response in zip(asked.rows, asked.answers, asked.responses, strict=True):
        given = {"data_source": row.get("data_source"), "solution_str": response, "ground_truth": answer}
        value = function(**given, **({"extra_info": row.get("extra_info") or {}} if with_info else {}))
        values.append(value["score"] if isinstance(value, dict) else value)
    return values


def _imported(path: Path, function: str) -> Callable[..., Any]:
    if not path.is_file():
        raise ConfigError(f"there is no {path} to take a reward from")
    specification = importlib.util.spec_from_file_location(f"offrl_reward_{path.stem}", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # where its dataclasses look for their names
    try:
        specification.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever a file from outside raises
        raise ConfigError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    found: Callable[..., Any] | None = getattr(module, function, None)
    if not callable(found):
        raise ConfigError(f"{path} has no function {function!r}")
    return found
