"""What the pages for people who come from elsewhere promise is there."""

import contextlib
import dataclasses
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

from offrl.algos import ALGORITHMS, load_algorithm
from offrl.cli import COMMANDS, main
from offrl.commands import train
from offrl.training.options import RunOptions, SeedOptions

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = sorted(DOCS.glob("from_*.md"))


def options(*classes):
    return {f"--{field.name.replace('_', '-')}" for c in classes for field in dataclasses.fields(c)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_option_named_exists(page):
    """In a row about one method, its own options; elsewhere those of any method, and of a run."""
    configs = {name: load_algorithm(name)[1].config for name in ALGORITHMS}
    everywhere = options(RunOptions, SeedOptions, *configs.values())
    ours = re.compile(r"`(--[a-z][a-z-]*)[^`]*`")
    seen = 0
    for line in page.read_text().splitlines():
        named = re.findall(r"offrl train (\w+)", line)
        known = options(RunOptions, SeedOptions, *(configs[name] for name in named)) if named else everywhere
        wrong = [option for option in ours.findall(line) if option not in known]
        assert wrong == [], line
        seen += len(ours.findall(line))
    assert seen > 10


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_named_exists(page):
    words = re.findall(r"offrl ([a-z]+)", page.read_text())
    assert "train" in words
    assert set(words) - {"data"} <= set(COMMANDS) | {"run"}, words


class Parsed(BaseException):
    """A command line was understood; nothing of it is done."""


def command_lines(page):
    """Those of its code blocks, without comments and pipes, and without those that leave something open (...)."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    typed = "".join(text for kind, text in blocks if kind in ("", "console")).replace("\\\n", " ")
    lines = re.findall(r"^(?:\$ )?(?:\w+=\S+ )*(offrl [a-z].*)", typed, re.MULTILINE)
    lines = [re.split(r" +(?:#|\||>|&&) ", line)[0] for line in lines]
    return [line for line in lines if not re.search(r" \.\.\.| \./", line)]


@pytest.mark.parametrize(
    "page",
    [page for page in (DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md"))) if command_lines(page)],
    ids=lambda page: page.stem,
)
def test_every_command_line_is_understood(page, monkeypatch, capsys):
    real = tyro.cli

    def only_parsed(form, **options):
        found = real(form, **options)
        if options["prog"] and not found[1]:  # else the defaults of what is parsed next, or an unknown option
            raise Parsed
        return found

    monkeypatch.setattr(tyro, "cli", only_parsed)
    monkeypatch.setattr(
        train, "inherited", lambda runs, name: (RunOptions(), load_algorithm(name)[1].config())
    )
    for line in command_lines(page):
        with contextlib.suppress(Parsed):
            assert main(shlex.split(line)[1:]) == 0, f"{line}: {capsys.readouterr().err}"


def test_the_estimators_example_runs(capsys):
    block = re.search(r"```python\n(.*?)```", (DOCS / "estimators.md").read_text(), re.DOTALL)
    exec(block[1], {})
    assert capsys.readouterr().out.count("clip_fraction") == 2


def test_every_part_of_the_estimators_is_on_their_page():
    from offrl.estimators import advantages, aggregation, masks, ratios, regularizers, shaping

    registries = [advantages.ADVANTAGES, aggregation.AGGREGATIONS, masks.MASKS, ratios.DENOMINATORS]
    registries += [regularizers.REGULARIZERS, shaping.SHAPINGS]
    page = (DOCS / "estimators.md").read_text()
    rows = " ".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| `"))
    assert [name for registry in registries for name in registry if f"`{name}`" not in rows] == []


def test_the_stable_baselines3_example_trains_saves_and_loads_in_a_fresh_process(tmp_path):
    """PMOE-SAC with an EvalCallback, as on the page but shorter."""
    pytest.importorskip("stable_baselines3")
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "online.md").read_text(), re.DOTALL)
    train, load, keep = (block for block in blocks if "PMOESAC" in block)
    for long, short in (("10_000", "140"), ("2_000", "120"), ("n_eval_episodes=5", "n_eval_episodes=1")):
        assert long in train
        train, load = train.replace(long, short), load.replace(long, short)
    subprocess.run([sys.executable, "-c", train], cwd=tmp_path, check=True)
    done = subprocess.run(
        [sys.executable, "-c", load + keep], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    returns = [float(line.split(": ")[1].split(" +- ")[0]) for line in done.stdout.splitlines()]
    assert len(returns) == 2
    assert all(-2000 < value < 0 for value in returns)
    assert (tmp_path / "best/evaluations.npz").exists()
    assert (tmp_path / "pmoe/policy.safetensors").exists()


def test_the_page_on_inventory_runs():
    """Its Python blocks one after the other; its YAML is the example that the command prints."""
    from offrl.envs.inventory.yaml_file import EXAMPLE

    blocks = re.findall(r"```(\w+)\n(.*?)```", (DOCS / "inventory.md").read_text(), re.DOTALL)
    assert [text for kind, text in blocks if kind == "yaml"] == [EXAMPLE]
    names: dict = {"print": lambda *values: None}
    for kind, text in blocks:
        if kind == "python":
            exec(text.replace("num_envs=1024", "num_envs=2"), names)
    cost = names["evaluate"](names["policy"], names["test"], ignore=50).mean().item()
    assert abs(cost - 6.277) < 0.1


def test_the_example_of_the_diffusion_layer_runs(capsys):
    block = re.search(r"```python\n(.*?)```", (DOCS / "diffusion.md").read_text(), re.DOTALL)
    exec(block[1], {})
    assert capsys.readouterr().out == "0.50 0.29\n"
