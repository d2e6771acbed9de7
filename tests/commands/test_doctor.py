import importlib.metadata
import subprocess
import sys

import pytest

from offrl.cli import main
from offrl.commands import doctor

REQUIRES = [
    "alpha>=1",
    'beta>=2,<3; extra == "one"',
    'offrl[one]; extra == "both"',
    'gamma; extra == "both"',
    'delta; sys_platform == "no-such-system"',
]


@pytest.fixture
def installed(monkeypatch):
    """Pretend that exactly these distributions are installed."""

    def pretend(**versions):
        def version(name):
            try:
                return versions[name.replace("-", "_")]
            except KeyError:
                raise importlib.metadata.PackageNotFoundError(name) from None

        monkeypatch.setattr(importlib.metadata, "version", version)
        monkeypatch.setattr(importlib.metadata, "requires", lambda name: REQUIRES)

    return pretend


@pytest.fixture
def no_rendering(monkeypatch):
    monkeypatch.setattr(doctor, "rendering", lambda: doctor.Finding("ok", "rendering", "not tried"))


def fake_run(monkeypatch, **result):
    def run(command, **options):
        return subprocess.CompletedProcess(command, **{"returncode": 0, "stdout": "", "stderr": ""} | result)

    monkeypatch.setattr(subprocess, "run", run)


def test_healthy_installation_exits_0_and_lists_everything(capsys, tmp_path, monkeypatch, no_rendering):
    monkeypatch.chdir(tmp_path)
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[1] for line in lines[:-1]]
    assert names[:6] == ["python", "offrl", "torch", "device", "mujoco", "rendering"]
    extras = {"[mujoco]", "[minari]", "[robotics]"}
    assert extras | {"compiler", "data", "runs"} <= set(names)
    assert not {"[test]", "[docs]", "[bench]", "[all]"} & set(names)
    assert lines[-1] == "ready to train"
    assert list(tmp_path.iterdir()) == []


def test_failure_exits_1(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "examine", lambda folder: [doctor.Finding("FAIL", "torch", "gone")])
    assert main(["doctor"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "FAIL  torch         gone",
        "this installation needs repair: see FAIL above",
    ]


def test_core_requirements_that_are_missing_or_old_are_named(installed):
    """The markers of extras and of other systems are not the core's."""
    installed(alpha="0.9")
    assert list(doctor.missing(None)) == ["alpha 0.9 is not >=1"]
    installed()
    assert list(doctor.missing(None)) == ["alpha is missing"]
    installed(alpha="1.0")
    assert list(doctor.missing(None)) == []


def test_extra_that_names_another_needs_that_one_too(installed):
    installed(alpha="1", beta="2.5")
    assert list(doctor.missing("one")) == []
    assert list(doctor.missing("both")) == ["gamma is missing"]
    installed(gamma="1", beta="3.0")
    assert list(doctor.missing("both")) == ["beta 3.0 is not <3,>=2"]


def test_uninstalled_package_fails_without_a_traceback(installed):
    installed(alpha="1")
    assert [f.status for f in doctor.core_libraries()] == ["FAIL"]


@pytest.mark.parametrize(
    ("versions", "status", "text"),
    [
        ({}, "warn", "pip install 'offrl[mujoco]'"),
        ({"mujoco": "3.11.0", "gymnasium_robotics": "1.4.2"}, "ok", "3.11.0 (tested below 3.12)"),
        ({"mujoco": "3.12.0", "gymnasium_robotics": "1.4.2"}, "warn", "pip install 'mujoco<3.12'"),
        ({"mujoco": "3.12.0"}, "ok", "3.12.0 (tested below 3.12)"),
    ],
)
def test_mujoco_cap_matters_with_gymnasium_robotics(installed, no_rendering, versions, status, text):
    installed(**versions)
    finding = next(doctor.simulator())
    assert (finding.status, text in finding.text) == (status, True)


def test_frame_is_really_rendered():
    assert doctor.rendering().status == "ok"


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        ({"returncode": 1, "stderr": "Traceback\nAttributeError: no eglQueryString"}, "no eglQueryString"),
        ({"returncode": -11}, "exit code -11"),
        ({"stdout": "0.0\n"}, "an empty picture"),
    ],
)
def test_failed_rendering_is_a_warning_that_says_what_to_install(monkeypatch, result, reason):
    fake_run(monkeypatch, **result)
    finding = doctor.rendering()
    assert finding.status == "warn"
    assert reason in finding.text
    assert "libegl1" in finding.text


def test_hanging_renderer_is_given_up(monkeypatch):
    def run(command, timeout, **options):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", run)
    assert doctor.rendering().status == "warn"


def test_missing_compiler_is_a_note(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert doctor.compiler().status == "note"
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/bin/{name}" if name == "clang++" else None)
    assert doctor.compiler().text.startswith("/bin/clang++")


def test_broken_torch_fails(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    findings = list(doctor.torch_and_devices())
    assert [f.status for f in findings] == ["FAIL"]
    assert "force-reinstall torch" in findings[0].text


def test_folder_that_cannot_be_written_fails(monkeypatch, tmp_path):
    def refuse(**options):
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    data, runs = doctor.folders(tmp_path)
    assert data.status == "ok"
    assert runs.status == "FAIL"
    assert runs.text.endswith("(Permission denied); run offrl from another folder")


def test_data_home_shows_its_size(monkeypatch, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "file").write_bytes(bytes(2_500_000))
    monkeypatch.setattr(doctor, "data_home", lambda: tmp_path)
    assert next(doctor.folders(tmp_path)).text == f"{tmp_path}, 2.5 MB"
