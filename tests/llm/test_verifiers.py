"""Verifiers by name."""

import builtins

import pytest

from offrl.errors import ConfigError, MissingExtraError
from offrl.llm.verifiers import last_number, load_verifier


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("It is 42.", 42), ("a 1,234,567!", 1234567), ("5-3", 3), ("5 - 3 = -2", -2), ("x=-7", -7), ("3.50 $", 3.5),
        ("12 then 13", 13), ("#### 8", 8), ("none", None), ("", None), ("1,2", 2), ("v2 4", 4), ("+6", 6),
        ("it is .5", 0.5),
        ("between 1 and -.25", -0.25),
        ("so x = \N{MINUS SIGN}5", -5.0),
    ],
)  # fmt: skip
def test_the_last_number_of_a_text(text, number):
    assert last_number(text) == number


def test_integer():
    verify = load_verifier("integer")
    assert verify(["so 7", "7 or 8", "seven", "7.0", "17", "-7"], ["#### 7"] * 6) == [1, 0, 0, 1, 0, 0]
    with pytest.raises(ConfigError, match="'seven' has no number"):
        verify(["7"], ["seven"])


def test_regex():
    exact = load_verifier(r"regex:^\s*{answer}\s*$")
    assert exact(["a.c", "abc", " a.c ", "xa.c"], ["a.c"] * 4) == [1, 0, 1, 0]
    assert load_verifier("regex:[0-9]{2}")(["a12", "1"], ["", ""]) == [1, 0]
    assert load_verifier("regex:^{answer}+$")(["77", "a"], ["7", "7"]) == [1, 0]
    with pytest.raises(ConfigError, match="no regular expression"):
        load_verifier("regex:(")


def test_math():
    verify = load_verifier("math")
    responses = [r"so $\frac{1}{2}$", "0.5", "the answer is 1/3", r"$\boxed{\frac{2}{4}}$"]
    assert verify(responses, [r"\frac{1}{2}"] * 4) == [1, 1, 0, 1]
    assert verify(["$x+1$"], ["$1+x$"]) == [1]


def test_math_says_what_is_missing(monkeypatch):
    usual = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "math_verify":
            raise ImportError
        return usual(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"math-verify.*offrl\[llm\]"):
        load_verifier("math")


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(
        ConfigError, match="there are integer, regex:PATTERN, math, python, and FILE.py:FUNCTION"
    ):
        load_verifier("exact")
