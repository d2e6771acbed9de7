"""``offrl inventory demand fit``: the demand behind sales."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro

from offrl.commands.arguments import parse, subcommand

if TYPE_CHECKING:
    from offrl.envs.inventory.work.fit import Calibration, DemandFit
    from offrl.envs.inventory.work.history import History

COLUMNS = (
    "item", "store", "kind", "demand", "std", "sales", "hidden", "stock_out", "gaps", "any_demand", "rate_now",
    "croston",
)  # fmt: skip
SHOWN = 8


@dataclass(frozen=True)
class Fit:
    """Estimate what customers wanted, from what was sold and when stock ran out.

    Periods that end without stock say only that demand was at least the sales: they enter the likelihood as such
    (censored), so that stock-outs do not pull the estimate down. Gaps stay unknown; returned goods count as no demand.
    Items that rarely sell get a probability of any demand and a batch size; a season is used where 1.5 of them show it
    (a year of weeks, a week of days). The last dates are held out, and tell how well unseen dates are foretold.
    Two examples:
    offrl inventory demand fit net.xlsx
    offrl inventory demand fit sales.csv --stock stock.csv --held-out 13
    """

    sales: tyro.conf.Positional[Path]
    """A workbook or folder ('offrl inventory init'), or a CSV or Parquet file with item, node, date, sales."""
    stock: Path | None = None
    """A file with item, node, date, stock_left: units left at the end of the period."""
    held_out: int = 0
    """Last periods that are not fitted but foretold; 0: a fifth."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("demand")
    """Folder for demand.csv (every item and store) and calibration.png."""


def overview() -> str:
    """The text of ``offrl inventory demand --help``."""
    return (
        "usage: offrl inventory demand fit SALES [--stock FILE] [--held-out N] [--out DIR]\n\n"
        "  fit  what customers wanted, from what was sold and when stock ran out ('demand fit --help' explains)"
    )


def main(argv: list[str]) -> int:
    """``offrl inventory demand ...``."""
    if subcommand("inventory demand", {"fit": None}, overview, argv) is None:
        return 0 if argv else 2
    o = parse(Fit, "offrl inventory demand fit", argv[1:])
    from offrl.envs.inventory.work.fit import calibrate, fit_demand
    from offrl.envs.inventory.work.history import read_history

    history = read_history(o.sales, o.stock)
    periods = history.sales.shape[2]
    _, calibration = calibrate(history, o.held_out or max(1, periods // 5))
    fit = fit_demand(history)
    _report(history, fit, calibration)
    o.out.mkdir(parents=True, exist_ok=True)
    _table(fit, o.out / "demand.csv")
    print(f"\nwritten: {o.out / 'demand.csv'}, {_picture(fit, calibration, o.out / 'calibration.png')}")
    return 0


def _report(history: "History", fit: "DemandFit", calibration: "Calibration") -> None:
    sold, empty = history.sold, history.empty
    known = ~np.isnan(history.sales)
    periods = history.sales.shape[2]
    print(
        f"{len(history.items)} items in {len(history.stores)} stores, {periods} {history.period}s from "
        f"{history.first} to {history.day(periods - 1)}: "
        f"gaps {1 - known[sold].mean():.1%}, nothing left {(empty & known)[sold].mean():.1%}"
    )
    if np.isnan(history.left).all():
        print("no stock is known: sales are taken for demand; --stock FILE tells when it had run out")
    seasonal = (fit.season != 1).any(1)
    print(f"{'':14}{'series':>7}{'sales':>10}{'demand':>10}   a {history.period}; hidden by stock-outs")
    rows = {
        "steady": ~fit.intermittent & ~seasonal[:, None],
        "seasonal": ~fit.intermittent & seasonal[:, None],
    }
    rows |= {"intermittent": fit.intermittent, "all": np.ones_like(sold)}
    for name, mask in rows.items():
        mask = mask & sold
        if mask.any():
            _line(name, int(mask.sum()), float(fit.naive[mask].sum()), float(fit.means[mask].sum()))
    hidden = np.where(sold, fit.means - fit.naive, 0.0).sum(1)
    print(f"\nitems of which stock-outs hid most (units a {history.period}):")
    for i in np.argsort(-hidden)[:SHOWN]:
        _line(
            history.items[i],
            int(sold[i].sum()),
            float(fit.naive[i][sold[i]].sum()),
            float(fit.means[i][sold[i]].sum()),
        )
    print(
        f"\nheld out: the last {calibration.periods} {history.period}s. Largest distance of held-out demand from its "
        f"fitted quantiles: {calibration.worst:.3f}\n(fitted to plain sales: "
        f"{float(np.abs(calibration.naive - calibration.levels).max()):.3f}). Log-likelihood of a {history.period}: "
        f"fitted {calibration.train_score:.3f}, held out {calibration.held_score:.3f} +- {calibration.error:.3f}"
    )
    print(f"ALARM: {calibration.alarm}" if calibration.alarm else "no sign of over-fitting")


def _line(name: str, series: int, sales: float, demand: float) -> None:
    hidden = f"{demand - sales:+9.1f}" + (f" ({demand / sales - 1:+.1%})" if sales > 0 else "")
    print(f"{name:14}{series:7d}{sales:10.1f}{demand:10.1f}   {hidden}")


def _table(fit: "DemandFit", path: Path) -> None:
    from offrl.envs.inventory.work.intermittent import croston

    history = fit.history
    seasonal = (fit.season != 1).any(1)
    counts = fit.counts
    stds = counts.std.reshape(fit.naive.shape)
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for i, s in np.argwhere(history.sold):
            x, gone = history.sales[i, s], history.empty[i, s]
            kind = "intermittent" if fit.intermittent[i, s] else "seasonal" if seasonal[i] else "steady"
            mean, plain = fit.means[i, s], fit.naive[i, s]
            numbers = (mean, stds[i, s], plain, mean - plain, gone[~np.isnan(x)].mean(), np.isnan(x).mean())
            rates = (
                counts.active[i * len(history.stores) + s],
                fit.recent[i, s],
                croston(x[~np.isnan(x) & ~gone]),
            )
            writer.writerow(
                [history.items[i], history.stores[s], kind, *(f"{v:.4f}" for v in (*numbers, *rates))]
            )


def _picture(fit: "DemandFit", calibration: "Calibration", path: Path) -> Path:
    from offrl.envs.inventory.work import pictures

    made, axes = pictures.figure(10, 4.2, 1, 2)
    left, right = axes[0]
    left.plot([0, 1], [0, 1], color=pictures.GREY, lw=1)
    left.plot(
        calibration.levels,
        calibration.naive,
        color=pictures.ORANGE,
        marker="o",
        ms=3,
        label="fitted to sales",
    )
    left.plot(
        calibration.levels,
        calibration.fitted,
        color=pictures.BLUE,
        marker="o",
        ms=3,
        label="stock-outs as censored",
    )
    left.set_xlabel("fitted quantile")
    left.set_ylabel("share of held-out demand below it")
    left.set_title(
        f"Calibration on the last {calibration.periods} {fit.history.period}s", fontsize=10, loc="left"
    )
    left.legend(frameon=False)
    _example(fit, right)
    return pictures.save(made, path)


def _example(fit: "DemandFit", axis: Any) -> None:
    """Sales and fitted demand of the series of which most was hidden."""
    from offrl.envs.inventory.work import pictures

    history = fit.history
    hidden = np.where(history.sold & ~fit.intermittent, fit.means - fit.naive, -np.inf)
    i, s = np.unravel_index(int(hidden.argmax()), hidden.shape)
    x, gone = history.sales[i, s], history.empty[i, s]
    time = np.arange(len(x))
    axis.plot(time, x, color=pictures.GREY, lw=1, label="sales")
    axis.scatter(time[gone], x[gone], color=pictures.ORANGE, s=14, zorder=3, label="nothing left")
    axis.plot(time, fit.means[i, s] * fit.factor[i], color=pictures.BLUE, lw=1.5, label="fitted mean demand")
    axis.axhline(fit.naive[i, s], color=pictures.INK, lw=1, ls=":", label="mean of sales")
    axis.set_xlabel(f"{history.period} since {history.first}")
    axis.set_title(f"Item {history.items[i]} at {history.stores[s]}", fontsize=10, loc="left")
    axis.legend(frameon=False, fontsize=8)
