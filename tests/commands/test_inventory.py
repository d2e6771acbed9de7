"""``offrl inventory``: the overview and the way to a subcommand."""

from importlib.util import find_spec

from offrl.cli import main
from offrl.commands.inventory import SUBCOMMANDS


def test_the_overview_names_every_subcommand(capsys):
    assert main(["inventory", "--help"]) == 0
    page = capsys.readouterr().out
    assert all(f"  {name}" in page and about in page for name, (_, about) in SUBCOMMANDS.items())
    assert main(["inventory"]) == 2
    assert capsys.readouterr().out == page


def test_every_subcommand_has_a_module():
    assert all(find_spec(f"offrl.commands.{module}") for module, _ in SUBCOMMANDS.values())


def test_an_unknown_subcommand_names_the_nearest(capsys):
    assert main(["inventory", "sovle"]) == 2
    assert "unknown subcommand 'sovle'; did you mean 'solve'?" in capsys.readouterr().err
