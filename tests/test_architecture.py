"""Rules about the code itself: who imports whom, what is documented, how long a file may be, what never appears."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from offrl.algos import ONLINE

ROOT = Path(__file__).parents[1]
FOLDERS = {"offrl": "offrl", "offrl.envs": "envs", "offrl.policies": "policies"}  # as in setup.py
ALGORITHMS = sorted((ROOT / "offrl/algos").glob("[!_]*.py"))

# The version, the errors, atomic files, messages between processes: anyone may use them.
BASIC = {"offrl", "offrl.errors", "offrl.files", "offrl.messages"}
MAY_IMPORT = {  # package -> packages of ours that it may import, besides itself and BASIC
    "offrl.data": set(),
    "offrl.estimators": set(),
    "offrl.nn": {"offrl.estimators", "offrl.data.batch", "offrl.training.seeding"},
    "offrl.diffusion": {"offrl.nn"},
    "offrl.training": {"offrl.data", "offrl.nn"},
    "offrl.evaluation": {"offrl.data", "offrl.nn"},
    "offrl.export": {"offrl.data", "offrl.nn", "offrl.evaluation"},
    "offrl.online": {"offrl.data", "offrl.nn", "offrl.estimators", "offrl.training", "offrl.evaluation"},
    "offrl.online.runner": {"offrl.data", "offrl.nn", "offrl.training", "offrl.evaluation", "offrl.online"}
    | {"offrl.algos"},
    "offrl.llm": {"offrl.estimators", "offrl.nn", "offrl.training", "offrl.evaluation"},
    "offrl.llm.__main__": {"offrl.cli"},
    "offrl.algos": {"offrl.data", "offrl.nn", "offrl.estimators", "offrl.training", "offrl.evaluation"}
    | {"offrl.online", "offrl.diffusion", "offrl.policies"},
    "offrl.envs": {"offrl.estimators", "offrl.nn"},
    "offrl.policies": {"offrl.diffusion", "offrl.nn", "offrl.data"},
    "offrl.policies.learner": {
        "offrl.diffusion",
        "offrl.nn",
        "offrl.data",
        "offrl.training",
        "offrl.policies",
    },
    "offrl.sweeps": {
        "offrl.data",
        "offrl.nn",
        "offrl.training",
        "offrl.evaluation",
        "offrl.algos",
        "offrl.online",
        "offrl.fitted_q",
    },
    "offrl.commands": {"offrl"},
    "offrl.collect": {"offrl"},
    "offrl.fitted_q": {"offrl"},
    "offrl.generate": {"offrl.data", "offrl.nn", "offrl.diffusion", "offrl.training"},
    "offrl.diagnose": {"offrl"},
    "offrl.api": {"offrl"},
    "offrl.cli": {"offrl.commands"},
    "offrl.__main__": {"offrl.cli"},
    "offrl.errors": set(),
    "offrl.files": set(),
    "offrl.messages": set(),
}
# What drives a run also evaluates it and finds its algorithm by name; the parts that it drives do not.
for driver in (
    "build",
    "options",
    "runner",
    "session",
    "check",
    "cells",
    "records",
    "many",
    "sweep",
    "online",
    "offline",
    "fine_tuning",
):
    MAY_IMPORT[f"offrl.training.{driver}"] = MAY_IMPORT["offrl.training"] | {
        "offrl.evaluation",
        "offrl.algos",
    }
MAY_IMPORT["offrl.training.synthetic"] = MAY_IMPORT["offrl.training"] | {"offrl.diffusion", "offrl.generate"}
for both in ("offrl.training.cells", "offrl.training.sweep"):  # cells of either kind
    MAY_IMPORT[both] = MAY_IMPORT[both] | {"offrl.online"}
MAY_IMPORT["offrl.online.rate"] = MAY_IMPORT["offrl.online.runner"]
MAY_IMPORT["offrl.algos.hdpo"] = MAY_IMPORT["offrl.algos"] | {"offrl.envs"}
MAY_IMPORT["offrl.inventory_bench"] = MAY_IMPORT["offrl.training.build"] | {"offrl.training", "offrl.envs"}
MAY_IMPORT["offrl.training.inventory"] = MAY_IMPORT["offrl.training.build"] | {"offrl.envs"}
MAY_IMPORT["offrl.training.inventory_target"] = MAY_IMPORT["offrl.training.inventory"]

HEAVY = set(
    [
        "mujoco",
        "minari",
        "pyarrow",
        "polars",
        "pandas",
        "stable_baselines3",
        "sb3_contrib",
        "imageio",
        "imageio_ffmpeg",
        "pykdtree",
        "numba",
        "wandb",
        "tensorboard",
        "gymnasium_robotics",
        "gym_pusht",
        "pymunk",
        "shapely",
        "zarr",
        "ogbench",
        "torch_geometric",
        "diffusers",
        "onnx",
        "onnxruntime",
        "onnxscript",
        "ray",
        "transformers",
        "tokenizers",
        "huggingface_hub",
        "peft",
        "accelerate",
        "datasets",
        "gguf",
        "math_verify",
        "trl",
        "verl",
        "minigrid",
    ]
)
ON_SB3 = {"offrl.online"} | {
    f"offrl.algos.{name}" for name in ONLINE
}  # subclasses of stable-baselines3's classes
COMPILED = {  # numba compiles the whole module; others import it inside a function
    "offrl.data.box_tree",
    "offrl.envs.inventory.solvers.lost_sales_loops",
}
WITHOUT_TORCH = (
    "offrl.data.environments",
    "offrl.data.reference",
    "offrl.errors",
    "offrl.files",
    "offrl.messages",
    "offrl.cli",
)


def modules() -> dict[str, Path]:
    """Import name -> file, for everything that is installed."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *parts]).removesuffix(".__init__")] = path
    return found


MODULES = modules()
TREES = {module: ast.parse(path.read_text()) for module, path in MODULES.items()}


def imports(tree: ast.AST, *, typing_only: bool = True) -> Iterator[str]:
    """Every module that a tree imports, also inside functions; ``from package import module`` counts as the module."""
    skipped = set()
    if not typing_only:
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.If)
                and isinstance(node.test, ast.Name)
                and node.test.id == "TYPE_CHECKING"
            ):
                skipped |= set(ast.walk(node))
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else node.module


def within(module: str, packages: set[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def rule_of(module: str) -> set[str]:
    """What a module may import: its own package, and what the longest entry that covers it allows."""
    fitting = sorted((package for package in MAY_IMPORT if within(module, {package})), key=len)
    assert fitting, f"{module} is not in the import table"
    return MAY_IMPORT[fitting[-1]] | {fitting[0]}


def test_the_import_table_holds():
    bad = []
    for module, tree in TREES.items():
        if module == "offrl":
            continue
        allowed = rule_of(module)
        for name in imports(tree, typing_only=False):
            if within(name, {"offrl"}) and name not in BASIC and not within(name, allowed):
                bad.append(f"{module} imports {name}")
    assert bad == []


def test_the_door_is_lazy():
    """At import, offrl itself imports nothing of ours."""
    top = [n for n in TREES["offrl"].body if isinstance(n, ast.Import | ast.ImportFrom)]
    assert {name for node in top for name in imports(node)} == {"typing"}


def test_estimators_import_torch_only():
    allowed = {"torch", "offrl.estimators", *sys.stdlib_module_names}
    trees = [tree for module, tree in TREES.items() if within(module, {"offrl.estimators"})]
    assert trees
    assert [name for tree in trees for name in imports(tree) if not within(name, allowed)] == []


@pytest.mark.parametrize("path", ALGORITHMS, ids=lambda p: p.stem)
def test_an_algorithm_imports_no_other_algorithm(path):
    names = [name for name in imports(TREES[f"offrl.algos.{path.stem}"]) if within(name, {"offrl.algos"})]
    assert names == []


@pytest.mark.parametrize("path", ALGORITHMS, ids=lambda p: p.stem)
def test_an_algorithm_says_its_objective_source_and_departures(path):
    doc = ast.get_docstring(TREES[f"offrl.algos.{path.stem}"]) or ""
    assert re.search(r"arXiv:\d{4}\.\d{4,5}", doc)
    source, departures = doc.index("\nSource: "), doc.index("\nDepartures: ")
    assert 0 < source < departures
    assert re.search(r"^    .*=", doc[:source], re.MULTILINE), "a formula, indented, comes first"


def test_every_algorithm_file_is_listed_under_its_name():
    from offrl.algos import ALGORITHMS as LISTED
    from offrl.algos import CHUNKS, ELSEWHERE, MODELS

    assert sorted([*LISTED, *CHUNKS, *MODELS, *ONLINE, *ELSEWHERE]) == [path.stem for path in ALGORITHMS]


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_light_modules_load_no_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_importing_everything_loads_no_optional_library():
    """All modules of ours in a fresh interpreter: heavy libraries come in only inside the function that uses them."""
    light = {"offrl.online", "offrl.online.options"}
    names = ", ".join(
        m
        for m in MODULES
        if m not in COMPILED and not m.endswith("__main__") and (m in light or not within(m, ON_SB3))
    )
    code = f"import sys, {names}\nprint(*(set(m.split('.')[0] for m in sys.modules) & {HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_every_source_folder_is_a_package():
    """Without its __init__.py a folder drops out of the wheel, though an editable install still imports it."""
    folders = {path.parent for path in MODULES.values()}
    assert [f for f in sorted(folders) if not (f / "__init__.py").exists()] == []


@pytest.mark.parametrize("folder", ["envs", "policies"])
def test_folders_import_under_one_name_only(folder):
    """``import envs`` beside ``import offrl.envs`` would make two copies of every class."""
    done = subprocess.run(
        [sys.executable, "-c", f"import {folder}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"ImportError: import this package as 'offrl.{folder}'" in done.stderr


def test_the_library_prints_nothing():
    bad = []
    for module, tree in TREES.items():
        if not within(module, {"offrl.commands", "offrl.cli"}):
            calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
            bad += [f"{module}:{call.lineno}" for call in calls if call.func.id == "print"]
    assert bad == []


def public_things(tree: ast.Module) -> Iterator[ast.AST]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            if "overload" in map(ast.unparse, node.decorator_list):
                continue  # the function itself has the docstring
            yield node
            if isinstance(node, ast.ClassDef):
                yield from (
                    m for m in node.body if isinstance(m, ast.FunctionDef) and not m.name.startswith("_")
                )


def test_everything_public_is_documented():
    bad = [module for module, tree in TREES.items() if not ast.get_docstring(tree)]
    for module, tree in TREES.items():
        bad += [f"{module}.{node.name}" for node in public_things(tree) if not ast.get_docstring(node)]
    assert bad == []


def test_files_and_functions_stay_short():
    """A file below 600 lines, a function's code (without its docstring) at most 50."""
    bad = [module for module, path in MODULES.items() if path.read_text().count("\n") >= 600]
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                doc = node.body[0] if ast.get_docstring(node) else None
                lines = node.end_lineno - node.lineno + 1 - (doc.end_lineno - doc.lineno + 1 if doc else 0)
                allowed = 80 if module in COMPILED else 50  # a compiled loop is one piece
                bad += [f"{module}.{node.name}: {lines} lines"] if lines > allowed else []
    assert bad == []


def test_half_of_the_files_are_short():
    """Median below 200 lines, nine tenths below 400."""
    sizes = sorted(path.read_text().count("\n") for path in MODULES.values())
    assert sizes[len(sizes) // 2] < 200
    assert sizes[len(sizes) * 9 // 10] < 400


def tracked_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=False
    ).stdout.split("\0")
    found = [ROOT / name for name in listed if name] or [p for p in ROOT.rglob("*") if ".git" not in p.parts]
    return [
        p for p in found if p.is_file() and p.suffix not in (".hdf5", ".npz", ".png", ".safetensors", ".mp4")
    ]


def test_no_file_names_this_machine_or_leaves_work_undone():
    words = r"/wor[k]/(main|dev|shared|\.)|/roo[t]/|TO[D]O|FIX[M]E|X[X]X |<<<<[<]<<"
    bad = []
    for path in tracked_files():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if re.search(words, line):
                bad.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert bad == []


def test_tests_mirror_the_packages():
    """tests/data/test_x.py tests offrl/data/x.py: a renamed module takes its tests along."""
    without = {"test_every_algorithm.py", "test_every_online_algorithm.py"}
    strays = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "tests").rglob("test_*.py")
        if path.parent != ROOT / "tests" and path.name not in without
        and ".".join(["offrl", *path.relative_to(ROOT / "tests").parts[:-1], path.stem.removeprefix("test_")]) not in MODULES
    ]  # fmt: skip
    allowed = {"tests/training/test_resume.py", "tests/sweeps/test_online.py", "tests/llm/test_text_runs.py"}
    allowed |= {"tests/llm/test_devices.py"}
    assert [path for path in strays if path not in allowed] == []
