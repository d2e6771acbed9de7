"""``offrl report RUN... --out report.html``: one HTML page from one or many runs."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from offrl.algos import ALGORITHMS, load_algorithm
from offrl.commands.arguments import parse
from offrl.errors import ConfigError
from offrl.evaluation.export import export_runs, writer_of
from offrl.evaluation.foreign import read_foreign
from offrl.evaluation.report import save_curves, write_report
from offrl.evaluation.runs import RunRecord, find_runs, read_run


@dataclass(frozen=True)
class ReportOptions:
    """Write one self-contained HTML page: curves, last, best, IQM, films, settings, versions, commands."""

    runs: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN ...")]]
    """Run directories, or folders with runs in them."""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")] = Path("report.html")
    """The page; an existing one is replaced."""
    curves: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Also write the learning curves to this .svg file."""
    export: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE ...")] = ()
    """Also write scores.csv (a row a run), table.tex (booktabs), figures.pdf (learning curves)."""
    with_: Annotated[tuple[str, ...], tyro.conf.arg(name="with", metavar="[DATASET=]PATH ...")] = ()
    """Also show results of CORL, d3rlpy or unifloral: files or folders, with the data's name where they lack it."""
    last_k: int = 10
    """Evaluations in the column 'mean of last k'."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise ConfigError("name at least one run directory, e.g. offrl report runs --out report.html")
        if self.out.suffix not in (".html", ".htm"):
            raise ConfigError(f"--out must end in .html, got {self.out}")
        if self.curves is not None and self.curves.suffix != ".svg":
            raise ConfigError(f"--curves must end in .svg, got {self.curves}")
        for path in self.export:
            writer_of(path)
        if self.last_k < 1:
            raise ConfigError(f"--last-k must be 1 or more, got {self.last_k}")


def main(argv: list[str]) -> int:
    """``offrl report ...``."""
    options = parse(ReportOptions, "offrl report", argv)
    records = [read_run(directory) for directory in find_runs(options.runs)]
    foreign = [run for text in options.with_ for run in read_foreign(text)]
    write_report(
        records, options.out, last_k=options.last_k, defaults=known_defaults(records), foreign=foreign
    )
    print(f"wrote {options.out}: {len(records)} run{'' if len(records) == 1 else 's'}")
    if foreign:
        print(f"with {len(foreign)} of other toolkits")
    if options.curves is not None:
        save_curves(records, options.curves)
        print(f"wrote {options.curves}")
    for path in options.export:
        export_runs(records, path, last_k=options.last_k)
        print(f"wrote {path}")
    return 0


def known_defaults(records: Sequence[RunRecord]) -> dict[str, dict[str, Any]]:
    """Default settings of the built-in algorithms among ``records``; a run's own code is never loaded."""
    names = {record.algorithm for record in records if record.config.get("algorithm_file") is None}
    fields = {
        name: dataclasses.fields(load_algorithm(name)[1].config) for name in sorted(names & set(ALGORITHMS))
    }
    return {name: {field.name: field.default for field in found} for name, found in fields.items()}
