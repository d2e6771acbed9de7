"""Cells and tables of the report: numbers for readers, tables that scroll."""

from collections.abc import Sequence
from html import escape
from typing import SupportsFloat, TypeAlias

import numpy as np

from offrl.evaluation.groups import Group
from offrl.evaluation.svg import swatch, tag

Rows: TypeAlias = list[list[str]]  # cells of markup


def table(head: Sequence[str], rows: Rows) -> str:
    """A table whose cells are markup; the first column names the row. A wide one scrolls inside its box."""
    top = tag("tr", *(tag("th", escape(name), scope="col") for name in head))
    lines = [
        tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:])) for row in rows
    ]
    return tag("div", tag("table", tag("thead", top), tag("tbody", *lines)), class_="scroll")


def method_cell(style: int, group: Group) -> str:
    """A group's name with a piece of its line."""
    return tag("span", f"{swatch(style)} {escape(group.label)}", class_="method")


def mean_std(values: Sequence[float]) -> str:
    """Mean and sample standard deviation; of one value, itself."""
    mean = np.mean(values)
    if len(values) == 1:
        return shown(mean)
    return f"{shown(mean)} &plusmn; {shown(np.std(values, ddof=1), like=mean)}"


def interval_text(low: float, high: float, *, like: float) -> str:
    """Bounds with the decimals that suit ``like``."""
    return f"[{shown(low, like=like)}, {shown(high, like=like)}]"


def shown(number: SupportsFloat, *, like: SupportsFloat | None = None) -> str:
    """``number`` with the decimals that suit ``like``: one from 10 on, two from 1 on, else three."""
    size = abs(float(number if like is None else like))
    return f"{float(number):.{1 if size >= 10 else 2 if size >= 1 else 3}f}"


def count(n: int, what: str) -> str:
    """``n`` and the noun, in the plural where it is not one."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def listed(names: Sequence[str]) -> str:
    """Names with commas and an 'and'."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
