"""``offrl inventory list`` and ``check``."""

import pytest

from offrl.cli import main
from offrl.envs.inventory.policies import POLICIES
from offrl.envs.inventory.settings import SETTINGS, load_setting
from offrl.envs.inventory.yaml_file import EXAMPLE


def test_every_setting_is_listed_with_its_options(capsys):
    assert main(["inventory", "list"]) == 0
    settings, policies = capsys.readouterr().out.split("\n\n")
    assert [line.split()[0] for line in policies.splitlines()[1:]] == list(POLICIES)
    lines = settings.splitlines()
    assert [line.split()[0] for line in lines[::2]] == list(SETTINGS)
    assert lines[0].split()[1:] == ["lead_time=4", "underage_cost=9"]
    assert all(line.startswith("    ") and line.endswith(".") for line in lines[1::2])
    assert max(map(len, lines)) < 130


def test_the_example_is_shown_and_can_be_checked(capsys, tmp_path):
    assert main(["inventory", "check", "--example"]) == 0
    text = capsys.readouterr().out
    assert text == EXAMPLE
    path = tmp_path / "net.yaml"
    path.write_text(text)
    assert main(["inventory", "check", str(path)]) == 0
    page = capsys.readouterr().out
    assert page.startswith(
        "two shops: upstream nodes: 1, stores: 2, lanes: 3\nunmet demand lost; cost, discount 1\n"
    )
    assert "warehouse  hub              holding_cost 0.3\n" in page
    assert "outside -> hub: lead time 3, an order of period 0 is on hand before period 3  cost 0.5\n" in page
    assert "demand: normal, means 5, 3\n" in page


@pytest.mark.parametrize("option", ["item", "picture"])
def test_options_of_a_workbook_are_not_taken_for_a_network(capsys, option):
    assert main(["inventory", "check", "one_store_lost", f"--{option}", "x.png"]) == 1
    assert f"--{option} is for a workbook or folder, and one_store_lost is none" in capsys.readouterr().err


@pytest.mark.parametrize("name", [n for n in SETTINGS if "favorita_one" not in n])
def test_every_setting_can_be_checked(capsys, name):
    assert main(["inventory", "check", name]) == 0
    lines = capsys.readouterr().out.splitlines()
    network = load_setting(name).network
    assert len(lines) == 2 + len(network.nodes) + len(network.edges) + 5
    assert "nan" not in " ".join(lines)


def test_ordering_rules_are_among_what_was_understood(capsys, tmp_path):
    rules = "fixed_cost: 25, min_order: 30, pack: 12, capacity: 90, calendar: [1, 0], lead_time: 3"
    path = tmp_path / "net.yaml"
    path.write_text(EXAMPLE.replace("lead_time: 3", rules) + "budget: 500\n")
    assert main(["inventory", "check", str(path)]) == 0
    page = capsys.readouterr().out
    assert "  cost 0.5  fixed_cost 25  min_order 30  pack 12  capacity 90  calendar [1, 0]\n" in page
    assert "budget of a period: 500\n" in page


def test_a_mistake_is_one_line(capsys, tmp_path):
    path = tmp_path / "net.yaml"
    path.write_text(EXAMPLE.replace("lead_time: 3", "lead_time: -3"))
    assert main(["inventory", "check", str(path)]) == 1
    assert capsys.readouterr().err == (
        f"offrl: {path}: lane 'outside' -> 'hub': lead_time must not be negative, got -3\n"
    )
    assert main(["inventory", "check"]) == 2
    assert main(["inventory", "chek"]) == 2
    assert "did you mean 'check'?" in capsys.readouterr().err
    assert main(["inventory", "check", str(tmp_path / "none.yaml")]) == 1


def test_help(capsys):
    assert main(["inventory", "--help"]) == 0
    page = capsys.readouterr().out
    assert "list " in page
    assert "check FILE.yaml" in page
    assert main(["inventory", "check", "--help"]) == 0
    assert "--example" in capsys.readouterr().out
