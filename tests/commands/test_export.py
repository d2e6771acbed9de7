import sys

import pytest
import torch

from offrl.cli import main
from offrl.nn.policy import DiagGaussianPolicy, GaussianPolicy, SquashedGaussianPolicy, save_policy
from offrl.nn.sb3 import load_sb3_actor

BOX = [-1.0], [1.0]


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    save_policy(GaussianPolicy(3, 1, (8,), *BOX), tmp_path / "run")
    return str(tmp_path / "run")


def output_of(capsys, *argv):
    code = main(["export", *map(str, argv)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize(
    ("name", "file", "what"),
    [
        ("onnx", "p.onnx", "ONNX"),
        ("torch", "p.pt2", "torch.export"),
        ("sb3", "p.zip", "stable-baselines3 TD3"),
    ],
)
def test_the_file_is_written_and_described(folder, tmp_path, capsys, name, file, what):
    code, out, err = output_of(capsys, folder, "--format", name, "--out", tmp_path / file)
    assert (code, err) == (0, "")
    written, equal, noise = out.splitlines()
    assert written.startswith(f"written to {tmp_path / file}: {what}, 0.0")
    assert equal.startswith("its actions equal the policy's within ")
    assert equal.endswith(", at batch sizes 1, 7, 256")
    assert noise == "only the deterministic action is in it, not the policy's noise"
    assert (tmp_path / file).is_file()


def test_an_exported_agent_is_a_source(tmp_path, capsys):
    save_policy(SquashedGaussianPolicy(3, 1, (8,), [-2.0], [2.0], log_std_min=-5.0), tmp_path / "run")
    options = ["--format", "sb3", "--out", tmp_path / "agent.zip", "--env", "Pendulum-v1"]
    code, out, _ = output_of(capsys, f"run:{tmp_path / 'run'}", *options)
    assert code == 0
    assert out.splitlines()[-1] == "it also samples as the policy does"
    assert isinstance(load_sb3_actor(tmp_path / "agent.zip"), SquashedGaussianPolicy)
    source = f"sb3:{tmp_path / 'agent.zip'}"
    assert main(["eval", source, "--env", "Pendulum-v1", "--episodes", "1"]) == 0


def test_user_errors_are_one_line(folder, tmp_path, capsys, monkeypatch):
    save_policy(DiagGaussianPolicy(3, 1, (8,), *BOX), tmp_path / "other")
    zipped = ["--format", "sb3", "--out", tmp_path / "p.zip"]
    code, out, err = output_of(capsys, tmp_path / "other", *zipped)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "no stable-baselines3 TD3 or SAC acts as this diag_gaussian policy" in err
    code, _, err = output_of(capsys, folder, *zipped, "--env", "Pendulum-v1")
    assert (code, err.count("\n")) == (1, 1)
    assert "Pendulum-v1 has actions" in err
    code, _, err = output_of(capsys, folder, "--format", "onnx", "--out", tmp_path / "p.zip")
    assert (code, err) == (1, f"offrl: a file of format onnx must end in .onnx, got '{tmp_path}/p.zip'\n")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, _, err = output_of(capsys, folder, "--format", "onnx", "--out", tmp_path / "p.onnx")
    assert code == 1
    assert "pip install 'offrl[export]'" in err


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["run", "--out", "x.onnx"], "missing: --format"),
        (["run", "--format", "onnxx", "--out", "x"], "onnx"),
        (["run", "--format", "onnx"], "missing: --out"),
    ],
)
def test_wrong_usage(capsys, argv, hint):
    code, _, err = output_of(capsys, *argv)
    assert code == 2
    assert hint in err
