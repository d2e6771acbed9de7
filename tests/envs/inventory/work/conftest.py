"""A small company, as tables, workbook and folder."""

import pytest

from offrl.envs.inventory.work.example import example
from offrl.envs.inventory.work.writing import write_tables


@pytest.fixture(scope="session")
def small():
    return example(items=4, stores=3, weeks=30)


@pytest.fixture(scope="session")
def few():
    return example(items=4, stores=3, weeks=8)


@pytest.fixture(scope="session")
def workbook(few, tmp_path_factory):
    return write_tables(few.rows, tmp_path_factory.mktemp("company") / "net.xlsx")


@pytest.fixture(scope="session")
def folder(small, tmp_path_factory):
    return write_tables(small.rows, tmp_path_factory.mktemp("company") / "net")
