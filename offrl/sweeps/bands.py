"""Sets of datasets with published scores, and whether a sweep's scores lie where those do.

The values are of D4RL -v2 data, played in the mujoco-py environments that recorded them. Ours are played in
Gymnasium's -v4 environments with MuJoCo 3: the data are the same, the simulator is not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

FLOOR = 5.0  # a band is at least this far from the published mean
NOTE = (
    "Paper values: D4RL -v2 data, mujoco-py, last checkpoint, 1M updates (SAC-N, EDAC: 3M). Ours: Gymnasium -v4 and\n"
    "MuJoCo 3. A band is the paper's mean +- the larger of 5 and two of its standard deviations."
)

LOCOMOTION = tuple(
    f"{robot}-{data}-v2"
    for data in ("medium", "medium-replay", "medium-expert")
    for robot in ("hopper", "halfcheetah", "walker2d")
)
PRESETS = {"d4rl-locomotion": LOCOMOTION}

CORL = "CORL's benchmark table, 4 seeds"


@dataclass(frozen=True)
class Published:
    """Mean and standard deviation over seeds of a method on LOCOMOTION, in its order; 0: not published."""

    source: str
    means: tuple[float, ...]
    stds: tuple[float, ...]


PUBLISHED = {
    "bc": Published(
        CORL,
        (53.5, 42.4, 63.2, 29.8, 35.7, 21.8, 52.3, 56.0, 99.0),
        (1.8, 0.2, 16.2, 2.1, 2.3, 10.2, 4.0, 7.3, 16.0),
    ),
    "td3_bc": Published(
        CORL,
        (60.4, 48.1, 82.7, 64.4, 44.8, 85.6, 101.2, 90.8, 110.0),
        (3.5, 0.2, 4.8, 21.5, 0.6, 4.0, 9.1, 6.0, 0.4),
    ),
    "awac": Published(
        CORL,
        (63.0, 50.0, 68.5, 98.9, 45.1, 80.6, 101.9, 95.0, 111.4),
        (4.6, 0.3, 27.2, 2.1, 0.9, 3.6, 6.2, 0.6, 1.6),
    ),
    "cql": Published(
        CORL,
        (59.1, 47.0, 80.8, 95.1, 45.0, 73.1, 99.3, 95.6, 109.6),
        (3.8, 0.2, 3.3, 5.3, 0.3, 13.2, 10.9, 0.4, 0.4),
    ),
    "iql": Published(
        CORL,
        (67.5, 48.3, 80.9, 97.4, 44.5, 82.2, 107.4, 94.7, 111.7),
        (3.8, 0.2, 3.2, 6.4, 0.2, 3.0, 7.8, 0.5, 0.9),
    ),
    "rebrac": Published(
        CORL,
        (102.3, 64.0, 85.8, 95.0, 51.2, 84.2, 109.5, 103.8, 111.9),
        (0.2, 0.7, 0.8, 6.5, 0.3, 2.2, 2.3, 3.0, 0.4),
    ),
    "sac_n": Published(
        CORL,
        (40.8, 68.2, 87.5, 100.3, 60.7, 79.0, 101.3, 99.0, 114.9),
        (9.9, 1.3, 0.7, 0.8, 1.0, 0.5, 11.6, 9.3, 0.4),
    ),
    "edac": Published(
        CORL,
        (101.7, 67.7, 93.4, 99.7, 62.1, 87.1, 105.2, 104.8, 114.8),
        (0.3, 1.0, 1.4, 0.8, 1.1, 2.8, 10.1, 0.6, 0.7),
    ),
    "prdc": Published(
        "the PRDC paper's table, as remembered",
        (100.3, 63.5, 85.2, 100.1, 55.0, 92.0, 109.2, 94.5, 111.2),
        (0.2, 0.9, 0.4, 1.6, 1.1, 1.6, 4.0, 0.5, 0.6),
    ),
    "a2pr": Published(
        "the A2PR paper's table, as quoted elsewhere (independent re-runs are lower, 88.0 instead of 93.0 on average)",
        (100.8, 68.6, 89.7, 101.5, 56.6, 94.4, 112.1, 98.3, 114.6),
        (0.3, 0.4, 0.6, 0.9, 1.3, 1.5, 0.3, 3.2, 0.8),
    ),
    "odice": Published(
        "the O-DICE paper's table, in part as remembered; tuned per dataset, with settings that were not published",
        (86.1, 47.4, 84.9, 99.9, 44.0, 83.6, 110.8, 93.2, 110.8),
        (4.0, 0.2, 2.3, 2.7, 0.3, 2.1, 0.6, 0.6, 0.2),
    ),
    "decision_transformer": Published(
        "the IQL paper's table, as remembered",
        (67.6, 42.6, 74.0, 82.7, 36.6, 66.6, 107.6, 86.8, 108.1),
        (0.0,) * 9,
    ),
}


def band(algorithm: str, dataset: str) -> tuple[float, float] | None:
    """Lowest and highest score that counts as the published one: its mean +- the larger of 5 and two deviations."""
    if algorithm not in PUBLISHED or dataset not in LOCOMOTION:
        return None
    known, k = PUBLISHED[algorithm], LOCOMOTION.index(dataset)
    reach = max(FLOOR, 2 * known.stds[k])
    return known.means[k] - reach, known.means[k] + reach


def bands_section(rows: Sequence[dict[str, Any]], steps: int) -> str:
    """The check in Markdown: last evaluations of runs in which nothing is varied against the bands.

    Args:
        rows: of ``results.csv``.
        steps: updates of each run.
    """
    groups: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        scored = row["unit"] == "normalized score" and "last" in row and not row["settings"]
        if scored and band(row["algorithm"], row["dataset"]):
            groups.setdefault((row["algorithm"], row["dataset"]), []).append(row["last"])
    lines = ["## Beside published scores", "", f"{NOTE} These runs: {steps:,} updates.", ""]
    if not groups:
        return "\n".join([*lines, "No finished run has a published score to be held against.", ""])
    lines += ["| algorithm | dataset | last (seeds) | paper | band | |", "|---|---|---|---|---|---|"]
    for (algorithm, dataset), scores in groups.items():
        limits = band(algorithm, dataset)
        assert limits is not None
        known, k = PUBLISHED[algorithm], LOCOMOTION.index(dataset)
        mean, (low, high) = float(np.mean(scores)), limits
        paper = f"{known.means[k]:.1f}" + (f" +- {known.stds[k]:.1f}" if known.stds[k] else "")
        verdict = "inside" if low <= mean <= high else "outside"
        lines.append(
            f"| {algorithm} | {dataset} | {mean:.1f} ({len(scores)}) | {paper} | {low:.1f} .. {high:.1f} | {verdict} |"
        )
    sources = {f"{algorithm}: {PUBLISHED[algorithm].source}." for algorithm, _ in groups}
    return "\n".join([*lines, "", *(f"* {source}" for source in sorted(sources)), ""])
