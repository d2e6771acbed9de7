"""The whole walk of docs/inventory_work.md on the example workbook: each command, what it prints, how long it takes.

    python scripts/walk_inventory.py [--out runs/walk] [--page docs/inventory_walk.md]

Parts that are done are not done again: stop it and go on as you like. With ``--page`` the page and its pictures are
written from what the parts printed. All of it takes some minutes on one core.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

RUN = "RUN"  # stands for the run directory in a command
PARTS: list[tuple[str, list[str], str]] = [  # name, command, what the page says about it
    ("init", ["init", "net.xlsx"], "A filled workbook to replace by your own."),
    ("check", ["check", "net.xlsx", "--item", "I003"], "Read, checked, drawn; one order followed."),
    ("fit", ["demand", "fit", "net.xlsx"], "The demand behind the sales."),
    ("train", ["train", "net.xlsx", "--policy", "item_levels", "--steps", "200"],
     "One policy for all items and places; trucks are shared. The last fifth of the dates is not seen."),
    ("backtest", ["backtest", RUN, "--out", "backtest.xlsx"],
     "Was it better, on the dates that training did not see?"),
    ("orders", ["backtest", RUN, "--orders", "net.xlsx"],
     "The same from the stock of that day on, with what was in fact ordered beside it."),
    ("target", ["train", "net.xlsx:I003", "--policy", "item_levels", "--steps", "120", "--target", "fill_rate=0.985"],
     "A service level for one item: the price on unmet demand that reaches it."),
    ("frontier", ["frontier", "net.xlsx", "--steps", "80", "--penalties", "0.1", "0.3", "1", "3"],
     "What service costs."),
    ("recommend", ["recommend", RUN, "--out", "orders.xlsx"], "What to order today."),
    ("explain", ["explain", RUN, "--as", "sS", "--out", "levels.xlsx"],
     "Levels that an ERP system can hold, and what that costs."),
    ("explain_base", ["explain", RUN, "--as", "base-stock", "--out", "base.xlsx"], "The same with one level each."),
    ("versus", ["backtest", RUN, "--versus", "levels.xlsx"], "These levels in the back-test."),
]  # fmt: skip
PICTURES = {
    "check": ("net-network.png", "inventory_work_network.png", "The network of the example"),
    "fit": ("demand/calibration.png", "inventory_work_demand.png", "Calibration on held-out weeks"),
    "frontier": ("frontier/frontier.png", "inventory_work_frontier.png", "Cost against service"),
}


def run_directory(out: Path) -> str:
    """Of the company's training, relative to ``out``."""
    (found,) = (out / "runs/hdpo/net").iterdir()
    return found.relative_to(out).as_posix()


def do(name: str, command: list[str], out: Path) -> dict[str, object]:
    """Run a part; what it printed and used."""
    words = [run_directory(out) if word == RUN else word for word in command]
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "offrl", "inventory", *words],
        cwd=out, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{name} failed: {done.stderr.strip()}")
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "command": " ".join(["offrl", "inventory", *words]), "printed": done.stdout,
        "seconds": time.perf_counter() - began,
        "cpu_seconds": used, "peak_mib": after.ru_maxrss / 1024,
    }  # fmt: skip


def page(parts: dict[str, dict[str, object]], path: Path, out: Path) -> None:
    """The page, with its pictures beside it."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    wall, cpu = (sum(float(str(p[key])) for p in parts.values()) for key in ("seconds", "cpu_seconds"))
    lines = [
        "# A walk through inventory at work",
        "",
        "Written by `scripts/walk_inventory.py` from what the commands print; [what they mean](inventory_work.md).",
        "",
        f"Commit {commit.stdout.strip()}, {platform.machine()}, {os.cpu_count()} cores, one process with one thread: "
        f"{wall / 60:.1f} minutes by the clock on a machine that did other work as well, {cpu / 60:.1f} minutes of "
        "processor.",
        "",
        "| part | seconds | of processor | peak MiB |",
        "|---|---|---|---|",
    ]
    for name, part in parts.items():
        numbers = (f"{float(str(part[key])):.0f}" for key in ("seconds", "cpu_seconds", "peak_mib"))
        lines.append(f"| {name} | {' | '.join(numbers)} |")
    for name, _, about in PARTS:
        part = parts[name]
        text = "\n".join(line.rstrip() for line in str(part["printed"]).split("\n"))
        lines += ["", f"## {name}", "", about, "", "```console", f"$ {part['command']}", text.rstrip(), "```"]
        if name in PICTURES:
            source, target, title = PICTURES[name]
            (path.parent / "images").mkdir(parents=True, exist_ok=True)
            shutil.copy(out / source, path.parent / "images" / target)
            lines += ["", f"![{title}](images/{target})"]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Do what is not done yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/walk"))
    parser.add_argument("--page", type=Path)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    record = given.out / "walk.json"
    parts = json.loads(record.read_text()) if record.exists() else {}
    for name, command, _ in PARTS:
        if name not in parts:
            parts[name] = do(name, command, given.out)
            record.write_text(json.dumps(parts, indent=1))
        print(
            f"{name:14}{parts[name]['seconds']:8.1f} s, {parts[name]['cpu_seconds']:.1f} s of processor",
            flush=True,
        )
    print(f"{'all':14}{sum(part['seconds'] for part in parts.values()):8.1f} s")
    if given.page:
        page(parts, given.page, given.out)
        print(f"written: {given.page}")


if __name__ == "__main__":
    main()
