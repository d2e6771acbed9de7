"""A wheel, installed away from the checkout, holds every package and every data file."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import offrl

pytestmark = pytest.mark.xdist_group("wheel")  # one worker builds it, once

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "offrl": "offrl",
    "envs": "offrl/envs",
    "policies": "offrl/policies",
}  # in the checkout -> in the wheel
DATA = (".txt", ".css", ".js", ".typed", ".json", ".npz", ".hdf5", ".safetensors", ".jsonl")


def sources() -> dict[str, Path]:
    """Path in the wheel -> file of the checkout, for code and package data."""
    return {
        f"{target}/{path.relative_to(ROOT / folder).as_posix()}": path
        for folder, target in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix in (".py", *DATA)
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built in a copy: the checkout stays clean."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        "dist",
        ".",
    ]
    subprocess.run([*command, "--no-index"], cwd=folder, check=True, capture_output=True)
    (found,) = (folder / "dist").glob("*.whl")
    return found


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory) -> Path:
    """A folder in which the wheel is installed, and nothing else."""
    target = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(target),
    ]
    subprocess.run([*command, str(wheel)], check=True, capture_output=True)
    return target


def run_there(site: Path, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """A command with the installed wheel first on the path, started in a folder that is not the checkout."""
    environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_wheel_holds_every_source_file_and_all_package_data(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert packed == set(sources())


def test_nothing_else_comes_to_the_top_level(wheel):
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert tops == {"offrl", f"offrl-{offrl.__version__}.dist-info"}


def test_every_package_imports_from_another_folder(site, tmp_path):
    code = (
        "import offrl, offrl.envs.inventory, offrl.policies, offrl.cli\n"
        "from importlib import resources\n"
        "assert resources.files('offrl').joinpath('py.typed').is_file()\n"
        "assert 'my_algo' in resources.files('offrl.commands').joinpath('algorithm_template.txt').read_text()\n"
        "print(offrl.__file__, offrl.envs.__file__, offrl.policies.__file__)"
    )
    done = run_there(site, tmp_path, sys.executable, "-c", code)
    assert done.stderr == ""
    assert len(done.stdout.split()) == 3
    assert all(Path(name).is_relative_to(site) for name in done.stdout.split())


def test_the_command_is_installed(site, tmp_path):
    done = run_there(site, tmp_path, str(site / "bin" / "offrl"), "--version")
    assert (done.stdout, done.stderr) == (f"offrl {offrl.__version__}\n", "")
    done = run_there(site, tmp_path, str(site / "bin" / "offrl"), "new", "algo", "mine")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "mine.py").exists()


SPAWNING = """
import multiprocessing
import sys

def where(name):
    module = __import__(name, fromlist=["x"])
    return module.__file__

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(*pool.map(where, ["offrl.envs.inventory", "offrl.policies", "offrl.errors"]))
"""


def test_a_spawned_process_imports_the_same_packages(site, tmp_path):
    (tmp_path / "spawning.py").write_text(SPAWNING)
    done = run_there(site, tmp_path, sys.executable, "spawning.py")
    assert done.stderr == ""
    assert len(done.stdout.split()) == 3
    assert all(Path(name).is_relative_to(site) for name in done.stdout.split())


def test_a_run_from_the_wheel_records_no_commit(site, tmp_path):
    code = (
        "from offrl.training.run_dir import versions; v = versions('cpu', 1); print(v['offrl'], v['commit'])"
    )
    done = run_there(site, tmp_path, sys.executable, "-c", code)
    assert done.stdout == f"{offrl.__version__} None\n", done.stderr
