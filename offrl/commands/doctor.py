"""``offrl doctor``: what is installed, what is missing, and what to do about it."""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.version import Version

from offrl.commands.arguments import parse

MUJOCO_CAP = "3.12"  # from here on comparing enums changed, on which gymnasium-robotics 1.4 relies
FOR_DEVELOPERS = ("test", "docs", "bench", "all")  # extras that no feature needs
RENDER_SECONDS = 60
RENDER = """
import gymnasium
env = gymnasium.make("InvertedPendulum-v5", render_mode="rgb_array", width=64, height=64)
env.reset(seed=0)
print(f"{env.render().std():.1f}")
env.close()
"""

Status = Literal["ok", "note", "warn", "FAIL"]


@dataclass(frozen=True)
class Finding:
    """One line of the examination."""

    status: Status
    name: str
    text: str


@dataclass(frozen=True)
class DoctorOptions:
    """Print what is installed and what is missing; exit with 1 if training cannot work here."""


def main(argv: list[str]) -> int:
    """``offrl doctor``."""
    parse(DoctorOptions, "offrl doctor", argv)
    failed = False
    for finding in examine(Path.cwd()):
        failed |= finding.status == "FAIL"
        print(f"{finding.status:4}  {finding.name:13} {finding.text}", flush=True)
    print("this installation needs repair: see FAIL above" if failed else "ready to train")
    return int(failed)


def examine(folder: Path) -> Iterator[Finding]:
    """All findings, in order; ``folder`` is where runs would be written."""
    yield python()
    yield from core_libraries()
    yield from torch_and_devices()
    yield from simulator()
    yield compiler()
    yield from extras()
    yield from folders(folder)


def python() -> Finding:
    """The interpreter."""
    text = f"{platform.python_version()} on {platform.platform()}, {os.cpu_count()} CPU cores"
    return Finding("ok", "python", text)


def core_libraries() -> Iterator[Finding]:
    """The package's own version, and the libraries that it cannot do without."""
    try:
        version = metadata.version("offrl")
    except metadata.PackageNotFoundError:
        yield Finding("FAIL", "offrl", "not installed in this Python; from a checkout run: pip install -e .")
        return
    yield Finding("ok", "offrl", version)
    for problem in missing(None):
        yield Finding("FAIL", "core", f"{problem}; run: pip install offrl")


def torch_and_devices() -> Iterator[Finding]:
    """PyTorch, threads and accelerators."""
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library of a broken wheel
        yield Finding(
            "FAIL", "torch", f"cannot be imported ({error}); run: pip install --force-reinstall torch"
        )
        return
    capability = torch.backends.cpu.get_cpu_capability()
    yield Finding(
        "ok", "torch", f"{torch.__version__}, CPU kernels {capability}, {torch.get_num_threads()} threads"
    )
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        yield Finding("ok", "device", f"CUDA {torch.version.cuda}: {names}")
    elif torch.backends.mps.is_available():
        yield Finding("note", "device", "Apple GPU; it is used with --device mps only, CPU otherwise")
    elif torch.version.cuda:
        yield Finding(
            "warn", "device", f"CPU: torch is a CUDA {torch.version.cuda} build but sees no GPU or driver"
        )
    else:
        yield Finding("ok", "device", "CPU (this torch is built without CUDA)")


def simulator() -> Iterator[Finding]:
    """MuJoCo, its version cap, and whether a frame can be rendered."""
    installed = version_of("mujoco")
    if installed is None:
        yield Finding(
            "warn", "mujoco", "missing: no simulation, evaluation or collection; " + remedy("mujoco")
        )
        return
    robotics = version_of("gymnasium-robotics")
    if robotics and Version(installed) >= Version(MUJOCO_CAP):
        yield Finding(
            "warn",
            "mujoco",
            f"{installed} breaks FrankaKitchen, Fetch and HandReach of gymnasium-robotics {robotics}; "
            f"run: pip install 'mujoco<{MUJOCO_CAP}'",
        )
    else:
        yield Finding("ok", "mujoco", f"{installed} (tested below {MUJOCO_CAP})")
    yield rendering()


def rendering() -> Finding:
    """Renders one frame without a display, in a process of its own: a broken driver may end it."""
    environment = dict(os.environ)
    if sys.platform == "linux":
        environment.setdefault("MUJOCO_GL", "egl")
    backend = environment.get("MUJOCO_GL", "the system's default")
    command = [sys.executable, "-W", "ignore", "-c", RENDER]
    try:
        with tempfile.TemporaryDirectory() as scratch:  # MuJoCo may write a log into the working directory
            done = subprocess.run(
                command,
                env=environment,
                cwd=scratch,
                capture_output=True,
                text=True,
                timeout=RENDER_SECONDS,
                check=False,
            )
    except subprocess.TimeoutExpired:
        return Finding("warn", "rendering", f"{backend}: no frame after {RENDER_SECONDS} s; no films here")
    if done.returncode == 0 and float(done.stdout.split()[-1]) > 0:
        return Finding("ok", "rendering", f"off-screen with {backend}")
    reason = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}, an empty picture"]
    hint = "on Debian or Ubuntu: apt-get install libegl1 libgl1-mesa-dri"
    return Finding("warn", "rendering", f"{backend} fails ({reason[0]}), no films here; {hint}")


def compiler() -> Finding:
    """The C++ compiler that ``--compile`` needs on a CPU."""
    for name in (os.environ.get("CXX", "c++"), "g++", "clang++"):
        if path := shutil.which(name):
            return Finding("ok", "compiler", f"{path}, for --compile")
    return Finding("note", "compiler", "no C++ compiler: --compile does not work on the CPU; all else does")


def extras() -> Iterator[Finding]:
    """Optional features, read from the package's metadata."""
    try:
        names = metadata.metadata("offrl").get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return
    for name in names:
        if name in FOR_DEVELOPERS:
            continue
        if problems := list(missing(name)):
            yield Finding("note", f"[{name}]", f"{'; '.join(problems)}; {remedy(name)}")
        else:
            yield Finding("ok", f"[{name}]", "present")


def folders(runs: Path) -> Iterator[Finding]:
    """Where datasets are kept and runs are written."""
    home = data_home()
    size = sum(path.stat().st_size for path in home.rglob("*") if path.is_file()) if home.is_dir() else 0
    yield Finding("ok", "data", f"{home}, {size / 1e6:.1f} MB" if home.is_dir() else f"{home}, not made yet")
    try:
        with tempfile.TemporaryFile(dir=runs):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        yield Finding("FAIL", "runs", f"{runs} is not writable ({reason}); run offrl from another folder")
        return
    yield Finding("ok", "runs", f"{runs / 'runs'}, {shutil.disk_usage(runs).free / 1e9:.1f} GB free")


def missing(extra: str | None) -> Iterator[str]:
    """What ``extra`` (None: the core) requires and is not there, or is there in another version."""
    for text in metadata.requires("offrl") or []:
        requirement = Requirement(text)
        active = requirement.marker is None or requirement.marker.evaluate({"extra": extra or ""})
        if not active or (extra is not None and "extra" not in str(requirement.marker)):
            continue
        if requirement.name == "offrl":
            for nested in sorted(requirement.extras):
                yield from missing(nested)
        elif (installed := version_of(requirement.name)) is None:
            yield f"{requirement.name} is missing"
        elif not requirement.specifier.contains(installed, prereleases=True):
            yield f"{requirement.name} {installed} is not {requirement.specifier}"


def version_of(library: str) -> str | None:
    """Installed version of a distribution, or None."""
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def remedy(extra: str) -> str:
    """The command that brings an extra."""
    return f"run: pip install 'offrl[{extra}]'"


def data_home() -> Path:
    """The folder of downloaded datasets."""
    from offrl.data.download import data_home as home

    return home()
