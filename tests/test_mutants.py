"""The table of mutants speaks of the code as it is."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def table():
    spec = importlib.util.spec_from_file_location("mutants", ROOT / "scripts/mutants.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_text_is_found_once(table):
    stale = []
    for file, pairs in table.MUTANTS.items():
        source = (ROOT / "offrl" / file).read_text(encoding="utf-8")
        stale += [f"{file}: {text}" for text, other in pairs if source.count(text) != 1 or text == other]
    assert stale == []


def test_every_file_has_its_tests(table):
    assert {file for file in table.MUTANTS if not (ROOT / "tests" / table.TESTS[file]).is_file()} == set()
