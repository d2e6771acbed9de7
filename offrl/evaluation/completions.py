"""What language models said while they were trained: samples.csv of runs, for people to read."""

import csv
from collections.abc import Sequence
from html import escape
from pathlib import Path

from offrl.errors import CheckpointError
from offrl.evaluation.groups import Task
from offrl.evaluation.markup import Rows, shown, table
from offrl.evaluation.runs import MAX_CSV_BYTES
from offrl.evaluation.svg import tag

COLUMNS = ("step", "prompt", "response", "reward")
LONGEST = 600
Sample = tuple[int, str, str, float]
"""Step, prompt, response, reward."""


def completions_section(tasks: Sequence[Task]) -> str:
    """Of each group one run's first and last samples; empty where no run has any."""
    parts = []
    for group in (group for task in tasks for group in task.groups):
        samples = read_samples(group.runs[0].directory)
        steps = sorted({sample[0] for sample in samples})
        rows: Rows = [
            [str(step), text(prompt), text(response), shown(reward)]
            for step, prompt, response, reward in samples
            if step in (steps[0], steps[-1])
        ]
        if rows:
            parts.append(
                tag("h3", f"{escape(group.label)}, seed {group.runs[0].seed}") + table(COLUMNS, rows)
            )
    return "".join(parts)


def read_samples(directory: Path) -> list[Sample]:
    """All rows of samples.csv; none where there is no such file.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = directory / "samples.csv"
    if not path.is_file():
        return []
    if path.stat().st_size > MAX_CSV_BYTES:
        raise CheckpointError(f"{path} is larger than {MAX_CSV_BYTES >> 20} MB")
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return [(int(row["step"]), row["prompt"], row["response"], float(row["reward"])) for row in rows]
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise CheckpointError(f"{path} is damaged: {type(error).__name__}: {error}") from None


def text(words: str) -> str:
    """As markup, shortened, with its lines."""
    cut = words if len(words) <= LONGEST else words[:LONGEST] + " ..."
    return "<br>".join(map(escape, cut.splitlines()))
