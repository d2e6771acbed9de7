"""What a training run prints: one progress line, rewritten in place on a terminal; or JSON; or nothing."""

import json
import shutil
import sys
import time
from typing import Any, TextIO

METRICS_SHOWN = 4


class Reporter:
    """Progress of one run.

    Args:
        mode: ``text``, ``json`` (one object per evaluation) or ``quiet``.
        steps: updates in all.
        stream: where to print.
        period: seconds between lines when the stream is not a terminal.
    """

    def __init__(self, mode: str, steps: int, stream: TextIO | None = None, period: float = 60.0) -> None:
        self.mode, self.steps, self.stream = mode, steps, stream or sys.stdout
        self.live = self.mode == "text" and self.stream.isatty()
        self.period = 0.2 if self.live else period
        self.printed, self.width, self.above = time.monotonic(), 0, 0
        self.lines: list[str] = []
        self.metrics: dict[str, float] = {}
        self.last: float | None = None
        self.best: float | None = None
        self.unit = "score"

    def note(self, text: str) -> None:
        """A line that stays."""
        if self.mode == "text":
            self._clear()
            self.stream.write(text + "\n")
            self.stream.flush()

    def show(self, lines: list[str]) -> None:
        """Lines that stand above the progress line from its next turn on, until others replace them; on a terminal."""
        self.lines = lines if self.live else []

    def progress(self, step: int, rate: float, *, force: bool = False) -> None:
        """The progress line, at most once a period."""
        now = time.monotonic()
        if self.mode != "text" or not (force or now - self.printed >= self.period):
            return
        self.printed = now
        parts = [f"{spaced(step)}/{spaced(self.steps)}", f"{100 * step / self.steps:3.0f}%"]
        parts += [f"{rate:,.0f} steps/s".replace(",", " "), f"{_duration((self.steps - step) / rate)} left"]
        if self.last is not None:
            parts.append(f"{self.unit} {self.last:.1f} (last) {self.best:.1f} (best)")
        parts += [f"{name} {value:.4g}" for name, value in list(self.metrics.items())[:METRICS_SHOWN]]
        line = "  ".join(parts)
        columns = shutil.get_terminal_size().columns - 1  # a wrapped line cannot be rewritten in place
        line = line[:columns] if self.live else line
        self._clear()
        self.stream.write("".join(f"{text[:columns]}\n" for text in self.lines))
        self.above = len(self.lines)
        self.stream.write(line + ("" if self.live else "\n"))
        self.width = len(line) if self.live else 0
        self.stream.flush()

    def evaluation(self, record: dict[str, Any], last: float, best: float, unit: str = "score") -> None:
        """An evaluation was made; ``unit`` says what ``last`` and ``best`` are."""
        self.last, self.best, self.unit = last, best, unit
        if self.mode == "json":
            self.stream.write(json.dumps(record) + "\n")
            self.stream.flush()

    def end(self) -> None:
        """End the line in place, so that what is printed next has its own."""
        if self.width:
            self.stream.write("\n")
            self.stream.flush()
            self.width = self.above = 0

    def _clear(self) -> None:
        if self.live and self.width:
            self.stream.write("\r" + " " * self.width + "\r")
            if self.above:
                self.stream.write(f"\x1b[{self.above}A\x1b[J")  # up, and everything from there is gone
            self.width = self.above = 0


def spaced(number: int) -> str:
    """``1 000 000``."""
    return f"{number:,}".replace(",", " ")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
