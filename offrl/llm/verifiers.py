"""Verifiers by name: whether a response gives a row's answer, 1 or 0."""

import re
from collections.abc import Callable
from typing import Any

from offrl.errors import ConfigError, MissingExtraError

NUMBER = re.compile(r"(?<![\d.])(?:(?<!\w)[-+])?(?:\d+(?:,\d{3})*(?:\.\d+)?|(?<!\w)\.\d+)")
VERIFIERS = {
    "integer": "the last number of the response equals that of the answer",
    "regex:PATTERN": "PATTERN is found in the response; {answer} stands for the answer",
    "math": "math-verify finds both equal, as formulas or numbers",
    "python": "the answer is Python code, for instance assertions, that passes after the response's code",
}
Verifier = Callable[[list[str], list[Any]], list[float]]
"""(responses, answers) -> values."""


def load_verifier(name: str) -> Verifier:
    """A verifier.

    Raises:
        ConfigError: an unknown name, a pattern that is none, code that cannot be isolated here.
        MissingExtraError: without math-verify.
    """
    if name == "integer":
        return integer
    if name.startswith("regex:"):
        return regex(name.removeprefix("regex:"))
    if name == "math":
        return math()
    if name == "python":
        from offrl.llm.sandbox import unit_tests

        return unit_tests()
    raise ConfigError(f"unknown verifier {name!r}; there are {', '.join(VERIFIERS)}, and FILE.py:FUNCTION")


def numbers(text: str) -> list[float]:
    """The numbers in a text; commas may part thousands."""
    return [float(found.replace(",", "")) for found in NUMBER.findall(text.replace("\N{MINUS SIGN}", "-"))]


def last_number(text: str) -> float | None:
    """The last of them."""
    return found[-1] if (found := numbers(text)) else None


def check_of(name: str) -> Callable[[Any], object]:
    """What refuses, with a ConfigError, an answer that a verifier cannot use."""
    if name == "python":
        from offrl.llm.sandbox import tests_of

        return tests_of
    return number_of if name == "integer" else lambda answer: None


def number_of(answer: Any) -> float:
    """The last number of an answer.

    Raises:
        ConfigError: it has none.
    """
    if (wanted := last_number(str(answer))) is None:
        raise ConfigError(f"{answer!r} has no number")
    return wanted


def integer(responses: list[str], answers: list[Any]) -> list[float]:
    """1 where the last number of the response is the answer's last number."""
    pairs = zip(responses, answers, strict=True)
    return [float(last_number(response) == number_of(answer)) for response, answer in pairs]


def regex(pattern: str) -> Verifier:
    """1 where the pattern is found."""
    try:
        re.compile(pattern.replace("{answer}", "0"))
    except re.error as error:
        raise ConfigError(f"{pattern!r} is no regular expression: {error}") from None

    def found(responses: list[str], answers: list[Any]) -> list[float]:
        pairs = zip(responses, answers, strict=True)
        return [
            float(re.search(pattern.replace("{answer}", re.escape(str(answer))), response) is not None)
            for response, answer in pairs
        ]

    return found


def math() -> Verifier:
    """1 where math-verify takes response and answer for equal."""
    try:
        from math_verify import parse, verify
    except ImportError:
        raise MissingExtraError("math-verify", "llm") from None

    def equal(responses: list[str], answers: list[Any]) -> list[float]:
        pairs = zip(responses, answers, strict=True)
        return [
            float(verify(parse(f"${answer}$" if "$" not in str(answer) else str(answer)), parse(response)))
            for response, answer in pairs
        ]

    return equal
