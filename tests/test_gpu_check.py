"""The script that compares a GPU with the CPU, run on the CPU."""

import importlib.util
import json
import math
import time
from pathlib import Path

import gymnasium
import pytest
import torch

from offrl.algos import ONLINE

SCRIPT = Path(__file__).resolve().parents[1] / "scripts/gpu_check.py"


@pytest.fixture(scope="module")
def gpu_check():
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "name", ["td3_bc", "decision_transformer", "prdc", "diffusion_policy", "policy_guided_diffusion", "cdsa"]
)
def test_a_device_agrees_with_itself(gpu_check, name):
    with gpu_check.drawn_on_the_cpu():
        assert gpu_check.parity(name, "cpu") == 0.0


@pytest.mark.parametrize("name", list(ONLINE))
def test_online_methods_agree_with_themselves(gpu_check, name):
    with gpu_check.drawn_on_the_cpu():
        assert gpu_check.online_parity(name, "cpu") == 0.0


def test_an_online_method_that_learns_something_else_is_found(gpu_check, monkeypatch):
    plain, rewards = gpu_check.vector_env, iter((1.0, -1.0))

    class Paid(gymnasium.RewardWrapper):
        def reward(self, reward):
            return reward * self.factor

    def paid(env_id, options, discount):
        env, factor = plain(env_id, options, discount), next(rewards)
        inner = env.unwrapped.envs
        inner[0] = Paid(inner[0])
        inner[0].factor = factor
        return env

    monkeypatch.setattr(gpu_check, "vector_env", paid)
    assert gpu_check.online_parity("sac", "cpu") > gpu_check.TOLERANCE


def test_a_device_that_computes_something_else_is_found(gpu_check, monkeypatch):
    plain, calls = gpu_check.on, []

    def wrong_the_second_time(problem, device):
        calls.append(device)
        problem = plain(problem, device)
        if len(calls) == 2:
            problem.rewards.add_(0.1)
        return problem

    monkeypatch.setattr(gpu_check, "on", wrong_the_second_time)
    assert gpu_check.parity("td3_bc", "cpu") > gpu_check.TOLERANCE


class Elsewhere:
    """A generator that says it is of another device."""

    device = torch.device("cuda")

    def initial_seed(self):
        return 5


def test_draws_for_another_device_are_those_of_the_cpu(gpu_check, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device: self)
    with gpu_check.drawn_on_the_cpu():
        there = Elsewhere()
        found = [
            torch.randn((2, 3), generator=there, device="cuda"),
            torch.randint(9, (4,), generator=there, device="cuda"),
            torch.zeros(1000).bernoulli_(0.3, generator=there),
        ]
    here = torch.Generator().manual_seed(5)
    assert torch.equal(found[0], torch.randn((2, 3), generator=here))
    assert torch.equal(found[1], torch.randint(9, (4,), generator=here))
    assert torch.equal(found[2], (torch.rand(1000, generator=here) < 0.3).float())


def test_a_number_that_is_none_is_not_passed_over(gpu_check):
    here, there = [torch.ones(2), torch.ones(2)], [torch.ones(2), torch.tensor([1.0, float("nan")])]
    assert gpu_check.apart(here, here) == 0.0
    assert math.isnan(gpu_check.apart(here, there))


def test_all_checks_run_on_the_cpu_too(gpu_check, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "METHODS", ("bc",))
    monkeypatch.setattr(gpu_check, "MODES", (False, False))  # compiling takes its time
    monkeypatch.setattr(gpu_check, "stacked", lambda device, steps: {})
    monkeypatch.setattr(gpu_check, "ONLINE", ("mdpo_on",))
    o = gpu_check.Run(device="cpu", rows=500, tokens=16, words=50, steps=1, out=tmp_path)
    assert gpu_check.run(o) is True
    record = json.loads((tmp_path / "cpu.json").read_text())
    assert record["parity"] == {"bc": [0.0, 0.0]}
    assert record["online"] == {"mdpo_on": 0.0}
    assert record["log_probabilities"]["peak_mib"] is None
    monkeypatch.setattr(gpu_check, "online_parity", lambda name, device: float("nan"))
    assert gpu_check.run(o) is False
    assert "TOO FAR" in capsys.readouterr().out
    assert gpu_check.table_row("bc", [None, 1e-6], "not run") == "| bc | NaN | 1.0e-06 |"


def test_neighbours_and_log_probabilities_agree(gpu_check):
    assert gpu_check.neighbours("cpu", 2000) == 0
    assert gpu_check.log_probabilities("cpu", 64, 300)["difference"] < 1e-5


def test_the_page_says_not_run_until_there_is_a_raw_file(gpu_check, tmp_path):
    assert "**Not run**" in gpu_check.page(tmp_path)
    record = {
        "device": "a card",
        "versions": {"torch": "2", "commit": "c"},
        "parity": {"bc": [3e-6, 4e-6]},
        "other_neighbours": 1,
        "log_probabilities": {"difference": 1e-6, "peak_mib": 5.0, "dense_peak_mib": 90.0},
        "stacked": {"eager_1": 1.0, "eager_10": 4.0, "graphs_1": 0.5, "graphs_10": 0.75},
    }
    (tmp_path / "cuda.json").write_text(json.dumps(record))
    page = gpu_check.page(tmp_path)
    assert "Not run" not in page
    assert "| bc | 3.0e-06 | 4.0e-06 |" in page
    assert "| td3_bc | not run | not run |" in page
    assert "| sac | not run | has none |" in page
    record["online"] = {"sac": 2e-6}
    (tmp_path / "cuda.json").write_text(json.dumps(record))
    assert "| sac | 2.0e-06 | has none |" in gpu_check.page(tmp_path)
    assert "as CUDA graphs 0.75 and 0.50 ms" in page


def test_without_a_gpu_it_says_so(gpu_check, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.run(gpu_check.Run(out=tmp_path)) is False
    assert "no CUDA device" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_long_run_goes_on_piece_by_piece(gpu_check, tmp_path):
    o = gpu_check.Seeds(
        minutes=3.0, device="cpu", seeds=2, steps=300, dataset="builtin:double-pendulum-demo", eval_every=100,
        episodes=2, work=tmp_path / "work", out=tmp_path,
    )  # fmt: skip
    plain = gpu_check.subprocess.Popen

    class OutOfTime(plain):
        """A process whose time is up as soon as a checkpoint is there."""

        def wait(self, timeout=None):
            while timeout and self.poll() is None:
                if (
                    any((tmp_path / "work").rglob("eval.csv"))
                    and "\n100," in first(tmp_path / "work").read_text()
                ):
                    raise gpu_check.subprocess.TimeoutExpired("offrl", timeout)
                time.sleep(0.01)
            return super().wait()

    def first(work):
        return min(work.rglob("eval.csv"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_check.subprocess, "Popen", OutOfTime)
        assert gpu_check.seeds(o) is False
    stopped = json.loads((tmp_path / "ten_seeds.json").read_text())
    assert 100 <= stopped["pieces"][0]["until"] < 300
    assert gpu_check.seeds(o) is True
    record = json.loads((tmp_path / "ten_seeds.json").read_text())
    assert [piece["until"] for piece in record["pieces"]] == [stopped["pieces"][0]["until"], 300]
    assert list(record["scores"]) == ["100", "200", "300"]
    assert all(len(of) == 2 for of in record["scores"].values())
    lines = "\n".join(gpu_check.ten_seeds(record))
    assert "returns, 2 episodes a seed" in lines
    assert "in 2 piece(s)" in lines
    assert "300 of 300 updates" in lines
    mean = sum(record["scores"]["300"]) / 2
    assert f"| 300 | {mean:.1f} +- " in lines
