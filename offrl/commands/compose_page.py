"""``offrl compose --report FILE``: one self-contained HTML page of what a composition does."""

import base64
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offrl import __version__
from offrl.data.environments import EnvSpec
from offrl.data.normalize import AffineNormalizer
from offrl.diffusion.schedules import VP
from offrl.evaluation.charts import Chart, Interval, Series, interval_chart, svg_element
from offrl.evaluation.groups import Curve
from offrl.evaluation.markup import Rows, shown, table
from offrl.evaluation.report import MAX_VIDEO_BYTES, document, section
from offrl.evaluation.svg import Scale, points, tag
from offrl.evaluation.video import record_side_by_side
from offrl.files import atomic_write_text
from offrl.nn.policy import Policy
from offrl.policies.composition import Composition, Denoiser, Level, Noise, Operator

MODES = torch.tensor([[-1.5, 0.0], [1.5, 0.0]])  # of the toy's policies
SPREAD, STEPS, DRAWS, SIDE = 0.5, 40, 24, 260
START = 3.0  # noise level at which the toy's paths begin


def write_page(
    path: Path,
    summary: Mapping[str, Any],
    players: Mapping[str, Policy],
    spec: EnvSpec,
    seed: int,
    *,
    film: bool,
) -> None:
    """Write the page, atomically.

    Args:
        path: FILE.html.
        summary: what ``offrl compose`` prints, as JSON values.
        players: who is filmed, left to right.
        spec: the environment.
        seed: of the film.
        film: whether there is one.
    """
    names = ", ".join(Path(name).name for name in summary["policies"])
    title = f"{summary['operator']} composition on {summary['env_id']}"
    made = (
        f"{names}; {summary['episodes']} episodes of seed {summary['seed']}. Written by offrl {__version__}."
    )
    body = [
        tag("header", tag("h1", escape(title)), tag("p", escape(made))),
        section("Results", results(summary)),
        section("Gain of the composition", gains(summary)),
        section(f"{summary['measure'].capitalize()} against weight", against_weight(summary)),
        section("Film", filmed(players, spec, seed) if film else ""),
        section("How it denoises", toy(summary["operator"], summary["weights"])),
        section("Settings", tag("pre", escape(json.dumps(settings(summary), indent=1)))),
    ]
    atomic_write_text(path, document(title, *body))


def settings(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What is not shown elsewhere on the page."""
    names = ("policies", "operator", "weights", "denoising_steps", "mismatch", "normalizer_ratios")
    return {name: summary[name] for name in names}


def results(summary: Mapping[str, Any]) -> str:
    """The table."""
    rows: Rows = []
    for name, row in summary["results"].items():
        gain = ""
        if "gain" in row:
            gain = "{:+.3f} [{:+.3f}, {:+.3f}]".format(row["gain"], *row["interval"])
        rows.append([escape(name), shown(row["mean"]), shown(row["max_reward_mean"]), gain])
    return table(
        ("", f"mean {summary['measure']}", "mean of the largest rewards", "gain, 95 % interval"), rows
    )


def gains(summary: Mapping[str, Any]) -> str:
    """Paired gains over everything else, as intervals around no gain."""
    rows = [
        Interval(f"over {name}", i, row["interval"][0], row["gain"], row["interval"][1])
        for i, (name, row) in enumerate((n, r) for n, r in summary["results"].items() if "gain" in r)
    ]
    return interval_chart(rows, 0.0, "gain of the composition", level_name="no gain")


def against_weight(summary: Mapping[str, Any]) -> str:
    """Outcome of each weight of policy 1 on the search episodes, of two policies."""
    found = summary.get("search")
    if found is None or len(summary["policies"]) != 2:
        return ""
    rows = sorted(zip(found["candidates"], found["intervals"], strict=True), key=lambda pair: pair[0][0])
    weights = np.array([round(100 * row[0]) for row, _ in rows])
    means = np.array([row[-2] for row, _ in rows])
    low, high = np.array([interval for _, interval in rows]).T
    curve = Curve(weights, means, low, high)
    parents = [summary["results"][f"policy {i}"]["mean"] for i in (1, 2)]
    ends = Curve(np.array([0, 100]), np.array([parents[1], parents[0]]))
    series = [Series("search episodes", 0, curve), Series("the policies alone, report episodes", 1, ends)]
    chart = Chart(
        summary["env_id"], f"mean {summary['measure']}", series, axis="weight of policy 1, %", point="weight"
    )
    note = (
        f"Band: 95 % interval of each weight's mean; weights that were dropped early have few episodes. The "
        f"search took {found['episodes']} episodes of seed {found['seed']}; nothing else is judged on them."
    )
    return chart.svg("weights") + tag("p", escape(note), class_="note")


def filmed(players: Mapping[str, Policy], spec: EnvSpec, seed: int) -> str:
    """One episode of each, side by side, inside the page."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        record_side_by_side(list(players.values()), spec, path, seed=seed)
        data = path.read_bytes()
    caption = (
        "The same start, left to right: " + ", ".join(players) + ". One episode says nothing about success."
    )
    if len(data) > MAX_VIDEO_BYTES:
        return tag("p", "The film is too large for this page.")
    source = f"data:video/mp4;base64,{base64.b64encode(data).decode()}"
    film = tag("video", controls="", muted="", playsinline="", aria_label="side by side", src=source)
    return tag("figure", film, tag("figcaption", escape(caption)))


def toy(operator: Operator, weights: Sequence[float] | None) -> str:
    """Paths of two Gaussian policies in two dimensions, each alone and composed as here."""
    kept = None if weights is None or len(weights) != 2 else list(weights)
    panels = [("policy 1", paths("convex", [1.0, 0.0])), ("policy 2", paths("convex", [0.0, 1.0]))]
    panels.append((f"{operator}", paths(operator, kept)))
    drawings = [panel(name, drawn) for name, drawn in panels]
    note = (
        f"A toy, not these policies: actions of two numbers, policy 1 draws around ({MODES[0, 0]:g}, 0), policy 2 "
        f"around ({MODES[1, 0]:g}, 0), spread {SPREAD:g}. Lines go from the noise to the actions (dots)."
    )
    return "".join(drawings) + tag("p", escape(note), class_="note")


class Watched(Composition):
    """Two Gaussians around ``MODES``; keeps the noisy samples that it is asked at."""

    def __init__(self, operator: Operator, weights: Sequence[float] | None) -> None:
        faces = [Denoiser(gaussian(mode), 1, 0, AffineNormalizer.identity(2), VP.cosine()) for mode in MODES]
        super().__init__(faces, operator, weights, steps=STEPS, clip=None)
        self.seen: list[Tensor] = []

    def clean(
        self, u: Tensor, level: Level, conditions: Sequence[Any], draw: Noise = torch.randn_like
    ) -> Tensor:
        """As the composition's."""
        self.seen.append(u)
        return super().clean(u, level, conditions, draw)


def gaussian(mode: Tensor) -> Callable[[Tensor, float, Any], Tensor]:
    """D(u, rho) of a Gaussian around ``mode``."""
    return lambda u, rho, condition: mode + SPREAD**2 / (SPREAD**2 + rho**2) * (u - mode)


def paths(operator: Operator, weights: Sequence[float] | None) -> np.ndarray:
    """Noisy samples from level ``START`` on the way to clean ones, (steps + 1, draws, 2)."""
    g, watched = torch.Generator().manual_seed(0), Watched(operator, weights)

    def draw(x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=g)

    out = watched.sample([None, None], draw(torch.empty(DRAWS, 1, 2)), draw)
    first = next(i for i, level in enumerate(watched.grid) if level.rho <= START)
    return torch.stack([*watched.seen[first:], out])[:, :, 0].numpy()


def panel(name: str, drawn: np.ndarray) -> str:
    """One picture of paths."""
    x, y = Scale(-4.0, 4.0, 8.0, SIDE - 8.0), Scale(-4.0, 4.0, SIDE - 8.0, 24.0)
    content = [tag("text", escape(name), class_="head", x=8, y=16)]
    for mode in MODES.tolist():
        wide = x.at(mode[0] + 2 * SPREAD) - x.at(mode[0])
        content.append(tag("circle", class_="data", cx=x.at(mode[0]), cy=y.at(mode[1]), r=wide, fill="none"))
    for path in drawn.transpose(1, 0, 2):
        content.append(tag("polyline", class_="seed s0", points=points(x, y, path[:, 0], path[:, 1])))
        content.append(tag("circle", class_="mark s1", cx=x.at(path[-1, 0]), cy=y.at(path[-1, 1]), r=2.5))
    return svg_element(SIDE, SIDE, *content, role="img", aria_label=f"denoising paths of {name}")
