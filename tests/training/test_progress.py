"""What a run prints: one line rewritten in place on a terminal, lines a minute apart elsewhere, JSON, or nothing."""

import io
import json
import os
import re

import pytest

from offrl.training import progress
from offrl.training.progress import Reporter


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_says_where_the_run_is(clock):
    stream = io.StringIO()
    reporter = Reporter("text", 1_000_000, stream)
    reporter.metrics = {"critic_loss": 4.8123, "q_data": 251.3}
    reporter.evaluation({}, 52.12, 57.8)
    clock[0] = 60.0
    reporter.progress(50_000, 1480.2)
    assert stream.getvalue() == (
        "50 000/1 000 000    5%  1 480 steps/s  11 min left  score 52.1 (last) 57.8 (best)  "
        "critic_loss 4.812  q_data 251.3\n"
    )


def test_the_line_says_whether_it_shows_scores_or_returns(clock):
    stream = io.StringIO()
    reporter = Reporter("text", 100, stream)
    reporter.evaluation({}, 152.4, 160.0, "return")
    reporter.progress(50, 10.0, force=True)
    assert "  return 152.4 (last) 160.0 (best)" in stream.getvalue()


def test_elsewhere_than_on_a_terminal_a_line_comes_once_a_minute_and_at_the_end(clock):
    stream = io.StringIO()
    reporter = Reporter("text", 100, stream)
    for step in range(1, 100):
        clock[0] = 1.5 * step
        reporter.progress(step, 1.0)
    assert [line.split("/")[0] for line in stream.getvalue().splitlines()] == ["40", "80"]
    reporter.progress(100, 1.0, force=True)
    assert stream.getvalue().splitlines()[-1].startswith("100/100  100%")


def test_on_a_terminal_the_line_is_rewritten_and_never_wraps(clock, monkeypatch):
    monkeypatch.setattr(progress.shutil, "get_terminal_size", lambda: os.terminal_size((40, 24)))
    stream = Terminal()
    reporter = Reporter("text", 100, stream)
    reporter.metrics = {f"metric_{i}": 1.0 for i in range(9)}
    for step in (10, 20):
        clock[0] += 1
        reporter.progress(step, 5.0)
    first, blank, second = stream.getvalue().split("\r")
    assert first.startswith("10/100")
    assert second.startswith("20/100")
    assert len(first) == len(second) == 39
    assert blank == " " * 39
    reporter.note("a line that stays")
    assert stream.getvalue().endswith("\r" + " " * 39 + "\ra line that stays\n")


def test_the_line_on_a_terminal_is_ended_once(clock):
    """A message that follows, such as that of Ctrl-C, starts its own line."""
    stream = Terminal()
    reporter = Reporter("text", 100, stream)
    reporter.progress(100, 5.0, force=True)
    reporter.end()
    reporter.end()
    assert stream.getvalue().endswith("left\n")
    assert stream.getvalue().count("\n") == 1


def test_json_is_one_object_an_evaluation(clock):
    stream = io.StringIO()
    reporter = Reporter("json", 100, stream)
    reporter.note("not shown")
    reporter.progress(50, 1.0, force=True)
    reporter.evaluation({"step": 50, "return": 1.5}, 1.5, 1.5)
    reporter.evaluation({"step": 100, "return": 2.5}, 2.5, 2.5)
    assert [json.loads(line)["step"] for line in stream.getvalue().splitlines()] == [50, 100]


def test_quiet_is_quiet(clock):
    stream = io.StringIO()
    reporter = Reporter("quiet", 100, stream)
    reporter.note("x")
    reporter.progress(100, 1.0, force=True)
    reporter.evaluation({"step": 1}, 1.0, 1.0)
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("rate", "left"), [(100.0, "10 s"), (1.0, "17 min"), (0.05, "5.6 h"), (1e9, "0 s"), (12.0, "83 s")]
)
def test_time_left_has_a_fitting_unit(clock, rate, left):
    stream = io.StringIO()
    Reporter("text", 1_100, stream).progress(100, rate, force=True)
    assert f"  {left} left" in stream.getvalue()


def screen(text):
    """What a terminal shows that knows line feeds, returns, going up and erasing."""
    rows, row, column = [""], 0, 0
    for part in re.split(r"(\x1b\[\d*[AJ]|[\r\n])", text):
        if part == "\n":
            row, column = row + 1, 0
            rows += [""] * (row == len(rows))
        elif part == "\r":
            column = 0
        elif part.endswith("A") and part.startswith("\x1b"):
            row -= int(part[2:-1])
        elif part == "\x1b[J":
            rows[row:] = [rows[row][:column]]
        else:
            rows[row] = rows[row][:column].ljust(column) + part + rows[row][column + len(part) :]
            column += len(part)
    return [line.rstrip() for line in rows]


def test_a_block_above_the_line_is_replaced_and_notes_stay(clock):
    reporter = Reporter("text", 10, Terminal())
    for step, lines in enumerate((["one", "two"], ["three", "four"], ["five"]), 1):
        clock[0] += 1.0
        reporter.show(lines)
        reporter.progress(step, 1.0)
        if step == 2:
            reporter.note("a note")
    shown = screen(reporter.stream.getvalue())
    assert shown[:2] == ["a note", "five"]
    assert shown[2].startswith("3/10")
    assert len(shown) == 3
    plain = Reporter("text", 10, io.StringIO())
    plain.show(["one"])
    plain.progress(1, 1.0, force=True)
    assert plain.stream.getvalue().startswith("1/10")
